//! Pods as a node has them: namespaces connected by the real CNI plug-ins, cgroups named as kubelet names them.
//!
//! The node is a [`Host`] of the harness. A pod is another, in whose cgroup a holder runs: the namespace belongs to a process
//! of the pod. Plug-ins are Debian's `containernetworking-plugins` (1.1.1): `ptp` (a routed veth per pod) and `bridge`.
//! Everything goes with its guard, and with the processes of a killed test; left cgroups are swept by the next one.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::netns::Host;
use crate::world::{World, hosts};
use crate::{eventually, sha256, succeed};

/// Where Debian puts the plug-ins.
const PLUGINS: &str = "/usr/lib/cni";
/// The pods' ranges: private, and documentation (RFC 3849).
pub const PODS4: &str = "10.93.0.0/24";
/// See [`PODS4`].
pub const PODS6: &str = "2001:db8:93::/64";

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// A veth for each pod, routed.
    Ptp,
    /// A bridge `cni0` that is the pods' gateway, with hairpin mode.
    Bridge,
}

/// How the cgroups of pods are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `kubepods/besteffort/pod<uid>/<container>`: kubelet's driver `cgroupfs`.
    Cgroupfs,
    /// `kubepods.slice/kubepods-besteffort.slice/…/cri-containerd-<container>.scope`: the driver `systemd`.
    Systemd,
}

/// A node for pods; every pod has both families.
pub struct Node<'a> {
    host: &'a Host,
    cgroups: Cgroup,
    plugin: Plugin,
    masquerade: bool,
    style: Style,
}

/// A pod's network: its namespaces and what connects them. Removed from the node when the last pod that uses it goes.
pub struct Network<'a> {
    /// The pod's namespaces, with a hosts file that knows the intake's names.
    pub host: Host,
    /// The device on the node that belongs to this pod.
    pub veth: String,
    /// The pod's IPv4 address.
    pub v4: IpAddr,
    /// The pod's IPv6 address.
    pub v6: IpAddr,
    /// Where the namespace is bound, as seen on the node.
    pub netns: String,
    id: String,
    node: &'a Node<'a>,
    // After `host`: its processes are in there.
    _pause: Cgroup,
    /// The cgroup of the pod that it was made for: it stays as long as the network does, which others may share.
    pub above: Arc<Cgroup>,
}

impl Network<'_> {
    /// Gives the device on the node another name, with the routes by it. Since Linux 6.2 it stays up meanwhile.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let script = r#"
            routes=$(ip route show dev $0; ip -6 route show dev $0 | grep -v fe80) || :
            ip link set $0 name $1 2>/dev/null && exit
            ip link set $0 down; ip link set $0 name $1; ip link set $1 up
            echo "$routes" | while read -r route; do ip route replace $route dev $1; done"#;
        succeed(self.node.host.command("sh").args(["-ec", script, from, to])).map(drop)
    }
}

/// One container of a pod, and the pod's network.
pub struct Pod<'a> {
    /// Its uid as kubelet writes it, with hyphens.
    pub uid: String,
    /// Its network; pods may share one.
    pub network: Arc<Network<'a>>,
    holder: Holder,
    /// The container's cgroup.
    pub cgroup: Cgroup,
    /// The pod's cgroup, above those of its containers.
    pub above: Arc<Cgroup>,
}

/// Why pods cannot be made here.
pub fn obstacle() -> Option<String> {
    let lacking: Vec<&str> = ["ptp", "bridge", "host-local"]
        .into_iter()
        .filter(|plugin| !Path::new(PLUGINS).join(plugin).is_file())
        .collect();
    if !lacking.is_empty() {
        return Some(format!(
            "CNI plug-ins are missing in {PLUGINS}: {}; `cargo xtask setup` installs them",
            lacking.join(", ")
        ));
    }
    ["iptables", "ip6tables"]
        .into_iter()
        .find(|program| {
            !crate::capture(Command::new(program).arg("--version")).is_ok_and(|o| o.status.success())
        })
        .map(|program| format!("{program} is missing; `cargo xtask setup` installs it"))
}

impl<'a> Node<'a> {
    /// Makes the world's host a node. The world knows the way to the pods, so that they are reached without masquerading too.
    pub fn new(world: &'a World, plugin: Plugin, masquerade: bool, style: Style) -> Result<Self> {
        Self::on(&world.host, &world.net, plugin, masquerade, style)
    }

