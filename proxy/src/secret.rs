//! Files that hold keys and passwords: read once, by whoever may, and refused when anybody else could have read them.
//!
//! The worker has no rights of its own. Files of root's are therefore opened, and not read, before it gives its rights
//! up ([`Secrets::open`]); what it can open as the user it becomes, it opens then.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::Uid;
use zeroize::Zeroizing;

use crate::owner::is_trusted;

/// Larger than any key or password.
const MAX_LEN: usize = 64 * 1024;

/// Why a secret is not used. Never holds a byte of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be opened or read.
    #[error(
        "{}: {source}; the master's user must be able to read it, or worker.user: with systemd `chgrp agent-fips-proxy-master` and \
         mode 0640",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is a folder, a pipe or a device.
    #[error("{}: it is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others can read or change it.
    #[error(
        "{}: others than its owner can read or change it (mode {mode:04o}); set mode 0600, or 0640 when it \
         belongs to root and is read by its group",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else can read and change it.
    #[error("{}: it belongs to the user {owner}; it must belong to root, to the master's user or to worker.user", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
    },
    /// It cannot be a key or a password.
    #[error("{}: it is longer than {} bytes", path.display(), MAX_LEN)]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

/// Secret files that are already open.
#[derive(Debug, Default)]
pub struct Secrets {
    opened: HashMap<PathBuf, File>,
}

impl Secrets {
    /// Opens what can be opened with the rights of this moment. What cannot is tried again when it is read, and told then.
    pub fn open<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        Self {
            opened: paths
                .into_iter()
                .filter_map(|path| Some((path.clone(), open(path).ok()?)))
                .collect(),
        }
    }

    /// What `path` holds.
    ///
    /// # Errors
    /// It cannot be read, or others could have read or changed it.
    pub fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let unreadable = |source| SecretError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let now;
        let mut file = match self.opened.get(path) {
            Some(file) => file,
            None => {
                now = open(path).map_err(unreadable)?;
                &now
            }
        };
        let metadata = file.metadata().map_err(unreadable)?;
        judge(path, &metadata)?;
        let owner = metadata.uid();
        // Root cannot tell: to it the worker's own files are those of another user.
        if !Uid::effective().is_root() && !is_trusted(owner) {
            return Err(SecretError::Foreign {
                path: path.to_owned(),
                owner,
            });
        }
        if metadata.len() > MAX_LEN as u64 {
            return Err(SecretError::TooLong {
                path: path.to_owned(),
            });
        }
        file.rewind().map_err(unreadable)?;
        // All of the room at once: a buffer that grows would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN + 1));
        file.take(MAX_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Ok(bytes)
    }
}

/// Whether the permissions of `path` are those of a secret; reads nothing. For checking a configuration.
///
/// # Errors
/// As [`Secrets::read`], as far as it can be seen from outside.
pub fn check(path: &Path) -> Result<(), SecretError> {
    let metadata = std::fs::metadata(path).map_err(|source| SecretError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    judge(path, &metadata)
}

/// As PostgreSQL judges its server's key: nobody but the owner, or a group that root gave it to.
fn judge(path: &Path, metadata: &Metadata) -> Result<(), SecretError> {
    if !metadata.is_file() {
        return Err(SecretError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mode = metadata.mode() & 0o7777;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if mode & forbidden != 0 {
        return Err(SecretError::Open {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        // A pipe would wait for its other end.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(dir: &Path, name: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, "user:password").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn only_files_that_nobody_else_can_read_are_secrets() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o400] {
            let path = file(dir.path(), &format!("{mode:o}"), mode);
            check(&path).unwrap();
            assert_eq!(**Secrets::default().read(&path).unwrap(), *b"user:password");
        }
        for mode in [0o644, 0o604, 0o666, 0o620, 0o602, 0o601] {
            let path = file(dir.path(), &format!("{mode:o}"), mode);
            for error in [
                check(&path).unwrap_err(),
                Secrets::default().read(&path).unwrap_err(),
            ] {
                let error = error.to_string();
                assert!(
                    error.contains("0600") && error.contains(&format!("{mode:04o}")),
                    "{error}"
                );
                assert!(!error.contains("password"), "{error}");
            }
        }
        // Root may give it to a group; another owner may not.
        let path = file(dir.path(), "group", 0o640);
        assert_eq!(check(&path).is_ok(), Uid::effective().is_root());
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(matches!(check(&path), Err(SecretError::Open { .. })));
        }
    }

    #[test]
    fn what_is_no_file_or_too_long_is_refused_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Secrets::default().read(&dir.path().join("absent")),
            Err(SecretError::Unreadable { .. })
        ));
        assert!(matches!(check(dir.path()), Err(SecretError::NotAFile { .. })));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(
            Secrets::default().read(&pipe),
            Err(SecretError::NotAFile { .. })
        ));
        let long = file(dir.path(), "long", 0o600);
        std::fs::write(&long, vec![b'x'; 70_000]).unwrap();
        assert!(matches!(
            Secrets::default().read(&long),
            Err(SecretError::TooLong { .. })
        ));
    }

    #[test]
    fn what_was_opened_is_read_even_when_the_path_is_gone_and_more_than_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "key", 0o600);
        let secrets = Secrets::open([&path]);
        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(**secrets.read(&path).unwrap(), *b"user:password");
        }
    }
}
