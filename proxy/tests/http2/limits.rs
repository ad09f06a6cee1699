//! What one client may have at once, and for how long: streams, resets, windows, silence.

use std::time::{Duration, Instant};

use agent_fips_proxy::relay::outcome::Outcome;

use crate::frames::*;
use crate::harness::{Setup, eventually};
use crate::intake::Intake;
use crate::world::{World, get, post, resident};

/// The proxy's own numbers (`server2`).
const STREAMS: u32 = 128;
const ABORTS: usize = 100;
const OWN_RESETS: usize = 64;

/// Time limits that a test can wait for.
fn short(setup: &mut Setup) {
    setup.config.limits.idle_timeout = Duration::from_millis(300);
}

fn http2(intake: &Intake) -> World {
    World::with(intake.address, |setup| setup.tls.http2 = true)
}

fn stream(number: usize) -> u32 {
    u32::try_from(number * 2 + 1).unwrap()
}

#[test]
fn a_stream_beyond_the_limit_is_refused_and_may_come_again() {
    let intake = Intake::start(false);
    let world = World::new(intake.address);
    let mut raw = world.raw();
    let said = raw
        .until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0)
        .unwrap();
    let limit = [&[0, 3][..], &STREAMS.to_be_bytes()].concat();
    assert!(said.payload.chunks(6).any(|setting| setting == limit), "{said:?}");
    for number in 0..=STREAMS {
        raw.headers(2 * number + 1, WHOLE, &get("/never"));
    }
    let refused = raw.until(|frame| frame.kind == RST_STREAM).unwrap();
    assert_eq!((refused.stream, refused.code()), (2 * STREAMS + 1, REFUSED));
    eventually(|| (intake.begun() == STREAMS as usize).then_some(()));
    // One goes, another may come.
    raw.send(reset(1, CANCEL));
    eventually(|| (intake.cancelled() == 1).then_some(()));
    assert_eq!(raw.headers(1001, WHOLE, &get("/")).answer(1001).0, 200);
    let local = raw.local;
    drop(raw);
    assert_eq!(world.record_of(local).outcome, Outcome::ClientAborted);
    // With the client go its requests.
    eventually(|| (intake.cancelled() == STREAMS as usize).then_some(()));
    world.still_serves("128 streams");
}

/// Streams of one connection are bounded together with all connections.
#[test]
fn requests_at_once_count_as_connections_do() {
    let intake = Intake::start(false);
    let world = World::with(intake.address, |setup| {
        setup.config.limits.max_connections = 10;
        setup.config.limits.max_connections_per_agent = 5;
    });
    let mut raw = world.raw();
    for number in 0..5 {
        raw.headers(stream(number), WHOLE, &get("/never"));
    }
    eventually(|| (intake.begun() == 5).then_some(()));
    let (status, text) = raw.headers(stream(5), WHOLE, &get("/")).answer(stream(5));
    assert_eq!(status, 503);
    assert!(
        String::from_utf8_lossy(&text).contains("limits.max_connections_per_agent"),
        "{text:?}"
    );
    assert_eq!(world.requests(1)[0].outcome, Outcome::Overloaded);
    // One goes, another may come.
    raw.send(reset(stream(0), CANCEL));
    eventually(|| (intake.cancelled() == 1).then_some(()));
    assert_eq!(raw.headers(stream(6), WHOLE, &get("/")).answer(stream(6)).0, 200);
    drop(raw);
    eventually(|| (intake.cancelled() == 5).then_some(()));
    world.still_serves("requests over the limit");
}

/// CVE-2023-44487, in a burst: h2 counts the streams that were reset before anybody looked at them.
#[test]
fn streams_reset_at_once_end_the_connection_before_they_cost_anything() {
    let intake = Intake::start(true);
    let world = http2(&intake);
    let mut raw = world.raw();
    let burst: Vec<u8> = (0..2000)
        .flat_map(|number| {
            let head = frame(HEADERS, WHOLE, stream(number), &block(&get("/never")));
            [head, reset(stream(number), CANCEL)].concat()
        })
        .collect();
    raw.send(burst);
    assert_eq!(raw.read_out(), Some(CALM));
    let local = raw.local;
    drop(raw);
    let record = world.record_of(local);
    assert_eq!(record.outcome, Outcome::BadRequest);
    // Those that were looked at between two pieces of the burst.
    assert!(
        record.requests <= ABORTS as u64 && intake.begun() <= ABORTS,
        "{record:?}"
    );
    world.still_serves("a rapid reset");
}

