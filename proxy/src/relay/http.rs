//! Terminates the client's HTTP: guard, hyper, rewrite, upstream, and the answer back.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Role;
use super::accept::Thread;
use super::decide;
use super::network::NetworkId;
use super::origin::{ClientAddr, Origin};
use super::outcome::{Outcome, TlsClient, Via};
use super::timer::LazyTimer;
use super::upstream::connect::Handshake;
use super::upstream::{self, Draft};
use crate::observe::redact;
use crate::tls::server::alert;

pub(super) mod answer;
pub(super) mod body;
mod chunk;
pub(super) mod exchange;
mod guard;
pub(super) mod head;
mod head2;
mod linger;
pub(super) mod record;
mod rewrite;
mod server1;
mod server2;

use body::{Download, Relay, Upload};
use exchange::Exchange;
use head::Violation;
use record::Recording;

/// hyper's read buffer. 80 to 96 KiB hold a head and a 64 KiB batch in one read; more only costs memory
/// (research: performance baseline, section 3).
pub(super) const MAX_BUFFER: usize = 96 * 1024;

/// What carries HTTP from a client: its socket, or a TLS session with it.
pub(super) trait ClientIo: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> ClientIo for IO {}

/// A client connection on which HTTP begins.
#[derive(Debug)]
pub(super) struct Session<IO> {
    io: IO,
    /// Read from it before.
    prefix: Vec<u8>,
    /// Who asked for which name when it made the TLS session; none without TLS.
    asking: Option<TlsClient>,
    /// ALPN chose HTTP/2.
    http2: bool,
}

impl<IO> Session<IO> {
    /// HTTP/1 in the clear.
    pub(super) fn clear(io: IO, prefix: Vec<u8>) -> Self {
        Self {
            io,
            prefix,
            asking: None,
            http2: false,
        }
    }

    /// HTTP within TLS.
    pub(super) fn tls(io: IO, asking: TlsClient, http2: bool) -> Self {
        Self {
            io,
            prefix: Vec::new(),
            asking: Some(asking),
            http2,
        }
    }

    /// See [`Session::tls`].
    pub(super) fn asking(&self) -> Option<&TlsClient> {
        self.asking.as_ref()
    }
}

/// What the requests of one client connection share.
pub(super) struct Client<H: Handshake> {
    pub(super) thread: Rc<Thread<H>>,
    pub(super) via: Via,
    pub(super) network: NetworkId,
    pub(super) addr: ClientAddr,
    pub(super) origin: Origin,
    /// See [`Session`].
    pub(super) asking: Option<TlsClient>,
    pub(super) exchange: Rc<Exchange>,
    pub(super) http2: bool,
}

/// How a terminated connection ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) requests: u64,
    pub(super) violation: Option<Violation>,
    /// The alert by which the client said, after the handshake, that it does not trust us.
    pub(super) distrust: Option<&'static str>,
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

/// Serves HTTP on `session` until either side is done or we drain.
pub(super) async fn serve<H: Handshake, IO: ClientIo>(
    thread: Rc<Thread<H>>,
    role: Role,
    addr: ClientAddr,
    origin: Origin,
    session: Session<IO>,
    drain: watch::Receiver<bool>,
) -> Ended {
    let Session {
        io,
        prefix,
        asking,
        http2,
    } = session;
    let client = Rc::new(Client {
        thread,
        via: role.via(),
        network: role.network(),
        addr,
        origin,
        asking,
        exchange: Rc::new(Exchange::new()),
        http2,
    });
    if http2 {
        server2::serve(client, io, drain).await
    } else {
        server1::serve(client, io, prefix, drain).await
    }
}

/// The one timer for all of a request's waits for the intake.
pub(super) type RequestTimer = Rc<RefCell<LazyTimer>>;

fn request_timer<H: Handshake>(client: &Client<H>) -> RequestTimer {
    let limit = client.thread.shared.config.upstream.response_timeout;
    Rc::new(RefCell::new(LazyTimer::new(Instant::now() + limit)))
}

/// One request, from head to response head; the response body carries the record on to its end.
async fn handle<H: Handshake>(
    client: &Rc<Client<H>>,
    timer: RequestTimer,
    request: Request<Incoming>,
) -> Response<Download> {
    let (mut parts, incoming) = request.into_parts();
    let shared = &client.thread.shared;
    if client.exchange.requests() == 1
        && let Some(asking) = &client.asking
    {
        // Some clients look at a certificate only when the handshake is over: a request shows that they took it.
        shared.recorder.client_trusts(asking);
    }
    let upload = match client.http2 {
        false => Upload::new(incoming),
        true => Upload::watched(
            incoming,
            shared.config.limits.idle_timeout,
            Rc::clone(&client.exchange),
        ),
    };
    let begun = record::begun(
        client.via,
        client.addr.0,
        client.origin.original().map(|original| original.0),
        if client.http2 { "2" } else { "1.1" },
        redact::method(&parts.method),
        redact::path(parts.uri.path()),
    );
    let recorder = Arc::clone(&shared.recorder);
    let mut recording = Recording::new(begun, recorder, Rc::clone(&client.exchange), upload.clone());
    // Bytes that are no text are no missing Host.
    let host = parts
        .headers
        .get(HOST)
        .map(|host| host.to_str().map_err(|_| decide::Refusal::Bad("malformed Host")))
        .transpose();
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let named = host.and_then(|host| match client.http2 {
        false => Ok((authority, host)),
        true => head2::check(&parts).map(|()| (None, authority.or(host))),
    });
    let route = named.and_then(|(target, host)| {
        decide::request(
            &client.origin,
            client.asking.as_ref().map(|asking| asking.name.as_str()),
            target,
            host,
            parts.uri.path(),
            &shared.catalog,
        )
    });
    let route = match route {
        Ok(route) => route,
        Err(refusal) => {
            let (outcome, reason) = answer::refused(refusal);
            return own(client, outcome, reason.to_owned(), recording);
        }
    };
    let target = client.thread.targets.get(route, &shared.catalog);
    recording.set_route(target.product, &target.name);
    let trailers = rewrite::request(&mut parts.headers);
    let draft = Draft::new(parts, client.http2 && trailers);
    match upstream::send(client, &target, draft, &upload, &timer, &mut recording).await {
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
                    timer,
                    trailers: client.http2,
                    timeout: shared.config.upstream.response_timeout,
                    progress: Instant::now(),
                }),
            );
            close_if_last(client, &mut response);
            response
        }
        // The client's own body was at fault.
        Err(failure) => {
            if let Some((outcome, reason)) = recording.clients_fault() {
                return own(client, outcome, reason.to_owned(), recording);
            }
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
    if client.http2 {
        // A stream's end is not the connection's.
        response.headers_mut().remove(CONNECTION);
    } else if !recording.is_request_complete() {
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
    if client.exchange.is_last() && !client.http2 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
