//! HTTP/1 from a client: one request after the other, each relayed to its end before the next is looked at.
//!
//! `inbound` is what the client sends, `request` decides on one head and finds a connection for it, `transfer` moves the
//! two messages, `bridge` does the same for an intake that speaks HTTP/2. Here is what is around them: waiting for a head
//! within the client's time limits, refusing one, draining, and the end of the connection.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::head::{self, Violation};
use super::linger::Linger;
use super::outline::Checked;
use super::pace::Pace;
use super::{Begun, Client, ClientIo, Ended, answer};
use crate::relay::drained;
use crate::relay::outcome::Outcome;
use crate::relay::timer::LazyTimer;
use crate::relay::upstream::connect::Handshake;
use crate::tls::server::alert;

mod bridge;
mod fault;
/// How long after it was accepted the first request of a connection is waited for while we drain: what a client that connects in
/// order to ask needs on a busy host, and no more.
const FRESH: Duration = Duration::from_secs(2);

mod inbound;
mod request;
mod transfer;

pub(in crate::relay) use bridge::Own;
pub(in crate::relay) use inbound::BodyFault;
use inbound::{Inbound, say};

/// Serves HTTP/1 on `io` until either side is done or we drain. `begun` is what was read from it before, and
/// waited with.
///
/// No `async fn`: that would keep its arguments beside what is made of them. And what an idle client does not need is boxed, and there
/// only as long as a request is.
pub(super) fn serve<H: Handshake, IO: ClientIo>(
    client: Rc<Client<H>>,
    io: IO,
    begun: Begun,
    mut drain: watch::Receiver<bool>,
) -> impl Future<Output = Ended> {
    let mut connection = Connection::new(client, io, begun, drain.clone());
    async move {
        let mut draining = pin!(drained(&mut drain));
        let end = loop {
            match connection.head(draining.as_mut()).await {
                Next::Request(end) => match Box::pin(connection.request(end)).await {
                    Then::Next => connection.idle_since = Instant::now(),
                    Then::Close(outcome, violation) => break End::shut(outcome, violation),
                    Then::Refuse(violation) => break End::refused(violation),
                    Then::Cut(outcome) => break End::cut(outcome),
                },
                Next::Refused(violation) => break End::refused(violation),
                Next::Idle => break End::shut(Outcome::Ok, None),
                // Without the close_notify that few clients send.
                Next::Failed(error) => {
                    let mut end = End::cut(connection.left());
                    end.distrust = alert::distrust_in(&error);
                    break end;
                }
                Next::Left if connection.partial => break End::cut(Outcome::ClientAborted),
                Next::Left => break End::shut(Outcome::Ok, None),
            }
        };
        Box::pin(connection.end(end)).await
    }
}

/// How a connection ends.
struct End {
    outcome: Outcome,
    violation: Option<Violation>,
    distrust: Option<&'static str>,
    /// What is still to be said.
    said: Vec<u8>,
    /// In the middle of a message, or when the client is gone: without a farewell.
    cut: bool,
}

impl End {
    fn shut(outcome: Outcome, violation: Option<Violation>) -> Self {
        Self {
            outcome,
            violation,
            distrust: None,
            said: Vec::new(),
            cut: false,
        }
    }

    fn refused(violation: Violation) -> Self {
        Self {
            said: answer::refusal(violation),
            ..Self::shut(answer::violated(violation), Some(violation))
        }
    }

    fn cut(outcome: Outcome) -> Self {
        Self {
            cut: true,
            ..Self::shut(outcome, None)
        }
    }
}

/// What came of waiting for a head.
enum Next {
    /// A complete one of this length is in the window.
    Request(usize),
    Refused(Violation),
    /// The client left.
    Left,
    /// Nothing came for too long, or we drain.
    Idle,
    Failed(io::Error),
}

/// What follows a request.
enum Then {
    /// Another one may come.
    Next,
    /// It was the last. The violation is of its body, and answered.
    Close(Outcome, Option<Violation>),
    /// Nothing was answered yet, and this is wrong.
    Refuse(Violation),
    /// Its answer could not be completed.
    Cut(Outcome),
}

/// One client connection.
struct Connection<H: Handshake, IO> {
    client: Rc<Client<H>>,
    inbound: Rc<RefCell<Inbound<IO>>>,
    /// The one timer for whatever is waited for.
    timer: LazyTimer,
    idle_timeout: Duration,
    requests: u64,
    /// It asked for [`crate::self_test::NAME`].
    self_test: bool,
    /// A head is partly here.
    partial: bool,
    idle_since: Instant,
    /// We drain.
    last: bool,
    /// The first head, when it was checked before.
    checked: Option<Checked>,
}

