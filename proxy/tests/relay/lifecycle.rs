//! Limits, time-outs, draining, and records that are told once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use agent_fips_proxy::relay::outcome::Outcome;

use crate::harness::{Client, Proxy, Then, Upstream, eventually};

/// An upstream that answers when told.
fn gated() -> (Upstream, Arc<AtomicBool>) {
    let gate = Arc::new(AtomicBool::new(false));
    let open = Arc::clone(&gate);
    let upstream = Upstream::with(move |_, stream| {
        while !open.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        Then::Keep
    });
    (upstream, gate)
}

#[test]
fn draining_finishes_requests_and_refuses_connections() {
    let (upstream, gate) = gated();
    let mut proxy = Proxy::start(upstream.address);
    let mut busy = proxy.client();
    busy.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut idle = proxy.client();
    let mut fresh = proxy.client();
    let mut partial = proxy.client();
    partial.send("GET /partial HTTP/1.1\r\nHo");
    eventually(|| (upstream.seen().len() == 1).then_some(()));
    thread::sleep(Duration::from_millis(50));
    proxy.drain();
    // What was accepted a moment ago may still ask, once.
    fresh.send("GET /fresh HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(idle.rest(), b"", "an idle connection is closed");
    eventually(|| {
        std::net::TcpStream::connect(proxy.explicit)
            .is_err()
            .then_some(())
    });
    gate.store(true, Ordering::SeqCst);
    for client in [&mut busy, &mut fresh, partial.send("st: localhost\r\n\r\n")] {
        let response = client.response();
        assert_eq!(
            (response.status(), response.header("connection")),
            (200, Some("close"))
        );
        assert_eq!(client.rest(), b"");
    }
    drop((busy, idle, fresh, partial));
    assert!(
        proxy.join() < Duration::from_secs(4),
        "it returns when all is done, before the time is over"
    );
    let connections = proxy.connections(4);
    assert!(
        connections.iter().all(|record| record.outcome == Outcome::Ok),
        "{connections:?}"
    );
}

#[test]
fn what_does_not_finish_is_cut_after_the_drain_time_out() {
    let (upstream, _gate) = gated();
    let mut proxy = Proxy::with(upstream.address, |setup| {
        setup.config.limits.drain_timeout = Duration::from_millis(200);
    });
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    eventually(|| (upstream.seen().len() == 1).then_some(()));
    proxy.drain();
    let took = proxy.join();
    assert!(
        took >= Duration::from_millis(150) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!(proxy.requests(1)[0].outcome, Outcome::ClientAborted);
}

#[test]
fn over_the_limit_is_503_and_a_freed_slot_serves_again() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| setup.config.limits.max_connections = 2);
    let mut held = [proxy.client(), proxy.client()];
    for client in &mut held {
        assert_eq!(client.get("/").status(), 200);
    }
    let mut third = proxy.client();
    let response = third.response();
    assert_eq!(
        (response.status(), response.header("retry-after")),
        (503, Some("1"))
    );
    assert_eq!(third.rest(), b"");
    drop(held);
    proxy.connections(3);
    assert_eq!(proxy.client().get("/").status(), 200);
    let connections = proxy.connections(4);
    assert_eq!(
        connections
            .iter()
            .filter(|record| record.outcome == Outcome::Overloaded)
            .count(),
        1
    );
}

/// Each byte comes in time for a limit on silence.
#[test]
fn a_body_byte_by_byte_has_its_limit_too() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.limits.idle_timeout = Duration::from_secs(2);
        setup.config.limits.min_body_rate = 64;
    });
    // The same number of waits for each, but what comes of one is enough.
    let clients = ["x".repeat(100), "x".to_owned()].map(|part| {
        let mut client = proxy.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            40 * part.len()
        ));
        let mut stream = client.stream.try_clone().unwrap();
        let sending = thread::spawn(move || {
            (0..40)
                .take_while(|_| {
                    thread::sleep(Duration::from_millis(100));
                    stream.write_all(part.as_bytes()).is_ok()
                })
                .count()
        });
        (client, sending)
    });
    let [(mut steady, sent), (mut slow, _)] = clients;
    let answer = slow.response();
    assert_eq!(answer.status(), 408);
    assert!(
        String::from_utf8_lossy(&answer.body).contains("limits.min_body_rate"),
        "{answer:?}"
    );
    assert_eq!(sent.join().unwrap(), 40);
    assert_eq!(steady.response().status(), 200);
    let late = &proxy.requests(2)[0];
    assert_eq!(late.outcome, Outcome::ClientTimeout);
    assert!((1..40).contains(&late.bytes_up), "{late:?}");
}

#[test]
fn slow_heads_bodies_and_idle_clients_have_their_limits() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.limits.header_timeout = Duration::from_millis(200);
        setup.config.limits.idle_timeout = Duration::from_millis(600);
    });
    let timed = |bytes: &str| {
        let mut client = proxy.client();
        client.send(bytes);
        let since = Instant::now();
        (String::from_utf8(client.rest()).unwrap(), since.elapsed())
    };
    let (answer, took) = timed("GET / HTTP/1.1\r\nHo");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        took >= Duration::from_millis(150) && took < Duration::from_millis(550),
        "{took:?}"
    );

    let (answer, took) = timed("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhe");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        took >= Duration::from_millis(550) && took < Duration::from_secs(3),
        "{took:?}"
    );

    let (answer, took) = timed("");
    assert_eq!(answer, "");
    assert!(
        took >= Duration::from_millis(550) && took < Duration::from_secs(3),
        "{took:?}"
    );

    // Between two requests as before the first.
    let mut client = proxy.client();
    client.get("/");
    let since = Instant::now();
    assert_eq!(client.rest(), b"");
    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(550) && took < Duration::from_secs(3),
        "{took:?}"
    );

    // Byte by byte within the limit in all is fine.
    let mut client = proxy.client();
    for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" {
        client.send([*byte]);
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(client.response().status(), 200);
    assert!(
        upstream
            .seen()
            .iter()
            .all(|request| request.head.starts_with("GET / "))
    );
}

#[test]
fn a_client_that_does_not_read_its_answer_is_dropped() {
    let upstream = Upstream::with(|_, stream| {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            .unwrap();
        while stream.write_all(&[0; 65536]).is_ok() {}
        Then::Close
    });
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.limits.idle_timeout = Duration::from_millis(300);
    });
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // Not reading: the record comes because the proxy gave up, not because the client left.
    assert_eq!(proxy.requests(1)[0].outcome, Outcome::ClientAborted);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_each_is_recorded_once() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(upstream.address);
    let mut client = Client::connect(proxy.explicit);
    let request = |n: usize| {
        format!(
            "POST /{n} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n}\r\n\r\n{}",
            "x".repeat(n)
        )
    };
    client.send((0..20).map(request).collect::<String>());
    for n in 0..20 {
        assert_eq!(client.response().body, n.to_string().into_bytes());
    }
    drop(client);
    let records = proxy.requests(20);
    assert_eq!(records.len(), 20);
    for (n, record) in records.iter().enumerate() {
        assert_eq!(
            (record.path.as_str(), record.bytes_up),
            (format!("/{n}").as_str(), n as u64)
        );
    }
    let connections = proxy.connections(1);
    assert_eq!(
        (connections[0].requests, connections[0].outcome),
        (20, Outcome::Ok)
    );
    assert_eq!(proxy.records.opened.load(Ordering::Relaxed), 1);
}
