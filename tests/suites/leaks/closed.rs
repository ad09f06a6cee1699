//! `intercept.on_failure: closed`.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use harness::agent::{Load, curl};
use harness::cgroup::Cgroup;
use harness::proxy::Launch;
use harness::vendor::Rewriter;
use harness::world::{API_KEY, INTAKE4, VERSIONED, World};
use harness::{check, check_eq, eventually};
use nix::sys::signal::{Signal, kill};

use crate::stage::{LIMIT, LINE, alarmed, expect, leaked, lines, name};

/// Numbers that nobody can foresee, and that a failure tells.
struct Dice(u64);

impl Dice {
    /// Below `limit` (Numerical Recipes' generator).
    fn roll(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Acceptance: master or worker killed at random a hundred times, while an Agent connects in a loop.
pub fn a_hundred_kills_leak_nothing() -> Result<()> {
    const KILLS: u64 = 100;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut dice = Dice(seed);
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let config = world.intercepting(&agent);
    let mut proxy = Launch::new(&world.host).config(&config)?.start()?;
    let url = format!("http://{VERSIONED}/api/v2/series");
    let words = [
        "--url",
        &url,
        "--ip",
        "both",
        "--clients",
        "2",
        "--interval-ms",
        "5",
        "--body",
        "100",
        "--api-key",
        API_KEY,
    ];
    let load = Load::start(&world.host, Some(&agent), &words)?;
    let mut masters = 0;
    for _ in 0..KILLS {
        sleep(Duration::from_millis(dice.roll(400)));
        if dice.roll(2) == 0 {
            let worker = eventually("a worker", LIMIT, || Ok(proxy.worker().ok()))?;
            // It may just have ended by itself.
            let _ = kill(worker, Signal::SIGKILL);
        } else {
            masters += 1;
            proxy.signal(Signal::SIGKILL)?;
            proxy.wait(LIMIT)?;
            let next = Launch::new(&world.host).config(&config)?;
            sleep(Duration::from_millis(dice.roll(300)));
            proxy = next.start().with_context(|| format!("seed {seed}"))?;
        }
    }
    let before = world.intake.count();
    eventually("requests after the last kill", LIMIT, || {
        Ok((world.intake.count() > before + 10).then_some(()))
    })
    .with_context(|| proxy.log())?;
    let report = load.finish()?;
    check!(
        masters > 20 && masters < 80,
        "seed {seed}: {masters} of the killed were masters"
    );
    check!(
        report.status(202) > 500 && report.status(202) <= report.count("attempts"),
        "seed {seed}: too little load to prove anything: {report:?}"
    );
    check!(world.leaks().is_empty(), "seed {seed}: {:?}", world.leaks());
    check_eq!(
        world.plain.seen().len(),
        0,
        "seed {seed}: connections in the clear"
    );
    expect(&proxy, &[]).with_context(|| format!("seed {seed}"))
}

/// Somebody's load balancer translates a virtual address to an intake's behind our program: closed or not, that is not
/// ours to stop, and it is told.
pub fn whoever_is_led_around_is_told_of() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = Launch::new(&world.host)
        .config(&world.intercepting(&agent))?
        .start()?;
    let IpAddr::V4(intake) = INTAKE4 else {
        anyhow::bail!("the intake's first address is IPv4");
    };
    let _rewriter = Rewriter::attach(agent.path(), Ipv4Addr::new(10, 96, 0, 1), intake)?;
    for _ in 0..3 {
        let answer = curl(&world.host, Some(&agent), &["http://10.96.0.1/around"])?;
        check_eq!(
            (answer.status, answer.body.as_str()),
            (200, "plain"),
            "{answer:?}"
        );
    }
    expect(&proxy, &[(name(&agent), "around", 3)])?;
    alarmed(&proxy, &name(&agent), "around", 1)?;
    let told = eventually("a line for each", LIMIT, || {
        let told = lines(&proxy, LINE, "WARN");
        Ok((told.len() == 3).then_some(told))
    })
    .with_context(|| proxy.log())?;
    check!(
        told.iter()
            .all(|line| line["reason"] == "around" && line["destination"] == "203.0.113.10:80"),
        "{told:?}"
    );
    check_eq!(leaked(&proxy)?.len(), 1, "no others");
    Ok(())
}
