//! Nothing ambiguous gets through, and nothing good is changed by how its bytes arrive.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use agent_fips_proxy::relay::outcome::Outcome;
use proptest::prelude::*;

use crate::corpus::{BROKEN_BODIES, REFUSED};
use crate::harness::{Client, Proxy, Upstream};

fn status_of(bytes: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(bytes);
    assert!(text.starts_with("HTTP/1.1 "), "no answer: {text:?}");
    text[9..12].parse().unwrap()
}

#[test]
fn every_refused_request_is_answered_closed_and_never_forwarded() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    for (name, bytes, expected) in REFUSED {
        // A complete request behind it must not be served either: the connection is closed.
        let mut client = proxy.client();
        client.send(
            [
                bytes,
                b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice(),
            ]
            .concat(),
        );
        let answer = client.rest();
        assert_eq!(
            status_of(&answer),
            *expected,
            "{name}: {}",
            String::from_utf8_lossy(&answer)
        );
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert_eq!(
            text.matches("x-agent-fips-proxy-error").count(),
            1,
            "{name}: {text}"
        );
    }
    assert!(REFUSED.len() >= 40);
    assert_eq!(
        upstream.connections(),
        0,
        "something reached the upstream: {:?}",
        upstream.seen()
    );
}

#[test]
fn they_are_refused_just_as_well_behind_a_good_request_and_byte_by_byte() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    for (name, bytes, expected) in REFUSED.iter().step_by(3) {
        let mut client = proxy.client();
        client.send([b"GET /good HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice(), bytes].concat());
        assert_eq!(
            client.response().status(),
            200,
            "{name}: the request before it was cut off"
        );
        assert_eq!(status_of(&client.rest()), *expected, "{name}");

        let mut client = proxy.client();
        for byte in *bytes {
            // The refusal may come before the last byte.
            if client.stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
        assert_eq!(status_of(&client.rest()), *expected, "{name}, byte by byte");
    }
    assert!(
        upstream
            .seen()
            .iter()
            .all(|request| request.head.starts_with("GET /good "))
    );
}

#[test]
fn a_broken_body_aborts_the_upstream_request() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    for (name, body) in BROKEN_BODIES {
        let head = b"POST /broken HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut client = proxy.client();
        client.send([head.as_slice(), body].concat());
        assert_eq!(status_of(&client.rest()), 400, "{name}");
    }
    assert!(
        upstream.seen().is_empty(),
        "completed upstream: {:?}",
        upstream.seen()
    );
    let records = proxy.requests(BROKEN_BODIES.len());
    assert!(
        records.iter().all(|record| record.outcome == Outcome::BadRequest),
        "{records:?}"
    );
}

#[test]
fn huge_heads_are_refused() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "a".repeat(20_000)
    ));
    assert_eq!(status_of(&client.rest()), 400);
    let mut client = proxy.client();
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
        "A: b\r\n".repeat(101)
    ));
    assert_eq!(status_of(&client.rest()), 400);
    // Bytes that the guard leaves to hyper's own parser: the same end.
    for target in ["/a<b", "/a>b", "/a^b`c"] {
        let mut client = proxy.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(status_of(&client.rest()), 400, "{target}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_head_has_its_limit_when_the_limit_is_as_large_as_what_it_is_read_into() {
    let upstream = Upstream::start();
    for limit in [90_000, 98_304, 120_000] {
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.config.limits.max_header_bytes = limit;
        });
        let head = |len: usize| {
            let frame = "GET /good HTTP/1.1\r\nHost: localhost\r\nX: \r\n\r\n".len();
            format!(
                "GET /good HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
                "a".repeat(len - frame)
            )
        };
        let mut client = proxy.client();
        assert_eq!(client.send(head(limit)).response().status(), 200, "{limit}");
        assert_eq!(
            client.send(head(limit)).response().status(),
            200,
            "{limit}, the second"
        );
        client.send(head(limit + 1));
        assert_eq!(status_of(&client.rest()), 400, "{limit}");
        // A body behind the largest head has to find room.
        let post = head(limit - 21)
            .replace("GET", "POST")
            .replace("X: ", "Content-Length: 5\r\nX: ");
        let answer = proxy
            .client()
            .send([post.as_bytes(), b"hello"].concat())
            .response();
        assert_eq!((answer.status(), answer.body), (200, b"5".to_vec()), "{limit}");
    }
}

#[test]
fn a_body_that_ends_early_never_completes_upstream() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client.send("POST /short HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhello");
    client.stream.shutdown(Shutdown::Write).unwrap();
    client.rest();
    assert_eq!(proxy.requests(1)[0].outcome, Outcome::ClientAborted);
    assert!(upstream.seen().is_empty());
}

/// Four requests of all framings, pipelined.
const STREAM: &[u8] = b"POST /a?x=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\nX-Odd: \xe4\xff\r\n\r\nhello\r\n\r\nyou\
GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n\
POST /c HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;x=\"y\"\r\nGET /\r\nb\r\n HTTP/1.1\r\n\r\n0\r\nT: v\r\n\r\n\
PUT /d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn property_any_split_of_a_stream_gives_the_same_requests(
        mut cuts in proptest::collection::vec(0..STREAM.len(), 0..12),
        pause in proptest::bool::ANY,
    ) {
        let upstream = Upstream::start();
        let proxy = Proxy::start(upstream.address);
        cuts.sort_unstable();
        cuts.push(STREAM.len());
        let mut client = Client::connect(proxy.explicit);
        let mut from = 0;
        for cut in cuts {
            client.send(&STREAM[from..cut]);
            from = cut;
            if pause {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        for expected in ["12", "0", "16", "0"] {
            let response = client.response();
            prop_assert_eq!(response.status(), 200);
            prop_assert_eq!(response.body, expected.as_bytes());
        }
        let seen = upstream.seen();
        let lines: Vec<&str> = seen.iter().map(|request| request.head.lines().next().unwrap()).collect();
        prop_assert_eq!(lines, ["POST /a?x=1 HTTP/1.1", "GET /b HTTP/1.1", "POST /c HTTP/1.1", "PUT /d HTTP/1.1"]);
        prop_assert_eq!(&seen[0].body, b"hello\r\n\r\nyou");
        prop_assert_eq!(&seen[2].body, b"GET / HTTP/1.1\r\n");
        for request in &seen {
            prop_assert_eq!(request.header("host"), Some("metrics.agent.ddog-gov.com"));
        }
    }
}
