//! Alerts: those that we write before there is a session, and what those of a client say about its trust.

use std::io;

use rustls::{AlertDescription, Error};

/// What a client is told before there is a session (RFC 8446 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alert {
    /// `intercept.https: refuse`, or no authority that may sign.
    AccessDenied,
    /// The name in SNI is not one that we answer for.
    UnrecognizedName,
    /// No name in SNI.
    MissingExtension,
    /// No ClientHello.
    DecodeError,
    /// The client's own session with an intake agreed on less than the policy.
    InsufficientSecurity,
}

/// A fatal alert as a record in the clear, which is how it is sent before the first ServerHello.
pub fn record(alert: Alert) -> Vec<u8> {
    let description = match alert {
        Alert::AccessDenied => 49,
        Alert::DecodeError => 50,
        Alert::InsufficientSecurity => 71,
        Alert::MissingExtension => 109,
        Alert::UnrecognizedName => 112,
    };
    // Type alert, legacy version 1.2, two bytes: fatal, and why.
    vec![21, 3, 3, 0, 2, 2, description]
}

/// The alert by which a client says that it does not trust the authority; `None` for any other.
///
/// Which library says what (suite `ca`): OpenSSL, and with it curl and Python, says `unknown_ca`, Go `bad_certificate`. Node says
/// nothing and closes. The other two are what RFC 8446 section 6.2 has for the same.
pub(super) fn distrust(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::UnknownCA => Some("unknown_ca"),
        AlertDescription::BadCertificate => Some("bad_certificate"),
        AlertDescription::CertificateUnknown => Some("certificate_unknown"),
        AlertDescription::UnsupportedCertificate => Some("unsupported_certificate"),
        _ => None,
    }
}

/// The same for an error that a stream gave after the handshake: some clients look at the certificate only then.
pub fn distrust_in(error: &io::Error) -> Option<&'static str> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(alert) => distrust(*alert),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distrust_after_the_handshake_is_recognised() {
        let received = |alert| io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(alert));
        for (alert, expected) in [
            (AlertDescription::UnknownCA, Some("unknown_ca")),
            (AlertDescription::BadCertificate, Some("bad_certificate")),
            (AlertDescription::CertificateUnknown, Some("certificate_unknown")),
            (AlertDescription::CloseNotify, None),
            (AlertDescription::HandshakeFailure, None),
        ] {
            assert_eq!(distrust_in(&received(alert)), expected, "{alert:?}");
        }
        assert_eq!(distrust_in(&io::ErrorKind::UnexpectedEof.into()), None);
        assert_eq!(distrust_in(&io::Error::other("text")), None);
    }
}