impl<H: Handshake, IO: ClientIo> Connection<H, IO> {
    fn new(
        client: Rc<Client<H>>,
        io: IO,
        Begun {
            window,
            timer,
            checked,
        }: Begun,
        drain: watch::Receiver<bool>,
    ) -> Self {
        let limits = &client.thread.shared.config.limits;
        let (idle_timeout, pace) = (limits.idle_timeout, Pace::new(limits));
        let now = Instant::now();
        Self {
            client,
            inbound: Rc::new(RefCell::new(Inbound::new(io, window, pace, drain))),
            timer: timer.unwrap_or_else(|| LazyTimer::new(now + idle_timeout)),
            idle_timeout,
            requests: 0,
            self_test: false,
            partial: false,
            idle_since: now,
            last: false,
            checked,
        }
    }

    /// Waits for a head. `draining` completes when we drain; an idle connection ends then, a head that is partly here is a
    /// request in flight: it is waited for, and answered as the last one. So is the first one of a connection that was made just
    /// now: a client takes the end of an idle connection for what it is, and that of a new one for a failure.
    async fn head(&mut self, mut draining: Pin<&mut impl Future<Output = ()>>) -> Next {
        let limits = &self.client.thread.shared.config.limits;
        let (max_head, header_timeout) = (limits.max_header_bytes, limits.header_timeout);
        if let Some(checked) = &self.checked
            && checked.end <= max_head
        {
            return Next::Request(checked.end);
        }
        let mut searched = 0;
        let mut head_since = self.idle_since;
        self.partial = false;
        poll_fn(|cx| {
            let mut inbound = self.inbound.borrow_mut();
            loop {
                let raw = inbound.window.raw();
                if !raw.is_empty() && searched < raw.len() {
                    let found = head::find_end(raw, searched);
                    match found {
                        Err(violation) => return Poll::Ready(Next::Refused(violation)),
                        Ok(end) if end.unwrap_or(raw.len()) > max_head => {
                            return Poll::Ready(Next::Refused(Violation::HeadTooLarge));
                        }
                        Ok(Some(end)) => return Poll::Ready(Next::Request(end)),
                        // The limit may be all that there is room for.
                        Ok(None) if !inbound.window.has_room() => {
                            return Poll::Ready(Next::Refused(Violation::HeadTooLarge));
                        }
                        Ok(None) => {
                            searched = raw.len();
                            if !self.partial {
                                self.partial = true;
                                head_since = Instant::now();
                            }
                        }
                    }
                }
                match inbound.poll_more(cx) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false)) => return Poll::Ready(Next::Left),
                    Poll::Ready(Err(error)) => return Poll::Ready(Next::Failed(error)),
                    Poll::Pending => break,
                }
            }
            // Bytes that are here already belong to a request that will be answered: that we drain is looked at last.
            if !self.last && draining.as_mut().poll(cx).is_ready() {
                self.last = true;
            }
            let fresh = self.requests == 0;
            if self.last && !self.partial && !fresh {
                return Poll::Ready(Next::Idle);
            }
            let deadline = match (self.partial, self.last) {
                (true, _) => head_since + header_timeout,
                (false, true) => self.idle_since + FRESH.min(self.idle_timeout),
                (false, false) => self.idle_since + self.idle_timeout,
            };
            match (self.timer.poll(cx, deadline), self.partial) {
                (Poll::Pending, _) => Poll::Pending,
                (Poll::Ready(()), true) => Poll::Ready(Next::Refused(Violation::HeadTimeout)),
                (Poll::Ready(()), false) => Poll::Ready(Next::Idle),
            }
        })
        .await
    }

    /// The client has left: between two requests that is how connections end.
    fn left(&self) -> Outcome {
        if self.partial {
            Outcome::ClientAborted
        } else {
            Outcome::Ok
        }
    }

    /// Says what is left to say, and closes gently: see [`Linger`].
    async fn end(mut self, end: End) -> Ended {
        if !end.cut {
            // A client that does not read must not hold us for longer than any other.
            match timeout(self.idle_timeout, self.shut(end.said)).await {
                Ok(Ok(())) => {}
                // It has left first.
                Ok(Err(error)) => tracing::debug!(%error, "a client's connection did not end in order"),
                Err(_) => tracing::debug!("a client did not read our last words"),
            }
        }
        Ended {
            outcome: end.outcome,
            requests: self.requests,
            self_test: self.self_test,
            violation: end.violation,
            distrust: end.distrust,
        }
    }

    async fn shut(&mut self, said: Vec<u8>) -> io::Result<()> {
        let more = {
            let Inbound { window, eof, .. } = &*self.inbound.borrow();
            // Nothing more can come after a complete message of a client that waits for its answer.
            let finished = said.is_empty() && window.is_ended() && !window.has_more();
            !*eof && !finished
        };
        if !more && said.is_empty() && !IO::FAREWELL {
            return Ok(());
        }
        say(&self.inbound, said).await?;
        poll_fn(|cx| Pin::new(&mut self.inbound.borrow_mut().io).poll_shutdown(cx)).await?;
        if more {
            let mut linger = Linger::begin();
            poll_fn(|cx| linger.poll(&mut self.inbound.borrow_mut().io, &mut self.timer, cx)).await;
        }
        Ok(())
    }
}
