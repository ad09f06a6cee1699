//! TLS that was intercepted: the name in its ClientHello decides who answers.

use agent_fips_proxy::relay::HttpsHandling;
use agent_fips_proxy::relay::outcome::Outcome;

use crate::authority::Authority;
use crate::harness::Client;
use crate::hello::{extension, hello, hello_message, hello_with, message, record, server_name};
use crate::world::{Case, REPLY, World};

/// 64 letters.
const LONG_LABEL: &str =
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.agent.ddog-gov.com";

/// Names of intakes, in whatever way they are written.
const INTAKES: &[&str] = &[
    "trace.agent.ddog-gov.com",
    "TRACE.Agent.DDOG-gov.com",
    "trace.agent.ddog-gov.com.",
    "7-81-0-app.agent.ddog-gov.com",
    "browser-intake-ddog-gov.com",
];

/// Of what is no HTTP within its TLS.
const STREAMS: &[&str] = &["agent-intake.logs.ddog-gov.com", "INTAKE.logs.ddog-gov.com"];

/// Names of others: left alone, whatever is done with intakes.
const OTHERS: &[&str] = &[
    "www.example.org",
    "evilddog-gov.com",
    "trace.agent.evilddog-gov.com",
    "trace.agent.ddog-gov.com.evil.org",
    "trace.agent.datadoghq.com",
    "x.trace.agent.ddog-gov.com",
    "ddog-gov.com",
    "trace-agent.ddog-gov.com",
    "xn--trce-hoa.agent.ddog-gov.co",
    "xn--process-4ze.ddog-gov.com",
    "localhost",
];

/// In SNI, and no name.
const NO_NAMES: &[&str] = &[
    "203.0.113.1",
    "127.1",
    "2001:db8::1",
    "[::1]",
    "trace.agent.ddog-gov.com..",
    "trace..agent.ddog-gov.com",
    ".agent.ddog-gov.com",
    "*.agent.ddog-gov.com",
    "-app.agent.ddog-gov.com",
    "trace.agent.ddog-gov.com:443",
    "key@trace.agent.ddog-gov.com",
    "trace.agent.ddog-gov.com\0.evil.org",
    "trace.agent.ddog-gov.com evil.org",
    "trace%2eagent.ddog-gov.com",
    "trаce.agent.ddog-gov.com",
    LONG_LABEL,
];

/// Not even SNI.
const NO_SNI: &str = "no SNI";

/// No ClientHello: what it is called, the bytes.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let intake = b"trace.agent.ddog-gov.com".as_slice();
    let two = hello_with(&[server_name(&[(0, intake), (0, b"evil.org")])]);
    let twice = hello_with(&[server_name(&[(0, intake)]), server_name(&[(0, intake)])]);
    let mut trailing = hello_message(&[server_name(&[(0, intake)])]);
    trailing.extend([0; 4]);
    let short = record(22, &message(1, &hello_message(&[])[4..40]));
    vec![
        ("two names in SNI", two),
        ("SNI twice", twice),
        ("an empty name in SNI", hello(Some(b""))),
        ("SNI without a name", hello_with(&[extension(0, &[0, 0])])),
        ("SNI of a wrong length", hello_with(&[extension(0, &[0, 9, 0])])),
        ("bytes after the ClientHello in its record", record(22, &trailing)),
        ("a ClientHello that ends early", short),
        ("a ServerHello", record(22, &message(2, &[0; 40]))),
        ("an empty record", record(22, &[])),
        ("a record of 16385 bytes", record(22, &[1; 16385])),
        (
            "a ClientHello of 16 MiB",
            record(22, &[1, 0xff, 0xff, 0xff, 3, 3]),
        ),
        (
            "another record in the middle",
            [
                record(22, &hello_message(&[])[..50]),
                record(23, &hello_message(&[])[50..]),
            ]
            .concat(),
        ),
    ]
}

fn case(line: &'static str, asked: &str, decision: &'static str, outcome: Outcome) -> Case {
    Case {
        line,
        asked: asked.to_owned(),
        decision,
        outcome,
        request: None,
    }
}

fn tunnelled(line: &'static str, asked: &str) -> Case {
    case(line, asked, "tunnel", Outcome::Ok)
}

fn no_hello(asked: &str) -> Case {
    case("tls-malformed", asked, "refuse", Outcome::BadRequest)
}

fn passed(asked: &str) -> Case {
    case("tls-passthrough", asked, "passthrough", Outcome::Ok)
}

fn stream(asked: &str) -> Case {
    case("tls-stream", asked, "passthrough", Outcome::Ok)
}

fn refused(asked: &str) -> Case {
    case("tls-refuse", asked, "refuse", Outcome::HttpsRefused)
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![tunnelled("tls-no-name", NO_SNI)];
    cases.extend(OTHERS.iter().map(|name| tunnelled("tls-other", name)));
    cases.extend(NO_NAMES.iter().map(|name| tunnelled("tls-no-name", name)));
    cases.extend(malformed().iter().map(|(asked, _)| no_hello(asked)));
    cases.extend(INTAKES.iter().map(|name| passed(name)));
    cases.extend(INTAKES.iter().map(|name| refused(name)));
    cases.extend(STREAMS.iter().map(|name| stream(name)));
    cases
}

/// Under terminate, passthrough and refuse.
fn worlds() -> (Authority, [World; 3]) {
    let authority = Authority::new();
    let worlds = [
        World::new(authority.terminate()),
        World::new(HttpsHandling::Passthrough),
        World::new(HttpsHandling::Refuse),
    ];
    (authority, worlds)
}

