//! Why an Agent's session was not made: a closed set of reasons for metrics and decisions, and a sentence for people.

use std::io;

use rustls::{AlertDescription, Error, PeerIncompatible};

use super::alert;
use crate::tls::ca::CaError;
use crate::tls::error::Bounded;

/// A handshake that failed. The message holds nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AcceptError {
    /// One of [`REASONS`].
    pub reason: &'static str,
    /// The alert that the client sent: by its name in RFC 8446 where it is one of distrust.
    pub alert: Option<String>,
    message: String,
}

/// Every value that [`AcceptError::reason`] can have, and `timeout`, which is the caller's.
pub const REASONS: [&str; 13] = [
    "no_name",
    "not_intake",
    "untrusted",
    "no_common_version",
    "no_common_suite",
    "no_common_protocol",
    "no_ems",
    "authority_ended",
    "alert",
    "protocol",
    "closed",
    "timeout",
    "internal",
];

impl AcceptError {
    /// True when the client said that it does not trust the local authority: roots compiled in, a pinned certificate, or
    /// an Agent that has not been restarted since `ca install`.
    pub fn distrusts(&self) -> bool {
        self.reason == "untrusted"
    }

    /// True when the client closed after it saw the certificate and said nothing. Node does so when it does not trust it;
    /// so does whoever merely goes away.
    pub fn may_distrust(&self) -> bool {
        self.reason == "closed"
    }

    pub(super) fn no_name() -> Self {
        Self::new(
            "no_name",
            "",
            "it sent no server name (SNI), or an IP address in its place",
            "nothing was minted for it; an Agent always names its intake",
        )
    }

    pub(super) fn not_ours(name: &str) -> Self {
        Self::new(
            "not_intake",
            name,
            "this is no intake name of the configured site",
            "nothing was minted for it; check site",
        )
    }

    pub(super) fn ended(name: &str) -> Self {
        Self::new(
            "authority_ended",
            name,
            "the local authority has ended, so nothing can be signed",
            "`agent-fips-proxy ca init --replace`, then restart the Agents; check this host's clock",
        )
    }

    pub(super) fn internal(name: &str, error: &CaError) -> Self {
        Self::new(
            "internal",
            name,
            &error.to_string(),
            "restart the proxy; if it stays, report it",
        )
    }

    /// From what the stream said about the handshake for `name`.
    pub(super) fn from_io(name: &str, error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return Self::from_tls(name, tls);
        }
        Self::new(
            "closed",
            name,
            &format!("the client closed the connection during the handshake ({error})"),
            "a client that does not trust the local authority and says nothing does this; so does one that goes away",
        )
    }

    fn from_tls(name: &str, error: &Error) -> Self {
        match error {
            Error::AlertReceived(received) => Self::from_alert(name, *received),
            Error::NoApplicationProtocol => Self::new(
                "no_common_protocol",
                name,
                "the client offers neither h2 nor http/1.1 (ALPN)",
                "add it to intercept.https_passthrough_names if it must speak something else",
            ),
            Error::PeerIncompatible(incompatible) => Self::from_incompatible(name, incompatible),
            // The library's texts hold enums, never bytes from the wire.
            other => Self::new(
                "protocol",
                name,
                &other.to_string(),
                "the client does not speak TLS as it should",
            ),
        }
    }

    fn from_alert(name: &str, received: AlertDescription) -> Self {
        let text = format!("the client answered with the alert {received:?}");
        let mut error = if alert::distrust(received).is_some() {
            Self::new(
                "untrusted",
                name,
                &format!("the client does not trust the local authority ({received:?})"),
                "`agent-fips-proxy ca install` and a restart of that Agent cure it; a client with its own compiled-in roots \
                 belongs into intercept.https_passthrough_names",
            )
        } else {
            match received {
                AlertDescription::ProtocolVersion => Self::new("no_common_version", name, &text, VERSIONS),
                AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
                    Self::new("no_common_suite", name, &text, SUITES)
                }
                _ => Self::new("alert", name, &text, "the client's own log says why"),
            }
        };
        error.alert = Some(alert::distrust(received).map_or_else(|| format!("{received:?}"), str::to_owned));
        error
    }

    fn from_incompatible(name: &str, incompatible: &PeerIncompatible) -> Self {
        let detail = format!("{incompatible:?}");
        match incompatible {
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => Self::new(
                "no_common_version",
                name,
                &format!("the client offers neither TLS 1.2 nor 1.3 ({detail})"),
                VERSIONS,
            ),
            PeerIncompatible::ExtendedMasterSecretExtensionRequired => Self::new(
                "no_ems",
                name,
                "the client speaks TLS 1.2 without extended master secret (RFC 7627)",
                "update it; no setting of ours allows it",
            ),
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NamedGroupsExtensionRequired
            | PeerIncompatible::NoSignatureSchemesInCommon
            | PeerIncompatible::NoEcPointFormatsInCommon => Self::new(
                "no_common_suite",
                name,
                &format!("the client offers no approved suite or key exchange group ({detail})"),
                SUITES,
            ),
            _ => Self::new(
                "protocol",
                name,
                &format!("the client is not compatible with us ({detail})"),
                "update it",
            ),
        }
    }

    fn new(reason: &'static str, name: &str, why: &str, cure: &str) -> Self {
        let whose = if name.is_empty() {
            String::new()
        } else {
            format!(" for `{}`", Bounded(name))
        };
        Self {
            reason,
            alert: None,
            message: format!("TLS with an Agent{whose} failed: {}; {cure}", Bounded(why)),
        }
    }
}

const VERSIONS: &str = "the client must speak TLS 1.2 with extended master secret, or 1.3";
const SUITES: &str = "the client must offer AES-GCM with P-256, P-384 or a hybrid of ML-KEM-768; ChaCha20 and bare X25519 \
                      are not approved";
