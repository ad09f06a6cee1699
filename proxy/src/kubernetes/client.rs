//! Requests to the API server: our TLS, the service account's token, and errors that say what to do.
//!
//! Token and certificates are read anew for each request and connection: Kubernetes exchanges both while pods run.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderValue};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::Body;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tower_service::Service;

use super::{Error, Reach};
use crate::tls::{Client as Tls, ClientStream};

/// TCP and TLS to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From a request to its response head. A watch answers its head at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A peer that vanished is noticed after three of these.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Characters of somebody else's message that we pass on.
const MAX_MESSAGE: usize = 300;

type BoxError = Box<dyn StdError + Send + Sync>;
type Pending<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// A client, and how often a request succeeded: a change of it says that the API server answers us. Must be called inside a
/// tokio runtime.
pub fn new(reach: &Reach) -> (kube::Client, watch::Receiver<u64>) {
    let reach = Arc::new(reach.clone());
    let http = HttpClient::builder(TokioExecutor::new()).build(Connector(Arc::clone(&reach)));
    let (succeeded, successes) = watch::channel(0);
    let asking = Asking {
        reach,
        http,
        succeeded: Arc::new(succeeded),
    };
    (kube::Client::new(asking, "default"), successes)
}

/// Adds to a request where it goes and who asks.
struct Asking {
    reach: Arc<Reach>,
    http: HttpClient<Connector, Body>,
    succeeded: Arc<watch::Sender<u64>>,
}

impl Service<Request<Body>> for Asking {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pending<Self::Response>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let reach = Arc::clone(&self.reach);
        let http = self.http.clone();
        let succeeded = Arc::clone(&self.succeeded);
        Box::pin(async move {
            let mut parts = request.uri().clone().into_parts();
            parts.scheme = Some(Scheme::HTTPS);
            parts.authority = Some(reach.authority().parse()?);
            *request.uri_mut() = Uri::from_parts(parts)?;
            let headers = request.headers_mut();
            headers.insert(AUTHORIZATION, bearer(&reach)?);
            let response = timeout(HEAD_TIMEOUT, http.request(request))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 30 s"))??;
            if response.status().is_success() {
                succeeded.send_modify(|count| *count = count.wrapping_add(1));
            }
            Ok(response)
        })
    }
}

/// The token as a header. Neither its value nor an error shows it.
fn bearer(reach: &Reach) -> Result<HeaderValue, Error> {
    let path = reach.token();
    let token = std::fs::read_to_string(&path).map_err(|error| Error::service_account(&path, error))?;
    let token = token.trim();
    if token.is_empty() {
        return Err(Error::service_account(&path, "it is empty"));
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Error::service_account(&path, "it does not hold a token"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Connects to the one server that there is, whatever the URI.
#[derive(Clone)]
struct Connector(Arc<Reach>);

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = BoxError;
    type Future = Pending<Link>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let reach = Arc::clone(&self.0);
        Box::pin(async move {
            timeout(CONNECT_TIMEOUT, connect(&reach))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took longer than 10 s"))?
        })
    }
}

async fn connect(reach: &Reach) -> Result<Link, BoxError> {
    let ca_file = reach.ca_file();
    let tls = Tls::for_authority(reach.tls_policy, &ca_file)
        .map_err(|problem| Error::service_account(&ca_file, problem))?;
    let stream = TcpStream::connect((reach.host.as_str(), reach.port)).await?;
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(3);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let (stream, _) = tls.connect(&reach.host, stream).await?;
    Ok(Link(TokioIo::new(stream)))
}

/// A connection as hyper takes it.
struct Link(TokioIo<ClientStream<TcpStream>>);

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A failed request in words: what, why, what to do.
pub(super) fn explain(reach: &Reach, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => explain_status(reach, status.code, &status.message),
        other => {
            let why = short(&reasons(other));
            scrub(
                reach,
                format!(
                    "cannot ask the Kubernetes API server at {}: {why}",
                    reach.authority()
                ),
            )
        }
    }
}

/// An answer of the API server's that is an error.
pub(super) fn explain_status(reach: &Reach, code: u16, message: &str) -> String {
    let server = reach.authority();
    let message = short(message);
    let text = match code {
        401 => format!(
            "the Kubernetes API server at {server} does not accept the token in {} \
             (intercept.agents.pods.service_account): {message}",
            reach.token().display()
        ),
        403 => format!(
            "the Kubernetes API server at {server} does not let us see the pods: bind a ClusterRole with the verbs get, list \
             and watch on pods to the service account, or set intercept.agents.pods.api to off: {message}"
        ),
        400 => format!(
            "the Kubernetes API server at {server} refuses the question: check intercept.agents.pods.label_selector \
             ({}) and intercept.agents.pods.node ({}): {message}",
            reach.label_selector, reach.node
        ),
        code => format!("the Kubernetes API server at {server} answered {code}: {message}"),
    };
    scrub(reach, text)
}

/// Whatever a server may have sent back to us: never the token.
fn scrub(reach: &Reach, text: String) -> String {
    match std::fs::read_to_string(reach.token()) {
        Ok(token) if !token.trim().is_empty() => text.replace(token.trim(), "(token)"),
        _ => text,
    }
}

fn short(message: &str) -> String {
    let message = message.trim();
    let mut text: String = message
        .chars()
        .take(MAX_MESSAGE)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if message.chars().nth(MAX_MESSAGE).is_some() {
        text.push_str(" ...");
    }
    text
}

/// An error and what caused it; a cause that its effect quotes already is not said twice.
fn reasons(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
