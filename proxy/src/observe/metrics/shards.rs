//! The counters of the data path: a set for each data thread, so that no two threads write to the same cache line. They are
//! added up when somebody reads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{BUCKETS, CLASSES, OUTCOMES, PRODUCTS, VIAS};
use crate::relay::outcome::DECISIONS;

/// Counters of a [`Line`].
const LINE: usize = 16;

/// Two cache lines of 64 bytes: processors fetch them in pairs (Intel's optimisation manual, spatial prefetcher).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([AtomicU64; LINE]);

/// A product's row fills one line: bytes up and down, microseconds, and the buckets of its durations.
const ROW: usize = 3 + BUCKETS.len();
const _: () = assert!(ROW <= LINE);

const ROWS: usize = 0;
const CONNECTIONS_OPEN: usize = ROWS + PRODUCTS * LINE;
const _: () = assert!(2 * VIAS.len() < LINE);
const REQUESTS: usize = CONNECTIONS_OPEN + LINE;
const CONNECTIONS: usize = REQUESTS + PRODUCTS * VIAS.len() * OUTCOMES * CLASSES.len();
const ALL: usize = CONNECTIONS + VIAS.len() * DECISIONS.len() * OUTCOMES;

/// The place of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(usize);

impl At {
    pub(super) fn request(product: usize, via: usize, outcome: usize, class: usize) -> Self {
        Self(REQUESTS + ((product * VIAS.len() + via) * OUTCOMES + outcome) * CLASSES.len() + class)
    }

    pub(super) fn bytes_up(product: usize) -> Self {
        Self(ROWS + product * LINE)
    }

    pub(super) fn bytes_down(product: usize) -> Self {
        Self(ROWS + product * LINE + 1)
    }

    pub(super) fn micros(product: usize) -> Self {
        Self(ROWS + product * LINE + 2)
    }

    pub(super) fn bucket(product: usize, bucket: usize) -> Self {
        Self(ROWS + product * LINE + 3 + bucket)
    }

    pub(super) fn connection(via: usize, decision: usize, outcome: usize) -> Self {
        Self(CONNECTIONS + (via * DECISIONS.len() + decision) * OUTCOMES + outcome)
    }

    pub(super) fn opened(via: usize) -> Self {
        Self(CONNECTIONS_OPEN + via)
    }

    pub(super) fn closed(via: usize) -> Self {
        Self(CONNECTIONS_OPEN + VIAS.len() + via)
    }

    pub(super) fn retries() -> Self {
        Self(CONNECTIONS_OPEN + 2 * VIAS.len())
    }
}

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(0) };
}

/// This thread counts in the set of data thread `index`; threads that never say so share the first one's.
pub fn count_as(index: usize) {
    MINE.set(index);
}

/// One set of counters.
#[derive(Debug)]
pub(super) struct Shard(Vec<Line>);

impl Shard {
    pub(super) fn add(&self, at: At, n: u64) {
        self.0[at.0 / LINE].0[at.0 % LINE].fetch_add(n, Relaxed);
    }

    fn get(&self, at: At) -> u64 {
        self.0[at.0 / LINE].0[at.0 % LINE].load(Relaxed)
    }
}

/// All sets.
#[derive(Debug)]
pub(super) struct Shards(Vec<Shard>);

impl Shards {
    /// A set for each of `threads` data threads; for none, there is one all the same.
    pub(super) fn new(threads: usize) -> Self {
        let shard = || Shard((0..ALL.div_ceil(LINE)).map(|_| Line::default()).collect());
        Self((0..threads.max(1)).map(|_| shard()).collect())
    }

    /// The set of this thread.
    pub(super) fn mine(&self) -> &Shard {
        &self.0[MINE.get() % self.0.len()]
    }

    /// One counter, all threads together.
    pub(super) fn sum(&self, at: At) -> u64 {
        self.0.iter().map(|shard| shard.get(at)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_counter_has_a_place_of_its_own() {
        let mut places = HashSet::new();
        let mut take = |at: At| assert!(at.0 < ALL && places.insert(at.0), "{at:?}");
        for product in 0..PRODUCTS {
            take(At::bytes_up(product));
            take(At::bytes_down(product));
            take(At::micros(product));
            (0..BUCKETS.len()).for_each(|bucket| take(At::bucket(product, bucket)));
            for via in 0..VIAS.len() {
                for outcome in 0..OUTCOMES {
                    (0..CLASSES.len()).for_each(|class| take(At::request(product, via, outcome, class)));
                }
            }
        }
        for via in 0..VIAS.len() {
            take(At::opened(via));
            take(At::closed(via));
            for decision in 0..DECISIONS.len() {
                (0..OUTCOMES).for_each(|outcome| take(At::connection(via, decision, outcome)));
            }
        }
        take(At::retries());
    }

    #[test]
    fn threads_count_apart_and_are_read_together() {
        let shards = Shards::new(2);
        std::thread::scope(|scope| {
            for index in 0..4 {
                let shards = &shards;
                scope.spawn(move || {
                    count_as(index);
                    (0..1000).for_each(|_| shards.mine().add(At::retries(), 1));
                });
            }
        });
        assert_eq!(shards.sum(At::retries()), 4000);
        assert_eq!(shards.0[0].get(At::retries()), 2000);
        assert_eq!(shards.0[1].get(At::retries()), 2000);
    }

    #[test]
    fn sets_share_no_cache_line() {
        let shards = Shards::new(2);
        for shard in &shards.0 {
            assert_eq!(std::ptr::from_ref(&shard.0[0]).addr() % 128, 0);
        }
    }
}
