//! Terminates the client's HTTP/1: guard, hyper, rewrite, upstream, and the answer back.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::accept::Thread;
use super::decide;
use super::network::NetworkId;
use super::origin::{ClientAddr, Origin};
use super::outcome::{Outcome, Via};
use super::timer::LazyTimer;
use super::upstream;
use super::upstream::connect::Handshake;
use super::{Role, drained};
use crate::observe::redact;

pub(super) mod answer;
pub(super) mod body;
mod chunk;
pub(super) mod guard;
pub(super) mod head;
pub(super) mod record;
mod rewrite;

use body::{Download, Relay, Upload};
use guard::{Exchange, Guard};
use head::Violation;
use record::Recording;

/// hyper's read buffer. 80 to 96 KiB hold a head and a 64 KiB batch in one read; more only costs memory
/// (research: performance baseline, section 3).
pub(super) const MAX_BUFFER: usize = 96 * 1024;

/// What the requests of one client connection share.
pub(super) struct Client<H: Handshake> {
    pub(super) thread: Rc<Thread<H>>,
    pub(super) via: Via,
    pub(super) network: NetworkId,
    pub(super) addr: ClientAddr,
    pub(super) origin: Origin,
    pub(super) exchange: Rc<Exchange>,
    /// One timer for all waits for the intake: a connection has one request at a time.
    pub(super) timer: Rc<RefCell<LazyTimer>>,
}

/// How a terminated connection ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) requests: u64,
    pub(super) violation: Option<Violation>,
}

/// Serves HTTP/1 on `stream` until either side is done or we drain. `prefix` was read from it before.
pub(super) async fn serve<H: Handshake>(
    thread: Rc<Thread<H>>,
    role: Role,
    addr: ClientAddr,
    origin: Origin,
    stream: TcpStream,
    prefix: Vec<u8>,
    mut drain: watch::Receiver<bool>,
) -> Ended {
    let exchange = Rc::new(Exchange::new());
    let limits = &thread.shared.config.limits;
    let max_buffer = MAX_BUFFER.max(limits.max_header_bytes);
    let guard = Guard::new(stream, prefix, Rc::clone(&exchange), limits);
    let timer = LazyTimer::new(Instant::now() + thread.shared.config.upstream.response_timeout);
    let client = Rc::new(Client {
        thread,
        via: role.via(),
        network: role.network(),
        addr,
        origin,
        exchange: Rc::clone(&exchange),
        timer: Rc::new(RefCell::new(timer)),
    });
    let service = service_fn(move |request| {
        let client = Rc::clone(&client);
        async move { Ok::<_, Infallible>(handle(&client, request).await) }
    });
    // The guard has its own time limits; Date is the intake's, not ours.
    let mut connection = pin!(
        http1::Builder::new()
            .auto_date_header(false)
            .header_read_timeout(None)
            .max_buf_size(max_buffer)
            .serve_connection(TokioIo::new(guard), service)
    );
    let mut draining = false;
    let result = loop {
        tokio::select! {
            // Bytes that are here already belong to a request that will be answered.
            biased;
            result = connection.as_mut() => break result,
            () = drained(&mut drain), if !draining => {
                draining = true;
                exchange.set_last();
                // A head that is partly here is a request in flight: it is waited for, then answered as the last one.
                if !exchange.partial() {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    let violation = exchange.violation();
    let outcome = match (violation, result) {
        (Some(violation), _) => answer::violated(violation),
        (None, Ok(())) => Outcome::Ok,
        // What the guard let through and hyper still refuses: hyper answered 400 itself.
        (None, Err(error)) if error.is_parse() => Outcome::BadRequest,
        (None, Err(error)) if error.is_user() => Outcome::UpstreamProtocol,
        (None, Err(_)) => Outcome::ClientAborted,
    };
    Ended {
        outcome,
        requests: exchange.requests(),
        violation,
    }
}

/// One request, from head to response head; the response body carries the record on to its end.
async fn handle<H: Handshake>(client: &Rc<Client<H>>, request: Request<Incoming>) -> Response<Download> {
    let (mut parts, incoming) = request.into_parts();
    let upload = Upload::new(incoming);
    let shared = &client.thread.shared;
    let begun = record::begun(
        client.via,
        client.addr.0,
        client.origin.original().map(|original| original.0),
        redact::method(&parts.method),
        redact::path(parts.uri.path()),
    );
    let recorder = Arc::clone(&shared.recorder);
    let mut recording = Recording::new(begun, recorder, Rc::clone(&client.exchange), upload.clone());
    let route = decide::request(
        &client.origin,
        parts.uri.authority().map(http::uri::Authority::as_str),
        parts.headers.get(HOST).and_then(|host| host.to_str().ok()),
        parts.uri.path(),
        &shared.catalog,
    );
    let route = match route {
        Ok(route) => route,
        Err(refusal) => {
            let (outcome, reason) = answer::refused(refusal);
            return own(client, outcome, reason.to_owned(), recording);
        }
    };
    let target = client.thread.targets.get(route, &shared.catalog);
    recording.set_route(target.product, &target.name);
    rewrite::request(&mut parts.headers);
    match upstream::send(client, &target, parts, &upload, &mut recording).await {
        Ok(reply) => {
            let (mut parts, incoming) = reply.response.into_parts();
            rewrite::response(&mut parts.headers);
            parts.version = Version::HTTP_11;
            recording.set_status(parts.status);
            let mut response = Response::from_parts(
                parts,
                Download::Relay(Relay {
                    incoming,
                    recording,
                    lease: reply.lease,
                    timer: Rc::clone(&client.timer),
                    timeout: shared.config.upstream.response_timeout,
                    progress: Instant::now(),
                }),
            );
            close_if_last(client, &mut response);
            response
        }
        // The client's own body was at fault: the guard knows why.
        Err(_) if client.exchange.violation().is_some() || upload.failed() => {
            let (outcome, reason) = match client.exchange.violation() {
                Some(violation) => (answer::violated(violation), violation.reason()),
                None => (Outcome::ClientAborted, "the request body ended early"),
            };
            own(client, outcome, reason.to_owned(), recording)
        }
        Err(failure) => {
            tracing::debug!(product = %target.product, name = %target.name, error = %failure, "request failed");
            let outcome = failure.outcome();
            own(
                client,
                outcome,
                redact::text(&failure.to_string()).into_owned(),
                recording,
            )
        }
    }
}

/// An answer of ours, recorded.
fn own<H: Handshake>(
    client: &Client<H>,
    outcome: Outcome,
    message: String,
    mut recording: Recording,
) -> Response<Download> {
    let mut response = answer::response(outcome, &message);
    if !recording.is_request_complete() {
        // hyper closes a connection whose request body nobody read: the client must know before it sends another.
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    recording.set_answer(response.status(), outcome, Some(message));
    let mut response = response.map(|body| body.recorded(recording));
    close_if_last(client, &mut response);
    response
}

/// We drain: this answer is the connection's last.
fn close_if_last<H: Handshake>(client: &Client<H>, response: &mut Response<Download>) {
    if client.exchange.is_last() {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
