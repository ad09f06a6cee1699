//! What is told of the running proxy: one model, shown by `status`, by the status page and by whatever comes after them.
//!
//! The master knows listeners, interception and self-tests ([`MasterStatus`]); the worker knows the rest ([`Facts::worker`]).
//! [`warnings`] says what of it somebody should do something about.

mod product;
mod warnings;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

pub use product::{
    Health, History, LastFailure, ProductState, ProductStatus, Recent, UpstreamError, UpstreamStatus,
    UpstreamTlsStatus,
};
pub use warnings::{Warning, warnings};

use crate::config::Config;
use crate::observe::logging;
use crate::observe::metrics::Metrics;
use crate::relay::upstream::resolve::Resolver;
use crate::supervise::protocol::{DnsStatus, HttpsStatus, MasterStatus, WorkerStatus};
use crate::supervise::sandbox::Sandbox;
use crate::tls::{self, RootsStatus};

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// When.
    pub at: SystemTime,
    /// The site that is served.
    pub site: String,
    /// What the master said last, a second ago at most while it lives.
    pub master: MasterStatus,
    /// What the worker knows.
    pub worker: WorkerStatus,
    /// What somebody should do something about, the gravest first.
    pub warnings: Vec<Warning>,
}

/// Where a worker's part of the model comes from.
#[derive(Debug)]
pub struct Facts {
    /// What it was told to do.
    pub config: Arc<Config>,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// What is known of names.
    pub resolver: Arc<Resolver>,
    /// What the kernel refuses it.
    pub sandbox: Sandbox,
    /// The trust roots.
    pub roots: RootsStatus,
    /// Ends the TLS sessions of Agents; there when a local authority is.
    pub server: Option<tls::Server>,
    /// Why the authority that is there may not sign.
    pub authority_problem: Option<String>,
    /// What is done with intercepted Agents that speak HTTPS.
    pub https: &'static str,
    /// When it became ready.
    pub started: Instant,
}

impl Facts {
    /// What the worker knows now.
    pub fn worker(&self) -> WorkerStatus {
        WorkerStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            sandbox: self.sandbox.clone(),
            module: self.metrics.module().clone(),
            roots: self.roots.clone(),
            authority: self.server.as_ref().map(tls::Server::authorities),
            authority_problem: self.authority_problem.clone(),
            tls_policy: self.config.upstream.tls_policy,
            https: HttpsStatus {
                handling: self.https.to_owned(),
                sessions: self.metrics.client_tls(),
                distrusting: self.metrics.distrusting(),
            },
            connections: self.metrics.connections(),
            products: self.products(),
            upstream_tls: self.metrics.upstream_tls(),
            upstream_sessions: self.metrics.upstream_sessions(),
            trust: self.metrics.trust(),
            outbound_proxy: self.config.upstream.proxy.url.as_ref().map(ToString::to_string),
            dns: DnsStatus {
                stale: self.resolver.stale(),
            },
            log_lost: logging::lost(),
        }
    }

    /// Everything now.
    pub fn view(&self) -> View {
        let (master, worker) = (self.metrics.master(), self.worker());
        View {
            at: SystemTime::now(),
            site: self.config.site.to_string(),
            warnings: warnings(&master, Some(&worker)),
            master,
            worker,
        }
    }

    fn products(&self) -> Vec<ProductStatus> {
        let mut products = self.metrics.products();
        for upstream in products.iter_mut().flat_map(|product| &mut product.upstream) {
            upstream.dns = self.resolver.known(&upstream.host);
        }
        products
    }
}
