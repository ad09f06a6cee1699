//! The cgroup2 hierarchy of this host, and what can be asked of a path.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, statfs};
use nix::unistd::{AccessFlags, faccessat};

use super::error::InterceptError;
use super::sys;

/// Cgroups that one walk visits at most: far above any host.
pub(super) const MAX_VISITED: usize = 16_384;

/// The cgroup namespace that the kernel starts with (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const INITIAL: u64 = 0xEFFF_FFFB;

/// Moves this process into the host's cgroup namespace. A container of a host with cgroup2 alone begins in one of its own, in
/// which no other cgroup has a path that could be opened. Call it before any thread is started: the namespace belongs to threads.
///
/// True when it moved; false where it is there, or where process 1 that it can see is not the host's (no `hostPID`).
///
/// # Errors
/// No right: CAP_SYS_PTRACE to see the namespace of process 1, CAP_SYS_ADMIN to enter it.
pub fn enter_host_cgroups() -> io::Result<bool> {
    let of = |process: &str| format!("/proc/{process}/ns/cgroup");
    if fs::metadata(of("self"))?.ino() == INITIAL {
        return Ok(false);
    }
    let host = fs::File::open(of("1"))?;
    if host.metadata()?.ino() != INITIAL {
        return Ok(false);
    }
    setns(host, CloneFlags::CLONE_NEWCGROUP)?;
    Ok(true)
}

/// The cgroup2 hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup2 {
    root: PathBuf,
    // Keeps a detached mount alive, whose root is a path through this descriptor.
    _mount: Option<Arc<OwnedFd>>,
}

impl Cgroup2 {
    /// Finds it in the mount table (unified or hybrid hosts); where none is visible, as inside `ip netns exec`, makes a
    /// detached mount that only this process sees.
    ///
    /// # Errors
    /// No mount is visible and none can be made: no CAP_SYS_ADMIN, or a kernel before 5.2.
    pub fn find() -> Result<Self, InterceptError> {
        let path = "/proc/self/mountinfo";
        let table = fs::read_to_string(path).map_err(InterceptError::file("read", path))?;
        if let Some(root) = mount_point(&table) {
            return Ok(Self { root, _mount: None });
        }
        let mount = sys::detached_cgroup2().map_err(|source| InterceptError::Call {
            call: "no cgroup2 mount is visible, and fsopen(cgroup2), which needs CAP_SYS_ADMIN,",
            source,
        })?;
        Ok(Self {
            root: PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())),
            _mount: Some(Arc::new(mount)),
        })
    }

    /// A directory that stands for the hierarchy.
    #[cfg(test)]
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            _mount: None,
        }
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a cgroup given relative to the root, as in `/system.slice/x.service`.
    pub fn directory(&self, cgroup: &Path) -> PathBuf {
        self.root.join(cgroup.strip_prefix("/").unwrap_or(cgroup))
    }

    /// The kernel's id of a cgroup: its inode number.
    ///
    /// # Errors
    /// The cgroup does not exist.
    pub fn id(&self, cgroup: &Path) -> Result<u64, InterceptError> {
        let directory = self.directory(cgroup);
        let metadata =
            fs::metadata(&directory).map_err(InterceptError::file("find the cgroup", directory))?;
        Ok(metadata.ino())
    }

    /// The cgroup below the root with this id, relative to the root; `None` when there is none (any more). Walks the hierarchy.
    ///
    /// # Errors
    /// Its root cannot be read.
    pub fn find_id(&self, id: u64) -> Result<Option<PathBuf>, InterceptError> {
        fs::read_dir(&self.root).map_err(InterceptError::file("read the cgroup", &self.root))?;
        let mut visited = 0;
        let found = below(&self.root)
            .inspect(|_| visited += 1)
            // The root is everybody's, and no cgroup that a setting could mean.
            .skip(1)
            .find(|(_, there)| *there == id);
        if found.is_none() && visited >= MAX_VISITED {
            tracing::warn!(limit = MAX_VISITED, "too many cgroups: one of them is not found");
        }
        Ok(found.map(|(directory, _)| {
            let path = directory.strip_prefix(&self.root).unwrap_or(&directory);
            Path::new("/").join(path)
        }))
    }
}

/// A cgroup, by its directory, and those below it, each with the kernel's id: its inode number. One that ends meanwhile is left
/// out; at most [`MAX_VISITED`].
pub(super) fn below(root: &Path) -> impl Iterator<Item = (PathBuf, u64)> {
    let mut pending = vec![root.to_owned()];
    std::iter::from_fn(move || {
        loop {
            let directory = pending.pop()?;
            let Ok(metadata) = fs::metadata(&directory) else {
                continue;
            };
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            pending.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
            return Some((directory, metadata.ino()));
        }
    })
    .take(MAX_VISITED)
}

/// The mount point of the first cgroup2 mount that shows the hierarchy from its root and is not covered by another.
fn mount_point(table: &str) -> Option<PathBuf> {
    table
        .lines()
        .filter_map(|line| {
            // proc_pid_mountinfo(5): `.. root mountpoint options [optional ..] - type source options`
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            (filesystem.split(' ').next()? == "cgroup2" && root == "/")
                .then(|| PathBuf::from(unescape(point)))
        })
        .find(|point| is_filesystem(point, CGROUP2_SUPER_MAGIC))
}

/// Octal escapes of the mount table, as in `\040` for a blank.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                result.push(char::from(byte));
                result.push_str(&part[3..]);
            }
            None => {
                result.push('\\');
                result.push_str(part);
            }
        }
    }
    result
}

/// True when `path` is on a file system of this kind.
pub(super) fn is_filesystem(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == kind)
}

/// True when this process may enter a directory and make something there: by permissions, and by how it is mounted.
pub(super) fn may_write(directory: &Path) -> bool {
    let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(AT_FDCWD, directory, wanted, AtFlags::AT_EACCESS).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/mnt/a\\040b\\134c"), "/mnt/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/odd\\9"), "/odd\\9");
    }

    #[test]
    fn only_cgroup2_mounts_of_the_whole_hierarchy_count() {
        // A cgroup v1 mount, a bind mount of a subtree, and a line whose mount point is no cgroup2 (covered).
        let table = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     31 25 0:27 /sub /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                     32 25 0:28 / /proc rw shared:5 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(table), None);
    }
}
