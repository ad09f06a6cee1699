//! Memory of all our processes with thousands of idle Agents, in a burst, and after it.
//!
//! "At first" is after some requests of each kind: the pages of a program's file come when they are first used, and stay.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::bench::child::Child;
use harness::bench::intercept::intercepted;
use harness::bench::peers::settings;
use harness::bench::run::raise_limit;
use harness::bench::stage::{Load, Place, Stage, Target};
use harness::cgroup::Cgroup;
use harness::held::Held;
use harness::proxy::{Launch, Proxy};
use harness::suite::in_full;
use harness::{check, check_eq, patient};
use serde_json::{Value, json};

/// Idle Agents.
const CLIENTS: usize = 5000;
/// What all our processes together may have with them, in KiB. The long form is for the release: of the debug binary the pages of its
/// file alone are more.
const MOST: u64 = 64 << 10;
/// What they may add, in KiB: 4 each. It is the same with either binary.
const ADDED: u64 = 20_000;
/// Bursts: how, by how many clients at once, with bodies of how many bytes.
const BURSTS: [(&str, usize, usize); 4] = [
    ("kept", 64, 1 << 10),
    ("kept", 48, 64 << 10),
    ("kept", 32, 1 << 20),
    ("new", 48, 1 << 10),
];
/// For memory to come back; it decides nothing but that the case ends. Connections to intakes stay for `upstream.pool_idle_timeout`.
const LIMIT: Duration = Duration::from_secs(180);
/// Between two looks in a burst.
const LOOK: Duration = Duration::from_millis(500);
/// What the last requests needed is given back within it.
const SETTLE: Duration = Duration::from_secs(2);
/// "Some requests": the clients of the bursts divided by it.
const FEW: usize = 16;

pub fn memory() -> Result<()> {
    let full = in_full(super::FULL);
    let burst = Duration::from_secs(if full { 600 } else { 10 });
    raise_limit()?;
    let (stage, agent) = (Stage::two_hosts()?, Cgroup::new("agent")?);
    let mut config = settings(
        &stage,
        &json!({
            "intercept": {
                "enabled": true,
                "datapath": "cgroup",
                "agents": {"cgroups": [agent.inside()], "pods": {"api": "off"}},
            },
            // All are one Agent here, and stay for as long as the case.
            "limits": {"max_connections": 2 * CLIENTS, "max_connections_per_agent": 2 * CLIENTS, "idle_timeout": "1h"},
        }),
    );
    if !full {
        config["upstream"]["pool_idle_timeout"] = json!("5s");
    }
    let proxy = Launch::new(&stage.host).config(&config)?.start()?;
    let target = intercepted(Place::Cgroup(&agent));
    let worker = proxy.worker()?;

    bursts(&stage, &target, FEW, Duration::from_secs(2), || Ok(()))?;
    let first = settled(&proxy)?;
    let mut idle = load(&stage, &target, ("idle", CLIENTS, 1 << 10), Duration::ZERO)?;
    let (with, parts) = (settled(&proxy)?, parts(&proxy)?);
    let mut peak = with.rss;
    let (requests, bytes) = bursts(&stage, &target, 1, burst, || {
        peak = peak.max(Held::tree(proxy.pid())?.rss);
        Ok(())
    })?;
    let after = returned(&proxy, &with)?;
    idle.say("go")?;
    let told: Value = serde_json::from_str(&idle.line(LIMIT)?)?;
    check_eq!(told["errors"], json!({}), "idle clients");
    check_eq!(told["requests"], json!(CLIENTS), "idle clients");
    drop(idle);
    let left = returned(&proxy, &first)?;
    check_eq!(proxy.worker()?, worker, "the worker");
    println!(
        "soak memory: RSS of {} processes in MiB: {:.1} at first; {:.1} with {CLIENTS} idle connections ({parts}); at most {:.1} in a \
         burst of {} s by {} clients ({requests} requests, {} MiB, all answered); {:.1} {:.0} s after it; {:.1} {:.0} s after everybody left",
        with.processes,
        first.mib(),
        with.mib(),
        peak as f64 / 1024.0,
        burst.as_secs(),
        BURSTS.iter().map(|(_, clients, _)| clients).sum::<usize>(),
        bytes >> 20,
        after.held.mib(),
        after.took.as_secs_f64(),
        left.held.mib(),
        left.took.as_secs_f64(),
    );
    let added = with.rss.saturating_sub(first.rss);
    check!(
        added < ADDED,
        "{CLIENTS} idle connections add {added} KiB, at most {ADDED} are promised"
    );
    check!(
        !full || with.rss < MOST,
        "{} KiB with {CLIENTS} idle connections, at most {MOST} are promised: {parts}",
        with.rss
    );
    check!(
        after.back,
        "after the burst: {:?}, before it was {with:?}",
        after.held
    );
    check!(
        left.back,
        "after everybody left: {:?}, at first it was {first:?}",
        left.held
    );
    Ok(())
}

