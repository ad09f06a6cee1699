//! Answers: bodiless ones, broken ones, large ones, and clients that do not read.

use std::io::{BufReader, Cursor, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent_fips_proxy::relay::outcome::Outcome;

use super::{Intake, PART, PARTS, part};
use crate::harness::{Client, eventually, read_message, read_slowly};

#[test]
fn answers_without_body_keep_the_connection_in_step() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        for _ in 0..2 {
            client.send("HEAD /echo HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let head = client.head_response();
            assert_eq!(
                (head.status(), head.header("content-length")),
                (200, Some("7")),
                "{}",
                intake.name()
            );
            client.send("HEAD /parts HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(client.head_response().status(), 200, "{}", intake.name());
            for status in [204, 304] {
                let answer = client.get(&format!("/{status}"));
                assert_eq!(
                    (answer.status(), answer.header("transfer-encoding")),
                    (status, None),
                    "{}",
                    intake.name()
                );
            }
            assert_eq!(client.post("/echo", b"123").body, b"3", "{}", intake.name());
        }
        let records = proxy.requests(10);
        assert!(
            records.iter().all(|record| record.outcome == Outcome::Ok),
            "{records:?}"
        );
    }
}

#[test]
fn an_answer_that_breaks_is_cut_for_every_client() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        client.send("GET /cut HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let broken = read_message(&mut client.reader, false);
        assert!(broken.is_err(), "{}: {broken:?}", intake.name());
        // Who speaks HTTP/1.0 sees no framing: nothing but a reset says that this is not all.
        let mut old = proxy.client();
        old.send("GET /cut HTTP/1.0\r\n\r\n");
        let mut all = Vec::new();
        let end = old.reader.read_to_end(&mut all).map_err(|error| error.kind());
        assert_eq!(
            end,
            Err(std::io::ErrorKind::ConnectionReset),
            "{}: {}",
            intake.name(),
            all.escape_ascii()
        );
        let records = proxy.requests(2);
        assert!(
            records
                .iter()
                .all(|record| record.outcome == Outcome::UpstreamProtocol),
            "{}: {records:?}",
            intake.name()
        );
    }
}

#[test]
fn a_large_answer_waits_for_a_slow_client_and_is_whole() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        client.send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
        // Until nothing moves.
        let mut before = 0;
        let stuck = eventually(|| {
            std::thread::sleep(Duration::from_millis(200));
            let now = intake.counts.parts.load(Ordering::SeqCst);
            (now > 0 && std::mem::replace(&mut before, now) == now).then_some(now)
        });
        // Kernel buffers of four sockets (up to 6 MiB receive, 4 MiB send each way), hyper's and ours.
        assert!(
            stuck * PART < 24 << 20,
            "{}: {stuck} parts were taken although nobody reads",
            intake.name()
        );
        let answer = client.response();
        assert_eq!(answer.body.len(), PART * PARTS, "{}", intake.name());
        for (number, got) in answer.body.chunks(PART).enumerate() {
            assert!(got == part(number), "{}: part {number} is another", intake.name());
        }
        assert_eq!(proxy.requests(1)[0].bytes_down, (PART * PARTS) as u64);
    }
}

#[test]
fn a_client_that_does_not_read_has_a_time_limit() {
    for intake in Intake::both() {
        let proxy = intake.proxy_with(|setup| setup.config.limits.idle_timeout = Duration::from_millis(300));
        let mut client = proxy.client();
        client.send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(
            proxy.requests(1)[0].outcome,
            Outcome::ClientAborted,
            "{}",
            intake.name()
        );
        assert!(
            intake.counts.parts.load(Ordering::SeqCst) < PARTS,
            "{}",
            intake.name()
        );
        assert!(
            read_message(&mut client.reader, false).is_err(),
            "{}: it seems whole",
            intake.name()
        );
    }
}

#[test]
fn a_client_that_reads_little_at_a_time_keeps_its_answer() {
    for intake in Intake::both() {
        let limit = Duration::from_millis(500);
        let proxy = intake.proxy_with(|setup| setup.config.limits.idle_timeout = limit);
        let mut client = Client::narrow(proxy.explicit);
        client.send("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n");
        // Some 700 kB a second: until a third of a socket's buffer is free, longer than the limit.
        let first = read_slowly(&mut client.stream, 6 * limit).unwrap();
        let mut all = BufReader::new(Cursor::new(first).chain(&client.stream));
        let answer = read_message(&mut all, false).unwrap().unwrap();
        assert_eq!(answer.body.len(), PART * PARTS, "{}", intake.name());
        assert_eq!(proxy.requests(1)[0].outcome, Outcome::Ok, "{}", intake.name());
    }
}

#[test]
fn an_answer_that_ends_with_its_connection_is_reset_when_draining_cuts_it() {
    for intake in Intake::both() {
        let mut proxy =
            intake.proxy_with(|setup| setup.config.limits.drain_timeout = Duration::from_millis(200));
        let mut old = proxy.client();
        old.send("GET /drip HTTP/1.0\r\n\r\n");
        assert_eq!(old.head_response().status(), 200);
        let mut part = [0; 3];
        old.reader.read_exact(&mut part).unwrap();
        proxy.drain();
        proxy.join();
        let end = old.reader.read(&mut part).map_err(|error| error.kind());
        assert_eq!(
            end,
            Err(std::io::ErrorKind::ConnectionReset),
            "{}: what was cut looks whole",
            intake.name()
        );
        assert_eq!(
            proxy.requests(1)[0].outcome,
            Outcome::ClientAborted,
            "{}",
            intake.name()
        );
    }
}

#[test]
fn an_answer_without_content_has_no_length() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        for _ in 0..2 {
            let answer = client.get("/204");
            assert_eq!(
                (answer.status(), answer.header("content-length")),
                (204, None),
                "{}",
                intake.name()
            );
        }
    }
}

#[test]
fn a_connection_that_the_intake_ends_while_it_is_idle_is_replaced() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        for n in 1..=10 {
            assert_eq!(client.post("/echo", b"12").body, b"2", "{} {n}", intake.name());
            intake.counts.goodbye.notify_waiters();
            // Now and then at once, so that the request meets the end on its way.
            if n % 2 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // The others may have met the end too late.
        assert!(
            intake.counts.connections.load(Ordering::SeqCst) >= 5,
            "{}",
            intake.name()
        );
    }
}
