//! Pool, retries, addresses and failures: nothing idle is the client's problem, nothing is sent twice.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::config::Endpoint;
use agent_fips_proxy::relay::outcome::Outcome;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::harness::{NARROW, Proxy, Then, Upstream, eventually, hosts, read_message, read_slowly};
use crate::hyper_intake::{listen, speak};

#[test]
fn a_connection_that_closed_while_idle_is_never_the_clients_problem() {
    let upstream = Upstream::with(|_, stream| {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        Then::Close
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    for n in 0..50 {
        // Sometimes at once, so that the request races with the end of the connection.
        if n % 3 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(client.post("/", b"payload").status(), 200, "request {n}");
    }
    assert_eq!(upstream.seen().len(), 50, "each exactly once");
}

/// An upstream that answers the first request of a connection, then does `second` with the next one.
fn second_request(
    second: impl Fn(&mut BufReader<TcpStream>) + Send + Sync + 'static,
) -> (Upstream, Arc<AtomicUsize>) {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let upstream = Upstream::raw(move |stream, connection| {
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        while let Ok(Some(_)) = read_message(&mut reader, false) {
            count.fetch_add(1, Ordering::SeqCst);
            writer
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
            if connection == 0 {
                second(&mut reader);
                return;
            }
        }
    });
    (upstream, served)
}

#[test]
fn a_reset_by_an_upstream_that_read_nothing_is_repeated() {
    // Waits for the first byte of the next request, then closes without reading it: the kernel resets.
    let (upstream, served) = second_request(|reader| {
        reader.get_ref().peek(&mut [0]).unwrap();
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    assert_eq!(client.post("/1", b"a").status(), 200);
    assert_eq!(client.post("/2", &[b'x'; 20_000]).status(), 200);
    assert_eq!(served.load(Ordering::SeqCst), 2);
    assert_eq!(proxy.requests(2)[1].retries, 1);
}

#[test]
fn a_clean_end_after_the_request_was_read_is_not_repeated() {
    let (upstream, served) = second_request(|reader| {
        read_message(reader, false).unwrap().unwrap();
        // Let the kernel confirm what was read.
        std::thread::sleep(Duration::from_millis(100));
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    assert_eq!(client.post("/1", b"a").status(), 200);
    let second = client.post("/2", b"b");
    assert_eq!(
        (second.status(), second.header("x-agent-fips-proxy-error")),
        (502, Some("upstream_protocol"))
    );
    assert_eq!(
        served.load(Ordering::SeqCst),
        1,
        "the second request was sent twice"
    );
    assert_eq!(upstream.connections(), 1);
    // And the client's connection lives on.
    assert_eq!(client.post("/3", b"c").status(), 200);
}

#[test]
fn a_request_on_a_fresh_connection_is_never_repeated() {
    let upstream = Upstream::raw(|stream, _| {
        stream.peek(&mut [0]).unwrap();
    });
    let proxy = Proxy::start(upstream.address);
    assert_eq!(proxy.client().post("/", b"a").status(), 502);
    assert_eq!(upstream.connections(), 1);
    assert_eq!(proxy.requests(1)[0].outcome, Outcome::UpstreamProtocol);
}

#[test]
fn unasked_bytes_on_an_idle_connection_are_never_taken_for_an_answer() {
    let upstream = Upstream::with(|_, stream| {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 299 Stale\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        Then::Keep
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").status(), 200);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_next_address_is_tried_and_a_broken_one_is_no_error() {
    let upstream = Upstream::start();
    let dead = [127, 0, 0, 3].into();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.hosts = hosts(&[dead, upstream.address.ip()]);
    });
    assert_eq!(proxy.client().get("/").status(), 200);
    let record = &proxy.requests(1)[0];
    assert_eq!(record.upstream_addr, Some(upstream.address));
    assert_eq!(record.outcome, Outcome::Ok);
}

#[test]
fn failures_are_retryable_for_an_agent() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start(closed);
    let response = proxy.client().get("/");
    assert_eq!(
        (response.status(), response.header("x-agent-fips-proxy-error")),
        (502, Some("upstream_connect"))
    );

    let proxy = Proxy::with(closed, |setup| setup.config.upstream.allow_private.clear());
    let response = proxy.client().get("/");
    assert_eq!(
        (response.status(), response.header("x-agent-fips-proxy-error")),
        (503, Some("no_address"))
    );
    assert!(String::from_utf8_lossy(&response.body).contains("upstream.allow_private"));
    assert_eq!(response.header("retry-after"), Some("1"));

    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| setup.tls.fail = true);
    let mut client = proxy.client();
    let response = client.post("/", b"x");
    assert_eq!(
        (response.status(), response.header("x-agent-fips-proxy-error")),
        (502, Some("upstream_tls"))
    );
    assert!(upstream.seen().is_empty());
    assert!(
        proxy.requests(1)[0]
            .error
            .as_deref()
            .unwrap()
            .contains("certificate_expired")
    );
}

#[test]
fn a_listener_of_ours_is_never_an_upstream() {
    let upstream = Upstream::start();
    // Allowed as an address, and somebody listens there: ourselves.
    let proxy = Proxy::with(upstream.address, |setup| {
        let endpoint = Endpoint {
            host: "127.0.0.1".to_owned(),
            port: Some(setup.explicit.port()),
        };
        setup.config.upstream.endpoints.insert(Product::Metrics, endpoint);
    });
    assert_eq!(proxy.client().get("/").status(), 503);
    assert_eq!(
        proxy.records.opened.load(Ordering::Relaxed),
        1,
        "it connected to itself"
    );
}

#[test]
fn a_silent_intake_times_out_and_a_slow_upload_does_not() {
    let upstream = Upstream::raw(|mut stream, _| {
        let mut sink = [0_u8; 4096];
        while stream.read(&mut sink).is_ok_and(|len| len > 0) {}
    });
    let limit = Duration::from_millis(300);
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.upstream.response_timeout = limit;
    });
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n");
    let since = Instant::now();
    for byte in *b"abcd" {
        std::thread::sleep(limit * 2 / 3);
        client.send([byte]);
    }
    let response = client.response();
    assert_eq!(
        (response.status(), response.header("x-agent-fips-proxy-error")),
        (504, Some("upstream_timeout"))
    );
    let took = since.elapsed();
    assert!(
        took >= limit * 8 / 3 + limit && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[test]
fn an_intake_that_reads_little_at_a_time_has_its_time() {
    let limit = Duration::from_millis(500);
    // What the kernel takes at once, so that the intake alone is waited for; and more than that.
    for size in [1_500_000, 12_000_000] {
        let upstream = Upstream::raw(move |stream, _| {
            socket2::SockRef::from(&stream)
                .set_recv_buffer_size(NARROW)
                .unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let request = read_message(&mut reader, true).unwrap().unwrap();
            assert_eq!(request.header("content-length"), Some(size.to_string().as_str()));
            // Some 700 kB a second: until a third of a socket's buffer is free, longer than the limit.
            let slowly = read_slowly(&mut reader.by_ref().take(size), 6 * limit)
                .unwrap()
                .len() as u64;
            let rest = std::io::copy(&mut reader.take(size - slowly), &mut std::io::sink()).unwrap();
            write!(
                &stream,
                "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{:8}",
                slowly + rest
            )
            .unwrap();
        });
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.config.upstream.response_timeout = limit;
        });
        let answer = proxy.client().post("/", &vec![7; usize::try_from(size).unwrap()]);
        assert_eq!(
            (answer.status(), answer.body),
            (200, format!("{size:8}").into_bytes())
        );
    }
}

#[test]
fn an_intake_of_http2_behind_a_slow_line_has_its_time() {
    let intake = listen(|stream| {
        let requests = |request: http::Request<Incoming>| async move {
            let body = request.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from(
                body.len().to_string(),
            ))))
        };
        speak(stream, true, requests, std::future::pending())
    });
    let line = Upstream::raw(move |mut stream, _| {
        socket2::SockRef::from(&stream)
            .set_recv_buffer_size(NARROW)
            .unwrap();
        let mut far = TcpStream::connect(intake).unwrap();
        let (mut from, mut to) = (far.try_clone().unwrap(), stream.try_clone().unwrap());
        std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
        // Some 700 kB a second, in each direction of it what is there.
        while let Ok(some @ [_, ..]) = read_slowly(&mut stream, Duration::from_millis(1)).as_deref() {
            far.write_all(some).unwrap();
        }
    });
    let limit = Duration::from_millis(500);
    let proxy = Proxy::with(line.address, |setup| {
        setup.tls.http2 = true;
        setup.config.upstream.response_timeout = limit;
    });
    let since = Instant::now();
    // As much as an intake lets be on its way to it.
    let answer = proxy.client().post("/", &vec![7; 1_000_000]);
    assert_eq!((answer.status(), answer.body), (200, b"1000000".to_vec()));
    let took = since.elapsed();
    assert!(took > 2 * limit, "{took:?}: it was not slow");
}

