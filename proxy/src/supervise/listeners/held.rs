//! Listeners that outlive a program: those that the program which replaces this one goes on with, and those that the service
//! manager keeps while nobody runs.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::retiring::Owner;
use super::{Bound, Listeners, Slot, Wanted};
use crate::catalog::TABLE;
use crate::relay::network::Taken;
use crate::supervise::protocol::Purpose;

/// Where a listener belongs, for the program that replaces this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// To an address of the host; the place in its set.
    Host(Wanted, usize),
    /// To a network, by its number; the place in its set.
    Network(u32, usize),
    /// It is served until nobody waits there: of the network with this cookie, or the host's own.
    Retiring(Option<(u64, Taken)>, usize),
}

/// The sockets of one network, IPv4 and IPv6, in the order of their threads.
pub type Sockets = (Vec<TcpListener>, Vec<TcpListener>);

impl Listeners {
    /// Everything that is bound, for the program that replaces this one.
    pub fn places(&self) -> Vec<(Place, BorrowedFd<'_>)> {
        let mut places = Vec::new();
        for slot in &self.slots {
            let Ok(bound) = &slot.bound else { continue };
            for (thread, socket) in bound.sockets.iter().enumerate() {
                places.push((Place::Host(slot.wanted, thread), socket.as_fd()));
            }
        }
        for (id, network) in &self.networks {
            for (thread, socket) in [&network.v4, &network.v6]
                .into_iter()
                .flat_map(|set| set.iter().enumerate())
            {
                places.push((Place::Network(id.0, thread), socket.as_fd()));
            }
        }
        for (owner, thread, _, socket) in self.retiring.all() {
            let of = match owner {
                Owner::Host => None,
                Owner::Network(cookie, taken) => Some((cookie, taken)),
            };
            places.push((Place::Retiring(of, thread), socket));
        }
        places
    }

    /// Goes on with what [`Listeners::places`] of the program before said. What belongs to networks comes back, for whoever
    /// opens them.
    pub fn inherit(&mut self, places: Vec<(Place, OwnedFd)>) -> BTreeMap<u32, Sockets> {
        let mut networks: BTreeMap<u32, Sockets> = BTreeMap::new();
        // In the order in which they were written, which is that of the threads.
        for (place, socket) in places {
            let socket = TcpListener::from(socket);
            let Ok(address) = socket.local_addr() else {
                tracing::error!(?place, "what the program before left there is no listener");
                continue;
            };
            match place {
                Place::Host(wanted, _) => self.keep(wanted, address, socket),
                Place::Network(id, _) => {
                    let (v4, v6) = networks.entry(id).or_default();
                    if address.is_ipv4() { v4 } else { v6 }.push(socket);
                }
                Place::Retiring(of, thread) => {
                    let owner = of.map_or(Owner::Host, |(cookie, taken)| Owner::Network(cookie, taken));
                    self.retiring.add(owner, thread, socket, address);
                }
            }
        }
        networks
    }

    /// Goes on with what the service manager kept for us, named by [`Listeners::named`]. What intercepted connections were
    /// brought to retires. Says which names are none of ours; those sockets are closed.
    pub fn adopt(&mut self, stored: Vec<(String, OwnedFd)>) -> Vec<String> {
        let mut strangers = Vec::new();
        let mut known = Vec::new();
        for (name, socket) in stored {
            let socket = TcpListener::from(socket);
            match (parse(&name), socket.local_addr()) {
                (Some((what, thread)), Ok(address)) => known.push((what, address, thread, socket)),
                _ => strangers.push(name),
            }
        }
        // The service manager need not keep an order.
        known.sort_by_key(|(_, address, thread, _)| (*address, *thread));
        for (what, address, thread, socket) in known {
            match what {
                What::Served(purpose) => self.keep(Wanted { purpose, address }, address, socket),
                What::Retiring(owner) => self.retiring.add(owner, thread, socket, address),
            }
        }
        strangers
    }

