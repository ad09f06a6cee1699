//! What is bound. Every port is bound by itself: a busy one is reported by name and tried again, the others serve.
//!
//! Each address has one socket per data thread, a `SO_REUSEPORT` set, so that threads share nothing. The master keeps
//! them all: connections wait in their backlogs while a worker is replaced. An Agent pod's network has such a set per
//! family, made elsewhere.

mod held;
mod retiring;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use serde::{Deserialize, Serialize};

use super::protocol::{ListenerStatus, Passed, Purpose};
use crate::catalog::TABLE;
use crate::config::Config;
use crate::intercept::NetworkListeners;
use crate::listener_set;
use crate::relay::network::{NetworkId, Taken};

pub use held::{Place, Sockets};
use retiring::Retiring;

/// Pending connections per socket; the kernel caps it at net.core.somaxconn (4096 since Linux 5.4).
const BACKLOG: i32 = 4096;

/// One address that should be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What for.
    pub purpose: Purpose,
    /// Where; port 0 lets the kernel choose.
    pub address: SocketAddr,
}

/// Every listener, bound or not.
pub struct Listeners {
    threads: usize,
    slots: Vec<Slot>,
    networks: BTreeMap<NetworkId, Network>,
    /// Of a process before us: served until nobody waits there any more.
    retiring: Retiring,
    /// Something came or went since [`Listeners::changed`] was asked.
    changed: bool,
}

/// The listeners of one network: for each family one socket per data thread, or none.
struct Network {
    taken: Taken,
    /// The kernel's cookie of its namespace.
    cookie: u64,
    v4: Vec<TcpListener>,
    v6: Vec<TcpListener>,
}

struct Slot {
    wanted: Wanted,
    bound: Result<Bound, String>,
}

/// The sockets of one address.
struct Bound {
    sockets: Vec<TcpListener>,
    /// With the port that the kernel chose. Kept: it never changes, and the status is made every second.
    address: SocketAddr,
}

impl Slot {
    fn address(&self) -> SocketAddr {
        self.bound
            .as_ref()
            .map_or(self.wanted.address, |bound| bound.address)
    }
}

/// The status page and the product ports that `config` asks for.
pub fn wanted(config: &Config) -> Vec<Wanted> {
    let mut wanted: Vec<Wanted> = config
        .status
        .address
        .addresses()
        .into_iter()
        .map(|ip| Wanted {
            purpose: Purpose::Status,
            address: SocketAddr::new(ip, config.status.port),
        })
        .collect();
    if config.explicit.enabled {
        for entry in TABLE {
            let Some(offset) = entry.offset else { continue };
            // Checked by the configuration: the last offset stays below 65536.
            let port = config.explicit.port_range_start.saturating_add(offset);
            wanted.extend(
                config
                    .explicit
                    .local_address
                    .addresses()
                    .into_iter()
                    .map(|ip| Wanted {
                        purpose: Purpose::Explicit(entry.product),
                        address: SocketAddr::new(ip, port),
                    }),
            );
        }
    }
    wanted
}

/// The two loopbacks that intercepted connections are brought to, on ports that the kernel chooses.
pub fn wanted_for_interception() -> [Wanted; 2] {
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| Wanted {
        purpose: Purpose::HOST_INTERCEPT,
        address: SocketAddr::new(ip, 0),
    })
}

