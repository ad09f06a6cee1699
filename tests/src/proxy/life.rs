//! What is done to a running proxy and has to be waited for: its end, a reload, another worker.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Proxy;
use crate::eventually;

/// It decides nothing but that a case ends.
const LIMIT: Duration = Duration::from_secs(60);

impl Proxy<'_> {
    /// The master's child that makes connections of our own, while it intercepts.
    pub fn prober(&self) -> Result<Option<Pid>> {
        self.child_that_is("probe")
    }

    /// A worker, also one that does not serve yet.
    pub fn any_worker(&self) -> Result<Option<Pid>> {
        self.child_that_is("worker")
    }

    fn child_that_is(&self, kind: &str) -> Result<Option<Pid>> {
        Ok(self.children()?.into_iter().find(|child| {
            // It may end meanwhile.
            let words = std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            words.split('\0').any(|word| word == kind)
        }))
    }

    /// Every child of the master: workers and the prober.
    fn children(&self) -> Result<Vec<Pid>> {
        let mut children = Vec::new();
        // Each thread has its own, and may end meanwhile.
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let text = std::fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
            for child in text.split_whitespace() {
                children.push(Pid::from_raw(child.parse()?));
            }
        }
        Ok(children)
    }

    /// Kills the master, and waits until nobody of it is left.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// The same by another signal.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let children = self.children()?;
        self.signal(signal)?;
        self.wait(LIMIT)?;
        let left = || {
            let all = self.host.processes();
            let left = children.iter().filter(|child| all.contains(child));
            left.copied().collect::<Vec<_>>()
        };
        eventually("the end of the master's orphans", LIMIT, || {
            Ok(left().is_empty().then_some(()))
        })
        .with_context(|| format!("{:?} of {children:?} are left\n{}", left(), self.log()))
    }

    /// Kills the worker, and waits for the next one.
    pub fn kill_worker(&self) -> Result<Pid> {
        let old = self.worker()?;
        kill(old, Signal::SIGKILL)?;
        self.another_worker(old)
    }

    /// Waits for another worker than `old`.
    pub fn another_worker(&self, old: Pid) -> Result<Pid> {
        eventually("another worker", LIMIT, || {
            Ok(self.worker().ok().filter(|new| *new != old))
        })
        .with_context(|| self.log())
    }

    /// Has the configuration read again, and waits until that is done.
    pub fn reload(&self) -> Result<()> {
        const DONE: &str = "configuration reloaded";
        let before = self.logged(DONE);
        self.signal(Signal::SIGHUP)?;
        let done = || Ok((self.logged(DONE) > before).then_some(()));
        eventually("the reload", LIMIT, done).with_context(|| self.log())
    }
}
