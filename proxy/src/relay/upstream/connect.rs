//! Makes a connection to an intake: directly or through the outbound proxy, addresses in turn, TCP, TLS, then HTTP/2 or
//! HTTP/1.1 as ALPN says.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::health::Road;
use super::outbound::Outbound;
use super::pool::{For, Line, MAX_STREAMS, Sender};
use super::socket::{Noted, Socket, Watch};
use super::target::Target;
use super::{Failure, race};
use crate::address::{is_public, may_be_proxy, may_dial};
use crate::config::authority;
use crate::relay::accept::Thread;
use crate::relay::http::MAX_BUFFER;
use crate::relay::network::{self, NetworkId};
use crate::relay::origin::{OriginalDst, UpstreamAddr, canonical};
use crate::relay::{Shared, UpstreamPlace};
use crate::tls::{self, Negotiated};

/// Addresses that are tried for one request. With 5 s each, more would outlive every client's own time limit.
pub(super) const MAX_ADDRESSES: usize = 6;
/// HTTP/2 flow control, towards us, in bytes a stream: what is kept of an answer that its client does not read.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// And a connection: more than all its streams together may fill, so that no client that does not read keeps others waiting.
#[expect(clippy::cast_possible_truncation, reason = "a hundred or so")]
const H2_CONNECTION_WINDOW: u32 = (MAX_STREAMS as u32 + 1) * H2_STREAM_WINDOW;
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

    /// Grows when servers are judged by something else than before; see [`tls::Client::generation`].
    fn generation(&self) -> u64 {
        0
    }
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
            .map_err(HandshakeFailure::from)
    }

    fn generation(&self) -> u64 {
        Self::generation(self)
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

impl From<tls::HandshakeError> for HandshakeFailure {
    fn from(error: tls::HandshakeError) -> Self {
        Self {
            reason: error.reason,
            message: error.to_string(),
        }
    }
}

/// How a target is reached.
#[derive(Debug)]
pub(in crate::relay) enum Way<'a> {
    /// Where an intercepted client meant to go, else wherever its name leads.
    Original {
        original: SocketAddr,
        name: &'a str,
        port: u16,
    },
    /// Wherever this name or address leads.
    Named { host: &'a str, port: u16 },
    /// Through the outbound proxy, which resolves the name.
    Proxy {
        outbound: &'a Outbound,
        destination: String,
    },
}

impl Way<'_> {
    /// The original destination, when it is dialled.
    pub(in crate::relay) fn original(&self) -> Option<SocketAddr> {
        match self {
            Self::Original { original, .. } => Some(*original),
            Self::Named { .. } | Self::Proxy { .. } => None,
        }
    }
}

/// The way to `target` for a client that meant to go to `original`, if it was intercepted. An endpoint and an outbound
/// proxy are the operator's word on where to go, and win over the client's.
pub(super) fn way<'a, H>(
    shared: &'a Shared<H>,
    target: &'a Target,
    original: Option<OriginalDst>,
) -> Way<'a> {
    let upstream = &shared.config.upstream;
    let (host, port) = upstream.endpoint(target.product, &target.name);
    let original = original
        .map(|original| original.0)
        .filter(|_| !upstream.endpoints.contains_key(&target.product));
    if let Some(outbound) = shared
        .outbound
        .as_deref()
        .filter(|outbound| outbound.carries(target, (host, port), original))
    {
        return Way::Proxy {
            outbound,
            destination: authority(host, port),
        };
    }
    match original {
        // The client's port is 80; the intake speaks TLS on its own.
        Some(original) => Way::Original {
            original: SocketAddr::new(original.ip(), port),
            name: host,
            port,
        },
        None => Way::Named { host, port },
    }
}

/// Whom a connection is for.
#[derive(Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) network: NetworkId,
    pub(super) target: &'a Target,
    pub(super) way: &'a Way<'a>,
    pub(super) client: For,
}

