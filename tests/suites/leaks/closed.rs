//! `intercept.on_failure: closed`.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::cgroup::Cgroup;
use harness::vendor::Rewriter;
use harness::world::{INTAKE4, World};
use harness::{check, check_eq, eventually};

use crate::stage::{LIMIT, LINE, alarmed, expect, leaked, lines, name};

/// Somebody's load balancer translates a virtual address to an intake's behind our program: closed or not, that is not
/// ours to stop, and it is told.
pub fn whoever_is_led_around_is_told_of() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = world.start(&world.intercepting(&agent))?;
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
