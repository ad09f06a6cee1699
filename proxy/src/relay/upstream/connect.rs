//! Makes a connection to an intake: addresses in turn, TCP, TLS, then HTTP/2 or HTTP/1.1 as ALPN says.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::Failure;
use super::pool::{Line, Sender};
use super::socket::{Noted, Socket, Watch};
use super::target::{Target, may_dial};
use crate::config::Upstream;
use crate::relay::Shared;
use crate::relay::accept::Thread;
use crate::relay::http::MAX_BUFFER;
use crate::relay::network::{self, NetworkId};
use crate::relay::origin::{OriginalDst, UpstreamAddr, canonical};
use crate::tls::{self, Negotiated};

/// Addresses that are tried for one request. With 5 s each, more would outlive every client's own time limit.
const MAX_ADDRESSES: usize = 6;
/// HTTP/2 flow control windows: a 3 MiB trace payload must not wait for a round trip per 64 KiB.
const H2_WINDOW: u32 = 1024 * 1024;
/// A silent HTTP/2 peer is asked for a sign of life while requests wait.
const H2_PING: std::time::Duration = std::time::Duration::from_secs(20);

/// The TLS layer as the relay needs it: `tls::Client`, or a fake one in tests.
pub trait Handshake: Clone + Send + Sync + 'static {
    /// The encrypted stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Shakes hands on `socket`, verifies the peer for `name`, offers `h2` and `http/1.1`.
    ///
    /// # Errors
    /// Why it failed, without secrets.
    fn connect(
        &self,
        name: &str,
        socket: Socket,
    ) -> impl Future<Output = Result<(Self::Stream, Negotiated), HandshakeFailure>>;
}

impl Handshake for tls::Client {
    type Stream = tls::ClientStream<Socket>;

    async fn connect(
        &self,
        name: &str,
        socket: Socket,
    ) -> Result<(Self::Stream, Negotiated), HandshakeFailure> {
        Self::connect(self, name, socket)
            .await
            .map_err(|error| HandshakeFailure {
                reason: error.reason,
                message: error.to_string(),
            })
    }
}

/// TLS failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({reason})")]
pub struct HandshakeFailure {
    /// For metrics: one of a closed set, as in `tls::HandshakeError`.
    pub reason: &'static str,
    /// For people: what, and why.
    pub message: String,
}

/// Opens a connection for `target` and a client of `network`: at the original destination first, then wherever the name leads.
///
/// # Errors
/// The last address's failure, or that there was no usable address.
pub(super) async fn open<H: Handshake>(
    thread: &Thread<H>,
    network: NetworkId,
    target: &Target,
    original: Option<OriginalDst>,
) -> Result<Line, Failure> {
    let upstream = &thread.shared.config.upstream;
    let mut tried = Vec::new();
    let mut last = None;
    if let Some(OriginalDst(original)) = original {
        // The client's port is 80; the intake speaks TLS on its own.
        let address = SocketAddr::new(original.ip(), upstream.port);
        if usable(thread, network, address) {
            tried.push(address);
            match attempt(thread, network, target, UpstreamAddr(address)).await {
                Ok(line) => return Ok(line),
                Err(failure) => {
                    tracing::debug!(name = %target.name, error = %failure, "original destination failed, resolving");
                    last = Some(failure);
                }
            }
        }
    }
    let (host, port) = endpoint(upstream, target);
    let found = match host.parse::<IpAddr>() {
        Ok(ip) => Ok(vec![ip]),
        Err(_) => thread.shared.resolver.lookup(host).await,
    };
    let ips = match found {
        Ok(ips) => ips,
        Err(error) => {
            return Err(last.unwrap_or(Failure::Resolve {
                name: host.to_owned(),
                source: error,
            }));
        }
    };
    let mut refused = None;
    for ip in alternate(&ips) {
        let address = canonical(SocketAddr::new(ip, port));
        if tried.contains(&address) {
            continue;
        }
        if !usable(thread, network, address) {
            refused = Some(address.ip());
            continue;
        }
        if tried.len() >= MAX_ADDRESSES {
            break;
        }
        tried.push(address);
        match attempt(thread, network, target, UpstreamAddr(address)).await {
            Ok(line) => return Ok(line),
            Err(failure) => {
                tracing::debug!(name = %target.name, %address, error = %failure, "address failed");
                last = Some(failure);
            }
        }
    }
    Err(last.unwrap_or_else(|| match refused {
        Some(ip) => Failure::RefusedAddress {
            name: host.to_owned(),
            ip,
        },
        None => Failure::NoAddress {
            name: host.to_owned(),
        },
    }))
}

