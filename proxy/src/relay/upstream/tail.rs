//! A request that our kernel took and the intake has not confirmed yet: megabytes, on a slow line. The time limit of the answer
//! counts from when the intake has all of it, or takes no more.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::socket::Watch;

/// What a request may need beside its body: its head, and the framing of HTTP/2 and TLS, which is less than a 64th.
const OVERHEAD: u64 = 16 * 1024;

/// What is looked at when the limit is over, and not before.
#[derive(Debug)]
pub(super) struct Tail {
    watch: Rc<Watch>,
    /// What was written before the request. `None` when the kernel does not tell what is confirmed.
    start: Option<u64>,
    last: Option<Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    confirmed: u64,
    written: u64,
}

impl Tail {
    /// Of the request that is about to be sent on the connection of `watch`.
    pub(super) fn new(watch: Rc<Watch>) -> Self {
        Self {
            start: watch.written(),
            watch,
            last: None,
        }
    }

    /// A deadline that is put off, when it is.
    pub(super) fn put_off(&self, deadline: Instant, limit: Duration) -> Instant {
        self.last.map_or(deadline, |last| deadline.max(last.at + limit))
    }

    /// The limit is over. True when the intake was still taking what was sent, and it begins anew. Of the body `bytes` were
    /// given: others that send on the same HTTP/2 connection do not put it off for longer than these take.
    pub(super) fn moves(&mut self, bytes: u64) -> bool {
        let (Some(start), Some((confirmed, written))) = (self.start, self.watch.sent()) else {
            return false;
        };
        let end = start + bytes + bytes / 64 + OVERHEAD;
        let moves = match self.last {
            None => confirmed < written,
            Some(last) => last.confirmed < last.written.min(end) && confirmed > last.confirmed,
        };
        if moves {
            self.last = Some(Look {
                at: Instant::now(),
                confirmed,
                written,
            });
        }
        moves
    }
}
