//! What a client sends: its socket or TLS session, and the window on it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::ClientIo;
use crate::relay::http::batch::Batch;
use crate::relay::http::head::Violation;
use crate::relay::http::outline::Outline;
use crate::relay::http::pace::Pace;
use crate::relay::http::stall::Stall;
use crate::relay::http::window::{Filled, Window};
use crate::relay::timer::LazyTimer;

/// What a client is told that waits for permission to send its body (RFC 9110 section 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Below this much room behind what is kept, a body is worth more than that its request can be sent again.
const LITTLE_ROOM: usize = 16 * 1024;

/// Why a request body cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(in crate::relay) enum BodyFault {
    /// The client is gone.
    #[error("the request body ended early")]
    Gone,
    /// The client broke the framing, or was too slow.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// The client's side.
#[derive(Debug)]
pub(super) struct Inbound<IO> {
    pub(super) io: IO,
    pub(super) window: Window,
    /// The client has ended its side.
    pub(super) eof: bool,
    drain: watch::Receiver<bool>,
    /// Whether the body bytes that are asked for come.
    pub(super) pace: Pace,
    /// Somebody waits for the end of the body.
    waiting: Option<Waker>,
    /// Where the parts of the head stand that is kept.
    pub(super) outline: Outline,
    /// The client waits for permission to send its body, and this is still to be said. Nothing: it waits in our TLS session.
    invitation: Option<&'static [u8]>,
    /// It waited for that, and has sent nothing of its body yet.
    hesitates: bool,
    /// Whether the client reads.
    unread: Stall,
}

impl<IO: ClientIo> Inbound<IO> {
    pub(super) fn new(io: IO, window: Window, pace: Pace, drain: watch::Receiver<bool>) -> Self {
        Self {
            io,
            window,
            eof: false,
            drain,
            pace,
            waiting: None,
            outline: Outline::default(),
            invitation: None,
            hesitates: false,
            unread: Stall::default(),
        }
    }

    /// The first `end` bytes are a good head: what is here of its body is decoded.
    ///
    /// # Errors
    /// The body's framing is malformed.
    pub(super) fn begin(
        &mut self,
        end: usize,
        outline: Outline,
        expects_continue: bool,
    ) -> Result<(), Violation> {
        self.outline = outline;
        self.window.begin_body(end, outline.framing.into());
        let decoded = self.window.decode();
        // Who sent some of it waits for nothing.
        let waits = expects_continue && !self.window.is_ended() && self.window.data().is_empty();
        self.invitation = waits.then_some(CONTINUE);
        self.hesitates = waits;
        decoded
    }

    /// An answer that begins now is the connection's last: we drain, or the client has not decided yet whether it sends its body.
    /// It may take the answer for leave not to (RFC 9110 section 10.1.1), also when it was invited a moment ago: curl does, and
    /// its next request would be read as the body.
    pub(super) fn is_last(&self) -> bool {
        // Nobody could stop us any more without the sender, so we stop.
        self.hesitates || *self.drain.borrow() || self.drain.has_changed().is_err()
    }

