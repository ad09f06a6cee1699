//! Sessions towards the intake: one constructor for every client configuration, one call for every handshake.

use std::path::Path;
use std::sync::Arc;

use rustls::client::{ClientConnection, Resumption};
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::Negotiated;
use super::error::{ConfigError, HandshakeError};
use super::provider::{self, Offer};
use super::roots::{self, RootsStatus};
use crate::config::{TlsPolicy, Upstream};

/// Plaintext that a session may hold between us and the socket, in bytes, in each direction of its queues. Two HTTP
/// bodies' worth of our 64 KiB writes: less stalls a bulk upload, more only moves waiting from the client into our
/// memory.
const BUFFER_LIMIT: usize = 128 * 1024;

/// Sessions remembered for resumption, over all names; the catalogue has some thirty. Memory only, never on disk.
const REMEMBERED_SESSIONS: usize = 256;

/// A stream that is encrypted towards the intake.
pub type ClientStream<IO> = tokio_rustls::client::TlsStream<IO>;

/// Makes TLS sessions under `upstream.tls_policy`. Cheap to clone; clones share the resumption memory.
#[derive(Clone)]
pub struct Client {
    connector: TlsConnector,
    policy: TlsPolicy,
    roots: Arc<RootsStatus>,
    names: Names,
}

/// What a server may be called.
#[derive(Clone, Copy, Debug)]
enum Names {
    /// DNS names: an intake has no other.
    Dns,
    /// DNS names and IP addresses: the API server of Kubernetes is known by its address.
    DnsOrIp,
}

impl Client {
    /// A client for these settings.
    ///
    /// # Errors
    /// Roots that cannot be used, or a cryptographic module that does not answer as approved.
    pub fn new(upstream: &Upstream) -> Result<Self, ConfigError> {
        let (store, roots) = roots::load(upstream.ca_file.as_deref())?;
        let config = client_config(upstream.tls_policy, store, &[b"h2", b"http/1.1"])?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            policy: upstream.tls_policy,
            roots: Arc::new(roots),
            names: Names::Dns,
        })
    }

    /// A client for one authority's servers, HTTP/1.1 only: it trusts exactly the certificates of `ca_file` (PEM), and a
    /// server may be named by its IP address. Everything else is as for an intake.
    ///
    /// # Errors
    /// As [`Client::new`], in words: the file is not `upstream.ca_file`.
    pub fn for_authority(policy: TlsPolicy, ca_file: &Path) -> Result<Self, String> {
        let (store, roots) = roots::load(Some(ca_file)).map_err(|error| match error {
            ConfigError::CaFile { path, problem } => format!("{}: {problem}", path.display()),
            other => other.to_string(),
        })?;
        let config = client_config(policy, store, &[b"http/1.1"]).map_err(|error| error.to_string())?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            policy,
            roots: Arc::new(roots),
            names: Names::DnsOrIp,
        })
    }

    /// Shakes hands over `io` as a client of `name`, which the certificate must be valid for. Sets no time limit: the
    /// caller's `upstream.connect_timeout` covers TCP and TLS together.
    ///
    /// # Errors
    /// See [`HandshakeError::reason`]. `io` is closed.
    pub async fn connect<IO>(
        &self,
        name: &str,
        io: IO,
    ) -> Result<(ClientStream<IO>, Negotiated), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let server = self.server_name(name)?;
        let mut stream = self
            .connector
            .connect(server, io)
            .await
            .map_err(|error| HandshakeError::from_io(name, &error))?;
        let (_, session) = stream.get_mut();
        // Only now: the handshake's own flights, certificates included, are not to be held back.
        session.set_buffer_limit(Some(BUFFER_LIMIT));
        let negotiated = negotiated(session, name);
        Ok((stream, negotiated))
    }

    fn server_name(&self, name: &str) -> Result<ServerName<'static>, HandshakeError> {
        let found = match self.names {
            Names::Dns => DnsName::try_from(name.to_owned()).map(ServerName::DnsName),
            Names::DnsOrIp => ServerName::try_from(name.to_owned()),
        };
        found.map_err(|_| HandshakeError::not_a_name(name))
    }

    /// Whom this client trusts.
    pub fn roots(&self) -> &RootsStatus {
        &self.roots
    }

    /// What this client offers.
    pub fn offer(&self) -> Offer {
        Offer::of(self.policy)
    }
}

/// The one place where a client configuration is made. Three gates, each with its own message: the provider is
/// approved, the library takes it, the finished configuration is approved. Key log, early data and secret extraction
/// are off by the library's default and are written out here so that a change of default changes nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the constructor that the lint sends everybody to"
)]
fn client_config(
    policy: TlsPolicy,
    roots: rustls::RootCertStore,
    protocols: &[&[u8]],
) -> Result<ClientConfig, ConfigError> {
    let provider = provider::provider(policy);
    if !provider.fips() {
        return Err(ConfigError::NotApproved {
            what: "set of algorithms",
        });
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(provider::versions(policy))
        .map_err(|error| ConfigError::Refused(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.require_ems = true;
    config.key_log = Arc::new(rustls::NoKeyLog);
    config.enable_early_data = false;
    config.enable_secret_extraction = false;
    config.enable_sni = true;
    config.resumption = Resumption::in_memory_sessions(REMEMBERED_SESSIONS);
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    if !config.fips() {
        return Err(ConfigError::NotApproved {
            what: "client configuration",
        });
    }
    Ok(config)
}

fn negotiated(session: &ClientConnection, name: &str) -> Negotiated {
    // A finished handshake has a version and a suite: "unknown" would be a fault of the library, not a reason to panic.
    let unknown = || "unknown".to_owned();
    Negotiated {
        version: session
            .protocol_version()
            .map_or_else(unknown, provider::version_name),
        suite: session
            .negotiated_cipher_suite()
            .map_or_else(unknown, |suite| provider::suite_name(suite.suite())),
        group: session
            .negotiated_key_exchange_group()
            .map(|group| provider::group_name(group.name())),
        http2: session.alpn_protocol() == Some(b"h2"),
        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        peer: name.to_owned(),
    }
}
