//! What is counted. Recording a request is a handful of relaxed atomic additions: every combination of labels has its
//! place in an array, found by index; names are put to them when somebody reads.

mod authority;
mod client_tls;
mod history;
mod kernel;
mod lost;
mod requests;
mod shards;
mod trust;
mod upstreams;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::catalog::{Product, TABLE};
use crate::observe::access::AccessLog;
use crate::observe::logging;
use crate::observe::view::UpstreamTlsStatus;
use crate::relay::outcome::{
    ClientTls, ConnectionRecord, DECISIONS, Outcome, RequestRecord, Said, TlsClient, Via,
};
use crate::relay::{Recorder, UpstreamPlace};
use crate::supervise::protocol::MasterStatus;
use crate::tls::ca::AuthoritiesStatus;
use crate::tls::{ModuleStatus, Negotiated, TrustStatus};
use client_tls::ClientTlsCounters;
use history::Samples;
use shards::{At, Shards};
use upstreams::{Parameters, Upstreams, parameters};

pub use shards::count_as;

/// Upper bounds of the latency buckets, in seconds: from a request answered on the same host to the longest response
/// time-out that makes sense.
const BUCKETS: [f64; 13] = [
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    5.0,
    30.0,
    f64::INFINITY,
];
/// Status classes: none sent, 1xx to 5xx.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const VIAS: [Via; 3] = [Via::Explicit, Via::Cgroup, Via::Tc];
/// One row a product, and one for names that belong to none.
const PRODUCTS: usize = TABLE.len() + 1;
const OUTCOMES: usize = Outcome::ALL.len();

