//! Where the bundle is written: a new file that nobody else may read, never one that was there, never through a link.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use super::{Exit, Failure, collect};

/// Refuses a name that is taken before anything is collected.
pub(super) fn refuse_existing(path: &Path) -> Result<(), Failure> {
    match path.symlink_metadata() {
        Ok(_) => Err(cannot("write", path, &ErrorKind::AlreadyExists.into())),
        Err(_) => Ok(()),
    }
}

/// Makes the file: the one that was asked for, or one with a name of its own here, else in the folder for temporary files.
pub(super) fn create(asked: Option<&Path>, host: &str) -> Result<(PathBuf, File), Failure> {
    if let Some(path) = asked {
        let file = make(path).map_err(|error| cannot("create", path, &error))?;
        return Ok((path.to_owned(), file));
    }
    let name = format!(
        "agent-fips-proxy-flare-{}-{}",
        tame(host),
        collect::compact_time()
    );
    match make_named(Path::new(""), &name) {
        Err((_, error))
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotFound
            ) =>
        {
            make_named(&std::env::temp_dir(), &name)
        }
        made => made,
    }
    .map_err(|(path, error)| cannot("create", &path, &error))
}

/// With a number behind the name where it is taken: two may be made in one second.
fn make_named(folder: &Path, name: &str) -> Result<(PathBuf, File), (PathBuf, io::Error)> {
    let mut path = folder.join(format!("{name}.zip"));
    for number in 2..=100 {
        match make(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                path = folder.join(format!("{name}-{number}.zip"));
            }
            Err(error) => return Err((path, error)),
        }
    }
    Err((path, ErrorKind::AlreadyExists.into()))
}

/// `O_EXCL` also refuses a link, wherever it leads.
fn make(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// What failed, and what to do.
pub(super) fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    let (exit, cure) = match error.kind() {
        ErrorKind::AlreadyExists => (
            Exit::Usage,
            "it is there already, and is left as it is: name another file with --output",
        ),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => (
            Exit::NoPermission,
            "name a file where you may write with --output",
        ),
        ErrorKind::NotFound | ErrorKind::NotADirectory => (
            Exit::Usage,
            "its folder is not there: name another file with --output",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (
            Exit::Unavailable,
            "nothing is left of it; name a file on another disk with --output",
        ),
        _ => (Exit::Internal, "name another file with --output"),
    };
    (exit, format!("cannot {what} {}: {error}; {cure}", path.display()))
}

/// A host's name as part of a file's.
fn tame(host: &str) -> String {
    let keep = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') {
            c
        } else {
            '_'
        }
    };
    host.chars().take(64).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_file_of_our_own_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        create(Some(&path), "h").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let (exit, message) = create(Some(&path), "h").unwrap_err();
        assert_eq!(exit, Exit::Usage);
        assert!(message.contains("--output"), "{message}");
        // A link to nowhere is not followed either.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(refuse_existing(&link).is_err() && create(Some(&link), "h").is_err());
        assert!(!dir.path().join("elsewhere").exists());
        assert_eq!(
            create(Some(&dir.path().join("no/x")), "h").unwrap_err().0,
            Exit::Usage
        );
        assert_eq!(tame("a/b c.d-1"), "a_b_c.d-1");
    }
}
