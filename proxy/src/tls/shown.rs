//! What a server showed in a session that was verified: its certificates, and the root that its path ends at. Evidence for people;
//! nothing is decided from it.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::client::{Client, ClientStream};
use super::der;
use super::error::Bounded;

/// Names of a certificate that are repeated; some have hundreds.
const NAMES: usize = 20;

/// The chain of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// As they were sent, the server's own first.
    pub certificates: Vec<Certificate>,
    /// Subject of the root that the verified path ends at.
    pub anchor: Option<String>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// Its subject.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// DNS names that it is for, the first twenty.
    pub names: Vec<String>,
    /// When it ends.
    pub not_after: String,
    /// Days until then; negative when it has ended.
    pub days_left: i64,
}

impl Client {
    /// What the server of this session showed. Empty for a session that was resumed without certificates.
    pub fn shown<IO>(&self, stream: &ClientStream<IO>) -> Shown {
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        Shown {
            certificates: chain.iter().filter_map(|der| certificate(der)).collect(),
            anchor: self.anchor(chain),
        }
    }

    /// The path is built once more, by the library and roots that the session was verified with.
    fn anchor(&self, chain: &[CertificateDer<'_>]) -> Option<String> {
        let (leaf, rest) = chain.split_first()?;
        let leaf = EndEntityCert::try_from(leaf).ok()?;
        let (roots, algorithms) = self.judges();
        let path = leaf
            .verify_for_usage(
                algorithms.all,
                &roots.roots,
                rest,
                UnixTime::now(),
                KeyUsage::server_auth(),
                None,
                None,
            )
            .ok()?;
        let subject = der::sequence(&path.anchor().subject);
        let (_, name) = X509Name::from_der(&subject).ok()?;
        Some(Bounded(&name.to_string()).to_string())
    }
}

fn certificate(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let end = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    Some(Certificate {
        subject: Bounded(&certificate.subject().to_string()).to_string(),
        issuer: Bounded(&certificate.issuer().to_string()).to_string(),
        names: names
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(Bounded(name).to_string()),
                _ => None,
            })
            .take(NAMES)
            .collect(),
        not_after: der::timestamp(end),
        days_left: (end.cast_signed() - now.cast_signed()).div_euclid(86_400),
    })
}
