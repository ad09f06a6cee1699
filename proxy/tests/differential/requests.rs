//! Requests: what reaches the intake is what hyper reads from the client's own bytes, and of a refused message nothing does.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;

use crate::bytes::{Edit, Split, body, chunked, edits, split};
use crate::corpus::{BROKEN_BODIES, REFUSED};
use crate::harness::{Proxy, Upstream, read_message};
use crate::oracle::{self, Read};
use crate::{run, wire};

/// Behind each stream: what comes before it is complete then, or has swallowed it, and the connection ends.
pub const LAST: &[u8] = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// What a client sends.
#[derive(Clone, Debug)]
struct Case {
    messages: Vec<Message>,
    split: Split,
}

#[derive(Clone)]
struct Message {
    bytes: Vec<u8>,
    edits: Vec<Edit>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.bytes[..self.bytes.len().min(400)];
        write!(
            f,
            "{} bytes: {} {:?}",
            self.bytes.len(),
            shown.escape_ascii(),
            self.edits
        )
    }
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for message in &self.messages {
            let mut bytes = message.bytes.clone();
            message.edits.iter().for_each(|edit| edit.apply(&mut bytes));
            all.extend(bytes);
        }
        all.extend_from_slice(LAST);
        all
    }

    /// Nothing is wrong with it.
    fn is_good(&self) -> bool {
        self.messages.iter().all(|message| message.edits.is_empty())
    }
}

/// A request as a good client sends it.
pub fn good() -> impl Strategy<Value = Vec<u8>> {
    let line = (
        select(vec![
            "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "M-SEARCH",
        ]),
        select(vec![
            "/",
            "/a?b=c&d",
            "//x/../y",
            "/a%2fb;p=1",
            "http://localhost/abs?x",
            "http://localhost?q",
            "/{\"j\":[1]}",
        ]),
    );
    let headers = prop::collection::vec(
        select(vec![
            "X-A: 1",
            "X-A: 2",
            "DD-API-KEY: 0123",
            "Content-Encoding: zstd",
            "X-Odd: a  b\u{e4} ",
            "x-empty:",
            "Connection: keep-alive",
            "Connection: x-a, X-B",
            "X-B:\t 7",
            "TE: trailers",
            "Expect: 100-continue",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: x",
            "Trailer: X-T",
            "Accept-Encoding: gzip",
        ]),
        0..6,
    );
    let framing = prop_oneof![
        Just(None),
        Just(Some((Vec::new(), "", ""))),
        (
            prop::collection::vec(1..100_usize, 1..6),
            select(vec!["", "", ";a", ";a=\"b c\"", ";\t\u{e4}"]),
            select(vec!["", "", "X-T: 1\r\n", "X-T:\r\nContent-Length: 3\r\n"]),
        )
            .prop_map(Some),
    ];
    (line, any::<bool>(), headers, framing, body()).prop_map(
        |((method, target), old, headers, framing, body)| {
            let mut out = Vec::new();
            // Not two framings, and no chunks where they are unknown.
            let version = if old {
                "1.0\r\nConnection: keep-alive"
            } else {
                "1.1"
            };
            write!(out, "{method} {target} HTTP/{version}\r\nHost: localhost\r\n").unwrap();
            for header in headers {
                write!(out, "{header}\r\n").unwrap();
            }
            match framing {
                None => out.extend_from_slice(b"\r\n"),
                Some((sizes, extension, trailers)) if !old && !sizes.is_empty() => {
                    // Small chunks of a large body are the work of another test.
                    let sizes: Vec<usize> = sizes.iter().map(|size| size * (1 + body.len() / 2000)).collect();
                    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                    out.extend(chunked(&body, &sizes, extension, trailers));
                }
                Some(_) => {
                    write!(out, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
                    out.extend_from_slice(&body);
                }
            }
            out
        },
    )
}

/// What is refused: a head, or a body that breaks at once or when a part of it is with the intake.
fn bad() -> impl Strategy<Value = Vec<u8>> {
    let refused: Vec<Vec<u8>> = REFUSED.iter().map(|(_, bytes, _)| bytes.to_vec()).collect();
    let broken: Vec<&[u8]> = BROKEN_BODIES.iter().map(|(_, body)| *body).collect();
    let broken = (select(broken), any::<bool>()).prop_map(|(body, late)| {
        let mut out = b"POST /b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        if late {
            // More than is read before a byte of it is sent.
            let len = 150_000;
            write!(out, "{len:x}\r\n").unwrap();
            out.resize(out.len() + len, b'x');
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(body);
        out
    });
    prop_oneof![3 => select(refused), 1 => broken]
}

fn case() -> impl Strategy<Value = Case> {
    let clean = good().prop_map(|bytes| Message {
        bytes,
        edits: Vec::new(),
    });
    let edited = (good(), edits()).prop_map(|(bytes, edits)| Message { bytes, edits });
    let refused = (bad(), edits()).prop_map(|(bytes, edits)| Message { bytes, edits });
    let message = prop_oneof![3 => clean, 4 => edited, 2 => refused];
    (prop::collection::vec(message, 1..4), split()).prop_map(|(messages, split)| Case { messages, split })
}

/// A stream that remembers what was read from it.
pub struct Tee(pub TcpStream, pub Arc<Mutex<Vec<u8>>>);

impl io::Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buf)?;
        self.1.lock().unwrap().extend_from_slice(&buf[..read]);
        Ok(read)
    }
}

