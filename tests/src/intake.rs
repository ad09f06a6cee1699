//! A strict TLS intake: records every request, checks what an intake checks, and misbehaves on demand.
//!
//! It is not one of the proxy's own parts turned round: HTTP/1.1 is parsed here by hand ([`http1`]), so that a request
//! which the proxy's library would forgive is a recorded fault.

mod http1;
mod http2;
mod tls;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::ca::Leaf;
use crate::netns::Host;

pub use tls::{Peer, Session};
pub(crate) use tls::{server_config, session};

/// How an intake is set up.
pub struct Options {
    /// Where it listens; every address with `port`.
    pub addresses: Vec<IpAddr>,
    /// 443 but for a gateway.
    pub port: u16,
    /// Its certificate.
    pub leaf: Leaf,
    /// Which TLS it speaks.
    pub peer: Peer,
    /// Offer HTTP/2 in ALPN.
    pub http2: bool,
    /// Refuse other keys with 403 and record a fault; none: any key will do.
    pub api_key: Option<String>,
}

/// What the intake answers to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 202 and a short JSON body.
    Accepted,
    /// This status and body.
    Status(u16, String),
    /// 202 after a pause before the response head.
    Slow(Duration),
    /// 202, with a pause in the middle of the body.
    SlowBody(Duration),
    /// 103, then 202.
    EarlyHints,
    /// 202 with legal but odd chunks: single bytes, leading zeros, an extension, a trailer.
    OddChunks,
    /// 200 without a length: the body ends with the connection.
    UntilClose(String),
    /// RST before any byte of the response.
    ResetBeforeHead,
    /// RST in the middle of the response head.
    ResetInHead,
    /// RST in the middle of the response body.
    ResetInBody,
    /// 202, then close without having said so.
    CloseAfter,
    /// 202, then close when the next request's first byte arrives, as an intake whose idle time-out races a request.
    CloseOnNext,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Number of the TLS connection.
    pub connection: u64,
    /// The address that was dialled.
    pub local: SocketAddr,
    /// The client as the intake sees it: behind masquerading, the node.
    pub peer: SocketAddr,
    /// TLS session.
    pub session: Session,
    /// `1.1` or `2`.
    pub http: &'static str,
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Host header, or authority.
    pub host: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body bytes after chunked decoding.
    pub body_len: u64,
    /// Lower-case hexadecimal.
    pub body_sha256: String,
    /// What an intake would have refused, or should never meet.
    pub faults: Vec<String>,
}

impl Seen {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The path without query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// A connection that never became a TLS session.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why, as the intake saw it.
    pub error: String,
    /// Bytes after the client's hello, alerts and handshake records apart: must be zero.
    pub application_bytes: u64,
}

/// A running intake; stops when dropped.
pub struct Intake {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the connections share.
struct Shared {
    api_key: Option<String>,
    connections: AtomicU64,
    dropping: AtomicBool,
    sessions: Mutex<Vec<Session>>,
    seen: Mutex<Vec<Seen>>,
    refused: Mutex<Vec<Refused>>,
    clear: Mutex<Vec<Vec<u8>>>,
    answers: Mutex<HashMap<String, Answer>>,
    /// Whose bodies are kept: paths that begin so.
    keep: Mutex<Option<String>>,
    bodies: Mutex<Vec<Vec<u8>>>,
}

impl Intake {
    /// Binds on `host`, or here when there is none, and serves on a thread of its own.
    pub fn start(host: Option<&Host>, options: Options) -> Result<Self> {
        Self::gateway(host, options, None)
    }

    /// The same; with `clients`, as a gateway that lets in who has a certificate of that authority.
    pub fn gateway(
        host: Option<&Host>,
        options: Options,
        clients: Option<CertificateDer<'static>>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            api_key: options.api_key.clone(),
            connections: AtomicU64::new(0),
            dropping: AtomicBool::new(false),
            sessions: Mutex::default(),
            seen: Mutex::default(),
            refused: Mutex::default(),
            clear: Mutex::default(),
            answers: Mutex::default(),
            keep: Mutex::default(),
            bodies: Mutex::default(),
        });
        let namespace = host.map(Host::namespace).transpose()?;
        let (ready, bound) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("intake".to_owned())
            .spawn(move || {
                let run = || -> Result<()> {
                    if let Some(namespace) = namespace {
                        setns(&namespace, CloneFlags::CLONE_NEWNET)
                            .context("cannot enter the network namespace")?;
                    }
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()?;
                    runtime.block_on(serve(options, clients, state, &ready, stopped))
                };
                if let Err(error) = run() {
                    let _ = ready.send(Err(error));
                }
            })?;
        bound.recv().map_err(|_| anyhow!("the intake's thread died"))??;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Every request so far, in order of completion.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// How many requests so far.
    pub fn count(&self) -> usize {
        lock(&self.shared.seen).len()
    }

