//! The way to the intake: a pooled or a fresh connection, the request, its response head, and retries where they are safe.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use http::header::{COOKIE, HOST, TE};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;

use super::accept::Thread;
use super::http::body::{Upload, UploadBody};
use super::http::record::Recording;
use super::http::{Client, RequestTimer};
use super::network::NetworkId;
use super::origin::OriginalDst;

pub mod connect;
pub(super) mod destination;
pub mod errand;
mod failure;
pub(super) mod health;
pub mod look;
pub mod outbound;
pub(super) mod pool;
mod race;
pub mod resolve;
pub(super) mod retry;
mod socket;
mod tail;
pub(super) mod target;

use connect::{Handshake, To, Way};
use destination::Destination;
pub(super) use failure::{Broken, Failure};
use pool::{For, Lease, Line, Sender, Shelf};
pub use socket::Socket;
pub(super) use socket::bytes_confirmed;
use tail::Tail;
use target::Target;

/// The intake's response head, and the connection that its body comes on.
pub(super) struct Reply {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
}

/// Where a client's request goes, and how.
pub(super) struct Upstream<'a, H> {
    thread: &'a Rc<Thread<H>>,
    network: NetworkId,
    target: &'a Rc<Target>,
    original: Option<OriginalDst>,
    way: Way<'a>,
    shelf: &'a Rc<Shelf>,
}

impl<'a, H: Handshake> Upstream<'a, H> {
    pub(super) fn new(client: &'a Client<H>, destination: &'a Destination) -> Self {
        let Destination { target, shelf } = destination;
        let thread = &client.thread;
        let original = client.origin.original();
        Self {
            thread,
            network: client.network,
            target,
            original,
            way: connect::way(&thread.shared, target, original),
            shelf,
        }
    }

    /// A fresh connection. Others may use it too when it is HTTP/2.
    ///
    /// # Errors
    /// [`Failure`]: nothing was sent.
    pub(super) async fn open(&self, client: For) -> Result<Line, Failure> {
        let to = To {
            network: self.network,
            target: self.target,
            way: &self.way,
            client,
        };
        self.check(to);
        let line = connect::open(self.thread, to).await?;
        self.shelf.publish(&line);
        Ok(line)
    }

    /// Sees, beside the requests, whether addresses that failed take connections again. Who makes one finds it on the shelf.
    fn check(&self, to: To<'_>) {
        let client = to.client;
        for address in self.thread.health.due(&to.road()) {
            let (thread, target) = (Rc::clone(self.thread), Rc::clone(self.target));
            let (shelf, network, original) = (Rc::clone(self.shelf), self.network, self.original);
            tokio::task::spawn_local(async move {
                let way = connect::way(&thread.shared, &target, original);
                let to = To {
                    network,
                    target: &target,
                    way: &way,
                    client,
                };
                match race::one(&thread, to, address).await {
                    Ok(line) => shelf.put(line),
                    Err(error) => {
                        tracing::debug!(%address, %error, "still takes no connection");
                    }
                }
            });
        }
    }
}

/// Sends a request (its headers rewritten, without Host) by hyper and waits for the response head. `line` is what goes
/// first.
///
/// Dropping the future drops the request upstream: the client is gone.
///
/// # Errors
/// [`Failure`] when no response head came; nothing was answered to the client yet.
pub(super) async fn send<H: Handshake>(
    client: &Client<H>,
    destination: &Destination,
    mut line: Option<Line>,
    mut draft: Draft,
    upload: &Upload,
    timer: &RequestTimer,
    recording: &mut Recording,
) -> Result<Reply, Failure> {
    let thread = &client.thread;
    let Destination { target, shelf } = destination;
    let upstream = Upstream::new(client, destination);
    let limit = thread.shared.config.upstream.response_timeout;
    let mut retries = 0;
    loop {
        // After a failure only a fresh connection will do: what broke one may have broken all.
        if line.is_none() && retries == 0 {
            line = shelf.take(For::Http2);
        }
        let line = match line.take() {
            Some(line) => line,
            None => upstream.open(For::Http2).await?,
        };
        let addr = line.addr;
        recording.record().set_line(addr.0, &line.tls);
        let may_repeat = line.reused || line.tls.http2;
        let not_sent = || Failure::NotSent {
            name: target.name.to_string(),
        };
        let body = upload.attempt(may_repeat).ok_or_else(not_sent)?;
        let request = draft.request(target, line.tls.http2, body);
        let mut lease = Lease::new(Rc::clone(shelf), line);
        let line = lease.line().ok_or_else(not_sent)?;
        line.mark();
        let tail = Tail::new(Rc::clone(&line.watch));
        let mut error = match head(&mut line.sender, request, timer, upload, limit, tail).await {
            Head::Late => return Err(Failure::Timeout { addr }),
            Head::Unsent => return Err(not_sent()),
            Head::Came(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(Failure::Upgrade {
                    addr,
                    status: response.status(),
                });
            }
            Head::Came(Ok(response)) => {
                upload.settle();
                return Ok(Reply { response, lease });
            }
            Head::Came(Err(error)) => error,
        };
        let never_left = error.take_message().is_some();
        let source = error.into_error();
        if retries >= retry::MAX_RETRIES || !(never_left || retry::is_safe(line, &source, upload).await) {
            return Err(broken(line, source));
        }
        tracing::debug!(name = %target.name, %addr, error = %source, never_left, "request is sent again");
        retries += 1;
        recording.record().count_retry();
    }
}

