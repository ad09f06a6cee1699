//! What master and worker say to each other, and what `status` shows. JSON, one message a line.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::authority::Passing;
use crate::catalog::Product;
use crate::config::Config;
use crate::intercept::{InterceptStatus, PodRef, Taken, tc};
use crate::observe::distrust::DistrustStatus;
use crate::observe::logging::Lost;
use crate::observe::view::{ProductStatus, UpstreamTlsStatus};
use crate::relay::network::NetworkId;
use crate::relay::outcome::ClientTls;
use crate::relay::upstream::resolve::Stale;
use crate::supervise::sandbox::Sandbox;
use crate::tls::ca::AuthoritiesStatus;
use crate::tls::module::SelfTest as SelfTestTimes;
use crate::tls::{ModuleStatus, RootsStatus, TrustStatus};

/// What master and worker speak. An upgrade in place leaves workers of another program to the new master: one that speaks
/// otherwise is told [`ToWorker::Drain`], which never changes, and nothing else. Another number is needed when a message changes so
/// that the other side would misunderstand or refuse it; a new field with a default is no such change.
pub const PROTOCOL: u32 = 1;

/// The first message to a worker. The descriptors beside it are its listeners and then the files of the local authority, in
/// this order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// What to do.
    pub config: Config,
    /// What each descriptor is.
    pub listeners: Vec<Passed>,
    /// What the descriptors after those of the listeners are.
    #[serde(default)]
    pub authority: Passing,
    /// The master's state at this moment.
    pub master: MasterStatus,
}

/// One descriptor handed to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// What it serves.
    pub purpose: Purpose,
    /// Which data thread accepts on it.
    pub thread: usize,
    /// It is of a process before us: closed at [`ToWorker::Retire`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retiring: bool,
}

impl Passed {
    /// One that stays.
    pub fn new(purpose: Purpose, thread: usize) -> Self {
        Self {
            purpose,
            thread,
            retiring: false,
        }
    }
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Status page, metrics, health.
    Status,
    /// A product port of the Agent's `fips.*` range.
    Explicit(Product),
    /// Connections that the kernel programs bring.
    Intercept {
        /// Where the clients are.
        network: NetworkId,
        /// How they come.
        datapath: Taken,
    },
}

impl Purpose {
    /// What the host's own Agents are brought to.
    pub const HOST_INTERCEPT: Self = Self::Intercept {
        network: NetworkId::HOST,
        datapath: Taken::Cgroup,
    };

    /// The name in messages and status: `status`, the product's name, `intercept` for the host's own Agents, and for others
    /// such as `intercept network 7 (cgroup)`.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::Status => "status".into(),
            Self::Explicit(product) => product.name().into(),
            Self::HOST_INTERCEPT => "intercept".into(),
            Self::Intercept { network, datapath } => {
                format!("intercept network {network} ({})", datapath.name()).into()
            }
        }
    }
}

/// Master to worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// Stop accepting, finish what is in flight, exit.
    Drain,
    /// The master's state changed (also sent every second): it belongs on the status page and in the metrics.
    Master(Box<MasterStatus>),
    /// Use this log level from now on.
    LogLevel(String),
    /// Answer with [`FromWorker::Status`].
    Status,
    /// Run the module's tests again and answer with [`FromWorker::SelfTested`]. Only for a worker that this program started.
    SelfTest,
    /// Serve these too: a descriptor each.
    AddListeners(Vec<Passed>),
    /// The network is gone: close its listeners and whatever else keeps it.
    RemoveNetwork(NetworkId),
    /// Close every listener that was passed as retiring: nobody waits there any more.
    Retire,
    /// The answer to [`FromWorker::Judge`].
    Judged {
        /// Whose answer.
        request: u64,
        /// Why they may not; absent when they may.
        refused: Option<String>,
    },
    /// The answer to [`FromWorker::SocketWanted`]: one descriptor, or why there is none.
    Socket {
        /// Whose answer.
        request: u64,
        /// Why there is no socket.
        error: Option<String>,
    },
}

