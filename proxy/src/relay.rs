//! The worker's work: one connection's way from accept to its record.
//!
//! The way, function by function: [`serve`] starts `accept::listen` per listener; `accept::connection` finds out where
//! the client meant to go (`origin`), what it speaks (`classify`) and what that means (`decide`, which does no I/O);
//! then `http::serve` terminates, `tunnel::run` leaves alone, or the connection is refused. A terminated request goes
//! through `upstream::send` (target, resolve, pool, connect, retry). Whatever happens, [`outcome`] gets exactly one record.
//!
//! Everything here runs on one thread: a `current_thread` runtime inside a `LocalSet`. A connection, its upstream
//! connections and their state stay on that thread (`Rc`, no locks); only [`Shared`] is seen by several threads.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::catalog::{Catalog, Product};
use crate::config::Config;
use crate::tls::{self, Negotiated};

mod accept;
mod classify;
mod decide;
mod http;
mod origin;
pub mod outcome;
mod timer;
mod tunnel;
pub mod upstream;

pub use origin::kernel_original_dst;
use outcome::{ConnectionRecord, RequestRecord, Via};
use upstream::connect::Handshake;
use upstream::resolve::Resolver;

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A port of the Agent's `fips.*` range: plain HTTP for this product.
    Explicit(Product),
    /// Connections that the cgroup programs bring here; each has an original destination.
    Intercept,
}

impl Role {
    /// How connections of this listener came to us.
    pub fn via(self) -> Via {
        match self {
            Self::Explicit(_) => Via::Explicit,
            Self::Intercept => Via::Cgroup,
        }
    }
}

/// A bound, listening socket and what it is for.
#[derive(Debug)]
pub struct Listener {
    /// What it is for.
    pub role: Role,
    /// The socket. [`serve`] makes it non-blocking.
    pub socket: std::net::TcpListener,
}

/// Finds the original destination of an accepted socket; [`kernel_original_dst`] outside tests.
pub type OriginLookup = Arc<dyn Fn(&TcpStream) -> std::io::Result<SocketAddr> + Send + Sync>;

/// What all data threads share. `H` is TLS towards the intake: [`tls::Client`], or a fake one in tests.
pub struct Shared<H = tls::Client> {
    /// What we were told to do.
    pub config: Arc<Config>,
    /// The products and names of the configured site.
    pub catalog: Arc<Catalog>,
    /// TLS towards the intake.
    pub tls: H,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Where records go.
    pub recorder: Arc<dyn Recorder>,
    /// Client connections held at once, all threads together.
    pub slots: Arc<Slots>,
    /// Asks for the original destination of an intercepted connection.
    pub origin: OriginLookup,
}

/// Takes the records of the data path. Called on the data threads, once per request or connection: it must not block.
pub trait Recorder: Send + Sync {
    /// A request ended.
    fn request(&self, record: &RequestRecord);
    /// A client connection ended.
    fn connection(&self, record: &ConnectionRecord);
    /// A client connection was accepted.
    fn connection_opened(&self, via: Via);
    /// A TLS session with an intake was made.
    fn upstream_connected(&self, tls: &Negotiated);
}

/// Counts client connections against `limits.max_connections`.
#[derive(Debug)]
pub struct Slots {
    used: AtomicUsize,
    max: usize,
}

impl Slots {
    /// At most `max` at once.
    pub fn new(max: usize) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max,
        }
    }

    /// How many are held.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes one, until the guard is dropped; `None` when all are held.
    fn take(self: &Arc<Self>) -> Option<Slot> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.max).then_some(used + 1)
            })
            .ok()
            .map(|_| Slot(Arc::clone(self)))
    }
}

/// One held connection; given back on drop, so that a cancelled task cannot leak it.
#[derive(Debug)]
struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves `listeners` until `drain` becomes true (or its sender is gone), then finishes what is in flight.
///
/// Must run inside a [`tokio::task::LocalSet`]. Draining drops the listeners at once, lets requests in flight finish
/// (answered with `Connection: close`), and cuts what is left after `limits.drain_timeout`.
pub async fn serve<H: Handshake>(
    listeners: Vec<Listener>,
    shared: Arc<Shared<H>>,
    drain: watch::Receiver<bool>,
) {
    let own = listeners
        .iter()
        .filter_map(|listener| listener.socket.local_addr().ok())
        .collect();
    let thread = Rc::new(accept::Thread::new(shared, own));
    let sweeper = tokio::task::spawn_local(upstream::pool::sweep(Rc::clone(&thread.pool)));
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn_local(accept::listen(listener, Rc::clone(&thread), drain.clone()));
    }
    while let Some(ended) = loops.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "an accept loop ended abnormally");
        }
    }
    sweeper.abort();
}

/// Completes when draining begins; a vanished sender means the same.
async fn drained(drain: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: nobody could stop us any more, so we stop.
    drop(drain.wait_for(|draining| *draining).await);
}
