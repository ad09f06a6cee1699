//! An intake that breaks on purpose: every connection plays a script of [`Step`]s, over real TLS or below it. Without a script it
//! is a plain good intake, so that a case sees the end of a fault, too.
//!
//! [`crate::intake`] judges what it gets; this one is about what it gives. It is written with blocking sockets and a thread for
//! each connection: a script reads from top to bottom.

mod peer;
mod record;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};

use crate::ca::Leaf;
use crate::intake::{Session, server_config};
use crate::netns::Host;

use peer::Peer;

/// How often a waiting thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// One thing that a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads a record of TLS as it is on the wire: the ClientHello.
    Hello,
    /// Shakes hands.
    Shake(Kind),
    /// Reads the head of a request.
    Head,
    /// Reads a request to its end.
    Request,
    /// Reads so many bytes of a body.
    Body(usize),
    /// Reads frames of HTTP/2 until a request has ended.
    Stream,
    /// Writes this, within the session if there is one.
    Send(&'static [u8]),
    /// The same, each byte in a record and a segment of its own.
    ByByte(&'static [u8]),
    /// The same so many times.
    Repeat(&'static [u8], usize),
    /// Writes this below TLS.
    Clear(&'static [u8]),
    /// Writes a record of this content type into the session: alerts and handshake messages that no library sends.
    Sealed(u8, &'static [u8]),
    /// Does nothing for so many milliseconds.
    Pause(u64),
    /// Does nothing, and reads nothing, until the fault is over.
    Stall,
    /// Ends the session as TLS wants it.
    Notify,
    /// Ends our side of TCP, and stalls.
    Close,
    /// RST.
    Reset,
}

/// How a handshake goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As both like it best, HTTP/1.1.
    Best,
    /// TLS 1.2 only.
    Tls12,
    /// HTTP/2.
    Http2,
    /// As [`Kind::Best`], each byte of ours in a segment of its own.
    ByByte,
}

/// How open connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    /// `close_notify` and the end of TCP.
    Gently,
    /// RST.
    Reset,
}

/// Who plays the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// Each new connection.
    Every,
    /// The next connection.
    First,
}

/// A running intake; stops when dropped.
pub struct Hostile {
    shared: Arc<Shared>,
    accepting: Vec<JoinHandle<()>>,
}

/// What the connections share.
struct Shared {
    stop: AtomicBool,
    configs: Mutex<Configs>,
    script: Mutex<Option<(&'static [Step], Times)>>,
    /// Grows when a fault begins or ends.
    faults: AtomicU64,
    /// Grows when open connections are to end; the last word on how.
    hang_ups: AtomicU64,
    hang_up: Mutex<HangUp>,
    connections: AtomicU64,
    /// Decrypted bytes from peers.
    bytes: AtomicU64,
    heads: Mutex<Vec<String>>,
    sessions: Mutex<Vec<Session>>,
    mistakes: Mutex<Vec<String>>,
}

/// The same certificate for each kind of handshake.
#[derive(Clone)]
struct Configs {
    best: Arc<ServerConfig>,
    tls12: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
}

impl Configs {
    fn new(leaf: &Leaf) -> Result<Self> {
        let make = |versions, protocol: &[u8]| -> Result<_> {
            let mut config = server_config(aws_lc_rs::default_provider(), versions, leaf, None)?;
            config.alpn_protocols.push(protocol.to_vec());
            // For `Step::Sealed`.
            config.enable_secret_extraction = true;
            Ok(Arc::new(config))
        };
        Ok(Self {
            best: make(&[&TLS13, &TLS12], b"http/1.1")?,
            tls12: make(&[&TLS12], b"http/1.1")?,
            http2: make(&[&TLS13, &TLS12], b"h2")?,
        })
    }
}

impl Hostile {
    /// Binds port 443 of these addresses on a host; a good intake at first.
    pub fn start(host: &Host, addresses: &[IpAddr], leaf: &Leaf) -> Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            configs: Mutex::new(Configs::new(leaf)?),
            script: Mutex::default(),
            faults: AtomicU64::new(0),
            hang_ups: AtomicU64::new(0),
            hang_up: Mutex::new(HangUp::Gently),
            connections: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            heads: Mutex::default(),
            sessions: Mutex::default(),
            mistakes: Mutex::default(),
        });
        let mut accepting = Vec::new();
        for address in addresses {
            let address = SocketAddr::new(*address, 443);
            let listener = host.within(|| {
                TcpListener::bind(address).with_context(|| format!("the intake cannot bind {address}"))
            })?;
            listener.set_nonblocking(true)?;
            let shared = Arc::clone(&shared);
            accepting.push(std::thread::spawn(move || accept(&listener, &shared)));
        }
        Ok(Self { shared, accepting })
    }

    /// From now on, new connections play this script.
    pub fn play(&self, script: &'static [Step], times: Times) {
        self.shared.faults.fetch_add(1, Ordering::SeqCst);
        *lock(&self.shared.script) = Some((script, times));
    }

    /// From now on, new connections are served well; those that stall end.
    pub fn behave(&self) {
        self.shared.faults.fetch_add(1, Ordering::SeqCst);
        *lock(&self.shared.script) = None;
    }

    /// New connections get this certificate.
    pub fn certificate(&self, leaf: &Leaf) -> Result<()> {
        *lock(&self.shared.configs) = Configs::new(leaf)?;
        Ok(())
    }

    /// Ends the connections that are open and idle, as a restart does.
    pub fn hang_up(&self, how: HangUp) {
        *lock(&self.shared.hang_up) = how;
        self.shared.hang_ups.fetch_add(1, Ordering::SeqCst);
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many bytes of requests were read.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// The `x-test-id` of every head of HTTP/1.1 that was read.
    pub fn heads(&self) -> Vec<String> {
        lock(&self.shared.heads).clone()
    }

    /// Why a script could not be played, other than by its peer's doing.
    pub fn mistakes(&self) -> Vec<String> {
        lock(&self.shared.mistakes).clone()
    }

    /// Every TLS session.
    pub fn sessions(&self) -> Vec<Session> {
        lock(&self.shared.sessions).clone()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.accepting.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The script of a new connection.
    fn script(&self) -> Option<&'static [Step]> {
        let mut script = lock(&self.script);
        let (steps, times) = (*script)?;
        if times == Times::First {
            *script = None;
        }
        Some(steps)
    }

    fn config(&self, kind: Kind) -> Arc<ServerConfig> {
        let configs = lock(&self.configs);
        Arc::clone(match kind {
            Kind::Best | Kind::ByByte => &configs.best,
            Kind::Tls12 => &configs.tls12,
            Kind::Http2 => &configs.http2,
        })
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut open: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stop.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(shared);
                open.push(std::thread::spawn(move || connection(stream, shared)));
            }
            Err(_) => std::thread::sleep(LOOK / 4),
        }
        open.retain(|thread| !thread.is_finished());
    }
    for thread in open {
        let _ = thread.join();
    }
}

/// An error ends the connection, as it would anywhere: what it means for the other side is what the cases are about.
fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let script = shared.script();
    let Ok(mut peer) = Peer::new(stream, shared) else {
        return;
    };
    let _ = match script {
        Some(steps) => steps.iter().try_for_each(|step| peer.step(*step)),
        None => peer.behave(),
    };
}

/// A poisoned lock only means that another thread of a failing test panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