/// The content type of [`Metrics::render`] (OpenMetrics 1.0; Prometheus reads it since 2.5).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All figures of one worker.
pub struct Metrics {
    counters: Arc<Counters>,
    registry: Registry,
    access: AccessLog,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Outbound proxy, pin, and whether our client certificate was presented.
type SessionFacts = (Option<String>, Option<String>, bool);

#[derive(Debug)]
struct Counters {
    shards: Shards,
    samples: Samples,
    upstreams: Upstreams,
    handshakes: Mutex<BTreeMap<Parameters, u64>>,
    sessions: Mutex<BTreeMap<SessionFacts, u64>>,
    trust: RwLock<TrustStatus>,
    module: ModuleStatus,
    master: RwLock<MasterStatus>,
    authority: RwLock<Option<AuthoritiesStatus>>,
    client_tls: ClientTlsCounters,
}

impl Metrics {
    /// No figure yet. `threads` is the number of data threads, `access` is `log.access`.
    pub fn new(module: ModuleStatus, master: MasterStatus, threads: usize, access: bool) -> Self {
        let counters = Arc::new(Counters {
            shards: Shards::new(threads),
            samples: Samples::new(),
            upstreams: Upstreams::new(),
            handshakes: Mutex::default(),
            sessions: Mutex::default(),
            trust: RwLock::default(),
            module,
            master: RwLock::new(master),
            authority: RwLock::default(),
            client_tls: ClientTlsCounters::default(),
        });
        let mut registry = Registry::with_prefix("agent_fips_proxy");
        registry.register_collector(Box::new(Arc::clone(&counters)));
        Self {
            counters,
            registry,
            access: AccessLog::new(access),
        }
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        // Writing into a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// What the master said last.
    pub fn master(&self) -> MasterStatus {
        self.counters
            .master
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The master's state changed.
    pub fn set_master(&self, status: MasterStatus) {
        *self
            .counters
            .master
            .write()
            .unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// The local authority, once it was loaded.
    pub fn set_authority(&self, status: Option<AuthoritiesStatus>) {
        *self
            .counters
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// See [`Metrics::set_authority`].
    pub fn authority(&self) -> Option<AuthoritiesStatus> {
        self.counters
            .authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The module whose tests this worker passed.
    pub fn module(&self) -> &ModuleStatus {
        &self.counters.module
    }

    /// Client connections open now.
    pub fn connections(&self) -> u64 {
        let sum = |side: fn(usize) -> At| {
            (0..VIAS.len())
                .map(|via| self.counters.shards.sum(side(via)))
                .sum::<u64>()
        };
        // Closed first: an opening in between must not make the difference negative.
        let closed = sum(At::closed);
        sum(At::opened).saturating_sub(closed)
    }

    /// Handshakes towards intakes by what they agreed on.
    pub fn upstream_tls(&self) -> Vec<UpstreamTlsStatus> {
        let handshakes = self
            .counters
            .handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        handshakes
            .iter()
            .map(|((version, suite, group), handshakes)| UpstreamTlsStatus {
                version: version.clone(),
                suite: suite.clone(),
                group: group.clone(),
                handshakes: *handshakes,
            })
            .collect()
    }
}

impl Recorder for Metrics {
    fn request(&self, r: &RequestRecord) {
        if r.is_self_test() {
            return;
        }
        let mine = self.counters.shards.mine();
        let product = product_index(r.product);
        let class = usize::from(r.status / 100).min(CLASSES.len() - 1);
        mine.add(
            At::request(product, via_index(r.via), outcome_index(r.outcome), class),
            1,
        );
        mine.add(At::bytes_up(product), r.bytes_up);
        mine.add(At::bytes_down(product), r.bytes_down);
        mine.add(At::micros(product), micros(r.duration));
        let seconds = r.duration.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            mine.add(At::bucket(product, bucket), 1);
        }
        if r.retries > 0 {
            mine.add(At::retries(), u64::from(r.retries));
        }
        if r.outcome.is_failure() {
            self.counters.upstreams.request_failed(r);
        }
        self.access.request(r);
    }

    fn wants_paths(&self) -> bool {
        self.access.is_enabled()
    }

    fn connection(&self, r: &ConnectionRecord) {
        let via = via_index(r.via);
        let decision = DECISIONS
            .iter()
            .position(|d| *d == r.decision)
            .unwrap_or(DECISIONS.len() - 1);
        let mine = self.counters.shards.mine();
        mine.add(At::connection(via, decision, outcome_index(r.outcome)), 1);
        mine.add(At::closed(via), 1);
        self.access.connection(r);
    }

    fn connection_opened(&self, via: Via) {
        self.counters.shards.mine().add(At::opened(via_index(via)), 1);
    }

    fn client_tls(&self, _client: &TlsClient, tls: &ClientTls) {
        self.counters.client_tls.made(tls);
    }

    fn client_tls_failed(&self, reason: &'static str) {
        self.counters.client_tls.failed(reason);
    }

    fn client_trusts(&self, client: &TlsClient) {
        self.counters.client_tls.trusts(client);
    }

    fn client_distrusts(&self, client: &TlsClient, said: &Said) {
        self.counters.client_tls.distrusts(client, said);
    }

    fn upstream_connected(&self, place: &UpstreamPlace<'_>, tls: &Negotiated) {
        self.counters.upstreams.connected(place, tls);
        let key = parameters(tls);
        *self
            .counters
            .handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(key)
            .or_insert(0) += 1;
        let key = (tls.proxy.clone(), tls.pin.clone(), tls.client_certificate);
        *self
            .counters
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(key)
            .or_insert(0) += 1;
    }

    fn upstream_failed(&self, place: &UpstreamPlace<'_>, why: &dyn Display, pause: Duration) {
        self.counters.upstreams.failed(place, why, pause);
    }
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let e = &mut encoder;
        self.encode_requests(e)?;
        self.encode_connections(e)?;
        self.client_tls.encode(e)?;
        self.encode_upstream(e)?;
        authority::encode(&self.authority, e)?;
        self.encode_trust(e)?;
        self.encode_master(e)
    }
}

type Encoded = Result<(), std::fmt::Error>;

impl Counters {
    fn encode_connections(&self, e: &mut DescriptorEncoder) -> Encoded {
        let mut family = e.encode_descriptor(
            "connections",
            "Client connections that ended, by what was done with them",
            None,
            MetricType::Counter,
        )?;
        for (via_at, via) in VIAS.iter().enumerate() {
            for (decision_at, decision) in DECISIONS.iter().enumerate() {
                for (outcome_at, outcome) in Outcome::ALL.iter().enumerate() {
                    let n = self.shards.sum(At::connection(via_at, decision_at, outcome_at));
                    if n > 0 {
                        let labels = [
                            ("via", via.label()),
                            ("decision", *decision),
                            ("outcome", outcome.label()),
                        ];
                        encode_counter(&mut family, &labels, n)?;
                    }
                }
            }
        }
        let mut family = e.encode_descriptor(
            "open_connections",
            "Client connections open now",
            None,
            MetricType::Gauge,
        )?;
        for (at, via) in VIAS.iter().enumerate() {
            let closed = self.shards.sum(At::closed(at));
            let open = self.shards.sum(At::opened(at)).saturating_sub(closed);
            encode_gauge(&mut family, &[("via", via.label())], open)?;
        }
        Ok(())
    }

    fn encode_upstream(&self, e: &mut DescriptorEncoder) -> Encoded {
        let mut family = e.encode_descriptor(
            "upstream_tls",
            "TLS handshakes towards intakes by what they agreed on",
            None,
            MetricType::Counter,
        )?;
        let handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        for ((version, suite, group), n) in handshakes.iter() {
            let labels = [
                ("version", version.as_str()),
                ("suite", suite.as_str()),
                ("group", group.as_str()),
            ];
            encode_counter(&mut family, &labels, *n)?;
        }
        let mut family =
            e.encode_descriptor("module", "The crypto module in use", None, MetricType::Gauge)?;
        let labels = [
            ("version", self.module.version.as_str()),
            (
                "certificate",
                self.module.certificate.as_deref().unwrap_or("none"),
            ),
        ];
        encode_gauge(&mut family, &labels, 1)?;
        let mut family = e.encode_descriptor("build", "This program", None, MetricType::Gauge)?;
        encode_gauge(&mut family, &[("version", env!("CARGO_PKG_VERSION"))], 1)
    }

    fn encode_master(&self, e: &mut DescriptorEncoder) -> Encoded {
        let master = self.master.read().unwrap_or_else(PoisonError::into_inner);
        let mut family = e.encode_descriptor(
            "listener_up",
            "1 when the listener is bound",
            None,
            MetricType::Gauge,
        )?;
        for listener in &master.listeners {
            let address = listener.address.to_string();
            encode_gauge(
                &mut family,
                &[("name", listener.name.as_str()), ("address", &address)],
                u64::from(listener.bound),
            )?;
        }
        let attached = u64::from(master.interception.attached);
        encode_lone_gauge(
            e,
            "interception_attached",
            "1 when the hooks are in place",
            attached,
        )?;
        let mut family = e.encode_descriptor(
            "self_test_passed",
            "1 when the last connection of our own by this way passed the live datapath",
            None,
            MetricType::Gauge,
        )?;
        for test in master.self_tests.iter().flatten() {
            encode_gauge(
                &mut family,
                &[("way", test.way.as_str())],
                u64::from(test.passed()),
            )?;
        }
        let mut family = e.encode_descriptor(
            "self_test_timestamp_seconds",
            "When the last connection of our own by this way was tried, in Unix time; 0: not yet",
            None,
            MetricType::Gauge,
        )?;
        for test in master.self_tests.iter().flatten() {
            encode_gauge(&mut family, &[("way", test.way.as_str())], test.at)?;
        }
        encode_lone_counter(
            e,
            "self_test_process_restarts",
            "Processes for connections of our own that ended or hung, and were replaced",
            master.prober_restarts,
        )?;
        encode_lone_counter(e, "worker_restarts", "Workers that died", master.worker_restarts)?;
        encode_lone_counter(
            e,
            "upgrades",
            "Upgrades in place since the start",
            master.upgrades,
        )?;
        lost::encode(logging::lost(), master.log_lost, e)?;
        match &master.interception.kernel {
            Some(kernel) => kernel::encode(kernel, e),
            None => Ok(()),
        }
    }
}

/// Says what type an absent set of exemplar labels has.
type NoLabels = [(&'static str, &'static str); 0];

fn encode_lone_counter(e: &mut DescriptorEncoder, name: &str, help: &str, n: u64) -> Encoded {
    ConstCounter::new(n).encode(e.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn encode_lone_gauge(e: &mut DescriptorEncoder, name: &str, help: &str, n: u64) -> Encoded {
    ConstGauge::new(n).encode(e.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn encode_counter<const N: usize>(family: &mut MetricEncoder, labels: &[(&str, &str); N], n: u64) -> Encoded {
    ConstCounter::new(n).encode(family.encode_family(labels)?)
}

fn encode_gauge<const N: usize>(family: &mut MetricEncoder, labels: &[(&str, &str); N], n: u64) -> Encoded {
    ConstGauge::new(n).encode(family.encode_family(labels)?)
}

/// The enum's own order is the index; [`Outcome::ALL`] and [`TABLE`] are held to it by a test.
fn outcome_index(outcome: Outcome) -> usize {
    outcome as usize
}

fn via_index(via: Via) -> usize {
    via as usize
}

fn product_index(product: Option<Product>) -> usize {
    product.map_or(TABLE.len(), |p| p as usize)
}

fn product_name(index: usize) -> &'static str {
    TABLE.get(index).map_or("-", |entry| entry.name)
}

fn product_title(index: usize) -> &'static str {
    TABLE
        .get(index)
        .map_or("Names of no product", |entry| entry.title)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