impl To<'_> {
    /// Whose place such a connection may take.
    pub(super) fn road(&self) -> Road {
        Road {
            network: self.network,
            name: Arc::clone(&self.target.name),
            original: self.way.original(),
            proxied: matches!(self.way, Way::Proxy { .. }),
        }
    }

    /// The same for whoever is told of it.
    pub(super) fn told(&self, address: SocketAddr) -> UpstreamPlace<'_> {
        UpstreamPlace {
            product: self.target.product,
            name: &self.target.name,
            host: match self.way {
                Way::Original { name, .. } => name,
                Way::Named { host, .. } => host,
                Way::Proxy { outbound, .. } => outbound.address().0,
            },
            address,
        }
    }
}

/// What was tried.
#[derive(Default)]
struct Tried {
    addresses: Vec<SocketAddr>,
    /// Why the last one failed.
    last: Option<Failure>,
}

/// Opens a connection.
///
/// # Errors
/// The last address's failure, or that there was no usable address.
pub(super) async fn open<H: Handshake>(thread: &Thread<H>, to: To<'_>) -> Result<Line, Failure> {
    let allow = &thread.shared.config.upstream.allow_private;
    match to.way {
        Way::Original { original, name, port } => {
            let ip = original.ip();
            if !may_dial(ip, allow) {
                return Err(Failure::RefusedOriginal {
                    name: to.target.name.to_string(),
                    ip,
                });
            }
            let mut tried = Tried::default();
            let own = thread.is_own(to.network, *original);
            // One that took no connection lately waits behind what the name leads to.
            let later = !own && thread.health.is_out(&race::place(to, *original));
            if !own && !later {
                tried.addresses.push(*original);
                match race::one(thread, to, *original).await {
                    Ok(line) => return Ok(line),
                    Err(failure) => {
                        tracing::debug!(name = %to.target.name, error = %failure, "original destination failed, resolving");
                        tried.last = Some(failure);
                    }
                }
            }
            // Data that was meant for a private network does not leave for the public one, whatever a resolver says.
            let stays_private = !is_public(ip);
            let may = |ip: IpAddr| may_dial(ip, allow) && !(stays_private && is_public(ip));
            let also = later.then_some(*original);
            named(thread, to, (name, *port), may, also, tried).await
        }
        Way::Named { host, port } => {
            let may = |ip| may_dial(ip, allow);
            named(thread, to, (host, *port), may, None, Tried::default()).await
        }
        Way::Proxy { outbound, .. } => {
            let may = |ip| may_be_proxy(ip, allow);
            named(thread, to, outbound.address(), may, None, Tried::default()).await
        }
    }
}

/// The addresses of a host, as far as they `may` be dialled and were not `tried`, and one that is known without it. When none
/// works, the name servers are asked once more, should the name lead elsewhere by now.
async fn named<H: Handshake>(
    thread: &Thread<H>,
    to: To<'_>,
    (host, port): (&str, u16),
    may: impl Fn(IpAddr) -> bool,
    also: Option<SocketAddr>,
    mut tried: Tried,
) -> Result<Line, Failure> {
    let resolver = &thread.shared.resolver;
    let mut refused = None;
    for again in [false, true] {
        if again && !(tried.last.is_some() && resolver.doubt(host)) {
            break;
        }
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => Ok(vec![ip]),
            Err(_) => resolver.lookup(host).await,
        };
        let ips = match found {
            Ok(ips) => ips,
            Err(_) if also.is_some() => Vec::new(),
            Err(source) => {
                let name = host.to_owned();
                return Err(tried.last.unwrap_or(Failure::Resolve { name, source }));
            }
        };
        let mut addresses = Vec::new();
        for ip in alternate(&ips) {
            let address = canonical(SocketAddr::new(ip, port));
            if tried.addresses.contains(&address) || addresses.contains(&address) {
                continue;
            }
            // One of our own listeners would be a loop.
            if !may(address.ip()) || thread.is_own(to.network, address) {
                refused = Some(address.ip());
                continue;
            }
            addresses.push(address);
        }
        addresses.extend(also.filter(|also| !addresses.contains(also) && !tried.addresses.contains(also)));
        thread.health.sort(&to.road(), &mut addresses);
        addresses.truncate(MAX_ADDRESSES.saturating_sub(tried.addresses.len()));
        tried.addresses.extend(&addresses);
        if let Some(line) = race::first(thread, to, addresses, &mut tried.last).await? {
            return Ok(line);
        }
    }
    Err(tried.last.unwrap_or_else(|| match (refused, to.way) {
        (Some(ip), Way::Proxy { outbound, .. }) => Failure::RefusedProxy {
            proxy: outbound.authority().to_owned(),
            ip,
        },
        (Some(ip), _) => Failure::RefusedAddress {
            name: host.to_owned(),
            ip,
        },
        (None, _) => Failure::NoAddress {
            name: host.to_owned(),
        },
    }))
}

