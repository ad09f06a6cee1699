//! The backend: the cheapest intake that still checks what it gets. TLS 1.3 by rustls' unbuffered interface, bodies decrypted and
//! thrown away, one answer of 15 bytes.
//!
//! Two threads, each with a runtime and one read buffer of its own. Accepted connections are dealt to them in turn: with a listener
//! each (SO_REUSEPORT) the hash would put a proxy's few connections on one thread in some rounds and not in others.
//! A request that is not as expected (another Host, no Content-Length, a body that ends early) is counted as a fault by name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::BufRead as _;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use serde_json::json;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::{ANSWER, NAME, tls};

/// One for each thread; what one read may bring.
const BUFFER: usize = 128 << 10;
/// Largest request head: those of the peers have less than 1 KiB.
const HEAD: usize = 16 << 10;

/// What was seen since the start.
#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    full: AtomicU64,
    resumed: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    suites: Mutex<BTreeMap<String, u64>>,
    faults: Mutex<BTreeMap<String, u64>>,
}

fn count(table: &Mutex<BTreeMap<String, u64>>, name: &str) {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    *table.entry(name.to_owned()).or_default() += 1;
}

/// Serves on `address` with the certificate and key of `pem`, says `ready`, and answers each line on standard input with a JSON
/// object of its counters; ends with standard input.
pub fn serve(address: SocketAddr, pem: &Path) -> Result<()> {
    let config = tls::server(pem)?;
    let counters = Arc::new(Counters::default());
    let (first, second) = (
        thread(Arc::clone(&config), Arc::clone(&counters))?,
        thread(config, Arc::clone(&counters))?,
    );
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("the backend cannot bind {address}"))?;
    // W4 without a proxy opens connections as fast as it can.
    socket2::SockRef::from(&listener).listen(4096)?;
    let seen = Arc::clone(&counters);
    std::thread::spawn(move || {
        for (stream, thread) in listener.incoming().flatten().zip([first, second].iter().cycle()) {
            seen.connections.fetch_add(1, Ordering::Relaxed);
            let _ = thread.send(stream);
        }
    });
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line?;
        println!("{}", counters.json());
    }
    Ok(())
}

impl Counters {
    fn json(&self) -> serde_json::Value {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let table = |table: &Mutex<BTreeMap<String, u64>>| {
            table.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        json!({
            "connections": get(&self.connections), "full": get(&self.full), "resumed": get(&self.resumed),
            "requests": get(&self.requests), "bytes": get(&self.bytes),
            "suites": table(&self.suites), "faults": table(&self.faults),
        })
    }
}

type Sockets = tokio::sync::mpsc::UnboundedSender<std::net::TcpStream>;

/// A thread with a runtime of its own that serves the sockets that it is sent.
fn thread(config: Arc<ServerConfig>, counters: Arc<Counters>) -> Result<Sockets> {
    let (send, mut sockets) = tokio::sync::mpsc::unbounded_channel::<std::net::TcpStream>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        let buffer = Rc::new(RefCell::new(vec![0; BUFFER]));
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            while let Some(socket) = sockets.recv().await {
                let Ok(session) = Session::new(&config, Arc::clone(&counters)) else {
                    count(&counters.faults, "no TLS session");
                    continue;
                };
                tokio::task::spawn_local(connection(socket, session, Rc::clone(&buffer)));
            }
        });
    });
    Ok(send)
}

