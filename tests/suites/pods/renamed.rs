//! The interface of an Agent's pod gets another name again and again, while the Agent connects (datapath `tc`). Rules know
//! interfaces by their names: until the proxy has seen the new one, nothing leads the pod's packets to it.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::Load;
use harness::cni::{Node, Plugin, Pod, Style};
use harness::proxy::Launch;
use harness::world::{API_KEY, VERSIONED, World};
use harness::{check, check_eq, eventually, succeed};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::intercepted::request;
use crate::stage::config;

const LIMIT: Duration = Duration::from_secs(30);
/// How often it gets another name.
const TIMES: usize = 10;

/// Not one packet leaves in the clear, and the pod is intercepted again each time.
pub fn while_closed() -> Result<()> {
    let world = World::new()?;
    let (direct, leaked, packets) = under_load(&world, "closed", 0)?;
    check_eq!(direct, 0, "connections in the clear");
    check_eq!(packets, 0, "packets in the clear");
    check!(leaked.is_empty(), "{leaked:?}");
    Ok(())
}

/// Each connection that goes direct is counted, and no other.
pub fn while_open() -> Result<()> {
    let world = World::new()?;
    let (direct, leaked, packets) = under_load(&world, "open", 3)?;
    check!(
        direct >= 3 && packets > direct,
        "{direct} connections and {packets} packets in the clear: the counters see nothing"
    );
    check_eq!(leaked.len(), 1, "{leaked:?}");
    check_eq!(leaked[0]["reason"], json!("not_led"), "{leaked:?}");
    check_eq!(leaked[0]["connections"], json!(direct), "{leaked:?}");
    Ok(())
}

/// Connections in the clear at the intake, leaks as the proxy tells them, and packets in the clear, after the interface got
/// another name [`TIMES`] times. The first `slow` times the master sees the new name only after a connection went direct: how fast
/// it is, and with it how many go direct, is for the machine to say.
fn under_load(world: &World, on_failure: &str, slow: usize) -> Result<(usize, Vec<Value>, usize)> {
    let node = Node::new(world, Plugin::Ptp, false, Style::Systemd)?;
    let pod = node.pod()?;
    let mut settings = config(world, &[&pod], "tc");
    settings["intercept"]["on_failure"] = json!(on_failure);
    let proxy = Launch::new(&world.host).config(&settings)?.start()?;
    request(world, &proxy, &pod, "-4", "tc")?;
    watch(world, &pod)?;
    let url = format!("http://{VERSIONED}/api/v2/series");
    let words = [
        "--url",
        &url,
        "--ip",
        "4",
        "--clients",
        "4",
        "--interval-ms",
        "5",
        "--body",
        "100",
        "--api-key",
        API_KEY,
    ];
    let load = Load::start(&pod.network.host, Some(&pod.cgroup), &words)?;
    let mut names = [pod.network.veth.as_str(), "renamed0"];
    for time in 1..=TIMES {
        let context = || format!("name {time} of {TIMES}\n{}", proxy.log());
        let direct = world.plain.seen().len();
        if time <= slow {
            proxy.signal(Signal::SIGSTOP)?;
        }
        pod.network.rename(names[0], names[1])?;
        names.swap(0, 1);
        if time <= slow {
            eventually("a direct connection", LIMIT, || {
                Ok((world.plain.seen().len() > direct).then_some(()))
            })
            .with_context(context)?;
            proxy.signal(Signal::SIGCONT)?;
        }
        let before = world.intake.count();
        eventually("requests after another name", LIMIT, || {
            Ok((world.intake.count() > before + 10).then_some(()))
        })
        .with_context(context)?;
    }
    let report = load.finish()?;
    check!(
        report.status(202) > 10 * TIMES as u64,
        "too little load to prove anything: {report:?}"
    );
    // Whoever was let go may still talk.
    eventually("the last connections", LIMIT, || {
        let seen = world.plain.seen().len();
        let status = proxy.status()?;
        let leaked = status["interception"]["leaked"].as_array().cloned();
        let leaked = leaked.context("no figures of leaks")?;
        let counted: u64 = leaked
            .iter()
            .filter_map(|leak| leak["connections"].as_u64())
            .sum();
        check_eq!(counted, seen as u64, "counted, and seen in the clear");
        Ok(Some((seen, leaked, packets(world)?)))
    })
    .with_context(|| proxy.log())
}

/// Counts what reaches the intake's side of the pod in the clear, or quoted by an error message.
fn watch(world: &World, pod: &Pod<'_>) -> Result<()> {
    let source = pod.network.v4;
    for what in [
        format!("-s {source} -p tcp --dport 80"),
        format!("-d {source} -p icmp"),
    ] {
        let rule = format!("iptables -t mangle -A PREROUTING {what}");
        succeed(world.net.command("sh").args(["-ec", &rule]))?;
    }
    Ok(())
}

/// How many came.
fn packets(world: &World) -> Result<usize> {
    let mut list = world.net.command("iptables");
    let shown = succeed(list.args(["-t", "mangle", "-nvxL", "PREROUTING"]))?;
    let counts: Vec<usize> = shown
        .lines()
        .skip(2)
        .map(|line| {
            let first = line.split_whitespace().next().context("no number")?;
            first.parse().with_context(|| line.to_owned())
        })
        .collect::<Result<_>>()?;
    check_eq!(counts.len(), 2, "{shown}");
    Ok(counts.iter().sum())
}
