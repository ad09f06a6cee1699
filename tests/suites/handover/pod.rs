//! An Agent's pod on a node.

use std::collections::BTreeSet;

use anyhow::Result;
use harness::check;
use harness::cni::Pod;
use harness::world::World;

/// Everything at the intake came from the pod's own addresses.
pub fn from_the_pod(world: &World, pod: &Pod<'_>) -> Result<()> {
    let sources: BTreeSet<_> = world.intake.seen().iter().map(|seen| seen.peer.ip()).collect();
    check!(
        sources
            .iter()
            .all(|source| *source == pod.network.v4 || *source == pod.network.v6),
        "requests leave from the pod: {sources:?}"
    );
    Ok(())
}
