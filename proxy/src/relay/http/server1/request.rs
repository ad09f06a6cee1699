//! One request: what is asked for, whereto, over which connection, once more where that is safe, and what is answered
//! when there is no answer of the intake's.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use http::Method;
use tokio::time::timeout;

use super::inbound::say;
use super::transfer::{Bounds, Fault, Transfer};
use super::{ClientIo, Connection, Then, bridge};
use crate::observe::redact;
use crate::relay::decide::Refusal;
use crate::relay::http::head::{self, Framing, Head, Violation};
use crate::relay::http::record::{self, Record};
use crate::relay::http::reply::Asked;
use crate::relay::http::{answer, rewrite};
use crate::relay::outcome::Outcome;
use crate::relay::upstream::connect::Handshake;
use crate::relay::upstream::destination::Destination;
use crate::relay::upstream::pool::{For, Lease, Line, Sender};
use crate::relay::upstream::target::Target;
use crate::relay::upstream::{self, Failure, Upstream, retry};

/// What is remembered of a head when its bytes are the window's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) asked: Asked,
    pub(super) framing: Framing,
}

impl<H: Handshake, IO: ClientIo> Connection<H, IO> {
    /// Serves the request whose head is the first `end` bytes of the window.
    pub(super) async fn request(&mut self, end: usize) -> Then {
        let (request, outline, expects_continue, found, mut record) = {
            let inbound = Rc::clone(&self.inbound);
            let inbound = inbound.borrow();
            let bytes = &inbound.window.raw()[..end];
            let known = self
                .checked
                .take()
                .and_then(|checked| checked.outline.read(bytes));
            let read = match known.map_or_else(|| head::check(bytes), Ok) {
                Ok(read) if read.upgrade => return Then::Refuse(Violation::Upgrade),
                Ok(read) => read,
                Err(violation) => return Then::Refuse(violation),
            };
            let request = Request {
                asked: Asked {
                    head: read.method == "HEAD",
                    http10: read.http10,
                    keep_alive: read.keep_alive,
                },
                framing: read.framing,
            };
            let record = self.begun(&read);
            let (authority, path) = read.split_target();
            let client = &self.client;
            let destinations = &client.thread.destinations;
            let found = destinations.find(client, authority, read.host, path_of(path));
            (request, read.outline, read.expects_continue, found, record)
        };
        self.requests += 1;
        if self.requests == 1
            && let Some(asking) = &self.client.asking
        {
            // Some clients look at a certificate only when the handshake is over: a request shows that they took it.
            self.client.thread.shared.recorder.client_trusts(asking);
        }
        let decoded = self.inbound.borrow_mut().begin(end, outline, expects_continue);
        let then = match (found, decoded) {
            (Err(refusal), _) => {
                self.self_test |= refusal == Refusal::SelfTest;
                let (outcome, reason) = answer::refused(refusal);
                self.own(request, outcome, reason, &mut record).await
            }
            (Ok(_), Err(violation)) => {
                let outcome = answer::violated(violation);
                self.own(request, outcome, violation.reason(), &mut record)
                    .await
                    .violated(violation)
            }
            (Ok(destination), Ok(())) => self.relay(request, &destination, record).await,
        };
        let inbound = &mut *self.inbound.borrow_mut();
        inbound.pace.restart();
        if inbound.window.is_ended() {
            inbound.window.start();
            return then;
        }
        // The rest of its body would be taken for the next head.
        match then {
            Then::Next => Then::Close(Outcome::Ok, None),
            then => then,
        }
    }

    fn begun(&self, read: &Head<'_>) -> Record {
        let client = &self.client;
        let recorder = &client.thread.shared.recorder;
        let path = match recorder.wants_paths() {
            true => redact::path(path_of(read.split_target().1)),
            false => String::new(),
        };
        let method = Method::from_bytes(read.method.as_bytes()).unwrap_or_default();
        let begun = record::begun(
            client.via,
            client.addr.0,
            client.origin.original().map(|original| original.0),
            "1.1",
            redact::method(&method),
            path,
        );
        Record::new(begun, Arc::clone(recorder))
    }

    /// Relays it, over as many connections as it takes.
    async fn relay(&mut self, request: Request, destination: &Destination, mut record: Record) -> Then {
        let Destination { target, shelf } = destination;
        record.set_route(target);
        let mut retries = 0;
        loop {
            // After a failure only a fresh connection will do: what broke one may have broken all.
            let pooled = match retries {
                0 => shelf.take(For::Http1),
                _ => None,
            };
            let line = match pooled {
                Some(line) => line,
                // Boxed: large, and rare.
                None => match Box::pin(self.open(destination)).await {
                    Some(Ok(line)) => line,
                    Some(Err(failure)) => return self.failed(request, &failure, target, &mut record).await,
                    None => return gone(&mut record),
                },
            };
            record.set_line(line.addr.0, &line.tls);
            if matches!(line.sender, Sender::Http2 { .. }) {
                return Box::pin(bridge::relay(self, request, destination, line, record)).await;
            }
            let mut lease = Lease::new(Rc::clone(shelf), line);
            let (transfer, result) = self.transfer(request, target, &mut lease, &mut record).await;
            let fault = match result {
                Ok(()) => {
                    if transfer.is_reusable() {
                        lease.give_back();
                    }
                    record.finish();
                    return match transfer.keeps_client() && transfer.is_sent() {
                        true => Then::Next,
                        false => Then::Close(Outcome::Ok, None),
                    };
                }
                Err(fault) => fault,
            };
            if transfer.is_begun() {
                return cut(&fault, &mut record);
            }
            let Some(line) = lease.line() else {
                return Then::Cut(Outcome::Internal);
            };
            let failure = match fault {
                Fault::Gone => return gone(&mut record),
                Fault::Client(violation) => {
                    let outcome = answer::violated(violation);
                    return self
                        .own(request, outcome, violation.reason(), &mut record)
                        .await
                        .violated(violation);
                }
                Fault::Late => Failure::Timeout { addr: line.addr },
                Fault::Upgrade(status) => Failure::Upgrade {
                    addr: line.addr,
                    status,
                },
                Fault::Intake(broken) => {
                    let whole = self.inbound.borrow().window.is_whole();
                    let again = retries < retry::MAX_RETRIES
                        && line.reused
                        && whole
                        && line.has_not_processed().await;
                    if again {
                        tracing::debug!(name = %target.name, addr = %line.addr, error = %broken, "request is sent again");
                        self.inbound.borrow_mut().window.untake_data();
                        record.set_bytes_up(0);
                        record.count_retry();
                        retries += 1;
                        continue;
                    }
                    upstream::broken(line, broken)
                }
            };
            return self.failed(request, &failure, target, &mut record).await;
        }
    }

