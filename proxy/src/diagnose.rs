//! `diagnose`: the way to every intake as the proxy itself goes it, and what to do where it ends. [`targets`] says what is looked at,
//! `relay::upstream::look` looks, [`advice`] judges.

pub mod advice;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use http::Method;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::catalog::{Catalog, Product, Protocol, TABLE};
use crate::config::{Config, HttpsPolicy};
use crate::observe::metrics::Metrics;
use crate::relay::network::{MakingSocket, NetworkId, Sockets, gone};
use crate::relay::upstream::look::{Look, Question, look};
use crate::relay::upstream::outbound::Outbound;
use crate::relay::upstream::resolve::{Resolver, Sources};
use crate::relay::{self, HttpsHandling, Shared, Slots};
use crate::secret::Secrets;
use crate::supervise::protocol::MasterStatus;
use crate::tls;
use crate::tls::ModuleStatus;
use advice::{Expectation, Step};

/// Names that are looked at together: their answers are waited for, not computed.
const AT_ONCE: usize = 8;

/// The products of Datadog's guide "AWS PrivateLink". Its names are ten; the eleventh is the Agent's own name for metrics
/// (`<version>-app.agent.<site>`), an alias of `metrics.agent.<site>`.
const PRIVATE_LINK: [Product; 10] = [
    Product::Logs,
    Product::UserLogs,
    Product::Api,
    Product::Metrics,
    Product::Orchestrator,
    Product::Processes,
    Product::Profiles,
    Product::Traces,
    Product::DbmMetrics,
    Product::RemoteConfiguration,
];

/// What is wanted beyond the configuration.
#[derive(Default)]
pub struct Options {
    /// Only these; empty: all.
    pub products: Vec<Product>,
    /// Private addresses are expected for the names of PrivateLink.
    pub private_link: bool,
    /// `7.81.0`: whose name for metrics is looked at.
    pub agent_version: String,
    /// Sent to key validation, and nowhere else.
    pub key: Option<Arc<Zeroizing<String>>>,
    /// For the resolver and for an answer.
    pub limit: Duration,
}

/// One name to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The product.
    pub product: Product,
    /// The intake's name.
    pub name: String,
    /// Not every site has it, and few Agents want it: that it does not exist is no failure.
    pub optional: bool,
    /// It is one of PrivateLink's.
    pub private_link: bool,
}

/// What was found about one name.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The product.
    pub product: Product,
    /// The intake's name: in SNI and Host, and what the certificate is verified for.
    pub name: String,
    /// The worst of its steps.
    pub level: advice::Level,
    /// The steps, judged.
    pub steps: Vec<Step>,
    /// What was seen.
    pub look: Look,
}

/// The names to look at: of each product that speaks HTTP its first, and with metrics the Agent's own.
pub fn targets(config: &Config, options: &Options) -> Vec<Target> {
    let catalog = Catalog::new(&config.site);
    let asked = |product| options.products.is_empty() || options.products.contains(&product);
    let mut targets = Vec::new();
    let rows = TABLE.iter().filter(|row| row.protocol == Protocol::Http);
    for row in rows.filter(|row| asked(row.product)) {
        let private_link = PRIVATE_LINK.contains(&row.product);
        // No Agent uses the port of application security.
        let usual = private_link || (row.offset.is_some() && row.product != Product::Appsec);
        targets.push(Target {
            product: row.product,
            name: catalog.host(row.product),
            optional: !usual && options.products.is_empty(),
            private_link,
        });
        if row.product == Product::Metrics {
            let version = options.agent_version.replace('.', "-");
            targets.push(Target {
                product: row.product,
                name: format!("{version}-app.agent.{}", config.site),
                // Another version may be the one that is installed.
                optional: true,
                private_link,
            });
        }
    }
    targets
}

/// Why nothing can be looked at.
pub type Problem = (crate::cli::Exit, String);

/// Looks at all of them, some at a time; `done` is told each name when it is finished.
///
/// # Errors
/// The module or the configuration of TLS cannot be used.
pub fn run(
    config: Config,
    options: &Options,
    done: impl Fn(&str),
) -> Result<(ModuleStatus, Vec<Finding>), Problem> {
    use crate::cli::Exit;
    let module = tls::module::start().map_err(|error| (Exit::Internal, error.to_string()))?;
    let module = module.with_policy(config.upstream.tls_policy);
    let secrets = Secrets::default();
    let client = tls::Client::with_secrets(&config.upstream, &secrets)
        .map_err(|error| (Exit::Config, error.to_string()))?;
    let outbound =
        Outbound::new(&config.upstream, &secrets).map_err(|error| (Exit::Config, error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| (Exit::Internal, error.to_string()))?;
    let metrics = Metrics::new(module.clone(), MasterStatus::default(), 1, false);
    let wanted = targets(&config, options);
    let config = Arc::new(config);
    let shared = Shared {
        catalog: Arc::new(Catalog::new(&config.site)),
        tls: client,
        outbound: outbound.map(Arc::new),
        resolver: Arc::new(Resolver::new(Sources::default(), runtime.handle().clone())),
        recorder: Arc::new(metrics),
        door: None,
        slots: Arc::new(Slots::new(&config.limits)),
        origin: Arc::new(relay::kernel_original_dst),
        peer: Arc::new(relay::kernel_peer),
        sockets: Arc::new(HostOnly),
        https: match config.intercept.https {
            HttpsPolicy::Refuse => HttpsHandling::Refuse,
            _ => HttpsHandling::Passthrough,
        },
        config,
    };
    let findings = tokio::task::LocalSet::new().block_on(&runtime, async {
        let looks = wanted.into_iter().enumerate().map(|(at, target)| {
            let (shared, done) = (&shared, &done);
            async move {
                let finding = find(shared, options, target).await;
                done(&finding.name);
                (at, finding)
            }
        });
        let mut findings: Vec<(usize, Finding)> =
            stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        findings.sort_by_key(|(at, _)| *at);
        findings.into_iter().map(|(_, finding)| finding).collect()
    });
    // Nobody waits for a question to a name server that nobody answers.
    runtime.shutdown_background();
    Ok((module, findings))
}

async fn find(shared: &Shared, options: &Options, target: Target) -> Finding {
    // Sources: the Agent's `pkg/diagnose/connectivity` (`core_endpoint.go`, `inventoryendpoint.go`).
    let (method, path) = match target.product {
        Product::Traces | Product::RemoteConfiguration => (Method::GET, "/_health"),
        Product::Api => (Method::GET, "/api/v1/validate"),
        Product::Flare => (Method::HEAD, "/support/flare"),
        _ => (Method::GET, "/probe"),
    };
    let key = options.key.clone().filter(|_| target.product == Product::Api);
    let with_key = key.is_some();
    let question = Question {
        product: target.product,
        name: target.name.clone(),
        method,
        path,
        key,
        limit: options.limit,
    };
    let look = look(shared, &question).await;
    let steps = advice::judge(&advice::Case {
        look: &look,
        config: &shared.config,
        target: &target,
        expectation: Expectation::of(&shared.config, &target, options.private_link),
        request: format!("{} {path}", question.method),
        with_key,
    });
    Finding {
        product: target.product,
        name: target.name,
        level: steps
            .iter()
            .map(|step| step.level)
            .max()
            .unwrap_or(advice::Level::Ok),
        steps,
        look,
    }
}

/// This process has no Agent pods.
struct HostOnly;

impl Sockets for HostOnly {
    fn socket(&self, network: NetworkId, _: bool) -> MakingSocket<'_> {
        Box::pin(async move { Err(gone(network)) })
    }
}
