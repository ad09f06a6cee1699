//! What master and worker say to each other, and what `status` shows. JSON, one message a line after the set-up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::Product;
use crate::config::Config;
use crate::intercept::InterceptStatus;
use crate::tls::{ModuleStatus, RootsStatus};

/// The first message to a worker. Its listeners follow as descriptors, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// What to do.
    pub config: Config,
    /// What each descriptor is.
    pub listeners: Vec<Passed>,
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
    Intercept,
}

impl Purpose {
    /// The name in messages and status: `status`, the product's name, or `intercept`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Explicit(product) => product.name(),
            Self::Intercept => "intercept",
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
    /// Every second: the worker's event loop turns.
    Alive,
    /// Addresses of intake names, each with the time it may be kept.
    Addresses(Vec<(IpAddr, Duration)>),
    /// Every intake name was asked for once: what can be selected by address now is.
    AddressesAsked,
    /// The answer to [`ToWorker::Status`].
    Status(Box<WorkerStatus>),
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
    /// Workers that died or were replaced since start.
    pub worker_restarts: u64,
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
        let interception = &self.interception;
        if interception.enabled && interception.requested {
            let why = match (&interception.kernel, interception.attached) {
                (_, false) => interception.detail.as_deref().or(Some("not attached yet")),
                _ if !interception.addresses_asked => {
                    Some("the addresses of the intake names are being asked for")
                }
                (Some(kernel), true) if kernel.destinations == 0 => Some(
                    "no intake name resolves, so nothing is selected: check the host's resolver, or set intercept.cidrs",
                ),
                _ => None,
            };
            reasons.extend(why.map(|why| format!("interception: {why}")));
        }
        reasons
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
    /// The kernel side, when it is loaded.
    #[serde(flatten)]
    pub kernel: Option<InterceptStatus>,
}

/// What only the worker knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Process id.
    pub pid: u32,
    /// Seconds since it became ready.
    pub uptime_seconds: u64,
    /// The crypto module that every byte to the intake passes.
    pub module: ModuleStatus,
    /// The trust roots.
    pub roots: RootsStatus,
    /// TLS policy in force.
    pub tls_policy: crate::config::TlsPolicy,
    /// Client connections at this moment.
    pub connections: u64,
    /// Per product, only those that were used.
    pub products: Vec<ProductStatus>,
    /// How often which TLS parameters were agreed on towards intakes.
    pub upstream_tls: Vec<UpstreamTlsStatus>,
}

/// One product's figures since the worker started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductStatus {
    /// The product's name.
    pub name: String,
    /// Requests by outcome.
    pub requests: BTreeMap<String, u64>,
    /// Body bytes from Agents.
    pub bytes_up: u64,
    /// Body bytes to Agents.
    pub bytes_down: u64,
}

/// Handshakes with the same parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamTlsStatus {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: String,
    /// IANA suite name.
    pub suite: String,
    /// Key exchange group.
    pub group: String,
    /// How many handshakes.
    pub handshakes: u64,
}
