//! `intercept.on_failure: open`.

use anyhow::{Context, Result};
use harness::cgroup::Cgroup;
use harness::world::World;
use harness::{check, check_eq, eventually};
use serde_json::{Value, json};

use crate::stage::{LIMIT, LINE, alarmed, ask, expect, lines, name};

pub fn config(world: &World, agent: &Cgroup) -> Value {
    let mut config = world.intercepting(agent);
    config["intercept"]["on_failure"] = json!("open");
    config
}

/// While we run: each connection by its line, with Agent, destination, process and reason.
pub fn each_direct_connection_is_counted_and_told() -> Result<()> {
    let (world, agent, other) = (World::new()?, Cgroup::new("agent")?, Cgroup::new("other")?);
    let proxy = world.start(&config(&world, &agent))?;
    expect(&proxy, &[])?;
    for _ in 0..5 {
        let answer = ask(&world, &agent, &["--interface", "eth0"])?;
        check_eq!(answer.body, "plain", "bound to a device: {answer:?}");
    }
    check_eq!(ask(&world, &agent, &[])?.status, 202, "{}", proxy.log());
    check_eq!(ask(&world, &other, &[])?.body, "plain", "no Agent's");
    expect(&proxy, &[(name(&agent), "bound_device", 5)])?;
    alarmed(&proxy, &name(&agent), "bound_device", 1)?;
    let told = eventually("a line for each", LIMIT, || {
        let told = lines(&proxy, LINE, "WARN");
        Ok((told.len() >= 5).then_some(told))
    })
    .with_context(|| proxy.log())?;
    check_eq!(told.len(), 5, "lines: {told:?}");
    for line in told {
        check_eq!(line["agent"], json!(name(&agent)), "{line}");
        check_eq!(line["destination"], json!("203.0.113.10:80"), "{line}");
        check_eq!(line["reason"], json!("bound_device"), "{line}");
        // curl may be gone before its name was read; its number stays.
        let process = line["process"].as_str().unwrap_or_default().to_owned();
        check!(process.bytes().any(|byte| byte.is_ascii_digit()), "{line}");
    }
    Ok(())
}

/// Nobody of us is there: the kernel counts, and the next master tells.
pub fn counts_go_on_over_kills() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let config = config(&world, &agent);
    let mut proxy = world.start(&config)?;
    let mut direct = 0;
    for round in 1..=3 {
        proxy.kill()?;
        for _ in 0..4 * round {
            let answer = ask(&world, &agent, &[])?;
            check_eq!(answer.body, "plain", "without a master: {answer:?}");
            direct += 1;
        }
        proxy = world.start(&config)?;
        check_eq!(ask(&world, &agent, &[])?.status, 202, "{}", proxy.log());
        expect(&proxy, &[(name(&agent), "no_listener", direct)])?;
        // The alarm tells of those that nobody was there to tell of.
        alarmed(&proxy, &name(&agent), "no_listener", direct)?;
    }
    check_eq!(
        world.plain.seen().len() as u64,
        direct,
        "connections in the clear"
    );
    Ok(())
}
