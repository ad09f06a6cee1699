//! A real systemd in namespaces on a [`Host`], that runs the shipped units as they are: what they say is applied by what applies it
//! in the field, and nothing that they say can be overlooked.
//!
//! It is the first process of a pid, mount, cgroup, IPC and UTS namespace; its cgroup root is a cgroup of the harness. `/etc`,
//! `/usr/bin` and `/var/lib` are this machine's under a layer in memory, `/run`, `/tmp` and `/dev` are new, and so is a bpffs at
//! `/sys/fs/bpf`, which is root's alone, as systemd mounts it. For package managers ([`Systemd::boot_bare`]) the layer is over all of
//! `/usr` and `/var`. Everything ends with the guard, and with a test that dies.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::netns::Host;
use crate::proxy::binary;
use crate::{capture, eventually, succeed};

/// For whatever must come; it decides nothing but that a case ends.
const LIMIT: Duration = Duration::from_secs(60);
/// The shipped unit.
pub const UNIT: &str = "agent-fips-proxy.service";
/// The shipped drop-in for Agents in pods.
pub const PODS: &str = "agent-fips-proxy-pods.conf";
/// An Agent's unit, as the default selectors name it: another user's process that does nothing.
pub const AGENT: &str = "datadog-agent.service";

/// The same in a network namespace of its own, as in a pod. It is not started.
pub const POD_AGENT: &str = "datadog-agent-pod.service";

/// Where an operator's commands run.
const SHELL: &str = "shell.service";

/// Where the shipped files are.
pub fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../proxy/dist")
        .join(name)
}

/// A running systemd.
pub struct Systemd<'a> {
    host: &'a Host,
    outer: Child,
    /// Its number in our pid namespace.
    pid: u32,
    cgroup: Cgroup,
}

impl<'a> Systemd<'a> {
    /// Boots with the proxy installed: the shipped unit, its users, the binary, this configuration. `drop_ins` are shipped, too.
    /// Nothing is started yet but [`AGENT`] and the place of an operator's commands.
    pub fn boot(host: &'a Host, config: &Value, drop_ins: &[&str]) -> Result<Self> {
        let folder = Self::prepare(host)?;
        let units = folder.join("units");
        std::fs::create_dir_all(folder.join("etc"))?;
        std::fs::copy(dist(UNIT), units.join(UNIT))?;
        for name in drop_ins {
            std::fs::copy(dist(name), units.join(format!("{UNIT}.d")).join(name))?;
        }
        std::fs::copy(dist("agent-fips-proxy.sysusers"), folder.join("sysusers.conf"))?;
        std::fs::copy(binary()?, folder.join("program"))?;
        for (name, text) in [
            ("config.yaml", serde_json::to_string_pretty(config)?),
            ("ca.pem", std::fs::read_to_string(host.folder().join("ca.pem"))?),
        ] {
            std::fs::write(folder.join("etc").join(name), text)?;
        }
        Self::run(host, "installed")
    }

    /// Boots without anything of ours, for package managers: what they write goes into the layer, and the machine's own units are not
    /// there. Only [`AGENT`] and the place of an operator's commands are started.
    pub fn boot_bare(host: &'a Host) -> Result<Self> {
        Self::prepare(host)?;
        Self::run(host, "bare")
    }

    /// What both kinds have: targets, Agents, where the log goes.
    fn prepare(host: &Host) -> Result<PathBuf> {
        let folder = host.folder().join("machine");
        let units = folder.join("units");
        let place = units.join(format!("{UNIT}.d"));
        std::fs::create_dir_all(&place)?;
        // There is no journal. Nothing else is said here.
        let log =
            "[Service]\nStandardOutput=append:/run/machine/log\nStandardError=append:/run/machine/log\n";
        std::fs::write(place.join("zz-log.conf"), log)?;
        for name in ["sysinit", "basic", "shutdown", "network-online", "multi-user"] {
            std::fs::write(units.join(format!("{name}.target")), "[Unit]\n")?;
        }
        let agent = "[Service]\nUser=nobody\nExecStart=/bin/sleep infinity\n";
        std::fs::write(units.join(AGENT), agent)?;
        std::fs::write(units.join(SHELL), agent)?;
        std::fs::write(units.join(POD_AGENT), format!("{agent}PrivateNetwork=yes\n"))?;
        Ok(folder)
    }

