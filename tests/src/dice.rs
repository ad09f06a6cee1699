//! Numbers that nobody can foresee, and that can be thrown again: a failure tells the seed.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

/// A generator (Knuth's MMIX; its upper bits).
pub struct Dice {
    /// What it began with.
    pub seed: u64,
    state: u64,
}

impl Dice {
    /// Begins with the time, or with what `AGENT_FIPS_PROXY_TEST_SEED` says.
    pub fn new() -> Result<Self> {
        let told = std::env::var("AGENT_FIPS_PROXY_TEST_SEED").ok();
        let seed = match told.map(|told| told.parse()) {
            Some(told) => told?,
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        Ok(Self { seed, state: seed })
    }

    /// The index of one of so many.
    pub fn index(&mut self, of: usize) -> usize {
        usize::try_from(self.roll(of as u64)).unwrap_or_default()
    }

    /// A number below `limit`.
    pub fn roll(&mut self, limit: u64) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % limit
    }
}