    fn keep(&mut self, wanted: Wanted, address: SocketAddr, socket: TcpListener) {
        let known = self.slots.iter_mut().find(|slot| slot.wanted == wanted);
        match known.map(|slot| &mut slot.bound) {
            Some(Ok(bound)) => bound.sockets.push(socket),
            Some(Err(_)) => {}
            None => self.slots.push(Slot {
                wanted,
                bound: Ok(Bound {
                    sockets: vec![socket],
                    address,
                }),
            }),
        }
    }

    /// Every socket with its name in the service manager's store: what it is, its family and port, and its place in the set. A
    /// name is never that of two sockets.
    pub fn named(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut named = Vec::new();
        for slot in &self.slots {
            let Ok(bound) = &slot.bound else { continue };
            let what = slot.wanted.purpose.name();
            for (thread, socket) in bound.sockets.iter().enumerate() {
                named.push((name(&what, bound.address, thread), socket.as_fd()));
            }
        }
        for network in self.networks.values() {
            let what = network_name(network.cookie, network.taken);
            for set in [&network.v4, &network.v6] {
                let Some(address) = set.first().and_then(|first| first.local_addr().ok()) else {
                    continue;
                };
                for (thread, socket) in set.iter().enumerate() {
                    named.push((name(&what, address, thread), socket.as_fd()));
                }
            }
        }
        for (owner, thread, address, socket) in self.retiring.all() {
            let what = match owner {
                Owner::Host => Purpose::HOST_INTERCEPT.name().into_owned(),
                Owner::Network(cookie, taken) => network_name(cookie, taken),
            };
            named.push((name(&what, address, thread), socket));
        }
        named
    }

    /// True when something came or went since this was asked last.
    pub fn changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// True while listeners of a process before us are kept.
    pub fn retiring(&self) -> bool {
        !self.retiring.is_empty()
    }

    /// Closes listeners of a process before us in which nobody can wait any more. True when there were any: workers must close
    /// theirs.
    pub fn close_retired(&mut self) -> bool {
        let closed = self.retiring.close_old(Instant::now());
        self.changed |= closed;
        closed
    }

    /// True when an address has another number of sockets than there are data threads, and so is divided unequally.
    pub fn uneven(&self) -> bool {
        self.slots
            .iter()
            .filter_map(|slot| slot.bound.as_ref().ok())
            .any(|bound| bound.sockets.len() != self.threads)
    }
}

/// What the name of a stored socket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Served(Purpose),
    Retiring(Owner),
}

fn network_name(cookie: u64, taken: Taken) -> String {
    format!("network-{cookie:x}-{}", taken.name())
}

/// FDNAME allows printable ASCII but for the colon, 255 at most (sd_pid_notify_with_fds(3)).
fn name(what: &str, address: SocketAddr, thread: usize) -> String {
    let family = if address.is_ipv4() { 4 } else { 6 };
    format!("{what}.{family}.{}.{thread}", address.port())
}

