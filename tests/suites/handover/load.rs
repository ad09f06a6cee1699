//! Loads that run throughout, and what they may leave at the intake.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::{Curl, Load, Report, curl};
use harness::cgroup::Cgroup;
use harness::netns::Host;
use harness::proxy::Proxy;
use harness::world::{API_KEY, VERSIONED, World};
use harness::{check, check_eq, eventually};
use serde_json::Value;

/// For whatever must come; it decides nothing but that a case ends.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Where a product's explicit port is.
pub const EXPLICIT: &str = "http://localhost:9804/api/v2/series";

/// Where an Agent sends what is intercepted.
pub fn intercepted() -> String {
    format!("http://{VERSIONED}/api/v2/series")
}

/// A load until told: `clients` of `name`, each request with a body of its own, `each` requests a connection.
pub fn start(
    host: &Host,
    agent: Option<&Cgroup>,
    url: &str,
    name: &str,
    clients: u32,
    each: u32,
    more: &[&str],
) -> Result<Load> {
    let (clients, each) = (clients.to_string(), each.to_string());
    let words = [
        "--url",
        url,
        "--name",
        name,
        "--clients",
        &clients,
        "--per-connection",
        &each,
        "--body",
        "700",
        "--api-key",
        API_KEY,
        "--retries",
        "5",
    ];
    let words: Vec<&str> = words.iter().chain(more).copied().collect();
    Load::start(host, agent, &words)
}

/// A load of new connections and one of connections that are kept.
pub fn pair(host: &Host, agent: Option<&Cgroup>, url: &str) -> Result<[Load; 2]> {
    Ok([
        start(host, agent, url, "new", 4, 1, &["--interval-ms", "3"])?,
        start(host, agent, url, "kept", 4, 1_000_000, &["--interval-ms", "3"])?,
    ])
}

/// How often each request of a load reached the intake, by its id.
pub fn arrivals(world: &World, name: &str) -> BTreeMap<String, u32> {
    let mut arrivals = BTreeMap::new();
    for seen in world.intake.seen() {
        if let Some(id) = seen
            .header("x-test-id")
            .filter(|id| id.rsplit_once('-').is_some_and(|(whose, _)| whose == name))
        {
            *arrivals.entry(id.to_owned()).or_default() += 1;
        }
    }
    arrivals
}

/// Every request of a load was answered 2xx and reached the intake intact; only what the client sent again may have come twice.
/// How many those were.
pub fn whole(world: &World, name: &str, report: &Report, log: &str) -> Result<usize> {
    check!(report.all(202), "{name}: {report:?}\n{log}");
    check!(report.count("attempts") > 50, "{name}: hardly a load: {report:?}");
    let again = report.again();
    let refused: Vec<_> = again
        .iter()
        .filter(|(_, why)| why.iter().any(|why| why.starts_with("connect_")))
        .collect();
    check!(refused.is_empty(), "{name}: refused connects: {refused:?}\n{log}");
    let arrivals = arrivals(world, name);
    check_eq!(
        arrivals.len() as u64,
        report.count("attempts"),
        "{name}: requests at the intake"
    );
    let twice: Vec<_> = arrivals.iter().filter(|(_, times)| **times > 1).collect();
    for (id, times) in &twice {
        let sent = again.get(*id).map_or(1, |why| why.len() + 1);
        check!(
            **times as usize <= sent,
            "{name}: {id} came {times} times and was sent {sent} times\n{log}"
        );
    }
    check_eq!(world.intake.faults(), Vec::<String>::new(), "{name}: faults");
    Ok(twice.len())
}

/// Ends the loads of [`pair`]. No new connection may need a second try. One that was kept may: a worker that drains closes it
/// while it is idle, and a request can cross that; the worker has not read it then, so nothing comes twice.
pub fn unharmed(world: &World, loads: [Load; 2], proxy: &Proxy<'_>) -> Result<()> {
    let [new, kept] = loads;
    let (new, kept) = (new.finish()?, kept.finish()?);
    check_eq!(whole(world, "new", &new, &proxy.log())?, 0, "twice: {new:?}");
    check!(
        new.again().is_empty(),
        "new connections were sent again: {:?}\n{}",
        new.again(),
        proxy.log()
    );
    check_eq!(whole(world, "kept", &kept, &proxy.log())?, 0, "twice: {kept:?}");
    println!(
        "{} requests by new connections, {} by kept ones, {} of these sent again; slowest {} and {} ms",
        new.count("attempts"),
        kept.count("attempts"),
        kept.again().len(),
        new.count("slowest_ms"),
        kept.count("slowest_ms")
    );
    Ok(())
}

/// One request to `url`.
pub fn ask(host: &Host, agent: Option<&Cgroup>, url: &str) -> Result<Curl> {
    let key = format!("DD-API-KEY: {API_KEY}");
    curl(host, agent, &["-H", &key, url])
}

/// The first number of the status's `upgrades`, once it is `wanted` and a worker other than `before` serves.
pub fn upgraded(proxy: &Proxy<'_>, wanted: u64) -> Result<Value> {
    eventually("an upgrade", LIMIT, || {
        let status = proxy.status()?;
        let there = status["upgrades"] == wanted && status["worker"]["pid"].is_u64();
        Ok(there.then_some(status))
    })
    .with_context(|| proxy.log())
}