/// The bytes of each connection to an intake that answers each request with an empty 200, and ends when its client does.
type Recorded = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

fn recording() -> (Upstream, Recorded, Arc<AtomicUsize>) {
    let recorded = Recorded::default();
    let ended = Arc::new(AtomicUsize::new(0));
    let (all, count) = (Arc::clone(&recorded), Arc::clone(&ended));
    let upstream = Upstream::raw(move |stream, _| {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        all.lock().unwrap().push(Arc::clone(&bytes));
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(Tee(stream, bytes));
        while let Ok(Some(_)) = read_message(&mut reader, false) {
            if writer
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .is_err()
            {
                break;
            }
        }
        // Whatever is left.
        let _ = io::copy(&mut reader, &mut io::sink());
        count.fetch_add(1, Ordering::SeqCst);
    });
    (upstream, recorded, ended)
}

/// What came back to the client.
#[derive(Debug, Default)]
pub struct Answers {
    /// The intake's, each complete.
    pub relayed: usize,
    /// Ours, at the end: its status.
    own: Option<u16>,
    /// What is neither.
    rest: Vec<u8>,
}

fn answers(mut bytes: &[u8]) -> Answers {
    let mut answers = Answers::default();
    while let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        match status {
            Some(100) if head == "HTTP/1.1 100 Continue" => {}
            Some(200) if head.contains("\r\nContent-Length: 0") => answers.relayed += 1,
            Some(status) if head.contains("\r\nX-Agent-FIPS-Proxy-Error: ") => {
                // Its body is a line of text, and the end.
                answers.own = Some(status);
                let body = &bytes[end + 4..];
                let lines = body.iter().filter(|&&byte| byte == b'\n').count();
                if lines > 1 || body.starts_with(b"HTTP/") {
                    answers.rest = body.to_vec();
                }
                return answers;
            }
            _ => break,
        }
        bytes = &bytes[end + 4..];
    }
    answers.rest = bytes.to_vec();
    answers
}

/// The client's side of one case.
pub fn ask(proxy: &Proxy, bytes: &[u8], split: &Split) -> Answers {
    let mut client = proxy.client();
    let mut writer = client.stream.try_clone().unwrap();
    let split = split.clone();
    let bytes = bytes.to_vec();
    // A refusal may come, and the connection end, before all is sent.
    let writing = std::thread::spawn(move || drop(split.write(&bytes, &mut writer)));
    let all = client.rest();
    writing.join().unwrap();
    answers(&all)
}

#[derive(Debug, Default)]
struct Counts {
    relayed: AtomicUsize,
    refused: AtomicUsize,
    lenient: AtomicUsize,
    aborted: AtomicUsize,
}

