//! One request on its way to an intake of HTTP/1.1, and its answer on the way back: both at once, in one task, each through
//! one buffer.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::ClientIo;
use super::inbound::{BodyFault, Inbound};
use crate::relay::buffers::Buffers;
use crate::relay::http::batch::Batch;
use crate::relay::http::head::Violation;
use crate::relay::http::record::Record;
use crate::relay::http::reply::{self, Asked, Delimited};
use crate::relay::http::rewrite;
use crate::relay::http::window::{Filled, Window};
use crate::relay::timer::LazyTimer;
use crate::relay::upstream::Broken;
use crate::relay::upstream::pool::Wire;

/// What the client is told when it waits for permission to send its body (RFC 9110 section 10.1.1).
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Rounds through the loops of one poll before others get their turn: half a megabyte.
const ROUNDS: u32 = 8;

/// Why a request did not get, or not get to the end of, its answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The client left.
    Gone,
    /// The client broke its body or was too slow with it.
    Client(Violation),
    /// The intake, or the way to it.
    Intake(Broken),
    /// The intake took too long.
    Late,
    /// The intake switches protocols, which nobody asked for.
    Upgrade(StatusCode),
}

impl From<BodyFault> for Fault {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Gone => Self::Gone,
            BodyFault::Violation(violation) => Self::Client(violation),
        }
    }
}

/// How far the request is.
#[derive(Debug)]
enum Up {
    Moving,
    Done,
    /// It cannot be written on. The intake may have answered before it stopped reading.
    Stopped(Option<Broken>),
}

/// How far the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Down {
    Head,
    Body,
    /// All of it is read.
    Read,
    Done,
}

/// What bounds one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) response_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) max_head: usize,
}

/// Both messages.
#[derive(Debug)]
pub(super) struct Transfer {
    buffers: Rc<Buffers>,
    asked: Asked,
    bounds: Bounds,
    /// The request goes out with chunked framing.
    chunked: bool,
    /// It may have to be sent again.
    keep: bool,
    /// What is to be said before the body is asked for.
    interim: &'static [u8],
    up: Up,
    out: Batch,
    answer: Window,
    down: Down,
    delimited: Delimited,
    back: Batch,
    /// The intake's connection may be used again, as far as its answer says.
    reusable: bool,
    /// The last progress that was not the client's.
    progress: Instant,
    /// Since when the client does not read.
    unread_since: Option<Instant>,
}

impl Transfer {
    /// The request is sent with chunked framing or with its length; with `keep` it may have to be sent again.
    pub(super) fn new(
        buffers: &Rc<Buffers>,
        asked: Asked,
        bounds: Bounds,
        chunked: bool,
        keep: bool,
    ) -> Self {
        Self {
            buffers: Rc::clone(buffers),
            asked,
            bounds,
            chunked,
            keep,
            interim: b"",
            up: Up::Moving,
            out: Batch::with_lead(buffers.take_head()),
            answer: Window::new(Rc::clone(buffers), b""),
            down: Down::Head,
            delimited: Delimited::AsIs,
            back: Batch::with_lead(buffers.take_head()),
            reusable: false,
            progress: Instant::now(),
            unread_since: None,
        }
    }

