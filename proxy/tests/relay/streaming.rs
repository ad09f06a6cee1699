//! Bodies, framings and the corners of HTTP/1.1, byte for byte.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent_fips_proxy::relay::outcome::Outcome;

use crate::harness::{Proxy, Then, Upstream, read_message};

/// Bytes that repeat late, so that a lost or doubled piece shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| ((n / 251 + n) % 256).try_into().unwrap())
        .collect()
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        write!(out, "{:x}\r\n", chunk.len()).unwrap();
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

#[test]
fn large_bodies_pass_both_ways_with_length_and_chunked() {
    let upstream = Upstream::with(|request, stream| {
        if request.head.contains("/chunked") {
            write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            stream.write_all(&chunked(&request.body, 60_000)).unwrap();
        } else {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                request.body.len()
            )
            .unwrap();
            stream.write_all(&request.body).unwrap();
        }
        Then::Keep
    });
    let proxy = Proxy::start(upstream.address);
    let body = pattern(5_000_000);
    let mut client = proxy.client();
    for _ in 0..2 {
        let response = client.post("/length", &body);
        assert!(response.body == body && response.header("content-length") == Some("5000000"));
        client.send("POST /chunked HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
        let response = client.send(chunked(&body, 70_001)).response();
        assert!(response.body == body && response.header("transfer-encoding") == Some("chunked"));
    }
    let seen = upstream.seen();
    assert_eq!(seen[0].header("content-length"), Some("5000000"));
    assert_eq!(seen[0].header("transfer-encoding"), None);
    assert_eq!(seen[1].header("transfer-encoding"), Some("chunked"));
    assert_eq!(upstream.connections(), 1, "the connection is used again");
    let record = &proxy.requests(4)[0];
    assert_eq!(
        (record.bytes_up, record.bytes_down, record.status),
        (5_000_000, 5_000_000, 200)
    );
}

