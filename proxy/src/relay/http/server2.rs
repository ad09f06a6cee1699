//! HTTP/2 from a client, within TLS: hyper with limits, and the connection's time limits.
//!
//! Everything a client can make us keep is bounded: streams, the header block (and with it CONTINUATION), what it may send
//! before we read it, what we hold for it to read, and streams that it resets. What hyper answers to frames out of place is
//! RFC 9113's; none of it reaches an intake.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{EXPECT, HOST};
use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::body::{Download, Relay, Upload};
use super::exchange::Exchange;
use super::linger::Lingering;
use super::pace::Pace;
use super::record::{self, Record, Recording};
use super::{Client, ClientIo, Ended, answer, head2, request_timer, rewrite};
use crate::observe::redact;
use crate::relay::decide;
use crate::relay::drained;
use crate::relay::outcome::Outcome;
use crate::relay::upstream::connect::{Handshake, LocalExecutor};
use crate::relay::upstream::{self, Draft};
use crate::tls::server::alert;

/// Streams at once on one connection. RFC 9113 section 6.5.2 recommends no fewer than 100; an Agent has about ten.
const MAX_STREAMS: u32 = 128;
/// What a client may send on a stream before we have passed it on, in bytes: what the intake takes in one round trip.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all streams of a connection together: the bound of what one client's uploads can make us keep.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What we keep of an answer that the client does not read, in bytes a stream.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that the client reset before we looked at them (CVE-2023-44487); more end the connection.
const PENDING_RESETS: usize = 20;
/// Streams that we had to reset because of what the client sent on them; more end the connection.
const OWN_RESETS: usize = 64;
/// Requests that a client may give up while they are on their way, beyond those that it let us answer: each has cost a
/// request towards the intake. More end the connection.
const ABORTS: u64 = 100;
/// A client that does not answer a ping for this long is gone; asked while it has streams open.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long what a client is about to send is waited for before it is refused.
const REST: Duration = Duration::from_secs(1);
/// After GOAWAY an idle client has this long to go, or `limits.idle_timeout` when that is shorter.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves HTTP/2 on `io` until either side is done or we drain.
pub(super) async fn serve<H: Handshake, IO: ClientIo>(
    client: Rc<Client<H>>,
    io: IO,
    mut drain: watch::Receiver<bool>,
) -> Ended {
    let exchange = Rc::new(Exchange::new());
    let limits = &client.thread.shared.config.limits;
    let (idle_timeout, max_header) = (limits.idle_timeout, limits.max_header_bytes);
    // While an intake thinks nothing moves either: that wait has its own limit.
    let stuck = idle_timeout + client.thread.shared.config.upstream.response_timeout;
    let of_requests = Rc::clone(&exchange);
    let service = service_fn(move |request: Request<Incoming>| {
        let (client, exchange) = (Rc::clone(&client), Rc::clone(&of_requests));
        async move {
            exchange.begin();
            let bodiless = request.method() == Method::HEAD;
            let response = handle(&client, &exchange, request).await;
            // hyper would send the body of an answer of ours, which HEAD has not (RFC 9110 section 9.3.2).
            Ok::<_, Infallible>(if bodiless {
                response.map(Download::without_own)
            } else {
                response
            })
        }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(max_header).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(OWN_RESETS)
        .keep_alive_interval(idle_timeout)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Lingering::new(io)), service));
    let mut draining = false;
    let mut leave_at: Option<Instant> = None;
    let result = loop {
        tokio::select! {
            // The connection comes last: a client that floods it takes all that this task may do before it must yield, and
            // would keep the limits below from being looked at.
            biased;
            () = drained(&mut drain), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = exchange.given_up(ABORTS) => {
                tracing::debug!("a client resets its streams over and over: its connection is closed");
                break Err(Outcome::BadRequest);
            }
            () = exchange.stuck(stuck) => break Err(Outcome::ClientTimeout),
            () = exchange.idle(idle_timeout), if leave_at.is_none() => {
                leave_at = Some(Instant::now() + GOODBYE.min(idle_timeout));
                connection.as_mut().graceful_shutdown();
            }
            // It did not answer our farewell, or never began. A request that it sent before it knew is answered first.
            () = sleep_until(leave_at.unwrap_or_else(Instant::now)), if leave_at.is_some() => {
                if !exchange.is_busy() {
                    break Err(Outcome::ClientTimeout);
                }
                leave_at = Some(Instant::now() + GOODBYE.min(idle_timeout));
            }
            result = connection.as_mut() => break Ok(result),
        }
    };
    let ended = result.as_ref().ok().and_then(|result| result.as_ref().err());
    let distrust = ended.and_then(distrust_in);
    let outcome = match result {
        Ok(Err(error)) if is_the_clients_fault(&error) => Outcome::BadRequest,
        // It left, in whatever way: with requests open, or with nothing left to do.
        Ok(_) if exchange.is_busy() => Outcome::ClientAborted,
        Ok(_) => Outcome::Ok,
        Err(outcome) => outcome,
    };
    Ended {
        outcome,
        requests: exchange.requests(),
        self_test: false,
        violation: None,
        distrust,
    }
}

