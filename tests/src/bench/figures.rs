//! The arithmetic: medians with their spread, and ratios that are made round by round before a median is taken, so that what drifts
//! on the machine drifts for both sides.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::histogram::Histogram;

/// What one peer did in one window of one workload.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// `W1`
    pub workload: String,
    /// `haproxy`
    pub peer: String,
    /// From 0.
    pub round: usize,
    /// From the word "go" to the last response, in nanoseconds.
    pub elapsed_ns: u64,
    /// Requests that were answered as they should be.
    pub requests: u64,
    /// Bytes of each request's body.
    pub body: u64,
    /// Failures by kind, of the load generator and of the backend.
    pub errors: BTreeMap<String, u64>,
    /// Time of a request in nanoseconds; in W5 from the moment at which it should have begun.
    pub p50_ns: u64,
    /// See [`Self::p50_ns`].
    pub p99_ns: u64,
    /// See [`Self::p50_ns`].
    pub p999_ns: u64,
    /// CPU time of the peer's processes, kernel included; none for `direct`.
    pub cpu_ns: Option<u64>,
    /// Share of it in user mode, by the kernel's own split of the same time.
    pub user: Option<f64>,
    /// CPU time of the load generator.
    pub client_ns: u64,
    /// CPU time of the backend.
    pub backend_ns: u64,
    /// CPUs that processes outside the benchmark kept busy, on average (1.0: one whole CPU).
    pub others: f64,
    /// CPUs that the hypervisor took away, on average.
    pub steal: f64,
    /// Connections that the backend accepted meanwhile.
    pub upstream: u64,
    /// Of them by a full handshake, and by a resumed one.
    pub handshakes: (u64, u64),
    /// Cipher suites of the connections that the backend accepted in this round, warm-up included; comma-separated.
    pub suites: String,
}

/// A figure of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Microseconds of CPU for a request.
    Cpu,
    /// The same with the client's.
    CpuWithClient,
    /// Requests a second.
    Rate,
    /// Microseconds.
    P50,
    /// Microseconds.
    P99,
    /// Microseconds.
    P999,
}

impl Round {
    /// One figure; nothing where there is none: no request, or no process to look at.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts and nanoseconds of seconds are far below 2^53"
    )]
    pub fn figure(&self, figure: Figure) -> Option<f64> {
        if self.requests == 0 || self.elapsed_ns == 0 {
            return None;
        }
        let requests = self.requests as f64;
        let per_request = |ns: u64| ns as f64 / 1000.0 / requests;
        Some(match figure {
            Figure::Cpu => per_request(self.cpu_ns?),
            Figure::CpuWithClient => per_request(self.cpu_ns? + self.client_ns),
            Figure::Rate => requests * 1e9 / self.elapsed_ns as f64,
            Figure::P50 => self.p50_ns as f64 / 1000.0,
            Figure::P99 => self.p99_ns as f64 / 1000.0,
            Figure::P999 => self.p999_ns as f64 / 1000.0,
        })
    }

    /// How many requests failed.
    pub fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Every raw figure.
    pub fn json(&self) -> Value {
        json!({
            "workload": self.workload, "peer": self.peer, "round": self.round, "elapsed_ns": self.elapsed_ns,
            "requests": self.requests, "body": self.body, "errors": self.errors,
            "p50_ns": self.p50_ns, "p99_ns": self.p99_ns, "p999_ns": self.p999_ns,
            "cpu_ns": self.cpu_ns, "user_share": self.user, "client_cpu_ns": self.client_ns, "backend_cpu_ns": self.backend_ns,
            "other_cpus": self.others, "stolen_cpus": self.steal, "upstream_connections": self.upstream,
            "handshakes_full": self.handshakes.0, "handshakes_resumed": self.handshakes.1, "suites": self.suites,
        })
    }
}

/// The quantiles of a load generator's report.
pub fn quantiles(times: &Histogram) -> Value {
    let at = |per_mille| times.quantile(per_mille).unwrap_or(0);
    json!({"p50_ns": at(500), "p99_ns": at(990), "p999_ns": at(999), "max_ns": times.largest()})
}

/// A median with the quartiles of the values that it was taken from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; the mean of the two middle ones when their number is even.
    pub median: f64,
    /// The value that a quarter lie at or below; of four or fewer the lowest.
    pub low: f64,
    /// The value that a quarter lie at or above; of four or fewer the highest.
    pub high: f64,
}

impl Spread {
    /// Of these values; nothing when there is none, or one that is no number.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quarter = sorted.len().checked_sub(1)? / 4;
        let (low, high) = (sorted[quarter], sorted[sorted.len() - 1 - quarter]);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        Some(Self { median, low, high })
    }
}

/// The rounds of a peer in a workload.
pub fn rounds<'a>(all: &'a [Round], workload: &str, peer: &str) -> Vec<&'a Round> {
    all.iter()
        .filter(|round| round.workload == workload && round.peer == peer)
        .collect()
}

/// A figure over the rounds; nothing when a round lacks it.
pub fn spread(all: &[Round], workload: &str, peer: &str, figure: Figure) -> Option<Spread> {
    let values: Option<Vec<f64>> = rounds(all, workload, peer)
        .iter()
        .map(|round| round.figure(figure))
        .collect();
    Spread::of(&values?)
}

/// A peer's figure over a reference's: the ratios of the same round. Nothing when either lacks a round that the other has.
pub fn ratio(all: &[Round], workload: &str, peer: &str, reference: &str, figure: Figure) -> Option<Spread> {
    let (mine, theirs) = (rounds(all, workload, peer), rounds(all, workload, reference));
    if mine.len() != theirs.len() {
        return None;
    }
    let ratios: Option<Vec<f64>> = mine
        .iter()
        .map(|round| {
            let other = theirs.iter().find(|other| other.round == round.round)?;
            Some(round.figure(figure)? / other.figure(figure)?)
        })
        .collect();
    Spread::of(&ratios?)
}