#[test]
fn an_intake_that_reads_nothing_has_a_time_limit() {
    let limit = Duration::from_millis(300);
    for size in [1_500_000, 50_000_000] {
        let upstream = Upstream::raw(|stream, _| {
            std::thread::sleep(Duration::from_secs(20));
            drop(stream);
        });
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.config.upstream.response_timeout = limit;
        });
        let mut client = proxy.client();
        let since = Instant::now();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
        ));
        let mut writer = client.stream.try_clone().unwrap();
        // Until nobody takes any more.
        let sending = std::thread::spawn(move || drop(writer.write_all(&vec![7; size])));
        assert_eq!(client.response().status(), 504, "{size}");
        let took = since.elapsed();
        assert!(took >= limit && took < limit * 10, "{size}: {took:?}");
        drop((client, proxy));
        sending.join().unwrap();
    }
}

#[test]
fn interim_answers_are_bounded_in_number_and_in_time() {
    const EARLY: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    let upstream = Upstream::with(|request, stream| {
        let count: usize = request.head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        // Its reader may have had enough.
        let said = stream
            .write_all(&EARLY.repeat(count))
            .and_then(|()| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        match said {
            Ok(()) => Then::Keep,
            Err(_) => Then::Close,
        }
    });
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    for (count, status) in [(1, 200), (16, 200), (17, 502), (5000, 502), (16, 200)] {
        let answer = client.get(&format!("/{count}"));
        assert_eq!(answer.status(), status, "{count} interim answers");
    }
    assert!(
        proxy.requests(5)[2]
            .error
            .as_deref()
            .is_some_and(|error| error.contains("interim answers")),
    );

    let upstream = Upstream::raw(|mut stream, _| {
        stream.peek(&mut [0]).unwrap();
        // A few, or a head byte by byte: never to its end.
        while stream.write_all(EARLY).is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let limit = Duration::from_millis(500);
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.upstream.response_timeout = limit;
    });
    let since = Instant::now();
    let answer = proxy.client().get("/");
    let took = since.elapsed();
    assert_eq!(answer.status(), 504);
    assert!(took >= limit && took < limit * 3, "{took:?}");
}

#[test]
fn endpoints_and_default_ports() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.upstream.port = 1;
        setup.product = Product::Logs;
        let endpoint = Endpoint {
            host: "127.0.0.1".to_owned(),
            port: Some(upstream.address.port()),
        };
        setup.config.upstream.endpoints.insert(Product::Logs, endpoint);
    });
    assert_eq!(proxy.client().post("/api/v2/logs", b"[]").status(), 200);
    assert_eq!(
        upstream.seen()[0].header("host"),
        Some("agent-http-intake.logs.ddog-gov.com")
    );
    assert_eq!(
        *proxy.tls.names.lock().unwrap(),
        ["agent-http-intake.logs.ddog-gov.com"]
    );
}

