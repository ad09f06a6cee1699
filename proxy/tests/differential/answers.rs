//! Answers: the client gets the status and the body that hyper reads from the intake's own bytes, or 502, or a cut connection;
//! never a body that is shorter without a cut, and never what was left over of the answer before.

use std::io::{BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;

use crate::bytes::{Edit, Split, body, chunked, edits, split};
use crate::harness::{self, Message, Proxy, Upstream, read_message};
use crate::oracle::{self, Answer};
use crate::run;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Modern,
    /// HTTP/1.0, and keeps its connection.
    OldKeep,
    Old,
}

/// What an intake says.
#[derive(Clone)]
struct Case {
    client: Client,
    method: Method,
    bytes: Vec<u8>,
    edits: Vec<Edit>,
    split: Split,
    /// It ends its side then.
    ends: bool,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.said();
        let shown = bytes[..bytes.len().min(600)].escape_ascii().to_string();
        let Self {
            client,
            method,
            split,
            ends,
            edits,
            ..
        } = self;
        write!(
            f,
            "{client:?} {method} ends: {ends} {split:?} {edits:?}\n{} bytes: {shown}",
            bytes.len()
        )
    }
}

impl Case {
    fn said(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        self.edits.iter().for_each(|edit| edit.apply(&mut bytes));
        bytes
    }
}

