//! Whether a client that is waited for sends its request body fast enough.
//!
//! A limit on silence alone is no limit: a byte before each end of it holds a connection for ever. So within all the waiting
//! that `limits.idle_timeout` allows, what `limits.min_body_rate` asks for must come. Time in which nobody wanted to read, such
//! as while the intake was slow, is not the client's.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limits;

/// The waiting for one body.
#[derive(Clone, Copy, Debug)]
pub(in crate::relay) struct Pace {
    /// All the waiting that is allowed for `least` bytes.
    limit: Duration,
    /// At least 1.
    least: u64,
    /// Since when more is waited for.
    from: Option<Instant>,
    /// For how long more was waited for before, and what came, since `least` bytes had come last.
    waited: Duration,
    came: u64,
}

impl Pace {
    pub(in crate::relay) fn new(limits: &Limits) -> Self {
        let least = limits.min_body_rate.saturating_mul(limits.idle_timeout.as_secs());
        Self {
            limit: limits.idle_timeout,
            least: least.max(1),
            from: None,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// Another body begins.
    pub(super) fn restart(&mut self) {
        self.from = None;
        self.waited = Duration::ZERO;
        self.came = 0;
    }

    /// More of it is asked for, and is not there.
    pub(super) fn waits(&mut self) {
        // Since the first time, and not since somebody asked again.
        self.from.get_or_insert_with(Instant::now);
    }

    /// So many bytes of it came.
    pub(super) fn comes(&mut self, bytes: usize) {
        self.came = self.came.saturating_add(bytes as u64);
        let Some(from) = self.from.take() else { return };
        if self.came >= self.least {
            self.waited = Duration::ZERO;
            self.came = 0;
        } else {
            self.waited = self.waited.saturating_add(from.elapsed());
        }
    }

    /// It is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.from.is_some()
    }

    /// When the client is too slow, if nothing comes until then; `None` while nothing is waited for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(self.from? + self.limit.saturating_sub(self.waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn pace(rate: u64) -> Pace {
        Pace::new(&Limits {
            min_body_rate: rate,
            idle_timeout: Duration::from_secs(10),
            ..Config::default().limits
        })
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn drops_do_not_add_up_to_a_body() {
        let mut pace = pace(64);
        assert_eq!(pace.deadline(), None);
        let begin = Instant::now();
        for _ in 0..3 {
            pace.waits();
            pass(3).await;
            pace.waits();
            pace.comes(200);
            pass(60).await;
        }
        assert_eq!(pace.deadline(), None, "nobody waits");
        pace.waits();
        assert_eq!(pace.deadline(), Some(Instant::now() + Duration::from_secs(1)));
        // What was asked for, before the time is over.
        pace.comes(40);
        pace.waits();
        assert_eq!(pace.deadline(), Some(Instant::now() + Duration::from_secs(10)));
        assert!(begin < Instant::now());
        pass(2).await;
        pace.comes(1);
        pace.restart();
        pace.waits();
        assert_eq!(pace.deadline(), Some(Instant::now() + Duration::from_secs(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_every_byte_counts() {
        let mut pace = pace(0);
        for _ in 0..20 {
            pace.waits();
            pass(9).await;
            assert_eq!(pace.deadline(), Some(Instant::now() + Duration::from_secs(1)));
            pace.comes(1);
        }
    }
}
