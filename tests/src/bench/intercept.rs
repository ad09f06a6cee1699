//! W7 and W8: ours through real interception.
//!
//! W7 has ours alone, on two hosts joined by a veth with the intake outside: what interception adds to a request. Each variant is
//! compared with the explicit port **on the same way**: crossing a pod's veth is no cost of interception. The datapath `cgroup` has its
//! listener in the pod, so its reference is a proxy that runs in the pod. The datapath `tc` brings a pod's connection to the node, so
//! its reference is the explicit port of the node, used from a pod; and since the node's connections to the intake begin on the node,
//! it is compared with `upstream.network: host`. What the default of that setting adds, the way through the pod's network, is shown.
//! W8 has an Agent's HTTPS with HTTP/2: ours takes the connection and ends it under its local authority; the peers have a TLS front.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::NAME;
use super::figures::Round;
use super::peers::{Front, Peer, Running, settings};
use super::run::{Part, Plan, alternating};
use super::stage::{BACKEND, Place, Stage, Target, here, ports};
use crate::cgroup::Cgroup;
use crate::cni::{Node, Plugin, Style};
use crate::local_ca::LocalAuthority;
use crate::proxy::{Launch, Proxy};

/// The variants of W7 with the one that each is compared with.
pub const VARIANTS: [(&str, &str); 7] = [
    ("explicit", "explicit"),
    ("cgroup", "explicit"),
    ("explicit in a pod", "explicit in a pod"),
    ("cgroup in a pod", "explicit in a pod"),
    ("explicit from a pod", "explicit from a pod"),
    ("tc from a pod, upstream.network host", "explicit from a pod"),
    ("tc from a pod", "explicit from a pod"),
];
/// The two loads of W7, named in the results: kept connections as in W1, new ones as in W4.
pub const LOADS: [(&str, &str); 2] = [("W7 kept", "W1"), ("W7 new", "W4")];

/// The groups that are compared, by the places of their variants in [`VARIANTS`].
const GROUPS: [std::ops::Range<usize>; 3] = [0..2, 2..4, 4..7];

/// Blocks for each round that was asked for.
pub const BLOCKS: usize = 8;
/// Length of a window, in a block of the others: 5 s become 150 ms.
pub const SHORT: f64 = 0.03;
/// The proxies have been at work before.
const WARMUP: Duration = Duration::from_millis(200);

/// The node's address, where its explicit port is for pods.
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));

/// W7.
pub fn datapaths(plan: &Plan) -> Result<Vec<Round>> {
    if !plan.peers.contains(&Peer::Ours) {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for round in 0..plan.rounds {
        all.extend(variants(plan, round)?);
    }
    Ok(all)
}

/// All variants, started anew: where the parts of a process lie in memory alone makes some per cent, for as long as it lives.
fn variants(plan: &Plan, round: usize) -> Result<Vec<Round>> {
    let stages = VARIANTS
        .iter()
        .map(|_| Stage::two_hosts())
        .collect::<Result<Vec<_>>>()?;
    let [explicit, cgroup, with_pod @ ..] = stages.as_slice() else {
        anyhow::bail!("one stage for each variant");
    };
    // Each client is in a cgroup of its own, as an Agent is: one more level is more work for the kernel at every wake-up.
    let (agent, other) = (Cgroup::new("agent")?, Cgroup::new("explicit")?);
    let nodes = with_pod.iter().map(node).collect::<Result<Vec<_>>>()?;
    let pods = nodes.iter().map(Node::pod).collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        ports(&pod.network.host)?;
    }
    let ([in_pod, cgroup_pod, from_pod, tc_host, tc_pod], [pod0, pod1, pod2, pod3, pod4]) =
        (with_pod, pods.as_slice())
    else {
        anyhow::bail!("one pod for each variant that has one");
    };
    let start = |stage: &Stage, more: Value| settings(stage, &more);
    let taken = |stage: &Stage, datapath: &str, cgroup: &str, network: &str| {
        let agents = json!({"cgroups": [cgroup], "pods": {"api": "off"}});
        let mut settings = start(
            stage,
            json!({"intercept": {"enabled": true, "datapath": datapath, "agents": agents}}),
        );
        settings["upstream"]["network"] = network.into();
        settings
    };
    let on_node = start(from_pod, json!({"explicit": {"local_address": NODE.to_string()}}));
    let proxies = [
        Launch::new(&explicit.host)
            .config(&start(explicit, json!({})))?
            .start(),
        Launch::new(&cgroup.host)
            .config(&taken(cgroup, "cgroup", agent.inside(), "pod"))?
            .start(),
        Launch::new(&pod0.network.host)
            .config(&start(in_pod, json!({})))?
            .start(),
        Launch::new(&cgroup_pod.host)
            .config(&taken(cgroup_pod, "cgroup", pod1.above.inside(), "pod"))?
            .start(),
        Launch::new(&from_pod.host).config(&on_node)?.start(),
        Launch::new(&tc_host.host)
            .config(&taken(tc_host, "tc", pod3.above.inside(), "host"))?
            .start(),
        Launch::new(&tc_pod.host)
            .config(&taken(tc_pod, "tc", pod4.above.inside(), "pod"))?
            .start(),
    ];
    let proxies = proxies
        .into_iter()
        .zip(VARIANTS)
        .map(|(proxy, (name, _))| proxy.with_context(|| format!("cannot start the variant {name}")))
        .collect::<Result<Vec<_>>>()?;
    let targets = [
        port(here(9804), Place::Cgroup(&other)),
        intercepted(Place::Cgroup(&agent)),
        port(here(9804), Place::Pod(pod0)),
        intercepted(Place::Pod(pod1)),
        port((NODE, 9804).into(), Place::Pod(pod2)),
        intercepted(Place::Pod(pod3)),
        intercepted(Place::Pod(pod4)),
    ];
    let parts: Vec<Part> = proxies
        .iter()
        .zip(targets)
        .zip(&stages)
        .zip(VARIANTS)
        .map(|(((proxy, target), stage), (name, _))| part(name, proxy, target, stage))
        .collect();
    let mut all = Vec::new();
    for (name, like) in LOADS {
        let mut load = plan.load(like).context("a workload without a load")?;
        load.window = plan.block.mul_f64(SHORT);
        load.warmup = WARMUP;
        for group in GROUPS {
            let blocks = round * BLOCKS..(round + 1) * BLOCKS;
            all.extend(alternating(blocks, name, &parts[group], &load)?);
        }
    }
    told(&proxies, &mut all)?;
    Ok(all)
}

