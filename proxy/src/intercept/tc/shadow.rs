//! When another classifier keeps packets from ours, and how often we do something about it. Pure.

use std::time::{Duration, Instant};

use super::chain::{Entry, Place};
use super::verdict::{Attachment, Judged, Reached, Returns, forecast};
use crate::config::SamePriority;

/// Packets that must have come in before anything is said.
const ENOUGH: u64 = 4;
/// How often ours is put back in a short time before it is only reported.
pub(super) const LIMIT: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Each such time gives one of [`LIMIT`] back: who removes ours every few minutes never uses them up, and who does so at
/// once each time is answered once a minute.
const FORGIVEN: Duration = Duration::from_secs(60);

/// What a look at the counters says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Too few packets to say.
    TooFew,
    /// Ours sees them.
    Seen,
    /// More than half of them, this many, did not reach ours.
    Missed(u64),
}

/// Compares what an interface received with what ours saw, from one look to a later one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    start: Option<(u64, u64)>,
}

impl Window {
    /// Looks: packets that the interface received and that ours saw, both since they were made.
    pub(super) fn look(&mut self, received: u64, seen: u64) -> Sight {
        let (first_received, first_seen) = *self.start.get_or_insert((received, seen));
        // A counter that went back belongs to something new.
        let (Some(received_now), Some(seen_now)) =
            (received.checked_sub(first_received), seen.checked_sub(first_seen))
        else {
            self.start = Some((received, seen));
            return Sight::TooFew;
        };
        if received_now < ENOUGH {
            return Sight::TooFew;
        }
        self.start = Some((received, seen));
        let missed = received_now.saturating_sub(seen_now);
        if missed > received_now / 2 {
            Sight::Missed(missed)
        } else {
            Sight::Seen
        }
    }

    /// Forgets: the next look is the first.
    pub(super) fn reset(&mut self) {
        self.start = None;
    }
}

/// Whether ours may be put back now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// Yes.
    Now,
    /// Not yet.
    Later,
    /// No more for now: within a minute there is one again.
    Spent,
}

/// Bounds re-assertions: five, with pauses that double from half a second, and one more for each minute.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds {
    /// Those of the five that are used up.
    spent: u32,
    /// The last one, and from when on the next is given back; set while `spent` is not 0.
    last: Option<Instant>,
    since: Option<Instant>,
    /// All of them, for `status`.
    pub(super) total: u64,
}

impl Bounds {
    pub(super) fn ask(&mut self, now: Instant) -> Permission {
        self.give_back(now);
        let Some(last) = self.last.filter(|_| self.spent > 0) else {
            return Permission::Now;
        };
        if self.spent >= LIMIT {
            return Permission::Spent;
        }
        let pause = FIRST_PAUSE * (1 << (self.spent - 1));
        if now.saturating_duration_since(last) < pause {
            return Permission::Later;
        }
        Permission::Now
    }

    /// Notes that it was done.
    pub(super) fn spend(&mut self, now: Instant) {
        self.give_back(now);
        if self.spent == 0 {
            self.since = Some(now);
        }
        self.spent += 1;
        self.total += 1;
        self.last = Some(now);
    }

    fn give_back(&mut self, now: Instant) {
        while self.spent > 0
            && let Some(next) = self.since.and_then(|since| since.checked_add(FORGIVEN))
            && next <= now
        {
            self.spent -= 1;
            self.since = Some(next);
        }
    }
}

/// Who stops packets, and what to set.
pub(super) fn shadowed(front: &[&Entry], own: &Entry, same_priority: SamePriority) -> String {
    let ours = match own.place {
        Place::Tcx => Attachment::TcxFirst,
        Place::Classic { priority, .. } => Attachment::Classic {
            priority,
            // Prepending did not help, or nobody asked for it: a lower priority would, where there is one.
            prepend: same_priority == SamePriority::Prepend && priority == 1,
        },
    };
    // That they stop packets was seen; which one of them does is not known.
    let judged: Vec<Judged> = front
        .iter()
        .map(|&entry| Judged {
            entry: entry.clone(),
            returns: Returns::Unknown,
        })
        .collect();
    let setting = match forecast(&judged, ours).reached {
        Reached::No { setting, .. } | Reached::Unknown { setting, .. } => setting,
        Reached::Yes => "intercept.datapath: cgroup".to_owned(),
    };
    let who: Vec<String> = front.iter().map(ToString::to_string).collect();
    format!("packets do not get past {}; set {setting}", who.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_needs_four_packets_and_a_majority() {
        let mut window = Window::default();
        assert_eq!(window.look(100, 50), Sight::TooFew, "the first look");
        assert_eq!(window.look(103, 50), Sight::TooFew, "three packets");
        assert_eq!(window.look(104, 50), Sight::Missed(4), "the window went on");
        assert_eq!(window.look(108, 52), Sight::Seen, "half is not more than half");
        assert_eq!(window.look(118, 56), Sight::Missed(6));
        assert_eq!(window.look(218, 156), Sight::Seen);
        // More seen than received: the two are read one after the other.
        assert_eq!(window.look(228, 170), Sight::Seen);
        assert_eq!(window.look(3, 170), Sight::TooFew, "another interface");
        window.reset();
        assert_eq!(window.look(1000, 0), Sight::TooFew);
    }

    #[test]
    fn re_assertions_are_bounded_and_forgiven() {
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let mut bounds = Bounds::default();
        let mut now = 0;
        for pause in [0, 500, 1000, 2000, 4000] {
            if pause > 0 {
                assert_eq!(bounds.ask(at(now + pause - 1)), Permission::Later, "{pause}");
            }
            now += pause;
            assert_eq!(bounds.ask(at(now)), Permission::Now, "{pause}");
            bounds.spend(at(now));
        }
        assert_eq!(bounds.ask(at(now + 1)), Permission::Spent);
        assert_eq!(bounds.ask(at(59_999)), Permission::Spent);
        // Who goes on gets one answer a minute, counted from the first.
        for minute in 1..5 {
            assert_eq!(bounds.ask(at(minute * 60_000)), Permission::Now, "{minute}");
            bounds.spend(at(minute * 60_000));
            assert_eq!(
                bounds.ask(at(minute * 60_000 + 59_999)),
                Permission::Spent,
                "{minute}"
            );
        }
        assert_eq!(bounds.total, 9);
        // After five quiet minutes all five are there again, without a pause before the first.
        let later = at(4 * 60_000 + 300_000);
        assert_eq!(bounds.ask(later), Permission::Now);
        bounds.spend(later);
        assert_eq!(bounds.ask(later + Duration::from_millis(499)), Permission::Later);
        assert_eq!(bounds.ask(later + Duration::from_millis(500)), Permission::Now);
    }

    /// A network plugin that makes its qdisc anew every five minutes is no duel: ours comes back at once each time.
    #[test]
    fn a_vendor_that_comes_back_every_five_minutes_is_never_too_much() {
        let start = Instant::now();
        let mut bounds = Bounds::default();
        for round in 0..100 {
            let now = start + Duration::from_secs(300 * round);
            assert_eq!(bounds.ask(now), Permission::Now, "{round}");
            bounds.spend(now);
        }
        assert_eq!(bounds.total, 100);
    }
}
