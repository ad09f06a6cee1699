//! W7 and W8: ours through real interception.
//!
//! W7 has ours alone, on two hosts joined by a veth with the intake outside: what interception adds to a request. Each variant is
//! compared with the explicit port **at the same place**: a pod's connections to the intake cross one more veth and a router, which is no
//! cost of interception. So the reference in a pod is a proxy that runs in the pod.
//! W8 has an Agent's HTTPS with HTTP/2: ours takes the connection and ends it under its local authority; the peers have a TLS front.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::NAME;
use super::figures::Round;
use super::peers::{Front, Peer, Running, settings};
use super::run::{Part, Plan, rounds};
use super::stage::{BACKEND, Place, Stage, Target, here, ports};
use crate::cgroup::Cgroup;
use crate::cni::{Node, Plugin, Style};
use crate::local_ca::LocalAuthority;
use crate::proxy::{Launch, Proxy};

/// The variants of W7 with the one that each is compared with.
pub const VARIANTS: [(&str, &str); 5] = [
    ("explicit", "explicit"),
    ("cgroup", "explicit"),
    ("explicit in a pod", "explicit in a pod"),
    ("cgroup in a pod", "explicit in a pod"),
    ("tc in a pod", "explicit in a pod"),
];
/// The two loads of W7, named in the results: kept connections as in W1, new ones as in W4.
pub const LOADS: [(&str, &str); 2] = [("W7 kept", "W1"), ("W7 new", "W4")];

/// The goals are a few per cent, where others are tens: three rounds of half the length for each, which drift less apart.
const SHORT: usize = 3;

/// W7.
pub fn datapaths(plan: &Plan) -> Result<Vec<Round>> {
    if !plan.peers.contains(&Peer::Ours) {
        return Ok(Vec::new());
    }
    let stages = VARIANTS
        .iter()
        .map(|_| Stage::two_hosts())
        .collect::<Result<Vec<_>>>()?;
    let [explicit, cgroup, in_pod, cgroup_pod, tc_pod] = stages.as_slice() else {
        anyhow::bail!("one stage for each variant");
    };
    let agent = Cgroup::new("agent")?;
    let nodes = (node(in_pod)?, node(cgroup_pod)?, node(tc_pod)?);
    let pods = (nodes.0.pod()?, nodes.1.pod()?, nodes.2.pod()?);
    for pod in [&pods.0, &pods.1, &pods.2] {
        ports(&pod.network.host)?;
    }
    let start = |stage: &Stage, more: Value| settings(stage, &more);
    let taken = |stage: &Stage, datapath: &str, cgroup: &str| {
        let agents = json!({"cgroups": [cgroup], "pods": {"api": "off"}});
        start(
            stage,
            json!({"intercept": {"enabled": true, "datapath": datapath, "agents": agents}}),
        )
    };
    let proxies = [
        Launch::new(&explicit.host)
            .config(&start(explicit, json!({})))?
            .start(),
        Launch::new(&cgroup.host)
            .config(&taken(cgroup, "cgroup", agent.inside()))?
            .start(),
        Launch::new(&pods.0.network.host)
            .config(&start(in_pod, json!({})))?
            .start(),
        Launch::new(&cgroup_pod.host)
            .config(&taken(cgroup_pod, "cgroup", pods.1.above.inside()))?
            .start(),
        Launch::new(&tc_pod.host)
            .config(&taken(tc_pod, "tc", pods.2.above.inside()))?
            .start(),
    ];
    let proxies = proxies
        .into_iter()
        .zip(VARIANTS)
        .map(|(proxy, (name, _))| proxy.with_context(|| format!("cannot start the variant {name}")))
        .collect::<Result<Vec<_>>>()?;
    let targets = [
        port(Place::Host),
        intercepted(Place::Cgroup(&agent)),
        port(Place::Pod(&pods.0)),
        intercepted(Place::Pod(&pods.1)),
        intercepted(Place::Pod(&pods.2)),
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
        load.window /= 2;
        let found = rounds(plan.rounds * SHORT, name, &parts, &load)?;
        all.extend(found);
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
fn port(place: Place<'_>) -> Target<'_> {
    Target {
        connect: here(9804),
        host: here(9804).to_string(),
        roots: None,
        place,
    }
}

/// The intake itself, in the clear: what an Agent with `http://` URLs does.
fn intercepted(place: Place<'_>) -> Target<'_> {
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
    rounds(plan.rounds, "W8", &parts, &load)
}
