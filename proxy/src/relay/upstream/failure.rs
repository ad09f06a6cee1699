//! Why a request got no response head, or a connection was not made.

use std::io;
use std::net::IpAddr;

use http::StatusCode;

use super::connect::HandshakeFailure;
use super::{outbound, resolve};
use crate::relay::origin::UpstreamAddr;
use crate::relay::outcome::Outcome;

/// Why there is no response. Messages name addresses and names, never content.
#[derive(Debug, thiserror::Error)]
pub(in crate::relay) enum Failure {
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
    /// An intercepted connection was meant for where an intake cannot be. Another address may lead past what was meant.
    #[error(
        "the connection for {name} was meant for {ip}, which is not public: name its network in \
         upstream.allow_private to dial it (PrivateLink)"
    )]
    RefusedOriginal {
        /// The name.
        name: String,
        /// The original address.
        ip: IpAddr,
    },
    /// The outbound proxy is where no proxy can be.
    #[error(
        "the outbound proxy {proxy} resolves to {ip}, which is no address for a proxy: name its network in \
         upstream.allow_private to dial it"
    )]
    RefusedProxy {
        /// `host:port` of upstream.proxy.url.
        proxy: String,
        /// One of its addresses.
        ip: IpAddr,
    },
    /// The outbound proxy did not make a tunnel.
    #[error(
        "no tunnel to {destination}: the outbound proxy {proxy} at {addr} (upstream.proxy.url): {source}"
    )]
    Tunnel {
        /// Where to.
        destination: String,
        /// `host:port` of upstream.proxy.url.
        proxy: String,
        /// Its address.
        addr: UpstreamAddr,
        /// Why.
        source: outbound::TunnelFailure,
    },
    /// TCP with the outbound proxy failed.
    #[error("cannot connect to the outbound proxy {proxy} at {addr} (upstream.proxy.url): {source}")]
    ProxyConnect {
        /// `host:port` of upstream.proxy.url.
        proxy: String,
        /// Its address.
        addr: UpstreamAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The way through the outbound proxy took too long.
    #[error(
        "connecting to {destination} through the outbound proxy {proxy} at {addr} took longer than \
         upstream.connect_timeout"
    )]
    ProxyTimeout {
        /// Where to.
        destination: String,
        /// `host:port` of upstream.proxy.url.
        proxy: String,
        /// Its address.
        addr: UpstreamAddr,
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
        /// How; it never quotes content.
        source: Broken,
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

/// How an intake broke a connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::relay) enum Broken {
    /// As hyper says.
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    /// As TCP or TLS say.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its HTTP/1 cannot be relied on.
    #[error("{0}")]
    Http(&'static str),
}

impl Failure {
    /// The label for records, metrics and the client.
    pub(in crate::relay) fn outcome(&self) -> Outcome {
        match self {
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::RefusedAddress { .. }
            | Self::RefusedOriginal { .. }
            | Self::RefusedProxy { .. } => Outcome::NoAddress,
            Self::Connect { .. } => Outcome::UpstreamConnect,
            Self::Tunnel { .. } | Self::ProxyConnect { .. } => Outcome::UpstreamProxy,
            Self::Handshake { .. } => Outcome::UpstreamTls,
            Self::Protocol { .. } | Self::Upgrade { .. } | Self::NotSent { .. } => Outcome::UpstreamProtocol,
            Self::ConnectTimeout { .. } | Self::ProxyTimeout { .. } | Self::Timeout { .. } => {
                Outcome::UpstreamTimeout
            }
        }
    }
}

impl Failure {
    /// True when the outbound proxy said no: its other addresses are the same proxy.
    pub(super) fn is_the_proxys_word(&self) -> bool {
        matches!(self, Self::Tunnel { source, .. } if !source.is_of_the_connection())
    }
}
