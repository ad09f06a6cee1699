//! Many Agents: processes in cgroups of ours, of the host or each with a network namespace of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::cgroup::Cgroup;
use harness::eventually;
use harness::netns::Host;

/// Agents; they end with this.
pub struct Crowd {
    /// Above all of them.
    pub cgroup: Cgroup,
    members: Vec<Child>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            cgroup: Cgroup::new("crowd")?,
            members: Vec::new(),
        })
    }

    /// A glob for all of them.
    pub fn selector(&self) -> String {
        format!("{}/agent*", self.cgroup.inside())
    }

    /// Grows to `n` Agents of this host.
    pub fn of_host(&mut self, host: &Host, n: usize) -> Result<()> {
        self.grow(n, || {
            let mut command = host.command("sleep");
            command.arg("3600");
            command
        })
    }

    /// Grows to `n` Agents, each in a network namespace of its own with its loopback up.
    pub fn with_networks(&mut self, n: usize) -> Result<()> {
        self.grow(n, || {
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", "ip link set lo up && exec sleep 3600"]);
            command
        })?;
        // The last one's shell may still be on its way.
        eventually("every Agent sleeps", Duration::from_secs(30), || {
            let asleep = self.members.iter().all(|member| {
                std::fs::read_to_string(format!("/proc/{}/comm", member.id()))
                    .is_ok_and(|name| name == "sleep\n")
            });
            Ok(asleep.then_some(()))
        })
    }

    fn grow(&mut self, n: usize, command: impl Fn() -> Command) -> Result<()> {
        for number in self.members.len()..n {
            let path = self.cgroup.path().join(format!("agent{number}"));
            std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            self.members.push(inside(&path, &command())?);
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = std::fs::write(self.cgroup.path().join("cgroup.kill"), "1");
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// Starts a command inside a cgroup.
fn inside(path: &Path, command: &Command) -> Result<Child> {
    Command::new("sh")
        .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
        .arg(path)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start an Agent")
}
