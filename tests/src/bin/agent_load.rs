//! A load client that behaves like many Agents: blocking sockets, one request after the other, a digest in each request,
//! a close that recycles the port. Prints one JSON report.
//!
//! `agent-load --url http://host/path… [--clients 1] [--requests 0] [--body 0] [--ip 4|6|both] [--per-connection 1]
//! [--api-key KEY] [--interval-ms 0] [--rate 0] [--retries 0] [--timeout-s 30] [--name load]`; `--requests 0` runs until
//! standard input closes. `--interval-ms` is a pause between two requests of a client. `--rate` is an open loop: so many requests a
//! second begin, all clients together, each by the next client that is free, whatever became of those before; what is late because
//! all clients wait is made up for, and its time counts from when it was due.
//!
//! `--retries` sends what was not answered 2xx again, with the same id, as the Agent's forwarder does with every transaction
//! (`HTTPTransaction` in `comp/forwarder/defaultforwarder`): whatever failed, however far it got, but for 400, 403 and 413. Each try
//! has its number in `x-test-try`. The report names the ids of what was sent again, and of each try that failed why and the local port
//! of its connection; an answer counts once, the last one.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

struct Options {
    targets: Vec<Target>,
    clients: u64,
    requests: u64,
    body: usize,
    per_connection: u64,
    api_key: String,
    interval: Duration,
    /// Requests a second; 0: closed loop.
    rate: u32,
    retries: u32,
    timeout: Duration,
    name: String,
}

#[derive(Clone)]
struct Target {
    host: String,
    path: String,
    address: SocketAddr,
}

#[derive(Default)]
struct Counts {
    attempts: u64,
    connects: u64,
    statuses: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    /// By id: what became of each try before the last.
    again: BTreeMap<String, Vec<Value>>,
    slowest_ms: u64,
}

/// Between two tries of one request, times the tries so far.
const BACKOFF: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    let options = options()?;
    let stop = AtomicBool::new(false);
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    let counts = Mutex::new(Counts::default());
    if options.requests == 0 {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..options.clients)
                .map(|_| scope.spawn(|| client(&options, begun, &next, &stop, &counts)))
                .collect();
            let mut ignored = Vec::new();
            let _ = std::io::stdin().read_to_end(&mut ignored);
            stop.store(true, Ordering::Relaxed);
            for thread in threads {
                let _ = thread.join();
            }
        });
    } else {
        std::thread::scope(|scope| {
            for _ in 0..options.clients {
                scope.spawn(|| client(&options, begun, &next, &stop, &counts));
            }
        });
    }
    let counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
    let report = json!({
        "attempts": counts.attempts,
        "connects": counts.connects,
        "statuses": counts.statuses,
        "errors": counts.errors,
        "again": counts.again,
        "slowest_ms": counts.slowest_ms,
    });
    println!("{report}");
    Ok(())
}

/// One client: takes the next request number until there is none left.
fn client(options: &Options, begun: Instant, next: &AtomicU64, stop: &AtomicBool, counts: &Mutex<Counts>) {
    let mut mine = Counts::default();
    let mut connection: Option<Connection> = None;
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if options.requests != 0 && number >= options.requests {
            break;
        }
        // A fixed target per connection: a kept connection serves one host.
        let target = &options.targets[usize::try_from(number).unwrap_or(0) % options.targets.len()];
        if options.targets.len() > 1 {
            connection = None;
        }
        mine.attempts += 1;
        let start = match options.rate {
            0 => Instant::now(),
            rate => {
                let due = begun + Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due
            }
        };
        let mut tries = 0;
        loop {
            let mut port = None;
            let answer = request(
                options,
                target,
                (number, tries),
                &mut connection,
                &mut port,
                &mut mine.connects,
            );
            if answer.is_err() {
                connection = None;
            }
            let why = match &answer {
                // Nothing to send again, or dropped by the Agent.
                Ok(200..300 | 400 | 403 | 413) => None,
                Ok(status) => Some(status.to_string()),
                Err(kind) => Some(kind.clone()),
            };
            if let Some(why) = why.filter(|_| tries < options.retries) {
                tries += 1;
                let id = format!("{}-{number}", options.name);
                let failed = json!({"why": why, "port": port});
                mine.again.entry(id).or_default().push(failed);
                std::thread::sleep(BACKOFF * tries);
                continue;
            }
            match answer {
                Ok(status) => *mine.statuses.entry(status.to_string()).or_default() += 1,
                Err(kind) => *mine.errors.entry(kind).or_default() += 1,
            }
            break;
        }
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        mine.slowest_ms = mine.slowest_ms.max(took);
        if !options.interval.is_zero() {
            std::thread::sleep(options.interval);
        }
    }
    let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
    all.attempts += mine.attempts;
    all.connects += mine.connects;
    all.slowest_ms = all.slowest_ms.max(mine.slowest_ms);
    all.again.extend(mine.again);
    for (key, count) in mine.statuses {
        *all.statuses.entry(key).or_default() += count;
    }
    for (key, count) in mine.errors {
        *all.errors.entry(key).or_default() += count;
    }
}

/// A connection, and how many requests it has served.
type Connection = (TcpStream, u64);

