//! Metrics of interception: Agents, interfaces, what the programs counted, what is held.

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Encoded, encode_counter, encode_gauge, encode_lone_gauge};
use crate::intercept::{InterceptStatus, Taken, tc};

/// Writes them all.
pub(super) fn encode(kernel: &InterceptStatus, e: &mut DescriptorEncoder) -> Encoded {
    let mut family = e.encode_descriptor(
        "intercepted_agents",
        "Agents by how their connections are taken",
        None,
        MetricType::Gauge,
    )?;
    for (label, taken) in [
        (Taken::Cgroup.name(), Some(Taken::Cgroup)),
        (Taken::Tc.name(), Some(Taken::Tc)),
        ("none", None),
    ] {
        let n = kernel
            .agents
            .iter()
            .filter(|agent| agent.datapath == taken)
            .count();
        encode_gauge(&mut family, &[("datapath", label)], n as u64)?;
    }
    let mut family = e.encode_descriptor(
        "interface_up",
        "1 when our classifier stands on the interface and packets reach it",
        None,
        MetricType::Gauge,
    )?;
    for interface in &kernel.interfaces {
        let state = match interface.state {
            tc::InterfaceState::Active => "active",
            tc::InterfaceState::Shadowed => "shadowed",
            tc::InterfaceState::Failed => "failed",
        };
        let labels = [("interface", interface.name.as_str()), ("state", state)];
        encode_gauge(&mut family, &labels, u64::from(state == "active"))?;
    }
    encode_lone_gauge(
        e,
        "shadowed_interfaces",
        "Interfaces on which another classifier keeps packets from ours",
        kernel
            .interfaces
            .iter()
            .filter(|interface| interface.state == tc::InterfaceState::Shadowed)
            .count() as u64,
    )?;
    let mut family = e.encode_descriptor(
        "classifier_reassertions",
        "How often our classifier was put back, or put first again",
        None,
        MetricType::Counter,
    )?;
    for interface in &kernel.interfaces {
        encode_counter(
            &mut family,
            &[("interface", interface.name.as_str())],
            interface.reassertions,
        )?;
    }
    encode_lone_gauge(
        e,
        "destinations",
        "Networks that the kernel selects",
        kernel.destinations as u64,
    )?;
    let mut family = e.encode_descriptor(
        "leaked_connections",
        "Intake connections of Agents that did not pass through the proxy",
        None,
        MetricType::Counter,
    )?;
    for leak in &kernel.leaked {
        let labels = [("agent", leak.agent.as_str()), ("reason", leak.reason.as_str())];
        encode_counter(&mut family, &labels, leak.connections)?;
    }
    let mut family = e.encode_descriptor(
        "leaked_connections_reset",
        "Those that were reset, so that they come back through the proxy",
        None,
        MetricType::Counter,
    )?;
    for leak in kernel.leaked.iter().filter(|leak| leak.reset > 0) {
        let labels = [("agent", leak.agent.as_str()), ("reason", leak.reason.as_str())];
        encode_counter(&mut family, &labels, leak.reset)?;
    }
    let held = &kernel.resources;
    let mut family = e.encode_descriptor(
        "held",
        "What interception holds open or keeps in the kernel's tables",
        None,
        MetricType::Gauge,
    )?;
    for (what, n) in [
        ("pods", held.pods),
        ("open_namespaces", held.open_namespaces),
        ("networks", held.networks),
        ("namespace_entries", held.namespace_entries),
        ("interface_entries", held.interface_entries),
        ("hooked_cgroups", held.hooked_cgroups),
        ("flows", held.flows),
        ("descriptors", held.descriptors),
        ("threads", held.threads),
    ] {
        encode_gauge(&mut family, &[("what", what)], n as u64)?;
    }
    let mut family = e.encode_descriptor(
        "kernel_events",
        "What the programs decided, from their per-CPU counters",
        None,
        MetricType::Counter,
    )?;
    for (event, n) in &kernel.counters {
        encode_counter(&mut family, &[("event", event.as_str())], *n)?;
    }
    Ok(())
}
