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
pub(super) use super::fault::Fault;
use super::inbound::Inbound;
use crate::relay::buffers::Buffers;
use crate::relay::http::batch::Batch;
use crate::relay::http::head::Violation;
use crate::relay::http::record::Record;
use crate::relay::http::reply::{self, Asked, Delimited};
use crate::relay::http::rewrite;
use crate::relay::http::stall::Stall;
use crate::relay::http::window::{Filled, Window};
use crate::relay::timer::LazyTimer;
use crate::relay::upstream::Broken;
use crate::relay::upstream::pool::Wire;

/// Interim answers to one request (RFC 9110 section 15.2). We ask for none and pass none on; one every few seconds of the
/// default `upstream.response_timeout`, 60 s, is what an intake may need that wants to say that it works. Go's client allowed
/// five.
const INTERIM: u32 = 16;
/// Rounds through the loops of one poll before others get their turn: half a megabyte.
const ROUNDS: u32 = 8;

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
    up: Up,
    out: Batch,
    /// Whether the intake takes the request.
    unsent: Stall,
    answer: Window,
    down: Down,
    /// Interim answers so far.
    interim: u32,
    delimited: Delimited,
    back: Batch,
    /// The intake's connection may be used again, as far as its answer says.
    reusable: bool,
    /// The last progress that was not the client's.
    progress: Instant,
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
            up: Up::Moving,
            out: Batch::with_lead(buffers.take_head()),
            unsent: Stall::default(),
            answer: Window::new(Rc::clone(buffers)),
            down: Down::Head,
            interim: 0,
            delimited: Delimited::AsIs,
            back: Batch::with_lead(buffers.take_head()),
            reusable: false,
            progress: Instant::now(),
        }
    }

    /// Where the request's head is written to, before the first poll.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        &mut self.out.lead
    }

    /// The head is there, and what there is of the body goes with it.
    pub(super) fn begin<IO: ClientIo>(&mut self, inbound: &Inbound<IO>) {
        let window = &inbound.window;
        self.out
            .stage(window.data().len(), self.chunked, window.is_ended());
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
        loop {
            ready!(timer.poll(cx, self.deadline(inbound)));
            if !self.still_moves(inbound, wire) {
                return Poll::Ready(self.expired(inbound));
            }
        }
    }

    /// The time limit of what is waited for.
    fn deadline<IO: ClientIo>(&self, inbound: &Inbound<IO>) -> Instant {
        match (inbound.unread_since(), inbound.pace.deadline()) {
            (Some(since), _) => since + self.bounds.idle_timeout,
            (None, Some(deadline)) => deadline,
            (None, None) => self.progress + self.bounds.response_timeout,
        }
    }

    /// That time is over: asks the kernel whether more was taken of what we wrote than it told us.
    fn still_moves<IO: ClientIo>(&mut self, inbound: &mut Inbound<IO>, wire: &dyn Wire) -> bool {
        if inbound.unread_since().is_some() {
            return inbound.still_reads();
        }
        if inbound.pace.is_waiting() {
            return false;
        }
        let moves = match (self.unsent.since(), wire.sent()) {
            (Some(_), sent) => self.unsent.still_moves(|| sent.map(|(confirmed, _)| confirmed)),
            // The kernel took all of it, but the intake has not yet: from now on it is looked at.
            (None, Some((confirmed, written))) if confirmed < written => {
                self.unsent.waits(true, || Some(confirmed));
                true
            }
            (None, _) => false,
        };
        if moves {
            self.progress = Instant::now();
        }
        moves
    }

    fn expired<IO: ClientIo>(&self, inbound: &Inbound<IO>) -> Result<(), Fault> {
        if inbound.unread_since().is_some() {
            Err(Fault::Gone)
        } else if self.down == Down::Done {
            Ok(())
        } else if inbound.pace.is_waiting() {
            Err(Fault::Client(Violation::BodyTimeout))
        } else {
            Err(Fault::Late)
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
        let before = self.out.written();
        let mut sent = Poll::Ready(Ok(()));
        if self.out.is_pending() {
            sent = self.out.poll_write(inbound.window.data(), wire, cx);
            if !self.out.is_pending() {
                record.add_bytes_up(inbound.window.data().len());
                inbound.window.take_data();
            }
        }
        if let Poll::Ready(Ok(())) = sent {
            sent = Pin::new(&mut *wire).poll_flush(cx);
        }
        let moved = self.out.written() != before;
        if moved {
            self.progress = Instant::now();
        }
        match &sent {
            Poll::Pending => self
                .unsent
                .waits(moved, || wire.sent().map(|(confirmed, _)| confirmed)),
            Poll::Ready(_) => self.unsent.clear(),
        }
        sent
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
            ready!(self.poll_give(inbound, record, cx)).map_err(|_| Fault::Gone)?;
            if self.down == Down::Read {
                self.down = Down::Done;
                if self.delimited == Delimited::Close {
                    inbound.io.set_abortive(false);
                }
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
            // A head has its time as a whole, however many interim ones come before it.
            if self.down != Down::Head {
                self.progress = Instant::now();
            }
            match (filled, self.down) {
                (Filled::Some, Down::Head) => self.read_head(inbound, record)?,
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
        inbound: &mut Inbound<IO>,
        record: &mut Record,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let staged = self.back.is_pending();
        // Of a body of unknown length every part counts when it comes.
        let flush = self.down == Down::Read || self.delimited != Delimited::AsIs;
        let given = inbound.poll_give(&mut self.back, self.answer.data(), flush, cx);
        if staged && !self.back.is_pending() {
            record.add_bytes_down(self.answer.data().len());
            self.answer.take_data();
        }
        given
    }

    /// Looks for a complete head, and for the final one behind interim ones.
    fn read_head<IO: ClientIo>(&mut self, inbound: &Inbound<IO>, record: &mut Record) -> Result<(), Fault> {
        self.asked.keep_alive &= !inbound.is_last();
        let http = |why| Fault::Intake(Broken::Http(why));
        loop {
            let (asked, lead) = (self.asked, &mut self.back.lead);
            let bytes = self.answer.raw();
            let read = reply::read(bytes, asked, |response, lines, delimited| {
                rewrite::response_head(response, lines, delimited, asked, lead);
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
                self.interim += 1;
                if self.interim > INTERIM {
                    return Err(http("it gave interim answers only, more than 16"));
                }
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
            self.progress = Instant::now();
            if delimited == Delimited::Close {
                // Until its last byte is with the client, every end of the connection must look like none of the answer.
                inbound.io.set_abortive(true);
            }
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
