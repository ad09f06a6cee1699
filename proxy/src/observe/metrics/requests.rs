//! Requests: by product, way in, outcome and status, with their bytes and times.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{
    BUCKETS, CLASSES, Counters, Encoded, Metrics, NoLabels, PRODUCTS, ProductCounters, VIAS, encode_counter,
    encode_lone_counter, product_name, request_index,
};
use crate::relay::outcome::Outcome;
use crate::supervise::protocol::ProductStatus;

impl Metrics {
    /// Products that were used.
    pub fn products(&self) -> Vec<ProductStatus> {
        let counters = &self.counters;
        (0..PRODUCTS)
            .filter_map(|product| {
                let mut requests = BTreeMap::new();
                for (outcome, label) in Outcome::ALL.iter().enumerate() {
                    let mut sum = 0;
                    for via in 0..VIAS.len() {
                        for class in 0..CLASSES.len() {
                            sum +=
                                counters.requests[request_index(product, via, outcome, class)].load(Relaxed);
                        }
                    }
                    if sum > 0 {
                        requests.insert(label.label().to_owned(), sum);
                    }
                }
                let row = &counters.products[product];
                (!requests.is_empty()).then(|| ProductStatus {
                    name: product_name(product).to_owned(),
                    requests,
                    bytes_up: row.bytes_up.load(Relaxed),
                    bytes_down: row.bytes_down.load(Relaxed),
                })
            })
            .collect()
    }
}

impl Counters {
    pub(super) fn encode_requests(&self, e: &mut DescriptorEncoder) -> Encoded {
        let mut family = e.encode_descriptor(
            "requests",
            "Requests by product, way in, outcome and class of the status sent",
            None,
            MetricType::Counter,
        )?;
        for product in 0..PRODUCTS {
            for (via_at, via) in VIAS.iter().enumerate() {
                for (outcome_at, outcome) in Outcome::ALL.iter().enumerate() {
                    for (class_at, class) in CLASSES.iter().enumerate() {
                        let n =
                            self.requests[request_index(product, via_at, outcome_at, class_at)].load(Relaxed);
                        if n > 0 {
                            let labels = [
                                ("product", product_name(product)),
                                ("via", via.label()),
                                ("outcome", outcome.label()),
                                ("status_class", class),
                            ];
                            encode_counter(&mut family, &labels, n)?;
                        }
                    }
                }
            }
        }
        let mut family = e.encode_descriptor("bytes", "Body bytes relayed", None, MetricType::Counter)?;
        for (product, row) in self.used_products() {
            for (direction, n) in [("up", &row.bytes_up), ("down", &row.bytes_down)] {
                encode_counter(
                    &mut family,
                    &[("direction", direction), ("product", product)],
                    n.load(Relaxed),
                )?;
            }
        }
        let mut family = e.encode_descriptor(
            "request_duration_seconds",
            "From the request head to the end of the response body",
            None,
            MetricType::Histogram,
        )?;
        for (product, row) in self.used_products() {
            let buckets: Vec<(f64, u64)> = BUCKETS
                .iter()
                .zip(&row.buckets)
                .map(|(bound, n)| (*bound, n.load(Relaxed)))
                .collect();
            let count = buckets.iter().map(|(_, n)| n).sum();
            let sum = Duration::from_micros(row.micros.load(Relaxed)).as_secs_f64();
            let labels = [("product", product)];
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabels>(sum, count, &buckets, None)?;
        }
        let retries = self.retries.load(Relaxed);
        encode_lone_counter(
            e,
            "upstream_retries",
            "Upstream attempts beyond the first",
            retries,
        )
    }

    fn used_products(&self) -> impl Iterator<Item = (&'static str, &ProductCounters)> {
        self.products
            .iter()
            .enumerate()
            .filter(|(_, row)| row.buckets.iter().any(|n| n.load(Relaxed) > 0))
            .map(|(at, row)| (product_name(at), row))
    }
}