/// The same, by a client that waits until its request is at the intake.
#[test]
fn streams_reset_over_and_over_end_the_connection() {
    let intake = Intake::start(true);
    let world = http2(&intake);
    let mut raw = world.raw();
    let mut number = 0;
    while !raw.is_over() && number < 3 * ABORTS {
        raw.headers(stream(number), WHOLE, &get("/never"));
        number += 1;
        let known = eventually(|| {
            raw.drain();
            (intake.begun() == number || raw.is_over()).then(|| intake.begun())
        });
        raw.send(reset(stream(number - 1), CANCEL));
        // It is gone from the intake, too, unless the connection ended before the request went out.
        eventually(|| (intake.cancelled() == known).then_some(()));
    }
    raw.read_out();
    let local = raw.local;
    drop(raw);
    let record = world.record_of(local);
    assert_eq!(record.outcome, Outcome::BadRequest);
    assert!(
        (ABORTS..=ABORTS + 10).contains(&intake.begun()),
        "{}",
        intake.begun()
    );
    world.still_serves("resets over and over");
}

/// A client that resets as many as it lets us answer does nothing wrong.
#[test]
fn some_resets_among_good_requests_are_nothing() {
    let intake = Intake::start(true);
    let world = http2(&intake);
    let mut raw = world.raw();
    for number in 0..2 * ABORTS {
        let before = intake.begun();
        raw.headers(stream(2 * number), WHOLE, &get("/never"));
        eventually(|| (intake.begun() > before).then_some(()));
        raw.send(reset(stream(2 * number), CANCEL));
        assert_eq!(
            raw.headers(stream(2 * number + 1), WHOLE, &get("/"))
                .answer(stream(2 * number + 1))
                .0,
            200
        );
    }
    let local = raw.local;
    raw.leave();
    let record = world.record_of(local);
    assert_eq!(
        (record.outcome, record.requests),
        (Outcome::Ok, 4 * ABORTS as u64)
    );
}

/// CVE-2025-8671: the client makes us reset its streams, while the intake works on them.
#[test]
fn streams_that_we_are_made_to_reset_end_the_connection() {
    let intake = Intake::start(true);
    let world = http2(&intake);
    let mut raw = world.raw();
    let mut number = 0;
    while !raw.is_over() && number < 3 * OWN_RESETS {
        raw.headers(stream(number), WHOLE, &get("/never"));
        number += 1;
        eventually(|| {
            raw.drain();
            (intake.begun() == number || raw.is_over()).then_some(())
        });
        raw.send(window(stream(number - 1), (1 << 31) - 1));
        eventually(|| {
            raw.drain();
            (intake.cancelled() == number || raw.is_over()).then_some(())
        });
    }
    raw.read_out();
    let last = raw
        .heard
        .iter()
        .rfind(|frame| frame.kind == GOAWAY)
        .map(Frame::code);
    assert_eq!(last, Some(CALM));
    let local = raw.local;
    drop(raw);
    assert_eq!(world.record_of(local).outcome, Outcome::BadRequest);
    assert!(
        (OWN_RESETS..=OWN_RESETS + 1).contains(&intake.begun()),
        "{}",
        intake.begun()
    );
    eventually(|| (intake.cancelled() == intake.begun()).then_some(()));
    world.still_serves("made to reset");
}

/// It sends what it was not allowed to: 256 KiB a stream that the intake does not read.
#[test]
fn more_than_the_window_is_refused() {
    let intake = Intake::start(true);
    let world = http2(&intake);
    let mut raw = world.raw();
    raw.headers(1, END_HEADERS, &post("/never"));
    eventually(|| (intake.begun() == 1).then_some(()));
    let mut sent = 0;
    let over = loop {
        raw.data(1, 0, &[7; 16 * 1024]);
        sent += 16 * 1024;
        raw.drain();
        if raw.is_over() {
            raw.read_out();
        }
        let over = raw
            .heard
            .iter()
            .find(|frame| matches!(frame.kind, RST_STREAM | GOAWAY));
        if let Some(over) = over {
            break over.clone();
        }
        assert!(sent < 64 << 20 && !raw.is_over(), "{sent} bytes were taken");
    };
    assert_eq!(over.code(), FLOW_CONTROL);
    // All on the way to an intake that reads nothing: windows and buffers of both connections.
    assert!(sent < 8 << 20, "{sent} bytes were taken");
    drop(raw);
    eventually(|| (intake.cancelled() == 1).then_some(()));
    world.still_serves("more than its window");
}

