//! TLS towards the intake, and the only place that names rustls or the crypto module.
//!
//! [`module`] proves at start which cryptographic module this program carries, [`provider`] says what a policy offers,
//! [`roots`] whom we trust, [`client`] makes the sessions, [`error`] says why one was not made. Nothing outside this
//! module may notice when the provider underneath is replaced.

use serde::{Deserialize, Serialize};

pub mod client;
pub mod error;
pub mod module;
pub mod provider;
pub mod roots;

pub use client::{Client, ClientStream};
pub use error::{ConfigError, HandshakeError};
pub use module::{ModuleError, ModuleStatus};
pub use roots::RootsStatus;

/// What a TLS session agreed on: evidence, recorded per connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The name that the certificate was verified for.
    pub peer: String,
}
