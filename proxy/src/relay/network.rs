//! Which network namespace a connection lives in, and sockets that are made there. Every dial of the relay is [`dial`].
//!
//! A socket belongs for good to the namespace that made it. An Agent pod's upstream connections are made in the pod's own
//! namespace, so that its address, its network policies and its security groups go on to apply (`upstream.network: pod`).

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream};

use super::Shared;
use crate::config::UpstreamNetwork;
pub use crate::intercept::Taken;

/// A network namespace that connections are intercepted in. The master numbers them; a number is never used again for
/// another namespace while the master lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(pub u32);

impl NetworkId {
    /// The host's own.
    pub const HOST: Self = Self(0);

    /// True for the host's own.
    pub fn is_host(self) -> bool {
        self == Self::HOST
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What [`Sockets::socket`] returns.
pub type MakingSocket<'a> = Pin<Box<dyn Future<Output = io::Result<OwnedFd>> + Send + 'a>>;

/// Makes sockets in the namespaces of Agent pods. Called on the data threads.
pub trait Sockets: Send + Sync {
    /// An unconnected TCP socket of `network`, for IPv6 or IPv4. Never asked for [`NetworkId::HOST`].
    ///
    /// # Errors
    /// `NotFound` when the namespace is gone; `TimedOut` when whoever makes it does not answer.
    fn socket(&self, network: NetworkId, ipv6: bool) -> MakingSocket<'_>;
}

/// The error of a namespace that nobody knows (any more).
pub fn gone(network: NetworkId) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!(
            "network {network} is gone: its pod was deleted, or is no longer selected by intercept.agents"
        ),
    )
}

/// The namespace that connections to upstream are made in, for a client of `network`.
pub(super) fn dialled_from<H>(shared: &Shared<H>, network: NetworkId) -> NetworkId {
    match shared.config.upstream.network {
        UpstreamNetwork::Pod => network,
        UpstreamNetwork::Host => NetworkId::HOST,
    }
}

/// Connects to `address` for a client of `network`, with TCP_NODELAY set. Sets no time limit: the caller's covers what
/// follows too.
///
/// # Errors
/// What the kernel says; `NotFound` or `TimedOut` when there is no socket of that namespace.
pub(super) async fn dial<H>(
    shared: &Shared<H>,
    network: NetworkId,
    address: SocketAddr,
) -> io::Result<TcpStream> {
    let network = dialled_from(shared, network);
    let stream = if network.is_host() {
        TcpStream::connect(address).await?
    } else {
        let socket = shared.sockets.socket(network, address.is_ipv6()).await?;
        let socket = std::net::TcpStream::from(socket);
        socket.set_nonblocking(true)?;
        TcpSocket::from_std_stream(socket).connect(address).await?
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}