async fn connection(socket: std::net::TcpStream, mut session: Session, buffer: Rc<RefCell<Vec<u8>>>) {
    let ready = socket
        .set_nonblocking(true)
        .and_then(|()| socket.set_nodelay(true));
    let Ok(mut stream) = ready.and_then(|()| TcpStream::from_std(socket)) else {
        count(&session.counters.faults, "socket options");
        return;
    };
    loop {
        let step = poll_fn(|context| {
            let mut buffer = buffer.borrow_mut();
            // What is left of a record stands before what is read now. Between two polls it is the connection's own.
            let held = session.left.len();
            buffer[..held].copy_from_slice(&session.left);
            let mut space = ReadBuf::new(&mut buffer[held..]);
            match Pin::new(&mut stream).poll_read(context, &mut space) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(format!("read: {:?}", error.kind()))),
                Poll::Ready(Ok(())) if space.filled().is_empty() => Poll::Ready(Ok(false)),
                Poll::Ready(Ok(())) => {
                    let length = held + space.filled().len();
                    Poll::Ready(session.feed(&mut buffer[..length]).map(|()| true))
                }
            }
        })
        .await;
        let (open, fault) = match step {
            Ok(open) => (open && !session.closing, None),
            Err(fault) => (false, Some(fault)),
        };
        if !session.out.is_empty() {
            let written = stream.write_all(&session.out).await;
            session.out.clear();
            if written.is_err() {
                return session.end(fault.or_else(|| Some("write".to_owned())));
            }
        }
        if !open {
            session.end(fault);
            let _ = stream.shutdown().await;
            return;
        }
    }
}

/// Where a connection is between requests.
enum Part {
    /// In a head, or before it; the bytes so far.
    Head(Vec<u8>),
    /// This many bytes of a body are missing.
    Body(u64),
}

struct Session {
    tls: UnbufferedServerConnection,
    counters: Arc<Counters>,
    /// Bytes of a TLS record that is not complete.
    left: Vec<u8>,
    /// What is to be written.
    out: Vec<u8>,
    part: Part,
    /// Requests that are read and not answered.
    owed: u32,
    /// The session is known and counted.
    counted: bool,
    /// The client asked for a close after the answer to the request that is being read.
    last: bool,
    /// That answer was given, or the client closed itself.
    closing: bool,
}

impl Session {
    fn new(config: &Arc<ServerConfig>, counters: Arc<Counters>) -> Result<Self> {
        Ok(Self {
            tls: UnbufferedServerConnection::new(Arc::clone(config))?,
            counters,
            left: Vec::new(),
            out: Vec::new(),
            part: Part::Head(Vec::new()),
            owed: 0,
            counted: false,
            last: false,
            closing: false,
        })
    }

    /// Takes these bytes of the connection; what is to be sent for it stands in `out`.
    fn feed(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        let mut from = 0;
        loop {
            let mut done = false;
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut bytes[from..]);
            match state.map_err(|error| format!("TLS: {error}"))? {
                ConnectionState::EncodeTlsData(mut data) => {
                    append(&mut self.out, |space| match data.encode(space) {
                        Err(EncodeError::InsufficientSize(more)) => Err(Some(more.required_size)),
                        other => other.map_err(|_| None),
                    })?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|error| format!("TLS: {error}"))?;
                        discard += record.discard;
                        read(
                            record.payload,
                            &mut self.part,
                            &self.counters,
                            &mut self.owed,
                            &mut self.last,
                        )?;
                    }
                }
                ConnectionState::WriteTraffic(mut traffic) => {
                    self.closing |= self.last && self.owed > 0;
                    for _ in 0..std::mem::take(&mut self.owed) {
                        let answer = answer(self.closing);
                        append(&mut self.out, |space| match traffic.encrypt(&answer, space) {
                            Err(EncryptError::InsufficientSize(more)) => Err(Some(more.required_size)),
                            other => other.map_err(|_| None),
                        })?;
                    }
                    if self.closing {
                        append(&mut self.out, |space| match traffic.queue_close_notify(space) {
                            Err(EncryptError::InsufficientSize(more)) => Err(Some(more.required_size)),
                            other => other.map_err(|_| None),
                        })?;
                    }
                    done = true;
                }
                ConnectionState::PeerClosed => self.closing = true,
                ConnectionState::BlockedHandshake | ConnectionState::Closed => done = true,
                _ => return Err("TLS: early data, which was not offered".to_owned()),
            }
            from += discard;
            if done {
                break;
            }
        }
        self.left.clear();
        self.left.extend_from_slice(&bytes[from..]);
        if self.left.len() > BUFFER / 2 {
            return Err("TLS: a record without an end".to_owned());
        }
        self.count_session();
        Ok(())
    }

    /// Counts the handshake when it is complete.
    fn count_session(&mut self) {
        if self.counted || self.tls.is_handshaking() {
            return;
        }
        self.counted = true;
        match self.tls.handshake_kind() {
            Some(rustls::HandshakeKind::Resumed) => &self.counters.resumed,
            _ => &self.counters.full,
        }
        .fetch_add(1, Ordering::Relaxed);
        let suite = self
            .tls
            .negotiated_cipher_suite()
            .map(|suite| format!("{:?}", suite.suite()));
        count(&self.counters.suites, &suite.unwrap_or_default());
    }

    /// The connection is over: was it in the middle of something?
    fn end(&self, fault: Option<String>) {
        let named = fault.filter(|fault| fault.starts_with("request:") || fault.starts_with("TLS:"));
        let cut = match &self.part {
            _ if named.is_some() => named,
            Part::Body(_) => Some("closed within a body".to_owned()),
            Part::Head(head) if !head.is_empty() => Some("closed within a head".to_owned()),
            // Between two requests everybody may go as he likes.
            Part::Head(_) => None,
        };
        if let Some(cut) = cut {
            count(&self.counters.faults, &cut);
        }
    }
}

