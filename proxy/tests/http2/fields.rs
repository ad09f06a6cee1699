//! Names, values and pseudo headers that no good client sends.

use crate::frames::*;
use crate::harness::Upstream;
use crate::heads::{heads, with};
use crate::table::{Case, Gets, case, run};
use crate::world::{NAME, World, post};

const PSEUDO: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", NAME),
    (":path", "/evil"),
];

fn without(raw: &mut Raw, name: &str) {
    let left: Vec<_> = PSEUDO.into_iter().filter(|(this, _)| *this != name).collect();
    heads(raw, &left);
}

/// With another value.
fn instead(raw: &mut Raw, name: &str, value: &str) {
    heads(
        raw,
        &PSEUDO.map(|(this, old)| (this, if this == name { value } else { old })),
    );
}

const FIELDS: &[Case] = &[
    case(
        "an upper case name",
        "8.2.1",
        |raw| with(raw, &[("X-Evil", "1")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a space in a name",
        "8.2.1",
        |raw| with(raw, &[("x evil", "1")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "an empty name",
        "8.2.1",
        |raw| with(raw, &[("", "1")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a colon in a name",
        "8.2.1",
        |raw| with(raw, &[("x:y", "1")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a line end in a value",
        "8.2.1",
        |raw| with(raw, &[("x", "1\r\nTransfer-Encoding: chunked")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a bare LF in a value",
        "8.2.1",
        |raw| with(raw, &[("x", "1\nY: 2")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "NUL in a value",
        "8.2.1",
        |raw| with(raw, &[("x", "1\0")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a line end in a path",
        "8.3.1",
        |raw| instead(raw, ":path", "/evil HTTP/1.1\r\nHost: x"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a space in a path",
        "8.3.1",
        |raw| instead(raw, ":path", "/evil x"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a space in a method",
        "8.3.1",
        |raw| instead(raw, ":method", "GET /evil"),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "connection",
        "8.2.2",
        |raw| with(raw, &[("connection", "keep-alive")]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "keep-alive",
        "8.2.2",
        |raw| with(raw, &[("keep-alive", "5")]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "proxy-connection",
        "8.2.2",
        |raw| with(raw, &[("proxy-connection", "close")]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "transfer-encoding",
        "8.2.2",
        |raw| with(raw, &[("transfer-encoding", "chunked")]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "upgrade",
        "8.2.2",
        |raw| with(raw, &[("upgrade", "websocket")]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "te: gzip",
        "8.2.2",
        |raw| with(raw, &[("te", "gzip")]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "no :method",
        "8.3.1",
        |raw| without(raw, ":method"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "no :scheme",
        "8.3.1",
        |raw| without(raw, ":scheme"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "no :path",
        "8.3.1",
        |raw| without(raw, ":path"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "an empty :path",
        "8.3.1",
        |raw| instead(raw, ":path", ""),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "two :path",
        "8.3",
        |raw| heads(raw, &[&PSEUDO[..], &[(":path", "/other")]].concat()),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a pseudo header that nobody knows",
        "8.3",
        |raw| heads(raw, &[&PSEUDO[..], &[(":evil", "1")]].concat()),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a pseudo header after a header",
        "8.3",
        |raw| heads(raw, &[&PSEUDO[..3], &[("x", "1")], &PSEUDO[3..]].concat()),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a response's pseudo header",
        "8.3",
        |raw| heads(raw, &[&PSEUDO[..], &[(":status", "200")]].concat()),
        Gets::Reset(PROTOCOL),
    ),
    // A fault by the letter; h2 drops it, and nobody gets to see it.
    case(
        "a pseudo header in trailers",
        "8.1",
        |raw| {
            raw.begin(&[]).send(
                [
                    frame(HEADERS, END_HEADERS, 1, &block(&post("/evil"))),
                    frame(HEADERS, WHOLE, 1, &block(&[(":path", "/other")])),
                ]
                .concat(),
            );
        },
        Gets::Status(200),
    )
    .beside_a_good_one(),
    case(
        "an upper case name in trailers",
        "8.1",
        |raw| {
            raw.begin(&[]).send(
                [
                    frame(HEADERS, END_HEADERS, 1, &block(&post("/evil"))),
                    frame(HEADERS, WHOLE, 1, &block(&[("X-Evil", "1")])),
                ]
                .concat(),
            );
        },
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a path that is an absolute target",
        "8.3.1",
        |raw| instead(raw, ":path", "http://example.org/evil"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a path without its slash",
        "8.3.1",
        |raw| instead(raw, ":path", "evil"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "the asterisk",
        "8.3.1",
        |raw| {
            heads(
                raw,
                &[
                    (":method", "OPTIONS"),
                    (":scheme", "https"),
                    (":authority", NAME),
                    (":path", "*"),
                ],
            );
        },
        Gets::Status(400),
    ),
    case(
        "CONNECT",
        "8.5",
        |raw| {
            heads(
                raw,
                &[
                    (":method", "CONNECT"),
                    (":authority", "trace.agent.ddog-gov.com:443"),
                ],
            );
        },
        Gets::Status(400),
    )
    .unsupported(),
    case(
        "connect in lower case",
        "8.5",
        |raw| instead(raw, ":method", "connect"),
        Gets::Status(400),
    )
    .unsupported(),
    case(
        "CONNECT with a path",
        "8.5",
        |raw| instead(raw, ":method", "CONNECT"),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "extended CONNECT",
        "RFC 8441 4",
        |raw| {
            heads(
                raw,
                &[
                    (":method", "CONNECT"),
                    (":protocol", "websocket"),
                    (":scheme", "https"),
                    (":authority", NAME),
                    (":path", "/evil"),
                ],
            );
        },
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a scheme that TLS is not",
        "8.3.1",
        |raw| instead(raw, ":scheme", "http"),
        Gets::Status(400),
    ),
    case(
        "another scheme",
        "8.3.1",
        |raw| instead(raw, ":scheme", "ftp"),
        Gets::Status(400),
    ),
];

#[test]
fn malformed_heads_are_refused() {
    run(FIELDS);
}

/// hyper gives such a connection up without a word. It is the client's own.
#[test]
fn connect_with_a_body_costs_no_other_connection() {
    let upstream = Upstream::start();
    let world = World::new(upstream.address);
    let other = &mut world.raw();
    assert!(other.ping());
    let mut raw = world.silent();
    let head = [
        (":method", "CONNECT"),
        (":authority", "trace.agent.ddog-gov.com:443"),
        ("content-length", "5"),
    ];
    raw.begin(&[])
        .headers(1, END_HEADERS, &head)
        .data(1, END_STREAM, b"hello");
    raw.read_out();
    assert!(other.ping());
    world.still_serves("CONNECT with a body");
    assert!(
        upstream
            .seen()
            .iter()
            .all(|request| request.head.starts_with("GET /still "))
    );
}
