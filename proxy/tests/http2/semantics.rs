//! What a request means survives the change of protocol: trailers, streams that go both ways, empty bodies, cookies, the end
//! of a client and of ourselves.

use std::time::Duration;

use agent_fips_proxy::relay::outcome::Outcome;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;

use crate::frames::{END_HEADERS, END_STREAM, Frame as Said, GOAWAY, NO_ERROR, RST_STREAM, Raw, WHOLE};
use crate::harness::{Then, Upstream, eventually};
use crate::intake::{Intake, Sender, asking, connect, empty, full, pipe};
use crate::world::{World, get, post};

/// Status, headers, body and trailers of an answer.
async fn ask(
    sender: &mut Sender,
    request: http::Request<crate::intake::Any>,
) -> (StatusCode, HeaderMap, String, HeaderMap) {
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let whole = body.collect().await.unwrap();
    let trailers = whole.trailers().cloned().unwrap_or_default();
    let text = String::from_utf8_lossy(&whole.to_bytes()).into_owned();
    (parts.status, parts.headers, text, trailers)
}

/// With trailers in the request, as gRPC has its status in those of the answer.
fn grpc() -> http::Request<crate::intake::Any> {
    let (sender, body) = pipe();
    sender.send(Frame::data(Bytes::from_static(b"hello"))).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("42"));
    sender.send(Frame::trailers(trailers)).unwrap();
    let mut request = asking("POST", "/grpc", body);
    request
        .headers_mut()
        .insert("te", HeaderValue::from_static("trailers"));
    request
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_pass_both_ways_where_the_intake_speaks_http2() {
    let intake = Intake::start(true);
    let world = World::with(intake.address, |setup| setup.tls.http2 = true);
    let mut sender = connect(&world).await;
    let (status, _, text, trailers) = ask(&mut sender, grpc()).await;
    assert_eq!(status, 200);
    assert!(
        text.contains(r#""te": "trailers""#) && text.contains(r#""x-checksum": "42""#),
        "{text}"
    );
    assert_eq!(trailers["grpc-status"], "0");
    drop(sender);
    let record = &world.requests(1)[0];
    assert_eq!((record.outcome, record.upstream_http), (Outcome::Ok, Some("2")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_of_a_request_end_where_the_intake_speaks_http1() {
    let intake = Intake::start(false);
    let world = World::new(intake.address);
    let mut sender = connect(&world).await;
    for _ in 0..2 {
        let (status, _, text, _) = ask(&mut sender, grpc()).await;
        assert_eq!(status, 200);
        assert!(
            !text.contains("x-checksum") && !text.contains(r#""te""#),
            "{text}"
        );
        assert!(text.contains(r#""transfer-encoding": "chunked""#), "{text}");
    }
    let records = world.requests(2);
    assert!(
        records
            .iter()
            .all(|record| record.outcome == Outcome::Ok && record.upstream_http == Some("1.1")),
        "{records:?}"
    );
    assert_eq!(
        intake
            .counts
            .connections
            .load(std::sync::atomic::Ordering::SeqCst),
        1,
        "it is used again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_of_an_http1_answer_reach_the_client() {
    let upstream = Upstream::raw(|mut stream, _| {
        use std::io::{BufReader, Write};
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Ok(Some(_)) = crate::harness::read_message(&mut reader, false) {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n")
                .unwrap();
        }
    });
    let world = World::new(upstream.address);
    let mut sender = connect(&world).await;
    for count in 1..3 {
        let (status, headers, text, trailers) = ask(&mut sender, asking("GET", "/", empty())).await;
        assert_eq!(
            (status.as_u16(), text.as_str(), &trailers["x-sum"]),
            (200, "ok", &HeaderValue::from_static("7"))
        );
        assert!(!headers.contains_key("trailer") && !headers.contains_key("transfer-encoding"));
        assert_eq!(world.requests(count)[count - 1].outcome, Outcome::Ok);
    }
    assert_eq!(upstream.connections(), 1, "the intake's connection is used again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn both_sides_talk_at_the_same_time() {
    for http2 in [true, false] {
        let intake = Intake::start(http2);
        let world = World::with(intake.address, |setup| setup.tls.http2 = http2);
        let mut sender = connect(&world).await;
        let (say, body) = pipe();
        // hyper waits for the first piece of a body before it has an answer from some servers.
        say.send(Frame::data(Bytes::from_static(b"0"))).unwrap();
        let mut answer = sender
            .send_request(asking("POST", "/talk", body))
            .await
            .unwrap()
            .into_body();
        for number in 0..20 {
            let heard = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(heard, number.to_string().as_bytes());
            say.send(Frame::data(Bytes::from((number + 1).to_string())))
                .unwrap();
        }
        drop(say);
        let rest = answer.collect().await.unwrap();
        if http2 {
            assert_eq!(rest.trailers().unwrap()["grpc-status"], "0");
        }
        assert_eq!(rest.to_bytes(), "20");
        assert_eq!(world.requests(1)[0].outcome, Outcome::Ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_resets_a_stream_takes_its_upstream_request_along() {
    for http2 in [true, false] {
        let intake = Intake::start(http2);
        let world = World::with(intake.address, |setup| setup.tls.http2 = http2);
        let mut sender = connect(&world).await;
        let asked = tokio::spawn({
            let mut sender = sender.clone();
            async move {
                sender
                    .send_request(asking("GET", "/never", empty()))
                    .await
                    .map(drop)
            }
        });
        while intake.begun() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        asked.abort();
        while intake.cancelled() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (status, ..) = ask(&mut sender, asking("GET", "/", empty())).await;
        assert_eq!(status, 200, "the connection goes on");
        let records = world.requests(2);
        assert_eq!(records[0].outcome, Outcome::ClientAborted);
        // An answer that is under way.
        let mut body = sender
            .send_request(asking("GET", "/endless", empty()))
            .await
            .unwrap()
            .into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_eq!(world.requests(3)[2].outcome, Outcome::ClientAborted);
    }
}

/// An answer before the end of a request is followed by RST_STREAM, for which some clients throw it away.
#[test]
fn a_refusal_waits_for_the_end_of_a_small_body() {
    let intake = Intake::start(true);
    let world = World::new(intake.address);
    let mut foreign = post("/x");
    foreign[2].1 = "example.org";
    let resets = |raw: &Raw| -> Vec<u32> {
        let resets = raw.heard.iter().filter(|frame| frame.kind == RST_STREAM);
        resets.map(Said::code).collect()
    };
    let mut raw = world.raw();
    raw.headers(1, END_HEADERS, &foreign);
    // Read by now, and nothing else to do.
    assert!(raw.ping());
    raw.data(1, END_STREAM, &[b'x'; 10_000]);
    assert_eq!(raw.answer(1).0, 421);
    assert!(raw.ping());
    assert!(resets(&raw).is_empty(), "{:?}", raw.heard);
    // What is large, does not come, or waits for our word is not waited for.
    let mut large = foreign.to_vec();
    large.push(("content-length", "1000000"));
    raw.headers(3, END_HEADERS, &large);
    assert_eq!(raw.answer(3).0, 421);
    raw.headers(5, END_HEADERS, &foreign);
    assert_eq!(raw.answer(5).0, 421);
    let mut waiting = foreign.to_vec();
    waiting.push(("expect", "100-continue"));
    raw.headers(7, END_HEADERS, &waiting);
    assert_eq!(raw.answer(7).0, 421);
    assert!(raw.ping());
    assert_eq!(resets(&raw), [NO_ERROR; 3]);
    raw.leave();
    let records = world.requests(4);
    assert!(
        records
            .iter()
            .all(|record| record.outcome == Outcome::Misdirected),
        "{records:?}"
    );
    assert_eq!(intake.begun(), 0);
}

#[test]
fn while_we_drain_what_is_in_flight_is_finished() {
    let intake = Intake::start(true);
    let mut world = World::with(intake.address, |setup| setup.tls.http2 = true);
    let mut idle = world.raw();
    assert!(idle.ping());
    let mut raw = world.raw();
    raw.headers(1, WHOLE, &get("/held"));
    eventually(|| (intake.begun() == 1).then_some(()));
    world.drain();
    // A warning first, then, when the client has seen it, which stream was the last.
    for last in [u32::MAX >> 1, 1] {
        let farewell = raw.until(|frame| frame.kind == GOAWAY).unwrap();
        assert_eq!(farewell.payload[..4], last.to_be_bytes());
        assert_eq!(farewell.code(), NO_ERROR);
    }
    assert_eq!(idle.read_out(), Some(NO_ERROR));
    // What comes later is not taken.
    raw.headers(3, WHOLE, &get("/late"));
    intake.open.send_replace(true);
    assert_eq!(raw.answer(1), (200, b"held".to_vec()));
    raw.read_out();
    assert!(raw.heard.iter().all(|frame| frame.stream != 3));
    drop((raw, idle));
    world.stop();
    assert_eq!(intake.begun(), 1);
    let records = world.connections(2);
    assert!(
        records.iter().all(|record| record.outcome == Outcome::Ok),
        "{records:?}"
    );
    assert_eq!(world.requests(1)[0].outcome, Outcome::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn empty_answers_stay_empty() {
    for http2 in [true, false] {
        let intake = Intake::start(http2);
        let world = World::with(intake.address, |setup| setup.tls.http2 = http2);
        let mut sender = connect(&world).await;
        for (method, path, expected) in [
            ("HEAD", "/", 200),
            ("GET", "/204", 204),
            ("GET", "/304", 304),
            ("GET", "/", 200),
        ] {
            let (status, headers, text, _) = ask(&mut sender, asking(method, path, empty())).await;
            assert_eq!(status, expected);
            assert_eq!(
                text.is_empty(),
                (method, path) != ("GET", "/"),
                "{method} {path}: {text}"
            );
            assert!(!headers.contains_key("connection"), "{headers:?}");
            if method == "HEAD" {
                assert_ne!(headers["content-length"], "0", "it is told what GET would get");
            }
        }
        let records = world.requests(4);
        assert!(
            records.iter().all(|record| record.outcome == Outcome::Ok),
            "{records:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn headers_are_made_fit_for_the_intakes_protocol() {
    for http2 in [true, false] {
        let intake = Intake::start(http2);
        let world = World::with(intake.address, |setup| setup.tls.http2 = http2);
        let mut sender = connect(&world).await;
        let mut request = asking("POST", "/x", full("hi"));
        for crumb in ["a=1", "b=2", "c=3"] {
            request
                .headers_mut()
                .append("cookie", HeaderValue::from_static(crumb));
        }
        request
            .headers_mut()
            .insert("expect", HeaderValue::from_static("100-continue"));
        request
            .headers_mut()
            .insert("dd-api-key", HeaderValue::from_static("0123"));
        let (_, headers, text, _) = ask(&mut sender, request).await;
        assert_eq!(headers["x-version"], if http2 { "HTTP/2.0" } else { "HTTP/1.1" });
        assert_eq!(text.contains(r#""cookie": "a=1; b=2; c=3""#), !http2, "{text}");
        assert_eq!(
            text.contains(r#""host": "trace.agent.ddog-gov.com""#),
            !http2,
            "{text}"
        );
        assert!(
            text.contains(r#""dd-api-key": "0123""#) && text.contains(r#""content-length": "2""#),
            "{text}"
        );
        assert!(!text.contains("expect") && !text.contains(r#""te""#), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_belongs_to_the_intakes_connection_does_not_reach_the_client() {
    let upstream = Upstream::with(|request, stream| {
        use std::io::Write;
        let early: &[u8] = if request.head.contains("/early") {
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        } else {
            b""
        };
        stream.write_all(early).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        Then::Close
    });
    let world = World::new(upstream.address);
    let mut sender = connect(&world).await;
    for path in ["/", "/early", "/"] {
        let (status, headers, text, _) = ask(&mut sender, asking("GET", path, empty())).await;
        assert_eq!((status.as_u16(), text.as_str()), (200, "ok"), "{path}");
        assert_eq!(headers.len(), 1, "{headers:?}");
        assert_eq!(headers["content-length"], "2");
    }
    assert!(
        world
            .requests(3)
            .iter()
            .all(|record| record.outcome == Outcome::Ok)
    );
}

/// Early answers must not eat up what may be sent on the connection: nobody reads those bodies.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn our_own_answer_comes_while_the_body_still_does() {
    let intake = Intake::start(false);
    let world = World::with(intake.address, |setup| setup.tls.fail = true);
    let mut sender = connect(&world).await;
    for number in 0..40 {
        let (say, body) = pipe();
        say.send(Frame::data(Bytes::from(vec![1; 100_000]))).unwrap();
        let (status, headers, text, _) = ask(&mut sender, asking("POST", "/up", body)).await;
        assert_eq!(status, 502, "{number}");
        assert_eq!(headers["x-agent-fips-proxy-error"], "upstream_tls");
        assert!(
            !headers.contains_key("connection") && text.contains("certificate_expired"),
            "{text}"
        );
        drop(say);
    }
    let (status, headers, text, _) = ask(&mut sender, asking("HEAD", "/", empty())).await;
    assert_eq!((status.as_u16(), text.as_str()), (502, ""));
    assert_eq!(headers["x-agent-fips-proxy-error"], "upstream_tls");
    let records = world.requests(41);
    assert!(
        records
            .iter()
            .all(|record| record.outcome == Outcome::UpstreamTls),
        "{records:?}"
    );
    drop(sender);
    assert_eq!(world.connections(1)[0].outcome, Outcome::Ok);
}

/// A client that does not read must not keep others waiting that share an intake's connection with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_does_not_read_stops_nobody_else() {
    let intake = Intake::start(true);
    let world = World::with(intake.address, |setup| setup.tls.http2 = true);
    let mut lazy = connect(&world).await;
    let mut bodies = Vec::new();
    for _ in 0..20 {
        bodies.push(
            lazy.send_request(asking("GET", "/endless", empty()))
                .await
                .unwrap(),
        );
    }
    let mut other = connect(&world).await;
    for _ in 0..20 {
        let request = ask(&mut other, asking("GET", "/", empty()));
        let (status, ..) = tokio::time::timeout(Duration::from_secs(20), request)
            .await
            .expect("it is kept waiting");
        assert_eq!(status, 200);
    }
    assert_eq!(
        intake
            .counts
            .connections
            .load(std::sync::atomic::Ordering::SeqCst),
        1,
        "they share a connection"
    );
    drop((bodies, lazy));
    eventually(|| (world.records.requests.lock().unwrap().len() == 40).then_some(()));
}
