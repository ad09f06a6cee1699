//! The rows of `intercept`, in the order of the file.

use super::{CNI, KEY, NOBODY, SECURITY};
use crate::config::keys::parse::{
    CGROUPS, cgroup, interface, list_text, mark_text, node, path, selector, word, yaml_text,
};
use crate::config::keys::{Key, Shape};
use crate::config::value::{Fault, boolean, choice, integer, list, network, optional};
use crate::config::{ClassifierAttach, Datapath, OnFailure, PodsApi, SamePriority};

/// Up to and without what concerns HTTPS.
pub(super) const BEFORE_HTTPS: &[Key] = &[
    Key {
        path: "intercept.enabled",
        accepted: "true, false",
        effect: "Take the Agent's connections with eBPF. `false` detaches every hook and leaves the explicit \
                 ports serving; a reload is enough. Set to `true`, a host that cannot intercept does not \
                 start; left at its default, it serves the explicit ports and says so.",
        set: |draft, raw| boolean(raw).map(|value| draft.config.intercept.enabled = value),
        get: |config| config.intercept.enabled.to_string(),
        ..KEY
    },
    Key {
        path: "intercept.datapath",
        accepted: "auto, cgroup, tc",
        effect: "How connections are taken. `cgroup` rewrites them at connect(), on the host and in pods; no \
                 network plugin can be in its way. `tc` marks a pod's packets on the host side of its \
                 interface; Agents of the host are not taken by it. `auto` takes `cgroup` wherever it can, \
                 else `tc`, and says why; `doctor` tells it beforehand.",
        who: NOBODY,
        set: |draft, raw| {
            let words = [
                ("auto", Datapath::Auto),
                ("cgroup", Datapath::Cgroup),
                ("tc", Datapath::Tc),
            ];
            choice(raw, &words).map(|value| draft.config.intercept.datapath = value)
        },
        get: |config| word(&config.intercept.datapath),
        ..KEY
    },
    Key {
        path: "intercept.agents.cgroups",
        shape: Shape::List,
        accepted: CGROUPS,
        effect: "Who is an Agent: processes in these cgroups, relative to the cgroup2 root, in whichever \
                 network namespace they live.",
        who: "operators whose Agent does not run in the packaged units",
        set: |draft, raw| list(raw, cgroup).map(|value| draft.config.intercept.agents.cgroups = value),
        get: |config| list_text(&config.intercept.agents.cgroups),
        ..KEY
    },
    Key {
        path: "intercept.agents.namespaces",
        shape: Shape::List,
        accepted: "a list of absolute paths such as /run/netns/agent",
        effect: "Who is an Agent: every process in these network namespaces. A file that comes later, goes, \
                 or is another namespace under the same name is noticed.",
        who: "operators of containers without Kubernetes, and of virtual machines",
        set: |draft, raw| list(raw, path).map(|value| draft.config.intercept.agents.namespaces = value),
        get: |config| {
            let paths = &config.intercept.agents.namespaces;
            list_text(
                &paths
                    .iter()
                    .map(|path| path.to_string_lossy())
                    .collect::<Vec<_>>(),
            )
        },
        ..KEY
    },
    Key {
        path: "intercept.agents.pods.api",
        accepted: "auto, on, off",
        effect: "Ask the Kubernetes API server for the Agent pods of this node, and go on listening to it. \
                 `auto`: where Kubernetes says how to reach it (KUBERNETES_SERVICE_HOST and the service \
                 account are there).",
        set: |draft, raw| {
            choice(
                raw,
                &[
                    ("auto", PodsApi::Auto),
                    ("on", PodsApi::On),
                    ("off", PodsApi::Off),
                ],
            )
            .map(|value| draft.config.intercept.agents.pods.api = value)
        },
        get: |config| word(&config.intercept.agents.pods.api),
        ..KEY
    },
    Key {
        path: "intercept.agents.pods.label_selector",
        accepted: "a label selector key=value[,key=value]",
        effect: "Which pods of this node are Agents.",
        who: "platform teams whose Agent pods carry other labels",
        set: |draft, raw| {
            selector(raw).map(|value| draft.config.intercept.agents.pods.label_selector = value)
        },
        get: |config| yaml_text(&config.intercept.agents.pods.label_selector),
        ..KEY
    },
    Key {
        path: "intercept.agents.pods.node",
        shape: Shape::Optional,
        accepted: "a node name, or null",
        default_words: Some("the host name"),
        fallback: Some("DD_KUBERNETES_KUBELET_NODENAME"),
        effect: "This node's name in Kubernetes: spec.nodeName of its pods.",
        set: |draft, raw| optional(raw, node).map(|value| draft.config.intercept.agents.pods.node = value),
        get: |config| {
            let node = config.intercept.agents.pods.node.as_deref();
            node.map_or("null".to_owned(), yaml_text)
        },
        ..KEY
    },
    Key {
        path: "intercept.agents.pods.service_account",
        accepted: "an absolute path of a folder with `token` and `ca.crt`",
        effect: "With what the proxy shows itself to the API server. The worker must be able to read it; both \
                 files are read again for each connection, so that they may rotate.",
        who: NOBODY,
        set: |draft, raw| path(raw).map(|value| draft.config.intercept.agents.pods.service_account = value),
        get: |config| yaml_text(&config.intercept.agents.pods.service_account.to_string_lossy()),
        ..KEY
    },
    Key {
        path: "intercept.ports",
        shape: Shape::List,
        accepted: "a list of 1 to 16 ports",
        effect: "Destination ports that are taken. A name that is no intake's passes through untouched.",
        set: |draft, raw| {
            let ports: Vec<u16> = list(raw, |item| integer(item, 1..=u16::MAX))?;
            let mut unique = ports.clone();
            unique.sort_unstable();
            unique.dedup();
            if unique.is_empty() || ports.len() > proxy_ebpf::MAX_PORTS || unique.len() != ports.len() {
                return Err(Fault::wrong(format!(
                    "{} ports, of which {} differ",
                    ports.len(),
                    unique.len()
                )));
            }
            draft.config.intercept.ports = ports;
            Ok(())
        },
        get: |config| list_text(&config.intercept.ports),
        ..KEY
    },
    Key {
        path: "intercept.cidrs",
        shape: Shape::List,
        accepted: "a list of networks such as 10.20.0.0/16 or 2001:db8::/32",
        effect: "Destinations that are taken besides the addresses that the intake names resolve to, for \
                 example PrivateLink. A superset does no harm: the name decides.",
        set: |draft, raw| list(raw, network).map(|value| draft.config.intercept.cidrs = value),
        get: |config| list_text(&config.intercept.cidrs),
        ..KEY
    },
];

