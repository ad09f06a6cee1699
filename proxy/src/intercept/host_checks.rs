//! Settings of the host that decide whether an intercepted packet arrives and an upstream connection leaves: firewall, rules,
//! sysctls. Each that is in the way comes with its cure. Nothing is changed.

use std::collections::BTreeSet;
use std::fs;

use super::firewall;
use super::preflight::Check;
use super::tc::{self, Netlink};
use crate::config;

/// Every check that matters here. `tc`: the datapath is used, and `devices` are what the IP layer sees its packets come in by,
/// as far as that is known; `pods_leave`: pods whose connections this host forwards make
/// upstream connections of their own.
pub(super) fn checks(
    config: &config::Intercept,
    tc: bool,
    devices: &BTreeSet<String>,
    pods_leave: bool,
) -> Vec<Check> {
    let mut checks = Vec::new();
    if pods_leave {
        checks.extend(way_out());
    }
    if tc {
        checks.extend(marked_packets(config, devices));
    }
    checks
}

/// Whether what a pod sends leaves this host: `upstream.network: pod` relies on it.
fn way_out() -> Vec<Check> {
    const CURE: &str = "set upstream.network: host, or let this host forward what its pods send";
    let forwards = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    let mut checks = vec![Check::new(
        "ip_forward",
        forwards.trim() != "0",
        match forwards.trim() {
            "0" => "0: a pod's own connections to the intake do not leave this host".to_owned(),
            value => format!("{value}: what pods send is forwarded"),
        },
        CURE,
    )];
    if let Ok(closed) = firewall::closed_to_forwarding() {
        checks.extend(closed.into_iter().map(|chain| {
            Check::new(
                "firewall forward",
                false,
                format!(
                    "{chain} drops everything: a pod's own connections to the intake do not leave this host"
                ),
                CURE,
            )
        }));
    }
    checks
}

/// What the host's settings mean for packets that carry our mark.
fn marked_packets(config: &config::Intercept, devices: &BTreeSet<String>) -> Vec<Check> {
    let mut checks = Vec::new();
    match firewall::obstacles(config.mark, devices) {
        Ok(obstacles) if obstacles.is_empty() => {
            checks.push(Check::new(
                "firewall input",
                true,
                "no input chain stops what no rule accepts",
                "",
            ));
        }
        Ok(obstacles) => checks.extend(obstacles.into_iter().map(|obstacle| {
            Check::new(
                "firewall input",
                false,
                format!(
                    "{} drops or rejects what no rule accepts: packets with the mark {} would not reach the proxy",
                    obstacle.name, config.mark
                ),
                &format!("{}; or set intercept.datapath: cgroup", obstacle.cure),
            )
        })),
        Err(error) => checks.push(
            Check::new(
                "firewall input",
                false,
                format!("cannot be read: {error}"),
                "see that no input chain stops packets with our mark",
            )
            .optional(),
        ),
    }
    checks.push(rules(config));
    for (name, path, words) in [
        (
            "src_valid_mark",
            "/proc/sys/net/ipv4/conf/all/src_valid_mark",
            "our rule names the interface, so that it does no harm",
        ),
        (
            "bridge-nf-call-iptables",
            "/proc/sys/net/bridge/bridge-nf-call-iptables",
            "the mark survives it",
        ),
        (
            "rp_filter",
            "/proc/sys/net/ipv4/conf/all/rp_filter",
            "marked packets are delivered all the same",
        ),
    ] {
        if let Ok(value) = fs::read_to_string(path) {
            checks.push(Check::new(name, true, format!("{}: {words}", value.trim()), ""));
        }
    }
    checks
}

/// Rules that would be asked before ours.
fn rules(config: &config::Intercept) -> Check {
    let name = "ip rules";
    let found = Netlink::open().and_then(|mut netlink| tc::routing::in_front(&mut netlink, config.mark));
    match found {
        Ok(rules) if rules.is_empty() => Check::new(
            name,
            true,
            format!("none stands before ours (preference {})", tc::RULE_PREFERENCE),
            "",
        ),
        Ok(rules) => Check::new(
            name,
            false,
            format!("{} would be asked before ours", rules.join("; ")),
            "give that rule a preference above ours, or set intercept.datapath: cgroup",
        ),
        Err(error) => Check::new(name, false, error.to_string(), "run as root").optional(),
    }
}
