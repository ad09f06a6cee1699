//! Where a workload happens: a host with client and proxy, and the backend, which is on the same host (W1 to W6: no link between them
//! that would add to every peer's cost) or outside of it (W7, W8: an intercepted connection leads to another host).

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::NAME;
use super::child::Child;
use crate::ca::{Authority, Fault};
use crate::cgroup::Cgroup;
use crate::cni::Pod;
use crate::dns::NameServer;
use crate::netns::{Host, join};
use crate::sibling;
use crate::world::{INTAKE4, INTAKE6, hosts};

/// The backend's address: an intake's (RFC 5737), at the intake's port.
pub const BACKEND: SocketAddr = SocketAddr::new(INTAKE4, 443);
/// Below it every peer has its listener; the kernel picks the ports of clients above.
const CLIENT_PORTS: &str = "20000 65000";

/// A stage. Fields are dropped in this order.
pub struct Stage {
    /// Ours, a process of its own.
    backend: RefCell<Child>,
    _name_server: NameServer,
    /// Client and proxy.
    pub host: Host,
    /// The outside world, if the backend is there.
    pub net: Option<Host>,
    /// Who signed the backend's certificate.
    pub authority: Authority,
}

/// Where a client runs.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// On the host, as nobody's Agent.
    Host,
    /// On the host, in this cgroup.
    Cgroup(&'a Cgroup),
    /// In this pod.
    Pod(&'a Pod<'a>),
}

/// How a request reaches a peer.
#[derive(Clone)]
pub struct Target<'a> {
    /// Where the client connects.
    pub connect: SocketAddr,
    /// The Host header that the client writes.
    pub host: String,
    /// TLS, with the roots in this file.
    pub roots: Option<PathBuf>,
    /// Where the client runs.
    pub place: Place<'a>,
}

/// What the load generator is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// As in `bench-relay load --mode`.
    pub mode: &'static str,
    /// How many.
    pub connections: usize,
    /// Bytes of a body.
    pub body: usize,
    /// What is counted, after [`Self::warmup`].
    pub window: Duration,
    /// What is not.
    pub warmup: Duration,
}

/// Requests a second of the open loop.
pub const RATE: u32 = 500;

impl Stage {
    /// Everything on one host, over its loopback.
    pub fn one_host() -> Result<Self> {
        let host = Host::new(&hosts())?;
        Self::with(host, None)
    }

    /// Two hosts joined by a veth pair.
    pub fn two_hosts() -> Result<Self> {
        let host = Host::new(&hosts())?;
        let net = Host::new(&[])?;
        join(&host, &net)?;
        Self::with(host, Some(net))
    }

    fn with(host: Host, net: Option<Host>) -> Result<Self> {
        let authority = Authority::new()?;
        std::fs::write(host.folder().join("ca.pem"), authority.pem())?;
        let pem = host.folder().join("backend.pem");
        std::fs::write(&pem, authority.leaf(&[NAME.to_owned()], Fault::None)?.pem)?;
        for one in [Some(&host), net.as_ref()].into_iter().flatten() {
            ports(one)?;
        }
        let outside = net.as_ref().unwrap_or(&host);
        outside.ip(&format!("address add {INTAKE4}/32 dev lo"))?;
        outside.ip(&format!("address add {INTAKE6}/128 dev lo nodad"))?;
        let mut command = role(outside, "backend")?;
        command
            .args(["--listen", &BACKEND.to_string(), "--pem"])
            .arg(&pem);
        let backend = Child::start(command, "the backend")?;
        backend.line(Duration::from_secs(10))?;
        Ok(Self {
            backend: RefCell::new(backend),
            _name_server: NameServer::start(&host)?,
            host,
            net,
            authority,
        })
    }

    /// The file with the backend's root.
    pub fn roots(&self) -> PathBuf {
        self.host.folder().join("ca.pem")
    }

    /// The backend's process.
    pub fn backend_pid(&self) -> u32 {
        self.backend.borrow().pid()
    }

    /// What the backend counted since it started.
    pub fn counters(&self) -> Result<Value> {
        let mut backend = self.backend.borrow_mut();
        backend.say("counters")?;
        let line = backend.line(Duration::from_secs(10))?;
        serde_json::from_str(&line).with_context(|| format!("the backend said {line}"))
    }

    /// Starts a load generator, which then warms up.
    pub fn load(&self, target: &Target, load: &Load) -> Result<Child> {
        let own = own()?;
        let mut command = match target.place {
            Place::Host => guarded(&self.host, &own),
            Place::Cgroup(cgroup) => cgroup.wrap(&guarded(&self.host, &own)),
            Place::Pod(pod) => {
                let mut command = pod.command("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]).arg(&own);
                command
            }
        };
        command.args(["load", "--mode", load.mode]);
        for (key, value) in [
            ("--connect", target.connect.to_string()),
            ("--host", target.host.clone()),
            ("--connections", load.connections.to_string()),
            ("--body", load.body.to_string()),
            ("--rate", RATE.to_string()),
            ("--warmup-ms", load.warmup.as_millis().to_string()),
            ("--window-ms", load.window.as_millis().to_string()),
        ] {
            command.args([key, &value]);
        }
        if let Some(roots) = &target.roots {
            command.arg("--roots").arg(roots);
        }
        Child::start(command, "the load generator")
    }
}

/// The range of the clients' ports, and their reuse: W4 takes thousands in a second.
pub fn ports(host: &Host) -> Result<()> {
    host.sysctl("ipv4/ip_local_port_range", &format!("'{CLIENT_PORTS}'"))?;
    host.sysctl("ipv4/tcp_tw_reuse", "1")
}

/// A process of ours on a host.
fn role(host: &Host, name: &str) -> Result<Command> {
    let mut command = guarded(host, &own()?);
    command.arg(name);
    Ok(command)
}

/// The program of the roles: ourselves, or beside a suite that uses a stage.
fn own() -> Result<PathBuf> {
    sibling("bench-relay")
}

/// A program on a host that dies with us, however we die.
pub fn guarded(host: &Host, program: &Path) -> Command {
    let mut command = host.command("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A loopback address of the host.
pub fn here(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}