/// All our processes, a moment after the last request.
fn settled(proxy: &Proxy<'_>) -> Result<Held> {
    std::thread::sleep(SETTLE);
    Held::tree(proxy.pid())
}

/// How it was when it had come back, or when that had taken too long.
struct Returned {
    held: Held,
    back: bool,
    took: Duration,
}

/// Waits until memory is at most a tenth above what it was, and there are no more descriptors and threads than there were.
fn returned(proxy: &Proxy<'_>, before: &Held) -> Result<Returned> {
    let start = Instant::now();
    loop {
        let held = Held::tree(proxy.pid())?;
        let back = held.rss * 10 <= before.rss * 11
            && held.descriptors <= before.descriptors
            && held.threads <= before.threads;
        let took = start.elapsed();
        if back || took > patient(LIMIT) {
            return Ok(Returned { held, back, took });
        }
        std::thread::sleep(LOOK);
    }
}

/// Each process's part.
fn parts(proxy: &Proxy<'_>) -> Result<String> {
    let prober = proxy.prober()?;
    let all = [
        ("master", Some(proxy.pid())),
        ("worker", Some(proxy.worker()?)),
        ("prober", prober),
    ];
    let mut told = Vec::new();
    for (name, pid) in all {
        if let Some(pid) = pid {
            told.push(format!("{name} {:.1}", Held::of(pid)?.mib()));
        }
    }
    Ok(told.join(", "))
}

fn load(
    stage: &Stage,
    target: &Target<'_>,
    (mode, connections, body): (&'static str, usize, usize),
    window: Duration,
) -> Result<Child> {
    let load = Load {
        mode,
        connections,
        body,
        window,
        warmup: Duration::ZERO,
    };
    let child = stage.load(target, &load)?;
    let word = child.line(LIMIT)?;
    check!(word == "warm", "the load generator said {word}");
    Ok(child)
}

/// All of [`BURSTS`] at once, each with its clients divided by `divisor`, for this long; how many requests that were, of how many
/// bytes, every one answered.
fn bursts(
    stage: &Stage,
    target: &Target<'_>,
    divisor: usize,
    time: Duration,
    mut look: impl FnMut() -> Result<()>,
) -> Result<(u64, u64)> {
    let mut loads = BURSTS
        .iter()
        .map(|(mode, clients, body)| load(stage, target, (mode, clients / divisor, *body), time))
        .collect::<Result<Vec<_>>>()?;
    for load in &mut loads {
        load.say("go")?;
    }
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::thread::sleep(LOOK);
        look()?;
    }
    let (mut requests, mut bytes) = (0, 0);
    for (load, (mode, clients, body)) in loads.iter().zip(BURSTS) {
        let line = load.line(LIMIT)?;
        let told: Value = serde_json::from_str(&line).with_context(|| format!("it said {line}"))?;
        check_eq!(
            told["errors"],
            json!({}),
            "{clients} {mode} clients with {body} bytes"
        );
        let answered = told["requests"].as_u64().unwrap_or(0);
        check!(answered > 0, "{clients} {mode} clients did nothing: {line}");
        requests += answered;
        bytes += answered * body as u64;
    }
    Ok((requests, bytes))
}
