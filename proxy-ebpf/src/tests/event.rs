//! The sentences of the records.

use std::string::ToString as _;

use super::*;

#[test]
fn records_are_told() {
    let event = |what, detail| Event {
        source: v4("10.0.0.7"),
        destination: v6("2001:db8::5"),
        source_port: 40_000,
        destination_port: 443,
        what,
        detail,
        reserved: 0,
    };
    let refused = Counter::RefusedNoListener as u32;
    for (event, expected) in [
        (
            event(EVENT_INTERCEPTED, 1234),
            "intercepted connect to [2001:db8::5]:443 -> port 1234",
        ),
        (
            event(EVENT_REFUSED, refused),
            "refused connect to [2001:db8::5]:443: refused_no_listener",
        ),
        (
            event(EVENT_LET_GO, 9999),
            "let go connect to [2001:db8::5]:443: unknown",
        ),
        (
            event(EVENT_ACCEPTED_ELSE, 0),
            "accepted [::ffff:10.0.0.7]:40000 on port 443 without an original destination",
        ),
        (
            event(EVENT_TC_TAKEN, 0),
            "taken [::ffff:10.0.0.7]:40000 -> [2001:db8::5]:443",
        ),
        (
            event(EVENT_TC_REFUSED, 0),
            "refused [::ffff:10.0.0.7]:40000 -> [2001:db8::5]:443",
        ),
        (event(77, 0), "unknown event 77 of the programs"),
    ] {
        assert_eq!(event.to_string(), expected);
    }
}
