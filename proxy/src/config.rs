//! What we were told to do: the final, typed configuration. Files below turn file, environment and flags into it.
//!
//! [`load`] puts the layers together (flags over environment over file over defaults), [`keys`] is the one table of
//! settings that parsing, `config show`, the default file and the reference page are made from, [`Reloader`] reads
//! again while running.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::catalog::Site;

mod check;
mod environment;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod https;
pub mod keys;
mod load;
mod print;
mod reload;
mod upstream;
mod value;
mod yaml;

pub(crate) use environment::assignment;
pub use error::{ConfigError, ConfigErrors, Source};
pub use https::{BelowPolicy, HttpsException, HttpsPolicy};
pub use load::{Inputs, Loaded, Paths, Setting, load};
pub use print::{default_file, default_value, reference, show};
pub use reload::Reloader;
pub use upstream::{
    CrlPolicy, Endpoint, NoProxy, OutboundProxy, Pin, ProxyUrl, TlsPolicy, Upstream, UpstreamNetwork,
    authority,
};

/// The whole configuration, valid by construction. The master sends it to the worker as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The Datadog site; every intake name is built from it.
    pub site: Site,
    /// Logging.
    pub log: Log,
    /// The fixed ports of the Agent's `fips.*` settings.
    pub explicit: Explicit,
    /// Interception by eBPF.
    pub intercept: Intercept,
    /// The local authority for Agents that speak HTTPS.
    pub ca: Ca,
    /// The way to the intake.
    pub upstream: Upstream,
    /// Bounds on what we hold and wait for.
    pub limits: Limits,
    /// Status page, metrics, health and the admin socket.
    pub status: Status,
    /// The unprivileged process that does the network work.
    pub worker: Worker,
}

/// `log.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// A level, or directives as in `info,agent_fips_proxy::relay=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
    /// Write one line per request to the target `access` (`log.access`).
    pub access: bool,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// `explicit.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explicit {
    /// Serve the product ports.
    pub enabled: bool,
    /// Where the product ports are bound.
    pub local_address: ListenAddress,
    /// The first port of the range; offsets are a contract with Agents in the field.
    pub port_range_start: u16,
    /// Whose processes may use them, by name or number; empty: everybody's.
    pub allowed_users: Vec<String>,
    /// In which cgroups processes may use them, as globs; empty: in every one.
    pub allowed_cgroups: Vec<String>,
}

impl Explicit {
    /// True when not everybody may use the ports.
    pub fn is_limited(&self) -> bool {
        !(self.allowed_users.is_empty() && self.allowed_cgroups.is_empty())
    }
}

/// Where to listen: `localhost` means both loopbacks, each bound by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ListenAddress {
    /// 127.0.0.1 and ::1.
    Localhost,
    /// Exactly this address.
    Ip(IpAddr),
}

impl ListenAddress {
    /// The addresses to bind.
    pub fn addresses(self) -> Vec<IpAddr> {
        match self {
            Self::Localhost => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
            Self::Ip(ip) => vec![ip],
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Localhost => f.write_str("localhost"),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.eq_ignore_ascii_case("localhost") {
            return Ok(Self::Localhost);
        }
        text.trim_matches(['[', ']'])
            .parse()
            .map(Self::Ip)
            .map_err(|_| format!("`{text}` is neither `localhost` nor an IP address"))
    }
}

/// `intercept.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intercept {
    /// Take the Agent's connections.
    pub enabled: bool,
    /// True when the operator asked for it (file, environment or flag): then failing to provide it stops the start.
    /// When it is only the default, a host without the privilege serves the explicit ports and says so.
    pub requested: bool,
    /// Which datapath.
    pub datapath: Datapath,
    /// Who is an Agent.
    pub agents: Agents,
    /// Destination ports that are taken; at most [`proxy_ebpf::MAX_PORTS`].
    pub ports: Vec<u16>,
    /// Destinations that are taken besides the addresses of the intake names.
    pub cidrs: Vec<IpNet>,
    /// What happens to TLS on an intercepted connection that asks for an intake name.
    pub https: HttpsPolicy,
    /// Whose TLS is passed through although it would be terminated or refused.
    pub https_passthrough_names: Vec<HttpsException>,
    /// What happens to an Agent's own session that agrees on less than the policy.
    pub https_below_policy: BelowPolicy,
    /// What a selected connection does when nobody listens here.
    pub on_failure: OnFailure,
    /// Reset connections of Agents to intakes that were open before we could take them.
    pub reset_existing: bool,
    /// Datapath `tc`: more interfaces than the Agent pods' own, by name or by prefix.
    pub interfaces: Vec<InterfacePattern>,
    /// Datapath `tc`: priority of our classifier where it is a classic filter; never 0.
    pub classifier_priority: u16,
    /// Datapath `tc`: how classifiers are attached.
    pub classifier_attach: ClassifierAttach,
    /// Datapath `tc`: what to do at a priority that another classifier has too.
    pub classifier_same_priority: SamePriority,
    /// Datapath `tc`: the packet mark that leads intercepted packets to us.
    pub mark: Mark,
}

