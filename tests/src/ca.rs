//! A certificate authority for the fake intake, with leaves that are good and leaves that are wrong in one way each.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// An authority that the proxy is told to trust (`upstream.ca_file`).
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
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
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// The authority's certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for `names`, wrong as `fault` says.
    pub fn leaf(&self, names: &[String], fault: Fault) -> Result<Leaf> {
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
            _ => (date_time_ymd(2024, 1, 1), date_time_ymd(2089, 1, 1)),
        };
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
        })
    }
}
