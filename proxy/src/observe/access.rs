//! One line per request in the access log, and one warning per failure, rate-limited, whether or not that log is on.
//!
//! The data thread only copies what a line needs; the thread that writes the log makes the line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::catalog::Product;
use crate::observe::logging::{self, ACCESS};
use crate::relay::outcome::{ConnectionRecord, Outcome, RequestRecord, Via};
use crate::tls::Negotiated;

/// Failures of one kind that are logged within [`WINDOW`]; the rest are counted and told with the next.
const BURST: u32 = 5;
/// How long a kind of failure stays quiet after [`BURST`] lines.
const WINDOW: Duration = Duration::from_secs(10);

/// Writes records to the log.
#[derive(Default)]
pub struct AccessLog {
    enabled: bool,
    limits: Mutex<HashMap<(&'static str, Outcome), Limit>>,
}

struct Limit {
    since: Instant,
    written: u32,
    suppressed: u64,
}

impl AccessLog {
    /// `enabled` is `log.access`; failures are told in either case.
    pub fn new(enabled: bool) -> Self {
        Self {
            enabled,
            limits: Mutex::default(),
        }
    }

    /// Whether requests have lines of their own.
    pub fn is_enabled(&self) -> bool {
        self.enabled && tracing::enabled!(target: ACCESS, Level::INFO)
    }

    /// One request. Nothing is allocated, locked or formatted here when the log is off and the request went well.
    pub fn request(&self, r: &RequestRecord) {
        if self.is_enabled() {
            let line = RequestLine::from(r);
            logging::later(line.size(), move || line.tell());
        }
        if r.outcome.is_failure() {
            let product = r.product.map_or("-", |p| p.name());
            if let Some(suppressed) = self.allow(product, r.outcome) {
                tracing::warn!(
                    product,
                    via = r.via.label(),
                    upstream = r.upstream_name.as_deref(),
                    address = r.upstream_addr.map(tracing::field::display),
                    status = r.status,
                    outcome = r.outcome.label(),
                    suppressed,
                    error = r.error.as_deref(),
                    "request failed"
                );
            }
        }
    }

    /// One connection. Its requests have their own lines, so only what was not terminated is told.
    pub fn connection(&self, c: &ConnectionRecord) {
        if self.enabled && c.decision != "terminate" && tracing::enabled!(target: ACCESS, Level::INFO) {
            let line = ConnectionLine(c.clone());
            logging::later(line.size(), move || line.tell());
        }
        if c.outcome.is_failure()
            && c.error.is_some()
            && let Some(suppressed) = self.allow(c.decision, c.outcome)
        {
            tracing::warn!(
                via = c.via.label(),
                original_dst = c.original_dst.map(tracing::field::display),
                decision = c.decision,
                name = c.name.as_deref(),
                process = c.process.as_ref().map(tracing::field::display),
                outcome = c.outcome.label(),
                suppressed,
                error = c.error.as_deref(),
                "connection failed"
            );
        }
    }

    /// `Some(how many were kept back since the last)` when a line may be written.
    fn allow(&self, kind: &'static str, outcome: Outcome) -> Option<u64> {
        let now = Instant::now();
        let mut limits = self
            .limits
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let limit = limits.entry((kind, outcome)).or_insert(Limit {
            since: now,
            written: 0,
            suppressed: 0,
        });
        if now.duration_since(limit.since) >= WINDOW {
            limit.since = now;
            limit.written = 0;
        }
        if limit.written < BURST {
            limit.written += 1;
            return Some(std::mem::take(&mut limit.suppressed));
        }
        limit.suppressed += 1;
        None
    }
}

/// What a line of the access log is made of, on the thread that writes it.
struct RequestLine {
    product: Option<Product>,
    via: Via,
    client: SocketAddr,
    original_dst: Option<SocketAddr>,
    method: http::Method,
    path: Box<str>,
    upstream_name: Option<Box<str>>,
    upstream_addr: Option<SocketAddr>,
    tls: Option<Arc<Negotiated>>,
    http: &'static str,
    upstream_http: Option<&'static str>,
    status: u16,
    outcome: Outcome,
    bytes_up: u64,
    bytes_down: u64,
    duration: Duration,
    retries: u32,
    error: Option<Box<str>>,
}

impl From<&RequestRecord> for RequestLine {
    fn from(r: &RequestRecord) -> Self {
        Self {
            product: r.product,
            via: r.via,
            client: r.client,
            original_dst: r.original_dst,
            method: r.method.clone(),
            path: r.path[..].into(),
            upstream_name: r.upstream_name.as_deref().map(Into::into),
            upstream_addr: r.upstream_addr,
            tls: r.tls.clone(),
            http: r.http,
            upstream_http: r.upstream_http,
            status: r.status,
            outcome: r.outcome,
            bytes_up: r.bytes_up,
            bytes_down: r.bytes_down,
            duration: r.duration,
            retries: r.retries,
            error: r.error.as_deref().map(Into::into),
        }
    }
}

impl RequestLine {
    /// In memory, in bytes. What TLS agreed on is the connection's, and shared.
    fn size(&self) -> usize {
        let length = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        size_of::<Self>() + self.path.len() + length(&self.upstream_name) + length(&self.error)
    }

