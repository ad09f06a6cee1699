//! Whom we trust: the roots of `upstream.ca_file`, or the system's.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use serde::{Deserialize, Serialize};

use super::ca::certificate::is_own_der;
use super::error::ConfigError;

/// The trust anchors in use: evidence, shown by `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsStatus {
    /// Where they come from.
    pub source: RootsSource,
    /// How many.
    pub count: usize,
    /// SHA-256, in hexadecimal, over the sorted SHA-256 digests of the certificates: the same set, whatever its order
    /// or repeats, has the same digest.
    pub sha256: String,
    /// What of the system's store could not be used, and why.
    pub unreadable: Vec<String>,
}

/// Where roots come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootsSource {
    /// The operating system's store, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    System,
    /// `upstream.ca_file`.
    File(PathBuf),
}

impl fmt::Display for RootsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The roots for `ca_file`, which the setting `key` names, or the system's when there is none.
///
/// # Errors
/// A file that cannot be read, holds no certificate, or one that is not a usable trust anchor; a system without roots.
pub(super) fn load(
    key: &'static str,
    ca_file: Option<&Path>,
) -> Result<(RootCertStore, RootsStatus), ConfigError> {
    match ca_file {
        Some(path) => from_file(path).map_err(|problem| ConfigError::CaFile {
            key,
            path: path.to_owned(),
            problem,
        }),
        None => from_system(),
    }
}

/// Whether `path` would do as a file of roots: how many certificates it holds. For checking a configuration.
///
/// # Errors
/// What is wrong with it, beginning with the path, and what to do.
pub fn check_file(path: &Path) -> Result<usize, String> {
    from_file(path)
        .map(|(_, status)| status.count)
        .map_err(|problem| format!("{}: {problem}; {CURE}", path.display()))
}

/// What to do about a file of roots that is of no use.
pub(super) const CURE: &str = "name a readable PEM file with the roots that sign the certificates, or remove the key to \
                               trust the system's roots";

/// Every certificate must be usable: who names a file means all of it.
fn from_file(path: &Path) -> Result<(RootCertStore, RootsStatus), String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut store = RootCertStore::empty();
    let mut certificates = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(&text).enumerate() {
        let number = index + 1;
        let certificate =
            certificate.map_err(|error| format!("certificate {number}: {}", pem_problem(&error)))?;
        store
            .add(certificate.clone())
            .map_err(|error| format!("certificate {number} is not a usable trust anchor: {error}"))?;
        if is_own_der(&certificate) {
            return Err(format!(
                "certificate {number} is a local authority's, which is for Agents alone: whoever had its key could \
                 pretend to be the server"
            ));
        }
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err("it holds no PEM certificate (`-----BEGIN CERTIFICATE-----`)".to_owned());
    }
    let status = status(RootsSource::File(path.to_owned()), &certificates, Vec::new());
    Ok((store, status))
}

/// Distributions ship roots that parsers disagree on: an unusable one is reported and left out. None at all is an
/// error. A local authority in the system's store (`ca install --host-store`) is for Agents: we do not trust it towards the
/// intake, or whoever had its key could pretend to be one.
fn from_system() -> Result<(RootCertStore, RootsStatus), ConfigError> {
    let found = rustls_native_certs::load_native_certs();
    let mut unreadable: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    let mut store = RootCertStore::empty();
    let mut certificates = Vec::new();
    for certificate in found.certs.into_iter().filter(|found| !is_own_der(found)) {
        match store.add(certificate.clone()) {
            Ok(()) => certificates.push(certificate),
            Err(error) => unreadable.push(format!("certificate {}: {error}", hex(&sha256(&certificate)))),
        }
    }
    if certificates.is_empty() {
        return Err(ConfigError::NoSystemRoots { unreadable });
    }
    Ok((store, status(RootsSource::System, &certificates, unreadable)))
}

fn status(source: RootsSource, certificates: &[CertificateDer<'_>], unreadable: Vec<String>) -> RootsStatus {
    let mut digests: Vec<Vec<u8>> = certificates
        .iter()
        .map(|certificate| sha256(certificate))
        .collect();
    digests.sort_unstable();
    digests.dedup();
    RootsStatus {
        source,
        count: digests.len(),
        sha256: hex(&sha256(&digests.concat())),
        unreadable,
    }
}

/// What is wrong with a PEM file, without its bytes: the file may hold a key by mistake.
pub(super) fn pem_problem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "the section has no end line",
        pem::Error::IllegalSectionStart { .. } => "the section has no valid start line",
        pem::Error::Base64Decode(_) => "the section is not valid base64",
        pem::Error::NoItemsFound => "there is no such section",
        _ => "not valid PEM",
    }
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
