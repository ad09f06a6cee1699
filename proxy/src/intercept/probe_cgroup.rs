//! The cgroups that connections of our own are made from: one with the Agents' hooks, for the datapath `cgroup`, inside of one
//! without, for the datapath `tc`. Beside our own cgroup and not below it, whose programs would take them for the proxy's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::InterceptError;
use super::host::Cgroup2;
use super::own::NAME;

/// Behind our name, before the process id.
const PROBE: &str = "probe-";
/// The inner one.
const HOOKED: &str = "hooked";
/// How often its end is waited for, and for how long each time: the kernel takes a killed process out of its cgroup late.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// Both; gone with this value.
#[derive(Debug)]
pub struct ProbeCgroup {
    cgroups: Cgroup2,
    path: PathBuf,
}

impl ProbeCgroup {
    /// Not made yet. `parent` is where cgroups of ours are made, below the cgroup2 root.
    pub(super) fn new(cgroups: &Cgroup2, parent: &Path) -> Self {
        Self {
            cgroups: cgroups.clone(),
            path: parent.join(format!("{NAME}-{PROBE}{}", std::process::id())),
        }
    }

    /// Makes them, unless they are there.
    ///
    /// # Errors
    /// No right to make cgroups.
    pub(super) fn make(&self) -> Result<(), InterceptError> {
        let hooked = self.hooked_directory();
        fs::create_dir_all(&hooked).map_err(InterceptError::file("create the cgroup", &hooked))
    }

    /// The one without hooks, as a directory.
    pub fn bare_directory(&self) -> PathBuf {
        self.cgroups.directory(&self.path)
    }

    /// The one with hooks, as a directory.
    pub fn hooked_directory(&self) -> PathBuf {
        self.cgroups.directory(&self.hooked())
    }

    /// The one with hooks, below the cgroup2 root.
    pub(super) fn hooked(&self) -> PathBuf {
        self.path.join(HOOKED)
    }

    /// The kernel's ids of both: nobody selects them as an Agent.
    ///
    /// # Errors
    /// They are gone.
    pub(super) fn ids(&self) -> Result<[u64; 2], InterceptError> {
        Ok([self.cgroups.id(&self.path)?, self.cgroups.id(&self.hooked())?])
    }
}

impl Drop for ProbeCgroup {
    fn drop(&mut self) {
        let directory = self.bare_directory();
        let mut last = Ok(());
        for _ in 0..TRIES {
            last = remove(&directory);
            if last.is_ok() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        if let Err(error) = last {
            tracing::debug!(cgroup = %self.path.display(), %error, "the cgroup of our own connections stays until the next start");
        }
    }
}

/// True for what [`ProbeCgroup::make`] makes.
pub(super) fn is_one(name: &str) -> bool {
    name.strip_prefix(NAME)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.strip_prefix(PROBE))
        .is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Removes both, of an instance that is gone: one that lives has a process in one of them.
pub(super) fn remove_stale(directory: &Path) -> io::Result<()> {
    let events = fs::read_to_string(directory.join("cgroup.events"))?;
    if events.lines().any(|line| line == "populated 1") {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    remove(directory)
}

fn remove(directory: &Path) -> io::Result<()> {
    for directory in [&directory.join(HOOKED), directory] {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
