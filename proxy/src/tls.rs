//! TLS towards the intake and with Agents, and the only place that names rustls or the crypto module.
//!
//! [`module`] proves at start which cryptographic module this program carries, [`provider`] says what a policy offers,
//! [`roots`] whom we trust, `verify`, `crl` and `pins` how a server's certificate is judged, [`identity`] who we are for
//! a server that asks, [`client`] makes the sessions towards intakes, `sessions` remembers them, [`shown`] tells what a server showed, [`error`] says why one was not made. [`ca`] is the
//! local authority, [`server`] makes the sessions with Agents that speak HTTPS, [`observe`] reads those that are passed on and not
//! broken. Nothing outside this module may notice when the provider underneath is replaced.

use rustls::HandshakeKind;
use serde::{Deserialize, Serialize};

pub mod ca;
pub mod client;
mod crl;
mod der;
pub mod error;
pub mod identity;
pub mod module;
pub mod observe;
mod pins;
pub mod provider;
pub mod roots;
pub mod server;
mod sessions;
pub mod shown;
mod verify;

pub use client::{Client, ClientStream};
pub use crl::CrlStatus;
pub use error::{ConfigError, HandshakeError};
pub use identity::ClientCertificateStatus;
pub use module::{ModuleError, ModuleStatus};
pub use roots::RootsStatus;
pub(crate) use roots::sha256;
pub use server::{Server, ServerStream};

/// What a TLS session agreed on: evidence, recorded per connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: String,
    /// IANA name of the suite, for example `TLS_AES_256_GCM_SHA384`.
    pub suite: String,
    /// IANA name of the key exchange group, for example `SecP256r1MLKEM768`; absent on a resumed TLS 1.2 session.
    pub group: Option<String>,
    /// True when ALPN chose HTTP/2.
    pub http2: bool,
    /// True when the session was resumed.
    pub resumed: bool,
    /// The name that the certificate was verified for; of a session with an Agent, the one that it asked for.
    pub peer: String,
    /// The pin of `upstream.pins` that its verified path holds, nearest to the server; absent without pins.
    pub pin: Option<String>,
    /// True when our client certificate was presented, in this handshake or in the one that it resumes.
    pub client_certificate: bool,
    /// The outbound proxy that it went through, `host:port`; absent when it went without.
    pub proxy: Option<String>,
}

impl Negotiated {
    /// What `session`, whose handshake is finished, agreed on for the name `peer`.
    fn of(session: &rustls::CommonState, peer: &str) -> Self {
        // A finished handshake has a version and a suite: "unknown" would be a fault of the library, not a reason to panic.
        let unknown = || "unknown".to_owned();
        Self {
            version: session
                .protocol_version()
                .map_or_else(unknown, provider::version_name),
            suite: session
                .negotiated_cipher_suite()
                .map_or_else(unknown, |suite| provider::suite_name(suite.suite())),
            group: session
                .negotiated_key_exchange_group()
                .map(|group| provider::group_name(group.name())),
            http2: session.alpn_protocol() == Some(b"h2"),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            peer: peer.to_owned(),
            ..Self::default()
        }
    }
}

/// How servers are judged beyond [`RootsStatus`], and who we are for them: evidence, shown by `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustStatus {
    /// Revocation lists; absent without `upstream.crl_dir`.
    pub crls: Option<CrlStatus>,
    /// `upstream.pins`
    pub pins: Vec<String>,
    /// Absent without `upstream.client_certificate_file`.
    pub client_certificate: Option<ClientCertificateStatus>,
    /// What somebody should do something about, in words.
    pub alarms: Vec<String>,
}
