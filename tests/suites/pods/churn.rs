//! Many pods come and go: nothing of them stays behind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::cni::{Node, Plugin, Pod, Style};
use harness::dice::Dice;
use harness::proxy::Proxy;
use harness::world::World;
use harness::{check, check_eq, eventually};
use serde_json::{Value, json};

use crate::intercepted::request;

/// How many pods come in all, and how many live at once at most.
const PODS: usize = 200;
const AT_ONCE: usize = 24;

pub fn two_hundred_by_cgroup() -> Result<()> {
    churn("cgroup")
}

pub fn two_hundred_by_tc() -> Result<()> {
    churn("tc")
}

/// Random order, some in another's network, some dead before they are complete. Afterwards every count is as before.
fn churn(datapath: &str) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Cgroupfs)?;
    let pods = format!("{}/*/pod*", node.cgroup().inside());
    let proxy = world.start(&world.intercepting_pods(&[&pods], datapath))?;
    // One pod first: what is made once and kept (a thread, a spare socket's path) is there before the count.
    {
        let pod = node.pod()?;
        taken(&proxy, 1)?;
        request(&world, &proxy, &pod, "-4", datapath)?;
    }
    let before = settled(&proxy, "before")?;
    let rules_before = rules(&world)?;
    let mut dice = Dice::new()?;
    eprintln!("{datapath}: seed {}", dice.seed);
    let mut live: Vec<Pod> = Vec::new();
    let (mut made, mut most) = (0, 0);
    let start = Instant::now();
    while made < PODS {
        match dice.roll(8) {
            0..=3 if live.len() < AT_ONCE => {
                live.push(node.pod()?);
                made += 1;
            }
            4 if !live.is_empty() && live.len() < AT_ONCE => {
                let beside = dice.index(live.len());
                live.push(node.pod_beside(&live[beside])?);
                made += 1;
            }
            // Dead before anybody could look: its cgroup and namespace are gone at once.
            5 => {
                drop(node.pod()?);
                made += 1;
            }
            _ if !live.is_empty() => {
                let index = dice.index(live.len());
                let pod = live.swap_remove(index);
                drop(pod);
            }
            _ => {}
        }
        most = most.max(live.len());
        if made % 50 == 0
            && let Some(pod) = live.first()
        {
            taken(&proxy, agents(&live))?;
            request(&world, &proxy, pod, "-6", datapath)?;
        }
        if start.elapsed() > Duration::from_secs(400) {
            bail!("{made} pods took {:?}", start.elapsed());
        }
    }
    check!(most > AT_ONCE / 2, "only {most} lived at once");
    taken(&proxy, agents(&live))?;
    live.clear();
    let after = settled(&proxy, "after")?;
    check_eq!(after, before, "{datapath}: what is held after {made} pods");
    check_eq!(rules(&world)?, rules_before, "rules and routes");
    check!(
        proxy.status()?["interception"]["interfaces"]
            .as_array()
            .is_none_or(Vec::is_empty),
        "interfaces are left"
    );
    Ok(())
}

/// The pods' cgroups that are there, those of dead pods among them whose network another one shares.
fn agents(live: &[Pod]) -> usize {
    live.iter()
        .flat_map(|pod| [pod.above.inside(), pod.network.above.inside()])
        .collect::<BTreeSet<_>>()
        .len()
}

/// Waits until this many Agents are found, all of them taken and at home somewhere.
fn taken(proxy: &Proxy, count: usize) -> Result<()> {
    let mut last = Value::Null;
    eventually("every pod is taken", Duration::from_secs(30), || {
        last = proxy.status()?["interception"]["agents"].clone();
        let agents = last.as_array().cloned().unwrap_or_default();
        let all = agents
            .iter()
            .all(|agent| agent["datapath"] != Value::Null && agent["namespaces"] != json!([]));
        Ok((agents.len() == count && all).then_some(()))
    })
    .with_context(|| format!("{count} wanted: {last:#}"))
}

/// Everything countable, once no Agent is left: the master's own report, and both processes' descriptors and threads as
/// the kernel shows them.
fn settled(proxy: &Proxy, when: &str) -> Result<Value> {
    eventually(
        &format!("no Agent is left {when}"),
        Duration::from_secs(30),
        || {
            let status = proxy.status()?;
            let held = &status["interception"]["resources"];
            Ok((status["interception"]["agents"] == json!([]) && held["networks"] == json!(0)).then_some(()))
        },
    )?;
    // Connections to the intake that are kept for a next request are no leak: they are as many as before.
    let mut counted = Value::Null;
    let mut same = 0;
    eventually(
        &format!("counts hold still {when}"),
        Duration::from_secs(60),
        || {
            let now = count(proxy)?;
            same = if now == counted { same + 1 } else { 0 };
            counted = now;
            std::thread::sleep(Duration::from_millis(300));
            Ok((same >= 5).then_some(()))
        },
    )?;
    Ok(counted)
}

fn count(proxy: &Proxy) -> Result<Value> {
    let status = proxy.status()?;
    let mut held = status["interception"]["resources"].clone();
    let worker = proxy.worker()?;
    let entries = |path: String| std::fs::read_dir(path).map_or(0, Iterator::count);
    held["worker_descriptors"] = json!(entries(format!("/proc/{worker}/fd")));
    held["worker_threads"] = json!(entries(format!("/proc/{worker}/task")));
    held["listeners"] = json!(status["listeners"].as_array().map_or(0, Vec::len));
    // The admin connection that asks is open while it asks.
    held["connections"] = status["connections"].clone();
    Ok(held)
}

/// Rules and routes of the node, without what the pods' own plug-in makes.
fn rules(world: &World) -> Result<String> {
    let mut all = String::new();
    for words in [
        "rule",
        "-6 rule",
        "route show table 3536",
        "-6 route show table 3536",
    ] {
        let output = harness::capture(world.host.command("ip").args(words.split_whitespace()))?;
        all.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    Ok(all)
}
