//! Who we are for a gateway that asks: `upstream.client_certificate_file` and its key.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::der;
use super::error::ConfigError;
use super::roots::{hex, pem_problem, sha256};
use crate::secret::Secrets;

/// Seconds before its end from which on a certificate is told to be ending: 30 days.
const ENDING: u64 = 30 * 86_400;

/// The client certificate in use: evidence, shown by `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCertificateStatus {
    /// `upstream.client_certificate_file`
    pub file: PathBuf,
    /// SHA-256 of the certificate, in hexadecimal.
    pub sha256: String,
    /// When it ends (RFC 3339).
    pub not_after: String,
    /// The same in seconds of Unix time, for metrics.
    pub not_after_unix: u64,
}

impl ClientCertificateStatus {
    /// What somebody should do something about, in words; `now` in seconds of Unix time.
    pub(super) fn alarm(&self, now: u64) -> Option<String> {
        let file = self.file.display();
        let cure = "put a new one in its place and reload";
        if self.not_after_unix <= now {
            return Some(format!(
                "the client certificate {file} ended on {}: gateways refuse it; {cure}",
                self.not_after
            ));
        }
        (self.not_after_unix - now < ENDING)
            .then(|| format!("the client certificate {file} ends on {}: {cure}", self.not_after))
    }
}

/// A certificate chain and its key.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    key: Arc<CertifiedKey>,
    pub(super) status: ClientCertificateStatus,
}

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// One of them cannot be read or used, or they do not belong together.
    pub(super) fn load(
        certificate_file: &Path,
        key_file: &Path,
        secrets: &Secrets,
        provider: &CryptoProvider,
    ) -> Result<Self, ConfigError> {
        let chain = certificates(certificate_file).map_err(|problem| ConfigError::ClientCertificate {
            problem: format!("upstream.client_certificate_file {problem}"),
        })?;
        let refused = |problem: String| ConfigError::ClientCertificate {
            problem: format!("upstream.client_key_file {problem}"),
        };
        let text = secrets
            .read(key_file)
            .map_err(|error| refused(error.to_string()))?;
        let path = key_file.display();
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            refused(format!(
                "{path}: it holds no usable private key: {}",
                pem_problem(&error)
            ))
        })?;
        let leaf = chain
            .first()
            .cloned()
            .unwrap_or_else(|| CertificateDer::from(Vec::new()));
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
            refused(match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                    "{path}: it is not the key of upstream.client_certificate_file {}; the certificate must come \
                     first in its file, before those of its authorities",
                    certificate_file.display()
                ),
                // The library's texts hold no bytes of the key.
                error => format!(
                    "{path}: the cryptographic module does not take this key ({error}); it takes RSA of 2048 bits or \
                     more, P-256, P-384, P-521 and Ed25519"
                ),
            })
        })?;
        let not_after = der::not_after(&leaf).ok_or_else(|| ConfigError::ClientCertificate {
            problem: format!(
                "upstream.client_certificate_file {}: the end of its validity cannot be read",
                certificate_file.display()
            ),
        })?;
        Ok(Self {
            status: ClientCertificateStatus {
                file: certificate_file.to_owned(),
                sha256: hex(&sha256(&leaf)),
                not_after: der::timestamp(not_after),
                not_after_unix: not_after,
            },
            key: Arc::new(key),
        })
    }
}

/// Whether `path` would do as `upstream.client_certificate_file`. For checking a configuration.
///
/// # Errors
/// What is wrong with it, beginning with the path.
pub fn check_certificate_file(path: &Path) -> Result<(), String> {
    certificates(path).map(drop)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let problem = |problem: &str| format!("{}: {problem}", path.display());
    let text = std::fs::read(path).map_err(|error| problem(&error.to_string()))?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| problem(pem_problem(&error)))?;
    let Some(leaf) = chain.first() else {
        return Err(problem(
            "it holds no PEM certificate (`-----BEGIN CERTIFICATE-----`)",
        ));
    };
    webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| problem(&format!("its first certificate is not usable: {error}")))?;
    Ok(chain)
}

tokio::task_local! {
    /// Whether the handshake that is being driven presented our certificate: the library does not tell it per session.
    static PRESENTED: Cell<bool>;
}

/// Drives one handshake, and tells whether our certificate was presented in it.
pub(super) async fn watching<T>(handshake: impl Future<Output = T>) -> (T, bool) {
    PRESENTED
        .scope(Cell::new(false), async {
            let done = handshake.await;
            (done, PRESENTED.with(Cell::get))
        })
        .await
}

/// Answers a server that asks for a certificate: with ours if we have one that it can verify, else with none.
#[derive(Debug)]
pub(super) struct Presenter(pub(super) Option<Identity>);

impl ResolvesClientCert for Presenter {
    fn resolve(&self, _authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let identity = self.0.as_ref()?;
        identity.key.key.choose_scheme(schemes)?;
        // Outside of `watching` nobody wants to know.
        let _ = PRESENTED.try_with(|presented| presented.set(true));
        Some(Arc::clone(&identity.key))
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}
