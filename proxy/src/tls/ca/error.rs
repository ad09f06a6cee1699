//! Why an authority cannot be made, read or used. Each message names the file, the reason and the command that helps.

use std::io;
use std::path::{Path, PathBuf};

/// What goes wrong with the local authority. No message holds a byte of a key.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is none yet.
    #[error(
        "there is no local authority in {} (ca.dir): make one with `agent-fips-proxy ca init`",
        .0.display()
    )]
    None(PathBuf),
    /// There is one already.
    #[error(
        "there is a local authority in {} already (ca.dir). `agent-fips-proxy ca rotate` makes the next one without a \
         break; `ca init --replace` throws this one away, and every Agent must then be restarted",
        .0.display()
    )]
    Exists(PathBuf),
    /// A file or folder.
    #[error("cannot {what} {}: {source}{}", path.display(), cure(source))]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder that others could have changed or read.
    #[error("{} {problem}; {cure}", path.display())]
    Permissions {
        /// Which.
        path: PathBuf,
        /// Why it is not used.
        problem: String,
        /// What to do.
        cure: String,
    },
    /// Another `ca` command holds the lock.
    #[error("another `agent-fips-proxy ca` command is at work in {}: try again when it has ended", .0.display())]
    Busy(PathBuf),
    /// Not what it should be.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate that must not be used.
    #[error("the authority of {} is not used: {problem}; {cure}", path.display())]
    Unfit {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        problem: String,
        /// The command that helps.
        cure: String,
    },
    /// Rotation in a state that does not allow it.
    #[error("{0}")]
    Rotation(String),
    /// The cryptographic module or the certificate library refused.
    #[error("cannot {what}: {problem}")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// What the library says.
        problem: String,
    },
}

impl CaError {
    /// For `map_err` on calls that touch `path`.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(super) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    pub(super) fn unfit(path: &Path, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Unfit {
            path: path.to_owned(),
            problem: problem.into(),
            cure: cure.into(),
        }
    }

    /// For `map_err` on calls of the libraries, whose errors hold no key.
    pub(super) fn crypto<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Crypto {
            what,
            problem: error.to_string(),
        }
    }

    /// True when the caller lacks a right and somebody else, usually root, has it.
    pub fn is_privilege(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run it as root",
        io::ErrorKind::ReadOnlyFilesystem => "; is ca.dir writable for the service (StateDirectory=)?",
        io::ErrorKind::StorageFull => "; make room",
        _ => "",
    }
}
