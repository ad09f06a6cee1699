//! What a certificate says, read from its bytes; and the two names that OpenSSL's folders know a subject by.

use std::fmt::Write as _;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, NameConstraints};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use super::{DAY, moment, sha256_hex};

/// The facts of an authority's certificate that people and checks want to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// SHA-256 of the whole certificate, in lower-case hexadecimal.
    pub fingerprint: String,
    /// Whose it is.
    pub subject: String,
    /// Who signed it; the same as `subject` when it signed itself.
    pub issuer: String,
    /// In hexadecimal.
    pub serial: String,
    /// The first moment, in seconds since 1970.
    pub not_before: i64,
    /// The last moment, in seconds since 1970.
    pub not_after: i64,
    /// DNS names that it may sign for, each with everything below it.
    pub permitted: Vec<String>,
    /// It may sign for no IP address of either family.
    pub excludes_every_ip: bool,
}

impl Facts {
    /// Whole days until the end; negative after it.
    pub fn days_left(&self, now: i64) -> i64 {
        (self.not_after - now).div_euclid(DAY)
    }

    /// Whether it may be used at `now`.
    pub fn valid_at(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// What names its files: the first 16 digits of the fingerprint.
    pub fn id(&self) -> &str {
        self.fingerprint.get(..16).unwrap_or(&self.fingerprint)
    }

    /// The end, as people read it.
    pub fn ends(&self) -> String {
        moment(self.not_after)
    }
}

/// Everything about a certificate that the checks look at.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) facts: Facts,
    pub(super) version3: bool,
    pub(super) is_ca: bool,
    pub(super) path_length: Option<u32>,
    pub(super) signs_certificates: bool,
    /// Extended key usage, when there is one: whether it holds server authentication, and nothing else.
    pub(super) server_only: Option<bool>,
    pub(super) constraints: Option<Constraints>,
    /// The key's bytes without their wrapping: a point, or an RSAPublicKey.
    pub(super) public_key: Vec<u8>,
    pub(super) self_signed: bool,
    pub(super) subject_hash: u32,
}

/// The name constraints extension, sorted by what the checks ask.
#[derive(Debug, Default)]
pub(super) struct Constraints {
    pub(super) critical: bool,
    pub(super) permitted_dns: Vec<String>,
    /// Permitted names of another kind, in words.
    pub(super) permitted_others: Vec<String>,
    pub(super) excludes_ipv4: bool,
    pub(super) excludes_ipv6: bool,
    /// Excluded names of another kind, in words.
    pub(super) excluded_others: Vec<String>,
}

impl Certificate {
    /// Made by this program, here or on another host.
    fn is_own(&self) -> bool {
        let organisation = format!("O={}", super::make::ORGANISATION);
        self.self_signed && self.is_ca && self.facts.subject.split(", ").any(|part| part == organisation)
    }

    /// Reads one certificate.
    ///
    /// # Errors
    /// Bytes that are none, in words.
    pub(super) fn read(der: CertificateDer<'static>) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(&der).map_err(|_| "the bytes are no X.509 certificate".to_owned())?;
        if !rest.is_empty() {
            return Err("there are bytes after the certificate".to_owned());
        }
        let twice = |_| "an extension stands in it twice".to_owned();
        let basic = parsed.basic_constraints().map_err(twice)?;
        let usage = parsed.key_usage().map_err(twice)?;
        let extended = parsed.extended_key_usage().map_err(twice)?;
        let constraints = parsed
            .name_constraints()
            .map_err(|_| "its name constraints cannot be read".to_owned())?
            .map(|extension| Constraints::read(extension.critical, extension.value));
        // An extension that is there and was not understood must not count as absent.
        if constraints.is_none() && has_name_constraints(&parsed) {
            return Err("its name constraints cannot be read".to_owned());
        }
        let facts = Facts {
            fingerprint: sha256_hex(&der),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: hex(parsed.raw_serial()),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            permitted: constraints
                .as_ref()
                .map(|found| found.permitted_dns.clone())
                .unwrap_or_default(),
            excludes_every_ip: constraints
                .as_ref()
                .is_some_and(|found| found.excludes_ipv4 && found.excludes_ipv6),
        };
        Ok(Self {
            facts,
            version3: parsed.version() == X509Version::V3,
            is_ca: basic.as_ref().is_some_and(|found| found.value.ca),
            path_length: basic.and_then(|found| found.value.path_len_constraint),
            signs_certificates: usage.is_some_and(|found| found.value.key_cert_sign()),
            server_only: extended.map(|found| {
                let usage = found.value;
                usage.server_auth
                    && !(usage.any
                        || usage.client_auth
                        || usage.code_signing
                        || usage.email_protection
                        || usage.time_stamping
                        || usage.ocsp_signing)
                    && usage.other.is_empty()
            }),
            constraints,
            public_key: parsed.public_key().subject_public_key.data.to_vec(),
            self_signed: parsed.subject().as_raw() == parsed.issuer().as_raw(),
            subject_hash: subject_hash(&parsed),
            der,
        })
    }