/// Neither the stream's window nor the connection's is ever opened, or the socket is not read. 100 endless answers would be
/// gigabytes; what is kept is 64 KiB a stream here, and a quarter of a MiB a stream or a read buffer towards the intake.
/// The limit leaves room for what the allocator does and for the kernel's accounting: 96 MiB.
#[test]
fn answers_that_nobody_reads_are_kept_within_bounds_and_not_for_ever() {
    for (speaks, streams, values) in [
        // Each takes a connection to the intake, whose buffers the kernel has.
        (false, 20, &[(INITIAL_WINDOW_SIZE, 0)][..]),
        (true, 100, &[(INITIAL_WINDOW_SIZE, 0)]),
        (true, 100, &[(INITIAL_WINDOW_SIZE, (1 << 31) - 1)]),
    ] {
        let intake = Intake::start(speaks);
        let world = World::alone(intake.address, |setup| {
            setup.tls.http2 = speaks;
            setup.config.limits.idle_timeout = Duration::from_millis(300);
            setup.config.upstream.response_timeout = Duration::from_millis(1500);
        });
        let before = resident();
        let mut raw = world.silent();
        raw.begin(values);
        if values[0].1 != 0 {
            raw.send(window(0, (1 << 31) - 1 - 65535));
        }
        for number in 0..streams {
            raw.headers(stream(number), WHOLE, &get("/endless"));
        }
        let local = raw.local;
        let mut most = 0;
        let record = eventually(|| {
            most = most.max(resident().saturating_sub(before));
            let connections = world.records.connections.lock().unwrap();
            connections.iter().find(|record| record.client == local).cloned()
        });
        assert_eq!(record.outcome, Outcome::ClientTimeout);
        assert_eq!(record.requests, streams as u64);
        assert!(most < 96 << 20, "{} MiB are kept", most >> 20);
        let aborted = world.requests(streams);
        assert!(
            aborted
                .iter()
                .all(|record| record.outcome == Outcome::ClientAborted),
            "{speaks} {values:?} {aborted:?}"
        );
        world.still_serves("answers that nobody reads");
        drop(raw);
    }
}

#[test]
fn silence_has_its_limit_wherever_it_begins() {
    let intake = Intake::start(false);
    let world = World::with(intake.address, short);
    let half = frame(HEADERS, 0, 1, &block(&get("/evil")));
    let begun = [PREFACE, &settings(&[])].concat();
    let table: [(&str, Vec<u8>); 5] = [
        ("no preface", Vec::new()),
        ("half a preface", PREFACE[..10].to_vec()),
        ("half a frame's head", [&begun[..], &half[..5]].concat()),
        ("half a frame", [&begun[..], &half[..20]].concat()),
        ("half a header block", [&begun[..], &half].concat()),
    ];
    for (name, bytes) in table {
        let mut raw = world.silent();
        raw.polite = false;
        raw.send(bytes);
        let since = Instant::now();
        raw.read_out();
        let took = since.elapsed();
        assert!(
            took > Duration::from_millis(250) && took < Duration::from_secs(8),
            "{name}: {took:?}"
        );
        assert_eq!(
            world.record_of(raw.local).outcome,
            Outcome::ClientTimeout,
            "{name}"
        );
    }
    // A client that is well and has nothing to say is told goodbye.
    let mut raw = world.raw();
    assert_eq!(raw.headers(1, WHOLE, &get("/")).answer(1).0, 200);
    assert_eq!(raw.read_out(), Some(NO_ERROR));
    let local = raw.local;
    drop(raw);
    assert_eq!(world.record_of(local).outcome, Outcome::Ok);
    assert_eq!(intake.begun(), 1);
}

/// Whoever says much and asks nothing is idle.
#[test]
fn a_flood_does_not_put_off_the_idle_time_out() {
    let intake = Intake::start(false);
    let world = World::with(intake.address, short);
    let mut raw = world.raw();
    let since = Instant::now();
    let pings = frame(PING, 0, 0, b"knock-on").repeat(500);
    while !raw.is_over() {
        raw.send(&pings);
        raw.drain();
        assert!(since.elapsed() < Duration::from_secs(8), "it goes on for ever");
    }
    let local = raw.local;
    drop(raw);
    let record = world.record_of(local);
    assert_eq!((record.requests, record.decision), (0, "terminate"));
    world.still_serves("a flood of pings");
}

