//! Hosts made of namespaces: each has its own network and mount namespace, `/run`, `/etc/hosts` and `/etc/resolv.conf`.
//!
//! `/sys` and the cgroup2 mount stay visible, which `ip netns exec` would hide. No name is left in `/run/netns`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::succeed;

/// A host: lives until dropped, or until this process dies.
pub struct Host {
    holder: Child,
    // Closing it ends the holder, and with it the namespaces.
    _alive: Option<ChildStdin>,
    files: TempDir,
    /// Identity of the network namespace, once it is known to be another than our own.
    network: Option<PathBuf>,
}

impl Host {
    /// Makes the namespaces, an empty `/run`, and a hosts file of `names`.
    pub fn new(names: &[(String, IpAddr)]) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("afp-host-")
            // The proxy's worker is another user and reads files from here.
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .context("cannot make a folder for the namespace's files")?;
        let hosts = files.path().join("hosts");
        std::fs::write(&hosts, hosts_file(names))?;
        let resolv = files.path().join("resolv.conf");
        // Nothing listens there: a name that is not in the hosts file fails at once, and no query leaves.
        std::fs::write(&resolv, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        let script = "set -e
            mount -t tmpfs -o mode=755 afp-test /run
            mount --bind \"$1\" /etc/hosts
            mount --bind \"$2\" /etc/resolv.conf
            ip link set lo up
            echo ready
            exec cat";
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .arg(&hosts)
            .arg(&resolv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare")?;
        let alive = holder.stdin.take();
        let mut line = String::new();
        if let Some(output) = holder.stdout.as_mut() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let made = network(&holder.id().to_string()).filter(|made| Some(made) != network("self").as_ref());
        let ready = line.trim() == "ready" && made.is_some();
        let host = Self {
            holder,
            _alive: alive,
            files,
            network: if ready { made } else { None },
        };
        if !ready {
            bail!("cannot make a network and mount namespace: root (CAP_SYS_ADMIN) is needed");
        }
        Ok(host)
    }

    /// The process that holds the namespaces.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A folder for this host's files, readable by every user.
    pub fn folder(&self) -> &std::path::Path {
        self.files.path()
    }

    /// A path of this host's mount namespace as we can open it from here.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid()))
    }

    /// A command that runs on this host. The process id is that of the program itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.pid()))
            .args(["--net", "--mount", "--"])
            .arg(program);
        command
    }

    /// `ip` with these words, on this host.
    pub fn ip(&self, words: &str) -> Result<()> {
        succeed(self.command("ip").args(words.split_whitespace())).map(drop)
    }

    /// Sets a sysctl of the network namespace: `path` is below `/proc/sys/net/`.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /proc/sys/net/{path}");
        succeed(self.command("sh").args(["-c", &script])).map(drop)
    }

    /// Adds or replaces names in the hosts file.
    pub fn set_names(&self, names: &[(String, IpAddr)]) -> Result<()> {
        // In place: the bind mount holds the inode.
        std::fs::write(self.files.path().join("hosts"), hosts_file(names))
            .context("cannot write the hosts file")
    }

    /// Runs `work` on a thread inside the network namespace; sockets made there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.namespace()?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&namespace, CloneFlags::CLONE_NEWNET)
                        .context("cannot enter the network namespace")?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("the thread inside the network namespace panicked"))?
        })
    }

    /// Every process of this network namespace, the holder included.
    pub fn processes(&self) -> Vec<Pid> {
        // Nothing when the namespace was never made: then the holder would still be in the machine's own.
        let Some(ours) = self.network.clone() else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && network(name).as_ref() == Some(&ours))
            .filter_map(|name| name.parse().ok().map(Pid::from_raw))
            .collect()
    }

    /// The network namespace, for a thread that stays in it.
    pub fn namespace(&self) -> Result<File> {
        let path = format!("/proc/{}/ns/net", self.pid());
        File::open(&path).with_context(|| format!("cannot open {path}"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever still runs in this namespace was started by this test: an orphaned worker, a client.
        for pid in self.processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // Waits, so that the next test does not meet this one's devices.
        let _ = self.holder.wait();
    }
}

/// Joins two hosts by a veth pair with a documentation network of each family and default routes from `inner` outwards.
pub fn join(inner: &Host, outer: &Host) -> Result<()> {
    outer.ip(&format!(
        "link add inner type veth peer name eth0 netns {}",
        inner.pid()
    ))?;
    for (host, device, v4, v6) in [
        (outer, "inner", "198.51.100.1/24", "2001:db8:ffff::1/64"),
        (inner, "eth0", "198.51.100.2/24", "2001:db8:ffff::2/64"),
    ] {
        host.ip(&format!("address add {v4} dev {device}"))?;
        // Without nodad an address is unusable for the first second.
        host.ip(&format!("address add {v6} dev {device} nodad"))?;
        host.ip(&format!("link set {device} up"))?;
    }
    inner.ip("route add default via 198.51.100.1")?;
    inner.ip("-6 route add default via 2001:db8:ffff::1")
}

/// The identity of a process's network namespace.
fn network(pid: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

fn hosts_file(names: &[(String, IpAddr)]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
    for (name, address) in names {
        text.push_str(&format!("{address} {name}\n"));
    }
    text
}
