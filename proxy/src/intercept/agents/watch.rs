//! Notices Agents that start later: inotify on every directory where a selected cgroup may appear.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::glob::{CgroupGlob, parse_globs, scan};
use crate::intercept::error::InterceptError;
use crate::intercept::host::Cgroup2;
use crate::intercept::sys::{self, OwnsDescriptor};

/// The safety net beneath inotify: how often the hierarchy is looked at anyway.
const RESCAN: Duration = Duration::from_secs(10);

/// Says when the set of selected cgroups changed: by inotify on every directory where a match may appear, which takes
/// well below a millisecond, and by looking every ten seconds, should inotify have no watch left.
pub struct AgentWatcher {
    cgroups: Cgroup2,
    globs: Vec<CgroupGlob>,
    inotify: AsyncFd<RawInotify>,
    known: BTreeMap<u64, PathBuf>,
    /// Something happened since the last look, or nobody has looked for a while.
    due: bool,
    /// When the latter is.
    rescan: Instant,
    /// True after inotify was refused: said once.
    complained: bool,
}

impl AgentWatcher {
    /// Watches for these globs. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A glob that is none, no cgroup2, no inotify instance left.
    pub fn new(globs: &[String]) -> Result<Self, InterceptError> {
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(call("inotify_init1"))?;
        let inotify = sys::register(RawInotify(inotify)).map_err(|source| InterceptError::Call {
            call: "registering inotify with the runtime",
            source,
        })?;
        let mut watcher = Self {
            cgroups: Cgroup2::find()?,
            globs: parse_globs(globs)?,
            inotify,
            known: BTreeMap::new(),
            due: false,
            rescan: Instant::now() + RESCAN,
            complained: false,
        };
        watcher.known = watcher.look()?;
        Ok(watcher)
    }

    /// Waits until a selected cgroup came or went. Cancel-safe.
    ///
    /// # Errors
    /// The hierarchy cannot be read any more.
    pub async fn changed(&mut self) -> Result<(), InterceptError> {
        loop {
            if self.due {
                self.due = false;
                self.rescan = Instant::now() + RESCAN;
                let now = self.look()?;
                if now != self.known {
                    self.known = now;
                    return Ok(());
                }
            }
            if let Ok(ready) = timeout_at(self.rescan, self.inotify.readable()).await {
                let mut ready = ready.map_err(|source| InterceptError::Call {
                    call: "waiting for inotify",
                    source,
                })?;
                // What happened does not matter, the scan says what is.
                while ready
                    .get_inner()
                    .0
                    .read_events()
                    .is_ok_and(|events| !events.is_empty())
                {}
                ready.clear_ready();
            }
            // No await from here to the look.
            self.due = true;
        }
    }

    /// Scans, and watches every directory that matters. Watching comes first and the scan is repeated until no new
    /// directory appeared, so that nothing slips between the two. Watching again what is watched changes nothing.
    fn look(&mut self) -> Result<BTreeMap<u64, PathBuf>, InterceptError> {
        let mut found = scan(&self.cgroups, &self.globs)?;
        loop {
            for path in &found.parents {
                self.watch(path);
            }
            let again = scan(&self.cgroups, &self.globs)?;
            if again.parents == found.parents {
                return Ok(again.selected);
            }
            found = again;
        }
    }

    fn watch(&mut self, path: &Path) {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        let directory = self.cgroups.directory(path);
        match self.inotify.get_ref().0.add_watch(&directory, flags) {
            Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => {}
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::warn!(
                    directory = %directory.display(), %error,
                    "cannot watch cgroups; Agents that start later are seen every {RESCAN:?} \
                     (sysctl fs.inotify.max_user_watches)"
                );
            }
            Err(_) => {}
        }
    }
}

/// tokio wants `AsRawFd`.
struct RawInotify(Inotify);

impl OwnsDescriptor for RawInotify {}

impl AsRawFd for RawInotify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn call(call: &'static str) -> impl FnOnce(Errno) -> InterceptError {
    move |errno| InterceptError::Call {
        call,
        source: errno.into(),
    }
}