/// How a request failed on `line`. In TLS 1.3 a server judges our certificate when the request is already on its way.
pub(super) fn broken(line: &Line, source: impl Into<Broken>) -> Failure {
    let addr = line.addr;
    match line.alert() {
        Some(source) => Failure::Handshake { addr, source },
        None => Failure::Protocol {
            addr,
            source: source.into(),
        },
    }
}

/// A request as often as it is needed.
pub(super) struct Draft {
    parts: Parts,
    path: PathAndQuery,
    /// Say that trailers are taken.
    trailers: bool,
}

impl Draft {
    /// Of a head whose headers are rewritten.
    pub(super) fn new(parts: Parts, trailers: bool) -> Self {
        Self {
            path: path_of(&parts.uri),
            parts,
            trailers,
        }
    }

    fn request(&mut self, target: &Target, http2: bool, body: UploadBody) -> Request<UploadBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.headers_mut() = self.headers(target, http2);
        if http2 {
            *request.version_mut() = Version::HTTP_2;
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(Scheme::HTTPS);
            uri.authority.clone_from(&target.authority);
            uri.path_and_query = Some(self.path.clone());
            *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        } else {
            *request.version_mut() = Version::HTTP_11;
            *request.uri_mut() = Uri::from(self.path.clone());
        }
        request
    }

    fn headers(&self, target: &Target, http2: bool) -> HeaderMap {
        let mut headers = self.parts.headers.clone();
        if http2 {
            // The name is in `:authority`.
            if self.trailers {
                headers.insert(TE, HeaderValue::from_static("trailers"));
            }
        } else {
            headers.insert(HOST, target.host.clone());
            join_cookies(&mut headers);
        }
        headers
    }
}

/// HTTP/2 may split a cookie header (RFC 9113 section 8.2.3); HTTP/1 has one.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Of valid values, so it is one.
    if let Ok(mut whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        whole.set_sensitive(true);
        headers.insert(COOKIE, whole);
    }
}

/// The origin form of a target; an absolute one without path means `/`.
fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

type HeadResult = Result<Response<Incoming>, TrySendError<Request<UploadBody>>>;

/// What came of waiting for a response head.
#[expect(
    clippy::large_enum_variant,
    reason = "lives for a moment; a box would be an allocation per request"
)]
enum Head {
    Came(HeadResult),
    /// The intake was too slow.
    Late,
    /// hyper does not speak on this connection.
    Unsent,
}

async fn head(
    sender: &mut Sender,
    request: Request<UploadBody>,
    timer: &RequestTimer,
    upload: &Upload,
    limit: Duration,
    tail: Tail,
) -> Head {
    let came = match sender {
        Sender::Wire(_) => return Head::Unsent,
        Sender::Http1(sender) => in_time(sender.try_send_request(request), timer, upload, limit, tail).await,
        Sender::Http2 { sender, .. } => {
            in_time(sender.try_send_request(request), timer, upload, limit, tail).await
        }
    };
    came.map_or(Head::Late, Head::Came)
}

/// The limit counts from the end, or the last progress, of the request body, see also [`Tail`]; while the client owes bytes, the client's
/// own limit holds.
async fn in_time(
    sending: impl Future<Output = HeadResult>,
    timer: &RequestTimer,
    upload: &Upload,
    limit: Duration,
    mut tail: Tail,
) -> Option<HeadResult> {
    let mut sending = pin!(sending);
    poll_fn(|cx| {
        if let Poll::Ready(result) = sending.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        let mut timer = timer.borrow_mut();
        match upload.deadline(limit) {
            Some(deadline) => loop {
                ready!(timer.poll(cx, tail.put_off(deadline, limit)));
                if !tail.moves(upload.bytes()) {
                    return Poll::Ready(None);
                }
            },
            None => {
                // Looked at again later: progress of the body does not wake this task.
                let later = Instant::now() + limit;
                timer.poll(cx, later).map(|()| None)
            }
        }
    })
    .await
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("status", &self.response.status())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("addr", &self.addr)
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}
