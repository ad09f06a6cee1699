//! One thread's connections to intakes: last in, first out, so that few stay hot and the rest can go.
//!
//! An idle HTTP/1.1 connection is handed out only after a look at its socket: closed, or with bytes waiting that nobody
//! asked for, it is dropped. An HTTP/2 connection stays in the pool while it is used by many requests at once.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::time::Instant;

use super::socket::Watch;
use crate::relay::http::body::UploadBody;
use crate::relay::network::NetworkId;
use crate::relay::origin::UpstreamAddr;
use crate::tls::Negotiated;

/// Idle connections per key and thread.
const MAX_IDLE_PER_KEY: usize = 64;
/// Requests at once on one HTTP/2 connection; the usual limit of servers.
pub(super) const MAX_STREAMS: usize = 100;
/// How often idle connections are looked over, at least.
const SWEEP: Duration = Duration::from_secs(15);

/// Connections with the same key are interchangeable: verified for the same name, reached the same way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::relay) struct Key {
    /// Where the client is: its connections may be made there, and keep that namespace alive.
    pub(in crate::relay) network: NetworkId,
    pub(in crate::relay) name: Rc<str>,
    /// The original destination of intercepted connections: each goes where its client meant to go. Absent where that is
    /// not what is dialled.
    pub(in crate::relay) original: Option<SocketAddr>,
    /// What servers were judged by when it was made: a connection outlives no change of that by another request.
    pub(in crate::relay) trust: u64,
}

/// The idle connections of one thread.
pub(in crate::relay) struct Pool {
    idle: RefCell<HashMap<Key, Vec<Line>>>,
    /// Whose connections are kept.
    networks: RefCell<HashSet<NetworkId>>,
    idle_timeout: Duration,
}

/// A connection to an intake.
pub(super) struct Line {
    pub(super) sender: Sender,
    pub(super) watch: Rc<Watch>,
    pub(super) addr: UpstreamAddr,
    pub(super) tls: Arc<Negotiated>,
    /// It carried a request before.
    pub(super) reused: bool,
    idle_since: Instant,
}

pub(super) enum Sender {
    Http1(http1::SendRequest<UploadBody>),
    Http2 {
        sender: http2::SendRequest<UploadBody>,
        streams: Rc<Cell<usize>>,
    },
}

impl Line {
    pub(super) fn new(sender: Sender, watch: Rc<Watch>, addr: UpstreamAddr, tls: Arc<Negotiated>) -> Self {
        Self {
            sender,
            watch,
            addr,
            tls,
            reused: false,
            idle_since: Instant::now(),
        }
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2 { sender, .. } => sender.is_closed(),
        }
    }

    /// Another handle on the same HTTP/2 connection.
    fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2 { sender, streams } => Some(Self {
                sender: Sender::Http2 {
                    sender: sender.clone(),
                    streams: Rc::clone(streams),
                },
                watch: Rc::clone(&self.watch),
                addr: self.addr,
                tls: Arc::clone(&self.tls),
                reused: true,
                idle_since: Instant::now(),
            }),
        }
    }

    fn is_in_use(&self) -> bool {
        matches!(&self.sender, Sender::Http2 { streams, .. } if streams.get() > 0)
    }
}

impl Pool {
    pub(in crate::relay) fn new(idle_timeout: Duration) -> Self {
        Self {
            idle: RefCell::new(HashMap::new()),
            networks: RefCell::new(HashSet::new()),
            idle_timeout,
        }
    }

    /// Keeps connections of `network` from now on.
    pub(in crate::relay) fn enter(&self, network: NetworkId) {
        self.networks.borrow_mut().insert(network);
    }

    /// Closes the idle connections of `network`, and keeps none that is given back later.
    pub(in crate::relay) fn leave(&self, network: NetworkId) {
        self.networks.borrow_mut().remove(&network);
        self.idle.borrow_mut().retain(|key, _| key.network != network);
    }

    /// The most recently used good connection for `key`. Bad ones that are met on the way are dropped.
    pub(super) fn take(&self, key: &Key) -> Option<Line> {
        let mut idle = self.idle.borrow_mut();
        let lines = idle.get_mut(key)?;
        let now = Instant::now();
        let mut at = lines.len();
        while at > 0 {
            at -= 1;
            let line = &mut lines[at];
            if line.is_closed() || (!line.is_in_use() && now - line.idle_since >= self.idle_timeout) {
                lines.remove(at);
                continue;
            }
            match &line.sender {
                // Not ready: its task has yet to see the end of the last response.
                Sender::Http1(sender) if !sender.is_ready() => {}
                Sender::Http1(_) if line.watch.is_quiet() => return Some(lines.remove(at)),
                Sender::Http2 { streams, .. } if streams.get() >= MAX_STREAMS => {}
                Sender::Http2 { .. } if line.watch.is_open() => {
                    line.idle_since = now;
                    return line.share();
                }
                Sender::Http1(_) | Sender::Http2 { .. } => drop(lines.remove(at)),
            }
        }
        None
    }

    /// Makes a new HTTP/2 connection available to others at once.
    pub(super) fn publish(&self, key: &Key, line: &Line) {
        if let Some(shared) = line.share() {
            self.put(key.clone(), shared);
        }
    }

    fn put(&self, key: Key, mut line: Line) {
        if line.is_closed() || !self.networks.borrow().contains(&key.network) {
            return;
        }
        line.reused = true;
        line.idle_since = Instant::now();
        let mut idle = self.idle.borrow_mut();
        let lines = idle.entry(key).or_default();
        if lines.len() >= MAX_IDLE_PER_KEY {
            // The coldest goes.
            drop(lines.remove(0));
        }
        lines.push(line);
    }

    fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, lines| {
            lines.retain(|line| {
                !line.is_closed() && (line.is_in_use() || now - line.idle_since < self.idle_timeout)
            });
            !lines.is_empty()
        });
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("keys", &self.idle.borrow().len())
            .finish_non_exhaustive()
    }
}

/// Closes idle connections in time; runs as long as the thread serves.
pub(in crate::relay) async fn sweep(pool: Rc<Pool>) {
    let mut tick = tokio::time::interval(SWEEP.min(pool.idle_timeout.max(Duration::from_secs(1)) / 2));
    loop {
        tick.tick().await;
        pool.sweep();
    }
}

/// A connection while a request uses it. Dropped without [`Lease::give_back`], an HTTP/1 connection is closed.
pub(in crate::relay) struct Lease {
    pool: Rc<Pool>,
    key: Key,
    line: Option<Line>,
}

impl Lease {
    pub(super) fn new(pool: Rc<Pool>, key: Key, line: Line) -> Self {
        if let Sender::Http2 { streams, .. } = &line.sender {
            streams.set(streams.get() + 1);
        }
        Self {
            pool,
            key,
            line: Some(line),
        }
    }

    pub(super) fn line(&mut self) -> Option<&mut Line> {
        self.line.as_mut()
    }

    /// The response is complete: the connection may serve the next request.
    pub(in crate::relay) fn give_back(&mut self) {
        let Some(line) = self.release() else { return };
        if matches!(line.sender, Sender::Http1(_)) {
            self.pool.put(self.key.clone(), line);
        }
    }

    fn release(&mut self) -> Option<Line> {
        let line = self.line.take()?;
        if let Sender::Http2 { streams, .. } = &line.sender {
            streams.set(streams.get().saturating_sub(1));
        }
        Some(line)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.release());
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
