//! The surroundings of datapath `tc` at the level of the programs: a pod behind a veth, the intake behind another, this
//! host between them; a process that listens for what is taken, and a capture on the far side.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::thread;

use agent_fips_proxy::intercept::{Loaded, Namespace};
use aya::maps::{Map, MapData, SockMap};
use aya::programs::TcAttachType;
use aya::programs::links::LinkOrder;
use aya::programs::sk_lookup::SkLookupLink;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::namespaces::{Pods, kernel};
use super::*;
use crate::world::{ip, make_addresses, serve_direct};

/// The host's side of the pod's interface.
pub(super) const DEVICE: &str = "afppod";
/// The network that the pod is.
pub(super) const NETWORK: u32 = 5;
const POD_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const POD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

/// The surroundings: namespaces, routes, our rule, the far side's capture.
pub(super) struct Network {
    pub(super) pods: Pods,
    pub(super) pod: Namespace,
    pub(super) far: Namespace,
    capture: Socket,
}

impl Network {
    pub(super) fn new() -> Result<Self> {
        // The world's destinations are local; here they are on the far side.
        for route in [
            "route del local 203.0.113.0/24 dev lo",
            "-6 route del local 2001:db8::/64 dev lo",
        ] {
            ip(route)?;
        }
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        let pods = Pods::new()?;
        let pod = connect(&pods, DEVICE, "198.51.100.1/30", "2001:db8:1::1/64", || {
            ip("link set lo up")?;
            addresses(
                "198.51.100.2/30",
                "2001:db8:1::2/64",
                "198.51.100.1",
                "2001:db8:1::1",
            )
        })?;
        let far = connect(&pods, "afpfar", "198.51.100.5/30", "2001:db8:2::1/64", || {
            make_addresses()?;
            addresses(
                "198.51.100.6/30",
                "2001:db8:2::2/64",
                "198.51.100.5",
                "2001:db8:2::1",
            )?;
            // A server of datagrams answers from the address that the route says.
            ip("addr add 2001:db8::5/128 dev lo nodad")?;
            ip("route change default via 198.51.100.5 src 203.0.113.5")?;
            ip("-6 route change default via 2001:db8:2::1 src 2001:db8::5")?;
            serve_direct(&[80, 443, 8080])?;
            echo(9000)?;
            echo(9443)
        })?;
        for command in [
            "route add 203.0.113.0/24 via 198.51.100.6",
            "-6 route add 2001:db8::/64 via 2001:db8:2::2",
        ] {
            ip(command)?;
        }
        for family in ["-4", "-6"] {
            ip(&format!("{family} route add local default dev lo table 7443"))?;
        }
        let capture = pods.thread.run(&far, capture)??;
        let this = Self {
            pods,
            pod,
            far,
            capture,
        };
        this.rules("add")?;
        Ok(this)
    }

    /// Our rules, which lead marked packets here: `add` or `del`.
    pub(super) fn rules(&self, verb: &str) -> Result<()> {
        for family in ["-4", "-6"] {
            ip(&format!(
                "{family} rule {verb} pref 8 fwmark 0x00d00000/0x00f00000 iif {DEVICE} lookup 7443"
            ))?;
        }
        Ok(())
    }

    pub(super) fn agent(&self, world: &World, action: &str) -> Result<Value> {
        self.pods.agent(world, &self.pod, "other", action)
    }

    /// A connection from the pod, made by this process.
    pub(super) fn connect(&self, target: &str, from: u16) -> Result<TcpStream> {
        let target: SocketAddr = target.parse()?;
        let stream = self
            .pods
            .thread
            .run(&self.pod, move || -> io::Result<TcpStream> {
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
                let any: SocketAddr = if target.is_ipv4() {
                    (Ipv4Addr::UNSPECIFIED, from).into()
                } else {
                    (Ipv6Addr::UNSPECIFIED, from).into()
                };
                socket.bind(&any.into())?;
                socket.connect_timeout(&target.into(), crate::seconds(5))?;
                socket.set_read_timeout(Some(crate::seconds(5)))?;
                Ok(socket.into())
            })??;
        Ok(stream)
    }