/// Lets `encode` write at the end of `out`; it says how many bytes it wrote, or (in its error) how many it needs.
fn append(
    out: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), String> {
    let used = out.len();
    out.resize(used + 1024, 0);
    let mut written = encode(&mut out[used..]);
    if let Err(Some(required)) = written {
        out.resize(used + required, 0);
        written = encode(&mut out[used..]);
    }
    let written = written.map_err(|_| "TLS: cannot encode".to_owned())?;
    out.truncate(used + written);
    Ok(())
}

fn answer(close: bool) -> Vec<u8> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n{connection}\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(ANSWER);
    bytes
}

/// Reads what is in clear text now: heads are checked, bodies counted and thrown away.
fn read(
    mut bytes: &[u8],
    part: &mut Part,
    counters: &Counters,
    owed: &mut u32,
    last: &mut bool,
) -> Result<(), String> {
    while !bytes.is_empty() {
        match part {
            Part::Body(missing) => {
                let here = usize::try_from(*missing).map_or(bytes.len(), |missing| missing.min(bytes.len()));
                counters.bytes.fetch_add(here as u64, Ordering::Relaxed);
                bytes = &bytes[here..];
                *missing -= here as u64;
            }
            Part::Head(held) => {
                let before = held.len();
                held.extend_from_slice(&bytes[..bytes.len().min(HEAD)]);
                let Some(head) = Head::parse(held)? else {
                    if held.len() >= HEAD {
                        return Err("request: a head without an end".to_owned());
                    }
                    return Ok(());
                };
                bytes = &bytes[head.length - before..];
                *last |= head.close;
                *part = Part::Body(head.body);
            }
        }
        if matches!(part, Part::Body(0)) {
            *part = Part::Head(Vec::new());
            counters.requests.fetch_add(1, Ordering::Relaxed);
            *owed += 1;
        }
    }
    Ok(())
}

/// What matters of a request's head.
struct Head {
    length: usize,
    body: u64,
    close: bool,
}

impl Head {
    /// Nothing while it is not complete.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("request: {error}")),
        };
        let (mut body, mut host, mut close) = (None, false, false);
        for header in request.headers.iter() {
            let value = std::str::from_utf8(header.value).unwrap_or_default();
            match header.name.to_ascii_lowercase().as_str() {
                "content-length" => body = value.parse().ok(),
                "host" => host = value == NAME,
                "connection" => close = value.eq_ignore_ascii_case("close"),
                "transfer-encoding" => return Err("request: Transfer-Encoding".to_owned()),
                _ => {}
            }
        }
        if !host {
            return Err("request: not the intake's Host".to_owned());
        }
        let body = body.ok_or("request: no Content-Length")?;
        Ok(Some(Self { length, body, close }))
    }
}
