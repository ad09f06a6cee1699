//! The last minute and the last hour of each product, sampled from the counters by a timer. The data threads know nothing of
//! it; the memory is what it is from the start, and a new worker begins anew.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::shards::{At, Shards};
use super::{BUCKETS, CLASSES, Metrics, PRODUCTS, VIAS};
use crate::observe::view::{History, Recent};
use crate::relay::outcome::Outcome;

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(10);
/// Samples of the hour.
const SAMPLES: usize = 360;
/// Samples that make one point of what is shown: an hour is 120 points of 30 s.
const POINT: usize = 3;
/// Samples whose whole counters are kept: the oldest is a minute old or a little more.
const MINUTE: usize = 7;

/// Counters of one product at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    requests: u64,
    failed: u64,
    answered: u64,
    answered_4xx: u64,
    answered_5xx: u64,
    bytes_up: u64,
    bytes_down: u64,
    buckets: [u64; BUCKETS.len()],
}

/// All products at one moment.
#[derive(Debug)]
struct Snapshot {
    at: Instant,
    rows: Box<[Row; PRODUCTS]>,
}

/// What one sample adds to the hour: requests, and those that failed.
type Added = [(u32, u32); PRODUCTS];

#[derive(Debug)]
pub(super) struct Samples(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    minute: VecDeque<Snapshot>,
    hour: VecDeque<Added>,
}

/// What is told of a product.
pub(super) struct Told {
    pub(super) recent: Recent,
    pub(super) history: History,
}

impl Metrics {
    /// Takes a sample every ten seconds; never ends. For one task outside of the data threads.
    pub async fn sample(&self) {
        let mut tick = interval(EVERY);
        // A machine that slept does not catch up.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is over at once: the counters are zero already.
        tick.tick().await;
        loop {
            tick.tick().await;
            self.counters.samples.take(&self.counters.shards);
        }
    }
}

impl Samples {
    /// Nothing yet: counters begin at zero.
    pub(super) fn new() -> Self {
        let mut minute = VecDeque::with_capacity(MINUTE);
        minute.push_back(Snapshot {
            at: Instant::now(),
            rows: Box::new([Row::default(); PRODUCTS]),
        });
        Self(Mutex::new(Inner {
            minute,
            hour: VecDeque::with_capacity(SAMPLES),
        }))
    }

    /// One sample.
    fn take(&self, shards: &Shards) {
        let now = Snapshot::of(shards);
        let mut inner = self.lock();
        if let Some(last) = inner.minute.back() {
            let mut added = [(0, 0); PRODUCTS];
            for (at, added) in added.iter_mut().enumerate() {
                let (before, now) = (&last.rows[at], &now.rows[at]);
                *added = (
                    small(now.requests.saturating_sub(before.requests)),
                    small(now.bad().saturating_sub(before.bad())),
                );
            }
            if inner.hour.len() >= SAMPLES {
                inner.hour.pop_front();
            }
            inner.hour.push_back(added);
        }
        if inner.minute.len() >= MINUTE {
            inner.minute.pop_front();
        }
        inner.minute.push_back(now);
    }

