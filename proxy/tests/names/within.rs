//! HTTP within TLS that ends here: each request must name what the session was made for.

use std::io::{BufReader, Read, Write};

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::relay::outcome::Outcome;

use crate::authority::{Authority, goodbye, session};
use crate::frames::{Heard, ask};
use crate::harness::{Message, read_message};
use crate::world::{Case, Seen, Want, World};

use Want::{Answered, Refused, Served};

const NAME: &str = "trace.agent.ddog-gov.com";
const OWN: Want = Served(NAME, Product::Traces);
const MISDIRECTED: Want = Answered(
    421,
    Outcome::Misdirected,
    "Host is not an intake name that this connection serves",
);
const ADDRESS: Want = Answered(400, Outcome::BadRequest, "Host is an IP address");
const MALFORMED: Want = Answered(400, Outcome::BadRequest, "malformed Host");
const USER_INFO: Want = Answered(400, Outcome::BadRequest, "Host carries user-info");
const PORT: Want = Answered(400, Outcome::BadRequest, "Host names a foreign port");

/// SNI and Host, which in HTTP/2 is `:authority`.
const PAIRS: &[(&str, &str, &str, Want)] = &[
    ("same", NAME, NAME, OWN),
    ("same", NAME, "TRACE.Agent.ddog-gov.com.", OWN),
    ("same", NAME, "trace.agent.ddog-gov.com:443", OWN),
    ("same", NAME, "trace.agent.ddog-gov.com:{port}", OWN),
    (
        "same",
        "browser-intake-ddog-gov.com",
        "browser-intake-ddog-gov.com",
        Served("browser-intake-ddog-gov.com", Product::OtherIntake),
    ),
    ("other", NAME, "process.ddog-gov.com", MISDIRECTED),
    ("other", "process.ddog-gov.com", NAME, MISDIRECTED),
    ("other", NAME, "trace.agent.mrf.ddog-gov.com", MISDIRECTED),
    ("other", NAME, "example.org", MISDIRECTED),
    ("other", NAME, "evilddog-gov.com", MISDIRECTED),
    ("other", NAME, "trace.agent.datadoghq.com", MISDIRECTED),
    ("other", NAME, "trace.agent.ddog-gov.com.evil.org", MISDIRECTED),
    ("other", NAME, "x.trace.agent.ddog-gov.com", MISDIRECTED),
    ("other", NAME, "ddog-gov.com", MISDIRECTED),
    ("other", NAME, "localhost", MISDIRECTED),
    ("malformed", NAME, "203.0.113.1", ADDRESS),
    ("malformed", NAME, "[::1]:443", ADDRESS),
    ("malformed", NAME, "127.1", MALFORMED),
    ("malformed", NAME, "trace.agent.ddog-gov.com:65536", MALFORMED),
    ("malformed", NAME, "trace.agent.ddog-gov.com:0443x", MALFORMED),
    ("malformed", NAME, "trace.agent.ddog-gov.com..", MALFORMED),
    ("malformed", NAME, "key@trace.agent.ddog-gov.com", USER_INFO),
    ("port", NAME, "trace.agent.ddog-gov.com:80", PORT),
    ("port", NAME, "trace.agent.ddog-gov.com:8443", PORT),
];

/// Heads of HTTP/1 that are more than a Host.
const HEADS: &[(&str, &str, &str, Want)] = &[
    (
        "within1-same",
        "GET http://trace.agent.ddog-gov.com/",
        "GET http://trace.agent.ddog-gov.com/ HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n",
        OWN,
    ),
    (
        "within1-absolute",
        "GET http://process.ddog-gov.com/",
        "GET http://process.ddog-gov.com/ HTTP/1.1\r\nHost: process.ddog-gov.com\r\n\r\n",
        Answered(400, Outcome::BadRequest, "absolute-form for a foreign host"),
    ),
    (
        "within1-absolute",
        "GET http://evil.org/ and Host: trace.agent.ddog-gov.com",
        "GET http://evil.org/ HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n",
        Answered(
            400,
            Outcome::BadRequest,
            "the request target and Host name different hosts",
        ),
    ),
    (
        "within1-malformed",
        "HTTP/1.0 without Host",
        "GET / HTTP/1.0\r\n\r\n",
        Answered(400, Outcome::BadRequest, "no Host"),
    ),
    (
        "within1-malformed",
        "trace。agent.ddog-gov.com",
        "GET / HTTP/1.1\r\nHost: trace。agent.ddog-gov.com\r\n\r\n",
        MALFORMED,
    ),
    (
        "within1-head",
        "no Host",
        "GET / HTTP/1.1\r\n\r\n",
        Refused("no Host"),
    ),
    (
        "within1-head",
        "two Hosts",
        "GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\nHost: evil.org\r\n\r\n",
        Refused("more than one Host"),
    ),
    (
        "within1-head",
        "GET https://trace.agent.ddog-gov.com/",
        "GET https://trace.agent.ddog-gov.com/ HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n",
        Refused("invalid request target"),
    ),
];