    /// Where the request's head is written to, before the first poll.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        &mut self.out.lead
    }

    /// The head is there, and what there is of the body goes with it.
    pub(super) fn begin<IO: ClientIo>(&mut self, inbound: &Inbound<IO>, expects_continue: bool) {
        let window = &inbound.window;
        self.out
            .stage(window.data().len(), self.chunked, window.is_ended());
        if expects_continue && !window.is_ended() && window.data().is_empty() {
            self.interim = CONTINUE;
        }
    }

    /// True once a part of the answer may have reached the client.
    pub(super) fn is_begun(&self) -> bool {
        self.down != Down::Head
    }

    /// True when the intake's connection can carry another request.
    pub(super) fn is_reusable(&self) -> bool {
        self.reusable && matches!(self.up, Up::Done) && self.down == Down::Done && !self.answer.has_more()
    }

    /// True when the whole request was sent.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.up, Up::Done)
    }

    /// What the client was told of its connection.
    pub(super) fn keeps_client(&self) -> bool {
        self.asked.keep_alive && self.delimited != Delimited::Close
    }

    /// True when the client takes the end of its connection for the end of its answer.
    pub(super) fn ends_with_connection(&self) -> bool {
        self.delimited == Delimited::Close
    }

    /// Moves both messages as far as they go. Ready when the answer is with the client and the request is sent, or cannot
    /// be sent any more.
    pub(super) fn poll<IO: ClientIo>(
        &mut self,
        inbound: &mut Inbound<IO>,
        wire: &mut dyn Wire,
        record: &mut Record,
        timer: &mut LazyTimer,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        let up = self.poll_up(inbound, wire, record, cx);
        if let Poll::Ready(Err(fault)) = up {
            // An answer that is complete is one, whatever becomes of the rest of its request.
            return Poll::Ready(if self.down == Down::Done {
                Ok(())
            } else {
                Err(fault)
            });
        }
        let down = self.poll_down(inbound, wire, record, cx);
        match down {
            Poll::Ready(Ok(())) if up.is_ready() || matches!(self.up, Up::Stopped(_)) => {
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        // Until its body has ended, whoever reads that finds the end.
        let watched = self.down != Down::Done && inbound.window.is_ended();
        if watched && inbound.poll_left(cx).is_ready() {
            return Poll::Ready(Err(Fault::Gone));
        }
        ready!(timer.poll(cx, self.deadline(inbound)));
        Poll::Ready(self.expired(inbound))
    }

    /// The time limit of what is waited for.
    fn deadline<IO>(&self, inbound: &Inbound<IO>) -> Instant {
        match (self.unread_since, inbound.owed_since) {
            (Some(since), _) | (None, Some(since)) => since + self.bounds.idle_timeout,
            (None, None) => self.progress + self.bounds.response_timeout,
        }
    }

    fn expired<IO>(&self, inbound: &Inbound<IO>) -> Result<(), Fault> {
        match (self.unread_since, inbound.owed_since) {
            (Some(_), _) => Err(Fault::Gone),
            _ if self.down == Down::Done => Ok(()),
            (None, Some(_)) => Err(Fault::Client(Violation::BodyTimeout)),
            (None, None) => Err(Fault::Late),
        }
    }

    /// The request. Ready when it is sent, or never will be.
    fn poll_up<IO: ClientIo>(
        &mut self,
        inbound: &mut Inbound<IO>,
        wire: &mut dyn Wire,
        record: &mut Record,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        if !matches!(self.up, Up::Moving) {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..ROUNDS {
            match ready!(self.poll_send(inbound, wire, record, cx)) {
                Ok(()) => {}
                Err(error) => {
                    self.up = Up::Stopped(Some(error.into()));
                    return Poll::Ready(Ok(()));
                }
            }
            if inbound.window.is_ended() && inbound.window.data().is_empty() {
                self.up = Up::Done;
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_interim(inbound, cx))?;
            ready!(inbound.poll_body(self.keep, cx))?;
            self.progress = Instant::now();
            let window = &inbound.window;
            self.out
                .stage(window.data().len(), self.chunked, window.is_ended());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is staged, and lets the TLS session's own buffer run empty before more is read.
    fn poll_send<IO: ClientIo>(
        &mut self,
        inbound: &mut Inbound<IO>,
        wire: &mut dyn Wire,
        record: &mut Record,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.out.is_pending() {
            ready!(self.out.poll_write(inbound.window.data(), wire, cx))?;
            record.add_bytes_up(inbound.window.data().len());
            inbound.window.take_data();
            self.progress = Instant::now();
        }
        Pin::new(wire).poll_flush(cx)
    }

    fn poll_interim<IO: ClientIo>(
        &mut self,
        inbound: &mut Inbound<IO>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        // An answer that has begun says what the interim one would.
        if self.is_begun() {
            self.interim = b"";
        }
        while !self.interim.is_empty() {
            let io = Pin::new(&mut inbound.io);
            match ready!(io.poll_write(cx, self.interim)) {
                Ok(written @ 1..) => self.interim = &self.interim[written..],
                Ok(0) | Err(_) => return Poll::Ready(Err(Fault::Gone)),
            }
            if self.interim.is_empty() {
                ready!(Pin::new(&mut inbound.io).poll_flush(cx)).map_err(|_| Fault::Gone)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The answer. Ready when all of it is with the client.
    fn poll_down<IO: ClientIo>(
        &mut self,
        inbound: &mut Inbound<IO>,
        wire: &mut dyn Wire,
        record: &mut Record,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        for _ in 0..ROUNDS {
            if self.down == Down::Done {
                return Poll::Ready(Ok(()));
            }
            match self.poll_give(&mut inbound.io, record, cx) {
                Poll::Ready(Ok(())) => self.unread_since = None,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Gone)),
                Poll::Pending => {
                    self.unread_since.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
            if self.down == Down::Read {
                self.down = Down::Done;
                return Poll::Ready(Ok(()));
            }
            if self.down == Down::Body {
                // All of it is given: the next part has the whole buffer.
                self.answer.rewind();
            } else if !self.answer.has_room() {
                return Poll::Ready(Err(Fault::Intake(Broken::Http("its response head is too long"))));
            }
            let filled = match ready!(self.answer.poll_fill(wire, cx)) {
                Ok(filled) => filled,
                Err(error) => return Poll::Ready(Err(self.broken(error.into()))),
            };
            self.progress = Instant::now();
            match (filled, self.down) {
                (Filled::Some, Down::Head) => self.read_head(inbound.is_last(), record)?,
                (Filled::Some, _) => self.stage()?,
                (Filled::End, Down::Body) if self.answer.is_until_end() => {
                    self.answer.end_body();
                    self.stage()?;
                }
                (Filled::End, Down::Head) => {
                    let why = Broken::Http("it closed the connection without an answer");
                    return Poll::Ready(Err(self.broken(why)));
                }
                (Filled::End, _) => {
                    let why = Broken::Http("it closed the connection within its answer");
                    return Poll::Ready(Err(Fault::Intake(why)));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Why there is no answer: what stopped the request says more than the silence after it.
    fn broken(&mut self, why: Broken) -> Fault {
        Fault::Intake(match &mut self.up {
            Up::Stopped(error) => error.take().unwrap_or(why),
            Up::Moving | Up::Done => why,
        })
    }

    fn poll_give<IO: ClientIo>(
        &mut self,
        io: &mut IO,
        record: &mut Record,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.back.is_pending() {
            ready!(self.back.poll_write(self.answer.data(), io, cx))?;
            record.add_bytes_down(self.answer.data().len());
            self.answer.take_data();
        }
        // Nothing on a socket; in a TLS session what the socket did not take.
        if self.down == Down::Read || self.delimited != Delimited::AsIs {
            return Pin::new(io).poll_flush(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// Looks for a complete head, and for the final one behind interim ones.
    fn read_head(&mut self, last: bool, record: &mut Record) -> Result<(), Fault> {
        self.asked.keep_alive &= !last;
        let http = |why| Fault::Intake(Broken::Http(why));
        loop {
            let (asked, lead) = (self.asked, &mut self.back.lead);
            let bytes = self.answer.raw();
            let read = reply::read(bytes, asked, |response, delimited| {
                rewrite::response_head(response, delimited, asked, lead);
            })
            .map_err(http)?;
            let Some((reply, delimited)) = read else {
                return if bytes.len() > self.bounds.max_head {
                    Err(http("its response head is too long"))
                } else {
                    Ok(())
                };
            };
            if reply.len > self.bounds.max_head {
                return Err(http("its response head is too long"));
            }
            if reply.is_interim() {
                self.answer.skip(reply.len);
                if self.answer.raw().is_empty() {
                    return Ok(());
                }
                continue;
            }
            if reply.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Fault::Upgrade(reply.status));
            }
            record.set_status(reply.status);
            self.delimited = delimited;
            self.reusable = reply.keep_alive;
            self.down = Down::Body;
            // Never sent again: nothing of the request needs to be kept.
            self.keep = false;
            self.answer.begin_body(reply.len, reply.body);
            return self.stage();
        }
    }

    /// What was read is the next to be given.
    fn stage(&mut self) -> Result<(), Fault> {
        self.answer
            .decode()
            .map_err(|_| Fault::Intake(Broken::Http("its chunked framing is malformed")))?;
        if self.answer.is_ended() {
            self.down = Down::Read;
        }
        let chunked = self.delimited == Delimited::Chunked;
        self.back
            .stage(self.answer.data().len(), chunked, self.answer.is_ended());
        Ok(())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        for batch in [&mut self.out, &mut self.back] {
            self.buffers.give_back_head(std::mem::take(&mut batch.lead));
        }
    }
}
