//! Connections that were open before the proxy.

use anyhow::Result;
use harness::cgroup::Cgroup;
use harness::world::World;
use harness::{check, check_eq};
use serde_json::json;

use crate::stage::{HELD, Held, LINE, alarmed, ask, expect, keep, lines, name, reload, with_held};

/// Counted, and left alone: also by the next master, who finds them open still.
pub fn what_was_open_before_is_told_once() -> Result<()> {
    let (world, agent, other) = (World::new()?, Cgroup::new("agent")?, Cgroup::new("other")?);
    keep(&world)?;
    let mut held = [(); 2].map(|()| Held::open(&world.host, Some(&agent)));
    let mut others = Held::open(&world.host, Some(&other))?;
    let config = with_held(world.intercepting(&agent));
    let mut proxy = world.start(&config)?;
    expect(&proxy, &[(name(&agent), "open_before", 2)])?;
    alarmed(&proxy, &name(&agent), "open_before", 2)?;
    let told = lines(&proxy, LINE, "WARN");
    check!(
        told.len() == 2
            && told
                .iter()
                .all(|line| line["destination"] == format!("{HELD}:443")),
        "{told:?}"
    );
    // One that is opened now goes through us, and a look at what is open knows that.
    let mut through = Held::open(&world.host, Some(&agent))?;
    reload(&proxy)?;
    expect(&proxy, &[(name(&agent), "open_before", 2)])?;
    check!(through.is_open()?, "cut: {}", proxy.log());
    proxy.kill()?;
    let proxy = world.start(&config)?;
    expect(&proxy, &[(name(&agent), "open_before", 2)])?;
    for held in &mut held {
        match held {
            Ok(held) => check!(held.is_open()?, "cut: {}", proxy.log()),
            Err(error) => anyhow::bail!("{error:#}"),
        }
    }
    check!(others.is_open()?, "somebody else's was cut");
    Ok(())
}

/// Reset: what comes next goes through us. Nobody else's connection is touched, and what came through us neither.
pub fn what_was_open_before_comes_back_through_us() -> Result<()> {
    let (world, agent, other) = (World::new()?, Cgroup::new("agent")?, Cgroup::new("other")?);
    keep(&world)?;
    let mut held = Held::open(&world.host, Some(&agent))?;
    let mut others = [
        Held::open(&world.host, Some(&other))?,
        Held::open(&world.host, None)?,
    ];
    let mut config = with_held(world.intercepting(&agent));
    config["intercept"]["reset_existing"] = json!(true);
    let proxy = world.start(&config)?;
    held.is_cut()?;
    expect(&proxy, &[(name(&agent), "open_before", 1)])?;
    let status = proxy.status()?;
    check_eq!(status["interception"]["leaked"][0]["reset"], json!(1), "{status}");
    let reset = proxy
        .metrics()?
        .sum("agent_fips_proxy_leaked_connections_reset_total", &[]);
    check!((reset - 1.0).abs() < 0.5, "{reset}");
    let mut through = Held::open(&world.host, Some(&agent))?;
    check_eq!(ask(&world, &agent, &[])?.status, 202, "{}", proxy.log());
    reload(&proxy)?;
    expect(&proxy, &[(name(&agent), "open_before", 1)])?;
    check!(
        through.is_open()?,
        "what came through us was cut: {}",
        proxy.log()
    );
    for other in &mut others {
        check!(other.is_open()?, "somebody else's was cut: {}", proxy.log());
    }
    Ok(())
}
