//! The end of a client's connection: what the client still sends is read for a moment and thrown away.
//!
//! Closing with bytes unread makes the kernel send a reset, which can destroy our last words on their way to the client: in
//! HTTP/1 a refusal, or an answer before the end of the body (RFC 9112 section 9.6 tells of the reset), in HTTP/2 the GOAWAY
//! that says why (RFC 9113 section 5.4.1 wants it sent). In HTTP/1 `server1` decides when; in HTTP/2 [`Lingering`] always does.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::relay::timer::LazyTimer;

/// For how long it is read.
const LINGER: Duration = Duration::from_secs(1);
/// And at most this much of it.
const LINGER_BYTES: usize = 512 * 1024;

/// Our side has ended: until when, and how much, is still read.
#[derive(Debug)]
pub(super) struct Linger {
    until: Instant,
    left: usize,
}

impl Linger {
    /// From now on.
    pub(super) fn begin() -> Self {
        Self {
            until: Instant::now() + LINGER,
            left: LINGER_BYTES,
        }
    }

    /// Ready when the client has ended too, or it was enough.
    pub(super) fn poll<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        timer: &mut LazyTimer,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut scratch = [0_u8; 4096];
        while timer.poll(cx, self.until).is_pending() && self.left > 0 {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    self.left = self.left.saturating_sub(buf.filled().len());
                }
                // Its end, or a fault: nothing more will come.
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

/// A client's connection that ends gently.
#[derive(Debug)]
pub(super) struct Lingering<IO> {
    io: IO,
    /// Our side has ended.
    rest: Option<(LazyTimer, Linger)>,
}

impl<IO> Lingering<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, rest: None }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Lingering<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, rest } = self.get_mut();
        if rest.is_none() {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
            let linger = Linger::begin();
            *rest = Some((LazyTimer::new(linger.until), linger));
        }
        match rest {
            Some((timer, linger)) => linger.poll(io, timer, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}
