//! Clients that trust a local authority, or do not.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use agent_fips_proxy::config::TlsPolicy;
use agent_fips_proxy::relay::HttpsHandling;
use agent_fips_proxy::tls::Server;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use rustls_pki_types::ServerName;

use crate::local::Local;

pub type Session = StreamOwned<ClientConnection, TcpStream>;

pub struct Authority {
    local: Local,
    pub server: Server,
}

impl Authority {
    pub fn new() -> Self {
        let local = Local::new(TlsPolicy::Fips);
        Self {
            server: local.server.clone(),
            local,
        }
    }

    pub fn terminate(&self) -> HttpsHandling {
        HttpsHandling::Terminate(self.server.clone())
    }

    /// A client that trusts this authority.
    pub fn client(&self, protocol: &str) -> ClientConfig {
        client(
            self.local.roots(),
            &[protocol],
            default_provider(),
            rustls::DEFAULT_VERSIONS,
        )
    }
}

pub fn client(
    roots: RootCertStore,
    protocols: &[&str],
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// A session that is not made yet: the first read or write makes it.
pub fn session(address: SocketAddr, config: ClientConfig, name: &str) -> Session {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, socket(address))
}

pub fn socket(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Ends it as it should be ended.
pub fn goodbye(mut session: Session) {
    session.conn.send_close_notify();
    // Whoever closed before does not hear it.
    drop(session.flush());
}