impl Listeners {
    /// No listener yet; every address will have `threads` sockets.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: threads.max(1),
            slots: Vec::new(),
            networks: BTreeMap::new(),
            retiring: Retiring::default(),
            changed: true,
        }
    }

    /// Keeps the listeners of a network, in place of those that it had: for each family one socket per data thread, or
    /// none. An Agent's pod may carry the traffic of a whole node.
    pub fn add_network(&mut self, listeners: NetworkListeners) {
        let id = NetworkId(listeners.network);
        self.retiring.serve(listeners.cookie, listeners.taken, id);
        self.changed = true;
        let network = Network {
            taken: listeners.taken,
            cookie: listeners.cookie,
            v4: listeners.v4,
            v6: listeners.v6,
        };
        self.networks.insert(id, network);
    }

    /// Closes the listeners of a network. False when it had none.
    pub fn remove_network(&mut self, network: NetworkId) -> bool {
        self.changed = true;
        self.networks.remove(&network).is_some()
    }

    /// Makes the set equal to `wanted`: keeps what is there, closes what is not wanted any more, binds what is new.
    /// Interception's listeners are not part of it: see [`Listeners::add_interception`].
    pub fn reconcile(&mut self, wanted: &[Wanted]) {
        self.changed = true;
        self.slots
            .retain(|slot| slot.wanted.purpose == Purpose::HOST_INTERCEPT || wanted.contains(&slot.wanted));
        for want in wanted {
            if !self.slots.iter().any(|slot| slot.wanted == *want) {
                self.bind(*want);
            }
        }
    }

    /// Binds the loopback listeners of interception, once.
    pub fn add_interception(&mut self) {
        if self
            .slots
            .iter()
            .all(|slot| slot.wanted.purpose != Purpose::HOST_INTERCEPT)
        {
            self.changed = true;
            for want in wanted_for_interception() {
                self.bind(want);
            }
        }
    }

    /// Tries again what could not be bound; true when something is bound now that was not.
    pub fn retry(&mut self) -> bool {
        let mut changed = false;
        for slot in self.slots.iter_mut().filter(|slot| slot.bound.is_err()) {
            if let Ok(bound) = bind_set(slot.wanted.address, self.threads) {
                tracing::info!(name = %slot.wanted.purpose.name(), address = %slot.wanted.address, "listener bound after all");
                slot.bound = Ok(bound);
                changed = true;
            }
        }
        self.changed |= changed;
        changed
    }

    /// For status and readiness: the listeners of the host. Those of other networks are told with their Agents.
    pub fn status(&self) -> Vec<ListenerStatus> {
        self.slots
            .iter()
            // A host without IPv6 has no ::1 to be intercepted to, and no IPv6 connection to intercept.
            .filter(|slot| slot.bound.is_ok() || slot.wanted.purpose != Purpose::HOST_INTERCEPT)
            .map(|slot| ListenerStatus {
                name: slot.wanted.purpose.name().into_owned(),
                address: slot.address(),
                bound: slot.bound.is_ok(),
                error: slot.bound.as_ref().err().cloned(),
            })
            .collect()
    }

    /// An explicit port that is bound.
    pub fn explicit(&self) -> Option<SocketAddr> {
        self.slots
            .iter()
            .find(|slot| slot.bound.is_ok() && matches!(slot.wanted.purpose, Purpose::Explicit(_)))
            .map(Slot::address)
    }

    /// The listeners of the host: what for, where, and why not bound.
    pub fn states(&self) -> impl Iterator<Item = (Purpose, SocketAddr, Option<String>)> {
        self.slots.iter().map(|slot| {
            (
                slot.wanted.purpose,
                slot.address(),
                slot.bound.as_ref().err().cloned(),
            )
        })
    }

    /// Everything that is bound, as a worker receives it.
    pub fn passed(&self) -> (Vec<Passed>, Vec<BorrowedFd<'_>>) {
        let mut passed = Vec::new();
        let mut descriptors = Vec::new();
        for slot in &self.slots {
            let Ok(bound) = &slot.bound else { continue };
            for (thread, socket) in bound.sockets.iter().enumerate() {
                passed.push(Passed::new(slot.wanted.purpose, thread));
                descriptors.push(socket.as_fd());
            }
        }
        for (more, socket) in self.retiring.of(NetworkId::HOST) {
            passed.push(more);
            descriptors.push(socket);
        }
        for network in self.networks.keys() {
            let (more, sockets) = self.passed_of(*network);
            passed.extend(more);
            descriptors.extend(sockets);
        }
        (passed, descriptors)
    }

    /// The part of [`Listeners::passed`] that is one network's.
    pub fn passed_of(&self, network: NetworkId) -> (Vec<Passed>, Vec<BorrowedFd<'_>>) {
        let Some(found) = self.networks.get(&network) else {
            return (Vec::new(), Vec::new());
        };
        let purpose = Purpose::Intercept {
            network,
            datapath: found.taken,
        };
        [&found.v4, &found.v6]
            .into_iter()
            .flat_map(|set| set.iter().enumerate())
            .map(|(thread, socket)| (Passed::new(purpose, thread), socket.as_fd()))
            .chain(self.retiring.of(network))
            .unzip()
    }

    /// The listener of interception for one family: the first of its set, and its port.
    pub fn interception(&self, ipv6: bool) -> Option<(BorrowedFd<'_>, u16)> {
        let slot = self
            .slots
            .iter()
            .find(|s| s.wanted.purpose == Purpose::HOST_INTERCEPT && s.wanted.address.is_ipv6() == ipv6)?;
        let bound = slot.bound.as_ref().ok()?;
        Some((bound.sockets.first()?.as_fd(), bound.address.port()))
    }

    /// True when at least one is bound.
    pub fn any_bound(&self) -> bool {
        self.slots.iter().any(|slot| slot.bound.is_ok())
    }

    fn bind(&mut self, wanted: Wanted) {
        let bound = bind_set(wanted.address, self.threads).map_err(|error| {
            let error = reason(&error);
            let name = wanted.purpose.name();
            if ipv6_missing(wanted.address, &error) {
                tracing::debug!(%name, address = %wanted.address, "this host has no IPv6 loopback");
            } else {
                tracing::error!(%name, address = %wanted.address, "cannot bind {} ({name}): {error}", wanted.address);
            }
            error
        });
        let skip = matches!(&bound, Err(error) if ipv6_missing(wanted.address, error));
        if !skip || wanted.purpose == Purpose::HOST_INTERCEPT {
            self.slots.push(Slot { wanted, bound });
        }
    }
}

