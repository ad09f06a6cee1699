//! Everything at once, for a while: reloads, killed workers and upgrades under a steady load from both sides.
//!
//! What may be lost is known: a worker that is killed takes the requests that it had. Its client sees a connection that ends
//! without an answer, and sends the request again on another, as the Agent's forwarder does; so such a request may come twice. The
//! load does the same, and every request that came twice must be one that was sent again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::cgroup::Cgroup;
use harness::proxy::{Installed, Launch, Proxy};
use harness::world::World;
use harness::{check, check_eq, eventually};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::load::{EXPLICIT, LIMIT, intercepted, start, upgraded, whole};

/// `AGENT_FIPS_PROXY_ENDURANCE=full`: five minutes in place of half of one.
const FULL: &str = "AGENT_FIPS_PROXY_ENDURANCE";

/// What happens in which time.
struct Plan {
    time: Duration,
    reloads: u32,
    kills: u32,
    upgrades: u32,
}

/// Clients of each side, and the time from one request of a client to its next: 64 clients, 500 requests a second.
const CLIENTS: u32 = 32;
const PACE_MS: &str = "128";
/// Requests on one connection.
const EACH: u32 = 25;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Reload,
    Kill,
    Upgrade,
}

impl Plan {
    fn of_environment() -> Self {
        if std::env::var(FULL).is_ok_and(|value| value == "full") {
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
    let proxy = Launch::new(&world.host).installed()?.config(&config)?.start()?;
    let pace = ["--pace-ms", PACE_MS];
    let url = intercepted();
    let explicit = start(&world.host, None, EXPLICIT, "explicit", CLIENTS, EACH, &pace)?;
    let taken = start(&world.host, Some(&agent), &url, "taken", CLIENTS, EACH, &pace)?;
    let begun = Instant::now();
    let mut upgrades = 0;
    for (number, (at, event)) in plan.events().into_iter().enumerate() {
        std::thread::sleep(at.saturating_sub(begun.elapsed()));
        match event {
            Event::Reload => {
                config["upstream"]["response_timeout"] = json!(format!("{}s", 60 + number));
                reload(&proxy, &config)?;
            }
            Event::Kill => kill_worker(&proxy)?,
            Event::Upgrade => {
                upgrades += 1;
                proxy.install(Installed::Copy)?;
                let output = proxy.upgrade()?;
                check!(output.status.success(), "{output:?}\n{}", proxy.log());
                upgraded(&proxy, upgrades)?;
            }
        }
    }
    std::thread::sleep(plan.time.saturating_sub(begun.elapsed()));
    let took = begun.elapsed();
    let (explicit, taken) = (explicit.finish()?, taken.finish()?);
    let mut twice = 0;
    for (name, report) in [("explicit", &explicit), ("taken", &taken)] {
        twice += whole(&world, name, report, &proxy.log())?;
    }
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    let again = explicit.again().len() + taken.again().len();
    let requests = explicit.count("attempts") + taken.count("attempts");
    println!(
        "{} reloads, {} kills, {} upgrades in {:.0} s: {requests} requests ({:.0} a second), all 2xx; {again} sent again, {twice} of \
         these came twice; slowest {} ms",
        plan.reloads,
        plan.kills,
        plan.upgrades,
        took.as_secs_f64(),
        requests as f64 / took.as_secs_f64(),
        explicit.count("slowest_ms").max(taken.count("slowest_ms")),
    );
    check_eq!(proxy.status()?["upgrades"], json!(plan.upgrades), "upgrades");
    Ok(())
}

fn reload(proxy: &Proxy<'_>, config: &serde_json::Value) -> Result<()> {
    proxy.rewrite(config)?;
    let reloads = || proxy.log().matches("configuration reloaded").count();
    let before = reloads();
    proxy.signal(Signal::SIGHUP)?;
    eventually("a reload", LIMIT, || Ok((reloads() > before).then_some(()))).with_context(|| proxy.log())
}

/// The one that serves. It is another one's turn when that is known.
fn kill_worker(proxy: &Proxy<'_>) -> Result<()> {
    let old = eventually("a worker", LIMIT, || Ok(proxy.worker().ok()))?;
    kill(old, Signal::SIGKILL)?;
    eventually("another worker", LIMIT, || {
        Ok(proxy.worker().ok().filter(|new| *new != old))
    })
    .map(drop)
    .with_context(|| proxy.log())
}
