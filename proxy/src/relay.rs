//! The worker's work: one connection's way from accept to its record.
//!
//! The way, function by function: [`serve`] starts `accept::listen` per listener; `accept::connection` finds out where
//! the client meant to go (`origin`); `intercepted::run` what it speaks (`classify`) and what that means (`decide`, which
//! does no I/O); then `http::serve` terminates, `passthrough::run` lets an Agent's own TLS through under the policy,
//! `tunnel::run` leaves alone, or the connection is refused. A terminated request goes
//! through `upstream` (destination, resolve, pool, connect, retry). Whatever happens, [`outcome`] gets exactly one record.
//!
//! Everything here runs on one thread: a `current_thread` runtime inside a `LocalSet`. A connection, its upstream
//! connections and their state stay on that thread (`Rc`, no locks); only [`Shared`] is seen by several threads.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::catalog::{Catalog, Product};
use crate::config::Config;
use crate::tls::{self, Negotiated};

mod accept;
mod buffers;
mod classify;
#[cfg(feature = "counts")]
pub(crate) mod counts;
mod decide;
mod http;
mod intercepted;
pub mod network;
mod origin;
pub mod outcome;
mod passthrough;
mod slots;
mod timer;
mod tunnel;
pub mod upstream;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use http::fuzz;
use network::{NetworkId, Sockets, Taken};
pub use origin::{kernel_original_dst, kernel_peer, kernel_peer_process, noted_original_dst};
use outcome::{ClientTls, ConnectionRecord, Process, RequestRecord, Said, TlsClient, Via};
pub use slots::Slots;
use upstream::connect::Handshake;
use upstream::outbound::Outbound;
use upstream::resolve::Resolver;

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A port of the Agent's `fips.*` range: plain HTTP for this product.
    Explicit(Product),
    /// Connections that the kernel programs bring here; each has an original destination.
    Intercept {
        /// Where the clients are.
        network: NetworkId,
        /// How they come.
        taken: Taken,
    },
}

impl Role {
    /// How connections of this listener came to us.
    pub fn via(self) -> Via {
        match self {
            Self::Explicit(_) => Via::Explicit,
            Self::Intercept {
                taken: Taken::Cgroup, ..
            } => Via::Cgroup,
            Self::Intercept { taken: Taken::Tc, .. } => Via::Tc,
        }
    }

    /// Where its clients are.
    pub fn network(self) -> NetworkId {
        match self {
            Self::Explicit(_) => NetworkId::HOST,
            Self::Intercept { network, .. } => network,
        }
    }

    /// Its sockets have the address that the client meant, not the listener's.
    fn is_transparent(self) -> bool {
        matches!(self, Self::Intercept { taken: Taken::Tc, .. })
    }

