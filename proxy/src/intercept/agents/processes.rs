//! What the process table tells: which processes a cgroup holds, and where each lives.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::glob::is_gone;
use crate::intercept::error::InterceptError;
use crate::intercept::host::{Cgroup2, MAX_VISITED};
use crate::intercept::netns::NamespaceId;

/// Why it is not known where a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// It is gone.
    Gone,
    /// It is not ours to look at: the kernel asks for CAP_SYS_PTRACE where it is another user's.
    Denied,
}

/// The processes of a cgroup.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    /// Those that have a number in our pid namespace.
    pub(super) pids: Vec<u32>,
    /// True when there are others, which show as 0 (`cgroup.procs` in the kernel's cgroup-v2.rst).
    pub(super) outside: bool,
}

/// Every process of a cgroup and of those below it.
pub(super) fn of_cgroup(cgroups: &Cgroup2, cgroup: &Path) -> Result<Members, InterceptError> {
    let mut found = Members::default();
    let mut pending = vec![cgroups.directory(cgroup)];
    let mut visited = 0;
    while let Some(directory) = pending.pop() {
        visited += 1;
        if visited > MAX_VISITED {
            too_many("an Agent's cgroup");
            break;
        }
        let members = directory.join("cgroup.procs");
        match fs::read_to_string(&members) {
            Ok(text) => {
                for pid in text.lines().filter_map(|line| line.parse().ok()) {
                    match pid {
                        0 => found.outside = true,
                        pid => found.pids.push(pid),
                    }
                }
            }
            // EOPNOTSUPP: a threaded cgroup; its processes are listed above it.
            Err(error) if is_gone(&error) || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => continue,
            Err(error) => return Err(InterceptError::file("read", members)(error)),
        }
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        pending.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    Ok(found)
}

/// The network namespace of a process.
pub(super) fn namespace_of(pid: u32) -> Result<NamespaceId, Hidden> {
    let metadata = fs::metadata(format!("/proc/{pid}/ns/net")).map_err(|error| hidden(pid, &error))?;
    Ok(NamespaceId {
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

/// What an error of a look at a process means.
pub(super) fn hidden(pid: u32, error: &io::Error) -> Hidden {
    let denied = match error.kind() {
        io::ErrorKind::PermissionDenied => true,
        // Gone, or ended and not waited for, or hidden (`hidepid=`, the unit's `ProtectProc=`): then signal 0 tells, and does
        // nothing else.
        io::ErrorKind::NotFound => {
            !Path::new(&format!("/proc/{pid}")).exists()
                && kill(Pid::from_raw(pid.cast_signed()), None) != Err(Errno::ESRCH)
        }
        _ => false,
    };
    match denied {
        true => Hidden::Denied,
        false => Hidden::Gone,
    }
}

/// Says once that a hierarchy is larger than any that we look through.
pub(super) fn too_many(what: &str) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(
            limit = MAX_VISITED,
            "too many cgroups below {what}: Agents among the rest are not seen"
        );
    });
}

/// The cgroup2 cgroup of a process.
pub(super) fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A process that ended but was not waited for, or one outside of our cgroup namespace.
    (!path.ends_with(" (deleted)") && !path.split('/').any(|part| part == "..")).then(|| PathBuf::from(path))
}

/// Every process.
pub(super) fn all() -> io::Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_outside_of_our_namespace_are_noticed() {
        let root = tempfile::tempdir().unwrap();
        let cgroups = Cgroup2::at(root.path());
        let container = root.path().join("pod/container");
        fs::create_dir_all(&container).unwrap();
        fs::write(root.path().join("pod/cgroup.procs"), "").unwrap();
        for (text, pids, outside) in [
            ("", vec![], false),
            ("17\n4\n", vec![17, 4], false),
            ("0\n0\n", vec![], true),
            ("0\n17\n", vec![17], true),
        ] {
            fs::write(container.join("cgroup.procs"), text).unwrap();
            assert_eq!(
                of_cgroup(&cgroups, Path::new("/pod")).unwrap(),
                Members { pids, outside },
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_may_not_be_looked_at_is_not_gone() {
        // Process ids are below 2^22 (PID_MAX_LIMIT, linux/threads.h).
        let (there, nobody) = (std::process::id(), 1 << 22);
        for (pid, number, expected) in [
            (there, nix::libc::EACCES, Hidden::Denied),
            (there, nix::libc::EPERM, Hidden::Denied),
            // It is shown: it has ended, and was not waited for.
            (there, nix::libc::ENOENT, Hidden::Gone),
            (nobody, nix::libc::ENOENT, Hidden::Gone),
            (there, nix::libc::ESRCH, Hidden::Gone),
        ] {
            assert_eq!(
                hidden(pid, &io::Error::from_raw_os_error(number)),
                expected,
                "{pid} {number}"
            );
        }
        assert!(namespace_of(there).is_ok());
        assert_eq!(namespace_of(nobody), Err(Hidden::Gone));
    }
}
