//! Times in a log-linear histogram: constant memory, no loss of large values, at most 0.8 % off.

/// Sub-buckets of each power of two: 2^7.
const BITS: u32 = 7;
const STEPS: u64 = 1 << BITS;
/// One linear part below [`STEPS`], then one part for each higher power of two of a `u64`.
const BUCKETS: usize = ((64 - BITS as usize) + 1) << BITS;

/// Counts of values; the unit is the caller's (the load generator: nanoseconds).
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    largest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            largest: 0,
        }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
        }
        self.total += 1;
        self.largest = self.largest.max(value);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.largest = self.largest.max(other.largest);
    }

    /// How many values there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The largest value, exactly.
    pub fn largest(&self) -> u64 {
        self.largest
    }

    /// The value that at least `per_mille` thousandths of all values do not exceed (nearest rank); nothing when there is no value.
    pub fn quantile(&self, per_mille: u64) -> Option<u64> {
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(middle(at).min(self.largest))
    }
}

fn bucket(value: u64) -> usize {
    let place = if value < STEPS {
        value
    } else {
        let power = value.ilog2();
        (u64::from(power - BITS + 1) << BITS) + (value >> (power - BITS)) - STEPS
    };
    // Below BUCKETS, which fits.
    usize::try_from(place).unwrap_or(usize::MAX)
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = (bucket >> BITS) - 1;
    let low = (STEPS + (bucket & (STEPS - 1))) << shift;
    low + ((1 << shift) >> 1)
}