    /// The namespace that the listener itself is in: what `tc` takes in a pod is brought to the host.
    fn home(self) -> NetworkId {
        match self {
            Self::Intercept {
                network,
                taken: Taken::Cgroup,
            } => network,
            Self::Intercept { taken: Taken::Tc, .. } | Self::Explicit(_) => NetworkId::HOST,
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

/// What changes while a data thread serves.
#[derive(Debug)]
pub enum Change {
    /// Serve these too.
    Add(Vec<Listener>),
    /// Serve these too, until [`Change::Retire`].
    AddRetiring(Vec<Listener>),
    /// Nobody waits any more in what came by [`Change::AddRetiring`]: its listeners are closed and requests in flight finish, as
    /// when draining.
    Retire,
    /// The network is gone: its listeners are closed at once and requests in flight finish, as when draining. Nothing of
    /// it is kept open afterwards, so that the namespace can go. [`NetworkId::HOST`] never goes.
    Remove(NetworkId),
}

/// Finds the original destination of a connection that the cgroup programs brought, from its socket and that socket's own
/// address; [`kernel_original_dst`] outside tests.
pub type OriginLookup = Arc<dyn Fn(&TcpStream, SocketAddr) -> std::io::Result<SocketAddr> + Send + Sync>;

/// Finds the process that an intercepted connection came from; [`kernel_peer`] outside tests.
pub type PeerLookup = Arc<dyn Fn(&TcpStream) -> Option<Process> + Send + Sync>;

/// What [`Door::admits`] returns.
pub type Judging<'a> = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send + 'a>>;

/// Says who may use the explicit ports. Called on the data threads.
pub trait Door: Send + Sync {
    /// Judges the connection that `client` made to `ours`, a listener of this host.
    ///
    /// # Errors
    /// `PermissionDenied`, with the reason: it may not. Anything else: nobody can tell, so that it may not either.
    fn admits(&self, client: SocketAddr, ours: SocketAddr) -> Judging<'_>;
}

/// What all data threads share. `H` is TLS towards the intake: [`tls::Client`], or a fake one in tests.
pub struct Shared<H = tls::Client> {
    /// What we were told to do.
    pub config: Arc<Config>,
    /// The products and names of the configured site.
    pub catalog: Arc<Catalog>,
    /// TLS towards the intake.
    pub tls: H,
    /// The outbound proxy, if the site has one.
    pub outbound: Option<Arc<Outbound>>,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Where records go.
    pub recorder: Arc<dyn Recorder>,
    /// Who may use the explicit ports; `None`: everybody.
    pub door: Option<Arc<dyn Door>>,
    /// What is served at once, all threads together.
    pub slots: Arc<Slots>,
    /// Asks for the original destination of an intercepted connection.
    pub origin: OriginLookup,
    /// Asks which process an intercepted connection came from.
    pub peer: PeerLookup,
    /// Sockets of Agent pods' namespaces.
    pub sockets: Arc<dyn Sockets>,
    /// What is done with intercepted Agents that speak HTTPS.
    pub https: HttpsHandling,
}

/// What is done with the TLS of an intercepted Agent that asks for an intake name.
#[derive(Clone, Debug)]
pub enum HttpsHandling {
    /// It ends here: this makes the sessions.
    Terminate(tls::Server),
    /// It is passed through, read, and held to the policy.
    Passthrough,
    /// It is answered with an alert.
    Refuse,
}

impl HttpsHandling {
    /// Its name in `status`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Terminate(_) => "terminate",
            Self::Passthrough => "passthrough",
            Self::Refuse => "refuse",
        }
    }

    fn mode(&self) -> decide::Https {
        match self {
            Self::Terminate(_) => decide::Https::Terminate,
            Self::Passthrough => decide::Https::Passthrough,
            Self::Refuse => decide::Https::Refuse,
        }
    }
}

/// Where a connection to an intake goes.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamPlace<'a> {
    /// Whose intake it is.
    pub product: Product,
    /// The name that is verified.
    pub name: &'a str,
    /// What is resolved: the same name, the operator's endpoint, or the outbound proxy.
    pub host: &'a str,
    /// The address that is dialled.
    pub address: SocketAddr,
}