type Fields = &'static [(&'static str, &'static str)];

/// Fields of HTTP/2 that are more than `:authority`.
const FIELDS: &[(&str, &str, Fields, Want)] = &[
    (
        "within2-same",
        "Host instead of :authority",
        &[("host", NAME)],
        OWN,
    ),
    (
        "within2-same",
        ":authority and the same Host",
        &[(":authority", NAME), ("host", NAME)],
        OWN,
    ),
    (
        "within2-two-names",
        ":authority: trace.agent.ddog-gov.com and Host: process.ddog-gov.com",
        &[(":authority", NAME), ("host", "process.ddog-gov.com")],
        TWO,
    ),
    (
        "within2-two-names",
        ":authority: trace.agent.ddog-gov.com and Host: evil.org",
        &[(":authority", NAME), ("host", "evil.org")],
        TWO,
    ),
    (
        "within2-other",
        "Host: process.ddog-gov.com instead of :authority",
        &[("host", "process.ddog-gov.com")],
        MISDIRECTED,
    ),
    (
        "within2-malformed",
        "neither :authority nor Host",
        &[],
        Answered(400, Outcome::BadRequest, "no Host"),
    ),
    (
        "within2-malformed",
        "two Hosts",
        &[("host", NAME), ("host", NAME)],
        Answered(400, Outcome::BadRequest, "more than one Host"),
    ),
];

const TWO: Want = Answered(
    400,
    Outcome::BadRequest,
    ":authority and Host name different hosts",
);

/// What HTTP/2 itself does not take for an `:authority`: the stream is reset before there is a request.
const NO_AUTHORITY: &[&str] = &[
    "trace.agent.ddog-gov.com evil.org",
    "trace%2eagent.ddog-gov.com",
    "trace.agent.ddog-gov.com\\.evil.org",
];

fn reset(asked: &str) -> Case {
    Case {
        line: "within2-reset",
        asked: asked.to_owned(),
        decision: "terminate",
        outcome: Outcome::Ok,
        request: None,
    }
}

fn line(version: u8, kind: &str) -> &'static str {
    match (version, kind) {
        (1, "same") => "within1-same",
        (1, "other") => "within1-other",
        (1, "malformed") => "within1-malformed",
        (1, "port") => "within1-port",
        (2, "same") => "within2-same",
        (2, "other") => "within2-other",
        (2, "malformed") => "within2-malformed",
        (2, "port") => "within2-port",
        other => panic!("no such line: {other:?}"),
    }
}

/// As the page writes a pair.
fn pair(version: u8, (kind, sni, host, want): &(&str, &str, &str, Want)) -> Case {
    let field = if version == 1 { "Host" } else { ":authority" };
    want.case(line(version, kind), &format!("SNI {sni}, {field} {host}"))
}

pub fn cases() -> Vec<Case> {
    PAIRS
        .iter()
        .flat_map(|row| [pair(1, row), pair(2, row)])
        .chain(HEADS.iter().map(|(line, asked, _, want)| want.case(line, asked)))
        .chain(FIELDS.iter().map(|(line, asked, _, want)| want.case(line, asked)))
        .chain(NO_AUTHORITY.iter().map(|asked| reset(asked)))
        .chain([OWN.case("tls-terminate", NAME)])
        .collect()
}

fn verdict(world: &World, seen: &Seen, case: &Case, sni: &str, want: Want, answer: &Message) {
    seen.is_counted(case);
    assert_eq!(seen.connection.name.as_deref(), Some(sni), "{case:?}");
    let tls = seen.connection.tls.clone().unwrap();
    assert_eq!(
        (tls.decision.as_str(), tls.below),
        ("terminate", None),
        "{case:?}"
    );
    let told = world.proxy.records.client_sessions.lock().unwrap();
    assert_eq!(told.last().unwrap().0.name, sni, "{case:?}");
    if !seen.requests.is_empty() {
        let trusting = world.proxy.records.trusting.lock().unwrap();
        assert_eq!(trusting.last().unwrap().name, sni, "{case:?}");
    }
    match want {
        Served(name, product) => {
            assert_eq!(
                (answer.status(), &answer.body[..]),
                (200, &b"intake"[..]),
                "{case:?}"
            );
            seen.was_served(name, product, case);
        }
        Answered(status, outcome, reason) => {
            assert_eq!(answer.status(), status, "{case:?}: {answer:?}");
            assert_eq!(seen.requests[0].outcome, outcome, "{case:?}");
            let body = String::from_utf8_lossy(&answer.body);
            assert_eq!(body.trim_end(), reason, "{case:?}");
            assert_eq!(seen.requests[0].error.as_deref(), Some(reason), "{case:?}");
            seen.reached_nobody(case);
        }
        Refused(reason) => {
            seen.was_answered(answer, 400, Outcome::BadRequest, reason, case);
        }
        Want::Tunnelled => unreachable!("nothing is tunnelled from here"),
    }
}

