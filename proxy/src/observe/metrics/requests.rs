//! Requests: by product, way in, outcome and status, with their bytes and times.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{
    At, BUCKETS, CLASSES, Counters, Encoded, Metrics, NoLabels, PRODUCTS, VIAS, encode_counter,
    encode_lone_counter, product_name, product_title,
};
use crate::observe::view::ProductStatus;
use crate::relay::outcome::Outcome;

impl Metrics {
    /// Products that were used; what their names resolve to is not known here.
    pub fn products(&self) -> Vec<ProductStatus> {
        let shards = &self.counters.shards;
        let samples = self.counters.samples.told(shards);
        (0..PRODUCTS)
            .zip(samples)
            .filter_map(|(product, sampled)| {
                let mut requests = BTreeMap::new();
                for (outcome, label) in Outcome::ALL.iter().enumerate() {
                    let mut sum = 0;
                    for via in 0..VIAS.len() {
                        for class in 0..CLASSES.len() {
                            sum += shards.sum(At::request(product, via, outcome, class));
                        }
                    }
                    if sum > 0 {
                        requests.insert(label.label().to_owned(), sum);
                    }
                }
                if requests.is_empty() {
                    return None;
                }
                let met = self.counters.upstreams.told(product);
                Some(ProductStatus {
                    name: product_name(product).to_owned(),
                    title: product_title(product).to_owned(),
                    state: sampled.recent.state(),
                    requests,
                    bytes_up: shards.sum(At::bytes_up(product)),
                    bytes_down: shards.sum(At::bytes_down(product)),
                    recent: sampled.recent,
                    history: sampled.history,
                    last_failure: met.last_failure,
                    tls: met.tls,
                    upstream: met.upstream,
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
                        let n = self
                            .shards
                            .sum(At::request(product, via_at, outcome_at, class_at));
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
        for product in self.used_products() {
            for (direction, at) in [("up", At::bytes_up(product)), ("down", At::bytes_down(product))] {
                encode_counter(
                    &mut family,
                    &[("direction", direction), ("product", product_name(product))],
                    self.shards.sum(at),
                )?;
            }
        }
        let mut family = e.encode_descriptor(
            "request_duration_seconds",
            "From the request head to the end of the response body",
            None,
            MetricType::Histogram,
        )?;
        for product in self.used_products() {
            let buckets: Vec<(f64, u64)> = BUCKETS
                .iter()
                .enumerate()
                .map(|(at, bound)| (*bound, self.shards.sum(At::bucket(product, at))))
                .collect();
            let count = buckets.iter().map(|(_, n)| n).sum();
            let sum = Duration::from_micros(self.shards.sum(At::micros(product))).as_secs_f64();
            let labels = [("product", product_name(product))];
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabels>(sum, count, &buckets, None)?;
        }
        let retries = self.shards.sum(At::retries());
        encode_lone_counter(
            e,
            "upstream_retries",
            "Upstream attempts beyond the first",
            retries,
        )
    }

    fn used_products(&self) -> impl Iterator<Item = usize> {
        (0..PRODUCTS)
            .filter(|product| (0..BUCKETS.len()).any(|at| self.shards.sum(At::bucket(*product, at)) > 0))
    }
}
