//! The two bodies of a request on their way: streamed, counted, never copied.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::RequestTimer;
use super::exchange::Exchange;
use super::head::Violation;
use super::pace::Pace;
use super::record::Recording;
use super::server1::{BodyFault, Own};
use crate::relay::outcome::Outcome;
use crate::relay::timer::LazyTimer;
use crate::relay::upstream::pool::Lease;

/// How much of a body is kept while it may have to be sent again. Agent payloads are mostly far smaller.
const REPLAY_LIMIT: usize = 64 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The request body: read from the client once, given to one upstream attempt after the other.
#[derive(Clone)]
pub(in crate::relay) struct Upload(Rc<RefCell<Source>>);

/// Where a request body comes from.
enum From {
    /// HTTP/2: from hyper.
    Hyper(Incoming),
    /// HTTP/1: from the connection itself.
    Own(Box<dyn Own>),
}

impl From {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Hyper(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Own(own) => own
                .poll_data(cx)
                .map(|data| data.map(|data| data.map(Frame::data).map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(incoming) => incoming.is_end_stream(),
            Self::Own(own) => own.is_ended(),
        }
    }

    fn length(&self) -> Option<u64> {
        match self {
            Self::Hyper(incoming) => incoming.size_hint().exact(),
            Self::Own(own) => own.length(),
        }
    }
}

struct Source {
    incoming: From,
    /// What was read so far, while it is kept. Cheap clones of hyper's own buffers.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    keep: bool,
    /// How many of `kept` the present attempt was given.
    replayed: usize,
    /// Bytes that the present attempt was given.
    given: u64,
    /// The attempt that may read; an older one that still lives must not steal bytes.
    attempt: u32,
    /// The declared length.
    length: Option<u64>,
    bytes: u64,
    progress: Instant,
    ended: bool,
    failed: bool,
    /// It failed because of this.
    violation: Option<Violation>,
    /// Trailers (HTTP/2): of the present attempt when `true` says that it was given them.
    trailers: Option<(HeaderMap, bool)>,
    /// Whether the client sends what the attempt asks for.
    pace: Pace,
    timer: LazyTimer,
    exchange: Rc<Exchange>,
}

impl Upload {
    /// The body of an HTTP/2 request, which fails when the client does not keep `pace`.
    pub(in crate::relay) fn new(incoming: Incoming, pace: Pace, exchange: Rc<Exchange>) -> Self {
        Self::with(From::Hyper(incoming), pace, exchange)
    }

    /// The same of an HTTP/1 request.
    pub(in crate::relay) fn own(body: Box<dyn Own>, pace: Pace, exchange: Rc<Exchange>) -> Self {
        Self::with(From::Own(body), pace, exchange)
    }

    fn with(incoming: From, pace: Pace, exchange: Rc<Exchange>) -> Self {
        let length = incoming.length();
        let ended = incoming.is_end_stream();
        Self(Rc::new(RefCell::new(Source {
            incoming,
            kept: Vec::new(),
            kept_bytes: 0,
            keep: false,
            replayed: 0,
            given: 0,
            attempt: 0,
            length,
            bytes: 0,
            progress: Instant::now(),
            ended,
            failed: false,
            violation: None,
            trailers: None,
            pace,
            timer: LazyTimer::new(Instant::now()),
            exchange,
        })))
    }

    /// The body for the next attempt, from its beginning. With `keep` it can be given once more as long as no more
    /// than 64 KiB of it were read. `None` when the beginning is gone.
    pub(in crate::relay) fn attempt(&self, keep: bool) -> Option<UploadBody> {
        let mut source = self.0.borrow_mut();
        if source.failed || (source.bytes > 0 && !source.keep) {
            return None;
        }
        source.attempt += 1;
        source.keep = keep || source.bytes > 0;
        source.replayed = 0;
        source.given = 0;
        if let Some((_, given)) = &mut source.trailers {
            *given = false;
        }
        source.progress = Instant::now();
        source.pace.restart();
        Some(UploadBody {
            source: Rc::clone(&self.0),
            attempt: source.attempt,
        })
    }