/// `intercept.agents.*`: three sources, and an Agent is whoever one of them names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agents {
    /// Cgroup path globs, relative to the cgroup2 root.
    pub cgroups: Vec<String>,
    /// Files of network namespaces, such as `/run/netns/agent`.
    pub namespaces: Vec<PathBuf>,
    /// Pods of this node.
    pub pods: Pods,
}

impl Agents {
    /// True when no source can name anybody.
    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.namespaces.is_empty() && self.pods.api == PodsApi::Off
    }
}

/// `intercept.agents.pods.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pods {
    /// Whether the Kubernetes API server is asked.
    pub api: PodsApi,
    /// Which pods are Agents; never empty.
    pub label_selector: String,
    /// This node's name in Kubernetes; the host name when it is not set.
    pub node: Option<String>,
    /// The folder with `token` and `ca.crt` of the service account.
    pub service_account: PathBuf,
}

/// `intercept.agents.pods.api`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodsApi {
    /// Where Kubernetes says how: `KUBERNETES_SERVICE_HOST` is set and the service account is there.
    Auto,
    /// Always; that it cannot be reached is an error.
    On,
    /// Never.
    Off,
}

/// A name, or the beginning of some: `veth*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InterfacePattern(pub String);

impl InterfacePattern {
    /// True when `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == self.0,
        }
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `intercept.classifier_attach`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassifierAttach {
    /// TCX where the kernel has it, else a classic filter.
    Auto,
    /// TCX only (Linux 6.6).
    Tcx,
    /// A classic filter on clsact, at `classifier_priority`.
    Netlink,
}

/// `intercept.classifier_same_priority`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamePriority {
    /// Stay where the kernel put us, and say so.
    Keep,
    /// Add our filter anew whenever another one of the same priority stands before it: the newest runs first.
    Prepend,
}

/// `intercept.mark.*`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The bits that are set.
    pub value: u32,
    /// The bits that are ours; `value` has no others.
    pub mask: u32,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}/{:#010x}", self.value, self.mask)
    }
}

/// `intercept.datapath`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// `cgroup` where possible.
    Auto,
    /// Rewrite at `connect()`.
    Cgroup,
    /// Mark packets on the host side of the pod's interface.
    Tc,
}

/// `intercept.on_failure`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The connect fails: nothing leaves except through us.
    Closed,
    /// The connect goes out as without us, and is counted.
    Open,
}

/// `ca.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ca {
    /// The folder of the authority that we make.
    pub dir: PathBuf,
    /// Days that an authority that we make is valid for.
    pub validity_days: u16,
    /// The operator's own issuing authority in its place (PEM); set together with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<PathBuf>,
}

/// `limits.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Client connections held at once, all listeners together; beyond it a connection is answered 503 and closed.
    pub max_connections: usize,
    /// The same of one Agent: one pod, or all of the host.
    pub max_connections_per_agent: usize,
    /// Bytes a second of a request body, below which a client that is waited for is too slow.
    pub min_body_rate: u64,
    /// A client connection between two requests.
    pub idle_timeout: Duration,
    /// From the first byte of a request head to its last.
    pub header_timeout: Duration,
    /// Bytes of a request or response head.
    pub max_header_bytes: usize,
    /// How long a draining worker waits for requests in flight.
    pub drain_timeout: Duration,
}

/// `status.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where the status page is bound.
    pub address: ListenAddress,
    /// Its port: `explicit.port_range_start` unless set.
    pub port: u16,
    /// The admin socket.
    pub socket: PathBuf,
}

/// `worker.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// The user the worker becomes when the master may change users.
    pub user: String,
    /// Data threads; each has its own listeners and pool.
    pub threads: usize,
    /// Whether the worker's system calls and files are restricted.
    pub sandbox: bool,
}
