//! The world of a case: the host's namespaces on a thread of their own, a pod behind a veth pair, packets from it.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_fips_proxy::config::{ClassifierAttach, Config, Intercept, SamePriority};
use agent_fips_proxy::intercept::InterceptError;
use agent_fips_proxy::intercept::tc::{InterfaceTable, Link, Netlink, Row, Wanted, links};
use anyhow::{Context, Result, anyhow};
use aya::programs::SchedClassifier;
use harness::netns::Host;
use harness::succeed;
use harness::vendor::{Answer, Vendor};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where the case's own bpffs is.
const BPFFS: &str = "/sys/fs/bpf";
/// The pod's host side.
pub const DEVICE: &str = "veth0";

/// The host, as the calling thread sees it, and its pod.
pub struct World {
    pub netlink: Netlink,
    pub pod: Host,
}

/// Runs a case in namespaces of its own; they go with the thread, and with them everything that was made in them.
pub fn world(body: impl FnOnce(&mut World) -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                    .context("private mounts")?;
                mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).context("bpffs")?;
                ip("link set lo up")?;
                let mut world = World {
                    netlink: Netlink::open()?,
                    pod: Host::new(&[])?,
                };
                world.join()?;
                body(&mut world)
            })
            .join()
            .map_err(|_| anyhow!("the case panicked"))?
    })
}

/// `ip` with these words, on the host.
pub fn ip(words: &str) -> Result<String> {
    succeed(Command::new("ip").args(words.split_whitespace()))
}

impl World {
    /// The pod's veth pair, with fixed neighbours: a dropped packet must not stop the next one from being sent.
    pub fn join(&mut self) -> Result<()> {
        ip(&format!(
            "link add {DEVICE} address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {}",
            self.pod.pid()
        ))?;
        for command in [
            "link set DEVICE addrgenmode none",
            "address add 198.51.100.1/24 dev DEVICE",
            "link set DEVICE up",
        ] {
            ip(&command.replace("DEVICE", DEVICE))?;
        }
        for command in [
            "link set eth0 addrgenmode none",
            "address add 198.51.100.2/24 dev eth0",
            "link set eth0 up",
            "neigh add 198.51.100.1 lladdr 02:00:00:00:00:01 dev eth0",
        ] {
            self.pod.ip(command)?;
        }
        Ok(())
    }

    /// Removes it, and with it everything on it.
    pub fn part(&mut self) -> Result<()> {
        ip(&format!("link delete {DEVICE}")).map(drop)
    }

    /// This many packets from the pod; they have arrived when this returns.
    pub fn send(&mut self, count: u64) -> Result<()> {
        let before = self.link(DEVICE)?.rx_packets;
        self.pod.within(|| {
            let socket = UdpSocket::bind("198.51.100.2:0")?;
            for _ in 0..count {
                socket.send_to(b"x", "198.51.100.1:9")?;
            }
            Ok(())
        })?;
        harness::eventually("the packets", std::time::Duration::from_secs(5), || {
            Ok((self.link(DEVICE)?.rx_packets >= before + count).then_some(()))
        })
    }

    /// An interface of the host.
    pub fn link(&mut self, name: &str) -> Result<Link> {
        links(&mut self.netlink)?
            .into_iter()
            .find(|link| link.name == name)
            .with_context(|| format!("no interface {name}"))
    }

    /// A program of somebody.
    pub fn vendor(&self, name: &str, answer: Answer) -> Result<Vendor> {
        Vendor::load(Path::new(BPFFS), name, answer)
    }

    /// A directory for our link pins.
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join("links")
    }

    /// What a datapath is told that wants the pod's interface.
    pub fn wanted(&mut self) -> Result<BTreeMap<u32, Wanted>> {
        let link = self.link(DEVICE)?;
        Ok(BTreeMap::from([(
            link.index,
            Wanted {
                name: link.name.clone(),
                rule_device: link.name,
                network: 1,
                netns_cookie: 1,
            },
        )]))
    }
}

/// Our classifier: any program will do that counts and answers UNSPEC.
pub struct Ours {
    pub counter: Vendor,
    pub program: SchedClassifier,
}

impl Ours {
    pub fn load(world: &World, name: &str) -> Result<Self> {
        let counter = world.vendor(name, harness::vendor::UNSPEC)?;
        let program = SchedClassifier::from_pin(counter.pin())?;
        Ok(Self { counter, program })
    }
}

/// The table of interfaces, with the counter of our one program.
#[derive(Default)]
pub struct Table {
    pub rows: BTreeMap<u32, (Wanted, bool)>,
    pub seen: u64,
    /// What was said of IPv6 last.
    pub ipv6: bool,
}

impl InterfaceTable for Table {
    fn put(
        &mut self,
        ifindex: u32,
        wanted: &Wanted,
        own_qdisc: bool,
        ipv6: bool,
    ) -> Result<(), InterceptError> {
        self.rows.insert(ifindex, (wanted.clone(), own_qdisc));
        self.ipv6 = ipv6;
        Ok(())
    }

    fn remove(&mut self, ifindex: u32) {
        self.rows.remove(&ifindex);
    }

    fn entries(&self) -> Vec<(u32, Row)> {
        self.rows
            .iter()
            .map(|(&index, (_, own_qdisc))| {
                let row = Row {
                    seen: self.seen,
                    own_qdisc: *own_qdisc,
                };
                (index, row)
            })
            .collect()
    }
}

/// The default configuration with these settings of the classifier.
pub fn settings(how: ClassifierAttach, priority: u16, same: SamePriority) -> Intercept {
    let mut intercept = Config::default().intercept;
    intercept.classifier_attach = how;
    intercept.classifier_priority = priority;
    intercept.classifier_same_priority = same;
    intercept
}