    /// The same with two hosts that were joined elsewhere: the node, and the world around it.
    pub fn on(host: &'a Host, net: &Host, plugin: Plugin, masquerade: bool, style: Style) -> Result<Self> {
        host.sysctl("ipv4/ip_forward", "1")?;
        host.sysctl("ipv6/conf/all/forwarding", "1")?;
        host.sysctl("ipv6/conf/default/accept_dad", "0")?;
        net.ip(&format!("route add {PODS4} via 198.51.100.2"))?;
        net.ip(&format!("-6 route add {PODS6} via 2001:db8:ffff::2"))?;
        usable(net)?;
        succeed(host.command("mkdir").args(["-p", "/run/netns"]))?;
        let root = match style {
            Style::Cgroupfs => "kubepods",
            Style::Systemd => "kubepods.slice",
        };
        Ok(Self {
            host,
            cgroups: Cgroup::new(root)?,
            plugin,
            masquerade,
            style,
        })
    }

    /// The node itself.
    pub fn host(&self) -> &Host {
        self.host
    }

    /// The cgroup above all pods, `/afp-test-…/kubepods` or `/afp-test-…/kubepods.slice`.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroups
    }

    /// A new pod with a network of its own and one container.
    pub fn pod(&'a self) -> Result<Pod<'a>> {
        let uid = uid();
        let above = Arc::new(self.cgroups.child(&self.pod_folder(&uid))?);
        let network = Arc::new(self.network(&above)?);
        self.container(uid, above, network)
    }

    /// A pod of its own (uid, cgroups) in the network of another.
    pub fn pod_beside(&'a self, other: &Pod<'a>) -> Result<Pod<'a>> {
        let uid = uid();
        let above = Arc::new(self.cgroups.child(&self.pod_folder(&uid))?);
        self.container(uid, above, Arc::clone(&other.network))
    }

    /// A second container of the same pod.
    pub fn container_beside(&'a self, other: &Pod<'a>) -> Result<Pod<'a>> {
        self.container(
            other.uid.clone(),
            Arc::clone(&other.above),
            Arc::clone(&other.network),
        )
    }

    /// Ends a pod's processes and its network, and starts it again: a new namespace in the **same** cgroups. (A pod in new cgroups
    /// is another pod: drop it and make one.)
    pub fn restart(&'a self, pod: Pod<'a>) -> Result<Pod<'a>> {
        let Pod {
            uid,
            network,
            holder,
            cgroup,
            above,
        } = pod;
        drop(holder);
        if Arc::try_unwrap(network).is_err() {
            bail!("pod {uid} shares its network with another pod, which still runs");
        }
        let network = Arc::new(self.network(&above)?);
        let holder = Holder::start(&network.host, &cgroup)?;
        Ok(Pod {
            uid,
            network,
            holder,
            cgroup,
            above,
        })
    }

    fn container(&'a self, uid: String, above: Arc<Cgroup>, network: Arc<Network<'a>>) -> Result<Pod<'a>> {
        let cgroup = above.child(&self.container_folder())?;
        let holder = Holder::start(&network.host, &cgroup)?;
        Ok(Pod {
            uid,
            network,
            holder,
            cgroup,
            above,
        })
    }

    /// Namespaces with a holder in a cgroup of its own (the `pause` container of a real pod), connected by the plug-in.
    fn network(&'a self, above: &Arc<Cgroup>) -> Result<Network<'a>> {
        let pause = above.child(&self.container_folder())?;
        let host = Host::new(&hosts())?;
        pause.enter(host.pid())?;
        // The plug-in waits until an address is no longer tentative, which takes a second and a half.
        host.sysctl("ipv6/conf/default/accept_dad", "0")?;
        let id = identity();
        let netns = format!("/run/netns/cni-{}", uid());
        // As a container runtime does it: the name is on the node, the namespace belongs to the pod.
        let bind = format!(
            "touch {netns} && mount --bind /proc/{}/ns/net {netns}",
            host.pid()
        );
        succeed(self.host.command("sh").args(["-c", &bind]))?;
        let made = self.call("ADD", &id, &netns)?;
        usable(self.host)?;
        usable(&host)?;
        let address = |v6: bool| {
            let ips = made["ips"].as_array()?;
            let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok();
            ips.iter()
                .filter_map(address)
                .find(|address| address.is_ipv6() == v6)
        };
        let veth = made["interfaces"].as_array().and_then(|all| {
            all.iter()
                .filter(|one| one["sandbox"].as_str().unwrap_or_default().is_empty())
                .filter_map(|one| one["name"].as_str())
                .find(|name| name.starts_with("veth"))
        });
        let (Some(veth), Some(v4), Some(v6)) = (veth, address(false), address(true)) else {
            bail!("the CNI plug-in's answer lacks a device or an address: {made}");
        };
        Ok(Network {
            host,
            veth: veth.to_owned(),
            v4,
            v6,
            netns,
            id,
            node: self,
            _pause: pause,
            above: Arc::clone(above),
        })
    }

    /// Runs the plug-in on the node; its answer.
    fn call(&self, command: &str, id: &str, netns: &str) -> Result<Value> {
        let mut config = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "type": "ptp",
            "ipMasq": self.masquerade,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": PODS4}], [{"subnet": PODS6}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "dataDir": self.host.folder().join("ipam"),
            },
        });
        let program = match self.plugin {
            Plugin::Ptp => "ptp",
            Plugin::Bridge => {
                for (key, value) in [
                    ("type", json!("bridge")),
                    ("bridge", json!("cni0")),
                    ("isGateway", json!(true)),
                    ("hairpinMode", json!(true)),
                ] {
                    config[key] = value;
                }
                "bridge"
            }
        };
        let mut plugin = self
            .host
            .command(Path::new(PLUGINS).join(program))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the CNI plug-in")?;
        if let Some(mut input) = plugin.stdin.take() {
            input.write_all(config.to_string().as_bytes())?;
        }
        let output = plugin.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(
                "CNI {command} by {program}: {}: {text}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("CNI {command} by {program} said {text}"))
    }

    fn pod_folder(&self, uid: &str) -> String {
        match self.style {
            Style::Cgroupfs => format!("besteffort/pod{uid}"),
            // In a slice's name a hyphen means a level, so systemd's driver writes underscores.
            Style::Systemd => format!(
                "kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice",
                uid.replace('-', "_")
            ),
        }
    }

    fn container_folder(&self) -> String {
        match self.style {
            Style::Cgroupfs => identity(),
            Style::Systemd => format!("cri-containerd-{}.scope", identity()),
        }
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        let removed = self.node.call("DEL", &self.id, &self.netns);
        let name = &self.netns;
        let unbound = succeed(
            self.node
                .host
                .command("sh")
                .args(["-c", &format!("umount {name} && rm {name}")]),
        );
        for error in [removed.err(), unbound.err()].into_iter().flatten() {
            eprintln!("harness: a pod's network was not taken down: {error:#}");
        }
    }
}