#[test]
fn of_public_and_private_addresses_the_allowed_ones_are_used() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.hosts = hosts(&[
            [10, 0, 0, 1].into(),
            "::ffff:10.0.0.2".parse().unwrap(),
            [169, 254, 169, 254].into(),
            "fe80::1".parse().unwrap(),
            upstream.address.ip(),
        ]);
    });
    assert_eq!(proxy.client().get("/").status(), 200);
    assert_eq!(proxy.requests(1)[0].upstream_addr, Some(upstream.address));
}

#[test]
fn an_endpoint_that_leads_to_a_private_address_needs_the_key_that_the_refusal_names() {
    for address in [
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "169.254.169.254",
        "fd00::1",
        "127.0.0.1",
    ] {
        let upstream = Upstream::start();
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.hosts = format!("{address} vpce-1.example.net\n");
            setup.config.upstream.allow_private.clear();
            let endpoint = Endpoint {
                host: "vpce-1.example.net".to_owned(),
                port: None,
            };
            setup.config.upstream.endpoints.insert(Product::Metrics, endpoint);
        });
        let answer = proxy.client().get("/");
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status(), 503, "{address}: {body}");
        assert!(
            body.contains("upstream.allow_private") && body.contains("vpce-1.example.net"),
            "{address}: {body}"
        );
        assert_eq!(upstream.connections(), 0);
    }
}