/// Host and port that are resolved and dialled for a target: its own name unless `upstream.endpoints` says otherwise.
fn endpoint<'a>(upstream: &'a Upstream, target: &'a Target) -> (&'a str, u16) {
    match upstream.endpoints.get(&target.product) {
        Some(endpoint) => (&endpoint.host, endpoint.port.unwrap_or(upstream.port)),
        None => (&target.name, upstream.port),
    }
}

/// Public or allowed, and not one of our own listeners.
fn usable<H: Handshake>(thread: &Thread<H>, network: NetworkId, address: SocketAddr) -> bool {
    may_dial(address.ip(), &thread.shared.config.upstream.allow_private) && !thread.is_own(network, address)
}

/// The families in turn, each in its resolver's order: one broken family costs one attempt, not all.
fn alternate(ips: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let first_v6 = ips.first().is_some_and(IpAddr::is_ipv6);
    let (mut first, mut second): (Vec<_>, Vec<_>) = ips.iter().partition(|ip| ip.is_ipv6() == first_v6);
    first.reverse();
    second.reverse();
    let mut turn = false;
    std::iter::from_fn(move || {
        turn = !turn;
        if turn {
            first.pop().or_else(|| second.pop())
        } else {
            second.pop().or_else(|| first.pop())
        }
    })
}

async fn attempt<H: Handshake>(
    thread: &Thread<H>,
    network: NetworkId,
    target: &Target,
    addr: UpstreamAddr,
) -> Result<Line, Failure> {
    let limit = thread.shared.config.upstream.connect_timeout;
    let line = timeout(limit, dial(&thread.shared, network, &target.name, addr))
        .await
        .unwrap_or(Err(Failure::ConnectTimeout { addr }))?;
    thread.shared.recorder.upstream_connected(&line.tls);
    Ok(line)
}

async fn dial<H: Handshake>(
    shared: &Shared<H>,
    network: NetworkId,
    name: &str,
    addr: UpstreamAddr,
) -> Result<Line, Failure> {
    let stream = network::dial(shared, network, addr.0)
        .await
        .map_err(|source| Failure::Connect { addr, source })?;
    let (socket, watch) = Socket::new(stream);
    let (stream, negotiated) = shared
        .tls
        .connect(name, socket)
        .await
        .map_err(|source| Failure::Handshake { addr, source })?;
    let negotiated = Arc::new(negotiated);
    let http2 = negotiated.http2;
    let max_head = shared.config.limits.max_header_bytes;
    let sender = http(stream, Rc::clone(&watch), http2, max_head)
        .await
        .map_err(|source| Failure::Protocol { addr, source })?;
    Ok(Line::new(sender, watch, addr, negotiated))
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    watch: Rc<Watch>,
    http2: bool,
    max_head: usize,
) -> hyper::Result<Sender> {
    let io = TokioIo::new(Noted::new(stream, watch));
    if http2 {
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .keep_alive_interval(H2_PING)
            .handshake(io)
            .await?;
        tokio::task::spawn_local(drive(connection));
        return Ok(Sender::Http2 {
            sender,
            streams: Rc::default(),
        });
    }
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_BUFFER.max(max_head))
        .max_header_size(max_head)
        .handshake(io)
        .await?;
    tokio::task::spawn_local(drive(connection));
    Ok(Sender::Http1(sender))
}

/// Runs a connection to its end. A request that it fails gets the error itself; between requests nobody minds.
async fn drive(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "upstream connection ended");
    }
}

/// Runs hyper's HTTP/2 tasks on this thread.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let ips: Vec<IpAddr> = [
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::3",
            "192.0.2.1",
            "192.0.2.2",
        ]
        .iter()
        .map(|ip| ip.parse().unwrap())
        .collect();
        let order: Vec<String> = alternate(&ips).map(|ip| ip.to_string()).collect();
        assert_eq!(
            order,
            [
                "2001:db8::1",
                "192.0.2.1",
                "2001:db8::2",
                "192.0.2.2",
                "2001:db8::3"
            ]
        );
        assert_eq!(alternate(&[]).count(), 0);
    }
}
