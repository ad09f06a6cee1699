//! Intercepted connections: what is terminated, what is left alone, and where it goes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::time::{Duration, Instant};

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::relay::outcome::Outcome;
use agent_fips_proxy::self_test;

use crate::harness::{Client, Proxy, Upstream, hosts};

const INTAKE: &str = "7-81-0-app.agent.ddog-gov.com";

/// Echoes until the client's end, then says goodbye.
fn echo() -> Upstream {
    Upstream::raw(|mut stream, _| {
        let mut buf = [0_u8; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buf) {
            stream.write_all(&buf[..len]).unwrap();
        }
        let _ = stream.write_all(b"BYE");
    })
}

#[test]
fn plain_http_for_an_intake_is_terminated_and_goes_to_its_original_address() {
    let upstream = Upstream::start();
    // The name resolves to where nobody is: only the original destination can have been used.
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.hosts = hosts(&[[127, 0, 0, 77].into()]);
        setup.original = format!("[::ffff:127.0.0.1]:{}", 80).parse().unwrap();
    });
    let mut client = Client::connect(proxy.intercept);
    client.send(format!(
        "POST /api/v2/series HTTP/1.1\r\nHost: {INTAKE}.\r\nContent-Length: 2\r\n\r\nhi"
    ));
    assert_eq!(client.response().body, b"2");
    assert_eq!(upstream.seen()[0].header("host"), Some(INTAKE));
    assert_eq!(*proxy.tls.names.lock().unwrap(), [INTAKE]);
    // A foreign name on the same connection is refused, not tunnelled.
    client.send("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(client.response().status(), 421);
    let records = proxy.requests(2);
    assert_eq!(records[0].product, Some(Product::Metrics));
    assert_eq!(records[0].original_dst, Some("127.0.0.1:80".parse().unwrap()));
    drop(client);
    let record = &proxy.connections(1)[0];
    assert_eq!(
        (record.class, record.decision, record.name.as_deref()),
        (Some("http1"), "terminate", Some(INTAKE))
    );
}

#[test]
fn a_self_test_is_answered_here_and_nowhere_else() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    for address in [proxy.intercept, proxy.explicit] {
        let took = self_test::ask(address, Duration::from_secs(20)).unwrap();
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
    assert_eq!(upstream.connections(), 0);
    for record in proxy.requests(2) {
        assert_eq!(
            (record.product, record.outcome, record.status),
            (None, Outcome::Ok, 200)
        );
    }
}

#[test]
fn when_the_original_address_fails_the_name_is_resolved() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.original = "127.0.0.66:80".parse().unwrap();
    });
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    assert_eq!(proxy.requests(1)[0].upstream_addr, Some(upstream.address));
}

#[test]
fn a_private_original_address_is_not_trusted_by_itself() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.upstream.allow_private.clear();
    });
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n");
    assert_eq!(client.response().status(), 503);
    assert_eq!(upstream.connections(), 0);
}

/// PrivateLink: what was meant for a private address is neither sent elsewhere without a word, nor over the public network.
#[test]
fn a_private_original_address_that_is_not_allowed_is_named_and_nothing_else_is_dialled() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        // The resolver of the host knows another, allowed address.
        setup.original = "10.0.0.7:80".parse().unwrap();
    });
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n");
    let answer = client.response();
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(
        (answer.status(), answer.header("x-agent-fips-proxy-error")),
        (503, Some("no_address")),
        "{body}"
    );
    assert!(
        body.contains("10.0.0.7")
            && body.contains("upstream.allow_private")
            && body.contains("trace.agent.ddog-gov.com"),
        "{body}"
    );
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn what_was_meant_for_a_private_address_never_leaves_for_a_public_one() {
    // Nobody listens at the original address, and the name leads to a public one: a documentation range, where a
    // connect would hang until the time-out.
    let proxy = Proxy::with("127.0.0.66:1".parse().unwrap(), |setup| {
        setup.hosts = hosts(&[[203, 0, 113, 1].into()]);
        setup.config.upstream.connect_timeout = Duration::from_secs(60);
    });
    let since = Instant::now();
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n");
    let answer = client.response();
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status(), 502, "{body}");
    assert!(body.contains("127.0.0.66:1"), "{body}");
    assert!(
        since.elapsed() < Duration::from_secs(20),
        "the public address was dialled"
    );
}

