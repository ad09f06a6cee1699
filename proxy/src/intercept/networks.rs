//! The networks that we serve besides the host's own: Agents' network namespaces, and interfaces behind which we know of
//! none. Each has listeners on both loopback addresses, one socket for each data thread, a slot under which the kernel
//! programs find them, and a number that the worker knows it by. Slots are few and used again; a number never is, so that
//! nothing of a pod that is gone can be taken for another one's.
//!
//! With the datapath `cgroup` the listeners are made inside the namespace; with `tc` they are transparent listeners of the
//! host. Both are made by the master, in our own cgroup, and handed to the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::net::if_::InterfaceFlags;
use proxy_ebpf::MAX_NETWORKS;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::choose::Taken;
use super::error::InterceptError;
use super::netns::{Namespace, NamespaceId, NamespaceThread};
use super::status::ServedNetwork;
use crate::listener_set;

mod inherited;

pub use inherited::{InheritedNetwork, NetworkRecord};

/// Pending connections of one socket of a pod: it serves one Agent, not a host.
const BACKLOG: i32 = 1024;
/// How often another port is tried when the kernel's choice is taken in another namespace (see [`Networks::open`]).
const PORT_TRIES: usize = 16;

/// A slot without listeners, for ever: what is led there is refused or let go, as `intercept.on_failure` says.
pub(super) const NOBODY: u32 = MAX_NETWORKS - 1;

/// What a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Key {
    /// A network namespace, taken this way.
    Namespace(NamespaceId, Taken),
    /// Everything behind the interfaces of `intercept.interfaces` whose namespace is nobody's that we know.
    Interfaces,
}

impl Key {
    fn taken(self) -> Taken {
        match self {
            Self::Namespace(_, taken) => taken,
            Self::Interfaces => Taken::Tc,
        }
    }
}

/// One network.
#[derive(Debug)]
pub(super) struct Network {
    /// For the worker.
    pub(super) id: u32,
    /// For the kernel's tables.
    pub(super) slot: u32,
    pub(super) cookie: u64,
    pub(super) namespace: Option<Arc<Namespace>>,
    ports: [u16; 2],
}

/// The listeners of a new network: for each family one socket per data thread, all on one port. A namespace without IPv6
/// has none for it.
#[derive(Debug)]
pub struct NetworkListeners {
    /// Number of the network, never used again.
    pub network: u32,
    /// Its slot in the kernel's tables.
    pub slot: u32,
    /// The kernel's cookie of its namespace; 0 for interfaces behind which we know of none.
    pub cookie: u64,
    /// How its connections come.
    pub taken: Taken,
    /// On 127.0.0.1.
    pub v4: Vec<TcpListener>,
    /// On ::1.
    pub v6: Vec<TcpListener>,
}

/// All of them.
pub(super) struct Networks {
    thread: NamespaceThread,
    /// Sockets of each listener: the worker's data threads.
    sockets: usize,
    served: BTreeMap<Key, Network>,
    /// Those of the program that this one replaces, until they are asked for.
    inherited: BTreeMap<Key, InheritedNetwork>,
    last: u32,
}

impl Networks {
    /// None yet; each will have `sockets` for each family.
    ///
    /// # Errors
    /// No thread could be started.
    pub(super) fn new(sockets: usize) -> Result<Self, InterceptError> {
        let thread = NamespaceThread::start().map_err(|source| InterceptError::Call {
            call: "starting the thread that enters network namespaces",
            source,
        })?;
        Ok(Self {
            thread,
            sockets,
            served: BTreeMap::new(),
            inherited: BTreeMap::new(),
            last: 0,
        })
    }

    pub(super) fn get(&self, key: Key) -> Option<&Network> {
        self.served.get(&key)
    }

    /// Every network.
    pub(super) fn served(&self) -> impl Iterator<Item = (&Key, &Network)> {
        self.served.iter()
    }

    /// The cookies of the namespaces that hooks serve.
    pub(super) fn cookies_by_cgroup(&self) -> BTreeSet<u64> {
        self.served
            .iter()
            .filter(|(key, _)| matches!(key, Key::Namespace(_, Taken::Cgroup)))
            .map(|(_, network)| network.cookie)
            .collect()
    }