    /// Starts it.
    fn run(host: &'a Host, kind: &str) -> Result<Self> {
        let cgroup = Cgroup::new("machine")?;
        let mut command = host.command("unshare");
        command
            .args([
                "--pid",
                "--mount",
                "--cgroup",
                "--ipc",
                "--uts",
                "--propagation",
                "private",
            ])
            .args([
                "--fork",
                "--kill-child",
                "--",
                "sh",
                "-c",
                include_str!("systemd/pid1.sh"),
                "sh",
            ])
            .arg(host.folder().join("machine"))
            .arg(kind);
        // With the test, even when that is killed.
        let mut outer = Command::new("setpriv");
        outer.args(["--pdeathsig", "KILL", "--"]);
        let wrapped = cgroup.wrap(&command);
        outer.arg(wrapped.get_program()).args(wrapped.get_args());
        let log = std::fs::File::create(host.folder().join("systemd.log"))?;
        let child = outer
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start unshare")?;
        let mut this = Self {
            host,
            outer: child,
            pid: 0,
            cgroup,
        };
        this.pid = eventually("the first process", LIMIT, || {
            let outer = this.outer.id();
            let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
            Ok(children
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok()))
        })?;
        eventually("systemd", LIMIT, || {
            let state = this.systemctl(&["is-system-running"])?;
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            Ok((state == "running").then_some(()))
        })
        .with_context(|| this.boot_log())?;
        this.must(&["start", AGENT, SHELL])?;
        Ok(this)
    }

    /// What the first process said.
    fn boot_log(&self) -> String {
        std::fs::read_to_string(self.host.folder().join("systemd.log")).unwrap_or_default()
    }

    /// What the proxy said.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("/run/machine/log")).unwrap_or_default();
        format!("{}\n{log}", self.boot_log())
    }

    /// A path of the machine as we can open it from here.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    /// The folder of a unit's cgroup, from here.
    pub fn cgroup(&self, unit: &str) -> PathBuf {
        self.cgroup.path().join("system.slice").join(unit)
    }

    /// A command on the machine, as root.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.pid))
            .args(["--mount", "--pid", "--net", "--cgroup", "--ipc", "--uts", "--"])
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .arg(program);
        command
    }

    /// The same by a process of this unit's cgroup.
    pub fn within(&self, unit: &str, words: &[&str]) -> Command {
        let mut command = self.command("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(format!("/sys/fs/cgroup/system.slice/{unit}/cgroup.procs"))
            .args(words);
        command
    }

    /// `systemctl` with these words.
    pub fn systemctl(&self, words: &[&str]) -> Result<Output> {
        capture(self.command("systemctl").args(words))
    }

    /// The same, which must work.
    pub fn must(&self, words: &[&str]) -> Result<()> {
        let output = self.systemctl(words)?;
        if !output.status.success() {
            let status = self.systemctl(&["status", "--no-pager", "--full", UNIT])?;
            bail!(
                "systemctl {words:?}: {}{}\n{}",
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&status.stdout),
                self.log()
            );
        }
        Ok(())
    }

    /// Writes, or takes away, a drop-in of the test's own for the proxy's unit.
    pub fn drop_in(&self, name: &str, text: Option<&str>) -> Result<()> {
        let path = self.path(&format!("/run/machine/units/{UNIT}.d/{name}"));
        match text {
            Some(text) => std::fs::write(&path, text),
            None => std::fs::remove_file(&path),
        }
        .with_context(|| format!("cannot change {}", path.display()))?;
        self.must(&["daemon-reload"])
    }

    /// Puts the binary once more, as another file, in the place of the installed one, in one step, as a package manager does.
    pub fn install(&self) -> Result<()> {
        let (next, path) = (
            self.path("/usr/bin/agent-fips-proxy.next"),
            self.path("/usr/bin/agent-fips-proxy"),
        );
        std::fs::copy(binary()?, &next)?;
        std::fs::rename(&next, &path).context("cannot put the binary in place")
    }

    /// Replaces the configuration, in one step.
    pub fn configure(&self, config: &Value) -> Result<()> {
        let path = self.path("/etc/agent-fips-proxy/config.yaml");
        let next = path.with_extension("next");
        std::fs::write(&next, serde_json::to_string_pretty(config)?)
            .and_then(|()| std::fs::rename(&next, &path))
            .context("cannot change the configuration")
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let name = format!("--property={name}");
        let text = succeed(self.command("systemctl").args(["show", "--value", &name, unit]))?;
        Ok(text.trim().to_owned())
    }

    /// The installed program with these words, as root.
    pub fn cli(&self, words: &[&str]) -> Result<Output> {
        let words: Vec<&str> = std::iter::once("agent-fips-proxy")
            .chain(words.iter().copied())
            .collect();
        capture(&mut self.within(SHELL, &words))
    }

    /// `status --json`.
    pub fn status(&self) -> Result<Value> {
        let output = self.cli(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("status --json: {errors}\n{}", self.log())
        })
    }

    /// The status line by line, once every part of the proxy is ready.
    pub fn ready(&self) -> Result<Value> {
        eventually("a proxy that is ready", LIMIT, || {
            let status = self.status()?;
            if status["ready"] == true {
                return Ok(Some(status));
            }
            bail!("{status:#}")
        })
        .with_context(|| self.log())
    }

    /// The lines of `/proc/PID/status` of a process of the machine, by its number there.
    pub fn process(&self, pid: &str) -> Result<String> {
        succeed(self.command("cat").arg(format!("/proc/{pid}/status")))
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("AFP_TEST_LOG").is_some() {
            eprintln!("{}", self.log());
        }
        // `--kill-child`: the first process, and with it all others of its namespace.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}
