//! A request of the operator's own, by the way that Agents' requests take: endpoints, outbound proxy, addresses that may be dialled,
//! TLS of the module. The host is the client.

use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use tokio::runtime::Handle;
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout};

use super::connect::{self, To};
use super::outbound::OutboundError;
use super::pool::For;
use super::resolve::{Resolver, Sources};
use super::tail::Tail;
use super::target::Targets;
use super::{Draft, Head, head};
use crate::catalog::{Catalog, Product};
use crate::config::Config;
use crate::relay::accept::Thread;
use crate::relay::decide::Route;
use crate::relay::http::body::Upload;
use crate::relay::http::exchange::Exchange;
use crate::relay::http::pace::Pace;
use crate::relay::http::server1::{BodyFault, Own};
use crate::relay::network::{self, MakingSocket, NetworkId, Sockets};
use crate::relay::outcome::{ClientTls, ConnectionRecord, RequestRecord, Said, TlsClient, Via};
use crate::relay::timer::LazyTimer;
use crate::relay::{HttpsHandling, Outbound, Recorder, Shared, Slots, UpstreamPlace};
use crate::secret::Secrets;
use crate::tls::{self, Negotiated};

/// Bytes of a body that are read at once.
const PIECE: usize = 64 * 1024;
/// What is read of an answer, in bytes; a longer one is cut there.
const ANSWER: usize = 64 * 1024;

/// An intake's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// `Content-Type`, as far as it is text.
    pub content_type: Option<String>,
    /// `Location`, where it leads elsewhere.
    pub location: Option<String>,
    /// Its first 64 KiB.
    pub body: Vec<u8>,
    /// What TLS agreed on.
    pub tls: Arc<Negotiated>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ErrandError {
    /// The trust roots, pins, lists or the client certificate.
    #[error(transparent)]
    Tls(#[from] tls::ConfigError),
    /// The outbound proxy's credentials.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// No runtime.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// The way there, or the answer; `0` says it.
    #[error("{0}")]
    Failed(String),
}

/// Asks `product` of the configured site. `body`, of `length` bytes, is read as it is sent. The caller has started the module.
///
/// # Errors
/// Nothing was answered, and why. Never holds a byte of the request.
pub fn send(
    config: &Config,
    product: Product,
    request: Request<()>,
    body: impl Read + 'static,
    length: u64,
) -> Result<Answer, ErrandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ErrandError::Runtime)?;
    let shared = Arc::new(shared(config, runtime.handle().clone())?);
    let source = Box::new(Source {
        reader: Box::new(body),
        left: length,
        length,
    });
    LocalSet::new().block_on(&runtime, ask(shared, product, request, source))
}

fn shared(config: &Config, runtime: Handle) -> Result<Shared, ErrandError> {
    let secrets = Secrets::default();
    Ok(Shared {
        catalog: Arc::new(Catalog::new(&config.site)),
        tls: tls::Client::with_secrets(&config.upstream, &secrets)?,
        outbound: Outbound::new(&config.upstream, &secrets)?.map(Arc::new),
        resolver: Arc::new(Resolver::new(Sources::default(), runtime)),
        recorder: Arc::new(Nobody),
        door: None,
        slots: Arc::new(Slots::new(&config.limits)),
        origin: Arc::new(crate::relay::kernel_original_dst),
        peer: Arc::new(crate::relay::kernel_peer),
        sockets: Arc::new(Nobody),
        https: HttpsHandling::Passthrough,
        config: Arc::new(config.clone()),
    })
}

async fn ask(
    shared: Arc<Shared>,
    product: Product,
    request: Request<()>,
    source: Box<Source>,
) -> Result<Answer, ErrandError> {
    let failed = |error: &dyn fmt::Display| ErrandError::Failed(error.to_string());
    let target = Targets::default().get(Route { product, name: None }, &shared.catalog);
    let limit = shared.config.upstream.response_timeout;
    let pace = Pace::new(&shared.config.limits);
    let thread = Thread::new(shared);
    let way = connect::way(&thread.shared, &target, None);
    let to = To {
        network: NetworkId::HOST,
        target: &target,
        way: &way,
        client: For::Http2,
    };
    let mut line = connect::open(&thread, to).await.map_err(|error| failed(&error))?;
    let upload = Upload::own(source, pace, Rc::new(Exchange::new()));
    let body = upload
        .attempt(false)
        .ok_or_else(|| failed(&"the body was read before it was sent"))?;
    let (parts, ()) = request.into_parts();
    let request = Draft::new(parts, false).request(&target, line.tls.http2, body);
    line.mark();
    let tail = Tail::new(Rc::clone(&line.watch));
    let timer = Rc::new(std::cell::RefCell::new(LazyTimer::new(Instant::now() + limit)));
    let addr = line.addr;
    let response = match head(&mut line.sender, request, &timer, &upload, limit, tail).await {
        Head::Came(Ok(response)) => response,
        Head::Came(Err(error)) => return Err(failed(&super::broken(&line, error.into_error()))),
        Head::Late => return Err(failed(&super::Failure::Timeout { addr })),
        Head::Unsent => {
            let name = target.name.to_string();
            return Err(failed(&super::Failure::NotSent { name }));
        }
    };
    let text = |name| {
        let value = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let (content_type, location) = (text(http::header::CONTENT_TYPE), text(http::header::LOCATION));
    let status = response.status();
    let body = collect(response.into_body(), limit).await;
    Ok(Answer {
        status,
        content_type,
        location,
        body,
        tls: Arc::clone(&line.tls),
    })
}

/// The answer's beginning. That its end did not come changes nothing about its status.
async fn collect(body: hyper::body::Incoming, limit: Duration) -> Vec<u8> {
    let mut body = Limited::new(body, ANSWER);
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data);
            }
        }
    };
    if timeout(limit, read).await.is_err() {
        tracing::debug!("the answer did not end in time");
    }
    bytes
}

/// A body of a known length.
struct Source {
    reader: Box<dyn Read>,
    left: u64,
    length: u64,
}

impl Own for Source {
    /// Reads a file of this host: never waits for anybody.
    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let most = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; most];
        Poll::Ready(Some(match self.reader.read(&mut piece) {
            Ok(0) | Err(_) => Err(BodyFault::Gone),
            Ok(length) => {
                piece.truncate(length);
                self.left -= length as u64;
                Ok(Bytes::from(piece))
            }
        }))
    }

    fn is_ended(&self) -> bool {
        self.left == 0
    }

    fn length(&self) -> Option<u64> {
        Some(self.length)
    }
}

/// Nobody counts it, and nobody makes sockets elsewhere.
struct Nobody;

impl Sockets for Nobody {
    fn socket(&self, network: NetworkId, _: bool) -> MakingSocket<'_> {
        Box::pin(std::future::ready(Err(network::gone(network))))
    }
}

impl Recorder for Nobody {
    fn request(&self, _: &RequestRecord) {}
    fn connection(&self, _: &ConnectionRecord) {}
    fn connection_opened(&self, _: Via) {}
    fn upstream_connected(&self, _: &UpstreamPlace<'_>, _: &Negotiated) {}
    fn upstream_failed(&self, _: &UpstreamPlace<'_>, _: &dyn fmt::Display, _: Duration) {}
    fn client_tls(&self, _: &TlsClient, _: &ClientTls) {}
    fn client_tls_failed(&self, _: &'static str) {}
    fn client_trusts(&self, _: &TlsClient) {}
    fn client_distrusts(&self, _: &TlsClient, _: &Said) {}
}
