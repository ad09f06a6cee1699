//! A node with an Agent's pod and a bystander's, and the proxy on it.

use anyhow::Result;
use harness::cni::{Node, Pod};
use harness::world::World;
use serde_json::Value;

/// What the proxy is told: this pod's cgroup is an Agent's, taken by this datapath.
pub fn config(world: &World, agents: &[&Pod], datapath: &str) -> Value {
    let cgroups: Vec<&str> = agents.iter().map(|pod| pod.above.inside()).collect();
    world.intercepting_pods(&cgroups, datapath)
}

/// Two pods: an Agent's and somebody else's.
pub fn pair<'a>(node: &'a Node<'a>) -> Result<(Pod<'a>, Pod<'a>)> {
    Ok((node.pod()?, node.pod()?))
}