/// True when the client broke the protocol, and not merely left.
fn is_the_clients_fault(error: &hyper::Error) -> bool {
    let h2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|h2| h2.is_go_away() && h2.is_library())
}

/// Looks for such an alert in what ended a connection.
fn distrust_in(error: &hyper::Error) -> Option<&'static str> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(alert) = error.downcast_ref().and_then(alert::distrust_in) {
            return Some(alert);
        }
        source = error.source();
    }
    None
}

/// One request, from head to response head; the response body carries the record on to its end.
async fn handle<H: Handshake>(
    client: &Rc<Client<H>>,
    exchange: &Rc<Exchange>,
    request: Request<Incoming>,
) -> Response<Download> {
    let (mut parts, incoming) = request.into_parts();
    let shared = &client.thread.shared;
    let timer = request_timer(client);
    if exchange.requests() == 1
        && let Some(asking) = &client.asking
    {
        // Some clients look at a certificate only when the handshake is over: a request shows that they took it.
        shared.recorder.client_trusts(asking);
    }
    // It sends nothing before it has our word.
    let waits = parts.headers.contains_key(EXPECT);
    let upload = Upload::new(incoming, Pace::new(&shared.config.limits), Rc::clone(exchange));
    let path = match shared.recorder.wants_paths() {
        true => redact::path(parts.uri.path()),
        false => String::new(),
    };
    let begun = record::begun(
        client.via,
        client.addr.0,
        client.origin.original().map(|original| original.0),
        "2",
        redact::method(&parts.method),
        path,
    );
    let record = Record::new(begun, Arc::clone(&shared.recorder));
    let mut recording = Recording::new(record, Rc::clone(exchange), upload.clone());
    // Bytes that are no text are no missing Host.
    if let Err(full) = exchange.take_slot(&client.slots) {
        return own(Outcome::Overloaded, full.reason().to_owned(), recording);
    }
    let host = parts
        .headers
        .get(HOST)
        .map(|host| host.to_str().map_err(|_| decide::Refusal::Bad("malformed Host")))
        .transpose();
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let found = host.and_then(|host| {
        head2::check(&parts)?;
        let destinations = &client.thread.destinations;
        destinations.find(client, None, authority.or(host), parts.uri.path())
    });
    let destination = match found {
        Ok(destination) => destination,
        Err(refusal) => {
            let (outcome, reason) = answer::refused(refusal);
            rest(&upload, waits).await;
            return own(outcome, reason.to_owned(), recording);
        }
    };
    let target = &destination.target;
    recording.record().set_route(target);
    let trailers = rewrite::request(&mut parts.headers);
    let draft = Draft::new(parts, trailers);
    match upstream::send(client, &destination, None, draft, &upload, &timer, &mut recording).await {
        Ok(reply) => {
            let (mut parts, incoming) = reply.response.into_parts();
            rewrite::response(parts.status, &mut parts.headers);
            parts.version = Version::HTTP_11;
            recording.record().set_status(parts.status);
            Response::from_parts(
                parts,
                Download::Relay(Relay {
                    incoming,
                    recording,
                    lease: reply.lease,
                    timer,
                    trailers: true,
                    timeout: shared.config.upstream.response_timeout,
                    progress: Instant::now(),
                }),
            )
        }
        // The client's own body was at fault.
        Err(failure) => {
            if let Some((outcome, reason)) = recording.clients_fault() {
                return own(outcome, reason.to_owned(), recording);
            }
            tracing::debug!(product = %target.product, name = %target.name, error = %failure, "request failed");
            rest(&upload, waits).await;
            let outcome = failure.outcome();
            own(
                outcome,
                redact::text(&failure.to_string()).into_owned(),
                recording,
            )
        }
    }
}

/// Lets a client send the rest of a small body before we answer: what it may send without hearing from us. An answer before that ends with
/// RST_STREAM and NO_ERROR (RFC 9113 section 8.1), behind which clients must not throw the answer away, and some do (curl 7.88).
async fn rest(upload: &Upload, waits: bool) {
    if !waits {
        // In vain: it is answered all the same.
        let _ = timeout(REST, upload.discard(STREAM_WINDOW.into())).await;
    }
}

/// An answer of ours, recorded.
fn own(outcome: Outcome, message: String, mut recording: Recording) -> Response<Download> {
    let response = answer::response(outcome, &message);
    recording
        .record()
        .set_answer(response.status(), outcome, Some(message));
    response.map(|body| body.recorded(recording))
}
