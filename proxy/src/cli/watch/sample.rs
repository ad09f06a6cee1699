//! One look at the proxy, and what happened a second since the look before.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

use crate::cli::status::Report;

/// One look.
pub(super) struct Sample {
    pub(super) report: Report,
    pub(super) at: Instant,
    /// By product; empty after the first look, and after one of another worker, whose counts begin anew.
    pub(super) rates: BTreeMap<String, Rates>,
}

/// What happened a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Requests that were answered by the intake.
    pub(super) ok: f64,
    /// All others.
    pub(super) failed: f64,
    /// Body bytes from Agents.
    pub(super) up: f64,
    /// Body bytes to Agents.
    pub(super) down: f64,
}

impl Sample {
    /// Reads an answer; `before` is the look before.
    ///
    /// # Errors
    /// The running proxy answers in another way than this program knows.
    pub(super) fn new(body: Value, at: Instant, before: Option<&Self>) -> Result<Self, String> {
        let report: Report = serde_json::from_value(body).map_err(|error| other_version(&error))?;
        let pid = |report: &Report| report.worker.as_ref().map(|worker| worker.pid);
        let rates = match before {
            Some(before) if pid(&before.report).is_some() && pid(&before.report) == pid(&report) => {
                rates(&before.report, &report, (at - before.at).as_secs_f64())
            }
            _ => BTreeMap::new(),
        };
        Ok(Self { report, at, rates })
    }
}

/// What is said when an answer cannot be read.
pub(super) fn other_version(error: &serde_json::Error) -> String {
    format!("the running proxy is of another version and answers differently: {error}")
}

fn rates(before: &Report, now: &Report, seconds: f64) -> BTreeMap<String, Rates> {
    let known: BTreeMap<&str, _> = before
        .products
        .iter()
        .map(|product| (product.name.as_str(), product))
        .collect();
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate that is shown with three digits"
    )]
    let per_second = |now: u64, before: u64| match seconds > 0.0 {
        true => now.saturating_sub(before) as f64 / seconds,
        false => 0.0,
    };
    let products = now.products.iter().map(|product| {
        let before = known.get(product.name.as_str());
        let count = |of: fn(&crate::observe::view::ProductStatus) -> u64| {
            per_second(of(product), before.map_or(0, |before| of(before)))
        };
        let rates = Rates {
            ok: count(|product| product.ok()),
            failed: count(|product| product.failed()),
            up: count(|product| product.bytes_up),
            down: count(|product| product.bytes_down),
        };
        (product.name.clone(), rates)
    });
    products.collect()
}