#[test]
fn a_slow_reader_bounds_what_we_take_from_the_client() {
    let upstream = Upstream::raw(|_stream, _| std::thread::sleep(Duration::from_secs(20)));
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.limits.drain_timeout = Duration::ZERO;
    });
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n");
    client.stream.set_nonblocking(true).unwrap();
    let piece = vec![0_u8; 256 * 1024];
    let (mut taken, mut stuck) = (0, 0);
    while stuck < 20 {
        match client.stream.write(&piece) {
            Ok(len) => (taken, stuck) = (taken + len, 0),
            Err(_) => {
                stuck += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    // Kernel buffers of four sockets (up to 4 MiB receive, 4 MiB send each way on this kernel) and ours.
    assert!(
        taken < 24 * 1024 * 1024,
        "{taken} bytes were taken although nobody reads them"
    );
}

#[test]
fn headers_pass_byte_for_byte_but_for_one_hop() {
    let upstream = Upstream::with(|_, stream| {
        stream
            .write_all(
                b"HTTP/1.1 202 Accepted\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Encoding: zstd1\r\n\
                  X-Odd: a  b\xe4\r\nX-Two: 1\r\nX-Two: 2\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, x-hop\r\n\
                  X-Hop: 1\r\nContent-Length: 2\r\n\r\nok",
            )
            .unwrap();
        Then::Keep
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client.send(
        b"POST /api/v2/series?a=%20b&c HTTP/1.1\r\nHost: localhost:9804\r\nDD-API-KEY: 0123\r\nContent-Encoding: zstd1\r\n\
          X-Odd: a  b\xe4\r\nX-Two: 1\r\nX-Two: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
          Proxy-Authorization: x\r\nTE: trailers\r\nContent-Length: 2\r\n\r\nhi",
    );
    let mut raw = Vec::new();
    let mut byte = [0];
    while !raw.ends_with(b"\r\n\r\nok") {
        client.stream.read_exact(&mut byte).unwrap();
        raw.push(byte[0]);
    }
    let raw = raw
        .iter()
        .map(|&b| b as char)
        .collect::<String>()
        .to_ascii_lowercase();
    for line in [
        "date: thu, 01 jan 1970 00:00:00 gmt",
        "content-encoding: zstd1",
        "x-odd: a  b\u{e4}",
        "x-two: 1",
        "x-two: 2",
    ] {
        assert!(
            raw.contains(&format!("\r\n{line}\r\n")),
            "{line} is missing in {raw}"
        );
    }
    assert!(!raw.contains("x-hop") && !raw.contains("keep-alive"), "{raw}");

    let seen = upstream.seen();
    assert!(
        seen[0]
            .head
            .starts_with("POST /api/v2/series?a=%20b&c HTTP/1.1\r\n"),
        "{}",
        seen[0].head
    );
    assert_eq!(seen[0].header("host"), Some("metrics.agent.ddog-gov.com"));
    assert_eq!(seen[0].header("dd-api-key"), Some("0123"));
    assert_eq!(seen[0].header("content-encoding"), Some("zstd1"));
    assert_eq!(seen[0].head.to_ascii_lowercase().matches("x-two:").count(), 2);
    for gone in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-authorization",
        "te",
        "via",
        "forwarded",
        "x-forwarded-for",
    ] {
        assert_eq!(seen[0].header(gone), None, "{gone}");
    }
}

#[test]
fn a_response_without_date_gets_none() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    // The Agent reads Date to find its clock's offset: ours would be a lie.
    assert_eq!(proxy.client().get("/").header("date"), None);
}

#[test]
fn head_204_304_and_interim_responses_keep_the_connection_in_step() {
    let upstream = Upstream::with(|request, stream| {
        let answer: &[u8] = match request.head.split(' ').nth(1).unwrap() {
            "/204" => b"HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            "/1xx" => {
                b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            }
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        };
        stream.write_all(answer).unwrap();
        Then::Keep
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client.send("HEAD /support/flare HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let head = client.head_response();
    assert_eq!((head.status(), head.header("content-length")), (200, Some("5")));
    assert_eq!(client.get("/204").status(), 204);
    assert_eq!(client.get("/304").status(), 304);
    let after = client.get("/1xx");
    assert_eq!((after.status(), after.body), (200, b"ok".to_vec()));
    assert!(
        proxy
            .requests(4)
            .iter()
            .all(|record| record.outcome == Outcome::Ok)
    );
    // The metrics port sends flares elsewhere; see Catalog::route.
    assert_eq!(upstream.seen()[0].header("host"), Some("flare.ddog-gov.com"));
}

#[test]
fn an_answer_without_content_promises_none() {
    // What follows is no answer to anybody.
    const STALE: &str = "HTTP/1.1 299 Stale\r\nContent-Length: 0\r\n\r\n";
    for (framing, body) in [
        (String::new(), ""),
        ("Content-Length: 0\r\n".to_owned(), ""),
        (format!("Content-Length: {}\r\n", STALE.len()), STALE),
        ("Transfer-Encoding: chunked\r\n".to_owned(), STALE),
        (
            format!(
                "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n",
                STALE.len()
            ),
            STALE,
        ),
    ] {
        let head = format!("HTTP/1.1 204 No Content\r\n{framing}X-A: 1\r\n\r\n");
        let upstream = Upstream::with(move |request, stream| {
            if request.head.contains("/204") {
                stream.write_all(head.as_bytes()).unwrap();
                if !body.is_empty() {
                    // Late enough that another request could be on its way.
                    std::thread::sleep(Duration::from_millis(30));
                    // Its reader may be gone.
                    let _ = stream.write_all(body.as_bytes());
                }
            } else {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .unwrap();
            }
            Then::Keep
        });
        let proxy = Proxy::start(upstream.address);
        let mut client = proxy.client();
        for _ in 0..3 {
            let answer = client.get("/204");
            assert_eq!(
                (answer.status(), answer.header("x-a")),
                (204, Some("1")),
                "{framing}"
            );
            for name in ["content-length", "transfer-encoding"] {
                assert_eq!(answer.header(name), None, "{framing}");
            }
            let after = client.get("/after");
            assert_eq!((after.status(), after.body), (200, b"ok".to_vec()), "{framing}");
        }
        let expected = if body.is_empty() { 1 } else { 4 };
        assert_eq!(upstream.connections(), expected, "{framing}");
    }
}

#[test]
fn the_length_that_a_body_would_have_is_passed_on_where_none_follows() {
    let upstream = Upstream::with(|request, stream| {
        let status = match request.head.starts_with("HEAD") {
            true => "200 OK",
            false => "304 Not Modified",
        };
        let framing = match request.head.contains("/both") {
            true => "Content-Length: 5\r\nTransfer-Encoding: chunked",
            false => "Content-Length: 5",
        };
        write!(stream, "HTTP/1.1 {status}\r\n{framing}\r\n\r\n").unwrap();
        Then::Keep
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    for method in ["HEAD", "GET"] {
        for (path, length) in [("/one", Some("5")), ("/both", None)] {
            client.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            let answer = client.head_response();
            assert_eq!(answer.header("content-length"), length, "{method} {path}");
            assert_eq!(answer.header("transfer-encoding"), None, "{method} {path}");
        }
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head_response().status(), 100);
    assert_eq!(client.send("hello").response().body, b"5");
    assert_eq!(upstream.seen()[0].header("expect"), None);

    // No connection, no invitation: the client keeps its body.
    let proxy = Proxy::with(upstream.address, |setup| setup.tls.fail = true);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.response().status(), 502);
}

#[test]
fn http_1_0_and_requests_in_absolute_form() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client.send("GET /old HTTP/1.0\r\n\r\n");
    assert!(client.rest().starts_with(b"HTTP/1.0 200 OK\r\n"));
    let response = proxy.client().get("http://localhost/abs?x");
    assert_eq!(response.status(), 200);
    assert!(upstream.seen()[1].head.starts_with("GET /abs?x HTTP/1.1\r\n"));
}

#[test]
fn an_early_answer_reaches_the_client_while_it_still_sends() {
    let upstream = Upstream::raw(|mut stream, _| {
        let mut some = [0_u8; 1024];
        let _ = stream.read(&mut some).unwrap();
        stream
            .write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .unwrap();
        // A well-behaved server reads on for a moment.
        let mut sink = vec![0; 64 * 1024];
        while stream.read(&mut sink).is_ok_and(|len| len > 0) {}
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        .send(vec![0; 50_000]);
    let response = client.response();
    assert_eq!((response.status(), response.body), (413, b"big".to_vec()));
}

#[test]
fn after_an_early_answer_a_connection_serves_on_only_when_the_body_was_sent() {
    // Answers as soon as it has a head, then reads the body, and takes the next request.
    let upstream = Upstream::raw(|stream, connection| {
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        while let Ok(Some(request)) = read_message(&mut reader, true) {
            let answer =
                format!("HTTP/1.1 200 OK\r\nX-Connection: {connection}\r\nContent-Length: 2\r\n\r\nok");
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
            let length = request
                .header("content-length")
                .map_or(0, |length| length.parse().unwrap());
            let body = std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink());
            if !matches!(body, Ok(len) if len == length) {
                return;
            }
        }
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n";
    // Looks like an answer, should anybody send it back, and like a request.
    let body = b"HTTP/1.1 299 Stale\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n".repeat(7_000);
    for _ in 0..3 {
        client.send(head).send(&body[..1000]);
        let early = client.response();
        assert_eq!((early.status(), early.header("x-connection")), (200, Some("0")));
        client.send(&body[1000..300_000]);
    }
    let answer = client.get("/");
    assert_eq!((answer.status(), answer.header("x-connection")), (200, Some("0")));
    // This body never comes to its end.
    client.send(head).send(&body[..1000]);
    assert_eq!(client.response().status(), 200);
    drop(client);
    for _ in 0..3 {
        let answer = proxy.client().get("/");
        assert_eq!((answer.status(), answer.header("x-connection")), (200, Some("1")));
    }
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn a_response_that_breaks_is_cut_and_not_ended() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let upstream = Upstream::with(move |_, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nhel").unwrap();
            Then::Close
        });
        let proxy = Proxy::start(upstream.address);
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let broken = read_message(&mut client.reader, false);
        assert!(broken.is_err(), "{framing}: {broken:?}");
        assert_eq!(proxy.requests(1)[0].outcome, Outcome::UpstreamProtocol);
    }
}

#[test]
fn a_client_that_leaves_takes_its_upstream_request_along() {
    let gone = Arc::new(AtomicUsize::new(0));
    let seen_gone = Arc::clone(&gone);
    let upstream = Upstream::raw(move |mut stream: TcpStream, _| {
        let mut buf = [0_u8; 4096];
        // Never answers; the proxy must end the connection.
        while stream.read(&mut buf).is_ok_and(|len| len > 0) {}
        seen_gone.fetch_add(1, Ordering::SeqCst);
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    crate::harness::eventually(|| (upstream.connections() == 1).then_some(()));
    drop(client);
    crate::harness::eventually(|| (gone.load(Ordering::SeqCst) == 1).then_some(()));
    assert_eq!(proxy.requests(1)[0].outcome, Outcome::ClientAborted);
}
