//! The rows, in the order of the file.

use std::time::Duration;

use super::parse::{
    address, cgroup, duration_text, endpoint, hours, interface, level, list_text, mark_text, ms, node, path,
    private_network, selector, socket, user, word, yaml_text,
};
use super::{Key, Shape};
use crate::config::value::{
    Fault, boolean, choice, duration, integer, list, map, network, optional, parsed, unavailable,
};
use crate::config::{
    ClassifierAttach, Datapath, HttpsPolicy, LogFormat, OnFailure, PodsApi, SamePriority, TlsPolicy,
    UpstreamNetwork,
};

const OPERATOR: &str = "operators";
const NOBODY: &str = "nobody without a measurement";
const SECURITY: &str = "whoever answers for compliance";
/// The last offset of the Agent's range (`setupFipsEndpoints`).
const LAST_OFFSET: u16 = 15;
const CNI: &str = "platform teams whose network plugin has classifiers of its own";

/// What most rows have in common; a row says the rest.
const KEY: Key = Key {
    path: "",
    shape: Shape::Scalar,
    accepted: "",
    default_words: None,
    fallback: None,
    effect: "",
    who: OPERATOR,
    set: |_, _| Ok(()),
    get: |_| String::new(),
};

/// Every setting.
pub static TABLE: &[Key] = &[
    Key {
        path: "site",
        accepted: "a domain such as datadoghq.com, us5.datadoghq.com or ddog-gov.com",
        fallback: Some("DD_SITE"),
        effect: "The Datadog site. Every intake name is built from it: it decides what is intercepted and \
                 where everything goes. Must be the Agent's own.",
        who: "everybody whose site is not datadoghq.com",
        set: |draft, raw| parsed(raw).map(|value| draft.config.site = value),
        get: |config| config.site.to_string(),
        ..KEY
    },
    Key {
        path: "log.level",
        accepted: "off, error, warn, info, debug, trace, or directives as in \
                   info,agent_fips_proxy::relay=debug",
        effect: "What is logged. No level logs keys, header values, queries or bodies.",
        set: |draft, raw| level(raw).map(|value| draft.config.log.level = value),
        get: |config| yaml_text(&config.log.level),
        ..KEY
    },
    Key {
        path: "log.format",
        accepted: "text, json",
        effect: "How a line looks: for people, or one JSON object a line.",
        set: |draft, raw| {
            choice(raw, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
                .map(|value| draft.config.log.format = value)
        },
        get: |config| word(&config.log.format),
        ..KEY
    },
    Key {
        path: "log.access",
        accepted: "true, false",
        effect: "One line for each request, target `access`: product, path without query, status, sizes, \
                 time, TLS session.",
        set: |draft, raw| boolean(raw).map(|value| draft.config.log.access = value),
        get: |config| config.log.access.to_string(),
        ..KEY
    },
    Key {
        path: "explicit.enabled",
        accepted: "true, false",
        effect: "Serve the fixed ports of the Agent's `fips.*` settings.",
        set: |draft, raw| boolean(raw).map(|value| draft.config.explicit.enabled = value),
        get: |config| config.explicit.enabled.to_string(),
        ..KEY
    },
    Key {
        path: "explicit.local_address",
        accepted: "localhost (127.0.0.1 and ::1), or an IP address",
        fallback: Some("DD_FIPS_LOCAL_ADDRESS"),
        effect: "Where the product ports are bound. The Agent speaks clear text to them: an address that is \
                 not a loopback puts API keys on the network.",
        who: "nobody, except where the Agent reaches the proxy only over a private bridge",
        set: |draft, raw| address(raw).map(|value| draft.config.explicit.local_address = value),
        get: |config| yaml_text(&config.explicit.local_address.to_string()),
        ..KEY
    },
    Key {
        path: "explicit.port_range_start",
        accepted: "a port from 1 to 65520: the fifteen that follow belong to the products",
        fallback: Some("DD_FIPS_PORT_RANGE_START"),
        effect: "First port of the range. Must be the Agent's `fips.port_range_start`.",
        set: |draft, raw| {
            integer(raw, 1..=u16::MAX - LAST_OFFSET)
                .map(|value| draft.config.explicit.port_range_start = value)
        },
        get: |config| config.explicit.port_range_start.to_string(),
        ..KEY
    },
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
        accepted: "a list of cgroup paths that begin with / (`*` stands for any text within one component, `**` \
                   for any number of components)",
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
    Key {
        path: "intercept.https",
        accepted: "passthrough (terminate and refuse are known, but not in this version)",
        effect: "TLS of an intercepted Agent. `passthrough`: it goes untouched to its original destination, \
                 with the Agent's own cryptography, and is counted as such.",
        who: SECURITY,
        set: |draft, raw| {
            let words = [
                ("passthrough", Ok(HttpsPolicy::Passthrough)),
                ("terminate", Err("terminate")),
                ("refuse", Err("refuse")),
            ];
            let cure = "set passthrough, or let the Agent speak http or use its fips settings";
            draft.config.intercept.https = choice(raw, &words)?.map_err(|word| unavailable(word, cure))?;
            Ok(())
        },
        get: |config| word(&config.intercept.https),
        ..KEY
    },
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
    Key {
        path: "upstream.port",
        accepted: "a port from 1 to 65535",
        effect: "The intake's port.",
        who: "nobody, except behind a gateway",
        set: |draft, raw| integer(raw, 1..=u16::MAX).map(|value| draft.config.upstream.port = value),
        get: |config| config.upstream.port.to_string(),
        ..KEY
    },
    Key {
        path: "upstream.network",
        accepted: "pod, host",
        effect: "From which network namespace an intercepted pod's connections to the intake are made. `pod`: \
                 from its own, so that its address, network policies and security groups go on to apply. \
                 `host`: from the host's.",
        who: "platform teams whose pods may not reach the intake themselves",
        set: |draft, raw| {
            choice(
                raw,
                &[("pod", UpstreamNetwork::Pod), ("host", UpstreamNetwork::Host)],
            )
            .map(|value| draft.config.upstream.network = value)
        },
        get: |config| word(&config.upstream.network),
        ..KEY
    },
    Key {
        path: "upstream.ca_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a PEM file with at least one certificate, or null",
        effect: "Trust only these roots instead of the system's. The worker must be able to read it.",
        who: "operators behind a gateway with its own authority; whoever pins trust",
        set: |draft, raw| optional(raw, path).map(|value| draft.config.upstream.ca_file = value),
        get: |config| {
            config
                .upstream
                .ca_file
                .as_ref()
                .map_or("null".to_owned(), |file| yaml_text(&file.to_string_lossy()))
        },
        ..KEY
    },
    Key {
        path: "upstream.tls_policy",
        accepted: "fips, strict",
        effect: "Which TLS is approved towards the intake. `fips`: 1.2 with extended master secret, and 1.3. \
                 `strict`: 1.3 only, both halves of a hybrid group approved. There is no off.",
        who: SECURITY,
        set: |draft, raw| {
            choice(raw, &[("fips", TlsPolicy::Fips), ("strict", TlsPolicy::Strict)])
                .map(|value| draft.config.upstream.tls_policy = value)
        },
        get: |config| word(&config.upstream.tls_policy),
        ..KEY
    },
    Key {
        path: "upstream.allow_private",
        shape: Shape::List,
        accepted: "a list of networks, IPv4 of /8 or narrower, IPv6 of /7 or narrower",
        effect: "Networks that may be dialled although they are not public: PrivateLink, a gateway on this \
                 host (127.0.0.0/8). Without it a name that resolves to such an address is refused: a forged \
                 answer leads nowhere.",
        who: "operators with PrivateLink or a local gateway",
        set: |draft, raw| list(raw, private_network).map(|value| draft.config.upstream.allow_private = value),
        get: |config| list_text(&config.upstream.allow_private),
        ..KEY
    },
    Key {
        path: "upstream.endpoints",
        shape: Shape::Map,
        accepted: "a map of product name (such as metrics, traces or logs) to host[:port]",
        effect: "What is dialled for a product in place of the intake's own address, for example a \
                 PrivateLink name. The certificate is still verified for the intake name.",
        who: "operators with PrivateLink",
        set: |draft, raw| {
            map(raw, |name| name.parse().map_err(Fault::wrong), endpoint)
                .map(|value| draft.config.upstream.endpoints = value)
        },
        get: |config| {
            let entries: Vec<String> = config
                .upstream
                .endpoints
                .iter()
                .map(|(product, endpoint)| {
                    let host = &endpoint.host;
                    let text = match endpoint.port {
                        Some(port) if host.contains(':') => format!("[{host}]:{port}"),
                        Some(port) => format!("{host}:{port}"),
                        None => host.clone(),
                    };
                    format!("{product}: {}", yaml_text(&text))
                })
                .collect();
            format!("{{{}}}", entries.join(", "))
        },
        ..KEY
    },
    Key {
        path: "upstream.connect_timeout",
        accepted: "a duration from 100ms to 1m",
        effect: "TCP and TLS set-up of one address.",
        set: |draft, raw| {
            duration(raw, ms(100)..=ms(60_000)).map(|value| draft.config.upstream.connect_timeout = value)
        },
        get: |config| duration_text(config.upstream.connect_timeout),
        ..KEY
    },
    Key {
        path: "upstream.response_timeout",
        accepted: "a duration from 1s to 1h",
        effect: "From the last byte of the request, or the last progress of its body, to the response head.",
        set: |draft, raw| {
            duration(raw, ms(1_000)..=hours(1)).map(|value| draft.config.upstream.response_timeout = value)
        },
        get: |config| duration_text(config.upstream.response_timeout),
        ..KEY
    },
    Key {
        path: "upstream.pool_idle_timeout",
        accepted: "a duration from 1s to 1h",
        effect: "How long an unused connection to the intake is kept. Shorter than what the intake's load \
                 balancer and any firewall on the way allow, or requests fail on connections that are \
                 already gone.",
        who: NOBODY,
        set: |draft, raw| {
            duration(raw, ms(1_000)..=hours(1)).map(|value| draft.config.upstream.pool_idle_timeout = value)
        },
        get: |config| duration_text(config.upstream.pool_idle_timeout),
        ..KEY
    },
    Key {
        path: "limits.max_connections",
        accepted: "a number from 1 to 1000000",
        effect: "Client connections held at once, all ports together. One more is answered 503 and closed; \
                 the Agent tries again.",
        set: |draft, raw| {
            integer(raw, 1..=1_000_000).map(|value| draft.config.limits.max_connections = value)
        },
        get: |config| config.limits.max_connections.to_string(),
        ..KEY
    },
    Key {
        path: "limits.idle_timeout",
        accepted: "a duration from 1s to 24h",
        effect: "How long a client connection may wait between two requests.",
        set: |draft, raw| {
            duration(raw, ms(1_000)..=hours(24)).map(|value| draft.config.limits.idle_timeout = value)
        },
        get: |config| duration_text(config.limits.idle_timeout),
        ..KEY
    },
    Key {
        path: "limits.header_timeout",
        accepted: "a duration from 100ms to 5m",
        effect: "From the first byte of a request head to its last.",
        who: NOBODY,
        set: |draft, raw| {
            duration(raw, ms(100)..=ms(300_000)).map(|value| draft.config.limits.header_timeout = value)
        },
        get: |config| duration_text(config.limits.header_timeout),
        ..KEY
    },
    Key {
        path: "limits.max_header_bytes",
        accepted: "a number of bytes from 8192 to 1048576",
        effect: "Largest request or response head. Held for each connection that is reading one.",
        who: NOBODY,
        set: |draft, raw| {
            integer(raw, 8192..=1_048_576).map(|value| draft.config.limits.max_header_bytes = value)
        },
        get: |config| config.limits.max_header_bytes.to_string(),
        ..KEY
    },
    Key {
        path: "limits.drain_timeout",
        accepted: "a duration from 0s to 1h",
        effect: "How long a worker that stops waits for requests in flight. Keep it below the service \
                 manager's own limit.",
        set: |draft, raw| {
            duration(raw, Duration::ZERO..=hours(1)).map(|value| draft.config.limits.drain_timeout = value)
        },
        get: |config| duration_text(config.limits.drain_timeout),
        ..KEY
    },
    Key {
        path: "status.address",
        accepted: "localhost (127.0.0.1 and ::1), or an IP address",
        effect: "Where status page, metrics and health are bound. They are read without a password and in \
                 clear text.",
        who: "operators whose metrics are collected over the network",
        set: |draft, raw| address(raw).map(|value| draft.config.status.address = value),
        get: |config| yaml_text(&config.status.address.to_string()),
        ..KEY
    },
    Key {
        path: "status.port",
        accepted: "a port from 1 to 65535 that is no product's",
        default_words: Some("explicit.port_range_start"),
        effect: "Port of status page, metrics and health. Offset 0 of the Agent's range is kept for it.",
        set: |draft, raw| integer(raw, 1..=u16::MAX).map(|value| draft.status_port = Some(value)),
        get: |config| config.status.port.to_string(),
        ..KEY
    },
    Key {
        path: "status.socket",
        accepted: "an absolute path of at most 107 bytes",
        effect: "The admin socket, for root and the service's user.",
        who: NOBODY,
        set: |draft, raw| socket(raw).map(|value| draft.config.status.socket = value),
        get: |config| yaml_text(&config.status.socket.to_string_lossy()),
        ..KEY
    },
    Key {
        path: "worker.user",
        accepted: "a user name, not root",
        effect: "The user that the worker becomes when the master is root. Everything from the network is \
                 parsed as this user.",
        who: NOBODY,
        set: |draft, raw| user(raw).map(|value| draft.config.worker.user = value),
        get: |config| yaml_text(&config.worker.user),
        ..KEY
    },
    Key {
        path: "worker.threads",
        accepted: "a number from 1 to 64",
        default_words: Some("2, or 1 on a single core"),
        effect: "Data threads; each has its own listeners and its own connections to the intake. One thread \
                 carries more than an ordinary Agent sends.",
        who: NOBODY,
        set: |draft, raw| integer(raw, 1..=64).map(|value| draft.config.worker.threads = value),
        get: |config| config.worker.threads.to_string(),
        ..KEY
    },
];
