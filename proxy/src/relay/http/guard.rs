//! The framing guard: stands between the socket and hyper, and shows hyper exactly one well-formed message at a time.
//!
//! A head is collected, checked by `head` and only then handed on; the body's framing is followed (not copied, not
//! changed) to find the next head. A refused head looks to hyper like the end of the connection; when hyper then shuts
//! it down, the guard writes the refusal itself. A fault inside a body is an I/O error: the upstream request is aborted.
//! The next pipelined message is held back until the one before is answered, so that a refusal never cuts an answer.
//!
//! It also owns the client's time limits: idle between requests, a slow head, a stalled body, an unread answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::answer;
use super::chunk::Chunked;
use super::exchange::Exchange;
use super::head::{self, Framing, Violation};
use super::linger::Linger;
use crate::config::Limits;
use crate::relay::timer::LazyTimer;

/// What the next byte from the client belongs to.
#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    /// The message is complete; nothing goes on until it is answered.
    Hold,
    /// A head was refused: hyper sees the end once the message before is answered.
    Refused,
    /// Framing inside a body was malformed, or the body stalled: hyper sees an error.
    Broken(Violation),
    /// The client ended the connection.
    Eof,
}

/// How far closing has come.
#[derive(Debug)]
enum Closing {
    Not,
    Answer { bytes: Vec<u8>, written: usize },
    Fin,
    Linger(Linger),
    Done,
}

/// The guard around a client's socket.
#[derive(Debug)]
pub(in crate::relay) struct Guard<IO> {
    io: IO,
    exchange: Rc<Exchange>,
    state: State,
    /// Bytes that came but were not handed on: a partial head, or a pipelined message. Empty, and without memory, on
    /// the usual way.
    pending: Vec<u8>,
    /// How much of `pending` was checked and may be handed on.
    cleared: usize,
    /// How much of a partial head was searched for its end.
    searched: usize,
    eof: bool,
    max_head: usize,
    header_timeout: Duration,
    idle_timeout: Duration,
    head_since: Instant,
    /// Since when the client owes body bytes that we asked for; not since we last wanted some.
    body_since: Option<Instant>,
    write_since: Option<Instant>,
    timer: LazyTimer,
    closing: Closing,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Guard<IO> {
    /// Guards `io`; `prefix` was read from it before.
    pub(in crate::relay) fn new(io: IO, prefix: Vec<u8>, exchange: Rc<Exchange>, limits: &Limits) -> Self {
        let now = Instant::now();
        exchange.set_partial(!prefix.is_empty());
        Self {
            io,
            exchange,
            state: State::Head,
            pending: prefix,
            cleared: 0,
            searched: 0,
            eof: false,
            max_head: limits.max_header_bytes,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            head_since: now,
            body_since: None,
            write_since: None,
            timer: LazyTimer::new(now + limits.idle_timeout),
            closing: Closing::Not,
        }
    }

    /// Goes over `bytes` and gives how many may be handed to hyper now.
    fn scan(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.state {
                State::Head => match self.scan_head(rest) {
                    Some(len) => at += len,
                    None => break,
                },
                State::Length(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= here as u64;
                    at += here;
                    if *left == 0 {
                        self.state = State::Hold;
                    }
                }
                State::Chunked(chunked) => match chunked.advance(rest) {
                    Ok((used, ended)) => {
                        at += used;
                        if ended {
                            self.state = State::Hold;
                        }
                    }
                    Err((used, violation)) => {
                        at += used;
                        self.exchange.violate(violation);
                        self.state = State::Broken(violation);
                    }
                },
                State::Hold | State::Refused | State::Broken(_) | State::Eof => break,
            }
        }
        at
    }

    /// The length of a complete and good head at the start of `bytes`.
    fn scan_head(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.searched == 0 {
            self.head_since = Instant::now();
        }
        let found = head::find_end(bytes, self.searched);
        let checked = match found {
            Ok(Some(end)) if end > self.max_head => Err(Violation::HeadTooLarge),
            Ok(None) if bytes.len() > self.max_head => Err(Violation::HeadTooLarge),
            Ok(None) => {
                self.searched = bytes.len();
                self.exchange.set_partial(true);
                return None;
            }
            Ok(Some(end)) => match head::check(&bytes[..end]) {
                Ok(head) if head.upgrade => Err(Violation::Upgrade),
                Ok(head) => Ok((end, head.framing)),
                Err(violation) => Err(violation),
            },
            Err(violation) => Err(violation),
        };
        self.searched = 0;
        self.exchange.set_partial(false);
        match checked {
            Ok((end, framing)) => {
                self.exchange.begin();
                self.state = match framing {
                    Framing::None => State::Hold,
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::Chunked(Chunked::new()),
                };
                Some(end)
            }
            Err(violation) => {
                self.refuse(violation);
                None
            }
        }
    }

    fn refuse(&mut self, violation: Violation) {
        self.exchange.violate(violation);
        self.exchange.set_partial(false);
        self.state = State::Refused;
        self.closing = Closing::Answer {
            bytes: answer::refusal(violation),
            written: 0,
        };
    }