/// The families in turn, each in its resolver's order: one broken family costs one attempt, not all.
pub(super) fn alternate(ips: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
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

/// `upstream.connect_timeout` is over.
pub(super) fn late(way: &Way<'_>, addr: UpstreamAddr) -> Failure {
    match way {
        Way::Proxy {
            outbound,
            destination,
        } => Failure::ProxyTimeout {
            destination: destination.clone(),
            proxy: outbound.authority().to_owned(),
            addr,
        },
        Way::Original { .. } | Way::Named { .. } => Failure::ConnectTimeout { addr },
    }
}

/// TCP.
pub(super) async fn tcp<H: Handshake>(
    shared: &Shared<H>,
    to: To<'_>,
    addr: UpstreamAddr,
) -> Result<TcpStream, Failure> {
    network::dial(shared, to.network, addr.0)
        .await
        .map_err(|source| match to.way {
            Way::Proxy { outbound, .. } => Failure::ProxyConnect {
                proxy: outbound.authority().to_owned(),
                addr,
                source,
            },
            Way::Original { .. } | Way::Named { .. } => Failure::Connect { addr, source },
        })
}

/// All that follows: the tunnel, TLS, HTTP.
pub(super) async fn secure<H: Handshake>(
    shared: &Shared<H>,
    to: To<'_>,
    addr: UpstreamAddr,
    stream: TcpStream,
) -> Result<Line, Failure> {
    let (stream, negotiated, watch) = session(shared, to, addr, stream).await?;
    let negotiated = Arc::new(negotiated);
    let http2 = negotiated.http2;
    let max_head = shared.config.limits.max_header_bytes;
    let noted = Noted::new(stream, Rc::clone(&watch), Arc::clone(&to.target.name));
    let sender = http(noted, http2, to.client, max_head)
        .await
        .map_err(|source| match watch.alert() {
            Some(source) => Failure::Handshake { addr, source },
            None => Failure::Protocol {
                addr,
                source: source.into(),
            },
        })?;
    Ok(Line::new(sender, watch, addr, negotiated))
}

/// The tunnel and TLS.
pub(super) async fn session<H: Handshake>(
    shared: &Shared<H>,
    to: To<'_>,
    addr: UpstreamAddr,
    stream: TcpStream,
) -> Result<(H::Stream, Negotiated, Rc<Watch>), Failure> {
    let To { way, .. } = to;
    let name = &to.target.name;
    let (mut socket, watch) = Socket::new(stream);
    let mut proxy = None;
    if let Way::Proxy {
        outbound,
        destination,
    } = way
    {
        watch.set_relayed();
        socket = outbound
            .tunnel(socket, destination)
            .await
            .map_err(|source| Failure::Tunnel {
                destination: destination.clone(),
                proxy: outbound.authority().to_owned(),
                addr,
                source,
            })?;
        proxy = Some(outbound.authority().to_owned());
    }
    let (stream, mut negotiated) = shared
        .tls
        .connect(name, socket)
        .await
        .map_err(|source| Failure::Handshake { addr, source })?;
    negotiated.proxy = proxy;
    Ok((stream, negotiated, watch))
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: Noted<S>,
    http2: bool,
    client: For,
    max_head: usize,
) -> hyper::Result<Sender> {
    if !http2 && client == For::Http1 {
        return Ok(Sender::Wire(Box::new(stream)));
    }
    let io = TokioIo::new(stream.read_before_error());
    if http2 {
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
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
pub(super) async fn drive(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "upstream connection ended");
    }
}

/// Runs hyper's HTTP/2 tasks on this thread.
#[derive(Clone, Copy, Debug)]
pub(in crate::relay) struct LocalExecutor;

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