    fn tell(&self) {
        let tls = self.tls.as_deref();
        tracing::info!(
            target: ACCESS,
            product = self.product.map_or("-", |p| p.name()),
            via = self.via.label(),
            client = %self.client,
            original_dst = self.original_dst.map(tracing::field::display),
            method = self.method.as_str(),
            path = &*self.path,
            upstream_name = self.upstream_name.as_deref(),
            upstream_addr = self.upstream_addr.map(tracing::field::display),
            tls_version = tls.map(|t| t.version.as_str()),
            tls_suite = tls.map(|t| t.suite.as_str()),
            tls_group = tls.and_then(|t| t.group.as_deref()),
            tls_pin = tls.and_then(|t| t.pin.as_deref()),
            tls_client_certificate = tls.map(|t| t.client_certificate),
            upstream_proxy = tls.and_then(|t| t.proxy.as_deref()),
            http = self.http,
            upstream_http = self.upstream_http,
            status = self.status,
            outcome = self.outcome.label(),
            bytes_up = self.bytes_up,
            bytes_down = self.bytes_down,
            duration_us = micros(self.duration),
            retries = self.retries,
            error = self.error.as_deref(),
            "request"
        );
    }
}

struct ConnectionLine(ConnectionRecord);

impl ConnectionLine {
    /// In memory, in bytes: see [`RequestLine::size`].
    fn size(&self) -> usize {
        let Self(c) = self;
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        // Names of versions, suites and processes are short.
        size_of::<Self>() + length(&c.name) + length(&c.error) + 128
    }

    fn tell(&self) {
        let Self(c) = self;
        tracing::info!(
            target: ACCESS,
            via = c.via.label(),
            client = %c.client,
            original_dst = c.original_dst.map(tracing::field::display),
            class = c.class,
            decision = c.decision,
            name = c.name.as_deref(),
            process = c.process.as_ref().and_then(|p| p.name.as_deref()),
            pid = c.process.as_ref().map(|p| p.pid),
            tls_version = c.tls.as_ref().map(|t| t.version.as_str()),
            tls_suite = c.tls.as_ref().map(|t| t.suite.as_str()),
            tls_group = c.tls.as_ref().and_then(|t| t.group.as_deref()),
            below_policy = c.tls.as_ref().and_then(|t| t.below.as_deref()),
            outcome = c.outcome.label(),
            bytes_up = c.bytes_up,
            bytes_down = c.bytes_down,
            duration_us = micros(c.duration),
            error = c.error.as_deref(),
            "connection"
        );
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_failure_is_told_a_few_times_and_counted() {
        let log = AccessLog::new(false);
        let told = (0..100)
            .filter(|_| log.allow("logs", Outcome::UpstreamTls).is_some())
            .count();
        assert_eq!(told, 5);
        assert!(
            log.allow("logs", Outcome::UpstreamConnect).is_some(),
            "another failure is told"
        );
        assert!(
            log.allow("traces", Outcome::UpstreamTls).is_some(),
            "another product is told"
        );
        let mut limits = log.limits.lock().unwrap();
        let limit = limits.get_mut(&("logs", Outcome::UpstreamTls)).unwrap();
        limit.since = Instant::now().checked_sub(WINDOW).unwrap();
        drop(limits);
        assert_eq!(log.allow("logs", Outcome::UpstreamTls), Some(95));
    }
}
