//! Whether the data threads turn. Each says so every second; the main thread, which tells the master that the worker is
//! alive, says nothing while one of them is silent, and the master replaces a silent worker.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

/// How often a thread says that it turns.
const EVERY: Duration = Duration::from_secs(1);
/// A thread that was silent for longer hangs: nothing on it takes more than milliseconds.
const SILENT: Duration = Duration::from_secs(5);

/// The last beat of each data thread.
#[derive(Debug)]
pub(super) struct Beats {
    since: Instant,
    /// Milliseconds since then.
    last: Vec<Arc<AtomicU64>>,
}

/// What one data thread beats with.
#[derive(Debug)]
pub(super) struct Beat {
    since: Instant,
    last: Arc<AtomicU64>,
}

/// A data thread that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Silent {
    thread: usize,
    pub(super) silence: Duration,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "data-{}", self.thread)
    }
}

impl Beats {
    /// No thread yet.
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            last: Vec::new(),
        }
    }

    /// One more thread, which begins now.
    pub(super) fn add(&mut self) -> Beat {
        let last = Arc::new(AtomicU64::new(millis(self.since.elapsed())));
        self.last.push(Arc::clone(&last));
        Beat {
            since: self.since,
            last,
        }
    }

    /// The thread that has been silent for longest, if it hangs.
    pub(super) fn silent(&self) -> Option<Silent> {
        let now = millis(self.since.elapsed());
        let ages = self
            .last
            .iter()
            .map(|last| now.saturating_sub(last.load(Ordering::Relaxed)));
        let (thread, age) = ages.enumerate().max_by_key(|(_, age)| *age)?;
        let silence = Duration::from_millis(age);
        (silence > SILENT).then_some(Silent { thread, silence })
    }
}

impl Beat {
    /// Beats for as long as its thread turns.
    pub(super) async fn go_on(self) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.last.store(millis(self.since.elapsed()), Ordering::Relaxed);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_that_is_silent_for_longest_is_named() {
        let mut beats = Beats::new();
        let (_a, b) = (beats.add(), beats.add());
        assert_eq!(beats.silent(), None);
        beats.since = beats.since.checked_sub(Duration::from_secs(10)).unwrap();
        b.last.store(millis(Duration::from_secs(9)), Ordering::Relaxed);
        let silent = beats.silent().unwrap();
        assert_eq!(silent.to_string(), "data-0");
        assert!(silent.silence >= Duration::from_secs(10));
    }
}
