//! TLS of the two ends: 1.3, one suite, P-256, so that every peer does the same work.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::SUITE;

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| format!("{:?}", suite.suite()) == SUITE);
    provider.kx_groups = vec![aws_lc_rs::kx_group::SECP256R1];
    Arc::new(provider)
}

/// The backend's, from a PEM file with certificate and key. It gives out tickets, as an intake does.
#[expect(
    clippy::disallowed_methods,
    reason = "the backend is a peer of the proxy, and must pin what the proxy's own constructor leaves open"
)]
pub fn server(pem: &Path) -> Result<Arc<ServerConfig>> {
    let about = || format!("cannot use {}", pem.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(pem)
        .with_context(about)?
        .collect::<Result<_, _>>()
        .with_context(about)?;
    let key = PrivateKeyDer::from_pem_file(pem).with_context(about)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The load generator's, which trusts this file alone; `h2` or `http/1.1` in ALPN.
#[expect(
    clippy::disallowed_methods,
    reason = "the load generator is a peer of the proxy, and must pin what the proxy's own constructor leaves open"
)]
pub fn client(roots: &Path, alpn: &str) -> Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(roots).with_context(|| format!("cannot use {}", roots.display()))?
    {
        store.add(certificate?)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Ok(Arc::new(config))
}
