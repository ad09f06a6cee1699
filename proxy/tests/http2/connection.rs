//! Frames of the connection, windows, header blocks in pieces, sizes and beginnings that are wrong.

use agent_fips_proxy::relay::outcome::Outcome;

use crate::frames::*;
use crate::harness::Upstream;
use crate::table::{Case, Gets, after, case, head, run};
use crate::world::{World, get};

const FRAMES: &[Case] = &[
    case(
        "SETTINGS on a stream",
        "6.5",
        |raw| after(raw, &[frame(SETTINGS, 0, 1, &[])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS of five bytes",
        "6.5",
        |raw| after(raw, &[frame(SETTINGS, 0, 0, &[0; 5])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS acknowledged with a payload",
        "6.5",
        |raw| after(raw, &[frame(SETTINGS, ACK, 0, &[0; 6])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS acknowledged that were not sent",
        "6.5.3",
        |raw| {
            raw.polite = false;
            after(raw, &[frame(SETTINGS, ACK, 0, &[]), frame(SETTINGS, ACK, 0, &[])]);
        },
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS_ENABLE_PUSH of 2",
        "6.5.2",
        |raw| after(raw, &[settings(&[(ENABLE_PUSH, 2)])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS_INITIAL_WINDOW_SIZE over 2^31-1",
        "6.5.2",
        |raw| after(raw, &[settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS_MAX_FRAME_SIZE of 100",
        "6.5.2",
        |raw| after(raw, &[settings(&[(MAX_FRAME_SIZE, 100)])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS_MAX_FRAME_SIZE of 2^24",
        "6.5.2",
        |raw| after(raw, &[settings(&[(MAX_FRAME_SIZE, 1 << 24)])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a setting that nobody knows",
        "6.5.2",
        |raw| after(raw, &[settings(&[(0xfafa, 7)])]),
        Gets::Nothing,
    ),
    case(
        "PUSH_PROMISE from a client",
        "8.4",
        |raw| {
            let payload = [&[0, 0, 0, 2][..], &block(&get("/evil"))].concat();
            after(
                raw,
                &[
                    head(1, END_HEADERS),
                    frame(PUSH_PROMISE, END_HEADERS, 1, &payload),
                ],
            );
        },
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "PING on a stream",
        "6.7",
        |raw| after(raw, &[frame(PING, 0, 1, &[0; 8])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "PING of seven bytes",
        "6.7",
        |raw| after(raw, &[frame(PING, 0, 0, &[0; 7])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "PING answered that was not asked",
        "6.7",
        |raw| after(raw, &[frame(PING, ACK, 0, &[7; 8])]),
        Gets::Nothing,
    ),
    case(
        "the PING of a farewell answered that was not said",
        "6.7",
        |raw| {
            after(
                raw,
                &[frame(
                    PING,
                    ACK,
                    0,
                    &[0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54],
                )],
            );
        },
        Gets::Nothing,
    ),
    case(
        "GOAWAY on a stream",
        "6.8",
        |raw| after(raw, &[frame(GOAWAY, 0, 1, &[0; 8])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "GOAWAY of seven bytes",
        "6.8",
        |raw| after(raw, &[frame(GOAWAY, 0, 0, &[0; 7])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "WINDOW_UPDATE by 0 for the connection",
        "6.9",
        |raw| after(raw, &[window(0, 0)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "WINDOW_UPDATE by 0 for a stream",
        "6.9",
        |raw| after(raw, &[head(1, END_HEADERS), window(1, 0)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "WINDOW_UPDATE of three bytes",
        "6.9",
        |raw| after(raw, &[frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "WINDOW_UPDATE on an idle stream",
        "5.1",
        |raw| after(raw, &[window(1, 1)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a connection window over 2^31-1",
        "6.9.1",
        |raw| after(raw, &[window(0, (1 << 31) - 1)]),
        Gets::GoAway(FLOW_CONTROL),
    ),
    case(
        "a stream window over 2^31-1",
        "6.9.1",
        |raw| after(raw, &[head(1, END_HEADERS), window(1, (1 << 31) - 1)]),
        Gets::Reset(FLOW_CONTROL),
    ),
    case(
        "a setting that takes a stream window over 2^31-1",
        "6.9.2",
        |raw| {
            after(
                raw,
                &[
                    head(1, END_HEADERS),
                    window(1, (1 << 31) - 1 - 65535),
                    settings(&[(INITIAL_WINDOW_SIZE, 65536)]),
                ],
            );
        },
        Gets::GoAway(FLOW_CONTROL),
    ),
    case(
        "a setting that takes a stream window below 0",
        "6.9.2",
        |raw| {
            after(
                raw,
                &[
                    head(1, END_HEADERS),
                    settings(&[(INITIAL_WINDOW_SIZE, 0)]),
                    frame(DATA, END_STREAM, 1, b"ok"),
                    settings(&[(INITIAL_WINDOW_SIZE, 65535)]),
                ],
            );
        },
        Gets::Status(200),
    )
    .beside_a_good_one(),
    case(
        "CONTINUATION without HEADERS",
        "6.10",
        |raw| after(raw, &[frame(CONTINUATION, END_HEADERS, 1, &block(&get("/evil")))]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "CONTINUATION after END_HEADERS",
        "6.10",
        |raw| {
            after(
                raw,
                &[
                    head(1, END_HEADERS),
                    frame(CONTINUATION, END_HEADERS, 1, &field("a", "b")),
                ],
            );
        },
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "CONTINUATION of another stream",
        "6.10",
        |raw| {
            after(
                raw,
                &[
                    head(1, END_STREAM),
                    frame(CONTINUATION, END_HEADERS, 3, &field("a", "b")),
                ],
            );
        },
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "CONTINUATION on stream 0",
        "6.10",
        |raw| {
            after(
                raw,
                &[
                    head(1, END_STREAM),
                    frame(CONTINUATION, END_HEADERS, 0, &field("a", "b")),
                ],
            );
        },
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "DATA within a header block",
        "6.2",
        |raw| after(raw, &[head(1, 0), frame(DATA, 0, 1, b"x")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a frame that nobody knows within a header block",
        "5.5",
        |raw| after(raw, &[head(1, 0), frame(0xbe, 0, 1, b"x")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "SETTINGS within a header block",
        "6.2",
        |raw| after(raw, &[head(1, 0), settings(&[])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a header block in many pieces",
        "6.10",
        |raw| {
            let bytes = block(&get("/good"));
            let (first, rest) = bytes.split_at(7);
            let (second, third) = rest.split_at(20);
            after(
                raw,
                &[
                    frame(HEADERS, END_STREAM, 1, first),
                    frame(CONTINUATION, 0, 1, second),
                    frame(CONTINUATION, END_HEADERS, 1, third),
                ],
            );
        },
        Gets::Status(200),
    ),
    case(
        "DATA of more than 16,384 bytes",
        "4.2",
        |raw| after(raw, &[head(1, END_HEADERS), frame(DATA, 0, 1, &[0; 16385])]),
        Gets::GoAway(FRAME_SIZE),
    ),
    case(
        "HEADERS of more than 16,384 bytes",
        "4.2",
        |raw| after(raw, &[frame(HEADERS, WHOLE, 1, &[0; 16385])]),
        Gets::GoAway(FRAME_SIZE),
    ),
    case(
        "a frame that claims to be 16 MiB long",
        "4.2",
        |raw| after(raw, &[vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]]),
        Gets::GoAway(FRAME_SIZE),
    ),
    case(
        "a frame that nobody knows",
        "5.5",
        |raw| after(raw, &[frame(0xbe, 0xff, 77, b"what is this")]),
        Gets::Nothing,
    ),
    case(
        "flags that nobody knows",
        "4.1",
        |raw| after(raw, &[frame(PING, 0xfe, 0, b"whatever")]),
        Gets::Nothing,
    ),
    // A fault by the letter; the defaults hold until settings come, so nothing is unclear.
    case(
        "no SETTINGS first",
        "3.4",
        |raw| {
            raw.send([PREFACE, &head(1, WHOLE)].concat());
        },
        Gets::Status(200),
    )
    .beside_a_good_one(),
    case(
        "a wrong preface",
        "3.4",
        |raw| {
            raw.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
        },
        Gets::Closed,
    ),
    case(
        "HTTP/1.1 where HTTP/2 was agreed on",
        "3.4",
        |raw| {
            raw.send(b"GET /evil HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n");
        },
        Gets::Closed,
    ),
];

#[test]
fn frames_of_the_connection_out_of_place_get_what_they_deserve() {
    run(FRAMES);
}

/// A client that is still writing when we say why must get to read it: closing with bytes unread would be a reset.
#[test]
fn the_end_of_a_broken_connection_is_no_reset() {
    let upstream = Upstream::start();
    let world = World::new(upstream.address);
    let mut raw = world.raw();
    let more = frame(PING, 0, 0, &[0; 8]).repeat(800);
    raw.send(frame(DATA, 0, 0, b"x"));
    for _ in 0..20 {
        raw.send(&more);
    }
    assert_eq!(raw.read_out(), Some(PROTOCOL));
    assert!(!raw.is_reset());
    let local = raw.local;
    drop(raw);
    assert_eq!(world.record_of(local).outcome, Outcome::BadRequest);
}