    /// Takes what was seen so far.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.shared.seen))
    }

    /// What each TLS session agreed on, with requests or without.
    pub fn sessions(&self) -> Vec<Session> {
        lock(&self.shared.sessions).clone()
    }

    /// Connections that failed before a session.
    pub fn refused(&self) -> Vec<Refused> {
        lock(&self.shared.refused).clone()
    }

    /// First bytes of connections to the TLS port that were not TLS.
    pub fn clear(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.clear).clone()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// From now on, answers requests for `path` like this.
    pub fn answer(&self, path: &str, answer: Answer) {
        lock(&self.shared.answers).insert(path.to_owned(), answer);
    }

    /// From now on, keeps the bodies of requests for paths that begin so.
    pub fn keep_bodies(&self, prefix: &str) {
        *lock(&self.shared.keep) = Some(prefix.to_owned());
    }

    /// Takes the bodies that were kept so far.
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.shared.bodies))
    }

    /// From now on, closes connections as soon as they are accepted (or not).
    pub fn set_dropping(&self, dropping: bool) {
        self.shared.dropping.store(dropping, Ordering::Relaxed);
    }

    /// Every fault of every request, for one assertion that all was well.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.shared.seen)
            .iter()
            .flat_map(|seen| {
                seen.faults
                    .iter()
                    .map(move |fault| format!("{} {}: {fault}", seen.method, seen.path()))
            })
            .collect()
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    options: Options,
    clients: Option<CertificateDer<'static>>,
    shared: Arc<Shared>,
    ready: &std::sync::mpsc::Sender<Result<()>>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let acceptor = Arc::new(tls::Acceptor::new(
        &options.leaf,
        options.peer,
        options.http2,
        clients,
    )?);
    for address in options.addresses {
        let address = SocketAddr::new(address, options.port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("the intake cannot bind {address}"))?;
        tokio::spawn(accept(listener, Arc::clone(&acceptor), Arc::clone(&shared)));
    }
    let _ = ready.send(Ok(()));
    let _ = stopped.await;
    Ok(())
}

async fn accept(listener: TcpListener, acceptor: Arc<tls::Acceptor>, shared: Arc<Shared>) {
    loop {
        // A client that is gone before accept is no reason to stop listening.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        if shared.dropping.load(Ordering::Relaxed) {
            continue;
        }
        tokio::spawn(connection(
            stream,
            number,
            Arc::clone(&acceptor),
            Arc::clone(&shared),
        ));
    }
}

async fn connection(stream: TcpStream, number: u64, acceptor: Arc<tls::Acceptor>, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut first = [0; 256];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return,
        // A TLS record that carries a handshake begins with 22.
        Ok(length) if first[0] != 22 => {
            lock(&shared.clear).push(first[..length].to_vec());
            return;
        }
        Ok(_) => {}
    }
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
        return;
    };
    match acceptor.accept(stream).await {
        Err(refused) => lock(&shared.refused).push(refused),
        Ok(stream) => {
            let session = session(stream.get_ref().1);
            lock(&shared.sessions).push(session.clone());
            let connection = Connection {
                number,
                local,
                peer,
                session,
                shared,
            };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                http2::serve(stream, connection).await;
            } else {
                http1::serve(stream, &connection).await;
            }
        }
    }
}

/// One TLS connection's facts.
struct Connection {
    number: u64,
    local: SocketAddr,
    peer: SocketAddr,
    session: Session,
    shared: Arc<Shared>,
}

/// A request head, however it was encoded.
struct Head {
    method: String,
    target: String,
    host: String,
    headers: Vec<(String, String)>,
    faults: Vec<String>,
}

impl Connection {
    /// Where to keep the body of a request for `target`, if it is to be kept.
    fn kept(&self, target: &str) -> Option<Vec<u8>> {
        let keep = lock(&self.shared.keep);
        keep.as_deref()
            .is_some_and(|prefix| target.starts_with(prefix))
            .then(Vec::new)
    }

    /// Keeps it.
    fn keep(&self, body: Option<Vec<u8>>) {
        lock(&self.shared.bodies).extend(body);
    }

    /// Checks and records a request; tells the answer.
    fn record(&self, http: &'static str, head: Head, body_len: u64, body_sha256: String) -> Answer {
        let mut seen = Seen {
            connection: self.number,
            local: self.local,
            peer: self.peer,
            session: self.session.clone(),
            http,
            method: head.method,
            target: head.target,
            host: head.host,
            headers: head.headers,
            body_len,
            body_sha256,
            faults: head.faults,
        };
        let refusal = self.inspect(&mut seen);
        let answer = lock(&self.shared.answers).get(seen.path()).cloned();
        lock(&self.shared.seen).push(seen);
        refusal.or(answer).unwrap_or(Answer::Accepted)
    }

    /// What a real intake would check.
    fn inspect(&self, seen: &mut Seen) -> Option<Answer> {
        if seen.session.sni.as_deref() != Some(seen.host.as_str()) {
            let fault = format!("host {} under SNI {:?}", seen.host, seen.session.sni);
            seen.faults.push(fault);
        }
        if let Some(expected) = seen.header("x-test-sha256").map(str::to_owned)
            && expected != seen.body_sha256
        {
            seen.faults.push(format!(
                "body {} is not the one sent ({expected})",
                seen.body_sha256
            ));
        }
        const ENCODINGS: &[&str] = &["identity", "gzip", "deflate", "zstd", "zstd1"];
        if let Some(encoding) = seen.header("content-encoding").map(str::to_owned)
            && !ENCODINGS.contains(&encoding.as_str())
        {
            seen.faults.push(format!("content-encoding {encoding}"));
        }
        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "upgrade",
            "via",
            "x-forwarded-for",
            "forwarded",
        ] {
            if seen.header(name).is_some() {
                seen.faults.push(format!("a proxy must not send {name}"));
            }
        }
        if let Some(key) = &self.shared.api_key {
            let query = seen
                .target
                .split_once("api_key=")
                .map(|(_, rest)| rest.split('&').next().unwrap_or(rest));
            if seen.header("dd-api-key").or(query) != Some(key) {
                seen.faults.push("wrong or no API key".to_owned());
                return Some(Answer::Status(403, r#"{"errors":["Forbidden"]}"#.to_owned()));
            }
        }
        None
    }
}

/// A poisoned lock only means that another thread of a failing test panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
