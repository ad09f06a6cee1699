//! The way to the intake: a pooled or a fresh connection, the request, its response head, and retries where they are safe.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::header::HOST;
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;

use super::http::Client;
use super::http::body::{Upload, UploadBody};
use super::http::record::Recording;
use super::origin::UpstreamAddr;
use super::outcome::Outcome;

pub mod connect;
pub(super) mod pool;
pub mod resolve;
mod retry;
mod socket;
pub(super) mod target;

use connect::{Handshake, HandshakeFailure};
use pool::{Key, Lease, Line, Sender};
pub use socket::Socket;
use target::Target;

/// The intake's response head, and the connection that its body comes on.
pub(super) struct Reply {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
}

/// Why there is no response. Messages name addresses and names, never content.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The name does not resolve.
    #[error("cannot resolve {name}: {source}")]
    Resolve {
        /// The name.
        name: String,
        /// Why.
        source: resolve::ResolveError,
    },
    /// The name has no address that is not tried yet.
    #[error("{name} has no address")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// The name leads to where an intake cannot be.
    #[error(
        "{name} resolves to {ip}, which is not public: name its network in upstream.allow_private to dial it"
    )]
    RefusedAddress {
        /// The name.
        name: String,
        /// One of its addresses.
        ip: IpAddr,
    },
    /// TCP failed.
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// The address.
        addr: UpstreamAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// TCP and TLS took too long.
    #[error("connecting to {addr} took longer than upstream.connect_timeout")]
    ConnectTimeout {
        /// The address.
        addr: UpstreamAddr,
    },
    /// TLS failed.
    #[error("{source}, at {addr}")]
    Handshake {
        /// The address.
        addr: UpstreamAddr,
        /// Why, with the name that was to be verified.
        source: HandshakeFailure,
    },
    /// The intake broke the connection or HTTP.
    #[error("the intake at {addr} broke the connection: {source}")]
    Protocol {
        /// The address.
        addr: UpstreamAddr,
        /// What hyper said; it never quotes content.
        source: hyper::Error,
    },
    /// The intake answered something that we did not ask for.
    #[error("the intake at {addr} answered {status} to a request that asked for no upgrade")]
    Upgrade {
        /// The address.
        addr: UpstreamAddr,
        /// The status.
        status: StatusCode,
    },
    /// No response head in time.
    #[error("the intake at {addr} did not answer within upstream.response_timeout")]
    Timeout {
        /// The address.
        addr: UpstreamAddr,
    },
    /// A connection that cannot carry this request.
    #[error("no connection accepted the request for {name}")]
    NotSent {
        /// The name.
        name: String,
    },
}

impl Failure {
    /// The label for records, metrics and the client.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Resolve { .. } | Self::NoAddress { .. } | Self::RefusedAddress { .. } => Outcome::NoAddress,
            Self::Connect { .. } => Outcome::UpstreamConnect,
            Self::Handshake { .. } => Outcome::UpstreamTls,
            Self::Protocol { .. } | Self::Upgrade { .. } | Self::NotSent { .. } => Outcome::UpstreamProtocol,
            Self::ConnectTimeout { .. } | Self::Timeout { .. } => Outcome::UpstreamTimeout,
        }
    }
}

/// Sends a request (its headers rewritten, without Host) and waits for the response head.
///
/// Dropping the future drops the request upstream: the client is gone.
///
/// # Errors
/// [`Failure`] when no response head came; nothing was answered to the client yet.
pub(super) async fn send<H: Handshake>(
    client: &Client<H>,
    target: &Rc<Target>,
    parts: Parts,
    upload: &Upload,
    recording: &mut Recording,
) -> Result<Reply, Failure> {
    let thread = &client.thread;
    let original = client.origin.original();
    let network = client.network;
    let key = Key {
        network,
        name: Rc::clone(&target.name),
        original: original.map(|original| original.0),
    };
    let limit = thread.shared.config.upstream.response_timeout;
    let mut draft = Draft {
        path: path_of(&parts.uri),
        parts,
    };
    let mut retries = 0;
    loop {
        // After a failure only a fresh connection will do: what broke one may have broken all.
        let pooled = if retries == 0 {
            thread.pool.take(&key)
        } else {
            None
        };
        let line = match pooled {
            Some(line) => line,
            None => {
                let line = connect::open(thread, network, target, original).await?;
                thread.pool.publish(&key, &line);
                line
            }
        };
        let addr = line.addr;
        recording.set_line(addr.0, &line.tls);
        let may_repeat = line.reused || line.tls.http2;
        let not_sent = || Failure::NotSent {
            name: target.name.to_string(),
        };
        let body = upload.attempt(may_repeat).ok_or_else(not_sent)?;
        let request = draft.request(target, line.tls.http2, body);
        let mut lease = Lease::new(Rc::clone(&thread.pool), key.clone(), line);
        let line = lease.line().ok_or_else(not_sent)?;
        line.watch.mark();
        let mut error = match head(&mut line.sender, request, client, upload, limit).await {
            None => return Err(Failure::Timeout { addr }),
            Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(Failure::Upgrade {
                    addr,
                    status: response.status(),
                });
            }
            Some(Ok(response)) => {
                upload.settle();
                return Ok(Reply { response, lease });
            }
            Some(Err(error)) => error,
        };
        let never_left = error.take_message().is_some();
        let source = error.into_error();
        if retries >= retry::MAX_RETRIES || !(never_left || retry::is_safe(line, &source, upload).await) {
            return Err(Failure::Protocol { addr, source });
        }
        tracing::debug!(name = %target.name, %addr, error = %source, never_left, "request is sent again");
        retries += 1;
        recording.count_retry();
    }
}

/// A request as often as it is needed.
struct Draft {
    parts: Parts,
    path: PathAndQuery,
}

impl Draft {
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
        // HTTP/2 carries the name in `:authority`.
        if !http2 {
            headers.insert(HOST, target.host.clone());
        }
        headers
    }
}

/// The origin form of a target; an absolute one without path means `/`.
fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

type HeadResult = Result<Response<Incoming>, TrySendError<Request<UploadBody>>>;

/// Waits for the response head; `None` when the intake was too slow.
async fn head<H: Handshake>(
    sender: &mut Sender,
    request: Request<UploadBody>,
    client: &Client<H>,
    upload: &Upload,
    limit: Duration,
) -> Option<HeadResult> {
    match sender {
        Sender::Http1(sender) => in_time(sender.try_send_request(request), client, upload, limit).await,
        Sender::Http2 { sender, .. } => {
            in_time(sender.try_send_request(request), client, upload, limit).await
        }
    }
}

/// The limit counts from the end, or the last progress, of the request body; while the client owes bytes, the client's
/// own limit holds.
async fn in_time<H: Handshake>(
    sending: impl Future<Output = HeadResult>,
    client: &Client<H>,
    upload: &Upload,
    limit: Duration,
) -> Option<HeadResult> {
    let mut sending = pin!(sending);
    poll_fn(|cx| {
        if let Poll::Ready(result) = sending.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        let mut timer = client.timer.borrow_mut();
        match upload.deadline(limit) {
            Some(deadline) => timer.poll(cx, deadline).map(|()| None),
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
