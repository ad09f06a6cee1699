//! Child cgroups of the unified hierarchy, each removed by its guard.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::eventually;

/// A cgroup of ours below the root of cgroup2.
pub struct Cgroup {
    path: PathBuf,
    inside: String,
    /// Made inside another of ours, which removes its own folder.
    child: bool,
}

impl Cgroup {
    /// Makes `/afp-test-<pid>-<n>/<name>`; each call has a parent of its own, so that tests cannot select each other.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep()?;
        let inside = format!(
            "/afp-test-{}-{}/{name}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = mount()?.join(&inside[1..]);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}: root is needed", path.display()))?;
        Ok(Self {
            path,
            inside,
            child: false,
        })
    }

    /// Makes a cgroup inside this one; those between, when `name` has several parts, are made too and stay as long as this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        if let Some(between) = path.parent() {
            std::fs::create_dir_all(between).with_context(|| format!("cannot make {}", between.display()))?;
        }
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path,
            inside: format!("{}/{name}", self.inside),
            child: true,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path relative to the root of cgroup2, as `intercept.agents.cgroups` wants it.
    pub fn inside(&self) -> &str {
        &self.inside
    }

    /// Moves a process that runs already. Its sockets stay where they were made.
    pub fn enter(&self, pid: u32) -> Result<()> {
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move process {pid} into {}", self.path.display()))
    }

    /// `command`, but started inside this cgroup; the process id stays that of the program.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("sh");
        wrapped
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.path.join("cgroup.procs"))
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        wrapped
    }

    fn remove(&self) -> Result<()> {
        // Processes that are gone leave a cgroup a moment later than they leave `wait`.
        eventually("removing a test cgroup", Duration::from_secs(5), || {
            remove_tree(&self.path).map(Some)
        })?;
        if let Some(parent) = self.path.parent().filter(|_| !self.child) {
            std::fs::remove_dir(parent)?;
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Everything still in it was started by this test.
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
        if let Err(error) = self.remove() {
            eprintln!("harness: {} stays behind: {error:#}", self.path.display());
        }
    }
}

/// Where cgroup2 is mounted, from mountinfo: `/sys/fs/cgroup` on most systems, `/sys/fs/cgroup/unified` on hybrid ones.
pub fn mount() -> Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    text.lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            (right.split(' ').next()? == "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
        })
        .context("no cgroup2 mount in /proc/self/mountinfo")
}

/// Removes what a killed test left: cgroups of ours whose maker is gone. One that still has processes stays.
fn sweep() -> Result<()> {
    for entry in std::fs::read_dir(mount()?)?.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let maker = name
            .strip_prefix("afp-test-")
            .and_then(|rest| rest.split('-').next())
            .map(str::to_owned);
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = remove_tree(&entry.path());
        }
    }
    Ok(())
}

/// Removes a cgroup and the empty ones below it that the proxy may have made.
fn remove_tree(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display()))
}
