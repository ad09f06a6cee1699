//! Sums and alarms.

use proxy_ebpf::{Address, WHO_CGROUP, WHO_NETNS};

use super::*;

fn key(who: u64, reason: Reason) -> LeakKey {
    LeakKey {
        who,
        reason: reason as u32,
        kind: WHO_NETNS,
    }
}

fn leak(count: u64) -> Leak {
    Leak {
        count,
        last: Direct {
            destination: Address::from_v4(u32::from_ne_bytes([203, 0, 113, 10])),
            port: 443,
            ..Direct::default()
        },
    }
}

fn known() -> Leaks {
    let leaks = Leaks::default();
    leaks.learn(
        &[],
        [(1, "a".to_owned()), (2, "a".to_owned()), (3, "b".to_owned())],
    );
    leaks
}

fn figure(leaks: &Leaks, agent: &str, reason: Reason) -> Option<u64> {
    let status = leaks.status();
    let found = status
        .iter()
        .find(|one| one.agent == agent && one.reason == reason.name());
    found.map(|one| one.connections)
}

#[test]
fn an_agents_figure_is_the_sum_over_what_it_ever_was() {
    let (open, before) = (Reason::NoListener, Reason::OpenBefore);
    let mut leaks = known();
    assert!(leaks.changed(0), "nothing was read yet");
    leaks.read(
        6,
        vec![
            (key(1, open), leak(3)),
            (key(2, open), leak(2)),
            (key(3, before), leak(1)),
        ],
    );
    assert!(!leaks.changed(6) && leaks.changed(7));
    assert_eq!(figure(&leaks, "a", open), Some(5));
    assert_eq!(figure(&leaks, "b", before), Some(1));
    assert_eq!(leaks.status()[0].last_destination.to_string(), "203.0.113.10:443");

    // The first grew; the second is gone from the map, and comes back as a new entry.
    leaks.read(7, vec![(key(1, open), leak(4))]);
    assert_eq!(figure(&leaks, "a", open), Some(6));
    leaks.read(8, vec![(key(1, open), leak(4)), (key(2, open), leak(1))]);
    assert_eq!(figure(&leaks, "a", open), Some(7));
    // An entry that made room and was made anew between two readings.
    leaks.read(9, vec![(key(1, open), leak(1))]);
    assert_eq!(figure(&leaks, "a", open), Some(8));
    // Nothing new is nothing new.
    leaks.read(9, vec![(key(1, open), leak(1))]);
    assert_eq!(figure(&leaks, "a", open), Some(8));

    leaks.touch();
    assert!(leaks.changed(9));
}

#[test]
fn nobody_is_lost_for_want_of_a_name_or_a_reason_we_know() {
    let mut leaks = known();
    let stranger = LeakKey {
        kind: WHO_CGROUP,
        ..key(77, Reason::Around)
    };
    let from_a_later_version = LeakKey {
        reason: 1000,
        ..key(1, Reason::Around)
    };
    leaks.read(2, vec![(stranger, leak(1)), (from_a_later_version, leak(1))]);
    assert_eq!(figure(&leaks, names::UNKNOWN, Reason::Around), Some(1));
    assert_eq!(leaks.status().len(), 1);
}

#[test]
fn the_alarm_is_raised_at_once_and_then_once_a_minute() {
    let mut leaks = known();
    let start = Instant::now();
    let untold = |leaks: &Leaks| -> Vec<u64> { leaks.figures.values().map(|one| one.untold).collect() };
    leaks.read(1, vec![(key(1, Reason::NoListener), leak(1))]);
    leaks.alarm(start);
    assert_eq!(untold(&leaks), [0], "told at once");
    leaks.read(5, vec![(key(1, Reason::NoListener), leak(5))]);
    leaks.alarm(start + ALARM / 2);
    assert_eq!(untold(&leaks), [4], "not yet");
    // Another reason does not wait for the first.
    leaks.read(
        6,
        vec![
            (key(1, Reason::NoListener), leak(5)),
            (key(1, Reason::Around), leak(1)),
        ],
    );
    leaks.alarm(start + ALARM / 2);
    assert_eq!(untold(&leaks), [4, 0]);
    leaks.alarm(start + ALARM);
    assert_eq!(untold(&leaks), [0, 0]);
}

/// A reset without a leak is none of this status: the figure belongs to a leak that was counted.
#[test]
fn resets_stand_beside_their_leaks() {
    let mut leaks = known();
    leaks.note_reset("a", Reason::OpenBefore, 2);
    assert_eq!(leaks.status(), []);
    leaks.read(2, vec![(key(1, Reason::OpenBefore), leak(2))]);
    assert_eq!(leaks.status()[0].reset, 2);
}