/// What the proxies say about how the connections came: a variant that was not intercepted proves nothing.
fn told(proxies: &[Proxy], all: &mut [Round]) -> Result<()> {
    for (proxy, (name, reference)) in proxies
        .iter()
        .zip(VARIANTS)
        .filter(|(_, (name, like))| name != like)
    {
        let status = proxy.status()?;
        let found = status["interception"]["agents"][0]["datapath"].clone();
        if !name.starts_with(found.as_str().unwrap_or("nothing")) {
            for round in all.iter_mut().filter(|round| round.peer == name) {
                let what = format!("not taken as {name} but by {found}, so not to compare with {reference}");
                round.errors.insert(what, 1);
            }
        }
    }
    Ok(())
}

fn node(stage: &Stage) -> Result<Node<'_>> {
    let net = stage.net.as_ref().context("a stage without an outside")?;
    Node::on(&stage.host, net, Plugin::Ptp, false, Style::Cgroupfs)
}

fn part<'a>(name: &str, proxy: &Proxy, target: Target<'a>, stage: &'a Stage) -> Part<'a> {
    Part {
        name: name.to_owned(),
        processes: u32::try_from(proxy.pid().as_raw()).into_iter().collect(),
        target,
        stage,
    }
}

/// The explicit port.
fn port(connect: SocketAddr, place: Place<'_>) -> Target<'_> {
    Target {
        connect,
        host: connect.to_string(),
        roots: None,
        place,
    }
}

/// The intake itself, in the clear: what an Agent with `http://` URLs does.
pub fn intercepted(place: Place<'_>) -> Target<'_> {
    Target {
        connect: (BACKEND.ip(), 80).into(),
        host: NAME.to_owned(),
        roots: None,
        place,
    }
}

/// W8.
pub fn https(plan: &Plan) -> Result<Vec<Round>> {
    let stage = Stage::two_hosts()?;
    let agent = Cgroup::new("agent")?;
    let authority = LocalAuthority::new()?;
    let more = json!({
        "intercept": {
            "enabled": true,
            "datapath": "cgroup",
            "agents": {"cgroups": [agent.inside()], "pods": {"api": "off"}},
            "https": "terminate",
        },
        "ca": {"dir": authority.dir()},
    });
    let mut running = Vec::new();
    for peer in plan.peers.iter().filter(|peer| peer.has_https_front()) {
        let mut one = Running::start_with(&stage, *peer, Front::Https, &more)?;
        if *peer == Peer::Ours {
            one.target = Target {
                connect: BACKEND,
                host: NAME.to_owned(),
                roots: Some(authority.certificate()?),
                place: Place::Cgroup(&agent),
            };
        }
        running.push(one);
    }
    let parts: Vec<Part> = running.iter().map(|peer| Part::of(peer, &stage)).collect();
    let load = plan.load("W8").context("a workload without a load")?;
    alternating(0..plan.rounds, "W8", &parts, &load)
}
