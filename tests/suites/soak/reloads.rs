//! Thirty minutes with a reload every ten seconds under a steady load: nothing is lost, and nothing of ours grows.
//!
//! Every other reload changes what the worker acts on, so that the worker is replaced; the others change what only the master reads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::bpf;
use harness::cgroup::Cgroup;
use harness::held::{self, Held};
use harness::proxy::{Launch, Proxy};
use harness::steady::{Account, BOTH, Sum, both};
use harness::suite::in_full;
use harness::world::World;
use harness::{check, check_eq};
use serde_json::{Value, json};

use super::series::Series;

/// Clients and requests a second of both sides together.
const CLIENTS: u32 = 64;
const RATE: u32 = 1000;
/// Between two reloads.
const RELOAD: Duration = Duration::from_secs(10);

/// How much the median of the last quarter may be above the third's. The full form has 45 reloads in a quarter, so that one thing
/// left behind by every third reload is seen.
///
/// Clients' connections: a client has none for a moment when it makes another. Those to intakes are left out: how many there are
/// follows the requests that were on their way at once in the last minute.
const DESCRIPTORS: u64 = 15;
/// The runtime's threads for blocking calls come and go (tokio ends one that was idle for ten seconds).
const THREADS: u64 = 2;
/// Connections that are being made: one of each client at most.
const ENTRIES: u64 = CLIENTS as u64;
/// The master's memory in KiB: of 45 reloads, less than 12 KiB each.
const MASTER: u64 = 512;
/// Of all processes in KiB: a worker's first seconds are never quite the same, and there are two of them for a moment.
const ALL: u64 = 3 << 10;

const TO_INTAKES: &str = "connections to intakes";
const OTHERS: &str = "all: descriptors beside those";

pub fn reloads() -> Result<()> {
    let full = in_full(super::FULL);
    let (time, every) = if full { (1800, 5) } else { (40, 1) };
    let (time, every) = (Duration::from_secs(time), Duration::from_secs(every));
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut config = world.intercepting(&agent);
    config["worker"]["threads"] = json!(2);
    config["log"]["access"] = json!(false);
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    let (mut account, mut series) = (Account::default(), Series::default());
    let loads = both(&world.host, &agent, CLIENTS, RATE)?;
    let begun = Instant::now();
    let mut reloads = 0;
    while begun.elapsed() < time {
        std::thread::sleep(every);
        sample(&world, &proxy, &mut series)?;
        account.take(&world);
        // After the sample: right behind a reload there are two workers.
        if begun.elapsed() >= RELOAD * reloads + RELOAD / 2 {
            change(&mut config, reloads);
            proxy.rewrite(&config)?;
            proxy.reload()?;
            reloads += 1;
        }
    }
    let took = begun.elapsed();
    let [explicit, taken] = loads;
    let reports = [explicit.finish()?, taken.finish()?];
    account.take(&world);
    for (name, report) in BOTH.into_iter().zip(&reports) {
        let twice = account.whole(name, report, &proxy.log())?;
        check!(twice.is_empty(), "{name}: came twice: {twice:?}\n{}", proxy.log());
    }
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    let sum = Sum::of(&reports);
    let rate = sum.rate(took);
    println!(
        "soak reloads: {reloads} reloads in {:.0} s: {} requests over {CLIENTS} connections, {rate:.0} a second, all 2xx, each \
         arrived once, bodies intact; {} sent again; slowest {} ms; medians of the third and the last quarter: {}",
        took.as_secs_f64(),
        sum.requests,
        sum.again,
        sum.slowest_ms,
        flat(&series)?,
    );
    // How fast another machine is decides nothing; what the long form claims it must have done.
    check!(
        !full || rate > f64::from(RATE) * 0.99,
        "{rate:.0} requests a second are not {RATE}"
    );
    Ok(())
}

/// Every other one is the worker's.
fn change(config: &mut Value, number: u32) {
    if number.is_multiple_of(2) {
        config["upstream"]["response_timeout"] = json!(format!("{}s", 60 + number % 4));
    } else {
        let level = if number % 4 == 1 { "debug" } else { "info" };
        config["log"]["level"] = json!(format!("agent_fips_proxy::supervise={level},info"));
    }
}

/// Of all our processes and of the master alone, and of every map.
fn sample(world: &World, proxy: &Proxy<'_>, series: &mut Series) -> Result<()> {
    let master = Held::of(proxy.pid())?;
    let all = Held::tree(proxy.pid())?;
    series.add("master: descriptors", master.descriptors);
    for (whose, held) in [("master", master), ("all", all)] {
        series.add(&format!("{whose}: threads"), held.threads);
        series.add(&format!("{whose}: RSS KiB"), held.rss);
    }
    let to_intakes = held::sockets(proxy.pid())?;
    let to_intakes = to_intakes
        .iter()
        .filter(|socket| socket.remote == 443 && socket.inode != 0)
        .count() as u64;
    series.add(TO_INTAKES, to_intakes);
    series.add(OTHERS, all.descriptors.saturating_sub(to_intakes));
    series.add("all: processes", all.processes);
    let mut ours = bpf::objects(&world.host)?;
    ours.extend(bpf::held(proxy.pid())?);
    series.add("kernel objects", ours.len() as u64);
    let entries = bpf::entries(&ours.maps).context("entries of maps")?;
    for (map, count) in entries {
        series.add(&format!("map {map}"), count as u64);
    }
    Ok(())
}

/// Nothing grew; the values as text.
fn flat(series: &Series) -> Result<String> {
    let [.., third, last] = series.quarters(TO_INTAKES);
    let mut told = vec![format!("{TO_INTAKES} {third} → {last}")];
    for (name, most) in [
        ("all: processes", 0),
        (OTHERS, DESCRIPTORS),
        ("master: descriptors", DESCRIPTORS),
        ("all: threads", THREADS),
        ("master: threads", THREADS),
        ("all: RSS KiB", ALL),
        ("master: RSS KiB", MASTER),
        ("kernel objects", 0),
    ] {
        told.push(format!("{name} {}", series.flat(name, most)?));
    }
    let maps = series.names("map ");
    check!(maps.len() > 5, "hardly a map: {maps:?}");
    for map in maps {
        told.push(format!("{map} {}", series.flat(&map, ENTRIES)?));
    }
    Ok(told.join(", "))
}
