//! Requests: interim answers, old clients, order, uploads, and clients that leave.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent_fips_proxy::relay::outcome::Outcome;

use super::Intake;
use crate::harness::eventually;

const EXPECTING: &str =
    "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[test]
fn a_client_is_told_to_continue_when_it_waits_and_the_intake_is_there() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        for _ in 0..2 {
            client.send(EXPECTING);
            let interim = client.head_response();
            assert_eq!(interim.head, "HTTP/1.1 100 Continue\r\n", "{}", intake.name());
            assert_eq!(client.send("hello").response().body, b"5");
            // Not when the body came along: nobody waits.
            let answer = client.send(format!("{EXPECTING}hello")).response();
            assert_eq!(
                (answer.status(), answer.body),
                (200, b"5".to_vec()),
                "{}",
                intake.name()
            );
        }
        // HTTP/1.0 knows no interim answers.
        let mut old = proxy.client();
        old.send(EXPECTING.replace("HTTP/1.1", "HTTP/1.0"));
        std::thread::sleep(Duration::from_millis(50));
        let answer = String::from_utf8(old.send("hello").rest()).unwrap();
        assert!(
            answer.starts_with("HTTP/1.0 200 OK\r\n"),
            "{}: {answer}",
            intake.name()
        );
        let seen = intake.seen();
        assert_eq!(seen.len(), 5);
        assert!(
            seen.iter()
                .all(|got| got.body == b"hello" && !got.headers.contains_key("expect"))
        );

        // No connection, no invitation.
        let proxy = intake.proxy_with(|setup| setup.tls.fail = true);
        let mut client = proxy.client();
        client.send(EXPECTING);
        assert_eq!(client.response().status(), 502, "{}", intake.name());
    }
}

/// A client that waits for permission takes a final answer for none, and may use its connection for something else, although it was
/// invited meanwhile: then that would be read as the body.
#[test]
fn an_early_answer_to_who_hesitates_is_the_last_of_its_connection() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        client.send(
            "POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        );
        let mut answer = client.response();
        if answer.status() == 100 {
            answer = client.response();
        }
        assert_eq!(
            (answer.status(), answer.header("connection")),
            (413, Some("close")),
            "{}: {}",
            intake.name(),
            answer.head
        );
        // Who sent its body has said what its connection is for.
        let mut client = proxy.client();
        client.send(
            "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        );
        assert_eq!(client.response().status(), 100, "{}", intake.name());
        client.send("hello");
        let answer = client.response();
        assert_eq!((answer.status(), answer.header("connection")), (200, None));
    }
}

#[test]
fn clients_of_http_1_0_get_what_they_can_read() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let name = intake.name();
        let mut client = proxy.client();
        for n in 0..3 {
            client.send("GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
            let answer = client.response();
            assert!(
                answer.head.starts_with("HTTP/1.0 200 OK\r\n"),
                "{name} {n}: {}",
                answer.head
            );
            assert_eq!(
                (answer.header("connection"), answer.body.as_slice()),
                (Some("keep-alive"), b"0".as_slice()),
                "{name} {n}"
            );
        }
        // Without a length it ends with the connection, although it was to be kept.
        client.send("GET /parts HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.response();
        assert_eq!(
            (
                answer.header("connection"),
                answer.header("transfer-encoding"),
                answer.body.as_slice()
            ),
            (Some("close"), None, b"onetwothree".as_slice()),
            "{name}"
        );
        let mut client = proxy.client();
        client.send("GET /echo HTTP/1.0\r\n\r\n");
        let answer = client.response();
        assert_eq!(
            (answer.header("connection"), answer.body.as_slice()),
            (Some("close"), b"0".as_slice()),
            "{name}"
        );
        assert_eq!(client.rest(), b"", "{name}");
    }
}

