//! The files of an authority, opened and unread: what the master hands to the worker.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::Origin;
use super::error::CaError;

/// Which authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Ours, the one that Agents trust.
    Current,
    /// Ours, published and waiting until Agents trust it.
    Next,
    /// The operator's: `ca.certificate_file`.
    Supplied,
}

impl Role {
    /// Who made it.
    pub fn origin(self) -> Origin {
        match self {
            Self::Current | Self::Next => Origin::Own,
            Self::Supplied => Origin::Supplied,
        }
    }
}

/// The open files of an authority. Whoever opens them needs the right to; whoever reads them does not.
#[derive(Debug)]
pub struct OpenAuthority {
    /// Which one.
    pub role: Role,
    /// Certificate, PEM; further ones lead to its root.
    pub certificate: File,
    /// For messages.
    pub certificate_path: PathBuf,
    /// Key, PEM, unread.
    pub key: File,
    /// For messages.
    pub key_path: PathBuf,
}

impl OpenAuthority {
    /// Opens the operator's own (`ca.certificate_file`, `ca.key_file`).
    ///
    /// # Errors
    /// A file that is not there or may not be read.
    pub fn supplied(certificate: &Path, key: &Path) -> Result<Self, CaError> {
        Self::open(Role::Supplied, certificate.to_owned(), key.to_owned(), true)
    }

    pub(super) fn open(role: Role, certificate: PathBuf, key: PathBuf, links: bool) -> Result<Self, CaError> {
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            // Waits for nobody, should the path be a pipe. Our own files are never links; an operator's may be, as those
            // of a Kubernetes secret are.
            let flags = if links { 0 } else { nix::libc::O_NOFOLLOW };
            options.read(true).custom_flags(flags | nix::libc::O_NONBLOCK);
            options.open(path).map_err(CaError::file("open", path))
        };
        Ok(Self {
            role,
            certificate: open(&certificate)?,
            key: open(&key)?,
            certificate_path: certificate,
            key_path: key,
        })
    }
}