#[test]
fn a_body_that_stalls_is_answered_408() {
    for speaks in [false, true] {
        let intake = Intake::start(speaks);
        let world = World::with(intake.address, |setup| {
            short(setup);
            setup.tls.http2 = speaks;
        });
        let mut raw = world.raw();
        let fields = [&post("/up")[..], &[("content-length", "10")]].concat();
        raw.headers(1, END_HEADERS, &fields).data(1, 0, b"half");
        let (status, text) = raw.answer(1);
        assert_eq!(status, 408);
        assert!(
            String::from_utf8_lossy(&text).contains("limits.idle_timeout"),
            "{text:?}"
        );
        let record = &world.requests(1)[0];
        assert_eq!((record.outcome, record.bytes_up), (Outcome::ClientTimeout, 4));
        // One stream's fault is not another's.
        assert_eq!(raw.headers(3, WHOLE, &get("/")).answer(3).0, 200);
        // The answer is under way already.
        raw.headers(5, END_HEADERS, &post("/talk")).data(5, 0, b"half");
        let reset = raw.until(|frame| frame.stream == 5 && frame.kind == RST_STREAM);
        assert!(reset.is_some());
        assert_eq!(world.requests(3)[2].outcome, Outcome::ClientTimeout);
        let local = raw.local;
        raw.leave();
        assert_eq!(world.record_of(local).outcome, Outcome::Ok);
    }
}

/// A client is not called slow because the intake was: its time runs while we ask it for more.
#[test]
fn an_intake_that_is_slow_to_read_is_not_the_clients_fault() {
    let intake = Intake::start(true);
    let world = World::with(intake.address, |setup| {
        setup.config.limits.idle_timeout = Duration::from_secs(1);
        setup.tls.http2 = true;
    });
    let mut raw = world.raw();
    raw.headers(1, END_HEADERS, &post("/slow"));
    // What the intake's window takes without being read, and the one piece that we hold in hand for it.
    let whole = 1024 * 1024 + 16 * 1024;
    let (mut sent, mut stream, mut connection) = (0, 65535, 65535);
    while sent < whole {
        let now = (whole - sent).min(16 * 1024).min(stream).min(connection);
        if now > 0 {
            raw.data(1, 0, &vec![7; now]);
            (sent, stream, connection) = (sent + now, stream - now, connection - now);
            continue;
        }
        let Next::Frame(frame) = raw.next() else {
            panic!("the window is never opened")
        };
        let by = match frame.kind {
            WINDOW_UPDATE => {
                usize::try_from(u32::from_be_bytes(frame.payload[..].try_into().unwrap())).unwrap()
            }
            // 256 KiB a stream instead of what everybody begins with.
            SETTINGS if frame.flags & ACK == 0 => 256 * 1024 - 65535,
            _ => 0,
        };
        if frame.stream == 0 && frame.kind == WINDOW_UPDATE {
            connection += by;
        } else {
            stream += by;
        }
    }
    // The intake reads nothing for longer than a client may be silent.
    std::thread::sleep(Duration::from_millis(1300));
    intake.open.send_replace(true);
    // Now we ask for more, and there is some time for that.
    std::thread::sleep(Duration::from_millis(150));
    raw.data(1, END_STREAM, b"end");
    assert_eq!(raw.answer(1), (200, (whole + 3).to_string().into_bytes()));
    assert_eq!(world.requests(1)[0].outcome, Outcome::Ok);
    raw.leave();
}

/// A request that crosses our farewell is answered.
#[test]
fn a_request_that_crosses_our_farewell_is_answered() {
    let intake = Intake::start(true);
    let world = World::with(intake.address, |setup| {
        short(setup);
        setup.tls.http2 = true;
    });
    let mut raw = world.raw();
    assert!(raw.ping());
    let farewell = raw.until(|frame| frame.kind == GOAWAY).unwrap();
    assert_eq!(farewell.payload[..4], (u32::MAX >> 1).to_be_bytes());
    // It has not answered the PING behind the farewell, so this stream is not above the last one.
    raw.polite = false;
    raw.headers(1, WHOLE, &get("/held"));
    eventually(|| (intake.begun() == 1).then_some(()));
    // Longer than we wait for a client that has nothing to ask.
    std::thread::sleep(Duration::from_millis(800));
    intake.open.send_replace(true);
    assert_eq!(raw.answer(1), (200, b"held".to_vec()));
    raw.read_out();
}