/// Worker to master.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The module passed its tests and every listener is being accepted on.
    Ready,
    /// The worker cannot start; it exits after this.
    Failed {
        /// Exit code, as in `cli::Exit`.
        exit: u8,
        /// For people.
        message: String,
    },
    /// Every second: the worker's event loops turn.
    Alive,
    /// Addresses of intake names, each with the time it may be kept.
    Addresses(Vec<(IpAddr, Duration)>),
    /// Every intake name was asked for once: what can be selected by address now is.
    AddressesAsked,
    /// The answer to [`ToWorker::Status`].
    Status(Box<WorkerStatus>),
    /// The answer to [`ToWorker::SelfTest`]: how long they took, or which one failed.
    SelfTested(Result<SelfTestTimes, String>),
    /// A TCP socket of this network is needed, unconnected. The answer is [`ToWorker::Socket`].
    SocketWanted {
        /// Comes back with the answer.
        request: u64,
        /// The namespace that makes it.
        network: NetworkId,
        /// IPv6, or IPv4.
        ipv6: bool,
    },
    /// May whoever connected use an explicit port? The answer is [`ToWorker::Judged`].
    Judge {
        /// Comes back with the answer.
        request: u64,
        /// Their end.
        client: SocketAddr,
        /// Ours.
        ours: SocketAddr,
    },
    /// The Agent pods of this node, each time that they change.
    Pods(Pods),
}

impl FromWorker {
    /// True for what somebody waits for: it is said and answered while a worker drains, too.
    pub fn asks(&self) -> bool {
        matches!(self, Self::SocketWanted { .. } | Self::Judge { .. })
    }
}

/// The Agent pods of this node as the Kubernetes API server tells them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pods {
    /// All of them, each once, ordered by their UID.
    pub found: Vec<PodRef>,
    /// Why the API server cannot be asked, in words; what was found before stays in `found`.
    pub problem: Option<String>,
    /// `found` was the whole truth at least once. Before that a pod that is not in it may well be there.
    pub synced: bool,
}

/// What only the master knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MasterStatus {
    /// Process id.
    pub pid: u32,
    /// Every listener that should be there.
    pub listeners: Vec<ListenerStatus>,
    /// Interception.
    pub interception: InterceptionStatus,
    /// Connections of our own, by the way they took. `None` without a master, which makes them.
    #[serde(default)]
    pub self_tests: Option<Vec<SelfTest>>,
    /// Workers that died or were replaced since start.
    pub worker_restarts: u64,
    /// Processes for connections of our own that ended or hung, since this program runs.
    #[serde(default)]
    pub prober_restarts: u64,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Upgrades in place since the process was started.
    #[serde(default)]
    pub upgrades: u64,
    /// Log lines of the master that were dropped.
    #[serde(default)]
    pub log_lost: Lost,
}

impl MasterStatus {
    /// What keeps us from being ready, in words; empty when nothing does.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self
            .listeners
            .iter()
            .filter_map(|l| {
                Some(format!(
                    "listener {} on {}: {}",
                    l.name,
                    l.address,
                    l.error.as_ref()?
                ))
            })
            .collect();
        reasons.extend(
            self.interception
                .not_ready()
                .into_iter()
                .map(|why| format!("interception: {why}")),
        );
        if let Some(tests) = &self.self_tests {
            reasons.extend(tests.iter().filter_map(SelfTest::trouble));
            if tests.iter().all(|test| test.at == 0) {
                reasons.push("no connection of our own was tried yet".to_owned());
            }
        }
        reasons
    }
}

/// A connection of our own through the live datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Which way: `explicit`, `host (cgroup)`, or a pod's namespace.
    pub way: String,
    /// When it was tried last, in seconds since 1970; 0: not yet.
    pub at: u64,
    /// How often it failed in a row.
    pub failures: u32,
    /// From the connect to the answer, the last time, in microseconds; absent when there was no answer.
    #[serde(default)]
    pub took_us: Option<u64>,
    /// What went wrong the last time; absent when nothing did.
    pub error: Option<String>,
}

impl SelfTest {
    /// It was tried, and passed.
    pub fn passed(&self) -> bool {
        self.at > 0 && self.error.is_none()
    }

    /// What keeps us from being ready. One failure may be a moment, such as a worker that is replaced; it is tried again
    /// at once.
    fn trouble(&self) -> Option<String> {
        let error = self.error.as_ref().filter(|_| self.failures != 1)?;
        Some(format!("self-test {}: {error}", self.way))
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `status`, a product, or `intercept`.
    pub name: String,
    /// Address and port.
    pub address: SocketAddr,
    /// True when it is bound.
    pub bound: bool,
    /// Why not.
    pub error: Option<String>,
}

/// Interception as the master sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InterceptionStatus {
    /// Wanted, by configuration or by command.
    pub enabled: bool,
    /// Asked for by the operator and not only the default.
    pub requested: bool,
    /// The hooks are in place.
    pub attached: bool,
    /// Why it is not attached, or what to know about it.
    pub detail: Option<String>,
    /// Every intake name was asked for at least once.
    pub addresses_asked: bool,
    /// Why Kubernetes cannot be asked for Agent pods.
    pub pods_problem: Option<String>,
    /// The kernel side, when it is loaded.
    #[serde(flatten)]
    pub kernel: Option<InterceptStatus>,
}

