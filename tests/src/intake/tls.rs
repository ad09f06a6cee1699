//! The intake's TLS: approved, weak in one way, or too old for the library and therefore written by hand.

use std::sync::Arc;

use anyhow::Result;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Refused;
use crate::ca::Leaf;

/// Which TLS an intake speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// 1.2 and 1.3, approved suites and groups.
    Modern,
    /// 1.2 only, approved suites.
    Tls12,
    /// Only ChaCha20-Poly1305, in 1.2 and 1.3.
    OnlyChaCha20,
    /// Only the group X25519.
    OnlyX25519,
    /// Answers every hello with TLS 1.1.
    Tls11,
}

/// What TLS agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Server name indication.
    pub sni: Option<String>,
    /// As rustls prints it: `TLSv1_3`.
    pub version: String,
    /// `TLS13_AES_256_GCM_SHA384`.
    pub suite: String,
    /// `X25519MLKEM768`.
    pub group: String,
    /// The client showed a certificate.
    pub client_certificate: bool,
}

impl Session {
    /// Whether the proxy's policy `fips` offers it: written down once more on purpose.
    pub fn approved(&self) -> bool {
        const SUITES12: &[&str] = &[
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        ];
        const SUITES13: &[&str] = &["TLS13_AES_256_GCM_SHA384", "TLS13_AES_128_GCM_SHA256"];
        const GROUPS: &[&str] = &["secp256r1MLKEM768", "X25519MLKEM768", "secp256r1", "secp384r1"];
        // A resumed session of TLS 1.2 has no key exchange of its own.
        let (suites, resumed) = match self.version.as_str() {
            "TLSv1_2" => (SUITES12, self.group.is_empty()),
            "TLSv1_3" => (SUITES13, false),
            _ => return false,
        };
        suites.contains(&self.suite.as_str()) && (resumed || GROUPS.contains(&self.group.as_str()))
    }
}

/// Turns TCP connections into sessions.
pub(super) enum Acceptor {
    Rustls(TlsAcceptor),
    Tls11,
}

impl Acceptor {
    pub(super) fn new(
        leaf: &Leaf,
        peer: Peer,
        http2: bool,
        clients: Option<CertificateDer<'static>>,
    ) -> Result<Self> {
        let mut provider = aws_lc_rs::default_provider();
        let versions: &[&rustls::SupportedProtocolVersion] = match peer {
            Peer::Tls11 => return Ok(Self::Tls11),
            Peer::Modern | Peer::OnlyX25519 => &[&TLS13, &TLS12],
            Peer::Tls12 => &[&TLS12],
            Peer::OnlyChaCha20 => &[&TLS13, &TLS12],
        };
        if peer == Peer::OnlyChaCha20 {
            provider.cipher_suites = aws_lc_rs::ALL_CIPHER_SUITES
                .iter()
                .filter(|suite| format!("{:?}", suite.suite()).contains("CHACHA20"))
                .copied()
                .collect();
        }
        if peer == Peer::OnlyX25519 {
            provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        }
        let mut config = server_config(provider, versions, leaf, clients)?;
        if http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        Ok(Self::Rustls(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Refused> {
        match self {
            Self::Rustls(acceptor) => acceptor.accept(stream).await.map_err(|error| Refused {
                error: error.to_string(),
                // rustls hands out no application data before the handshake is complete.
                application_bytes: 0,
            }),
            Self::Tls11 => Err(answer_tls11(stream).await),
        }
    }
}

/// What a session agreed on.
pub(crate) fn session(connection: &ServerConnection) -> Session {
    Session {
        sni: connection.server_name().map(str::to_owned),
        version: connection
            .protocol_version()
            .map(|v| format!("{v:?}"))
            .unwrap_or_default(),
        suite: connection
            .negotiated_cipher_suite()
            .map(|s| format!("{:?}", s.suite()))
            .unwrap_or_default(),
        group: connection
            .negotiated_key_exchange_group()
            .map(|g| format!("{:?}", g.name()))
            .unwrap_or_default(),
        client_certificate: connection.peer_certificates().is_some(),
    }
}

/// A server's configuration, FIPS or not.
#[expect(
    clippy::disallowed_methods,
    reason = "the peer must be able to speak what the proxy's own constructor forbids"
)]
pub(crate) fn server_config(
    provider: CryptoProvider,
    versions: &[&'static rustls::SupportedProtocolVersion],
    leaf: &Leaf,
    clients: Option<CertificateDer<'static>>,
) -> Result<ServerConfig> {
    let provider = Arc::new(provider);
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority)?;
            let roots = Arc::new(roots);
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots, provider).build()?,
            )
        }
    };
    let mut config = builder.with_single_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    // The FIPS provider would insist; a weak peer does not, and the client has to.
    config.require_ems = false;
    Ok(config)
}

/// Reads a ClientHello, answers with a TLS 1.1 ServerHello (RFC 4346, TLS_RSA_WITH_AES_128_CBC_SHA), and counts what the
/// client sends after it.
async fn answer_tls11(mut stream: TcpStream) -> Refused {
    let mut hello = [0x02, 0x00, 0x00, 0x26, 0x03, 0x02].to_vec();
    hello.extend([0x5a; 32]);
    hello.extend([0x00, 0x00, 0x2f, 0x00]);
    let mut record = [0x16, 0x03, 0x02, 0x00, 0x2a].to_vec();
    record.extend(hello);

    let mut head = [0; 5];
    let mut application_bytes = 0;
    let mut answered = false;
    let mut error = "the client left".to_owned();
    while stream.read_exact(&mut head).await.is_ok() {
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        if stream.read_exact(&mut body).await.is_err() {
            break;
        }
        match head[0] {
            22 if !answered => {
                answered = true;
                if stream.write_all(&record).await.is_err() {
                    break;
                }
            }
            21 => {
                error = format!("alert {:?}", body.get(1));
                break;
            }
            20 | 22 => {}
            _ => application_bytes += body.len() as u64,
        }
    }
    Refused {
        error,
        application_bytes,
    }
}