#[test]
fn a_connection_takes_no_request_after_servers_are_judged_by_something_else() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = proxy.client();
    for _ in 0..3 {
        client.get("/");
    }
    assert_eq!(upstream.connections(), 1);
    proxy.tls.generation.store(1, Ordering::Relaxed);
    for _ in 0..3 {
        client.get("/");
    }
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn idle_connections_are_closed_in_time() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.upstream.pool_idle_timeout = Duration::from_millis(200);
    });
    let mut client = proxy.client();
    client.get("/");
    std::thread::sleep(Duration::from_millis(400));
    client.get("/");
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn http2_upstream_is_shared_and_a_refused_stream_is_repeated() {
    let refusals = Arc::new(AtomicUsize::new(0));
    let connections = Arc::new(AtomicUsize::new(0));
    let (seen, refuse, accepted) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::clone(&refusals),
        Arc::clone(&connections),
    );
    let served = Arc::clone(&seen);
    let address = listen(move |stream| {
        accepted.fetch_add(1, Ordering::SeqCst);
        let (served, refuse) = (Arc::clone(&served), Arc::clone(&refuse));
        let requests = move |request: http::Request<Incoming>| {
            let (served, refuse) = (Arc::clone(&served), Arc::clone(&refuse));
            async move {
                assert_eq!(request.uri().authority().unwrap(), "metrics.agent.ddog-gov.com");
                assert_eq!(request.uri().scheme_str(), Some("https"));
                assert!(request.headers().get("host").is_none());
                if request.uri().path() == "/refused" && refuse.fetch_add(1, Ordering::SeqCst) == 0 {
                    return Err(h2::Error::from(h2::Reason::REFUSED_STREAM));
                }
                let body = request.into_body().collect().await.unwrap().to_bytes();
                served.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(http::Response::new(Full::new(Bytes::from(
                    body.len().to_string(),
                ))))
            }
        };
        speak(stream, true, requests, std::future::pending())
    });
    let proxy = Proxy::with(address, |setup| setup.tls.http2 = true);
    assert_eq!(
        proxy.client().post("/first", &vec![7; 3_000_000]).body,
        b"3000000"
    );
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = proxy.client();
            std::thread::spawn(move || client.post("/many", b"12345"))
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap().body, b"5");
    }
    assert_eq!(
        connections.load(Ordering::SeqCst),
        1,
        "many requests share one connection"
    );
    assert_eq!(proxy.client().post("/refused", b"123").body, b"3");
    assert_eq!(
        (refusals.load(Ordering::SeqCst), seen.load(Ordering::SeqCst)),
        (2, 10)
    );
    let records = proxy.requests(10);
    assert!(records.iter().all(|record| record.upstream_http == Some("2")));
    assert_eq!(records[9].retries, 1);
}

#[test]
fn the_connection_of_an_answered_request_is_found_again_by_other_clients() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    for _ in 0..10 {
        assert_eq!(proxy.client().get("/").status(), 200);
    }
    eventually(|| (proxy.records.connections.lock().unwrap().len() == 10).then_some(()));
    assert_eq!(upstream.connections(), 1);
}