#[test]
fn an_endpoint_wins_over_the_original_address() {
    let (original, endpoint) = (Upstream::start(), Upstream::start());
    let proxy = Proxy::with(original.address, |setup| {
        let endpoint = agent_fips_proxy::config::Endpoint {
            host: "127.0.0.1".to_owned(),
            port: Some(endpoint.address.port()),
        };
        setup.config.upstream.endpoints.insert(Product::Metrics, endpoint);
    });
    let mut client = Client::connect(proxy.intercept);
    client.send(format!("GET / HTTP/1.1\r\nHost: {INTAKE}\r\n\r\n"));
    assert_eq!(client.response().status(), 200);
    assert_eq!((original.connections(), endpoint.connections()), (0, 1));
    assert_eq!(endpoint.seen()[0].header("host"), Some(INTAKE));
    assert_eq!(*proxy.tls.names.lock().unwrap(), [INTAKE]);
    // Another product goes where it meant to.
    client.send("GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    assert_eq!((original.connections(), endpoint.connections()), (1, 1));
}

#[test]
fn everything_else_is_tunnelled_byte_for_byte() {
    let echo = echo();
    let proxy = Proxy::with(echo.address, |setup| setup.config.upstream.allow_private.clear());
    for (class, bytes) in [
        (
            "http1",
            &b"GET / HTTP/1.1\r\nhost:  example.org \r\nX-a:b\r\n\r\n"[..],
        ),
        ("http1", b"GET / HTTP/1.0\r\n\r\n"),
        ("opaque", b"\x00\x01\x02binary"),
        ("opaque", b"EHLO example.org\r\n"),
    ] {
        let count = proxy.records.connections.lock().unwrap().len();
        let mut client = Client::connect(proxy.intercept);
        client.send(bytes);
        let mut back = vec![0; bytes.len()];
        client.stream.read_exact(&mut back).unwrap();
        assert_eq!(back, bytes);
        client.send("more").stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.rest(), b"moreBYE", "{class}: half-close passes");
        let record = proxy.connections(count + 1).pop().unwrap();
        assert_eq!(
            (record.class, record.decision, record.outcome),
            (Some(class), "tunnel", Outcome::Ok)
        );
        assert_eq!(
            (record.bytes_up, record.bytes_down),
            (bytes.len() as u64 + 4, bytes.len() as u64 + 7)
        );
    }
    assert!(proxy.records.requests.lock().unwrap().is_empty());
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let upstream = Upstream::raw(|mut stream, _| {
        stream.write_all(b"220 hello\r\n").unwrap();
        let mut buf = [0_u8; 5];
        stream.read_exact(&mut buf).unwrap();
        stream.write_all(&buf).unwrap();
    });
    let proxy = Proxy::start(upstream.address);
    let since = Instant::now();
    let mut client = Client::connect(proxy.intercept);
    let mut hello = [0; 11];
    client.stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"220 hello\r\n");
    assert!(since.elapsed() < Duration::from_secs(2));
    client.send("QUIT\n");
    assert_eq!(client.rest(), b"QUIT\n");
    drop(client);
    assert_eq!(proxy.connections(1)[0].class, Some("silent"));
}

#[test]
fn a_client_that_waits_before_it_speaks_is_still_terminated() {
    let upstream = Upstream::start();
    let raw = echo();
    // The original address speaks HTTP never; were the connection tunnelled, the request would come back as an echo.
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.original = raw.address;
        setup.config.upstream.port = upstream.address.port();
    });
    let mut client = Client::connect(proxy.intercept);
    std::thread::sleep(Duration::from_millis(900));
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: {INTAKE}\r\nDD-API-KEY: k\r\n\r\n"
    ));
    assert_eq!(client.response().status(), 200);
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn malformed_http_is_refused_and_reaches_nobody() {
    let echo = echo();
    let proxy = Proxy::start(echo.address);
    for bytes in [
        &b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"GET / HTTP/1.1\nHost: app.ddog-gov.com\n\n",
        b"GET / HTTP/1.1\r\nHost: key@app.ddog-gov.com\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = Client::connect(proxy.intercept);
        let answer = String::from_utf8(client.send(bytes).rest()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(echo.connections(), 0);
    assert!(
        proxy
            .connections(4)
            .iter()
            .all(|record| record.outcome == Outcome::BadRequest && record.decision == "refuse")
    );
}

#[test]
fn a_connection_to_ourselves_is_closed_without_a_byte() {
    let upstream = Upstream::on(Ipv4Addr::LOCALHOST, 0, |_, _| {});
    // Its own local address as original destination: a process that connected to the listener by itself.
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.original = "0.0.0.0:80".parse().unwrap();
    });
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n");
    assert_eq!(client.rest(), b"");
    assert_eq!(proxy.connections(1)[0].outcome, Outcome::NoOrigin);
    assert_eq!(upstream.connections(), 0);
}
