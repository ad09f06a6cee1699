//! Firewalls in the way of the `tc` datapath: an input chain that drops or rejects what no rule accepts, by its policy or
//! by a last rule without conditions, lets no intercepted packet reach the listener, unless a rule accepts our mark.
//!
//! nf_tables is read by netlink, so that it works in a container without a firewall's tools; `iptables-nft` and firewalld
//! keep their rules there too. The older `iptables-legacy` has only its own tool to ask. Nothing is changed.

#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;
mod legacy;
mod nftables;
mod rules;

use std::collections::BTreeSet;

use super::error::InterceptError;
use crate::config::Mark;
use rules::{Packet, Table};

/// `NF_INET_LOCAL_IN`, `NF_INET_FORWARD` (linux/netfilter.h)
const LOCAL_IN: u32 = 1;
const FORWARD: u32 = 2;

/// An input chain that stops intercepted packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// As people know it: `nftables ip filter INPUT`.
    pub(super) name: String,
    /// What to run so that intercepted packets pass.
    pub(super) cure: String,
}

/// Input chains that would stop packets with our mark that come in by one of these interfaces; without an interface, by
/// any. A rule that asks for something else than mark and interface is taken not to apply: what it does to an Agent's
/// packets cannot be told by looking.
///
/// # Errors
/// nf_tables could not be asked. A kernel without it has no such chains, which is no error.
pub(super) fn obstacles(mark: Mark, devices: &BTreeSet<String>) -> Result<Vec<Obstacle>, InterceptError> {
    let mut tables = nftables::tables()?;
    tables.extend(legacy::tables());
    Ok(tables
        .iter()
        .flat_map(|table| within(table, mark, devices))
        .collect())
}

fn within(table: &Table, mark: Mark, devices: &BTreeSet<String>) -> Vec<Obstacle> {
    let devices: Vec<Option<&str>> = match devices.is_empty() {
        true => vec![None],
        false => devices.iter().map(|device| Some(device.as_str())).collect(),
    };
    table
        .at(LOCAL_IN)
        .filter(|chain| {
            devices
                .iter()
                .any(|&device| table.stops(chain, Packet { mark, device }))
        })
        .map(|chain| Obstacle {
            name: format!("{} {chain}", table.name()),
            cure: table.cure(chain, mark),
        })
        .collect()
}

/// Forward chains that drop whatever comes: their policy drops, and they have no rule. What one with rules does to a pod's
/// connections cannot be told by looking.
///
/// # Errors
/// As [`obstacles`].
pub(super) fn closed_to_forwarding() -> Result<Vec<String>, InterceptError> {
    let tables = nftables::tables()?;
    Ok(tables
        .iter()
        .flat_map(|table| {
            table
                .at(FORWARD)
                .filter(|chain| table.is_closed(chain))
                .map(|chain| format!("{} {chain}", table.name()))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    /// The kernel's answer, or that it has no nf_tables; no privilege is needed in a namespace of one's own only.
    #[test]
    fn the_kernel_is_asked() {
        match obstacles(Mark { value: 1, mask: 1 }, &BTreeSet::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.errno(), Some(libc::EPERM), "{error}"),
        }
    }

    #[test]
    fn every_interface_counts() {
        let table = legacy::table("iptables-legacy", "-P INPUT DROP\n-A INPUT -i veth1 -j ACCEPT\n");
        let mark = Mark { value: 1, mask: 1 };
        let found = |names: &[&str]| {
            let devices = names.iter().map(|&name| name.to_owned()).collect();
            within(&table, mark, &devices).len()
        };
        assert_eq!(found(&["veth1"]), 0);
        assert_eq!(found(&["veth1", "veth2"]), 1);
        assert_eq!(found(&[]), 1, "an interface that is not known yet");
    }
}