    /// What is known of every product now, by its index.
    pub(super) fn told(&self, shards: &Shards) -> Vec<Told> {
        let now = Snapshot::of(shards);
        let inner = self.lock();
        let before = inner.minute.front();
        (0..PRODUCTS)
            .map(|product| Told {
                recent: before.map_or_else(Recent::default, |before| {
                    recent(
                        &before.rows[product],
                        &now.rows[product],
                        now.at.duration_since(before.at),
                    )
                }),
                history: inner.history(product),
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn history(&self, product: usize) -> History {
        let mut history = History {
            seconds: EVERY.as_secs() * POINT as u64,
            ..History::default()
        };
        // From the newest back, so that what is left over is the oldest; it makes no point.
        let samples: Vec<(u32, u32)> = self.hour.iter().map(|added| added[product]).collect();
        for point in samples.rchunks_exact(POINT).rev() {
            let sum = |side: fn(&(u32, u32)) -> u32| point.iter().map(side).fold(0, u32::saturating_add);
            history.requests.push(sum(|added| added.0));
            history.failed.push(sum(|added| added.1));
        }
        history
    }
}

impl Snapshot {
    fn of(shards: &Shards) -> Self {
        let mut rows = Box::new([Row::default(); PRODUCTS]);
        for (product, row) in rows.iter_mut().enumerate() {
            row.bytes_up = shards.sum(At::bytes_up(product));
            row.bytes_down = shards.sum(At::bytes_down(product));
            for (bucket, n) in row.buckets.iter_mut().enumerate() {
                *n = shards.sum(At::bucket(product, bucket));
            }
            // Whoever was never used needs no look at its hundreds of combinations.
            if row.buckets.iter().all(|n| *n == 0) {
                continue;
            }
            for (at, outcome) in Outcome::ALL.iter().enumerate() {
                for (class, label) in CLASSES.iter().enumerate() {
                    let n = (0..VIAS.len())
                        .map(|via| shards.sum(At::request(product, via, at, class)))
                        .sum();
                    row.add(*outcome, label, n);
                }
            }
        }
        Self {
            at: Instant::now(),
            rows,
        }
    }
}

impl Row {
    fn add(&mut self, outcome: Outcome, class: &str, n: u64) {
        self.requests += n;
        if outcome.is_failure() {
            self.failed += n;
        }
        if outcome == Outcome::Ok {
            self.answered += n;
            match class {
                "4xx" => self.answered_4xx += n,
                "5xx" => self.answered_5xx += n,
                _ => {}
            }
        }
    }

    /// What an operator would call an error.
    fn bad(&self) -> u64 {
        self.failed + self.answered_5xx
    }
}

fn recent(before: &Row, now: &Row, time: Duration) -> Recent {
    let seconds = time.as_secs_f64().max(0.001);
    let added = |of: fn(&Row) -> u64| of(now).saturating_sub(of(before));
    let mut buckets = [0; BUCKETS.len()];
    for (at, n) in buckets.iter_mut().enumerate() {
        *n = now.buckets[at].saturating_sub(before.buckets[at]);
    }
    // Counts are far below 2^52.
    let rate = |n: u64| n as f64 / seconds;
    Recent {
        seconds,
        requests: added(|row| row.requests),
        failed: added(|row| row.failed),
        answered: added(|row| row.answered),
        answered_4xx: added(|row| row.answered_4xx),
        answered_5xx: added(|row| row.answered_5xx),
        requests_per_second: rate(added(|row| row.requests)),
        bytes_up_per_second: rate(added(|row| row.bytes_up)),
        bytes_down_per_second: rate(added(|row| row.bytes_down)),
        p50_ms: quantile(&buckets, 0.5),
        p99_ms: quantile(&buckets, 0.99),
    }
}

/// The value below which this share of the durations lies, in milliseconds. Within a bucket they are taken to be spread evenly, as
/// Prometheus' `histogram_quantile` does; of the last one, which has no end, its beginning is told.
fn quantile(buckets: &[u64; BUCKETS.len()], share: f64) -> Option<f64> {
    let all: u64 = buckets.iter().sum();
    if all == 0 {
        return None;
    }
    let rank = share * all as f64;
    let mut below = 0.0;
    let mut from = 0.0;
    for (bound, n) in BUCKETS.iter().zip(buckets) {
        let here = *n as f64;
        if here > 0.0 && below + here >= rank {
            if bound.is_infinite() {
                break;
            }
            let within = ((rank - below) / here).clamp(0.0, 1.0);
            return Some((from + (bound - from) * within) * 1000.0);
        }
        below += here;
        if bound.is_finite() {
            from = *bound;
        }
    }
    Some(from * 1000.0)
}

fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(shards: &Shards, outcome: Outcome, class: usize, bucket: usize, n: u64) {
        let mine = shards.mine();
        mine.add(At::request(4, 0, outcome as usize, class), n);
        mine.add(At::bucket(4, bucket), n);
        mine.add(At::bytes_up(4), 100 * n);
    }

    #[test]
    fn the_minute_forgets_and_the_hour_keeps() {
        let (shards, samples) = (Shards::new(2), Samples::new());
        count(&shards, Outcome::Ok, 2, 3, 60);
        count(&shards, Outcome::UpstreamTls, 5, 3, 4);
        count(&shards, Outcome::Ok, 5, 3, 1);
        let told = &samples.told(&shards)[4];
        assert_eq!(
            (told.recent.requests, told.recent.failed, told.recent.answered),
            (65, 4, 61)
        );
        assert_eq!(told.recent.answered_5xx, 1);
        assert!(told.recent.bytes_up_per_second > 0.0);
        assert!(told.history.requests.is_empty(), "no point is whole yet");
        for _ in 0..MINUTE {
            samples.take(&shards);
        }
        let told = &samples.told(&shards)[4];
        assert_eq!((told.recent.requests, told.recent.p50_ms), (0, None));
        assert_eq!(told.history.seconds, 30);
        assert_eq!(
            told.history.requests.iter().sum::<u32>() + told.history.failed.iter().sum::<u32>(),
            0
        );
        // Seven samples are two points and one that is left over, which had the requests.
        for _ in 0..2 {
            samples.take(&shards);
        }
        let told = &samples.told(&shards)[4];
        assert_eq!(told.history.requests, [65, 0, 0]);
        assert_eq!(told.history.failed, [5, 0, 0]);
        assert!(samples.told(&shards)[5].history.requests.iter().all(|n| *n == 0));
    }

    #[test]
    fn memory_is_bounded() {
        let (shards, samples) = (Shards::new(1), Samples::new());
        let capacity = samples.lock().hour.capacity();
        for _ in 0..SAMPLES * 2 {
            count(&shards, Outcome::Ok, 2, 0, 1);
            samples.take(&shards);
        }
        let inner = samples.lock();
        assert_eq!((inner.hour.len(), inner.minute.len()), (SAMPLES, MINUTE));
        assert_eq!(inner.hour.capacity(), capacity);
        drop(inner);
        let history = &samples.told(&shards)[4].history;
        assert_eq!(history.requests, [3; SAMPLES / POINT]);
    }

    #[test]
    fn quantiles_are_between_the_bounds() {
        let mut buckets = [0; BUCKETS.len()];
        assert_eq!(quantile(&buckets, 0.5), None);
        // 100 requests of 5 to 10 ms.
        buckets[3] = 100;
        assert_eq!(quantile(&buckets, 0.5), Some(7.5));
        assert!((quantile(&buckets, 0.99).unwrap() - 9.95).abs() < 1e-9);
        // Two in a hundred took longer than anything we know.
        buckets[3] = 98;
        buckets[12] = 2;
        assert_eq!(quantile(&buckets, 0.99), Some(30_000.0));
        // One request is the whole of its bucket.
        let mut one = [0; BUCKETS.len()];
        one[0] = 1;
        assert_eq!(quantile(&one, 0.5), Some(0.5));
    }

    #[test]
    fn any_counts_give_ordered_quantiles() {
        use proptest::prelude::*;
        proptest!(|(buckets in proptest::array::uniform13(0_u64..1_000_000))| {
            let (p50, p99) = (quantile(&buckets, 0.5), quantile(&buckets, 0.99));
            prop_assert_eq!(p50.is_none(), buckets.iter().sum::<u64>() == 0);
            if let (Some(p50), Some(p99)) = (p50, p99) {
                prop_assert!((0.0..=30_000.0).contains(&p50) && p50 <= p99 && p99 <= 30_000.0);
            }
        });
    }
}
