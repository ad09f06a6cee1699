//! The end of an HTTP/2 client's connection: what the client still sends is read for a moment and thrown away.
//!
//! Closing with bytes unread makes the kernel send a reset, which can destroy the GOAWAY that says why on its way to the
//! client (RFC 9113 section 5.4.1 wants it sent; RFC 9112 section 9.6 tells of the reset). In HTTP/1 `guard` does the same.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::guard::{LINGER, LINGER_BYTES};
use crate::relay::timer::LazyTimer;

/// A client's connection that ends gently.
#[derive(Debug)]
pub(super) struct Lingering<IO> {
    io: IO,
    /// Our side has ended: until when, and how much, is still read.
    rest: Option<(LazyTimer, Instant, usize)>,
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
            let until = Instant::now() + LINGER;
            *rest = Some((LazyTimer::new(until), until, LINGER_BYTES));
        }
        let Some((timer, until, left)) = rest else {
            return Poll::Ready(Ok(()));
        };
        let mut scratch = [0_u8; 4096];
        while *left > 0 {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    *left = left.saturating_sub(buf.filled().len());
                }
                // Its end, or a fault: nothing more will come.
                Poll::Ready(_) => break,
                Poll::Pending => {
                    ready!(timer.poll(cx, *until));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
