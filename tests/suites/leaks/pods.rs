//! Agents in pods, by both datapaths.

use anyhow::{Context, Result};
use harness::agent::{self, Curl};
use harness::cni::{Node, Plugin, Pod, Style};
use harness::proxy::Proxy;
use harness::world::{VERSIONED, World};
use harness::{check, check_eq, eventually};
use serde_json::{Value, json};

use crate::stage::{Held, LIMIT, alarmed, expect, keep, name, reload, with_held};

pub fn config(world: &World, agent: &Pod<'_>, datapath: &str) -> Value {
    let mut config = world.intercepting_pods(&[agent.above.inside()], datapath);
    config["intercept"]["on_failure"] = json!("open");
    config
}

fn ask(pod: &Pod<'_>) -> Result<Curl> {
    let url = format!("http://{VERSIONED}/ask");
    agent::ask(&pod.network.host, Some(&pod.cgroup), &["-4", &url])
}

/// Waits until the pod is taken.
fn taken(proxy: &Proxy<'_>, pod: &Pod<'_>) -> Result<()> {
    eventually("an intercepted request", LIMIT, || {
        Ok((ask(pod)?.status == 202).then_some(()))
    })
    .with_context(|| proxy.log())
}

pub fn pods_by_cgroup() -> Result<()> {
    over_a_kill("cgroup")
}

pub fn pods_by_tc() -> Result<()> {
    over_a_kill("tc")
}

/// Killed, in `open` mode: what leaves meanwhile is counted, the same by both datapaths.
fn over_a_kill(datapath: &str) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Systemd)?;
    let (agent, other) = (node.pod()?, node.pod()?);
    let config = config(&world, &agent, datapath);
    let mut proxy = world.start(&config)?;
    taken(&proxy, &agent)?;
    proxy.kill()?;
    for _ in 0..6 {
        check_eq!(ask(&agent)?.body, "plain", "without a master");
        check_eq!(ask(&other)?.body, "plain", "somebody else's");
    }
    let proxy = world.start(&config)?;
    taken(&proxy, &agent)?;
    expect(&proxy, &[(name(&agent.above), "no_listener", 6)])?;
    alarmed(&proxy, &name(&agent.above), "no_listener", 6)
}

pub fn there_before_by_tc() -> Result<()> {
    there_before("tc")
}

pub fn there_before_by_cgroup() -> Result<()> {
    there_before("cgroup")
}

/// A pod's connection from before is reset; another pod's is not, nor what came through us since.
fn there_before(datapath: &str) -> Result<()> {
    let world = World::new()?;
    keep(&world)?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Systemd)?;
    let (agent, other) = (node.pod()?, node.pod()?);
    let mut before = Held::open(&agent.network.host, Some(&agent.cgroup))?;
    let mut others = Held::open(&other.network.host, Some(&other.cgroup))?;
    let mut config = with_held(config(&world, &agent, datapath));
    config["intercept"]["reset_existing"] = json!(true);
    let proxy = world.start(&config)?;
    before.is_cut()?;
    expect(&proxy, &[(name(&agent.above), "open_before", 1)])?;
    taken(&proxy, &agent)?;
    let mut through = Held::open(&agent.network.host, Some(&agent.cgroup))?;
    reload(&proxy)?;
    expect(&proxy, &[(name(&agent.above), "open_before", 1)])?;
    check!(
        through.is_open()?,
        "what came through us was cut: {}",
        proxy.log()
    );
    check!(others.is_open()?, "another pod's was cut: {}", proxy.log());
    Ok(())
}
