//! Floods of frames that cost the sender nothing: each ends the connection, or is answered frame by frame without anything
//! piling up, and the memory of this process stays where it was.

use agent_fips_proxy::relay::outcome::Outcome;

use crate::frames::*;
use crate::harness::eventually;
use crate::intake::Intake;
use crate::world::{World, get, post, resident};

/// How much larger this process may become. Each flood that is not cut short sends more than that, or would pile up more
/// than that if each frame left as much as a hundred bytes behind; the rest of the room is the allocator's.
const GROWTH: usize = 32 << 20;

/// The end of a flood.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The proxy ends the connection.
    GoAway(u32),
    /// It is borne, and answered with as many frames of this kind as were sent; 0 for none.
    Borne(u8),
}

struct Flood {
    name: &'static str,
    /// What comes before.
    begin: fn(&mut Raw),
    /// The frame with this number.
    frame: fn(u32) -> Vec<u8>,
    count: u32,
    end: End,
}

/// An answer that waits, so that the stream stays open.
fn open(raw: &mut Raw) {
    raw.begin(&[]).headers(1, END_HEADERS, &post("/never"));
}

fn plain(raw: &mut Raw) {
    raw.begin(&[]);
}

/// A header block that does not end.
fn unfinished(raw: &mut Raw) {
    // An acknowledgement would come between.
    raw.polite = false;
    raw.begin(&[]).headers(1, END_STREAM, &get("/evil"));
}

const FLOODS: &[Flood] = &[
    Flood {
        name: "SETTINGS",
        begin: plain,
        frame: |n| settings(&[(HEADER_TABLE_SIZE, n % 4096)]),
        count: 30_000,
        end: End::Borne(SETTINGS),
    },
    Flood {
        name: "PING",
        begin: plain,
        frame: |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes()),
        count: 30_000,
        end: End::Borne(PING),
    },
    Flood {
        name: "PRIORITY",
        begin: plain,
        frame: |n| frame(PRIORITY, 0, n * 2 + 1, &[0; 5]),
        count: 300_000,
        end: End::Borne(0),
    },
    Flood {
        name: "frames that nobody knows",
        begin: plain,
        frame: |_| frame(0xbe, 0, 0, &[0; 16 * 1024]),
        count: 4000,
        end: End::Borne(0),
    },
    Flood {
        name: "WINDOW_UPDATE by 1",
        begin: open,
        frame: |n| window(n % 2, 1),
        count: 300_000,
        end: End::Borne(0),
    },
    Flood {
        name: "SETTINGS that change the window of an open stream",
        begin: open,
        frame: |n| settings(&[(INITIAL_WINDOW_SIZE, n % 65535)]),
        count: 30_000,
        end: End::Borne(SETTINGS),
    },
    Flood {
        name: "empty DATA",
        begin: open,
        frame: |_| frame(DATA, 0, 1, &[]),
        count: 300_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "empty DATA with padding",
        begin: open,
        frame: |_| frame(DATA, PADDED, 1, &[255; 256]),
        count: 300_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "DATA of one byte",
        begin: open,
        frame: |_| frame(DATA, 0, 1, b"x"),
        count: 300_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "empty HEADERS",
        begin: plain,
        frame: |n| frame(HEADERS, WHOLE, n * 2 + 1, &[]),
        count: 300_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "malformed HEADERS",
        begin: plain,
        frame: |n| frame(HEADERS, WHOLE, n * 2 + 1, &block(&[(":method", "GET")])),
        count: 300_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "empty CONTINUATION",
        begin: unfinished,
        frame: |_| frame(CONTINUATION, 0, 1, &[]),
        count: 300_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "CONTINUATION (CVE-2024-27316)",
        begin: unfinished,
        frame: |_| frame(CONTINUATION, 0, 1, &field("x", &"a".repeat(1000)).repeat(15)),
        count: 20_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "a header that never ends",
        begin: |raw| {
            raw.polite = false;
            let mut bytes = vec![0, 1, b'x'];
            integer(&mut bytes, 1 << 20, 7, 0);
            raw.begin(&[]).send(frame(HEADERS, END_STREAM, 1, &bytes));
        },
        frame: |_| frame(CONTINUATION, 0, 1, &[b'a'; 16 * 1024]),
        count: 20_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "more requests than may be open",
        begin: plain,
        frame: |n| {
            frame(
                HEADERS,
                WHOLE,
                n * 2 + 1,
                &block(&[
                    (":method", "GET"),
                    (":scheme", "https"),
                    (":authority", "example.org"),
                    (":path", "/"),
                ]),
            )
        },
        count: 20_000,
        end: End::GoAway(CALM),
    },
    Flood {
        name: "heads that are too large",
        begin: plain,
        frame: |n| {
            frame(
                HEADERS,
                WHOLE,
                n * 2 + 1,
                &block(&[&get("/")[..], &[("x", &"a".repeat(16_200))]].concat()),
            )
        },
        count: 2000,
        end: End::Borne(HEADERS),
    },
];