fn http1(authority: &Authority, world: &World, case: &Case, sni: &str, head: &str, want: Want) {
    let (answer, seen) = world.row(|proxy| {
        let mut session = session(proxy.intercept, authority.client("http/1.1"), sni);
        session.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(session);
        let answer = read_message(&mut reader, false).unwrap().unwrap();
        if !matches!(want, Served(..)) {
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"", "{case:?}");
        }
        goodbye(reader.into_inner());
        answer
    });
    verdict(world, &seen, case, sni, want, &answer);
}

#[test]
fn names_of_http1_within_tls() {
    let authority = Authority::new();
    let world = World::new(authority.terminate());
    let port = world.original.fake.address.port().to_string();
    for row in PAIRS {
        let (_, sni, host, want) = row;
        let head = format!(
            "GET /api/v2/series HTTP/1.1\r\nHost: {}\r\nDD-API-KEY: k\r\n\r\n",
            host.replace("{port}", &port)
        );
        http1(&authority, &world, &pair(1, row), sni, &head, *want);
    }
    for (line, asked, head, want) in HEADS {
        http1(&authority, &world, &want.case(line, asked), NAME, head, *want);
    }
    let head = "GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n";
    http1(
        &authority,
        &world,
        &OWN.case("tls-terminate", NAME),
        NAME,
        head,
        OWN,
    );
    assert_eq!(
        authority.server.leaves(),
        3,
        "one for each name that was asked for"
    );
}

fn http2(authority: &Authority, world: &World, sni: &str, fields: &[(&str, &str)]) -> (Heard, Seen) {
    world.row(|proxy| {
        let mut session = session(proxy.intercept, authority.client("h2"), sni);
        let heard = ask(&mut session, fields);
        goodbye(session);
        heard
    })
}

#[test]
fn names_of_http2_within_tls() {
    let authority = Authority::new();
    let world = World::new(authority.terminate());
    let port = world.original.fake.address.port().to_string();
    let pairs = PAIRS.iter().map(|row| {
        let (_, sni, host, want) = row;
        let fields = vec![(":authority".to_owned(), host.replace("{port}", &port))];
        (pair(2, row), *sni, fields, *want)
    });
    let fields = FIELDS.iter().map(|(line, asked, fields, want)| {
        let fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        (want.case(line, asked), NAME, fields, *want)
    });
    for (case, sni, fields, want) in pairs.chain(fields) {
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let (heard, seen) = http2(&authority, &world, sni, &fields);
        let Heard::Answer(answer) = heard else {
            panic!("{case:?}: {heard:?}");
        };
        verdict(&world, &seen, &case, sni, want, &answer);
    }
    for asked in NO_AUTHORITY {
        let (heard, seen) = http2(&authority, &world, NAME, &[(":authority", asked)]);
        // PROTOCOL_ERROR (RFC 9113 section 8.1.1).
        assert!(matches!(heard, Heard::Reset(1)), "{asked}: {heard:?}");
        seen.is_counted(&reset(asked));
        seen.reached_nobody(&reset(asked));
    }
}

/// The next request of a session may not be for another intake either, and HTTP/2 goes on after a refusal.
#[test]
fn a_session_stays_with_its_name() {
    let authority = Authority::new();
    let world = World::new(authority.terminate());
    let (answers, seen) = world.row(|proxy| {
        let mut session = session(proxy.intercept, authority.client("http/1.1"), NAME);
        let mut answers = Vec::new();
        for host in [NAME, "process.ddog-gov.com"] {
            write!(session, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
            let mut reader = BufReader::new(&mut session);
            answers.push(read_message(&mut reader, false).unwrap().unwrap().status());
        }
        goodbye(session);
        answers
    });
    assert_eq!(answers, [200, 421]);
    assert_eq!(seen.asked.len(), 1);
    let outcomes: Vec<Outcome> = seen.requests.iter().map(|request| request.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Misdirected]);
}
