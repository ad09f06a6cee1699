//! What a host runs out of: disk for the log, descriptors, memory.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::hostile::Step::{Head, Shake, Stall};
use harness::hostile::{Kind, Times};
use harness::{check, check_eq, eventually, succeed};

use crate::stage::Stage;
use crate::table::Hold::{Counts, Logs, Own, Relayed};
use crate::table::{Ask, Inject, LOG_FOLDER, Load, Place, ROW, Row, SHORT};

/// Requests at once, and how much each brings: together far more than the limit.
const UPLOADS: u32 = 24;
const UPLOAD: usize = 8_000_000;

pub const DISK_FULL: Row = Row {
    name: "disk_full_for_logs",
    fault: "the file system of the log is full",
    inject: Inject::Own {
        begin: fill,
        end: empty,
    },
    place: Place::LogFile,
    holds: &[
        Relayed(202),
        Counts("agent_fips_proxy_log_lines_lost_total"),
        Own("with room again, lines are written again"),
    ],
    ..ROW
};

pub const DESCRIPTORS: Row = Row {
    name: "descriptors_exhausted",
    fault: "the worker can open nothing more (RLIMIT_NOFILE), while clients connect",
    inject: Inject::Own {
        begin: no_descriptors,
        end: descriptors_again,
    },
    asks: &[],
    load: Load::Keeps,
    holds: &[
        Logs("is LimitNOFILE too low?"),
        Own("who connects meanwhile waits, and is served afterwards"),
    ],
    ..ROW
};

pub const MEMORY: Row = Row {
    name: "memory_limit_64_mib",
    fault: "the proxy has 64 MiB, and 24 clients send 8 MB each to an intake that does not read",
    inject: Inject::Own {
        begin: upload,
        end: |_| Ok(()),
    },
    place: Place::Memory(64),
    asks: &[Ask::Get, Ask::Post(1_000_000)],
    settings: SHORT,
    holds: &[
        Relayed(202),
        Own("each of the 24 gets 504, and nothing is killed for want of memory"),
    ],
    ..ROW
};

fn on_host(stage: &Stage<'_>, script: &str) -> Result<String> {
    succeed(stage.set.world.host.command("sh").args(["-ec", script]))
}

fn fill(stage: &mut Stage<'_>) -> Result<()> {
    // Until there is no room; the log takes the last of it.
    on_host(
        stage,
        &format!("dd if=/dev/zero of={LOG_FOLDER}/filler bs=4096 2>/dev/null || true"),
    )?;
    let free = || on_host(stage, &format!("df --output=avail {LOG_FOLDER} | tail -1"));
    eventually("a full file system", Duration::from_secs(10), || {
        Ok((free()?.trim() == "0").then_some(()))
    })
}

fn empty(stage: &mut Stage<'_>) -> Result<()> {
    let log = format!("{LOG_FOLDER}/log");
    let size = || -> Result<u64> { Ok(on_host(stage, &format!("stat -c %s {log}"))?.trim().parse()?) };
    let before = size()?;
    on_host(stage, &format!("rm {LOG_FOLDER}/filler"))?;
    eventually("lines in the log again", Duration::from_secs(10), || {
        Ok((size()? > before).then_some(()))
    })?;
    let text = on_host(stage, &format!("cat {log}"))?;
    check!(!text.contains("panicked"), "a panic");
    Ok(())
}

/// Sets the worker's soft limit.
fn limit(stage: &Stage<'_>, soft: usize) -> Result<()> {
    let worker = stage.processes().1;
    let status = std::fs::read_to_string(format!("/proc/{worker}/status"))?;
    let id = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|ids| ids.split_whitespace().next())
            .context("no user in /proc")
    };
    let (user, group) = (id("Uid:")?, id("Gid:")?);
    // As the worker's own user: root may do it with CAP_SYS_RESOURCE only, which a container's root has not.
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", user, "--regid", group, "--clear-groups", "prlimit"]);
    command.args([format!("--pid={worker}"), format!("--nofile={soft}:")]);
    succeed(&mut command).map(drop)
}

fn no_descriptors(stage: &mut Stage<'_>) -> Result<()> {
    limit(stage, stage.descriptors()?)?;
    stage.hold(64, b"")?;
    Ok(())
}

fn descriptors_again(stage: &mut Stage<'_>) -> Result<()> {
    limit(stage, 4096)?;
    // Of those who waited, each is served: their requests come now.
    for stream in &mut stage.held {
        use std::io::{Read, Write};
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(
            stream,
            "GET /late HTTP/1.1\r\nHost: localhost\r\nDD-API-KEY: {}\r\nConnection: close\r\nx-test-id: warm\r\n\r\n",
            harness::world::API_KEY
        )?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .context("who waited got no answer")?;
        check!(answer.starts_with("HTTP/1.1 202"), "who waited got {answer:?}");
    }
    stage.held.clear();
    Ok(())
}

fn upload(stage: &mut Stage<'_>) -> Result<()> {
    stage
        .set
        .broken
        .play(&[Shake(Kind::Best), Head, Stall], Times::Every);
    let answers = stage.ask_at_once(UPLOADS, Ask::Post(UPLOAD))?;
    stage.set.broken.behave();
    for answer in answers {
        check_eq!(answer.status, 504, "{answer:?}");
    }
    let memory = stage.memory.as_ref().context("no limit")?;
    check_eq!(memory.killed()?, 0, "killed for want of memory");
    Ok(())
}