fn check(case: &Case, counts: &Counts) -> Result<(), TestCaseError> {
    let bytes = case.bytes();
    let (upstream, recorded, ended) = recording();
    let proxy = Proxy::with(upstream.address, |setup| {
        // What is not complete waits for the rest of it.
        let patience = Duration::from_millis(if case.is_good() { 10_000 } else { 200 });
        setup.config.limits.header_timeout = patience;
        setup.config.limits.idle_timeout = patience;
    });
    let came = ask(&proxy, &bytes, &case.split);
    drop(proxy);
    crate::harness::eventually(|| (ended.load(Ordering::SeqCst) == upstream.connections()).then_some(()));
    let recorded: Vec<Vec<u8>> = recorded
        .lock()
        .unwrap()
        .iter()
        .map(|bytes| bytes.lock().unwrap().clone())
        .collect();

    let sent = oracle::requests(&bytes);
    let mut forwarded: Vec<Read> = Vec::new();
    let mut partial: Vec<Read> = Vec::new();
    for bytes in &recorded {
        let reading = oracle::requests(bytes);
        if let Err(why) = wire::check(bytes, &reading) {
            prop_assert!(false, "{why}\nin {}", bytes.escape_ascii());
        }
        let (complete, cut): (Vec<Read>, Vec<Read>) =
            reading.requests.into_iter().partition(|request| request.complete);
        forwarded.extend(complete);
        partial.extend(cut);
    }
    let shown = || {
        format!(
            "{came:?}\nhyper: {:?} {:?}\nforwarded: {forwarded:?}\ncut: {partial:?}",
            sent.requests, sent.error
        )
    };
    prop_assert!(came.rest.is_empty(), "neither answer nor end: {}", shown());
    // A request that was sent whole may have its answer refused: its client broke the next thing it said.
    prop_assert_eq!(came.relayed, forwarded.len(), "answers and requests: {}", shown());
    prop_assert!(partial.len() <= 1, "{}", shown());
    for (n, request) in forwarded.iter().enumerate() {
        prop_assert_eq!(Some(request), sent.requests.get(n), "request {}: {}", n, shown());
    }
    if let Some(cut) = partial.first() {
        let Some(meant) = sent.requests.get(forwarded.len()) else {
            return Err(TestCaseError::fail(format!(
                "hyper does not read the last one: {}",
                shown()
            )));
        };
        prop_assert!(
            came.own.is_some() || came.relayed == forwarded.len(),
            "{}",
            shown()
        );
        prop_assert_eq!(
            (&cut.method, &cut.target, &cut.headers),
            (&meant.method, &meant.target, &meant.headers),
            "{}",
            shown()
        );
        prop_assert!(
            cut.body.starts_with(&meant.body) || meant.body.starts_with(&cut.body),
            "{}",
            shown()
        );
    }
    if case.is_good() && sent.error.is_none() && !case.messages.iter().any(|message| is_seed(&message.bytes))
    {
        prop_assert_eq!(
            forwarded.len(),
            sent.requests.len(),
            "a good request was refused: {}",
            shown()
        );
    }
    counts.relayed.fetch_add(forwarded.len(), Ordering::Relaxed);
    counts
        .refused
        .fetch_add(usize::from(came.own.is_some()), Ordering::Relaxed);
    counts.aborted.fetch_add(partial.len(), Ordering::Relaxed);
    let complete = sent.requests.iter().filter(|request| request.complete).count();
    counts
        .lenient
        .fetch_add(usize::from(complete > forwarded.len()), Ordering::Relaxed);
    Ok(())
}

fn is_seed(bytes: &[u8]) -> bool {
    bytes.starts_with(b"POST /b HTTP/1.1") || REFUSED.iter().any(|(_, seed, _)| *seed == bytes)
}

#[test]
fn what_reaches_the_intake_is_what_hyper_reads_from_the_client() {
    let counts = Counts::default();
    let cases = run::cases(case, |case| check(case, &counts));
    eprintln!("{cases} streams: {counts:?}");
    let Counts {
        relayed,
        refused,
        lenient,
        aborted,
    } = counts;
    let seen = [relayed, refused, lenient, aborted].map(AtomicUsize::into_inner);
    assert!(
        cases >= 50 && seen[0] > cases / 2 && seen[1] > cases / 20,
        "too little was tried: {cases} {seen:?}"
    );
    assert!(
        seen[2] > 0 && seen[3] > 0,
        "hyper is known to take more, and bodies to break: {seen:?}"
    );
}

#[test]
fn the_seeds_as_they_are() {
    // Each refused message behind a good one, at once and in pieces: the good one is relayed, of the other nothing is.
    let counts = Counts::default();
    for (name, bytes, _) in REFUSED {
        let good = b"POST /good HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi".to_vec();
        let messages = [good, bytes.to_vec()].map(|bytes| Message {
            bytes,
            edits: Vec::new(),
        });
        let case = Case {
            messages: messages.into(),
            split: Split::none(),
        };
        check(&case, &counts).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(
        (counts.relayed.into_inner(), counts.refused.into_inner()),
        (REFUSED.len(), REFUSED.len())
    );
}