impl Pod<'_> {
    /// A command that runs in the pod's namespaces and in the container's cgroup.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.cgroup.wrap(&self.network.host.command(program))
    }

    /// The process that keeps the container alive.
    pub fn pid(&self) -> u32 {
        self.holder.child.id()
    }
}

/// A process that runs until its standard input ends, with us at the latest.
struct Holder {
    child: Child,
    alive: Option<ChildStdin>,
}

impl Holder {
    fn start(host: &Host, cgroup: &Cgroup) -> Result<Self> {
        let mut child = cgroup
            .wrap(&host.command("cat"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a pod's process")?;
        let mut alive = child.stdin.take();
        // A word that comes back says that the process is where it belongs: `cat` starts after the moves.
        let mut word = [0; 1];
        if let (Some(input), Some(output)) = (alive.as_mut(), child.stdout.as_mut()) {
            input.write_all(b".")?;
            std::io::Read::read_exact(output, &mut word).context("a pod's process did not start")?;
        }
        Ok(Self { child, alive })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until no address of a host is tentative: a router asks for neighbours from its link-local address, and sends nothing while
/// that one is.
fn usable(host: &Host) -> Result<()> {
    eventually("addresses are usable", Duration::from_secs(10), || {
        let words = ["-6", "-o", "address", "show", "tentative"];
        let tentative = succeed(host.command("ip").args(words))?;
        Ok(tentative.trim().is_empty().then_some(()))
    })
}

/// 64 hexadecimal digits, another each time: a container's name.
fn identity() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    sha256(format!("{} {}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)).as_bytes())
}

/// The form of a pod's uid.
fn uid() -> String {
    let digits = identity();
    [0..8, 8..12, 12..16, 16..20, 20..32]
        .map(|part| &digits[part])
        .join("-")
}