/// After what concerns HTTPS.
pub(super) const AFTER_HTTPS: &[Key] = &[
    Key {
        path: "intercept.on_failure",
        accepted: "closed, open",
        effect: "What a selected connection does when no worker listens. `closed`: the connect fails, the \
                 Agent keeps its data and tries again. `open`: it leaves as without us, unprotected by us, \
                 and is counted.",
        who: SECURITY,
        set: |draft, raw| {
            choice(raw, &[("closed", OnFailure::Closed), ("open", OnFailure::Open)])
                .map(|value| draft.config.intercept.on_failure = value)
        },
        get: |config| word(&config.intercept.on_failure),
        ..KEY
    },
    Key {
        path: "intercept.reset_existing",
        accepted: "true, false",
        effect: "Connections of Agents to intakes that were open before the proxy could take them are reset, so \
                 that they come back through it. The request that is on its way is lost to the connection; the \
                 Agent sends it again. `false`: they are counted as leaks, and go on until one side closes them.",
        who: SECURITY,
        set: |draft, raw| boolean(raw).map(|value| draft.config.intercept.reset_existing = value),
        get: |config| config.intercept.reset_existing.to_string(),
        ..KEY
    },
    Key {
        path: "intercept.interfaces",
        shape: Shape::List,
        accepted: "a list of interface names or of prefixes ending in *",
        effect: "Datapath `tc`: interfaces that get a classifier besides those of the Agent pods that were \
                 found. Everything that comes in on them counts as an Agent's: name the host side of pods \
                 or virtual machines, never an uplink.",
        who: "operators of virtual machines and of pods that no other selector finds",
        set: |draft, raw| list(raw, interface).map(|value| draft.config.intercept.interfaces = value),
        get: |config| list_text(&config.intercept.interfaces),
        ..KEY
    },
    Key {
        path: "intercept.classifier_priority",
        accepted: "a number from 1 to 65535",
        effect: "Datapath `tc`, classic filters: priority of our classifier among those of the network \
                 plugin; the lower runs first. Must be lower than that of a plugin whose classifier ends \
                 the chain; `doctor` names the number. TCX has no priorities.",
        who: CNI,
        set: |draft, raw| {
            integer(raw, 1..=u16::MAX).map(|value| draft.config.intercept.classifier_priority = value)
        },
        get: |config| config.intercept.classifier_priority.to_string(),
        ..KEY
    },
    Key {
        path: "intercept.classifier_attach",
        accepted: "auto, tcx, netlink",
        effect: "Datapath `tc`: how classifiers are attached. `tcx` runs before every classic filter and \
                 survives their removal (Linux 6.6). `netlink` is a classic filter on the clsact qdisc. \
                 `auto`: tcx where the kernel has it.",
        who: CNI,
        set: |draft, raw| {
            let words = [
                ("auto", ClassifierAttach::Auto),
                ("tcx", ClassifierAttach::Tcx),
                ("netlink", ClassifierAttach::Netlink),
            ];
            choice(raw, &words).map(|value| draft.config.intercept.classifier_attach = value)
        },
        get: |config| word(&config.intercept.classifier_attach),
        ..KEY
    },
    Key {
        path: "intercept.classifier_same_priority",
        accepted: "keep, prepend",
        effect: "Datapath `tc`, classic filters: what to do when another classifier of our priority stands \
                 before ours and ends the chain. `keep`: report it. `prepend`: add ours anew, because the \
                 newest of a priority runs first; a bounded number of times, then report.",
        who: CNI,
        set: |draft, raw| {
            choice(
                raw,
                &[("keep", SamePriority::Keep), ("prepend", SamePriority::Prepend)],
            )
            .map(|value| draft.config.intercept.classifier_same_priority = value)
        },
        get: |config| word(&config.intercept.classifier_same_priority),
        ..KEY
    },
    Key {
        path: "intercept.mark.value",
        accepted: "a number from 0x1 to 0xffffffff",
        effect: "Datapath `tc`: the packet mark that leads an intercepted packet to the proxy. Must lie within \
                 the mask, and be nobody else's: kube-proxy has 0x4000 and 0x8000, Cilium 0x0f00, Calico \
                 0xffff0000 unless told otherwise.",
        who: CNI,
        set: |draft, raw| integer(raw, 1..=u32::MAX).map(|value| draft.config.intercept.mark.value = value),
        get: |config| mark_text(config.intercept.mark.value),
        ..KEY
    },
    Key {
        path: "intercept.mark.mask",
        accepted: "a number from 0x1 to 0xffffffff",
        effect: "Datapath `tc`: which bits of the mark are ours. The others are left as they are.",
        who: CNI,
        set: |draft, raw| integer(raw, 1..=u32::MAX).map(|value| draft.config.intercept.mark.mask = value),
        get: |config| mark_text(config.intercept.mark.mask),
        ..KEY
    },
];
