//! The part of an HTTP/1 message that is in memory: read into one buffer and decoded in place.
//!
//! ```text
//!  0        head        data.start    data.end     raw            end            size
//!  │ the head │  body that was taken  │ body to take │ (free) │ not decoded yet │ free │
//! ```
//!
//! Only chunked framing makes `raw` differ from `data.end`: data moves down over the framing before it. While a head is
//! there, everything behind it is kept too, so that a request can be sent once more; [`Window::rewind`] gives that up.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::chunk::{Chunked, Piece};
use super::head::{Framing, Violation};
use crate::relay::buffers::{Buffer, Buffers};

/// How a body that is being read is framed.
#[derive(Debug)]
pub(super) enum Body {
    /// It has ended.
    Ended,
    /// This much is to come.
    Length(u64),
    Chunked(Chunked),
    /// It ends with the connection (answers only, RFC 9112 section 6.3).
    UntilEnd,
    /// Its framing is malformed: nothing more can be believed.
    Broken(Violation),
}

impl From<Framing> for Body {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Ended,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::new()),
        }
    }
}

/// The window on what one side sends.
#[derive(Debug)]
pub(in crate::relay) struct Window {
    buffers: Rc<Buffers>,
    /// Only while there is something in it.
    buffer: Option<Buffer>,
    /// Where the head ends that is kept; 0 when none is.
    head: usize,
    /// Body bytes that nobody has taken yet.
    data: Range<usize>,
    /// Where the bytes begin that were not looked at.
    raw: usize,
    end: usize,
    body: Body,
}

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum Filled {
    /// Bytes.
    Some,
    /// The end of the stream.
    End,
}

impl Window {
    /// With nothing in it yet.
    pub(in crate::relay) fn new(buffers: Rc<Buffers>) -> Self {
        Self {
            buffers,
            buffer: None,
            head: 0,
            data: 0..0,
            raw: 0,
            end: 0,
            body: Body::Ended,
        }
    }

    /// With what a client sent before.
    #[cfg(any(test, feature = "counts", feature = "fuzz"))]
    pub(in crate::relay) fn holding(buffers: Rc<Buffers>, bytes: &[u8]) -> Self {
        let mut window = Self::new(buffers);
        let mut buffer = window.buffers.take();
        buffer.extend_from_slice(bytes);
        window.end = buffer.len();
        window.buffer = Some(buffer);
        window
    }

    /// Reads more behind what is there. There must be room: see [`Window::has_room`].
    pub(in crate::relay) fn poll_fill<IO: AsyncRead + Unpin + ?Sized>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Filled>> {
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => self.buffers.take(),
        };
        buffer.truncate(self.end);
        // It has room, so it does not grow.
        let read = pin!(io.read_buf(&mut buffer)).poll(cx);
        let filled = buffer.len() - self.end;
        self.end += filled;
        let result = match read {
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        if self.end == 0 {
            // Nothing came and nothing was there: whoever waits holds no buffer.
            self.buffers.give_back(buffer);
        } else {
            self.buffer = Some(buffer);
        }
        ready!(result)?;
        Poll::Ready(Ok(match filled {
            0 => Filled::End,
            _ => Filled::Some,
        }))
    }

    /// True when more can be read.
    pub(in crate::relay) fn has_room(&self) -> bool {
        self.end < self.buffers.size()
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }

    /// What is not decoded: a head, or a part of it.
    pub(in crate::relay) fn raw(&self) -> &[u8] {
        &self.bytes()[self.raw..self.end]
    }

    /// Leaves out this much of it: an interim head.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.raw += bytes;
        self.data = self.raw..self.raw;
        self.rewind();
    }

    /// The bytes up to here are a message's head, and its body follows. [`Window::start`] came before.
    pub(super) fn begin_body(&mut self, head: usize, body: Body) {
        self.head = head;
        self.raw = head;
        self.data = head..head;
        self.body = body;
    }

    /// The head that is kept.
    pub(super) fn head(&self) -> &[u8] {
        &self.bytes()[..self.head]
    }

    /// Decodes what is there.
    ///
    /// # Errors
    /// The framing is malformed.
    pub(super) fn decode(&mut self) -> Result<(), Violation> {
        let Some(buffer) = &mut self.buffer else {
            return Ok(());
        };
        while self.raw < self.end {
            let here = self.end - self.raw;
            let data = match &mut self.body {
                Body::Ended => break,
                Body::Broken(violation) => return Err(*violation),
                Body::UntilEnd => here,
                Body::Length(left) => {
                    let data = usize::try_from(*left).unwrap_or(usize::MAX).min(here);
                    *left -= data as u64;
                    if *left == 0 {
                        self.body = Body::Ended;
                    }
                    data
                }
                Body::Chunked(chunked) => match chunked.next(&buffer[self.raw..self.end]) {
                    Ok(Piece::Data(data)) => data,
                    Ok(Piece::Framing(framing)) => {
                        self.raw += framing;
                        continue;
                    }
                    Ok(Piece::End(framing)) => {
                        self.raw += framing;
                        self.body = Body::Ended;
                        break;
                    }
                    Err((_, violation)) => {
                        self.body = Body::Broken(violation);
                        return Err(violation);
                    }
                },
            };
            if self.raw != self.data.end {
                buffer.copy_within(self.raw..self.raw + data, self.data.end);
            }
            self.data.end += data;
            self.raw += data;
        }
        if self.raw == self.end {
            // Framing leaves no hole behind.
            self.raw = self.data.end;
            self.end = self.data.end;
        }
        Ok(())
    }

    /// True when the last byte of the body was decoded.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.body, Body::Ended)
    }

    /// True when it goes on until the connection ends.
    pub(super) fn is_until_end(&self) -> bool {
        matches!(self.body, Body::UntilEnd)
    }

    /// The connection ended where the body may.
    pub(super) fn end_body(&mut self) {
        self.body = Body::Ended;
    }

    /// Body bytes to take.
    pub(super) fn data(&self) -> &[u8] {
        &self.bytes()[self.data.clone()]
    }

    /// They were taken.
    pub(super) fn take_data(&mut self) {
        self.data.start = self.data.end;
    }

    /// They are to be taken from the first one on again. Only while the head is kept.
    pub(super) fn untake_data(&mut self) {
        self.data.start = self.head;
    }

    /// True while the whole message, as far as it came, is still here.
    pub(super) fn is_whole(&self) -> bool {
        self.head > 0
    }

    /// Bytes behind what is there.
    pub(super) fn room(&self) -> usize {
        self.buffers.size().saturating_sub(self.end)
    }

    /// Makes room for more of the body: forgets the head and what was taken.
    pub(super) fn rewind(&mut self) {
        let rest = self.data.start..self.end;
        if let Some(buffer) = &mut self.buffer {
            buffer.copy_within(rest.clone(), 0);
        }
        let forgotten = rest.start;
        self.head = 0;
        self.data = 0..self.data.end - forgotten;
        self.raw -= forgotten;
        self.end -= forgotten;
        self.release();
    }

    /// The message is over: what follows it, if anything, is the next one.
    pub(super) fn start(&mut self) {
        self.data.start = self.raw;
        self.data.end = self.raw;
        self.body = Body::Ended;
        self.rewind();
    }

    /// True when something follows a message that has ended.
    pub(super) fn has_more(&self) -> bool {
        self.raw < self.end
    }

    fn release(&mut self) {
        if self.end == 0
            && let Some(buffer) = self.buffer.take()
        {
            self.buffers.give_back(buffer);
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.buffers.give_back(buffer);
        }
    }
}

#[cfg(test)]
#[path = "window/tests.rs"]
mod tests;
