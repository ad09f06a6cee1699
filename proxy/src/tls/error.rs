//! Why a TLS session, or the configuration for one, was not made: a closed set of reasons for metrics, and a sentence
//! for people that names the key to change.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::pins::PinFault;
use super::roots::CURE;

/// A client configuration that cannot be made. Nothing is forwarded without one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file of roots is of no use.
    #[error("{key} {}: {problem}; {}", path.display(), CURE)]
    CaFile {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The system has no roots.
    #[error(
        "no usable root certificate in the system's store{}; install the package ca-certificates, or set \
         upstream.ca_file to a PEM file",
        list(unreadable)
    )]
    NoSystemRoots {
        /// What was found and could not be used.
        unreadable: Vec<String>,
    },
    /// The provider or the finished configuration does not answer for itself as approved.
    #[error(
        "the {what} for upstream.tls_policy is not in the approved mode of the cryptographic module: this \
         build must not be used, install a released package"
    )]
    NotApproved {
        /// Which part.
        what: &'static str,
    },
    /// `upstream.crl_dir` is of no use.
    #[error("upstream.crl_dir {}: {problem}; name a folder that the worker can read, or remove the key", path.display())]
    CrlDir {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The client certificate or its key is of no use.
    #[error("{problem}")]
    ClientCertificate {
        /// Key, file, what is wrong and what to do.
        problem: String,
    },
    /// The library refused the lists of the policy.
    #[error("the TLS library refuses the configuration for upstream.tls_policy: {0}")]
    Refused(String),
}

fn list(unreadable: &[String]) -> String {
    if unreadable.is_empty() {
        String::new()
    } else {
        format!(" ({})", unreadable.join("; "))
    }
}

/// A handshake that failed. The message tells what failed, for which name, why, and what to change; it holds nothing
/// secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HandshakeError {
    /// One of [`REASONS`].
    pub reason: &'static str,
    message: String,
}

/// Every value that [`HandshakeError::reason`] can have.
pub const REASONS: [&str; 17] = [
    "certificate_expired",
    "certificate_not_yet_valid",
    "unknown_issuer",
    "wrong_name",
    "revoked",
    "revocation_unknown",
    "crl_expired",
    "pin_mismatch",
    "client_certificate",
    "bad_certificate",
    "no_common_version",
    "no_common_suite",
    "no_ems",
    "alert",
    "protocol",
    "io",
    "closed",
];