    /// Hands on what is cleared in `pending`.
    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) {
        let len = self.cleared.min(buf.remaining());
        buf.put_slice(&self.pending[..len]);
        self.cleared -= len;
        if len == self.pending.len() {
            self.pending = Vec::new();
        } else {
            self.pending.drain(..len);
        }
    }

    /// Reads from the socket into `buf`, keeps what may not be handed on yet. True when `buf` got something.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.body_since = None;
        if buf.filled().len() == before {
            self.eof = true;
            return Poll::Ready(Ok(false));
        }
        let cleared = if self.pending.is_empty() {
            self.scan(&buf.filled()[before..])
        } else {
            0
        };
        let keep = before + cleared;
        if keep < buf.filled().len() {
            self.pending.extend_from_slice(&buf.filled()[keep..]);
            buf.set_filled(keep);
        }
        Poll::Ready(Ok(cleared > 0))
    }

    /// The client's time limit for what it is doing now; `None` while it waits for us.
    fn deadline(&self) -> Option<Instant> {
        if let Some(since) = self.write_since {
            return Some(since + self.idle_timeout);
        }
        match self.state {
            State::Head if self.exchange.partial() => Some(self.head_since + self.header_timeout),
            State::Head => Some(self.exchange.idle_since() + self.idle_timeout),
            State::Length(_) | State::Chunked(_) => self.body_since.map(|since| since + self.idle_timeout),
            State::Hold | State::Refused | State::Broken(_) | State::Eof => None,
        }
    }

    /// True when the client's time is up; else the task will be woken in time.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> bool {
        match self.deadline() {
            Some(deadline) => self.timer.poll(cx, deadline).is_ready(),
            None => {
                // Kept armed, so that the wait after this answer has a limit although nobody polls us at its start.
                let later = Instant::now() + self.idle_timeout;
                self.timer.poll(cx, later).is_ready()
            }
        }
    }

    /// The time is up: decides what hyper is told.
    fn expire(&mut self) -> io::Result<()> {
        if self.write_since.is_some() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read its answer",
            ));
        }
        match self.state {
            State::Head if self.exchange.partial() => self.refuse(Violation::HeadTimeout),
            State::Length(_) | State::Chunked(_) => {
                self.exchange.violate(Violation::BodyTimeout);
                self.state = State::Broken(Violation::BodyTimeout);
            }
            _ => self.state = State::Eof,
        }
        Ok(())
    }

    /// Waits for the answer before; `true` when there is nothing to wait for.
    fn idle_or_wait(&self, cx: &Context<'_>) -> bool {
        let idle = !self.exchange.is_busy();
        if !idle {
            self.exchange.wake_at_end(cx);
        }
        idle
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.cleared > 0 {
                this.hand_on(buf);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Broken(violation) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
                }
                State::Eof => return Poll::Ready(Ok(())),
                State::Refused => {
                    return if this.idle_or_wait(cx) {
                        Poll::Ready(Ok(()))
                    } else {
                        Poll::Pending
                    };
                }
                State::Hold if !this.exchange.is_busy() => {
                    this.state = State::Head;
                    continue;
                }
                // A pipelined message waits its turn; the socket is not read further.
                State::Hold if !this.pending.is_empty() => {
                    this.idle_or_wait(cx);
                    return Poll::Pending;
                }
                State::Hold | State::Head | State::Length(_) | State::Chunked(_) => {}
            }
            let fresh = if matches!(this.state, State::Head) {
                this.searched
            } else {
                0
            };
            if this.pending.len() > fresh && !matches!(this.state, State::Hold) {
                let pending = std::mem::take(&mut this.pending);
                this.cleared = this.scan(&pending);
                this.pending = pending;
                if this.cleared > 0 || !matches!(this.state, State::Head) {
                    continue;
                }
            }
            if this.eof {
                this.state = State::Eof;
                continue;
            }
            match this.poll_fill(cx, buf) {
                Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.body_since.get_or_insert_with(Instant::now);
                    if !this.poll_deadline(cx) {
                        return Poll::Pending;
                    }
                    if this.deadline().is_some() {
                        this.expire()?;
                    }
                }
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_write_vectored(cx, slices) {
            Poll::Ready(result) => {
                this.write_since = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                this.write_since.get_or_insert_with(Instant::now);
                if this.poll_deadline(cx) {
                    this.expire()?;
                }
                Poll::Pending
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.closing {
                Closing::Not => this.closing = Closing::Fin,
                Closing::Answer { bytes, written } => {
                    while *written < bytes.len() {
                        *written += ready!(Pin::new(&mut this.io).poll_write(cx, &bytes[*written..]))?;
                    }
                    ready!(Pin::new(&mut this.io).poll_flush(cx))?;
                    this.closing = Closing::Fin;
                }
                Closing::Fin => {
                    ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                    // Nothing more can come after a complete message of a client that waits for its answer.
                    let finished = matches!(this.state, State::Hold) && this.pending.is_empty();
                    this.closing = if !this.eof && !finished {
                        Closing::Linger(Linger::begin())
                    } else {
                        Closing::Done
                    };
                }
                Closing::Linger(linger) => {
                    ready!(linger.poll(&mut this.io, &mut this.timer, cx));
                    this.closing = Closing::Done;
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}
