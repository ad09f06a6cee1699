//! When nobody answers. Most intake names do not exist on every site, and asking for each of them twice a minute for ever would be
//! a burden on the site's name servers. When no name is answered for, it is the servers, and nobody is helped by a question for every
//! name: then one is asked for at a time, to learn when they are back.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use tokio::time::Instant;

use super::{WATCH_CONCURRENCY, WATCH_MAX, WATCH_MIN};

/// So many questions in a row without a server's word: as many as are asked at once, so that all of them came to nothing.
pub(super) const OUTAGE: usize = WATCH_CONCURRENCY;
/// The first pause of an outage. A name server that was restarted is back in seconds; then twice as long each time, up to
/// [`WATCH_MIN`], which is as long as any answer counts.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What the watcher remembers of silence.
#[derive(Debug, Default)]
pub(super) struct Silent {
    /// How often a server said no, by name.
    denials: HashMap<String, u32>,
    /// How often nobody said anything, by name.
    unheard: HashMap<String, u32>,
    /// The same for all names, since a server said something.
    in_a_row: usize,
    /// When any name was answered for last.
    answered: Option<Instant>,
    /// When the servers are tried next in an outage.
    next: Option<Instant>,
}

impl Silent {
    pub(super) fn answered(&mut self, name: &str, now: Instant) {
        self.denials.remove(name);
        self.answered = Some(now);
        self.heard(name);
    }

    /// When to ask again: later each time, while others are answered for. When nobody is, it is not the name's fault, and the
    /// servers may know more at any moment.
    pub(super) fn denied(&mut self, name: &str, now: Instant) -> Duration {
        self.heard(name);
        if self.answered.is_none_or(|at| now.duration_since(at) > WATCH_MAX) {
            self.denials.clear();
            return WATCH_MIN;
        }
        let denials = self.denials.entry(name.to_owned()).or_default();
        let pause = WATCH_MIN * 2_u32.saturating_pow(*denials);
        *denials = denials.saturating_add(1).min(16);
        pause.min(WATCH_MAX)
    }

    /// No server said anything about this name.
    pub(super) fn unheard_again(&mut self, name: &str) {
        let unheard = self.unheard.entry(name.to_owned()).or_default();
        *unheard = unheard.saturating_add(1);
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.outage() {
            let pause = (OUTAGE..self.in_a_row.min(OUTAGE + 16)).fold(FIRST_PAUSE, |pause, _| pause * 2);
            let pause = pause.min(WATCH_MIN);
            self.next = Some(Instant::now() + jitter(pause));
        }
    }

    /// How often nobody said anything about this name.
    pub(super) fn unheard(&self, name: &str) -> u32 {
        self.unheard.get(name).copied().unwrap_or(0)
    }

    /// No server answers for any name.
    pub(super) fn outage(&self) -> bool {
        self.in_a_row >= OUTAGE
    }

    /// Other servers are configured: nothing is known of them.
    pub(super) fn other_servers(&mut self) {
        self.in_a_row = 0;
        self.unheard.clear();
    }

    /// Until the servers are to be tried again. Asked for in an outage only.
    pub(super) async fn pause(&self) {
        if let Some(next) = self.next {
            tokio::time::sleep_until(next).await;
        }
    }

    /// The name of these to try them with: each time another one, since one name may have a trouble of its own.
    pub(super) fn probe<'a>(&mut self, names: impl Iterator<Item = &'a String>) -> Option<String> {
        // Whatever comes of it.
        self.next = Some(Instant::now() + jitter(WATCH_MIN));
        let mut names: Vec<&String> = names.collect();
        names.sort_unstable_by_key(|name| (self.unheard(name), *name));
        names.first().map(|name| (*name).clone())
    }

    fn heard(&mut self, name: &str) {
        self.unheard.remove(name);
        self.in_a_row = 0;
    }
}

/// Up to a quarter more or less: all nodes of a cluster meet an outage at the same moment, and must not come back at the same.
fn jitter(pause: Duration) -> Duration {
    // A hasher with keys of its own each time is the random number that the standard library has.
    let random = RandomState::new().hash_one(0_u8) % 512;
    pause * u32::try_from(768 + random).unwrap_or(1024) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_asked_less_and_less_and_servers_that_know_none_are_not() {
        let mut silent = Silent::default();
        let start = Instant::now();
        let name = "otlp.ddog-gov.com";
        for _ in 0..5 {
            assert_eq!(silent.denied(name, start), WATCH_MIN);
        }
        silent.answered("api.ddog-gov.com", start);
        let pauses: Vec<u64> = (0..6).map(|_| silent.denied(name, start).as_secs()).collect();
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300]);
        silent.answered(name, start);
        assert_eq!(silent.denied(name, start), WATCH_MIN);
        let later = start + WATCH_MAX + Duration::from_secs(1);
        assert_eq!(silent.denied(name, later), WATCH_MIN);
        assert_eq!(silent.denied(name, later), WATCH_MIN);
        assert!(!silent.outage(), "a server that says no is there");
    }

    #[test]
    fn pauses_differ_and_stay_near() {
        let pauses: Vec<Duration> = (0..100).map(|_| jitter(Duration::from_secs(8))).collect();
        assert!(
            pauses.iter().all(|pause| (6..=10).contains(&pause.as_secs())),
            "{pauses:?}"
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
    }

    #[tokio::test]
    async fn an_outage_begins_when_nobody_answers_and_ends_with_any_word() {
        let mut silent = Silent::default();
        for _ in 1..OUTAGE {
            silent.unheard_again("a");
            assert!(!silent.outage());
        }
        silent.unheard_again("b");
        assert!(silent.outage());
        let names = ["b".to_owned(), "a".to_owned(), "c".to_owned()];
        assert_eq!(
            silent.probe(names.iter()).as_deref(),
            Some("c"),
            "the one that was tried least"
        );
        silent.unheard_again("c");
        silent.unheard_again("c");
        assert_eq!(silent.probe(names.iter()).as_deref(), Some("b"));
        let _ = silent.denied("b", Instant::now());
        assert!(!silent.outage(), "a no is a word, too");
        for _ in 0..OUTAGE {
            silent.unheard_again("a");
        }
        assert!(silent.outage());
        silent.other_servers();
        assert!(!silent.outage());
    }
}