/// Takes the records of the data path. Called on the data threads, once per request or connection: it must not block.
pub trait Recorder: Send + Sync {
    /// A request ended.
    fn request(&self, record: &RequestRecord);
    /// False when nobody reads the paths of requests: then the records have none.
    fn wants_paths(&self) -> bool {
        true
    }
    /// A client connection ended.
    fn connection(&self, record: &ConnectionRecord);
    /// A client connection was accepted.
    fn connection_opened(&self, via: Via);
    /// A connection to an intake was made, and its TLS session with it.
    fn upstream_connected(&self, place: &UpstreamPlace<'_>, tls: &Negotiated);
    /// None was made, and the address is asked last for so long.
    fn upstream_failed(&self, place: &UpstreamPlace<'_>, why: &dyn Display, pause: Duration);
    /// A TLS session of an Agent was made: with us, or its own with the intake, read in passing.
    fn client_tls(&self, client: &TlsClient, tls: &ClientTls);
    /// A TLS session of an Agent with us was not made; one of [`tls::server::REASONS`].
    fn client_tls_failed(&self, reason: &'static str);
    /// A client has made a session with us and uses it.
    fn client_trusts(&self, client: &TlsClient);
    /// A client does not trust us, or may not.
    fn client_distrusts(&self, client: &TlsClient, said: &Said);
}

/// Serves `listeners`, and what `changes` brings, until `drain` becomes true (or its sender is gone), then finishes what is
/// in flight. The sender of `changes` may go earlier: then nothing changes any more.
///
/// Must run inside a [`tokio::task::LocalSet`]. Draining drops the listeners at once, lets requests in flight finish
/// (answered with `Connection: close`), and cuts what is left after `limits.drain_timeout`.
pub async fn serve<H: Handshake>(
    listeners: Vec<Listener>,
    mut changes: mpsc::UnboundedReceiver<Change>,
    shared: Arc<Shared<H>>,
    mut drain: watch::Receiver<bool>,
) {
    let thread = Rc::new(accept::Thread::new(shared));
    let sweeper = tokio::task::spawn_local(upstream::pool::sweep(
        Rc::clone(&thread.pool),
        Rc::clone(&thread.buffers),
    ));
    let mut serving = Serving {
        thread,
        loops: JoinSet::new(),
        stop: HashMap::new(),
        retire: watch::Sender::new(false),
    };
    serving.add(listeners);
    let mut changing = true;
    loop {
        tokio::select! {
            biased;
            () = drained(&mut drain) => break,
            change = changes.recv(), if changing => match change {
                Some(Change::Add(listeners)) => serving.add(listeners),
                Some(Change::AddRetiring(listeners)) => serving.add_retiring(listeners),
                Some(Change::Retire) => serving.retire(),
                Some(Change::Remove(network)) => serving.remove(network),
                None => changing = false,
            },
            Some(ended) = serving.loops.join_next(), if !serving.loops.is_empty() => told(ended),
        }
    }
    // With whatever listener is still in it.
    drop(changes);
    for stop in serving.stop.values() {
        stop.send_replace(true);
    }
    serving.retire();
    while let Some(ended) = serving.loops.join_next().await {
        told(ended);
    }
    sweeper.abort();
}

/// The listeners of one thread.
struct Serving<H> {
    thread: Rc<accept::Thread<H>>,
    loops: JoinSet<()>,
    /// By network: what tells its accept loops to drain.
    stop: HashMap<NetworkId, watch::Sender<bool>>,
    /// The same for listeners of a process before us.
    retire: watch::Sender<bool>,
}

impl<H: Handshake> Serving<H> {
    fn add(&mut self, listeners: Vec<Listener>) {
        for listener in listeners {
            let network = listener.role.network();
            self.thread
                .enter(listener.role, listener.socket.local_addr().ok());
            let stop = self
                .stop
                .entry(network)
                .or_insert_with(|| watch::Sender::new(false))
                .subscribe();
            self.loops
                .spawn_local(accept::listen(listener, Rc::clone(&self.thread), stop));
        }
    }

    fn add_retiring(&mut self, listeners: Vec<Listener>) {
        for listener in listeners {
            self.thread
                .enter(listener.role, listener.socket.local_addr().ok());
            self.loops.spawn_local(accept::listen(
                listener,
                Rc::clone(&self.thread),
                self.retire.subscribe(),
            ));
        }
    }

    fn retire(&mut self) {
        // Others may come.
        std::mem::replace(&mut self.retire, watch::Sender::new(false)).send_replace(true);
    }

    fn remove(&mut self, network: NetworkId) {
        if network.is_host() {
            return;
        }
        // Every thread hears it, also one that has none of its listeners.
        if let Some(stop) = self.stop.remove(&network) {
            stop.send_replace(true);
            self.thread.leave(network);
        }
    }
}

fn told(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an accept loop ended abnormally");
    }
}

/// Completes when draining begins; a vanished sender means the same.
async fn drained(drain: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: nobody could stop us any more, so we stop.
    drop(drain.wait_for(|draining| *draining).await);
}
