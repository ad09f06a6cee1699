//! Everything at once, for a while: reloads, killed workers and upgrades under a steady load from both sides.
//!
//! What may be lost is known: a worker that is killed takes the requests that it had. Its client sees a connection that ends
//! without an answer, and sends the request again on another, as the Agent's forwarder does; so such a request may come twice. The
//! load does the same. Every request that came twice must be one that its client sent again because of a connection that a killed
//! worker had, and no single try may come twice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::cgroup::Cgroup;
use harness::held;
use harness::proxy::{Installed, Launch, Proxy};
use harness::steady::{Account, BOTH, LIMIT, Sum, Twice, both};
use harness::suite::in_full;
use harness::world::World;
use harness::{check, check_eq, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::load::upgraded;

/// `AGENT_FIPS_PROXY_ENDURANCE=full`: five minutes in place of half of one.
const FULL: &str = "AGENT_FIPS_PROXY_ENDURANCE";

/// What happens in which time.
struct Plan {
    time: Duration,
    reloads: u32,
    kills: u32,
    upgrades: u32,
}

/// Clients and requests a second of both sides together.
const CLIENTS: u32 = 64;
const RATE: u32 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Reload,
    Kill,
    Upgrade,
}

impl Plan {
    fn of_environment() -> Self {
        if in_full(FULL) {
            return Self {
                time: Duration::from_secs(300),
                reloads: 100,
                kills: 20,
                upgrades: 10,
            };
        }
        Self {
            time: Duration::from_secs(30),
            reloads: 10,
            kills: 4,
            upgrades: 4,
        }
    }

    /// Each kind at equal distances, ordered by time.
    fn events(&self) -> Vec<(Duration, Event)> {
        let kinds = [
            (Event::Reload, self.reloads),
            (Event::Kill, self.kills),
            (Event::Upgrade, self.upgrades),
        ];
        let mut events: Vec<_> = kinds
            .into_iter()
            .flat_map(|(event, times)| {
                (0..times).map(move |number| (self.time * (2 * number + 1) / (2 * times), event))
            })
            .collect();
        events.sort();
        events
    }
}

pub fn endurance() -> Result<()> {
    let plan = Plan::of_environment();
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut config = world.intercepting(&agent);
    config["worker"]["threads"] = json!(2);
    config["log"]["access"] = json!(false);
    let proxy = Launch::new(&world.host).installed()?.config(&config)?.start()?;
    let mut account = Account::default();
    // Clients of the workers that were killed, by their ports.
    let mut cut = BTreeSet::new();
    let loads = both(&world.host, &agent, CLIENTS, RATE)?;
    let begun = Instant::now();
    let mut upgrades = 0;
    for (number, (at, event)) in plan.events().into_iter().enumerate() {
        std::thread::sleep(at.saturating_sub(begun.elapsed()));
        match event {
            Event::Reload => {
                config["upstream"]["response_timeout"] = json!(format!("{}s", 60 + number));
                proxy.rewrite(&config)?;
                proxy.reload()?;
            }
            Event::Kill => cut.extend(kill_worker(&proxy)?),
            Event::Upgrade => {
                upgrades += 1;
                proxy.install(Installed::Copy)?;
                let output = proxy.upgrade()?;
                check!(output.status.success(), "{output:?}\n{}", proxy.log());
                upgraded(&proxy, upgrades)?;
            }
        }
        account.take(&world);
    }
    std::thread::sleep(plan.time.saturating_sub(begun.elapsed()));
    let took = begun.elapsed();
    let [explicit, taken] = loads;
    let reports = [explicit.finish()?, taken.finish()?];
    account.take(&world);
    let mut twice = Vec::new();
    for (name, report) in BOTH.into_iter().zip(&reports) {
        twice.extend(account.whole(name, report, &proxy.log())?);
    }
    let strange: Vec<&Twice> = twice.iter().filter(|twice| !by_a_kill(twice, &cut)).collect();
    check!(
        strange.is_empty(),
        "came twice, and no killed worker had the connection: {strange:?}\n{}",
        proxy.log()
    );
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    let sum = Sum::of(&reports);
    let rate = sum.rate(took);
    println!(
        "endurance: {} reloads, {} kills, {} upgrades in {:.0} s: {} requests over {CLIENTS} connections, {rate:.0} a second, \
         all 2xx, bodies intact; {} sent again, {} of these came twice, each of a connection that a killed worker had; slowest {} ms",
        plan.reloads,
        plan.kills,
        plan.upgrades,
        took.as_secs_f64(),
        sum.requests,
        sum.again,
        twice.len(),
        sum.slowest_ms,
    );
    // How fast another machine is decides nothing; what the long form claims it must have done.
    check!(
        !in_full(FULL) || rate > f64::from(RATE) * 0.99,
        "{rate:.0} requests a second are not {RATE}"
    );
    check_eq!(proxy.status()?["upgrades"], json!(plan.upgrades), "upgrades");
    Ok(())
}

/// The one that serves; the ports of the clients that it had. It is another one's turn when that is known.
fn kill_worker(proxy: &Proxy<'_>) -> Result<BTreeSet<u16>> {
    let old = eventually("a worker", LIMIT, || Ok(proxy.worker().ok()))?;
    // It must not accept another one while its connections are looked at.
    kill(old, Signal::SIGSTOP)?;
    eventually("a worker that stands still", LIMIT, || {
        Ok(stopped(old)?.then_some(()))
    })?;
    let clients = held::clients(old)?;
    kill(old, Signal::SIGKILL)?;
    eventually("another worker", LIMIT, || {
        Ok(proxy.worker().ok().filter(|new| *new != old))
    })
    .with_context(|| proxy.log())?;
    Ok(clients)
}

/// Every thread of it.
fn stopped(pid: Pid) -> Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let status = std::fs::read_to_string(task.path().join("status"))?;
        if !status.lines().any(|line| line.starts_with("State:\tT")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every try that came, but for the one that was answered, was on a connection that a killed worker had.
fn by_a_kill(twice: &Twice, cut: &BTreeSet<u16>) -> bool {
    let ours = |port: Option<u16>| port.is_some_and(|port| cut.contains(&port));
    twice.failed.iter().all(|failed| ours(failed.port))
}
