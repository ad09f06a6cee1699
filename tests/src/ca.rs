//! A certificate authority for the fake intake, with leaves that are good and leaves that are wrong in one way each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// An authority that the proxy is told to trust (`upstream.ca_file`), or that a gateway trusts for its clients.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    certificate: CertificateDer<'static>,
}

/// What is wrong with a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It ended in 2021.
    Expired,
    /// It begins in 2090.
    NotYetValid,
    /// It signed itself.
    SelfSigned,
    /// It names another host.
    WrongName,
    /// Another authority with the same name signed it.
    UnknownAuthority,
}

/// A certificate chain and its key, as rustls wants them.
pub struct Leaf {
    /// Leaf only: the authority is a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// Certificate and key, for a server that reads files.
    pub pem: String,
    /// Its serial number, for revocation lists.
    pub serial: SerialNumber,
    /// SHA-256 of its public key, in base64: a pin.
    pub pin: String,
}

impl Authority {
    /// A new authority with a P-256 key.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "agent-fips-proxy test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2095, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The same in DER, for a server that trusts it.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A revocation list in PEM that names these serial numbers, valid from 2020 until the beginning of a year.
    pub fn crl(&self, revoked: &[&SerialNumber], until: i32) -> Result<String> {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: (*serial).clone(),
                    revocation_time: date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// A client certificate and its key, both in PEM.
    pub fn client(&self) -> Result<(String, String)> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "agent-fips-proxy");
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2089, 1, 1));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// The authority's certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for `names`, wrong as `fault` says.
    pub fn leaf(&self, names: &[String], fault: Fault) -> Result<Leaf> {
        self.leaf_until(names, fault, None)
    }

    /// The same, valid until the end of this second.
    pub fn leaf_until(&self, names: &[String], fault: Fault, until: Option<SystemTime>) -> Result<Leaf> {
        let names = match fault {
            Fault::WrongName => vec!["wrong.example.net".to_owned()],
            _ => names.to_vec(),
        };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "fake intake");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        (params.not_before, params.not_after) = match fault {
            Fault::Expired => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
            Fault::NotYetValid => (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1)),
            _ => (
                date_time_ymd(2024, 1, 1),
                until.map_or_else(|| date_time_ymd(2089, 1, 1), Into::into),
            ),
        };
        let serial = SerialNumber::from(fresh_serial());
        params.serial_number = Some(serial.clone());
        let key = KeyPair::generate()?;
        let certificate = match fault {
            Fault::SelfSigned => params.self_signed(&key)?,
            Fault::UnknownAuthority => params.signed_by(&key, &Self::new()?.issuer)?,
            _ => params.signed_by(&key, &self.issuer)?,
        };
        Ok(Leaf {
            chain: vec![certificate.der().clone()],
            pem: certificate.pem() + &key.serialize_pem(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            serial,
            pin: STANDARD.encode(
                aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.subject_public_key_info())
                    .as_ref(),
            ),
        })
    }
}

/// Never the same twice in a process: that is all a revocation list needs here.
fn fresh_serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0x0100_0000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
