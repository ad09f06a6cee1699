//! The load generator: requests as an Agent sends them, over clear text, TLS or HTTP/2, in a closed or an open loop.
//!
//! A run is a warm-up and then windows, with a rest before and behind each. At a rest nothing is in flight, so that whoever measures
//! can read every process's CPU clock before and after, and divide by exactly the requests that lie between. Connections are kept over
//! a rest.
//!
//! Protocol: it prints `warm`, and for every line that it reads from then on it works for one window and prints one JSON object. It
//! stays until standard input ends, so that its own CPU time can still be read.

mod closed;
mod http2;
mod paced;
mod wire;

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustls::ClientConfig;
use serde_json::{Map, Value};

use super::figures::quantiles;
use super::histogram::Histogram;
use super::options::Words;
use super::{NAME, PATH, tls};

/// How much later than planned the last answer may come; what is then still missing counts as `unanswered`.
const GRACE: Duration = Duration::from_secs(10);
/// Closed-loop and HTTP/2 clients share this many threads.
const THREADS: usize = 2;
/// Requests at once on one HTTP/2 connection.
const STREAMS: usize = 16;

/// What kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Each connection sends the next request when the last was answered.
    Kept,
    /// The same, and each request has a connection of its own, which the server closes.
    New,
    /// Open loop: requests begin when they are due, whatever became of those before.
    Paced,
    /// Closed loop over HTTP/2.
    Http2,
    /// One request on each connection, which is then held.
    Idle,
}

/// What every client of a run shares.
struct Plan {
    mode: Mode,
    connect: SocketAddr,
    connections: usize,
    /// Requests a second, all connections together; open loop only.
    rate: u32,
    body: usize,
    host: String,
    tls: Option<Arc<ClientConfig>>,
    warmup: Duration,
    window: Duration,
    /// A whole HTTP/1.1 request.
    request: Vec<u8>,
}

/// What a run, or a part of it, found.
#[derive(Default)]
struct Tally {
    times: Histogram,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, result: Result<(), String>, since: Instant) {
        match result {
            Ok(()) => self.times.record(nanoseconds(since.elapsed())),
            Err(kind) => *self.errors.entry(kind).or_default() += 1,
        }
    }

    fn merge(&mut self, other: Self) {
        self.times.merge(&other.times);
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the threads of a run come together: behind the warm-up, and behind every window.
struct Rest {
    done: Sender<Result<Tally, String>>,
    go: Receiver<Instant>,
}

impl Rest {
    /// Hands over what was done since the last rest, and waits for the word: the moment at which the next window begins, or nothing when
    /// there is none.
    fn rest(&self, done: Tally) -> Option<Instant> {
        self.done.send(Ok(done)).ok()?;
        self.go.recv().ok()
    }
}

/// Runs the role.
pub fn run(words: &[String]) -> Result<()> {
    let plan = Arc::new(plan(words)?);
    let threads = match plan.mode {
        Mode::Paced => plan.connections,
        _ => THREADS,
    };
    let (done, finished) = channel();
    let mut words_to_go = Vec::new();
    let mut workers = Vec::new();
    for index in 0..threads {
        let (go, wait) = channel();
        words_to_go.push(go);
        let (plan, done) = (Arc::clone(&plan), done.clone());
        workers.push(std::thread::spawn(move || {
            let rest = Rest {
                done: done.clone(),
                go: wait,
            };
            let result = match plan.mode {
                Mode::Paced => paced::run(&plan, index, &rest),
                Mode::Http2 => http2::run(&plan, index, &rest),
                Mode::Kept | Mode::New | Mode::Idle => closed::run(&plan, index, &rest),
            };
            if let Err(error) = result {
                // Nobody listens any more once another thread has failed.
                let _ = done.send(Err(error));
            }
        }));
    }
    drop(done);
    // Failures of the warm-up count: what fails there fails in the window, or hides something.
    let mut all = together(&finished, threads)?;
    println!("warm");
    let mut input = std::io::stdin().lock().lines();
    while input.next().transpose()?.is_some() {
        let start = Instant::now();
        for go in &words_to_go {
            // A thread that is gone says why below.
            let _ = go.send(start);
        }
        all.merge(together(&finished, threads)?);
        println!("{}", report(&std::mem::take(&mut all), start)?);
    }
    drop(words_to_go);
    for worker in workers {
        if worker.join().is_err() {
            bail!("a thread of the load generator panicked");
        }
    }
    Ok(())
}

/// What all threads did until this rest.
fn together(finished: &Receiver<Result<Tally, String>>, threads: usize) -> Result<Tally> {
    let mut all = Tally::default();
    for _ in 0..threads {
        match finished.recv() {
            Ok(Ok(tally)) => all.merge(tally),
            Ok(Err(error)) => bail!("a thread of the load generator: {error}"),
            Err(_) => bail!("the threads of the load generator are gone"),
        }
    }
    Ok(all)
}

fn report(all: &Tally, start: Instant) -> Result<Value> {
    let mut report: Map<String, Value> = Map::new();
    report.insert("requests".to_owned(), all.times.total().into());
    report.insert("elapsed_ns".to_owned(), nanoseconds(start.elapsed()).into());
    report.insert("errors".to_owned(), serde_json::to_value(&all.errors)?);
    if let Value::Object(more) = quantiles(&all.times) {
        report.extend(more);
    }
    Ok(Value::Object(report))
}

fn plan(words: &[String]) -> Result<Plan> {
    let words = Words::parse(
        words,
        &[
            "mode",
            "connect",
            "connections",
            "rate",
            "body",
            "host",
            "roots",
            "warmup-ms",
            "window-ms",
        ],
        &[],
    )?;
    let mode = match words.get("mode") {
        Some("kept") => Mode::Kept,
        Some("new") => Mode::New,
        Some("paced") => Mode::Paced,
        Some("http2") => Mode::Http2,
        Some("idle") => Mode::Idle,
        other => bail!("--mode {other:?}: kept, new, paced, http2 or idle"),
    };
    let connect = words.get("connect").context("--connect is missing")?;
    let connect = connect.parse().with_context(|| format!("--connect {connect}"))?;
    let body = words.number("body", 1024)?;
    let host = words.get("host").unwrap_or(NAME).to_owned();
    let alpn = if mode == Mode::Http2 { "h2" } else { "http/1.1" };
    let roots = words.get("roots").map(PathBuf::from);
    Ok(Plan {
        mode,
        connect,
        connections: words.number("connections", 1)?,
        rate: words.number("rate", 500)?,
        body,
        tls: roots.map(|roots| tls::client(&roots, alpn)).transpose()?,
        warmup: Duration::from_millis(words.number("warmup-ms", 1000)?),
        window: Duration::from_millis(words.number("window-ms", 5000)?),
        request: request(&host, body, mode == Mode::New),
        host,
    })
}

/// Headers of an Agent's request, beside Host and the framing.
const HEADERS: [(&str, &str); 4] = [
    ("User-Agent", "datadog-agent/7.81.0"),
    ("DD-API-KEY", "0123456789abcdef0123456789abcdef"),
    ("Content-Type", "application/json"),
    ("Accept-Encoding", "gzip"),
];

fn request(host: &str, body: usize, close: bool) -> Vec<u8> {
    let mut text = format!("POST {PATH} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in HEADERS {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if close {
        text.push_str("Connection: close\r\n");
    }
    text.push_str(&format!("Content-Length: {body}\r\n\r\n"));
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    bytes
}
