//! Reasons of leaks.

use super::*;

#[test]
fn reasons_are_numbered_and_named_once() {
    let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for (number, reason) in (0..).zip(Reason::ALL) {
        assert_eq!(*reason as u32, number);
        assert_eq!(Reason::from_number(number), Some(*reason));
    }
    // A note says a reason, or one of these.
    for state in [PASSED_OWN, PASSED_COUNTED] {
        assert_eq!(Reason::from_number(state), None);
    }
}

/// A reset for a reason that stays would only be followed by another leak.
#[test]
fn what_stays_is_not_a_matter_of_time() {
    for reason in [
        Reason::BoundDevice,
        Reason::NoMemory,
        Reason::Around,
        Reason::NotTaken,
    ] {
        assert!(!reason.passes(), "{reason:?}");
    }
}