/// An answer as a good server gives it, and whether it needs the end of the connection.
fn good(method: Method) -> impl Strategy<Value = (Vec<u8>, bool)> {
    let line = (
        select(vec!["1.1", "1.1", "1.1", "1.0"]),
        select(vec![
            "200 OK",
            "202 Accepted",
            "204 No Content",
            "304 Not Modified",
            "400 ",
            "413 Too Large",
            "503 Service Unavailable",
            "299 x\ty",
        ]),
    );
    let interim = select(vec![
        "",
        "",
        "",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early\r\nLink: a\r\nContent-Length: 4\r\n\r\nHTTP/1.1 102 \r\n\r\n",
    ]);
    let headers = prop::collection::vec(
        select(vec![
            "Date: Thu, 01 Jan 1970 00:00:00 GMT",
            "Content-Encoding: zstd",
            "X-A: 1",
            "X-A: 2",
            "Keep-Alive: timeout=5",
            "Connection: keep-alive",
            "Connection: close",
            "Connection: x-a",
            "X-Odd: a  b\u{e4}\t ",
            "Set-Cookie: a",
            "x-empty:",
            "Trailer: X-T",
        ]),
        0..5,
    );
    let framing = prop_oneof![
        3 => Just(None),
        3 => (
            prop::collection::vec(1..100_usize, 1..6),
            select(vec!["", "", ";a", ";a=\"b c\""]),
            select(vec!["", "", "X-T: 1\r\n", "Content-Length: 3\r\nX-T:\r\n"]),
        )
            .prop_map(Some),
        1 => Just(Some((Vec::new(), "", ""))),
    ];
    (line, interim, headers, framing, body()).prop_map(
        move |((version, status), interim, headers, framing, body)| {
            let mut out = interim.as_bytes().to_vec();
            write!(out, "HTTP/{version} {status}\r\n").unwrap();
            for header in headers {
                write!(out, "{header}\r\n").unwrap();
            }
            let bodiless = method == Method::HEAD || status.starts_with("204") || status.starts_with("304");
            match framing {
                // It promises nothing, or what cannot be.
                Some((sizes, ..)) if status.starts_with("204") => {
                    let promise = match sizes.len() {
                        0 => "Content-Length: 0\r\n",
                        1 | 2 => "Content-Length: 2\r\n",
                        3 if version == "1.1" => "Transfer-Encoding: chunked\r\n",
                        _ => "",
                    };
                    write!(out, "{promise}\r\n").unwrap();
                }
                None if status.starts_with("204") => out.extend_from_slice(b"\r\n"),
                Some((sizes, extension, trailers)) if version == "1.1" && !sizes.is_empty() => {
                    let sizes: Vec<usize> = sizes.iter().map(|size| size * (1 + body.len() / 2000)).collect();
                    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                    if !bodiless {
                        out.extend(chunked(&body, &sizes, extension, trailers));
                    }
                }
                // Until the end.
                Some((sizes, ..)) if sizes.is_empty() => {
                    out.extend_from_slice(b"\r\n");
                    if !bodiless {
                        out.extend_from_slice(&body);
                    }
                    return (out, true);
                }
                _ => {
                    write!(out, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
                    if !bodiless {
                        out.extend_from_slice(&body);
                    }
                }
            }
            (out, false)
        },
    )
}

/// What may stand where an answer is waited for, or behind one.
const OTHER: &[&[u8]] = &[
    b"",
    b"SSH-2.0-OpenSSH_9\r\n",
    b"\x15\x03\x03\0\x02\x02\x28",
    b"HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 99 x\r\n\r\n",
    b"HTTP/1.1 1000 x\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nraw",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"hello",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nx",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
];

fn case() -> impl Strategy<Value = Case> {
    let client = select(vec![
        Client::Modern,
        Client::Modern,
        Client::Modern,
        Client::OldKeep,
        Client::Old,
    ]);
    let method = select(vec![Method::GET, Method::GET, Method::POST, Method::HEAD]);
    let bytes = method.prop_flat_map(|method| {
        let other = select(OTHER).prop_map(|bytes| (bytes.to_vec(), false));
        let bytes = prop_oneof![6 => good(method.clone()), 1 => other];
        (Just(method), bytes)
    });
    let behind = prop_oneof![
        6 => Just(b"".as_slice()),
        1 => Just(b"HTTP/1.1 299 Stale\r\nContent-Length: 0\r\n\r\n".as_slice()),
        1 => select(OTHER),
    ];
    let ends = prop::bool::weighted(0.6);
    (client, bytes, behind, edits(), split(), ends).prop_map(
        |(client, (method, (mut bytes, until_end)), behind, edits, split, ends)| {
            if !until_end {
                bytes.extend_from_slice(behind);
            }
            // What goes on until the end of the connection gets one.
            Case {
                client,
                method,
                bytes,
                edits,
                split,
                ends: ends || until_end,
            }
        },
    )
}

/// An intake that says `case` to its first request, and "second" to all others, on whichever connection they come. The flag
/// is set when the first answer is said.
fn intake(case: &Case) -> (Upstream, Arc<AtomicBool>) {
    let said = Arc::new(AtomicBool::new(false));
    let (flag, bytes, split, ends) = (Arc::clone(&said), case.said(), case.split.clone(), case.ends);
    let upstream = Upstream::raw(move |stream, connection| {
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        let mut number = 0;
        while let Ok(Some(_)) = read_message(&mut reader, false) {
            if (connection, number) == (0, 0) {
                // It may be wrong from the first byte on, and its reader gone.
                let _ = split.write(&bytes, &mut writer);
                if ends {
                    let _ = writer.shutdown(std::net::Shutdown::Write);
                }
                flag.store(true, Ordering::SeqCst);
                if ends {
                    let _ = std::io::copy(&mut reader, &mut std::io::sink());
                    return;
                }
            } else if write!(
                writer,
                "HTTP/1.1 200 OK\r\nX-Connection: {connection}\r\nContent-Length: 6\r\n\r\nsecond"
            )
            .is_err()
            {
                return;
            }
            number += 1;
        }
    });
    (upstream, said)
}

/// What the client got.
#[derive(Debug)]
enum Got {
    /// A complete message, as far as its framing tells.
    Message(Message),
    /// A part of one, or nothing.
    Cut,
}

fn ask(client: &mut harness::Client, method: &Method, kind: Client) -> Got {
    let version = match kind {
        Client::Modern => "1.1",
        Client::OldKeep => "1.0\r\nConnection: keep-alive",
        Client::Old => "1.0",
    };
    client.send(format!("{method} / HTTP/{version}\r\nHost: localhost\r\n\r\n"));
    match read_message(&mut client.reader, method == Method::HEAD) {
        Ok(Some(message)) => Got::Message(message),
        Ok(None) | Err(_) => Got::Cut,
    }
}

/// Without what one hop tells the next.
fn end_to_end(message: &Message) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = message
        .head
        .split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
        .filter(|(name, _)| !["connection", "transfer-encoding", "content-length"].contains(&name.as_str()))
        .collect();
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    headers
}

#[derive(Debug, Default)]
struct Counts {
    same: AtomicUsize,
    /// Ours, where hyper has nothing whole either.
    refused: AtomicUsize,
    cut: AtomicUsize,
    /// hyper takes more.
    lenient: AtomicUsize,
    /// The client's connection went on.
    kept: AtomicUsize,
    /// The intake's did.
    reused: AtomicUsize,
}