#[test]
fn pipelined_requests_in_order_and_a_refusal_behind_them() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        client.send(
            "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc\
             GET /parts HTTP/1.1\r\nHost: localhost\r\n\r\n\
             POST /c HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n\
             GET /d HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n\
             GET /e HTTP/1.1\r\nHost: localhost\r\n\r\n",
        );
        let bodies = [
            client.response().body,
            client.response().body,
            client.response().body,
        ];
        assert_eq!(
            bodies,
            [b"3".to_vec(), b"onetwothree".to_vec(), b"4".to_vec()],
            "{}",
            intake.name()
        );
        assert_eq!(client.response().status(), 400);
        assert_eq!(client.rest(), b"");
        let paths: Vec<String> = intake.seen().into_iter().map(|got| got.path).collect();
        assert_eq!(paths, ["/a", "/parts", "/c"], "{}", intake.name());
        assert_eq!(intake.counts.connections.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn trailers_of_an_upload_end_here() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        for _ in 0..2 {
            client.send(
                "POST /t HTTP/1.1\r\nHost: localhost\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5;x=y\r\nhello\r\n0\r\nX-T: 1\r\nContent-Length: 9\r\n\r\n",
            );
            assert_eq!(client.response().body, b"5", "{}", intake.name());
        }
        for got in intake.seen() {
            assert_eq!(
                (got.body.as_slice(), got.trailers),
                (b"hello".as_slice(), None),
                "{}",
                intake.name()
            );
            assert!(!got.headers.contains_key("trailer") && !got.headers.contains_key("x-t"));
        }
        assert_eq!(intake.seen().len(), 2);
    }
}

#[test]
fn an_early_answer_is_given_and_the_rest_of_the_body_is_no_request() {
    for intake in Intake::both() {
        let proxy = intake.proxy();
        let mut client = proxy.client();
        let smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client
            .send("POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n")
            .send([b'x'; 1000]);
        let answer = client.response();
        assert_eq!(
            (answer.status(), answer.body),
            (413, b"enough".to_vec()),
            "{}",
            intake.name()
        );
        // It goes on with its body, which looks like requests, as far as anybody takes it.
        let rest = smuggled.repeat(3_999_000 / smuggled.len() + 1);
        let _ = client.stream.write_all(&rest[..3_999_000]);
        let _ = client
            .stream
            .write_all(b"GET /after HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let after = String::from_utf8(client.rest()).unwrap();
        assert!(
            after.is_empty() || after.starts_with("HTTP/1.1 200 OK\r\n"),
            "{}: {after}",
            intake.name()
        );
        assert!(
            after.matches("HTTP/1.1").count() <= 1,
            "{}: {after}",
            intake.name()
        );
        // The next one is served, over whatever connection.
        assert_eq!(
            proxy.client().post("/next", b"1234").body,
            b"4",
            "{}",
            intake.name()
        );
        assert!(
            intake
                .seen()
                .iter()
                .all(|got| got.path == "/after" || got.path == "/next"),
            "{:?}",
            intake.seen()
        );
    }
}

#[test]
fn a_client_that_leaves_ends_its_request() {
    for intake in Intake::both() {
        let name = intake.name();
        let proxy = intake.proxy();
        let gone = |count| eventually(|| (intake.counts.gone.load(Ordering::SeqCst) == count).then_some(()));
        // Before the answer.
        let mut client = proxy.client();
        client.send("GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n");
        eventually(|| (intake.counts.connections.load(Ordering::SeqCst) == 1).then_some(()));
        std::thread::sleep(Duration::from_millis(30));
        drop(client);
        gone(1);
        assert_eq!(proxy.requests(1)[0].outcome, Outcome::ClientAborted, "{name}");
        // Within it.
        let mut client = proxy.client();
        client.send("GET /drip HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(client.head_response().status(), 200);
        drop(client);
        gone(2);
        assert_eq!(proxy.requests(2)[1].outcome, Outcome::ClientAborted, "{name}");
        // Within its body.
        let mut client = proxy.client();
        client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc");
        std::thread::sleep(Duration::from_millis(30));
        drop(client);
        assert_eq!(proxy.requests(3)[2].outcome, Outcome::ClientAborted, "{name}");
        assert_eq!(proxy.client().post("/echo", b"12").body, b"2", "{name}");
        let whole: Vec<String> = intake.seen().into_iter().map(|got| got.path).collect();
        assert_eq!(whole, ["/drip", "/echo"], "{name}");
    }
}
