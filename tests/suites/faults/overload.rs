//! Rows: more than the proxy takes, and clients and intakes that take nothing.

use std::time::Duration;

use anyhow::Result;
use harness::hostile::Step::{Head, Repeat, Request, Send, Shake, Stall};
use harness::hostile::{Kind, Times};
use harness::{check, eventually};

use crate::stage::Stage;
use crate::table::Hold::{Answered, Own, Untouched, Within};
use crate::table::{Ask, Inject, Load, ROW, Row, SHORT};

/// Clients at once.
const MANY: usize = 60;
/// What they may cost in memory together: a debug build keeps some 200 KiB for each, TLS and both directions included.
const GROWTH: u64 = 48 << 20;
/// What each brings, in bytes: far more than any buffer of the kernel's holds.
const MUCH: usize = 16_000_000;

pub const ROWS: &[Row] = &[
    Row {
        name: "too_many_clients",
        fault: "more clients connect than limits.max_connections",
        inject: Inject::Own {
            begin: |stage| {
                // The load has 24 of 64.
                stage.hold(40, b"")?;
                Ok(())
            },
            end: |stage| {
                stage.held.clear();
                Ok(())
            },
        },
        settings: &[("limits.max_connections", "64")],
        load: Load::Keeps,
        asks: &[Ask::Get, Ask::Get, Ask::Post(100)],
        holds: &[Answered(503, "overloaded"), Untouched, Within(5)],
        ..ROW
    },
    Row {
        name: "slow_clients",
        fault: "60 clients ask for 16 MB each and read nothing",
        inject: Inject::Own {
            begin: slow_clients,
            end: everybody_goes,
        },
        settings: &[("limits.idle_timeout", "\"60s\"")],
        asks: &[],
        holds: &[Own(
            "less than 48 MiB more in RAM; descriptors return when they leave",
        )],
        ..ROW
    },
    Row {
        name: "slow_intakes",
        fault: "60 clients send 16 MB each to an intake that reads nothing",
        inject: Inject::Own {
            begin: slow_intakes,
            end: everybody_goes,
        },
        asks: &[],
        settings: SHORT,
        holds: &[Own(
            "each gets 504; less than 48 MiB more in RAM; descriptors return",
        )],
        ..ROW
    },
];

/// Fails when the worker's memory has grown by more than that.
fn grows_little(stage: &Stage<'_>, before: u64, growth: u64) -> Result<()> {
    let now = stage.resident()?.saturating_sub(before);
    check!(now < growth, "{} MiB more in RAM for {MANY} clients", now >> 20);
    Ok(())
}

fn slow_clients(stage: &mut Stage<'_>) -> Result<()> {
    const HEAD: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 16384000\r\n\r\n";
    stage.set.broken.play(
        &[
            Shake(Kind::Best),
            Request,
            Send(HEAD),
            Repeat(&[b'x'; 16384], 1000),
            Stall,
        ],
        Times::Every,
    );
    let before = stage.resident()?;
    stage.hold(
        MANY,
        b"GET /large HTTP/1.1\r\nHost: localhost\r\nx-test-id: warm\r\n\r\n",
    )?;
    eventually("every request at the intake", Duration::from_secs(20), || {
        Ok((stage.set.broken.heads().len() >= MANY).then_some(()))
    })?;
    // What fits into buffers gets there.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        grows_little(stage, before, GROWTH)?;
    }
    Ok(())
}

fn slow_intakes(stage: &mut Stage<'_>) -> Result<()> {
    stage
        .set
        .broken
        .play(&[Shake(Kind::Best), Head, Stall], Times::Every);
    let before = stage.resident()?;
    let count = u32::try_from(MANY)?;
    let answers = stage.ask_at_once(count, Ask::Post(MUCH))?;
    grows_little(stage, before, GROWTH)?;
    for answer in answers {
        check!(answer.status == 504, "{answer:?}");
    }
    Ok(())
}

fn everybody_goes(stage: &mut Stage<'_>) -> Result<()> {
    stage.held.clear();
    stage.set.broken.behave();
    // The load's connections come and go, and some of the connections to intakes wait for their next request.
    let most = stage.descriptors_at_first + MANY / 2;
    eventually("descriptors that return", Duration::from_secs(20), || {
        Ok((stage.descriptors()? < most).then_some(()))
    })
}
