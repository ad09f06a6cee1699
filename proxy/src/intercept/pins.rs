//! Where maps and links are pinned: a directory of ours in the host's bpffs, or in one that we mount.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::BPF_FS_MAGIC;

use super::error::InterceptError;
use super::host::{is_filesystem, may_write};

/// Where bpffs is by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Where we mount our own when the host has none there. And where the service manager puts our directory of the host's, where we
/// may not enter that: it is root's, mode 0700, and the shipped unit's master is not root (`BindPaths=`). That is a directory with
/// our name in it, on a bpffs, while this one is on none.
pub const OWN_BPFFS: &str = "/run/agent-fips-proxy/bpf";
/// Our directory in bpffs.
const PINS: &str = "agent-fips-proxy";
/// Below it, the version of the maps' layout: another layout is another directory.
const LAYOUT: u32 = 4;

/// Where maps and links are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDirectory {
    bpffs: PathBuf,
    layout: u32,
}

impl PinDirectory {
    /// The directory, without making anything; `None` when the host has no bpffs of ours or its own.
    pub fn find() -> Option<Self> {
        let is_bpffs = |path: &Path| is_filesystem(path, BPF_FS_MAGIC);
        Self::find_by(is_bpffs, may_write).map(|bpffs| Self::current(bpffs.to_owned()))
    }

    fn find_by(is_bpffs: impl Fn(&Path) -> bool, may_write: impl Fn(&Path) -> bool) -> Option<&'static Path> {
        let [host, own] = [BPFFS, OWN_BPFFS].map(Path::new);
        // Never for root's tools: what is above it may be another user's.
        if !may_write(host) && is_bpffs(&own.join(PINS)) && !is_bpffs(own) {
            return Some(own);
        }
        [host, own].into_iter().find(|path| is_bpffs(path))
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

    /// True when it may be entered and written, as far as it is there.
    pub(super) fn is_usable(&self) -> bool {
        let own = self.bpffs.join(PINS);
        match own.try_exists() {
            Ok(true) => may_write(&own),
            Ok(false) => may_write(&self.bpffs),
            Err(_) => false,
        }
    }

    /// Where the file system is.
    pub(super) fn bpffs(&self) -> &Path {
        &self.bpffs
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
        // What was put in place for us is not ours to take away.
        let whole = is_filesystem(&self.bpffs, BPF_FS_MAGIC);
        let own = whole.then(|| self.bpffs.join(PINS));
        let below = [
            self.maps(),
            self.withdrawn(),
            self.links(),
            self.own(),
            self.classifiers(),
            self.root(),
        ];
        for directory in below.into_iter().chain(own) {
            if remove_directory(&directory)? {
                removed.push(directory);
            }
        }
        if self.bpffs == Path::new(OWN_BPFFS) && whole && is_empty(&self.bpffs) {
            // Another user may own what is above it: then it is not led elsewhere.
            umount2(&self.bpffs, MntFlags::UMOUNT_NOFOLLOW)
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
        // What was put in place for us is held by our mount namespace.
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
    fn pins_are_where_we_may_put_them() {
        let (host, own) = ("/sys/fs/bpf", "/run/agent-fips-proxy/bpf");
        let bound = "/run/agent-fips-proxy/bpf/agent-fips-proxy";
        for (bpffs, writable, expected) in [
            (vec![], false, None),
            (vec![host], true, Some(host)),
            (vec![own], false, Some(own)),
            // The host mounted one after we had mounted ours, whose pins lie below it.
            (vec![host, own, bound], true, Some(host)),
            (vec![own, bound], false, Some(own)),
            // The service manager's: the host's cannot be entered.
            (vec![host, bound], false, Some(own)),
            (vec![bound], false, Some(own)),
            // Somebody led root there.
            (vec![host, bound], true, Some(host)),
            // Nobody put anything there: what is asked for next says what is missing.
            (vec![host], false, Some(host)),
        ] {
            let is_bpffs = |path: &Path| bpffs.iter().any(|one| Path::new(one) == path);
            let found = PinDirectory::find_by(is_bpffs, |_| writable);
            assert_eq!(found, expected.map(Path::new), "{bpffs:?} {writable}");
        }
    }
}