    /// How many of the pod's TCP packets came to this port on the far side since the last call.
    pub(super) fn arrived(&self, port: u16) -> Result<usize> {
        // What is under way.
        thread::sleep(Duration::from_millis(100));
        let mut count = 0;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        loop {
            match self.capture.recv(&mut buffer) {
                Ok(length) => {
                    // SAFETY: the call filled the first `length` bytes.
                    let packet: Vec<u8> = buffer
                        .iter()
                        .take(length)
                        .map(|byte| unsafe { byte.assume_init() })
                        .collect();
                    count += usize::from(from_pod(&packet) == Some(port));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The destination port of a TCP packet of the pod.
fn from_pod(packet: &[u8]) -> Option<u16> {
    let (header, is_pod) = match packet.first()? >> 4 {
        4 => (
            usize::from(packet.first()? & 0xf) * 4,
            *packet.get(9)? == 6 && packet.get(12..16)? == POD_V4.octets(),
        ),
        6 => (40, *packet.get(6)? == 6 && packet.get(8..24)? == POD_V6.octets()),
        _ => return None,
    };
    let port = packet.get(header + 2..header + 4)?;
    is_pod.then(|| u16::from_be_bytes([port[0], port[1]]))
}

/// A new namespace with an interface `eth0` whose other end is here, with these addresses.
fn connect(
    pods: &Pods,
    device: &'static str,
    v4: &str,
    v6: &str,
    prepare: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<Namespace> {
    let host = std::process::id();
    let namespace = pods.make(move || {
        ip(&format!(
            "link add eth0 type veth peer name {device} netns {host}"
        ))
    })?;
    ip(&format!("link set {device} up"))?;
    ip(&format!("addr add {v4} dev {device}"))?;
    ip(&format!("addr add {v6} dev {device} nodad"))?;
    pods.thread.run(&namespace, prepare)??;
    Ok(namespace)
}

/// Inside: addresses of `eth0` and the way out.
fn addresses(v4: &str, v6: &str, gateway4: &str, gateway6: &str) -> Result<()> {
    ip("link set eth0 up")?;
    ip(&format!("addr add {v4} dev eth0"))?;
    ip(&format!("addr add {v6} dev eth0 nodad"))?;
    ip(&format!("route add default via {gateway4}"))?;
    ip(&format!("-6 route add default via {gateway6}"))
}

/// Sends back what comes, byte by byte the same.
fn echo(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                if let Ok(mut writer) = stream.try_clone() {
                    // The other side may reset it.
                    let _ = io::copy(&mut stream, &mut writer);
                }
            });
        }
    });
    Ok(())
}

/// Every packet that arrives in this namespace, from its IP header on.
fn capture() -> io::Result<Socket> {
    // ETH_P_ALL, in network order.
    let all = Protocol::from(i32::from(3_u16.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(all))?;
    socket.set_nonblocking(true)?;
    // By force: what one may ask for otherwise is less than what a case sends.
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
    Ok(socket)
}

/// How the classifier is attached.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Tcx,
    Clsact,
}

/// The programs in place: gone with this value.
pub(super) struct Attached {
    pub(super) kernel: Loaded,
    _classifier: SchedClassifierLink,
    _lookup: SkLookupLink,
}

pub(super) fn attach(way: Way) -> Result<Attached> {
    let mut kernel = kernel()?;
    let ifindex = nix::net::if_::if_nametoindex(DEVICE)?;
    kernel.put_interface(ifindex, 0, NETWORK, 0)?;
    let lookup = kernel.attach_sk_lookup(Namespace::own()?.file())?;
    let program = kernel.classifier()?;
    let options = match way {
        Way::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
        Way::Clsact => {
            qdisc_add_clsact(DEVICE)?;
            TcAttachOptions::Netlink(NlOptions {
                priority: 10,
                handle: TcHandle::from(0xdd01_u32),
                classid: None,
            })
        }
    };
    let id = program.attach_with_options(DEVICE, TcAttachType::Ingress, options)?;
    let classifier = program.take_link(id)?;
    Ok(Attached {
        kernel,
        _classifier: classifier,
        _lookup: lookup,
    })
}

/// A process of its own that listens for what the classifier takes, tells each connection its own local address, and
/// keeps it open: `<path of the pinned LISTENERS>`.
pub fn acceptor(listeners: &str) -> Result<()> {
    let mut map = SockMap::try_from(Map::SockMap(MapData::from_pin(listeners)?))?;
    for (index, address) in [(2 * NETWORK, "127.0.0.1:0"), (2 * NETWORK + 1, "[::1]:0")] {
        let address: SocketAddr = address.parse()?;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(64)?;
        map.set(index, &socket.as_raw_fd(), 0)?;
        let listener = TcpListener::from(socket);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let local = stream
                    .local_addr()
                    .map(|address| address.to_string())
                    .unwrap_or_default();
                thread::spawn(move || say(stream, &local));
            }
        });
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

pub(super) fn start_acceptor(proxy: &Proxy) -> Result<Child> {
    let pin = proxy.interceptor.status().pins.join("maps/LISTENERS");
    let mut child = Command::new(std::env::current_exe()?)
        .env(ROLE, format!("acceptor {}", pin.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("stdout")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "the acceptor said {line:?}");
    Ok(child)
}

/// Ends the process that listens.
pub(super) fn end(mut acceptor: Child) -> Result<()> {
    drop(acceptor.stdin.take());
    ensure!(acceptor.wait()?.success(), "the acceptor failed");
    Ok(())
}