#[test]
fn floods_end_or_pile_nothing_up() {
    let intake = Intake::start(true);
    let world = World::alone(intake.address, |setup| setup.tls.http2 = true);
    world.still_serves("the first");
    let mut wrong = Vec::new();
    for flood in FLOODS {
        let mut raw = world.silent();
        let local = raw.local;
        (flood.begin)(&mut raw);
        let before = resident();
        let mut most = 0;
        let mut sent = 0;
        let mut batch = Vec::new();
        while sent < flood.count && !raw.is_over() {
            batch.clear();
            while sent < flood.count && batch.len() < 16 * 1024 {
                batch.extend((flood.frame)(sent));
                sent += 1;
            }
            raw.send(&batch);
            raw.drain();
            most = most.max(resident().saturating_sub(before));
        }
        let borne = matches!(flood.end, End::Borne(_));
        let end = if borne && !raw.is_over() && raw.ping() {
            let kind = match flood.end {
                End::Borne(kind) => kind,
                End::GoAway(_) => 0,
            };
            let mut answers = || {
                raw.drain();
                let answers = raw.heard.iter().filter(|frame| frame.kind == kind);
                let answers = answers
                    .filter(|frame| kind == HEADERS || frame.flags & ACK != 0)
                    .count();
                // One more for the beginning, and for the PING behind it.
                (kind == 0 || answers >= usize::try_from(flood.count).unwrap()).then_some(())
            };
            eventually(&mut answers);
            raw.leave();
            End::Borne(kind)
        } else {
            raw.read_out();
            let last = raw
                .heard
                .iter()
                .rfind(|frame| frame.kind == GOAWAY)
                .map(Frame::code);
            drop(raw);
            last.map_or(End::Borne(255), End::GoAway)
        };
        let record = world.record_of(local);
        let expected = match (borne, record.requests) {
            (false, _) => Outcome::BadRequest,
            (true, 0) => Outcome::Ok,
            // It left while its request was open.
            (true, _) => Outcome::ClientAborted,
        };
        if end != flood.end || record.outcome != expected || most > GROWTH {
            wrong.push(format!(
                "{}: {end:?} after {sent}, {} KiB more, {record:?}",
                flood.name,
                most >> 10
            ));
        }
        world.still_serves(flood.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Answers to PING that the client does not read: we stop to read, too, until the idle time-out.
#[test]
fn a_client_that_does_not_read_is_not_read() {
    let intake = Intake::start(true);
    let world = World::alone(intake.address, |setup| {
        setup.tls.http2 = true;
        setup.config.limits.idle_timeout = std::time::Duration::from_millis(500);
    });
    let mut raw = world.raw();
    let local = raw.local;
    let before = resident();
    let pings = frame(PING, 0, 0, b"knock-on").repeat(1000);
    let mut taken = 0;
    while !raw.is_over() {
        raw.send(&pings);
        taken += pings.len();
        assert!(
            taken < 256 << 20,
            "{taken} bytes were taken although the answers are not read"
        );
    }
    let more = resident().saturating_sub(before);
    assert!(more < GROWTH, "{} MiB are kept", more >> 20);
    assert_eq!(world.record_of(local).outcome, Outcome::ClientTimeout);
    drop(raw);
    world.still_serves("a client that does not read");
}