    /// The namespaces that are served and their cookies; `None` for what is behind `intercept.interfaces`.
    pub(super) fn cookies(&self) -> Vec<(Option<NamespaceId>, u64)> {
        self.served
            .iter()
            .map(|(key, network)| match key {
                Key::Namespace(id, _) => (Some(*id), network.cookie),
                Key::Interfaces => (None, network.cookie),
            })
            .collect()
    }

    /// The cookie of a namespace that is served.
    pub(super) fn cookie_of(&self, namespace: NamespaceId) -> Option<u64> {
        let cookies = self.cookies().into_iter();
        cookies
            .filter(|(id, _)| *id == Some(namespace))
            .map(|(_, cookie)| cookie)
            .next()
    }

    pub(super) fn len(&self) -> usize {
        self.served.len()
    }

    /// What each is.
    pub(super) fn status(&self) -> Vec<ServedNetwork> {
        self.served
            .iter()
            .map(|(key, network)| ServedNetwork {
                id: network.id,
                name: match key {
                    Key::Namespace(id, _) => id.to_string(),
                    Key::Interfaces => "interfaces".to_owned(),
                },
            })
            .collect()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.served.keys().copied().collect()
    }

    /// The thread that enters namespaces.
    pub(super) fn thread(&self) -> &NamespaceThread {
        &self.thread
    }

