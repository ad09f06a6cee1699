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

/// A cgroup whose processes have so much memory; removed by its guard.
pub struct MemoryLimit {
    path: PathBuf,
    version: u8,
}

impl MemoryLimit {
    /// In the hierarchy that has the memory controller on this machine: cgroup2, or the controller's own of version 1.
    pub fn new(bytes: u64) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unified = mount()?;
        let controllers = std::fs::read_to_string(unified.join("cgroup.subtree_control"))?;
        let (above, version, key) = if controllers.split_whitespace().any(|name| name == "memory") {
            (unified, 2, "memory.max")
        } else {
            let above = controller("memory").context("no hierarchy has the memory controller")?;
            (above, 1, "memory.limit_in_bytes")
        };
        sweep_below(&above)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = above.join(format!("afp-test-{}-memory-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let limit = Self { path, version };
        std::fs::write(limit.path.join(key), bytes.to_string())
            .with_context(|| format!("cannot write {key} of {}", limit.path.display()))?;
        Ok(limit)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many processes the kernel ended in it for want of memory.
    pub fn killed(&self) -> Result<u64> {
        let file = self.path.join(match self.version {
            2 => "memory.events",
            _ => "memory.oom_control",
        });
        let text = std::fs::read_to_string(&file)?;
        let found = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        found
            .and_then(|count| count.trim().parse().ok())
            .with_context(|| format!("no oom_kill in {}", file.display()))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let removed = eventually("removing a test cgroup", Duration::from_secs(5), || {
            std::fs::remove_dir(&self.path)?;
            Ok(Some(()))
        });
        if let Err(error) = removed {
            eprintln!("harness: {} stays behind: {error:#}", self.path.display());
        }
    }
}

/// Where the hierarchy of version 1 with this controller is mounted.
fn controller(name: &str) -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut words = right.split(' ');
        let ours = words.next()? == "cgroup" && words.nth(1)?.split(',').any(|option| option == name);
        ours.then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
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
    sweep_below(&mount()?)
}

fn sweep_below(above: &Path) -> Result<()> {
    for entry in std::fs::read_dir(above)?.flatten() {
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