/// One try of a request, by the number of both; the error is its kind. `port` becomes the local one of its connection.
fn request(
    options: &Options,
    target: &Target,
    (number, tries): (u64, u32),
    connection: &mut Option<Connection>,
    port: &mut Option<u16>,
    connects: &mut u64,
) -> Result<u16, String> {
    let (mut stream, served) = match connection.take().filter(|(stream, _)| is_open(stream)) {
        Some(open) => open,
        None => {
            *connects += 1;
            (connect(options, target)?, 0)
        }
    };
    *port = stream.local_addr().ok().map(|address| address.port());
    let body = body(options.body, number);
    let head = format!(
        "{} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: datadog-agent/7.81.0\r\nDD-API-KEY: {}\r\nContent-Type: application/json\r\n\
         x-test-id: {}-{number}\r\nx-test-try: {tries}\r\nx-test-sha256: {}\r\nContent-Length: {}\r\n\r\n",
        if body.is_empty() { "GET" } else { "POST" },
        target.path,
        target.host,
        options.api_key,
        options.name,
        harness::sha256(&body),
        body.len(),
    );
    // A server may answer before it has read everything: read the answer even when writing failed.
    let written = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&body));
    let (status, kept) = response(&mut stream).map_err(|kind| match written {
        Ok(()) => kind,
        Err(error) => format!("write_{:?}", error.kind()),
    })?;
    if kept && served + 1 < options.per_connection {
        *connection = Some((stream, served + 1));
    } else {
        // RST in place of TIME_WAIT: the port is free for the next connect at once.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
    Ok(status)
}

/// Go's clients notice the end of an idle connection before they use it again.
fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream
        .set_nonblocking(true)
        .and_then(|()| stream.peek(&mut [0]))
        .map_err(|error| error.kind());
    stream.set_nonblocking(false).is_ok() && peeked == Err(std::io::ErrorKind::WouldBlock)
}

fn connect(options: &Options, target: &Target) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&target.address, options.timeout).map_err(|error| {
        // EPERM has its own name: an old kernel's way to fail closed.
        format!("connect_{:?}", error.kind())
    })?;
    let peer = stream
        .peer_addr()
        .map_err(|error| format!("peer_{:?}", error.kind()))?;
    if peer != target.address {
        return Err("peer_is_not_the_original_destination".to_owned());
    }
    // As Go's clients do.
    stream.set_nodelay(true).map_err(|_| "option".to_owned())?;
    stream
        .set_read_timeout(Some(options.timeout))
        .map_err(|_| "option".to_owned())?;
    stream
        .set_write_timeout(Some(options.timeout))
        .map_err(|_| "option".to_owned())?;
    Ok(stream)
}

/// Reads one response to its end; its status, and whether the server keeps the connection.
fn response(stream: &mut TcpStream) -> Result<(u16, bool), String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let status: u16 = head
                .get(9..12)
                .and_then(|word| word.parse().ok())
                .ok_or("not_http")?;
            let body = &bytes[end + 4..];
            let value = |name: &str| {
                head.lines()
                    .find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
            };
            let complete = match value("content-length:") {
                Some(length) => body.len() >= length.parse::<usize>().map_err(|_| "content_length")?,
                None => value("transfer-encoding:").is_none() || body.ends_with(b"0\r\n\r\n"),
            };
            if (100..200).contains(&status) {
                bytes.drain(..end + 4);
                continue;
            }
            if complete {
                let close = value("connection:").is_some_and(|value| value.contains("close"));
                return Ok((status, !close));
            }
        }
        match stream.read(&mut piece) {
            Ok(0) => return Err("closed_without_response".to_owned()),
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
            Err(error) => return Err(format!("read_{:?}", error.kind())),
        }
    }
}

/// Bytes that differ between requests and do not compress (xorshift).
fn body(length: usize, number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

fn options() -> Result<Options> {
    let mut options = Options {
        targets: Vec::new(),
        clients: 1,
        requests: 0,
        body: 0,
        per_connection: 1,
        api_key: "none".to_owned(),
        interval: Duration::ZERO,
        rate: 0,
        retries: 0,
        timeout: Duration::from_secs(30),
        name: "load".to_owned(),
    };
    let mut urls = Vec::new();
    let mut family = "4".to_owned();
    let mut words = std::env::args().skip(1);
    while let Some(key) = words.next() {
        let value = words.next().with_context(|| format!("{key} wants a value"))?;
        match key.as_str() {
            "--url" => urls.push(value),
            "--ip" => family = value,
            "--clients" => options.clients = value.parse()?,
            "--requests" => options.requests = value.parse()?,
            "--body" => options.body = value.parse()?,
            "--per-connection" => options.per_connection = value.parse()?,
            "--api-key" => options.api_key = value,
            "--interval-ms" => options.interval = Duration::from_millis(value.parse()?),
            "--rate" => options.rate = value.parse()?,
            "--retries" => options.retries = value.parse()?,
            "--timeout-s" => options.timeout = Duration::from_secs(value.parse()?),
            "--name" => options.name = value,
            _ => bail!("unknown option {key}"),
        }
    }
    for url in urls {
        options.targets.extend(resolve(&url, &family)?);
    }
    if options.targets.is_empty() {
        bail!("--url is missing, or no address of family {family}");
    }
    Ok(options)
}

/// The targets of a URL: one per wanted address family.
fn resolve(url: &str, family: &str) -> Result<Vec<Target>> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("{url}: only http:// is spoken"))?;
    let (host, path) = rest
        .split_once('/')
        .with_context(|| format!("{url} has no path"))?;
    let socket = if host.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut addresses: Vec<SocketAddr> = socket
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {host}"))?
        .collect();
    addresses.retain(|address| match family {
        "4" => address.is_ipv4(),
        "6" => address.is_ipv6(),
        _ => true,
    });
    addresses.sort();
    addresses.dedup();
    Ok(addresses
        .into_iter()
        .map(|address| Target {
            host: host.to_owned(),
            path: format!("/{path}"),
            address,
        })
        .collect())
}
