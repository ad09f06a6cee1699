//! What a client sends: its socket or TLS session, and the window on it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::relay::http::batch::Batch;
use crate::relay::http::head::Violation;
use crate::relay::http::window::{Filled, Window};

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
    /// Since when the client owes body bytes that were asked for.
    pub(super) owed_since: Option<Instant>,
    /// Somebody waits for the end of the body.
    waiting: Option<Waker>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Inbound<IO> {
    pub(super) fn new(io: IO, window: Window, drain: watch::Receiver<bool>) -> Self {
        Self {
            io,
            window,
            eof: false,
            drain,
            owed_since: None,
            waiting: None,
        }
    }

    /// We drain: an answer that begins now is the connection's last.
    pub(super) fn is_last(&self) -> bool {
        // Nobody could stop us any more without the sender, so we stop.
        *self.drain.borrow() || self.drain.has_changed().is_err()
    }

    /// Reads more of the body, once all that was there is taken. With `keep`, what was taken stays as long as there is
    /// room. Ready when something came or the body has ended.
    pub(super) fn poll_body(&mut self, keep: bool, cx: &mut Context<'_>) -> Poll<Result<(), BodyFault>> {
        self.window.decode()?;
        while !self.window.is_ended() && self.window.data().is_empty() {
            if self.window.room() < LITTLE_ROOM || !keep {
                self.window.rewind();
            }
            match self.window.poll_fill(&mut self.io, cx) {
                Poll::Ready(Ok(Filled::Some)) => {
                    self.owed_since = None;
                    self.window.decode()?;
                }
                Poll::Ready(Ok(Filled::End) | Err(_)) => {
                    self.eof = true;
                    return Poll::Ready(Err(BodyFault::Gone));
                }
                Poll::Pending => {
                    // Since now, and not since we last wanted some.
                    self.owed_since.get_or_insert_with(Instant::now);
                    return Poll::Pending;
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
                // A fault in it is found again by whoever reads it.
                Ok(Filled::Some) => drop(self.window.decode()),
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
}

/// Writes what is staged. The client's side is borrowed for moments only: a request body may be read from it meanwhile.
pub(super) async fn write<IO: AsyncWrite + Unpin>(
    inbound: &RefCell<Inbound<IO>>,
    batch: &mut Batch,
    data: &[u8],
) -> io::Result<()> {
    poll_fn(|cx| match batch.is_pending() {
        true => batch.poll_write(data, &mut inbound.borrow_mut().io, cx),
        false => Poll::Ready(Ok(())),
    })
    .await
}

/// What a TLS session keeps goes to its socket.
pub(super) async fn flush<IO: AsyncWrite + Unpin>(inbound: &RefCell<Inbound<IO>>) -> io::Result<()> {
    poll_fn(|cx| Pin::new(&mut inbound.borrow_mut().io).poll_flush(cx)).await
}

/// Writes `bytes`, and all before them.
pub(super) async fn say<IO: AsyncWrite + Unpin>(
    inbound: &RefCell<Inbound<IO>>,
    bytes: Vec<u8>,
) -> io::Result<()> {
    let mut batch = Batch::with_lead(bytes);
    batch.stage(0, false, true);
    write(inbound, &mut batch, b"").await?;
    flush(inbound).await
}
