//! Making a new authority: its key, its certificate, and the numbers that must come from the module.

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use super::error::CaError;
use super::{DAY, certificate};

/// What every certificate of ours says as its organisation.
pub const ORGANISATION: &str = "agent-fips-proxy";
/// How far before its making a certificate begins, in seconds: clients whose clock is late must accept it, too.
pub(super) const BACKDATE: i64 = 3600;

/// A new authority, as it goes into files.
pub(super) struct Made {
    /// The certificate, PEM.
    pub(super) certificate: String,
    /// The key, PKCS #8 in PEM. Wiped when it is dropped.
    pub(super) key: Zeroizing<String>,
    /// What the certificate says.
    pub(super) facts: certificate::Facts,
}

/// Makes an authority of `host` that may sign for `domains` and what is below them, for `days` from `now`.
///
/// # Errors
/// What the module or the library says.
pub(super) fn authority(host: &str, domains: &[String], days: u16, now: i64) -> Result<Made, CaError> {
    let failed = CaError::crypto::<rcgen::Error>;
    let serial = serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(host, &serial);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = date(now - BACKDATE)?;
    params.not_after = date(now - BACKDATE + i64::from(days) * DAY)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Also of what it signs, where a verifier looks at the whole chain: nothing but servers.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: domains
            .iter()
            .map(|domain| GeneralSubtree::DnsName(domain.clone()))
            .collect(),
        // With DNS names alone, addresses would stay free: every verifier accepted a leaf for 10.0.0.1.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    let mut pair =
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed("make the key of an authority"))?;
    let certificate = params.self_signed(&pair);
    let key = Zeroizing::new(pair.serialize_pem());
    pair.zeroize();
    let certificate = certificate.map_err(failed("sign the certificate of an authority"))?;
    let facts = certificate::Certificate::read(certificate.der().clone())
        .map_err(CaError::crypto("read the certificate of an authority"))?
        .facts;
    Ok(Made {
        certificate: certificate.pem(),
        key,
        facts,
    })
}

/// Two authorities of one host differ in their names: a client that trusts both finds the right one at once.
fn subject(host: &str, serial: &[u8]) -> DistinguishedName {
    // A common name has 64 characters at most (RFC 5280, ub-common-name).
    let host: String = host
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
        .take(30)
        .collect();
    let number: String = serial.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANISATION);
    name.push(
        DnType::CommonName,
        format!("agent-fips-proxy {host} {number}").replace("  ", " "),
    );
    name
}

/// 127 random bits from the module, never zero and never negative (RFC 5280 section 4.1.2.2).
pub(super) fn serial() -> Result<[u8; 16], CaError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(CaError::crypto("draw a serial number"))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}

/// A moment as the library wants it.
pub(super) fn date(seconds: i64) -> Result<OffsetDateTime, CaError> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(CaError::crypto("write a date: this host's clock is far off"))
}

/// A public key whose private half nobody keeps: for leaves that only our own verifier sees.
pub(super) fn throwaway_key() -> Result<impl rcgen::PublicKeyData, CaError> {
    /// The point alone.
    struct Point(Vec<u8>);
    impl rcgen::PublicKeyData for Point {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &PKCS_ECDSA_P256_SHA256
        }
    }
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    let pair =
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(CaError::crypto("make a key"))?;
    Ok(Point(pair.public_key().as_ref().to_vec()))
}
