//! Names that nobody answers for: most intake names do not exist on every site, and asking for each of them twice a minute
//! for ever would be a burden on the site's name servers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{WATCH_MAX, WATCH_MIN};

/// What the watcher remembers of them.
#[derive(Debug, Default)]
pub(super) struct Silent {
    failures: HashMap<String, u32>,
    /// When any name was answered for last.
    answered: Option<Instant>,
}

impl Silent {
    pub(super) fn answered(&mut self, name: &str, now: Instant) {
        self.failures.remove(name);
        self.answered = Some(now);
    }

    /// When to ask again: later each time, while others are answered for. When nobody is, it is not the name's fault, and the
    /// servers may be back at any moment.
    pub(super) fn failed(&mut self, name: String, now: Instant) -> Duration {
        if self.answered.is_none_or(|at| now.duration_since(at) > WATCH_MAX) {
            self.failures.clear();
            return WATCH_MIN;
        }
        let failures = self.failures.entry(name).or_default();
        let pause = WATCH_MIN * 2_u32.saturating_pow(*failures);
        *failures = failures.saturating_add(1).min(16);
        pause.min(WATCH_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_does_not_exist_is_asked_less_and_less_and_servers_that_are_down_are_not() {
        let mut silent = Silent::default();
        let start = Instant::now();
        let name = || "otlp.ddog-gov.com".to_owned();
        for _ in 0..5 {
            assert_eq!(silent.failed(name(), start), WATCH_MIN);
        }
        silent.answered("api.ddog-gov.com", start);
        let pauses: Vec<u64> = (0..6).map(|_| silent.failed(name(), start).as_secs()).collect();
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300]);
        silent.answered(&name(), start);
        assert_eq!(silent.failed(name(), start), WATCH_MIN);
        let later = start + WATCH_MAX + Duration::from_secs(1);
        assert_eq!(silent.failed(name(), later), WATCH_MIN);
        assert_eq!(silent.failed(name(), later), WATCH_MIN);
    }
}