fn parse(name: &str) -> Option<(What, usize)> {
    let mut parts = name.split('.');
    let what = parts.next()?;
    let [_family, _port, thread] = [parts.next()?, parts.next()?, parts.next()?];
    if parts.next().is_some() {
        return None;
    }
    let what = match what {
        "status" => What::Served(Purpose::Status),
        "intercept" => What::Retiring(Owner::Host),
        other => match other.strip_prefix("network-") {
            Some(network) => {
                let (cookie, taken) = network.split_once('-')?;
                let taken = [Taken::Cgroup, Taken::Tc]
                    .into_iter()
                    .find(|one| one.name() == taken)?;
                What::Retiring(Owner::Network(u64::from_str_radix(cookie, 16).ok()?, taken))
            }
            None => {
                let entry = TABLE.iter().find(|entry| entry.product.name() == other)?;
                What::Served(Purpose::Explicit(entry.product))
            }
        },
    };
    Some((what, thread.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use super::*;
    use crate::intercept::NetworkListeners;
    use crate::relay::network::NetworkId;
    use crate::supervise::listeners::bind_set;

    fn loopback() -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
    }

    fn network(network: u32, cookie: u64) -> NetworkListeners {
        NetworkListeners {
            network,
            slot: 1,
            cookie,
            taken: Taken::Cgroup,
            v4: bind_set(loopback(), 2).unwrap().sockets,
            v6: Vec::new(),
        }
    }

    fn some() -> (Listeners, Wanted) {
        let mut listeners = Listeners::new(2);
        let free = bind_set(loopback(), 1).unwrap().address;
        let explicit = Wanted {
            purpose: Purpose::Explicit(TABLE[0].product),
            address: free,
        };
        listeners.reconcile(&[explicit]);
        listeners.add_interception();
        listeners.add_network(network(7, 0xabc));
        (listeners, explicit)
    }

    fn copies<T: Clone>(all: &[(T, BorrowedFd<'_>)]) -> Vec<(T, OwnedFd)> {
        all.iter()
            .map(|(what, socket)| (what.clone(), socket.try_clone_to_owned().unwrap()))
            .collect()
    }

    #[test]
    fn the_next_program_goes_on_with_every_listener() {
        let (before, explicit) = some();
        let mut after = Listeners::new(2);
        let networks = after.inherit(copies(&before.places()));
        assert_eq!(networks[&7].0.len(), 2);
        assert_eq!(
            after.interception(false).unwrap().1,
            before.interception(false).unwrap().1
        );
        // Nothing is bound anew: the port is taken, by ourselves.
        after.reconcile(&[explicit]);
        after.add_interception();
        assert!(after.status().iter().all(|one| one.bound), "{:?}", after.status());
        assert_eq!(after.passed().0.len() + 2, before.passed().0.len());
        assert!(!after.uneven());
    }

    #[test]
    fn what_was_stored_serves_or_retires() {
        let (before, explicit) = some();
        let named = before.named();
        let names: BTreeSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), named.len(), "each name is one socket's: {names:?}");
        assert!(
            names
                .iter()
                .all(|name| !name.contains(':') && parse(name).is_some())
        );
        let mut stored = copies(&named);
        // In any order, and with what others put there.
        stored.reverse();
        let file = std::fs::File::open("/dev/null").unwrap();
        stored.push(("status.4.9803.0".to_owned(), file.into()));
        let other = bind_set(loopback(), 1).unwrap().sockets.remove(0);
        stored.push(("web.socket".to_owned(), other.into()));
        let mut after = Listeners::new(2);
        assert_eq!(after.adopt(stored), ["status.4.9803.0", "web.socket"]);
        after.reconcile(&[explicit]);
        assert!(after.status()[0].bound && !after.uneven());
        // The host's retire at once, a network's once it is known by its cookie.
        let retiring = |all: &Listeners| all.passed().0.iter().filter(|one| one.retiring).count();
        let host = before.passed().0.len() - 4;
        assert_eq!(retiring(&after), host);
        after.add_network(network(1, 0xdef));
        assert_eq!(retiring(&after), host, "another namespace");
        after.add_network(network(2, 0xabc));
        assert_eq!(retiring(&after), host + 2);
        assert_eq!(after.passed_of(NetworkId(2)).0.len(), 4);
        assert!(
            after.retiring() && !after.close_retired(),
            "their time is not over"
        );
        let later = Instant::now() + Duration::from_secs(21);
        assert!(after.retiring.close_old(later));
        assert_eq!(retiring(&after), 0);
    }

    #[test]
    fn names_are_read_back() {
        for (text, read) in [
            ("status.4.9803.1", Some((What::Served(Purpose::Status), 1))),
            ("intercept.6.40000.0", Some((What::Retiring(Owner::Host), 0))),
            (
                "network-1f-tc.4.40001.3",
                Some((What::Retiring(Owner::Network(0x1f, Taken::Tc)), 3)),
            ),
            ("network-1f-xyz.4.40001.3", None),
            ("network-tc.4.40001.3", None),
            ("status.4.9803", None),
            ("status.4.9803.0.0", None),
            ("unknown.4.1.0", None),
            ("", None),
        ] {
            assert_eq!(parse(text), read, "{text}");
        }
        for entry in TABLE {
            let text = format!("{}.4.1.0", entry.product.name());
            assert_eq!(
                parse(&text),
                Some((What::Served(Purpose::Explicit(entry.product)), 0))
            );
        }
    }
}