impl InterceptionStatus {
    /// What keeps the interception that was asked for from being whole; empty when nothing does, or nobody asked for it.
    fn not_ready(&self) -> Vec<String> {
        if !self.enabled || !self.requested {
            return Vec::new();
        }
        let Some(kernel) = self.kernel.as_ref().filter(|_| self.attached) else {
            return vec![
                self.detail
                    .clone()
                    .unwrap_or_else(|| "not attached yet".to_owned()),
            ];
        };
        let mut reasons = Vec::new();
        if !self.addresses_asked {
            reasons.push("the addresses of the intake names are being asked for".to_owned());
        } else if kernel.destinations == 0 {
            reasons.push(
                "no intake name resolves, so nothing is selected: check the host's resolver, or set intercept.cidrs"
                    .to_owned(),
            );
        }
        reasons.extend(kernel.trouble.iter().cloned());
        reasons.extend(
            self.pods_problem
                .iter()
                .map(|problem| format!("Kubernetes: {problem}")),
        );
        reasons.extend(
            kernel
                .agents
                .iter()
                .filter(|agent| agent.datapath.is_none() && !agent.waiting)
                .map(|agent| format!("{} is not taken: {}", agent.selector, agent.why)),
        );
        reasons.extend(
            kernel
                .interfaces
                .iter()
                .filter(|interface| interface.state != tc::InterfaceState::Active)
                .map(|interface| format!("interface {interface}")),
        );
        reasons
    }
}

/// What only the worker knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Process id.
    pub pid: u32,
    /// Its version: after an upgrade in place another one than the master's, until the new worker is ready.
    #[serde(default)]
    pub version: String,
    /// Seconds since it became ready.
    pub uptime_seconds: u64,
    /// What the kernel refuses it.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// The crypto module that every byte to the intake passes.
    pub module: ModuleStatus,
    /// The trust roots.
    pub roots: RootsStatus,
    /// The local authority, when there is one that may sign.
    pub authority: Option<AuthoritiesStatus>,
    /// Why the local authority that is there may not sign.
    pub authority_problem: Option<String>,
    /// TLS policy in force.
    pub tls_policy: crate::config::TlsPolicy,
    /// Intercepted Agents that speak HTTPS.
    pub https: HttpsStatus,
    /// Client connections at this moment.
    pub connections: u64,
    /// Per product, only those that were used.
    pub products: Vec<ProductStatus>,
    /// How often which TLS parameters were agreed on towards intakes.
    pub upstream_tls: Vec<UpstreamTlsStatus>,
    /// How sessions with intakes were made, and what else was seen of them.
    pub upstream_sessions: Vec<UpstreamSessionStatus>,
    /// How intakes are judged beyond the roots, and who we are for them.
    pub trust: TrustStatus,
    /// `upstream.proxy.url`
    pub outbound_proxy: Option<String>,
    /// What is known of names.
    #[serde(default)]
    pub dns: DnsStatus,
    /// Log lines of this worker that were dropped.
    #[serde(default)]
    pub log_lost: Lost,
}

/// What is known of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Those whose last good addresses are used because no name server tells newer ones.
    pub stale: Vec<Stale>,
}

/// Intercepted Agents that speak HTTPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpsStatus {
    /// What is done with them: `terminate`, `passthrough` or `refuse`.
    pub handling: String,
    /// Their TLS sessions by what was agreed on.
    pub sessions: Vec<ClientTlsStatus>,
    /// Clients that do not trust the local authority.
    pub distrusting: Vec<DistrustStatus>,
}

/// TLS sessions of Agents with the same parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTlsStatus {
    /// What they agreed on.
    #[serde(flatten)]
    pub tls: ClientTls,
    /// How many.
    pub sessions: u64,
}

/// Sessions with the same facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamSessionStatus {
    /// The outbound proxy that they went through, `host:port`; absent when they went without.
    pub proxy: Option<String>,
    /// The pin that their path holds; absent without pins.
    pub pin: Option<String>,
    /// True when our client certificate was presented.
    pub client_certificate: bool,
    /// How many.
    pub sessions: u64,
}