/// Sends it in pieces, and gives all that comes back.
fn send(world: &World, bytes: &[u8], piece: usize) -> (Vec<u8>, crate::world::Seen) {
    world.row(|proxy| {
        let mut client = Client::connect(proxy.intercept);
        for part in bytes.chunks(piece) {
            // Whoever is refused early is not listened to any more.
            if std::io::Write::write_all(&mut client.stream, part).is_err() {
                break;
            }
        }
        client.rest()
    })
}

#[test]
fn who_is_no_intake_is_left_alone_under_every_policy() {
    let (authority, worlds) = worlds();
    for world in &worlds {
        for (line, name) in OTHERS
            .iter()
            .map(|name| ("tls-other", Some(*name)))
            .chain(NO_NAMES.iter().map(|name| ("tls-no-name", Some(*name))))
            .chain([("tls-no-name", None)])
        {
            let case = tunnelled(line, name.unwrap_or(NO_SNI));
            let bytes = hello(name.map(str::as_bytes));
            let (reply, seen) = send(world, &bytes, bytes.len());
            assert_eq!(reply, REPLY, "{case:?}");
            seen.is_counted(&case);
            seen.went_untouched(&bytes, &case);
            assert_eq!(seen.connection.class, Some("tls"), "{case:?}");
            let known = name.filter(|_| line == "tls-other").map(str::to_owned);
            assert_eq!(seen.connection.name, known, "{case:?}");
        }
        assert!(world.proxy.records.client_sessions.lock().unwrap().is_empty());
    }
    assert_eq!(authority.server.leaves(), 0, "nothing was signed for any of them");
}

#[test]
fn what_is_no_hello_gets_an_alert_and_reaches_nobody() {
    let (authority, worlds) = worlds();
    for world in &worlds {
        for (asked, bytes) in malformed() {
            let (said, seen) = send(world, &bytes, 700);
            let case = no_hello(asked);
            // decode_error (RFC 8446 section 6.2).
            assert_eq!(said, [21, 3, 3, 0, 2, 2, 50], "{case:?}");
            seen.is_counted(&case);
            seen.reached_nobody(&case);
        }
    }
    assert_eq!(authority.server.leaves(), 0);
}

#[test]
fn an_intakes_name_passes_or_is_refused_in_whatever_way_it_is_written() {
    let (_authority, [_, passthrough, refuse]) = worlds();
    for name in INTAKES {
        let bytes = hello(Some(name.as_bytes()));
        let normal = name.trim_end_matches('.').to_ascii_lowercase();
        for piece in [bytes.len(), 1] {
            let (said, seen) = send(&passthrough, &bytes, piece);
            assert_eq!(said, REPLY, "{name}");
            seen.is_counted(&passed(name));
            seen.went_untouched(&bytes, &passed(name));
            assert_eq!(seen.connection.name.as_deref(), Some(normal.as_str()));

            let (said, seen) = send(&refuse, &bytes, piece);
            // access_denied.
            assert_eq!(said, [21, 3, 3, 0, 2, 2, 49], "{name}");
            seen.is_counted(&refused(name));
            seen.reached_nobody(&refused(name));
            assert_eq!(seen.connection.name.as_deref(), Some(normal.as_str()));
            let error = seen.connection.error.unwrap();
            assert!(error.contains("intercept.https"), "{error}");
        }
    }
}

#[test]
fn a_stream_cannot_be_terminated_and_passes() {
    let (authority, [terminate, passthrough, refuse]) = worlds();
    for name in STREAMS {
        let bytes = hello(Some(name.as_bytes()));
        for world in [&terminate, &passthrough] {
            let (said, seen) = send(world, &bytes, bytes.len());
            assert_eq!(said, REPLY, "{name}");
            seen.is_counted(&stream(name));
            seen.went_untouched(&bytes, &stream(name));
        }
        let (_, seen) = send(&refuse, &bytes, bytes.len());
        seen.is_counted(&refused(name));
        seen.reached_nobody(&refused(name));
    }
    assert_eq!(authority.server.leaves(), 0);
}

/// The same names under terminate: it is us who answers, with a leaf for that name. The client of a hand-made hello has no keys,
/// so it goes away; sessions to their end are in `within`.
#[test]
fn an_intakes_name_is_answered_by_us_in_whatever_way_it_is_written() {
    let (authority, [terminate, ..]) = worlds();
    for name in INTAKES {
        let bytes = hello(Some(name.as_bytes()));
        let ((), seen) = terminate.row(|proxy| {
            let mut client = Client::connect(proxy.intercept);
            client.send(&bytes);
            let mut answer = [0; 6];
            std::io::Read::read_exact(&mut client.stream, &mut answer).unwrap();
            assert_eq!((answer[0], answer[5]), (22, 2), "{name}: a ServerHello");
        });
        assert_eq!(
            (seen.connection.decision, seen.connection.outcome),
            ("terminate", Outcome::ClientAborted),
            "{name}"
        );
        seen.reached_nobody(&passed(name));
    }
    // Three ways to write one name share a leaf.
    assert_eq!(authority.server.leaves(), INTAKES.len() - 2);
}

/// A name in SNI that is of a type nobody has defined is none.
#[test]
fn a_name_of_another_type_is_no_name() {
    let (_authority, worlds) = worlds();
    let bytes = hello_with(&[server_name(&[(1, b"trace.agent.ddog-gov.com")])]);
    for world in &worlds {
        let (reply, seen) = send(world, &bytes, bytes.len());
        assert_eq!(reply, REPLY);
        let case = tunnelled("tls-no-name", "another type");
        seen.is_counted(&case);
        seen.went_untouched(&bytes, &case);
    }
}
