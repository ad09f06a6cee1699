//! Sessions with Agents that speak HTTPS: one constructor for every server configuration, one call for every handshake.
//!
//! The caller has read the ClientHello (`observe`) and decided by the name in it; [`Server::accept`] gets those bytes back and
//! makes the session over the same connection. Leaves are minted for names that the catalogue knows and for no others, after
//! that decision and not before it.
//!
//! Nothing is claimed about this session but that it is made by the same module under the same lists: the claim begins at
//! the proxy and goes outward (docs/FIPS.md).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, ServerSessionMemoryCache};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::LazyConfigAcceptor;

use super::Negotiated;
use super::ca::{Authorities, AuthoritiesStatus, CaError, now};
use super::provider;
use crate::config::TlsPolicy;

pub mod alert;
mod error;
mod leaves;

pub use alert::Alert;
pub use error::{AcceptError, REASONS};
pub use leaves::Accepts;
use leaves::{Leaves, NoLeaf};

/// As towards the intake: plaintext that a session may hold between us and the socket, in bytes, each way.
const BUFFER_LIMIT: usize = 128 * 1024;
/// Sessions that may be resumed, over all Agents and names. In this process's memory only: no ticket outlives it, and
/// there is no ticket key that could.
const REMEMBERED_SESSIONS: usize = 512;
/// An Agent opens some connections at once after a restart of the proxy; each resumption needs a ticket of its own.
const TICKETS: usize = 2;

/// A stream that an Agent encrypted towards us.
pub type ServerStream<IO> = tokio_rustls::server::TlsStream<Prefixed<IO>>;

/// Accepts sessions of Agents. Cheap to clone; clones share the leaves and the resumption memory.
#[derive(Clone, Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
    leaves: Arc<Leaves>,
}

/// Why no server can be made. Agents that speak HTTPS are not terminated without one.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The provider or the finished configuration does not answer for itself as approved.
    #[error(
        "the {0} for sessions with Agents is not in the approved mode of the cryptographic module: this build must not \
         be used, install a released package"
    )]
    NotApproved(&'static str),
    /// The library refused the lists of the policy.
    #[error("the TLS library refuses the configuration for sessions with Agents: {0}")]
    Refused(String),
    /// No key for leaves.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl Server {
    /// A server whose leaves `authorities` sign, for the names that `accepts` says are ours (it gets them in lower case and
    /// without a trailing dot).
    ///
    /// # Errors
    /// The module does not answer as approved, or makes no key.
    pub fn new(policy: TlsPolicy, authorities: Authorities, accepts: Accepts) -> Result<Self, ServerError> {
        let leaves = Arc::new(Leaves::new(authorities, accepts)?);
        let config = server_config(policy, Arc::clone(&leaves))?;
        Ok(Self {
            config: Arc::new(config),
            leaves,
        })
    }

    /// Makes the session that the client begins on `io`, of which `first` was read already. Sets no time limit: the caller's
    /// `limits.header_timeout` covers it. A client that is refused is told so by an alert before `io` is closed.
    ///
    /// # Errors
    /// See [`AcceptError::reason`]. A client that does not trust the authority says so here in TLS 1.2 and, because it
    /// sends its own Finished only afterwards, in TLS 1.3 too; one that looks later shows in [`alert::distrust_in`] of the
    /// stream's first read.
    pub async fn accept<IO>(
        &self,
        first: Vec<u8>,
        io: IO,
    ) -> Result<(ServerStream<IO>, Negotiated), AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), Prefixed { first, io })
            .await
            .map_err(|error| AcceptError::from_io("", &error))?;
        let admitted = self.admit(&start.client_hello());
        let name = match admitted {
            Ok(name) => name,
            Err((error, alert)) => {
                // It is refused whether or not it hears why.
                let _ = start.io.write_all(&alert::record(alert)).await;
                let _ = start.io.shutdown().await;
                return Err(error);
            }
        };
        let mut stream = start
            .into_stream(Arc::clone(&self.config))
            .await
            .map_err(|error| AcceptError::from_io(&name, &error))?;
        let (_, session) = stream.get_mut();
        // Only now: the handshake's own flights are not to be held back.
        session.set_buffer_limit(Some(BUFFER_LIMIT));
        let negotiated = Negotiated::of(session, &name);
        Ok((stream, negotiated))
    }

    /// The name, if it is ours and there is a leaf for it.
    fn admit(&self, hello: &ClientHello<'_>) -> Result<String, (AcceptError, Alert)> {
        let Some(name) = hello.server_name() else {
            return Err((AcceptError::no_name(), Alert::MissingExtension));
        };
        match self.leaves.of(name, now()) {
            Ok(_) => Ok(name.to_owned()),
            Err(NoLeaf::NotOurs) => Err((AcceptError::not_ours(name), Alert::UnrecognizedName)),
            Err(NoLeaf::Ended) => Err((AcceptError::ended(name), Alert::AccessDenied)),
            Err(NoLeaf::Failed(error)) => Err((AcceptError::internal(name, &error), Alert::AccessDenied)),
        }
    }

    /// The authorities at this moment: what `status` shows, and whether they end soon.
    pub fn authorities(&self) -> AuthoritiesStatus {
        self.leaves.authorities().status(now())
    }

    /// Names for which a leaf is remembered.
    pub fn leaves(&self) -> usize {
        self.leaves.len()
    }
}

/// The one place where a server configuration is made. As for clients: provider approved, lists taken, result approved;
/// what must be off is written out, so that a change of the library's defaults changes nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the constructor that the lint sends everybody to"
)]
fn server_config(policy: TlsPolicy, leaves: Arc<Leaves>) -> Result<ServerConfig, ServerError> {
    let provider = provider::provider(policy);
    if !provider.fips() {
        return Err(ServerError::NotApproved("set of algorithms"));
    }
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(provider::versions(policy))
        .map_err(|error| ServerError::Refused(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(leaves);
    config.require_ems = true;
    config.ignore_client_order = true;
    config.key_log = Arc::new(rustls::NoKeyLog);
    config.enable_secret_extraction = false;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    // The default ticketer makes no tickets that hold the session: what is resumed is looked up here.
    config.session_storage = ServerSessionMemoryCache::new(REMEMBERED_SESSIONS);
    config.send_tls13_tickets = TICKETS;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if config.ticketer.enabled() {
        return Err(ServerError::Refused(
            "it would make session tickets with a key of its own".to_owned(),
        ));
    }
    if !config.fips() {
        return Err(ServerError::NotApproved("server configuration"));
    }
    Ok(config)
}

/// A connection of which some bytes were read already.
#[derive(Debug)]
pub struct Prefixed<IO> {
    first: Vec<u8>,
    io: IO,
}

impl<IO> Prefixed<IO> {
    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let now = this.first.len().min(buf.remaining());
        buf.put_slice(this.first.get(..now).unwrap_or_default());
        this.first.drain(..now);
        if this.first.is_empty() {
            this.first = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
