//! Hosts whose settings are in the way: each works, or `doctor` refuses it beforehand and names the cure, which then works.

use anyhow::{Context, Result};
use harness::agent::ask;
use harness::cni::{Node, Plugin, Pod, Style};
use harness::proxy::Launch;
use harness::world::{VERSIONED, World};
use harness::{check, check_eq, succeed};
use serde_json::{Value, json};

use crate::stage::config;

/// A host, and what its settings mean.
struct Setting {
    name: &'static str,
    plugin: Plugin,
    datapath: &'static str,
    /// `upstream.network`
    network: &'static str,
    /// Run on the node, as root.
    script: &'static str,
    /// Words of the cure; `None`: it works as it is.
    cure: Option<&'static str>,
}

const INPUT_DROP: &str = "for t in iptables ip6tables; do
    $t -P INPUT DROP; $t -A INPUT -i lo -j ACCEPT; $t -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; done
    ip6tables -A INPUT -p ipv6-icmp -j ACCEPT";
/// As RHEL has it: every policy accepts, and the last rule rejects.
const INPUT_REJECT: &str = "for t in iptables ip6tables; do
    $t -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; $t -A INPUT -i lo -j ACCEPT; done
    iptables -A INPUT -p icmp -j ACCEPT; ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
    iptables -A INPUT -j REJECT --reject-with icmp-host-prohibited
    ip6tables -A INPUT -j REJECT --reject-with icmp6-adm-prohibited";
/// The same in a chain of its own, with our mark accepted where no packet for us passes.
const INPUT_CHAIN: &str = "for t in iptables ip6tables; do
    $t -N site; $t -A INPUT -j site; $t -A INPUT -j ACCEPT
    $t -A site -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; $t -A site -i lo -j ACCEPT; done
    iptables -A site -p icmp -j ACCEPT; ip6tables -A site -p ipv6-icmp -j ACCEPT
    for t in iptables ip6tables; do
    $t -A site -j DROP; $t -A OUTPUT -m mark --mark 0xd00000/0xf00000 -j ACCEPT; done";
/// The same again, and what comes from pods is welcome.
const INPUT_WELCOME: &str = "for t in iptables ip6tables; do
    $t -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; $t -A INPUT -i lo -j ACCEPT
    $t -A INPUT -i veth+ -j ACCEPT; done
    ip6tables -A INPUT -p ipv6-icmp -j ACCEPT; iptables -A INPUT -j DROP; ip6tables -A INPUT -j DROP";
const FORWARD_DROP: &str = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP";
const RP_FILTER: &str = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done";
const SRC_VALID_MARK: &str = "for f in /proc/sys/net/ipv4/conf/*/src_valid_mark; do echo 1 > $f; done";
const BRIDGE_CALLS: &str = "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
    echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables";
const NO_FORWARDING: &str =
    "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";
const MARK_RULE: &str = "-m mark --mark 0xd00000/0xf00000 -j ACCEPT";

pub fn firewalls() -> Result<()> {
    let ptp = Plugin::Ptp;
    for (name, datapath, network, script, cure) in [
        ("INPUT DROP", "cgroup", "pod", INPUT_DROP, None),
        ("INPUT DROP", "tc", "pod", INPUT_DROP, Some(MARK_RULE)),
        (
            "INPUT that ends with REJECT",
            "tc",
            "pod",
            INPUT_REJECT,
            Some(MARK_RULE),
        ),
        (
            "a chain that ends with DROP",
            "tc",
            "pod",
            INPUT_CHAIN,
            Some(MARK_RULE),
        ),
        ("INPUT that knows pods", "tc", "pod", INPUT_WELCOME, None),
        ("FORWARD DROP", "cgroup", "host", FORWARD_DROP, None),
        ("FORWARD DROP", "tc", "host", FORWARD_DROP, None),
        (
            "FORWARD DROP",
            "cgroup",
            "pod",
            FORWARD_DROP,
            Some("upstream.network: host"),
        ),
        (
            "FORWARD DROP",
            "tc",
            "pod",
            FORWARD_DROP,
            Some("upstream.network: host"),
        ),
    ] {
        try_out(&Setting {
            name,
            plugin: ptp,
            datapath,
            network,
            script,
            cure,
        })?;
    }
    Ok(())
}

pub fn sysctls() -> Result<()> {
    let (ptp, bridge) = (Plugin::Ptp, Plugin::Bridge);
    for (name, plugin, datapath, network, script, cure) in [
        ("rp_filter 1", ptp, "cgroup", "pod", RP_FILTER, None),
        ("rp_filter 1", ptp, "tc", "pod", RP_FILTER, None),
        ("src_valid_mark 1", ptp, "cgroup", "pod", SRC_VALID_MARK, None),
        ("src_valid_mark 1", bridge, "tc", "pod", SRC_VALID_MARK, None),
        ("bridge-nf-call 1", bridge, "cgroup", "pod", BRIDGE_CALLS, None),
        ("bridge-nf-call 1", bridge, "tc", "pod", BRIDGE_CALLS, None),
        ("ip_forward 0", ptp, "cgroup", "host", NO_FORWARDING, None),
        ("ip_forward 0", ptp, "tc", "host", NO_FORWARDING, None),
        (
            "ip_forward 0",
            ptp,
            "cgroup",
            "pod",
            NO_FORWARDING,
            Some("upstream.network: host"),
        ),
        (
            "ip_forward 0",
            ptp,
            "tc",
            "pod",
            NO_FORWARDING,
            Some("upstream.network: host"),
        ),
    ] {
        try_out(&Setting {
            name,
            plugin,
            datapath,
            network,
            script,
            cure,
        })?;
    }
    Ok(())
}