    /// Makes a network's listeners and gives it a slot. `known` is what the kernel's tables say of slots, by namespace
    /// cookie: the one that an earlier process gave this namespace is taken again, so that what is in the tables stays
    /// true, and none that they name for another one. `cookie` asks the kernel for the namespace of a socket that was
    /// made there.
    ///
    /// Ports differ between all networks: a kernel that cannot tell namespaces apart in sockops (before 5.15) tells
    /// connections apart by the listener's port.
    ///
    /// # Errors
    /// The namespace cannot be entered, its loopback is not up yet or cannot be used, or there is no slot left.
    pub(super) fn open(
        &mut self,
        key: Key,
        namespace: Option<&Arc<Namespace>>,
        cookie: impl FnOnce(&UdpSocket) -> Result<u64, InterceptError>,
        known: &BTreeMap<u64, u32>,
    ) -> Result<NetworkListeners, InterceptError> {
        let taken = key.taken();
        let cookie = match namespace {
            Some(namespace) => {
                let probe = self
                    .thread
                    .run(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
                    .and_then(|made| made)
                    .map_err(entering)?;
                cookie(&probe)?
            }
            None => 0,
        };
        // By the cookie, which is never used again: a namespace's number may be.
        let same = |inherited: &InheritedNetwork| inherited.record.cookie == cookie;
        if self.inherited.get(&key).is_some_and(same)
            && let Some(inherited) = self.inherited.remove(&key)
        {
            return Ok(self.go_on(key, namespace, inherited));
        }
        let busy: Vec<u16> = self.served.values().flat_map(|network| network.ports).collect();
        let sockets = self.sockets;
        let make = move || pair(taken == Taken::Tc, &busy, sockets);
        let made = match (taken, namespace) {
            (Taken::Cgroup, Some(namespace)) => self
                .thread
                .run(namespace, move || loopback_is_up().then(make))
                .map_err(entering)?
                .ok_or(InterceptError::LoopbackDown)?,
            _ => make(),
        };
        let (v4, v6) = made.map_err(|source| InterceptError::Call {
            call: "binding a listener on 127.0.0.1 or ::1 for a pod (is `lo` up in its network namespace?)",
            source,
        })?;
        if v4.is_empty() && v6.is_empty() {
            return Err(InterceptError::Unsupported(
                "the network namespace has neither 127.0.0.1 nor ::1".to_owned(),
            ));
        }
        // Once for all slots that are tried: a thousand networks would be a thousand million comparisons.
        let elsewhere = known.iter().filter(|(other, _)| **other != cookie);
        let used: BTreeSet<u32> = elsewhere
            .map(|(_, slot)| *slot)
            .chain(self.served.values().map(|other| other.slot))
            .chain(self.inherited.values().map(|other| other.record.slot))
            .collect();
        let free = |slot: &u32| (1..NOBODY).contains(slot) && !used.contains(slot);
        let slot = known
            .get(&cookie)
            .copied()
            .filter(free)
            .or_else(|| (1..NOBODY).find(free))
            .ok_or_else(|| {
                InterceptError::Unsupported(format!(
                    "more than {} network namespaces of Agents on one host",
                    NOBODY - 1
                ))
            })?;
        self.last += 1;
        let id = self.last;
        let network = Network {
            id,
            slot,
            cookie,
            namespace: namespace.cloned(),
            ports: [port(&v4), port(&v6)],
        };
        self.served.insert(key, network);
        Ok(NetworkListeners {
            network: id,
            slot,
            cookie,
            taken,
            v4,
            v6,
        })
    }

    /// Forgets a network; whoever holds its listeners closes them.
    pub(super) fn close(&mut self, key: Key) -> Option<Network> {
        self.served.remove(&key)
    }

    /// A TCP socket for a connection to an intake, made where the Agent of this network lives, in our own cgroup.
    ///
    /// # Errors
    /// There is no such network (any more), or its namespace cannot be entered.
    pub(super) fn socket(&self, network: u32, ipv6: bool) -> io::Result<OwnedFd> {
        let found = self
            .served
            .values()
            .find(|served| served.id == network)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the Agent's network is gone"))?;
        let make = move || {
            let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
            Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map(OwnedFd::from)
        };
        match &found.namespace {
            Some(namespace) => self.thread.run(namespace, make)?,
            None => make(),
        }
    }
}

fn entering(source: io::Error) -> InterceptError {
    InterceptError::Call {
        call: "entering an Agent's network namespace (setns needs CAP_SYS_ADMIN)",
        source,
    }
}

/// The port of a set; 0 of an empty one.
fn port(set: &[TcpListener]) -> u16 {
    set.first()
        .and_then(|listener| listener.local_addr().ok())
        .map_or(0, |address| address.port())
}

type Pair = (Vec<TcpListener>, Vec<TcpListener>);

/// Whether `lo` is up in the calling thread's network namespace. Before that 127.0.0.1 can be bound and ::1 cannot, which
/// would look like a namespace without IPv6.
fn loopback_is_up() -> bool {
    // A list that cannot be read is left to the bind to complain about.
    nix::ifaddrs::getifaddrs().map_or(true, |mut all| {
        all.any(|one| one.interface_name == "lo" && one.flags.contains(InterfaceFlags::IFF_UP))
    })
}

/// A set of listeners for each family. That a family does not exist here is no error.
fn pair(transparent: bool, busy: &[u16], sockets: usize) -> io::Result<Pair> {
    let one = |ip: IpAddr| match listeners(ip, transparent, busy, sockets) {
        Ok(set) => Ok(set),
        Err(error)
            if ip.is_ipv6()
                && matches!(
                    error.raw_os_error(),
                    Some(nix::libc::EADDRNOTAVAIL | nix::libc::EAFNOSUPPORT)
                ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    };
    Ok((one(Ipv4Addr::LOCALHOST.into())?, one(Ipv6Addr::LOCALHOST.into())?))
}

/// The set of one family, on a port that is not `busy`.
fn listeners(ip: IpAddr, transparent: bool, busy: &[u16], sockets: usize) -> io::Result<Vec<TcpListener>> {
    let address = SocketAddr::new(ip, 0);
    let mut tries = Vec::new();
    loop {
        let socket = unbound(ip, transparent)?;
        socket.bind(&address.into())?;
        let port = socket
            .local_addr()?
            .as_socket()
            .map_or(0, |address| address.port());
        if busy.contains(&port) && tries.len() < PORT_TRIES {
            // Kept open until another one is found, else the kernel might choose it again.
            tries.push(socket);
            continue;
        }
        return listener_set::listening(socket, sockets, BACKLOG, || unbound(ip, transparent));
    }
}

/// A socket that is to listen on `ip`.
fn unbound(ip: IpAddr, transparent: bool) -> io::Result<Socket> {
    let domain = if ip.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if transparent {
        // One flag for both families: IPV6_TRANSPARENT sets the same bit.
        socket.set_ip_transparent_v4(true)?;
        // What it accepts has the intake's port as its own. Without this, whoever wants that port on a wildcard address
        // of this host, as an ingress does, could not have it while such a connection is open.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// For the kernel's tables.
impl NetworkListeners {
    /// One socket of each family stands for its set: whether anybody listens, and on which port, is the same for all of
    /// them. Which of them gets a connection is the kernel's choice, also of those that `sk_lookup` leads to this one
    /// (`bpf_sk_assign` without `BPF_SK_LOOKUP_F_NO_REUSEPORT`, 5.9).
    pub(super) fn descriptors(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [&self.v4, &self.v6].map(|set| set.first().map(AsFd::as_fd))
    }
}
