//! Where this host keeps cgroups and pins: the cgroup2 hierarchy and a bpffs.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::error::InterceptError;
use super::sys;

/// Where bpffs is by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Where we mount our own when the host has none there.
pub const OWN_BPFFS: &str = "/run/agent-fips-proxy/bpf";
/// Our directory in bpffs.
const PINS: &str = "agent-fips-proxy";
/// Below it, the version of the maps' layout: another layout is another directory.
const LAYOUT: u32 = 4;

/// Cgroups that one walk visits at most: far above any host.
pub(super) const MAX_VISITED: usize = 16_384;

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

/// Where maps and links are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDirectory {
    bpffs: PathBuf,
    layout: u32,
}

impl PinDirectory {
    /// The directory, without making anything; `None` when the host has no bpffs of ours or its own.
    pub fn find() -> Option<Self> {
        [BPFFS, OWN_BPFFS]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| is_filesystem(path, BPF_FS_MAGIC))
            .map(Self::current)
    }

    /// The directory with everything above it; mounts a bpffs of our own when the host has none.
    ///
    /// # Errors
    /// Mounting needs CAP_SYS_ADMIN, the directories write access to bpffs.
    pub fn prepare() -> Result<Self, InterceptError> {
        let found = match Self::find() {
            Some(found) => found,
            None => Self::mount()?,
        };
        for directory in [found.maps(), found.links(), found.own(), found.classifiers()] {
            create_private(&directory)?;
        }
        let own = found.bpffs.join(PINS);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700))
            .map_err(InterceptError::file("set the mode of", own))?;
        Ok(found)
    }

    /// Pins of maps.
    pub fn maps(&self) -> PathBuf {
        self.root().join("maps")
    }

    /// Pins of maps that `uninstall` has begun to take away.
    fn withdrawn(&self) -> PathBuf {
        self.root().join("withdrawn")
    }

    /// Moves the pinned maps aside, in one step: from then on a running instance knows that it was uninstalled and puts
    /// nothing back. Where they are now; an interrupted uninstall is gone on with.
    ///
    /// # Errors
    /// The directory cannot be moved.
    pub(super) fn withdraw_maps(&self) -> Result<PathBuf, InterceptError> {
        let (maps, withdrawn) = (self.maps(), self.withdrawn());
        if maps.exists() {
            remove_files(&withdrawn)?;
            remove_directory(&withdrawn)?;
            fs::rename(&maps, &withdrawn).map_err(InterceptError::file("move", &maps))?;
        }
        Ok(withdrawn)
    }

    /// Pins of links, a directory per cgroup named by its id.
    pub fn links(&self) -> PathBuf {
        self.root().join("links")
    }

    /// Pins of one cgroup's links.
    pub fn links_of(&self, cgroup: u64) -> PathBuf {
        self.links().join(cgroup.to_string())
    }

    /// Pins of the accepting side's links, a directory per cgroup of ours, named by its id.
    pub fn own(&self) -> PathBuf {
        self.root().join("own")
    }

    /// Pins of the accepting side's links in one cgroup of ours.
    pub(super) fn own_of(&self, cgroup: u64) -> PathBuf {
        self.own().join(cgroup.to_string())
    }

    /// Pins of classifiers' TCX links, named by interface index.
    pub fn classifiers(&self) -> PathBuf {
        self.root().join("tcx")
    }

    /// The pin of the link that leads the classifier's flows to our listeners.
    pub fn sk_lookup(&self) -> PathBuf {
        self.root().join("sk_lookup")
    }

    /// The versioned directory that holds them all.
    pub fn root(&self) -> PathBuf {
        self.bpffs.join(PINS).join(format!("v{}", self.layout))
    }

    /// The directories of other versions at the same place: what an upgrade or a downgrade left.
    pub(super) fn other_layouts(&self) -> Vec<Self> {
        // That there is no directory of ours is nothing to report.
        let Ok(entries) = fs::read_dir(self.bpffs.join(PINS)) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix('v')?.parse().ok())
            .filter(|layout| *layout != self.layout)
            .map(|layout| Self {
                bpffs: self.bpffs.clone(),
                layout,
            })
            .collect()
    }

    fn current(bpffs: PathBuf) -> Self {
        Self {
            bpffs,
            layout: LAYOUT,
        }
    }

    /// Removes our (empty) directories, and the mount when it is ours and empty; returns what was removed.
    ///
    /// # Errors
    /// Anything but "not there" and "not empty".
    pub(super) fn remove(&self) -> Result<Vec<PathBuf>, InterceptError> {
        let mut removed = Vec::new();
        let own = self.bpffs.join(PINS);
        for directory in [
            self.maps(),
            self.withdrawn(),
            self.links(),
            self.own(),
            self.classifiers(),
            self.root(),
            own,
        ] {
            if remove_directory(&directory)? {
                removed.push(directory);
            }
        }
        if self.bpffs == Path::new(OWN_BPFFS) && is_empty(&self.bpffs) {
            umount2(&self.bpffs, MntFlags::empty())
                .map_err(|errno| InterceptError::file("unmount", &self.bpffs)(errno.into()))?;
            remove_directory(&self.bpffs)?;
            removed.push(self.bpffs.clone());
        }
        Ok(removed)
    }

    /// Keeps the host's bpffs from being unmounted by accident, which would take our pins with it: the kernel says that it is
    /// busy. Our own, which `uninstall` unmounts, is kept by nobody.
    ///
    /// # Errors
    /// Our directory cannot be opened.
    pub(super) fn hold(&self) -> Result<Option<fs::File>, InterceptError> {
        if self.bpffs == Path::new(OWN_BPFFS) {
            return Ok(None);
        }
        fs::File::open(&self.bpffs)
            .map(Some)
            .map_err(InterceptError::file("open", &self.bpffs))
    }

    fn mount() -> Result<Self, InterceptError> {
        let bpffs = PathBuf::from(OWN_BPFFS);
        // The parent is also the home of the admin socket: its mode is that of other runtime directories.
        if let Some(parent) = bpffs.parent() {
            fs::create_dir_all(parent).map_err(InterceptError::file("create", parent))?;
        }
        create_private(&bpffs)?;
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(|errno| {
            InterceptError::file("mount a bpffs (needs CAP_SYS_ADMIN) at", &bpffs)(errno.into())
        })?;
        tracing::info!(
            path = OWN_BPFFS,
            "mounted a bpffs: /sys/fs/bpf is none on this host"
        );
        Ok(Self::current(bpffs))
    }
}

/// A directory for root only; that it exists is fine.
pub(super) fn create_private(path: &Path) -> Result<(), InterceptError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(InterceptError::file("create", path))
}

/// Removes an empty directory; false when it is not there or not empty.
pub(super) fn remove_directory(path: &Path) -> Result<bool, InterceptError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(InterceptError::file("remove", path)(error)),
    }
}

/// Removes the files of a directory, which may be missing. The files.
pub(super) fn remove_files(directory: &Path) -> Result<Vec<PathBuf>, InterceptError> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let file = entry.path();
        fs::remove_file(&file).map_err(InterceptError::file("remove", &file))?;
        removed.push(file);
    }
    Ok(removed)
}

/// True when nothing is pinned. The kernel itself puts `maps.debug` and `progs.debug` into every bpffs; nobody else can
/// make a name with a dot there.
fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().contains('.')))
    })
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
