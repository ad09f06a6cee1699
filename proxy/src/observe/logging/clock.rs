//! The time in front of a line: that of the event, also where the line is made later on another thread.

use std::cell::Cell;
use std::fmt;
use std::time::SystemTime;

use time::OffsetDateTime;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static AT: Cell<Option<SystemTime>> = const { Cell::new(None) };
}

/// Lines that `make` makes have this time.
pub(super) fn at(time: SystemTime, make: impl FnOnce()) {
    AT.set(Some(time));
    make();
    AT.set(None);
}

/// UTC with microseconds, as RFC 3339 has it: `2026-11-22T17:15:34.123456Z`.
pub(super) struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let time = OffsetDateTime::from(AT.get().unwrap_or_else(SystemTime::now));
        write!(
            w,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.microsecond()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shown(since_1970: Duration) -> String {
        let mut text = String::new();
        at(SystemTime::UNIX_EPOCH + since_1970, || {
            Clock.format_time(&mut Writer::new(&mut text)).unwrap();
        });
        text
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        for (since_1970, expected) in [
            (Duration::ZERO, "1970-01-01T00:00:00.000000Z"),
            (
                Duration::from_micros(951_782_400_000_001),
                "2000-02-29T00:00:00.000001Z",
            ),
            (
                Duration::from_nanos(1_795_367_734_123_456_789),
                "2026-11-22T17:15:34.123456Z",
            ),
        ] {
            assert_eq!(shown(since_1970), expected);
        }
    }

    #[test]
    fn afterwards_it_is_now_again() {
        shown(Duration::ZERO);
        assert!(AT.get().is_none());
    }
}