    /// True when another attempt would get the whole body.
    pub(in crate::relay) fn is_replayable(&self) -> bool {
        let source = self.0.borrow();
        !source.failed && (source.bytes == 0 || source.keep)
    }

    /// It will not be sent again: lets go of what was kept.
    pub(in crate::relay) fn settle(&self) {
        let mut source = self.0.borrow_mut();
        source.keep = false;
        // What is not given yet is still owed to the present attempt.
        if source.replayed == source.kept.len() {
            source.kept = Vec::new();
            source.kept_bytes = 0;
            source.replayed = 0;
        }
    }

    /// No attempt reads on: the client's connection is used for something else.
    pub(in crate::relay) fn void(&self) {
        self.0.borrow_mut().attempt += 1;
    }

    /// Reads what the client still sends, and throws it away: until its end, a fault, or more than `limit` bytes. More than that is not
    /// waited for when it was declared. No attempt reads on.
    pub(in crate::relay) async fn discard(&self, limit: u64) {
        self.void();
        let mut left = limit;
        poll_fn(|cx| {
            let source = &mut *self.0.borrow_mut();
            let declared = source
                .length
                .map_or(0, |length| length.saturating_sub(source.bytes));
            while declared <= limit && !source.ended && !source.failed {
                match ready!(source.incoming.poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        source.exchange.moved();
                        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                        let Some(rest) = left.checked_sub(length) else {
                            break;
                        };
                        left = rest;
                        source.ended = source.incoming.is_end_stream();
                    }
                    Some(Err(_)) => source.failed = true,
                    None => source.ended = true,
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Body bytes from the client.
    pub(in crate::relay) fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }

    /// The client's last byte of it was read.
    pub(in crate::relay) fn is_complete(&self) -> bool {
        let source = self.0.borrow();
        source.ended || source.length == Some(source.bytes)
    }

    /// Reading it from the client failed.
    pub(in crate::relay) fn failed(&self) -> bool {
        self.0.borrow().failed
    }

    /// How the client is at fault that reading it failed, if it did not just leave.
    pub(in crate::relay) fn violation(&self) -> Option<Violation> {
        self.0.borrow().violation
    }

    /// When the intake is too slow: `limit` after the body's end or last progress; `None` while the client owes bytes.
    pub(in crate::relay) fn deadline(&self, limit: Duration) -> Option<Instant> {
        let source = self.0.borrow();
        if source.pace.is_waiting() && !source.ended {
            None
        } else {
            Some(source.progress + limit)
        }
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// One attempt's view of the request body.
pub(in crate::relay) struct UploadBody {
    source: Rc<RefCell<Source>>,
    attempt: u32,
}

impl fmt::Debug for UploadBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadBody")
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let source = &mut *self.source.borrow_mut();
        if source.attempt != self.attempt {
            return Poll::Ready(Some(Err("the request was given to another connection".into())));
        }
        if let Some(chunk) = source.kept.get(source.replayed) {
            let chunk = chunk.clone();
            source.replayed += 1;
            source.given += chunk.len() as u64;
            source.progress = Instant::now();
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some((trailers, given @ false)) = &mut source.trailers {
            *given = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        loop {
            let frame = match source.incoming.poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    source.pace.waits();
                    if let Some(deadline) = source.pace.deadline() {
                        ready!(source.timer.poll(cx, deadline));
                    }
                    source.failed = true;
                    source.violation = Some(Violation::BodyTimeout);
                    return Poll::Ready(Some(Err(Violation::BodyTimeout.into())));
                }
            };
            source.progress = Instant::now();
            source.exchange.moved();
            let Some(frame) = frame else {
                source.ended = true;
                return Poll::Ready(None);
            };
            let frame = frame.inspect_err(|error| {
                source.failed = true;
                if let Some(BodyFault::Violation(violation)) = error.downcast_ref() {
                    source.violation = Some(*violation);
                }
            })?;
            let chunk = match frame.into_data() {
                Ok(chunk) => chunk,
                // An HTTP/2 client's go on. hyper leaves them out where HTTP/1 could not carry them.
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else {
                        continue;
                    };
                    source.ended = true;
                    // Nobody asks for the end behind them.
                    source.trailers = Some((trailers.clone(), true));
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            };
            source.pace.comes(chunk.len());
            source.bytes += chunk.len() as u64;
            source.given += chunk.len() as u64;
            source.ended = source.incoming.is_end_stream();
            if source.keep {
                source.kept_bytes += chunk.len();
                if source.kept_bytes > REPLAY_LIMIT {
                    source.keep = false;
                    source.kept = Vec::new();
                    source.replayed = 0;
                } else {
                    source.kept.push(chunk.clone());
                    source.replayed = source.kept.len();
                }
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.borrow();
        source.replayed == source.kept.len()
            && !matches!(source.trailers, Some((_, false)))
            && source.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.borrow();
        source.length.map_or_else(SizeHint::default, |length| {
            SizeHint::with_exact(length.saturating_sub(source.given))
        })
    }
}

/// What the client gets as a body.
#[derive(Debug)]
pub(in crate::relay) enum Download {
    /// The intake's.
    Relay(Relay),
    /// Our own few words.
    Own(Option<Bytes>),
    /// Our own, with the record that ends with it.
    Recorded(Option<Bytes>, Recording),
}

impl Download {
    /// Attaches the record to an answer of ours.
    pub(in crate::relay) fn recorded(self, recording: Recording) -> Self {
        match self {
            Self::Own(bytes) => Self::Recorded(bytes, recording),
            other => other,
        }
    }

    /// An answer of ours without its words; the intake's as it is.
    pub(super) fn without_own(self) -> Self {
        match self {
            Self::Own(_) => Self::Own(None),
            Self::Recorded(_, recording) => Self::Recorded(None, recording),
            relay @ Self::Relay(_) => relay,
        }
    }
}

/// The intake's response body, with everything that ends when it ends.
#[derive(Debug)]
pub(in crate::relay) struct Relay {
    pub(in crate::relay) incoming: Incoming,
    pub(in crate::relay) recording: Recording,
    /// The upstream connection: given back at the end of the body.
    pub(in crate::relay) lease: Lease,
    pub(in crate::relay) timer: RequestTimer,
    /// The client takes trailers: it speaks HTTP/2.
    pub(in crate::relay) trailers: bool,
    pub(in crate::relay) timeout: Duration,
    pub(in crate::relay) progress: Instant,
}

impl Relay {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(self.timer.borrow_mut().poll(cx, self.progress + self.timeout));
                    self.recording
                        .fail(Outcome::UpstreamTimeout, "the response body made no progress");
                    return Poll::Ready(Some(Err("the intake stopped sending".into())));
                }
            };
            self.progress = Instant::now();
            match frame {
                None => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    // A request body that fails takes the answer along.
                    let (outcome, why) = self
                        .recording
                        .clients_fault()
                        .unwrap_or((Outcome::UpstreamProtocol, "the intake broke the response body"));
                    self.recording.fail(outcome, why);
                    return Poll::Ready(Some(Err(error.into())));
                }
                Some(Ok(frame)) => {
                    let chunk = match frame.into_data() {
                        Ok(chunk) => chunk,
                        Err(trailers) if self.trailers => {
                            // They are the end: hyper does not ask for another.
                            self.finish();
                            return Poll::Ready(Some(Ok(trailers)));
                        }
                        // HTTP/1.1 clients of ours never ask for trailers (`TE: trailers` is per hop and not passed on).
                        Err(_) => continue,
                    };
                    self.recording.add_bytes_down(chunk.len());
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
            }
        }
    }

    fn finish(&mut self) {
        self.lease.give_back();
        self.recording.finish();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // hyper does not ask for the end of a body of known length: it drops it after the last byte.
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Relay(relay) => relay.poll_data(cx),
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Recorded(bytes, recording) => {
                recording.finish();
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Relay(relay) => relay.incoming.is_end_stream(),
            Self::Own(bytes) | Self::Recorded(bytes, _) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Relay(relay) => relay.incoming.size_hint(),
            Self::Own(bytes) | Self::Recorded(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