fn check(case: &Case, counts: &Counts) -> Result<(), TestCaseError> {
    let (upstream, said) = intake(case);
    let clean = case.edits.is_empty();
    let bytes = case.said();
    let read = oracle::answer(&case.method, &bytes, case.ends);
    let whole = matches!(read, Answer::Some { complete: true, .. });
    let waits = !whole && !case.ends;
    let proxy = Proxy::with(upstream.address, |setup| {
        // What has no end waits for one; nothing else does.
        setup.config.upstream.response_timeout = Duration::from_secs(if waits { 1 } else { 10 });
    });
    let mut client = proxy.client();
    let got = ask(&mut client, &case.method, case.client);
    let shown = || format!("{:?}\nhyper: {}", got, show(&read));
    let own = matches!(&got, Got::Message(message) if message.header("x-agent-fips-proxy-error").is_some());
    let count = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
    match (&read, &got) {
        (_, Got::Message(message)) if own => {
            let late = message.status() == 504 && waits;
            prop_assert!(late || message.status() == 502, "{}", shown());
            count(if whole { &counts.lenient } else { &counts.refused });
        }
        (
            Answer::Some {
                status,
                headers,
                body,
                complete: true,
            },
            Got::Message(message),
        ) => {
            prop_assert_eq!(message.status(), *status, "{}", shown());
            prop_assert!(message.body == *body, "another body: {}", shown());
            let framed = ["content-length", "transfer-encoding"].map(|name| message.header(name).is_some());
            prop_assert!(*status != 204 || framed == [false; 2], "{}", shown());
            let headers: Vec<(String, String)> = headers
                .iter()
                .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
                .collect();
            prop_assert_eq!(end_to_end(message), headers, "{}", shown());
            let kept = message
                .header("connection")
                .is_none_or(|value| value == "keep-alive");
            count(if kept { &counts.kept } else { &counts.same });
        }
        (Answer::Some { complete: true, .. }, Got::Cut) => {
            count(&counts.lenient);
        }
        (Answer::Some { complete: false, .. }, Got::Message(_)) => {
            prop_assert!(false, "a body that seems whole: {}", shown());
        }
        (Answer::None(_), Got::Message(_)) => prop_assert!(false, "hyper reads no answer: {}", shown()),
        (Answer::Some { complete: false, .. } | Answer::None(_), Got::Cut) => {
            count(&counts.cut);
        }
    }
    if clean && whole && is_plain(case) {
        prop_assert!(
            !own && matches!(got, Got::Message(_)),
            "a good answer did not pass: {}",
            shown()
        );
    }
    // The next request is answered with its own answer, on this connection where that goes on.
    harness::eventually(|| said.load(Ordering::SeqCst).then_some(()));
    let goes_on = match &got {
        Got::Message(message) => match case.client {
            Client::Modern => message.header("connection").is_none(),
            Client::OldKeep | Client::Old => message.header("connection") == Some("keep-alive"),
        },
        Got::Cut => false,
    };
    if !goes_on {
        prop_assert_eq!(client.rest(), b"", "after the end: {}", shown());
        client = proxy.client();
    }
    let mut second = ask(&mut client, &Method::GET, Client::Modern);
    if waits && matches!(&second, Got::Message(message) if message.status() == 504) {
        // One second is not much on a busy machine.
        second = ask(&mut client, &Method::GET, Client::Modern);
    }
    let Got::Message(second) = second else {
        return Err(TestCaseError::fail(format!("no second answer after {}", shown())));
    };
    prop_assert_eq!(
        (second.status(), second.body.as_slice()),
        (200, b"second".as_slice()),
        "{:?} after {}",
        second,
        shown()
    );
    if second.header("x-connection") == Some("0") {
        // Nothing was behind the answer: its last byte was needed.
        let shorter = oracle::answer(&case.method, &bytes[..bytes.len() - 1], false);
        let ended = matches!(shorter, Answer::Some { complete: true, .. });
        prop_assert!(
            whole && !ended && !own,
            "the connection was used again after {}",
            shown()
        );
        count(&counts.reused);
    }
    Ok(())
}

/// What we have no reason to refuse: it is nobody's garbage, and switches to nothing.
fn is_plain(case: &Case) -> bool {
    !OTHER
        .iter()
        .any(|other| !other.is_empty() && case.bytes.starts_with(other))
}

fn show(read: &Answer) -> String {
    match read {
        Answer::None(error) => format!("nothing: {error}"),
        Answer::Some {
            status,
            headers,
            body,
            complete,
        } => {
            let start = body[..body.len().min(200)].escape_ascii();
            format!(
                "{status} {headers:?} complete: {complete}, {} bytes: {start}",
                body.len()
            )
        }
    }
}

#[test]
fn what_the_client_gets_is_what_hyper_reads_from_the_intake() {
    let counts = Counts::default();
    let cases = run::cases(case, |case| check(case, &counts));
    eprintln!("{cases} answers: {counts:?}");
    let Counts {
        same,
        refused,
        cut,
        lenient,
        kept,
        reused,
    } = counts;
    let seen = [same, refused, cut, lenient, kept, reused].map(AtomicUsize::into_inner);
    assert!(
        cases >= 50 && seen[0] + seen[4] > cases / 4,
        "too little was tried: {cases} {seen:?}"
    );
    assert!(
        seen.iter().all(|&count| count > 0),
        "something was not tried: {cases} {seen:?}"
    );
}
