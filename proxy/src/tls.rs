//! TLS towards the intake, and the only place that names rustls or the crypto module.

use serde::{Deserialize, Serialize};

/// What a TLS session agreed on: evidence, recorded per connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: String,
    /// IANA name of the suite, for example `TLS13_AES_256_GCM_SHA384`.
    pub suite: String,
    /// Key exchange group, for example `X25519MLKEM768`; absent on a resumed TLS 1.2 session.
    pub group: Option<String>,
    /// True when ALPN chose HTTP/2.
    pub http2: bool,
    /// True when the session was resumed.
    pub resumed: bool,
    /// The name that the certificate was verified for.
    pub peer: String,
}