    /// Reads every certificate of a PEM text; the first one is the authority.
    ///
    /// # Errors
    /// In words, without a byte of the text: it may hold a key by mistake.
    pub(super) fn read_pem(pem: &[u8]) -> Result<Vec<Self>, String> {
        let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|_| "it is not valid PEM".to_owned())?;
        if found.is_empty() {
            return Err("it holds no certificate (PEM, BEGIN CERTIFICATE)".to_owned());
        }
        found.into_iter().map(Self::read).collect()
    }
}

/// True for a text that is one certificate of an authority that this program made, and nothing else: what may be removed
/// from a place that others use, too.
pub fn is_own(pem: &str) -> bool {
    let alone = pem.trim().starts_with("-----BEGIN CERTIFICATE-----")
        && pem.trim().ends_with("-----END CERTIFICATE-----");
    alone
        && Certificate::read_pem(pem.as_bytes())
            .is_ok_and(|found| matches!(found.as_slice(), [one] if one.is_own()))
}

/// The same for the bytes of one certificate.
pub(in crate::tls) fn is_own_der(der: &CertificateDer<'_>) -> bool {
    Certificate::read(der.clone().into_owned()).is_ok_and(|one| one.is_own())
}

/// 2.5.29.30, RFC 5280 section 4.2.1.10.
fn has_name_constraints(certificate: &X509Certificate<'_>) -> bool {
    certificate
        .iter_extensions()
        .any(|extension| extension.oid.to_id_string() == "2.5.29.30")
}

impl Constraints {
    fn read(critical: bool, found: &NameConstraints<'_>) -> Self {
        let mut constraints = Self {
            critical,
            ..Self::default()
        };
        for subtree in found.permitted_subtrees.iter().flatten() {
            match &subtree.base {
                GeneralName::DNSName(name) => constraints.permitted_dns.push((*name).to_owned()),
                other => constraints.permitted_others.push(other.to_string()),
            }
        }
        for subtree in found.excluded_subtrees.iter().flatten() {
            match &subtree.base {
                // Address and mask (RFC 5280 section 4.2.1.10): a mask of zeros is every address.
                GeneralName::IPAddress(bytes) if bytes.len() == 8 && all_zero(&bytes[4..]) => {
                    constraints.excludes_ipv4 = true;
                }
                GeneralName::IPAddress(bytes) if bytes.len() == 32 && all_zero(&bytes[16..]) => {
                    constraints.excludes_ipv6 = true;
                }
                GeneralName::IPAddress(_) => {}
                other => constraints.excluded_others.push(other.to_string()),
            }
        }
        constraints
    }
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// OpenSSL's name for a subject in a folder of certificates (`X509_NAME_hash_ex` since 1.0.0): the first four bytes of
/// SHA-1, little end first, over the subject with every text in UTF-8, lower case, white space squeezed, and without the
/// outer SEQUENCE. SHA-1 names a file here and protects nothing.
fn subject_hash(certificate: &X509Certificate<'_>) -> u32 {
    let mut canonical = Vec::new();
    for rdn in certificate.subject().iter() {
        let mut set: Vec<Vec<u8>> = rdn
            .iter()
            .map(|attribute| {
                let value = match attribute.as_str() {
                    Ok(text) => tlv(0x0c, squeeze(text).as_bytes()),
                    // A type that OpenSSL leaves alone, too.
                    Err(_) => tlv(
                        u8::try_from(attribute.attr_value().tag().0).unwrap_or_default(),
                        attribute.attr_value().data,
                    ),
                };
                let oid = tlv(0x06, attribute.attr_type().as_bytes());
                tlv(0x30, &[oid, value].concat())
            })
            .collect();
        // DER sorts the members of a SET.
        set.sort();
        canonical.extend(tlv(0x31, &set.concat()));
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    match digest.as_ref() {
        [a, b, c, d, ..] => u32::from_le_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}

fn squeeze(text: &str) -> String {
    text.split_ascii_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_ascii_lowercase()
}

/// A DER element. Names are short: two length bytes are plenty.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        Ok(byte) => out.extend([0x81, byte]),
        Err(_) => {
            let length = u16::try_from(length).unwrap_or(u16::MAX);
            out.push(0x82);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend(content);
    out
}