/// `localhost` on a host without IPv6 means 127.0.0.1 alone.
fn ipv6_missing(address: SocketAddr, error: &str) -> bool {
    address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST)
        && (error.contains("Cannot assign requested address") || error.contains("not supported"))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: a port below 1024 needs CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => error.to_string(),
    }
}

/// One socket per thread on one address.
fn bind_set(address: SocketAddr, threads: usize) -> io::Result<Bound> {
    let first = socket(address)?;
    first.bind(&address.into())?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    let sockets = listener_set::listening(first, threads, BACKLOG, || socket(address))?;
    Ok(Bound { sockets, address })
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the process before us, in TIME_WAIT, must not keep the port busy.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
    }

    #[test]
    fn a_set_shares_one_port_and_nobody_else_can_join() {
        let Bound { sockets, address } = bind_set(loopback(), 3).unwrap();
        assert_eq!(sockets.len(), 3);
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
        // Another instance of ours would bind the same way.
        let error = bind_set(address, 3).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn every_connection_reaches_one_of_the_set() {
        let Bound { sockets, address } = bind_set(loopback(), 2).unwrap();
        let clients: Vec<_> = (0..64)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        let mut accepted = 0;
        for socket in &sockets {
            while socket.accept().is_ok() {
                accepted += 1;
            }
        }
        assert_eq!(accepted, clients.len());
    }

    #[test]
    fn a_busy_port_is_named_and_taken_later() {
        let busy = TcpListener::bind(loopback()).unwrap();
        let wanted = Wanted {
            purpose: Purpose::Status,
            address: busy.local_addr().unwrap(),
        };
        let mut listeners = Listeners::new(1);
        listeners.reconcile(&[wanted]);
        let status = listeners.status();
        assert_eq!(status[0].error.as_deref(), Some("address already in use"));
        assert!(!listeners.any_bound() && !listeners.retry());
        drop(busy);
        assert!(listeners.retry());
        assert!(listeners.status()[0].bound);
    }

    #[test]
    fn reconcile_keeps_what_is_bound() {
        let mut listeners = Listeners::new(1);
        listeners.add_interception();
        let port = listeners.interception(false).unwrap().1;
        let status = Wanted {
            purpose: Purpose::Status,
            address: loopback(),
        };
        listeners.reconcile(&[status]);
        listeners.reconcile(&[status]);
        listeners.add_interception();
        assert_eq!(listeners.interception(false).unwrap().1, port);
        assert_eq!(
            listeners.status().iter().filter(|l| l.name == "status").count(),
            1
        );
        listeners.reconcile(&[]);
        assert!(listeners.status().iter().all(|l| l.name == "intercept"));
    }

    #[test]
    fn networks_come_and_go_beside_the_hosts_listeners() {
        let bound = || bind_set(loopback(), 2).unwrap().sockets;
        let mut listeners = Listeners::new(2);
        listeners.add_interception();
        let host = listeners.passed().0.len();
        let network = |network, taken, v6| NetworkListeners {
            network,
            slot: network,
            cookie: u64::from(network),
            taken,
            v4: bound(),
            v6,
        };
        listeners.add_network(network(3, Taken::Cgroup, Vec::new()));
        listeners.add_network(network(4, Taken::Tc, bound()));
        let (passed, descriptors) = listeners.passed();
        assert_eq!((passed.len(), descriptors.len()), (host + 6, host + 6));
        // Each set's sockets in the order of the threads, beside their own descriptors.
        let (cgroup, tc) = ("intercept network 3 (cgroup)", "intercept network 4 (tc)");
        let named: Vec<_> = passed[host..]
            .iter()
            .map(|passed| (passed.purpose.name().into_owned(), passed.thread))
            .collect();
        assert_eq!(
            named,
            [(cgroup, 0), (cgroup, 1), (tc, 0), (tc, 1), (tc, 0), (tc, 1)]
                .map(|(name, thread)| (name.to_owned(), thread))
        );
        let port = |at: usize| {
            let socket = socket2::SockRef::from(&descriptors[host + at]);
            socket.local_addr().unwrap().as_socket().unwrap().port()
        };
        assert!([0, 2, 4].iter().all(|first| port(*first) == port(first + 1)));
        assert!(port(0) != port(2) && port(2) != port(4));
        // Neither status nor a reload knows them one by one.
        assert!(listeners.status().iter().all(|l| l.name == "intercept"));
        listeners.reconcile(&[]);
        assert_eq!(listeners.passed_of(NetworkId(3)).1.len(), 2);
        assert!(listeners.remove_network(NetworkId(4)) && !listeners.remove_network(NetworkId(4)));
        assert_eq!(listeners.passed().0.len(), host + 2);
    }
}
