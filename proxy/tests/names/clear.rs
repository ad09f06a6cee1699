//! Plain HTTP/1 that was intercepted: the first head's Host, or the authority of its absolute target, decides for the
//! connection, and each later one for its request.

use agent_fips_proxy::relay::HttpsHandling;
use agent_fips_proxy::relay::outcome::Outcome;

use crate::clear_rows::{HEADS, HOSTS, LATER, MALFORMED};
use crate::harness::{Client, Message, Proxy};
use crate::world::{Case, REPLY, Want, World};

use Want::{Answered, Refused, Served, Tunnelled};

pub fn cases() -> Vec<Case> {
    let hosts = HOSTS.iter().chain(LATER);
    hosts
        .map(|(line, host, want)| want.case(line, host))
        .chain(HEADS.iter().map(|(line, asked, _, want)| want.case(line, asked)))
        .chain([http2()])
        .collect()
}

fn head(host: &str) -> String {
    format!("GET /api/v2/series HTTP/1.1\r\nHost: {host}\r\nDD-API-KEY: k\r\n\r\n")
}

/// Sends it; to the end, or to the first answer of a connection that goes on.
fn send(proxy: &Proxy, bytes: &str, want: Want) -> (Vec<u8>, Option<Message>) {
    let mut client = Client::connect(proxy.intercept);
    client.send(bytes);
    match want {
        Tunnelled => (client.rest(), None),
        Served(..) => (Vec::new(), Some(client.response())),
        Refused(_) | Answered(..) => {
            let answer = client.response();
            // Nothing comes after it.
            (client.rest(), Some(answer))
        }
    }
}

fn check(world: &World, case: &Case, bytes: &str, want: Want) {
    let ((rest, answer), seen) = world.row(|proxy| send(proxy, bytes, want));
    seen.is_counted(case);
    assert_eq!(seen.connection.class, Some("http1"), "{case:?}");
    match want {
        Tunnelled => {
            assert_eq!(rest, REPLY, "{case:?}");
            seen.went_untouched(bytes.as_bytes(), case);
        }
        Served(name, product) => {
            seen.was_served(name, product, case);
            assert_eq!(seen.connection.requests, 1, "{case:?}");
        }
        Refused(reason) => {
            assert_eq!(rest, b"", "{case:?}");
            seen.was_answered(&answer.unwrap(), 400, Outcome::BadRequest, reason, case);
            assert_eq!(seen.connection.error.as_deref(), Some(reason), "{case:?}");
            assert_eq!(seen.connection.name, None, "{case:?}");
        }
        Answered(status, outcome, reason) => {
            assert_eq!(rest, b"", "{case:?}");
            seen.was_answered(&answer.unwrap(), status, outcome, reason, case);
        }
    }
}

#[test]
fn hosts_of_plain_requests() {
    let world = World::new(HttpsHandling::Passthrough);
    let port = world.original.fake.address.port().to_string();
    for (line, host, want) in HOSTS {
        let bytes = head(&host.replace("{port}", &port));
        check(&world, &want.case(line, host), &bytes, *want);
    }
}

#[test]
fn heads_of_plain_requests() {
    let world = World::new(HttpsHandling::Passthrough);
    for (line, asked, bytes, want) in HEADS {
        check(&world, &want.case(line, asked), bytes, *want);
    }
    // Longer than any name may be, each label fine.
    let long = format!("{}-app.agent.ddog-gov.com", "a.".repeat(120));
    let case = MALFORMED.case("clear-malformed", &long);
    check(&world, &case, &head(&long), MALFORMED);
}

#[test]
fn hosts_of_later_plain_requests() {
    let world = World::new(HttpsHandling::Passthrough);
    for (number, (line, host, want)) in LATER.iter().enumerate() {
        let case = want.case(line, host);
        let (answer, mut seen) = world.row(|proxy| {
            let mut client = Client::connect(proxy.intercept);
            assert_eq!(client.send(head("app.ddog-gov.com")).response().status(), 200);
            let answer = client.send(head(host)).response();
            if !matches!(want, Served(..)) {
                assert_eq!(client.rest(), b"", "{case:?}");
            }
            answer
        });
        // The first one was served.
        assert_eq!(seen.requests.remove(0).outcome, Outcome::Ok);
        assert_eq!(seen.asked.remove(0).header("host"), Some("app.ddog-gov.com"));
        assert_eq!(seen.connection.requests, 2, "{case:?}");
        seen.is_counted(&case);
        // Its connection is made once and kept for the rows that follow.
        seen.intake -= usize::from(number == 0);
        match *want {
            Served(name, product) => seen.was_served(name, product, &case),
            Answered(status, outcome, reason) => {
                seen.was_answered(&answer, status, outcome, reason, &case);
            }
            Tunnelled | Refused(_) => unreachable!("no such row"),
        }
    }
}

fn http2() -> Case {
    Case {
        line: "clear-http2",
        asked: "PRI * HTTP/2.0".to_owned(),
        decision: "refuse",
        outcome: Outcome::Unsupported,
        request: None,
    }
}

/// RFC 9113 section 3.4, with an empty SETTINGS frame behind it; in one piece and byte by byte.
#[test]
fn http2_in_the_clear_is_told_to_speak_http1() {
    let world = World::new(HttpsHandling::Passthrough);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for piece in [preface.len(), 1] {
        let (rest, seen) = world.row(|proxy| {
            let mut client = Client::connect(proxy.intercept);
            for part in preface.chunks(piece) {
                client.send(part);
            }
            client.rest()
        });
        // SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED (RFC 9113 section 7).
        assert_eq!(rest[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0]);
        assert_eq!(rest[9..], [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13]);
        assert_eq!(seen.connection.class, Some("http2"));
        seen.is_counted(&http2());
        seen.reached_nobody(&http2());
    }
}

/// The name that TLS towards the intake is made for is the one that was asked for, never another.
#[test]
fn sessions_with_the_intake_are_for_the_name_that_was_asked_for() {
    let world = World::new(HttpsHandling::Passthrough);
    for host in ["APP.ddog-gov.com.", "trace.agent.ddog-gov.com:80"] {
        let mut client = Client::connect(world.proxy.intercept);
        assert_eq!(client.send(head(host)).response().status(), 200);
    }
    let names = world.proxy.tls.names.lock().unwrap().clone();
    assert_eq!(names, ["app.ddog-gov.com", "trace.agent.ddog-gov.com"]);
}
