//! Whether a peer that takes nothing more of what we write still takes some of what was written before.
//!
//! A socket says that there is room again when a third of its buffer is free (`sk_stream_is_writeable` of Linux), which can be
//! more than a megabyte; of what a TLS session keeps nothing is told until all of it is gone. A peer on a slow line may need
//! longer for that than a time limit gives it. So when a limit is over, the kernel is asked what the peer has confirmed.

use tokio::time::Instant;

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Stall(Option<Since>);

#[derive(Clone, Copy, Debug)]
struct Since {
    at: Instant,
    /// What the peer had confirmed then, in bytes. `None` when the kernel does not tell.
    confirmed: Option<u64>,
}

impl Stall {
    /// A write has to wait; `moved` when a part of it did not. `confirmed` is asked only when it matters: it is a system
    /// call.
    pub(super) fn waits(&mut self, moved: bool, confirmed: impl FnOnce() -> Option<u64>) {
        if moved || self.0.is_none() {
            self.0 = Some(Since {
                at: Instant::now(),
                confirmed: confirmed(),
            });
        }
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// Since when nothing moved, as far as it shows.
    pub(super) fn since(&self) -> Option<Instant> {
        self.0.map(|since| since.at)
    }

    /// True when the peer has confirmed more than at [`Stall::since`], which is now then.
    pub(super) fn still_moves(&mut self, confirmed: impl FnOnce() -> Option<u64>) -> bool {
        let Some(Since {
            confirmed: Some(before),
            ..
        }) = self.0
        else {
            return false;
        };
        let now = confirmed();
        let moves = now.is_some_and(|now| now > before);
        if moves {
            self.0 = Some(Since {
                at: Instant::now(),
                confirmed: now,
            });
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_moves_as_long_as_it_confirms() {
        let mut stall = Stall::default();
        assert!(!stall.still_moves(|| Some(1)), "nothing waits");
        let begin = Instant::now();
        stall.waits(false, || Some(10));
        tokio::time::advance(Duration::from_secs(1)).await;
        stall.waits(false, || panic!("asked again although nothing moved"));
        assert_eq!(stall.since(), Some(begin));
        assert!(!stall.still_moves(|| Some(10)));
        assert!(!stall.still_moves(|| None));
        assert!(stall.still_moves(|| Some(11)));
        assert_eq!(stall.since(), Some(begin + Duration::from_secs(1)));
        assert!(!stall.still_moves(|| Some(11)), "it counts from the last look");
        tokio::time::advance(Duration::from_secs(1)).await;
        stall.waits(true, || None);
        assert_eq!(stall.since(), Some(begin + Duration::from_secs(2)));
        assert!(!stall.still_moves(|| Some(12)), "the kernel did not tell");
        stall.clear();
        assert_eq!(stall.since(), None);
    }
}
