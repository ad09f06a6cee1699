//! Whose classifier it probably is, by its name. A guess, for people; nothing is decided by it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who attaches classifiers under such a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Cilium: `cil_from_container` and the like (`bpf_lxc.o` before 1.12).
    Cilium,
    /// Calico's eBPF data plane: `cali_tc_*`, `calico_*`.
    Calico,
    /// The network policy agent of the AWS VPC CNI: `handle_ingress`, `handle_egress`.
    Aws,
    /// Datadog's workload security: `classifier_*`.
    Datadog,
    /// bpfman's dispatcher, which runs others' programs.
    Bpfman,
    /// Ourselves.
    Ours,
    /// Anybody.
    Unknown,
}

impl Owner {
    /// Reads it from a program's or a filter's name. Kernel names are cut at 15 characters.
    pub fn guess(name: &str) -> Self {
        // iproute2 names a filter `object.o:[section]`, and `pin:[*fsobj]` when it came from bpffs.
        let section = match name.rsplit_once(":[") {
            Some((pin, "*fsobj]")) => pin,
            Some((_, section)) => section,
            None => name,
        };
        let section = section
            .trim_start_matches("classifier/")
            .trim_start_matches("tc/");
        let has = |prefix: &str| section.starts_with(prefix);
        if has("cil_") || name.starts_with("bpf_lxc.o") || name.starts_with("bpf_host.o") {
            Self::Cilium
        } else if has("cali_") || has("calico_") {
            Self::Calico
        } else if has("handle_ingress") || has("handle_egress") {
            Self::Aws
        } else if section.contains("classifier_") {
            Self::Datadog
        } else if has("tc_dispatcher") || has("bpfman_") {
            Self::Bpfman
        } else {
            Self::Unknown
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cilium => "Cilium",
            Self::Calico => "Calico",
            Self::Aws => "AWS network policy agent",
            Self::Datadog => "Datadog workload security",
            Self::Bpfman => "bpfman",
            Self::Ours => "agent-fips-proxy",
            Self::Unknown => "owner unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_owners() {
        for (name, owner) in [
            ("cil_from_container", Owner::Cilium),
            ("cil_from_contai", Owner::Cilium),
            ("cil_from_container-lxc12ab", Owner::Cilium),
            ("bpf_lxc.o:[from-container]", Owner::Cilium),
            ("cali_tc_preambl", Owner::Calico),
            ("calico_from_wor", Owner::Calico),
            ("from_wep.o:[calico_from_workload_ep]", Owner::Calico),
            ("handle_ingress", Owner::Aws),
            ("tc.o:[tc/handle_egress]", Owner::Aws),
            ("handle_ingress:[*fsobj]", Owner::Aws),
            ("classifier_ingr", Owner::Datadog),
            ("tc/classifier_egress_security_123", Owner::Datadog),
            ("tc_dispatcher", Owner::Bpfman),
            ("my_filter", Owner::Unknown),
            ("", Owner::Unknown),
        ] {
            assert_eq!(Owner::guess(name), owner, "{name}");
        }
    }
}