fn try_out(setting: &Setting) -> Result<()> {
    let title = format!(
        "{} by {} with upstream.network {}",
        setting.name, setting.datapath, setting.network
    );
    one(setting).with_context(|| title)
}

fn one(setting: &Setting) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, setting.plugin, false, Style::Cgroupfs)?;
    let agent = node.pod()?;
    let mut settings = config(&world, &[&agent], setting.datapath);
    settings["upstream"]["network"] = json!(setting.network);
    on(&world, setting.script)?;
    let (good, cures) = doctor(&world, &settings)?;
    check_eq!(
        good,
        setting.cure.is_none(),
        "what doctor says; cures: {cures:#?}"
    );
    let works = attempt(&world, &settings, &agent)?;
    check_eq!(
        works,
        good,
        "what happens, and what doctor said; cures: {cures:#?}"
    );
    let Some(words) = setting.cure else { return Ok(()) };
    let named: Vec<&String> = cures.iter().filter(|cure| cure.contains(words)).collect();
    check!(!named.is_empty(), "no cure says `{words}`: {cures:#?}");
    // The cure is a command up to the first `;`, or a setting.
    if words.starts_with("upstream.network") {
        settings["upstream"]["network"] = json!("host");
    } else {
        for cure in named {
            on(&world, cure.split(';').next().unwrap_or_default())?;
        }
    }
    let (good, cures) = doctor(&world, &settings)?;
    check!(good, "doctor after the cure: {cures:#?}");
    check!(attempt(&world, &settings, &agent)?, "the cure does not work");
    Ok(())
}

/// A bridge that switches the pod's packets to another router: no classifier's mark would mean anything.
pub fn a_bridge_that_is_no_gateway() -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Bridge, false, Style::Cgroupfs)?;
    let agent = node.pod()?;
    let settings = config(&world, &[&agent], "tc");
    let (good, cures) = doctor(&world, &settings)?;
    check!(good, "the bridge is the gateway: {cures:#?}");
    for (route, words) in [
        (
            "-6 route replace default via 2001:db8:93::fe",
            "IPv6 gateway (2001:db8:93::fe,",
        ),
        (
            "route replace default via 10.93.0.254",
            "IPv4 gateway (10.93.0.254,",
        ),
    ] {
        agent.network.host.ip(route)?;
        let report = report(&world, &settings)?;
        check_eq!(report["interception"], json!(false), "{report:#}");
        let found = &report["forecast"]["agents"][0];
        check_eq!(found["datapath"], Value::Null, "{report:#}");
        check!(
            found["why"].as_str().is_some_and(|why| why.contains(words)),
            "no `{words}`: {report:#}"
        );
    }
    Ok(())
}

/// A second interface whose packets no classifier sees: the first is taken, and the other is told.
pub fn an_interface_beside_the_veth() -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Cgroupfs)?;
    let agent = node.pod()?;
    let settings = config(&world, &[&agent], "tc");
    let words = "are NOT seen: the pod's interface net1 is of kind macvlan";
    for there in [false, true] {
        if there {
            let pid = agent.network.host.pid();
            for command in [
                "link add afplow type veth peer name afplow1",
                &format!("link add link afplow name net1 netns {pid} type macvlan mode bridge"),
            ] {
                world.host.ip(command)?;
            }
            agent.network.host.ip("link set net1 up")?;
        }
        let report = report(&world, &settings)?;
        let found = &report["forecast"]["agents"][0];
        check_eq!(found["datapath"], json!("tc"), "{report:#}");
        check_eq!(
            found["why"].as_str().is_some_and(|why| why.contains(words)),
            there,
            "{report:#}"
        );
    }
    let proxy = world.start(&settings)?;
    let status = proxy.status()?;
    let why = &status["interception"]["agents"][0]["why"];
    check!(
        why.as_str().is_some_and(|why| why.contains(words)),
        "no `{words}`: {status:#}"
    );
    Ok(())
}

/// What `doctor` says with this configuration, and the cures of what it refuses.
fn doctor(world: &World, settings: &Value) -> Result<(bool, Vec<String>)> {
    let report = report(world, settings)?;
    let cures = report["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|check| check["ok"] == false && check["required"] == true)
        .filter_map(|check| check["cure"].as_str().map(str::to_owned))
        .collect();
    Ok((report["interception"] == true, cures))
}

/// `doctor --json` with this configuration.
fn report(world: &World, settings: &Value) -> Result<Value> {
    let output = Launch::new(&world.host)
        .command_line(&["doctor", "--json"])
        .config(settings)?
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let good = report["interception"] == true;
    check_eq!(good, output.status.success(), "verdict and exit code: {text}");
    Ok(report)
}

/// True when requests of the pod in both families arrive at the intake in TLS.
fn attempt(world: &World, settings: &Value, pod: &Pod) -> Result<bool> {
    let _proxy = Launch::new(&world.host).config(settings)?.start()?;
    let url = format!("http://{VERSIONED}/api/v2/series");
    for option in ["-4", "-6"] {
        let words = [option, "--max-time", "7", "-d", "hello", &url];
        let answer = ask(&pod.network.host, Some(&pod.cgroup), &words)?;
        if answer.status != 202 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn on(world: &World, script: &str) -> Result<()> {
    succeed(world.host.command("sh").args(["-ec", script])).map(drop)
}
