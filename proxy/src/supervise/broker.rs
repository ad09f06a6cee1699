//! Gets sockets of Agent pods' namespaces for the data threads. The worker may not enter a namespace: the master makes the
//! socket there and sends it.
//!
//! After the first dial in a network one spare socket per family is kept in stock, so that most dials wait for nobody. A
//! spare keeps its namespace alive: it goes when the network goes.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::protocol::FromWorker;
use crate::relay::network::{self, MakingSocket, NetworkId, Sockets};

/// What a socket is of: its network, and IPv6 or IPv4.
type Kind = (NetworkId, bool);

/// Asks the master for sockets.
#[derive(Debug)]
pub struct Broker {
    ask: mpsc::UnboundedSender<FromWorker>,
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: HashMap<u64, Waiting>,
    stock: HashMap<Kind, OwnedFd>,
}

/// Who gets the answer to a request.
#[derive(Debug)]
struct Waiting {
    kind: Kind,
    /// A dial; without one the stock.
    dial: Option<oneshot::Sender<io::Result<OwnedFd>>>,
}

impl Broker {
    /// What it says to `ask` must reach the master, whose answers must reach [`Broker::answer`]. A dial waits for `limit`
    /// (`upstream.connect_timeout`) at most.
    pub fn new(ask: mpsc::UnboundedSender<FromWorker>, limit: Duration) -> Self {
        Self {
            ask,
            limit,
            state: Mutex::default(),
        }
    }

    /// The master answered. A socket that nobody waits for any more is closed.
    pub fn answer(&self, request: u64, made: io::Result<OwnedFd>) {
        let mut state = self.state();
        let Some(Waiting { kind, dial }) = state.waiting.remove(&request) else {
            return;
        };
        let left = match dial {
            // The dial was given up at this moment when it cannot be sent.
            Some(dial) => match dial.send(made) {
                Ok(()) => return,
                Err(made) => made,
            },
            None => made,
        };
        match left {
            Ok(socket) => {
                state.stock.entry(kind).or_insert(socket);
            }
            Err(error) => tracing::debug!(network = %kind.0, %error, "no spare socket"),
        }
    }

    /// The network is gone: its spare sockets are closed, and who waits for one fails.
    pub fn forget(&self, network: NetworkId) {
        let mut state = self.state();
        state.stock.retain(|kind, _| kind.0 != network);
        state.waiting.retain(|_, waiting| {
            if waiting.kind.0 != network {
                return true;
            }
            if let Some(dial) = waiting.dial.take() {
                // It may have been given up.
                let _ = dial.send(Err(network::gone(network)));
            }
            false
        });
    }

    /// The master is gone, or says nothing any more: whoever waits fails.
    pub fn close(&self) {
        let mut state = self.state();
        state.stock.clear();
        state.waiting.clear();
    }

    async fn get(&self, kind: Kind) -> io::Result<OwnedFd> {
        if let Some(socket) = self.take_spare(kind) {
            return Ok(socket);
        }
        let (tell, told) = oneshot::channel();
        let request = self.request(kind, Some(tell))?;
        // Also when the dial is given up.
        let _given_up = GivenUp(self, request);
        let made = tokio::time::timeout(self.limit, told)
            .await
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "no socket of network {} within upstream.connect_timeout: the master does not answer",
                        kind.0
                    ),
                )
            })?
            .map_err(|_| no_master())??;
        self.refill(kind);
        Ok(made)
    }

    /// The spare, when there is one; then another is asked for.
    fn take_spare(&self, kind: Kind) -> Option<OwnedFd> {
        let socket = self.state().stock.remove(&kind)?;
        self.refill(kind);
        Some(socket)
    }

    /// Asks for a spare unless there is one, or one is on its way.
    fn refill(&self, kind: Kind) {
        let state = self.state();
        let asked = state
            .waiting
            .values()
            .any(|waiting| waiting.dial.is_none() && waiting.kind == kind);
        let there = state.stock.contains_key(&kind);
        drop(state);
        if !asked
            && !there
            && let Err(error) = self.request(kind, None)
        {
            // The dial has what it needs; the next one will say it aloud.
            tracing::debug!(network = %kind.0, %error, "no spare socket");
        }
    }

    fn request(&self, kind: Kind, dial: Option<oneshot::Sender<io::Result<OwnedFd>>>) -> io::Result<u64> {
        let mut state = self.state();
        let request = state.next;
        state.next += 1;
        let (network, ipv6) = kind;
        self.ask
            .send(FromWorker::SocketWanted {
                request,
                network,
                ipv6,
            })
            .map_err(|_| no_master())?;
        state.waiting.insert(request, Waiting { kind, dial });
        Ok(request)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of it is one call on a map: a thread that panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sockets for Broker {
    fn socket(&self, network: NetworkId, ipv6: bool) -> MakingSocket<'_> {
        Box::pin(self.get((network, ipv6)))
    }
}

/// Forgets a request whose dial ended without its answer.
struct GivenUp<'a>(&'a Broker, u64);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.state().waiting.remove(&self.1);
    }
}

fn no_master() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the master is gone, and with it the way into the pod's network",
    )
}

#[cfg(test)]
#[path = "broker/tests.rs"]
mod tests;