impl HandshakeError {
    /// From what the stream said about the handshake with `name`.
    pub(super) fn from_io(name: &str, error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return Self::from_tls(name, tls);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::new(
                "closed",
                name,
                &format!("the connection was closed during the handshake ({error})"),
                "a firewall or proxy on the way that refuses TLS does this, as does a server without a \
                 common protocol version",
            ),
            _ => Self::new(
                "io",
                name,
                &error.to_string(),
                "the network or a proxy on the way broke the connection",
            ),
        }
    }

    /// `name` is not a name that a certificate can be verified for.
    pub(super) fn not_a_name(name: &str) -> Self {
        Self::new(
            "wrong_name",
            name,
            "it is not a DNS name, and a certificate is only ever verified for one",
            "check site and upstream.endpoints",
        )
    }

    /// An alert of the server's that comes after the handshake, found in what was said about the connection with `name`: in
    /// TLS 1.3 a server looks at the client's certificate when the client has already begun to send.
    pub fn late_alert(name: &str, error: &io::Error) -> Option<Self> {
        let tls = error.get_ref()?.downcast_ref::<Error>()?;
        matches!(tls, Error::AlertReceived(_)).then(|| Self::from_tls(name, tls))
    }

    /// `upstream.crl_policy` is `hard_fail` and nothing says whether the certificate is revoked.
    pub(super) fn revocation_unknown(name: &str) -> Self {
        Self::new(
            "revocation_unknown",
            name,
            "no revocation list covers the server's certificate, or that of an authority between it and the root, and \
             upstream.crl_policy is hard_fail",
            "put the lists of all authorities of the path into upstream.crl_dir",
        )
    }

    /// The verified path holds no key of `upstream.pins`.
    pub(super) fn from_pins(name: &str, fault: &PinFault) -> Self {
        match fault {
            PinFault::NoPin => Self::new(
                "pin_mismatch",
                name,
                "the server's certificate is good, but neither its key nor that of an authority above it is in \
                 upstream.pins",
                "if the intake has changed its keys, add the new one to upstream.pins; otherwise somebody with a \
                 certificate from another authority intercepts the connection",
            ),
            PinFault::NoPath(error) => Self::new(
                "bad_certificate",
                name,
                &format!("the server's certificate does not verify any more: {error}"),
                "the server's certificate must be renewed, or its revocation list",
            ),
        }
    }

    fn from_tls(name: &str, error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(certificate) => Self::from_certificate(name, certificate),
            Error::NoCertificatesPresented => Self::new(
                "bad_certificate",
                name,
                "the server presented no certificate",
                "the server's configuration must change",
            ),
            Error::PeerIncompatible(incompatible) => Self::from_incompatible(name, incompatible),
            Error::AlertReceived(alert) => Self::from_alert(name, *alert),
            Error::InvalidCertRevocationList(error) => Self::new(
                "revocation_unknown",
                name,
                &format!(
                    "a list in upstream.crl_dir cannot be used for the server's certificate ({error:?})"
                ),
                "the list must be signed by the authority that issued the certificate; take a false one out of the \
                 folder",
            ),
            Error::NoApplicationProtocol => Self::new(
                "protocol",
                name,
                "the server speaks neither HTTP/1.1 nor HTTP/2",
                NOT_AN_INTAKE,
            ),
            // The library's texts hold enums, never bytes from the wire.
            Error::InvalidMessage(_) => Self::new(
                "protocol",
                name,
                &format!("what answered does not speak TLS ({error})"),
                NOT_AN_INTAKE,
            ),
            other => Self::new("protocol", name, &other.to_string(), NOT_AN_INTAKE),
        }
    }

    fn from_certificate(name: &str, error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::new(
                "certificate_expired",
                name,
                &error.to_string(),
                "check this host's clock; if it is right, the server's certificate must be renewed",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::new(
                "certificate_not_yet_valid",
                name,
                &error.to_string(),
                "check this host's clock; if it is right, the server uses its certificate too early",
            ),
            CertificateError::UnknownIssuer => Self::new(
                "unknown_issuer",
                name,
                "the server's certificate is not signed by a root that we trust",
                "if a gateway of yours answers for this name, set upstream.ca_file to the roots it uses \
                 (they then replace the system's); otherwise somebody intercepts the connection",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::new(
                "wrong_name",
                name,
                &error.to_string(),
                "check site and upstream.endpoints: the server that was reached must have a certificate for \
                 this name",
            ),
            CertificateError::Revoked => Self::new(
                "revoked",
                name,
                "the server's certificate, or that of an authority between it and the root, has been revoked (a list in \
                 upstream.crl_dir names it)",
                "the server needs a new certificate",
            ),
            CertificateError::UnknownRevocationStatus => Self::revocation_unknown(name),
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::new(
                "crl_expired",
                name,
                "the revocation list for the server's certificate, or for that of an authority between it and the \
                     root, is expired, and upstream.crl_policy is hard_fail",
                "put a new list into upstream.crl_dir; `agent-fips-proxy status` names the expired one",
            ),
            CertificateError::Other(other)
                if matches!(
                    other.0.downcast_ref::<webpki::Error>(),
                    Some(webpki::Error::CaUsedAsEndEntity)
                ) =>
            {
                Self::new(
                    "unknown_issuer",
                    name,
                    "the server presents the certificate of a certificate authority as its own (usually a \
                     self-signed one)",
                    "the server needs a certificate that an authority issued for this name; upstream.ca_file \
                     then names the authority",
                )
            }
            CertificateError::BadSignature => Self::new(
                "bad_certificate",
                name,
                "a signature of the server or of its certificate does not match the key that should have \
                 made it",
                "an authority that was made again under its old name does this: then upstream.ca_file must \
                 hold the new one; otherwise somebody interferes with the connection",
            ),
            other => Self::new(
                "bad_certificate",
                name,
                &format!("the server's certificate is not acceptable: {other}"),
                "the server needs a certificate for server authentication with RSA of 2048 bits or more, \
                 ECDSA or Ed25519, and SHA-256 or better",
            ),
        }
    }

    fn from_incompatible(name: &str, incompatible: &PeerIncompatible) -> Self {
        match incompatible {
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled => {
                Self::no_common_version(name, &format!("{incompatible:?}"))
            }
            PeerIncompatible::ExtendedMasterSecretExtensionRequired => Self::new(
                "no_ems",
                name,
                "the server speaks TLS 1.2 without extended master secret (RFC 7627), which the policy \
                 requires",
                "the server or the proxy before it must be updated, or speak TLS 1.3; no setting of ours \
                 allows it",
            ),
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon
            | PeerIncompatible::NoEcPointFormatsInCommon => {
                Self::no_common_suite(name, &format!("{incompatible:?}"))
            }
            other => Self::new(
                "protocol",
                name,
                &format!("the server is not compatible with us ({other:?})"),
                NOT_AN_INTAKE,
            ),
        }
    }

    fn from_alert(name: &str, alert: AlertDescription) -> Self {
        let text = format!("the server answered with the alert {alert:?}");
        match alert {
            AlertDescription::ProtocolVersion => Self::no_common_version(name, &text),
            // RFC 8446, 6.2: "unable to negotiate an acceptable set of security parameters".
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
                Self::no_common_suite(name, &text)
            }
            AlertDescription::CertificateRequired => Self::new(
                "client_certificate",
                name,
                &format!("the server wants a client certificate ({text})"),
                "set upstream.client_certificate_file and upstream.client_key_file",
            ),
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA => Self::new(
                "client_certificate",
                name,
                &format!("the server does not accept the client certificate ({text})"),
                "upstream.client_certificate_file must hold a certificate that is valid now, from an authority that \
                 the server trusts, with those between the two behind it",
            ),
            _ => Self::new(
                "alert",
                name,
                &text,
                "the server refused the session; check that site and upstream.endpoints lead to the intake",
            ),
        }
    }

    fn no_common_version(name: &str, detail: &str) -> Self {
        Self::new(
            "no_common_version",
            name,
            &format!("the server has no TLS version in common with upstream.tls_policy ({detail})"),
            "`fips` accepts TLS 1.2 and 1.3, `strict` only 1.3",
        )
    }

    fn no_common_suite(name: &str, detail: &str) -> Self {
        Self::new(
            "no_common_suite",
            name,
            &format!(
                "the server has no approved suite or key exchange group in common with upstream.tls_policy \
                 ({detail})"
            ),
            "the server must offer AES-GCM with P-256, P-384 or a hybrid of ML-KEM-768; ChaCha20 and bare \
             X25519 are not approved",
        )
    }

    fn new(reason: &'static str, name: &str, why: &str, cure: &str) -> Self {
        Self {
            reason,
            message: format!("TLS with `{}` failed: {}; {cure}", Bounded(name), Bounded(why)),
        }
    }
}

const NOT_AN_INTAKE: &str =
    "check that site, upstream.port and upstream.endpoints lead to the intake and not to something else";

/// Text that a peer had a part in, as it may stand in a message: no control characters and no novels. A name has at most
/// 253 characters; a certificate may bring hundreds of names.
pub(super) struct Bounded<'a>(pub(super) &'a str);

impl fmt::Display for Bounded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 500;
        for c in self.0.chars().take(MOST) {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        if self.0.chars().nth(MOST).is_some() {
            f.write_str("...")?;
        }
        Ok(())
    }
}
