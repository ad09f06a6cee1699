//! Listeners that intercepted connections were brought to before this process came: the service manager kept them. New ones take
//! their place in the kernel's tables, and these are served until nobody can wait in them any more.
//!
//! They are not gone on with: a socket belongs to the cgroup that made it, and that may be gone. What the kernel accepts for them
//! has its origin from the programs of that cgroup, which stay for as long as their pins do.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::relay::network::{NetworkId, Taken};
use crate::supervise::protocol::{Passed, Purpose};

/// How long they are served. A connection was led to them before the new ones came; what is not there by then is a SYN that was
/// lost, and a client sends it again after 1, 3, 7 and 15 s (RFC 6298).
const SERVED: Duration = Duration::from_secs(20);
/// How long a network's are kept while nobody has asked for that network: Kubernetes names its pods when it is reached.
const KEPT: Duration = Duration::from_secs(300);

/// Whose connections came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The host's own Agents'.
    Host,
    /// Those of the namespace with this cookie (0: of interfaces), taken this way.
    Network(u64, Taken),
}

/// One of them.
struct One {
    owner: Owner,
    thread: usize,
    socket: TcpListener,
    address: SocketAddr,
    /// Its network in this process, once it has one.
    network: Option<NetworkId>,
    until: Instant,
}

/// All of them.
#[derive(Default)]
pub(super) struct Retiring(Vec<One>);

impl Retiring {
    /// Keeps one; the host's are served from now on.
    pub(super) fn add(&mut self, owner: Owner, thread: usize, socket: TcpListener, address: SocketAddr) {
        let (network, keep) = match owner {
            Owner::Host => (Some(NetworkId::HOST), SERVED),
            Owner::Network(..) => (None, KEPT),
        };
        self.0.push(One {
            owner,
            thread,
            socket,
            address,
            network,
            until: Instant::now() + keep,
        });
    }

    /// This network has new ones: the old ones are served with them.
    pub(super) fn serve(&mut self, cookie: u64, taken: Taken, network: NetworkId) {
        for one in &mut self.0 {
            if one.owner == Owner::Network(cookie, taken) && one.network.is_none() {
                one.network = Some(network);
                one.until = Instant::now() + SERVED;
            }
        }
    }

    /// What is served of a network, as a worker receives it.
    pub(super) fn of(&self, network: NetworkId) -> impl Iterator<Item = (Passed, BorrowedFd<'_>)> {
        self.0
            .iter()
            .filter(move |one| one.network == Some(network))
            .map(move |one| {
                let purpose = Purpose::Intercept {
                    network,
                    datapath: match one.owner {
                        Owner::Host => Taken::Cgroup,
                        Owner::Network(_, taken) => taken,
                    },
                };
                let passed = Passed {
                    retiring: true,
                    ..Passed::new(purpose, one.thread)
                };
                (passed, one.socket.as_fd())
            })
    }

    /// Closes those whose time is over; true when there were any, and the workers must close theirs.
    pub(super) fn close_old(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|one| one.until > now);
        self.0.len() != before
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each with what its name in the service manager's store is made from.
    pub(super) fn all(&self) -> impl Iterator<Item = (Owner, usize, SocketAddr, BorrowedFd<'_>)> {
        self.0
            .iter()
            .map(|one| (one.owner, one.thread, one.address, one.socket.as_fd()))
    }
}
