//! The world of a scenario: namespaces, addresses, cgroups, a server that answers "direct", and the clean-up.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use agent_fips_proxy::intercept::Cgroup2;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::ROLE;

/// What the server behind a destination says to a connection that was not taken.
pub const DIRECT: &str = "direct";

/// A scenario's surroundings.
pub struct World {
    cgroups: Cgroup2,
    base: PathBuf,
}

impl World {
    /// Makes them: own network with the test addresses on `lo`, own mounts with a bpffs, a cgroup for Agents.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("bpffs")?;
        make_addresses()?;
        // Fast open on both sides, without cookies and for every listener.
        fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543").context("tcp_fastopen")?;
        let this = Self {
            cgroups: Cgroup2::find()?,
            base: base(std::process::id()),
        };
        this.make_cgroup("agent")?;
        this.make_cgroup("other")?;
        Ok(this)
    }

    /// The path of a cgroup of this scenario, as a selector names it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// The selector for `name`, in which `*` may be used.
    pub fn selector(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Makes a cgroup of this scenario.
    pub fn make_cgroup(&self, name: &str) -> Result<()> {
        let directory = self.cgroups.directory(&self.path(name));
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))
    }

    /// The directory of a cgroup of this scenario; `.` for the one that all of them are in.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.cgroups.directory(&self.path(name))
    }

    /// Removes one.
    pub fn remove_cgroup(&self, name: &str) -> Result<()> {
        fs::remove_dir(self.cgroups.directory(&self.path(name))).context("rmdir")
    }

    /// Moves this process.
    pub fn enter(&self, name: &str) -> Result<()> {
        fs::write(self.cgroups.directory(&self.path(name)).join("cgroup.procs"), "0").context("enter")
    }

    /// Runs a client in a cgroup and returns what it saw.
    pub fn agent(&self, cgroup: &str, action: &str) -> Result<Value> {
        let output = self.start_agent(cgroup, action)?.wait_with_output()?;
        answer(action, &output)
    }

    /// Starts a client in a cgroup.
    pub fn start_agent(&self, cgroup: &str, action: &str) -> Result<std::process::Child> {
        self.client(cgroup, action)?
            .spawn()
            .context("cannot start a client")
    }

    /// A client in a cgroup, to be started: where it is started decides its network namespace.
    pub fn client(&self, cgroup: &str, action: &str) -> Result<Command> {
        let directory = self.cgroups.directory(&self.path(cgroup));
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env(ROLE, format!("agent {} {action}", directory.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Serves "direct" on these ports of every destination, and UDP on the same ports.
    pub fn serve_direct(&self, ports: &[u16]) -> Result<()> {
        serve_direct(ports)
    }
}

/// Serves "direct" in the network namespace of the calling thread: on these ports of every destination, TCP and UDP.
pub fn serve_direct(ports: &[u16]) -> Result<()> {
    for &port in ports {
        let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = TcpListener::bind(everywhere)?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                say(stream, DIRECT);
            }
        });
        let socket = UdpSocket::bind(everywhere)?;
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                if socket.send_to(DIRECT.as_bytes(), peer).is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}

/// Makes the test addresses local to this network namespace.
pub fn make_addresses() -> Result<()> {
    for arguments in [
        "link set lo up",
        "route add local 203.0.113.0/24 dev lo",
        "-6 route add local 2001:db8::/64 dev lo",
    ] {
        ip(arguments)?;
    }
    Ok(())
}

/// Runs `ip`, in the network namespace of the calling thread.
pub fn ip(arguments: &str) -> Result<()> {
    let done = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("ip")?;
    ensure!(
        done.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// Says one word and closes once the other side did: a close with unread data would be a reset.
pub fn say(mut stream: TcpStream, text: &str) {
    if stream.write_all(text.as_bytes()).is_ok() && stream.shutdown(std::net::Shutdown::Write).is_ok() {
        // The client may have reset the connection: that is its right.
        let _ = stream.set_read_timeout(Some(crate::seconds(5)));
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// What a client printed.
pub fn answer(action: &str, output: &Output) -> Result<Value> {
    if !output.status.success() {
        bail!(
            "client `{action}`: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("client `{action}` said no JSON"))
}

/// Removes what a scenario's process left, however it ended: its cgroups with every process in them, all of them ours.
pub fn clean_up(scenario: u32) {
    let Ok(cgroups) = Cgroup2::find() else {
        return;
    };
    remove_tree(&cgroups.directory(&base(scenario)));
    let own = cgroups.directory(Path::new(&format!("/agent-fips-proxy-{scenario}")));
    remove_tree(&own);
}

fn base(scenario: u32) -> PathBuf {
    PathBuf::from(format!("/afp-datapath-{scenario}"))
}

fn remove_tree(directory: &Path) {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            remove_tree(&entry.path());
        }
    }
    // A killed process leaves its cgroup a moment later.
    for _ in 0..100 {
        for pid in fs::read_to_string(directory.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            if let Ok(pid) = pid.parse() {
                // It may just have ended.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        if !directory.exists() || fs::remove_dir(directory).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