    /// A fresh connection; `None` when the client has left meanwhile.
    async fn open(&self, destination: &Destination) -> Option<Result<Line, Failure>> {
        let (inbound, upstream) = (&self.inbound, Upstream::new(&self.client, destination));
        tokio::select! {
            biased;
            opened = upstream.open(For::Http1) => Some(opened),
            () = poll_fn(|cx| inbound.borrow_mut().poll_waits(cx)) => None,
        }
    }

    async fn transfer(
        &mut self,
        request: Request,
        target: &Target,
        lease: &mut Lease,
        record: &mut Record,
    ) -> (Transfer, Result<(), Fault>) {
        let shared = &self.client.thread.shared;
        let bounds = Bounds {
            response_timeout: shared.config.upstream.response_timeout,
            idle_timeout: self.idle_timeout,
            max_head: shared.config.limits.max_header_bytes,
        };
        let line = lease.line();
        line.iter().for_each(|line| line.mark());
        let reused = line.as_ref().is_some_and(|line| line.reused);
        let chunked = request.framing == Framing::Chunked;
        let mut transfer = Transfer::new(
            &self.client.thread.buffers,
            request.asked,
            bounds,
            chunked,
            reused,
        );
        let Some(Line {
            sender: Sender::Wire(wire),
            ..
        }) = line
        else {
            return (transfer, Err(Fault::Gone));
        };
        {
            let inbound = self.inbound.borrow();
            let bytes = inbound.window.head();
            rewrite::request_head(bytes, &inbound.outline, target.host.as_bytes(), transfer.head());
            transfer.begin(&inbound);
        }
        let (inbound, timer) = (&self.inbound, &mut self.timer);
        let result =
            poll_fn(|cx| transfer.poll(&mut inbound.borrow_mut(), &mut **wire, record, timer, cx)).await;
        (transfer, result)
    }

    pub(super) async fn failed(
        &mut self,
        request: Request,
        failure: &Failure,
        target: &Target,
        record: &mut Record,
    ) -> Then {
        tracing::debug!(product = %target.product, name = %target.name, error = %failure, "request failed");
        let message = failure.to_string();
        self.own(request, failure.outcome(), &redact::text(&message), record)
            .await
    }

    /// An answer of ours, recorded.
    pub(super) async fn own(
        &mut self,
        mut request: Request,
        outcome: Outcome,
        message: &str,
        record: &mut Record,
    ) -> Then {
        let status = answer::status(outcome);
        // Nobody will read the rest of its body, and a client's fault ends the connection.
        let keep = {
            let inbound = self.inbound.borrow();
            inbound.window.is_ended() && !inbound.is_last()
        };
        request.asked.keep_alive &= keep && !status.is_client_error();
        record.set_answer(status, outcome, Some(message.to_owned()));
        let bytes = answer::bytes(outcome, message, request.asked);
        let said = timeout(self.idle_timeout, say(&self.inbound, bytes)).await;
        record.finish();
        if !matches!(said, Ok(Ok(()))) {
            return Then::Cut(Outcome::ClientAborted);
        }
        match request.asked.keep_alive {
            true => Then::Next,
            false => Then::Close(Outcome::Ok, None),
        }
    }
}

impl Then {
    /// The client had broken its body.
    fn violated(self, violation: Violation) -> Self {
        match self {
            Self::Close(..) => Self::Close(answer::violated(violation), Some(violation)),
            then => then,
        }
    }
}

/// The path of an origin form, for decisions and records.
fn path_of(origin_form: &str) -> &str {
    let path = origin_form.split('?').next().unwrap_or_default();
    if path.is_empty() { "/" } else { path }
}

/// The client has left: nobody waits for an answer.
pub(super) fn gone(record: &mut Record) -> Then {
    record.fail(Outcome::ClientAborted, "the client left before its answer");
    Then::Cut(Outcome::ClientAborted)
}

/// The answer had begun.
fn cut(fault: &Fault, record: &mut Record) -> Then {
    let (outcome, why) = match fault {
        Fault::Gone => (Outcome::ClientAborted, "the client left within its answer"),
        Fault::Client(violation) => (answer::violated(*violation), violation.reason()),
        Fault::Late => (Outcome::UpstreamTimeout, "the response body made no progress"),
        Fault::Intake(_) | Fault::Upgrade(_) => {
            (Outcome::UpstreamProtocol, "the intake broke the response body")
        }
    };
    record.fail(outcome, why);
    Then::Cut(outcome)
}
