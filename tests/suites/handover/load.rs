//! Loads that run throughout, and what they may leave at the intake.

use anyhow::{Context, Result};
use harness::agent::{Curl, Load, curl};
use harness::cgroup::Cgroup;
use harness::netns::Host;
use harness::proxy::Proxy;
use harness::steady::{Account, LIMIT, start};
use harness::world::{API_KEY, World};
use harness::{check, eventually};
use serde_json::Value;

/// A load of new connections and one of connections that are kept.
pub fn pair(host: &Host, agent: Option<&Cgroup>, url: &str) -> Result<[Load; 2]> {
    Ok([
        start(host, agent, url, "new", 4, 1, &["--interval-ms", "3"])?,
        start(host, agent, url, "kept", 4, 1_000_000, &["--interval-ms", "3"])?,
    ])
}

/// Ends the loads of [`pair`]. No new connection may need a second try. One that was kept may: a worker that drains closes it
/// while it is idle, and a request can cross that; the worker has not read it then, so nothing comes twice.
pub fn unharmed(world: &World, loads: [Load; 2], proxy: &Proxy<'_>) -> Result<()> {
    let [new, kept] = loads;
    let (new, kept) = (new.finish()?, kept.finish()?);
    let account = Account::of(world);
    for (name, report) in [("new", &new), ("kept", &kept)] {
        check!(report.count("attempts") > 50, "{name}: hardly a load: {report:?}");
        let twice = account.whole(name, report, &proxy.log())?;
        check!(twice.is_empty(), "{name}: came twice: {twice:?}\n{}", proxy.log());
    }
    check!(
        new.again().is_empty(),
        "new connections were sent again: {:?}\n{}",
        new.again(),
        proxy.log()
    );
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
