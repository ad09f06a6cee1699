//! How a server's certificate is verified: the library's own verifier, with the roots and the revocation lists in use.
//! There is no other, and nothing here or elsewhere reaches for the library's `dangerous` ways.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateRevocationListDer;
use webpki::{
    CertRevocationList, ExpirationPolicy, RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use super::error::ConfigError;
use crate::config::CrlPolicy;

/// The verifier. Without lists nothing is checked for revocation: who wants `hard_fail` must not come here with none.
pub(super) fn verifier(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    policy: CrlPolicy,
) -> Result<Arc<WebPkiServerVerifier>, ConfigError> {
    let builder =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).with_crls(crls);
    let builder = match policy {
        CrlPolicy::SoftFail => builder.allow_unknown_revocation_status(),
        CrlPolicy::HardFail => builder.enforce_revocation_expiration(),
    };
    builder
        .build()
        .map_err(|error| ConfigError::Refused(error.to_string()))
}

/// The same rules for a path that is built by hand.
pub(super) fn revocation<'a>(
    lists: &'a [&'a CertRevocationList<'a>],
    policy: CrlPolicy,
) -> Option<RevocationOptions<'a>> {
    let (unknown, expired) = match policy {
        CrlPolicy::SoftFail => (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore),
        CrlPolicy::HardFail => (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce),
    };
    // An error means that there is no list.
    let builder = RevocationOptionsBuilder::new(lists).ok()?;
    Some(
        builder
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(unknown)
            .with_expiration_policy(expired)
            .build(),
    )
}