    /// Reads more of the body, once all that was there is taken; a client that waits for permission gets it. With `keep`, what
    /// was taken stays as long as there is room. Ready when something came or the body has ended.
    pub(super) fn poll_body(&mut self, keep: bool, cx: &mut Context<'_>) -> Poll<Result<(), BodyFault>> {
        self.window.decode()?;
        while !self.window.is_ended() && self.window.data().is_empty() {
            if self.window.room() < LITTLE_ROOM || !keep {
                self.window.rewind();
            }
            match self.window.poll_fill(&mut self.io, cx) {
                Poll::Ready(Ok(Filled::Some)) => {
                    self.uninvite();
                    self.window.decode()?;
                    self.pace.comes(self.window.data().len());
                }
                Poll::Ready(Ok(Filled::End) | Err(_)) => {
                    self.eof = true;
                    return Poll::Ready(Err(BodyFault::Gone));
                }
                Poll::Pending => {
                    self.pace.waits();
                    return match self.poll_invite(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Err(BodyFault::Gone)),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
        if self.window.is_ended()
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the client leaves although its answer is still to come. What it sends instead is kept, as far as there is
    /// room, for when its turn has come. While the body is read, that finds the end itself.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.window.is_ended() {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.poll_left(cx)
    }

    /// The same while nobody is there yet who would read the body: it is read as far as there is room.
    pub(super) fn poll_waits(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.window.is_ended() && !self.eof {
            if !self.window.has_room() {
                return Poll::Pending;
            }
            match ready!(self.window.poll_fill(&mut self.io, cx)) {
                Ok(Filled::Some) => {
                    self.uninvite();
                    // A fault in it is found again by whoever reads it.
                    let _ = self.window.decode();
                }
                Ok(Filled::End) | Err(_) => self.eof = true,
            }
        }
        self.poll_left(cx)
    }

    /// The same when the body has ended.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // One look ahead: a client that sends on does not wait for its answer, and is held back.
            if self.eof || self.window.has_more() || !self.window.has_room() {
                return if self.eof { Poll::Ready(()) } else { Poll::Pending };
            }
            match ready!(self.window.poll_fill(&mut self.io, cx)) {
                Ok(Filled::Some) => {}
                Ok(Filled::End) | Err(_) => self.eof = true,
            }
        }
    }

    /// Reads what is there of a head into the window. Ready with `false` at the end of the client's side.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.eof {
            return Poll::Ready(Ok(false));
        }
        match ready!(self.window.poll_fill(&mut self.io, cx))? {
            Filled::Some => Poll::Ready(Ok(true)),
            Filled::End => {
                self.eof = true;
                Poll::Ready(Ok(false))
            }
        }
    }

    /// There is nothing to wait for any more, unless it is half said.
    fn uninvite(&mut self) {
        self.hesitates = false;
        self.invitation = self.invitation.filter(|rest| rest.len() < CONTINUE.len());
    }

    /// Says what is left to be said of `100 Continue`.
    fn poll_invite(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(rest) = &mut self.invitation else {
            return Poll::Ready(Ok(()));
        };
        while !rest.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => *rest = &rest[written..],
            }
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.invitation = None;
        Poll::Ready(Ok(()))
    }

    /// Writes what is staged for the client, and with `flush` also what a TLS session keeps of it.
    pub(super) fn poll_give(
        &mut self,
        batch: &mut Batch,
        data: &[u8],
        flush: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let before = batch.written();
        let given = self.poll_given(batch, data, flush, cx);
        match &given {
            Poll::Pending => self
                .unread
                .waits(batch.written() != before, || self.io.confirmed()),
            Poll::Ready(_) => self.unread.clear(),
        }
        given
    }

    fn poll_given(
        &mut self,
        batch: &mut Batch,
        data: &[u8],
        flush: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if batch.is_pending() {
            // The final answer says all that it would; but half an interim one would spoil it.
            self.uninvite();
            ready!(self.poll_invite(cx))?;
            ready!(batch.poll_write(data, &mut self.io, cx))?;
        }
        if flush {
            // Nothing on a socket; of a TLS session what the socket did not take.
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Since when the client takes nothing of what it is given, as far as it shows.
    pub(super) fn unread_since(&self) -> Option<Instant> {
        self.unread.since()
    }

    /// See [`Stall::still_moves`].
    pub(super) fn still_reads(&mut self) -> bool {
        self.unread.still_moves(|| self.io.confirmed())
    }

    /// Ready when the client takes nothing of what it is given for `limit`.
    fn poll_unread(&mut self, limit: Duration, timer: &mut LazyTimer, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(since) = self.unread_since() {
            ready!(timer.poll(cx, since + limit));
            if !self.still_reads() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

/// As [`Inbound::poll_give`], for a client that takes something within every `limit`. Its side is borrowed for moments only:
/// a request body may be read from it meanwhile.
pub(super) async fn give<IO: ClientIo>(
    inbound: &RefCell<Inbound<IO>>,
    batch: &mut Batch,
    data: &[u8],
    flush: bool,
    limit: Duration,
    timer: &mut LazyTimer,
) -> io::Result<()> {
    poll_fn(|cx| {
        let inbound = &mut *inbound.borrow_mut();
        if let Poll::Ready(given) = inbound.poll_give(batch, data, flush, cx) {
            return Poll::Ready(given);
        }
        let unread = inbound.poll_unread(limit, timer, cx);
        unread.map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

/// Writes `bytes`, and all before them.
pub(super) async fn say<IO: ClientIo>(inbound: &RefCell<Inbound<IO>>, bytes: Vec<u8>) -> io::Result<()> {
    let mut batch = Batch::with_lead(bytes);
    batch.stage(0, false, true);
    poll_fn(|cx| inbound.borrow_mut().poll_give(&mut batch, b"", true, cx)).await
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::task::Waker;

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;
    use crate::config::Config;
    use crate::relay::buffers::Buffers;
    use crate::relay::http::head;

    /// A client that says this and no more, and takes so many bytes.
    struct Full {
        says: &'static [u8],
        room: usize,
        got: Vec<u8>,
    }

    impl AsyncRead for Full {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.says.is_empty() {
                return Poll::Pending;
            }
            buf.put_slice(std::mem::take(&mut self.says));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Full {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.got.extend_from_slice(&buf[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl ClientIo for Full {
        const FAREWELL: bool = false;

        fn set_abortive(&self, _: bool) {}

        fn confirmed(&self) -> Option<u64> {
            Some(self.got.len() as u64)
        }
    }

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

    /// Of that head.
    fn inbound(io: Full) -> Inbound<Full> {
        let (_, draining) = watch::channel(false);
        let window = Window::holding(Rc::new(Buffers::new(1000)), HEAD);
        let mut inbound = Inbound::new(io, window, Pace::new(&Config::default().limits), draining);
        let read = head::check(HEAD).unwrap();
        inbound
            .begin(HEAD.len(), read.outline, read.expects_continue)
            .unwrap();
        inbound
    }

    #[tokio::test]
    async fn who_began_to_send_is_not_invited() {
        let mut cx = Context::from_waker(Waker::noop());
        for early in [true, false] {
            let mut inbound = inbound(Full {
                says: b"ab",
                room: 1000,
                got: Vec::new(),
            });
            if early {
                // While there is no connection yet.
                assert!(inbound.poll_waits(&mut cx).is_pending());
            }
            assert!(matches!(inbound.poll_body(false, &mut cx), Poll::Ready(Ok(()))));
            assert_eq!(inbound.window.data(), b"ab");
            inbound.window.take_data();
            assert!(inbound.poll_body(false, &mut cx).is_pending());
            assert_eq!(inbound.io.got, b"");
        }
    }

    #[tokio::test]
    async fn an_answer_follows_all_of_an_invitation_or_none_of_it() {
        const ANSWER: &[u8] = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n";
        for said in 0..=CONTINUE.len() {
            let mut inbound = inbound(Full {
                says: b"",
                room: said,
                got: Vec::new(),
            });
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..2 {
                assert!(inbound.poll_body(false, &mut cx).is_pending());
            }
            assert_eq!(inbound.io.got, CONTINUE[..said]);
            assert!(inbound.unread_since().is_none(), "nothing was to be read yet");
            // It comes in two parts, too.
            let mut batch = Batch::with_lead(ANSWER.to_vec());
            batch.stage(0, false, true);
            inbound.io.room = 10;
            assert!(inbound.poll_give(&mut batch, b"", true, &mut cx).is_pending());
            let since = inbound.unread_since().unwrap();
            inbound.io.room = 1000;
            assert!(inbound.poll_give(&mut batch, b"", true, &mut cx).is_ready());
            assert!(since <= Instant::now() && inbound.unread_since().is_none());
            let expected = match said {
                0 => ANSWER.to_vec(),
                _ => [CONTINUE, ANSWER].concat(),
            };
            assert_eq!(
                inbound.io.got.escape_ascii().to_string(),
                expected.escape_ascii().to_string()
            );
        }
    }
}
