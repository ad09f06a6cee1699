//! One record per connection and one per request: made at accept, filled along the path, emitted exactly once, also when
//! the task is dropped half way (then as an abort).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::Product;
use crate::relay::network::NetworkId;
use crate::tls::Negotiated;

/// How a connection came to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A port of the Agent's `fips.*` range.
    Explicit,
    /// Taken at `connect()` by the cgroup programs.
    Cgroup,
    /// Taken on its way through the host by the classifier.
    Tc,
}

impl Via {
    /// The label in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Explicit => "explicit",
            Self::Cgroup => "cgroup",
            Self::Tc => "tc",
        }
    }
}

/// How a request or connection ended: a closed set, derived from error types, never from text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Relayed; the status is the intake's.
    Ok,
    /// The client went away before the end.
    ClientAborted,
    /// Refused: malformed or ambiguous (400).
    BadRequest,
    /// Refused: the name is not ours to serve on this connection (421).
    Misdirected,
    /// Refused: a protocol that is not relayed, such as WebSocket or HTTP/2 without TLS (400).
    Unsupported,
    /// Refused: the settings do not let this process use an explicit port (503).
    NotAllowed,
    /// Refused: over a limit (503).
    Overloaded,
    /// Refused: we are draining (503).
    Draining,
    /// No usable address for the name (503).
    NoAddress,
    /// TCP towards the intake failed (502).
    UpstreamConnect,
    /// The outbound proxy cannot be reached, or made no tunnel (502).
    UpstreamProxy,
    /// TLS towards the intake failed (502).
    UpstreamTls,
    /// The intake broke the connection or the protocol (502).
    UpstreamProtocol,
    /// The intake was too slow (504).
    UpstreamTimeout,
    /// The client did not finish its request head in time.
    ClientTimeout,
    /// TLS with the client failed.
    ClientTls,
    /// The client does not trust the local authority. Told by a report of its own, once.
    ClientDistrust,
    /// The client's own TLS session with the intake agreed on less than the policy, and was cut.
    BelowPolicy,
    /// Refused: `intercept.https` is `refuse`.
    HttpsRefused,
    /// An accepted connection that no program of ours brought here; closed without a byte.
    NoOrigin,
    /// Something of ours failed (502).
    Internal,
}

impl Outcome {
    /// Every outcome, in the order of the metrics.
    pub const ALL: [Self; 21] = [
        Self::Ok,
        Self::ClientAborted,
        Self::BadRequest,
        Self::Misdirected,
        Self::Unsupported,
        Self::NotAllowed,
        Self::Overloaded,
        Self::Draining,
        Self::NoAddress,
        Self::UpstreamConnect,
        Self::UpstreamProxy,
        Self::UpstreamTls,
        Self::UpstreamProtocol,
        Self::UpstreamTimeout,
        Self::ClientTimeout,
        Self::ClientTls,
        Self::ClientDistrust,
        Self::BelowPolicy,
        Self::HttpsRefused,
        Self::NoOrigin,
        Self::Internal,
    ];

    /// Its label in metrics, logs and the header `X-Agent-FIPS-Proxy-Error`: the same as when serialised.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientAborted => "client_aborted",
            Self::BadRequest => "bad_request",
            Self::Misdirected => "misdirected",
            Self::Unsupported => "unsupported",
            Self::NotAllowed => "not_allowed",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::NoAddress => "no_address",
            Self::UpstreamConnect => "upstream_connect",
            Self::UpstreamProxy => "upstream_proxy",
            Self::UpstreamTls => "upstream_tls",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::ClientTimeout => "client_timeout",
            Self::ClientTls => "client_tls",
            Self::ClientDistrust => "client_distrust",
            Self::BelowPolicy => "below_policy",
            Self::HttpsRefused => "https_refused",
            Self::NoOrigin => "no_origin",
            Self::Internal => "internal",
        }
    }

    /// True when somebody should look: not for a client that went away or idled, and not for what has a report of its own.
    pub fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::Ok | Self::ClientAborted | Self::ClientTimeout | Self::ClientDistrust
        )
    }
}

/// One request. Holds no header value, no query and no body.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// The product, when the name belongs to one.
    pub product: Option<Product>,
    /// How the connection came.
    pub via: Via,
    /// The client's address.
    pub client: SocketAddr,
    /// Where the client meant to go; absent on explicit ports.
    pub original_dst: Option<SocketAddr>,
    /// Method.
    pub method: http::Method,
    /// Path without query, redacted. Empty when [`crate::relay::Recorder::wants_paths`] says so.
    pub path: String,
    /// The intake name that was verified.
    pub upstream_name: Option<Arc<str>>,
    /// The address that was used.
    pub upstream_addr: Option<SocketAddr>,
    /// What TLS agreed on towards the intake.
    pub tls: Option<Arc<Negotiated>>,
    /// Protocol of the client, `1.1` or `2`; `1.0` counts as `1.1`.
    pub http: &'static str,
    /// Protocol towards the intake, `1.1` or `2`.
    pub upstream_http: Option<&'static str>,
    /// The status sent to the client; 0 when none was sent.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Body bytes from the client.
    pub bytes_up: u64,
    /// Body bytes to the client.
    pub bytes_down: u64,
    /// From the request head to the end of the response body.
    pub duration: Duration,
    /// Upstream attempts beyond the first.
    pub retries: u32,
    /// Why it failed; redacted, for people.
    pub error: Option<String>,
}

impl RequestRecord {
    /// True for what we ask ourselves ([`crate::self_test`]): nothing else is answered well without a product.
    pub fn is_self_test(&self) -> bool {
        self.product.is_none() && self.outcome == Outcome::Ok
    }
}

/// What can be done with a connection, in the order of the metrics: end it here, let its TLS through under the policy, leave
/// it alone, answer it as our own self-test, refuse it.
pub const DECISIONS: [&str; 5] = ["terminate", "passthrough", "tunnel", "self-test", "refuse"];

/// A process on this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Its id in the host's own namespace.
    pub pid: u32,
    /// `/proc/<pid>/comm`; absent when it was gone, or is not to be seen from here.
    pub name: Option<String>,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (pid {})", self.pid),
            None => write!(f, "pid {}", self.pid),
        }
    }
}

/// The TLS session of an Agent: with us, or, where it passes through, its own with the intake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientTls {
    /// `terminate` or `passthrough`.
    pub decision: String,
    /// `TLSv1.2`, `TLSv1.3`, or `-` when it could not be read.
    pub version: String,
    /// IANA name of the suite, or `-`.
    pub suite: String,
    /// IANA name of the group; absent on a resumed TLS 1.2 session and for RSA key transport.
    pub group: Option<String>,
    /// In what it is below the policy, one of [`crate::tls::observe::BELOW`]; absent when it is not.
    pub below: Option<String>,
}

/// A client that asked for an intake name by TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsClient {
    /// The intake name, normalised.
    pub name: String,
    /// Which process, where the datapath tells it.
    pub process: Option<Process>,
    /// Where it is.
    pub network: NetworkId,
}

/// How a client showed that it does not trust us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// This alert.
    Alert(String),
    /// Nothing: it closed when it saw the certificate. Whoever goes away does the same, so that only repetition tells.
    Nothing,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alert(alert) => write!(f, "it answers our certificate with the alert {alert}"),
            Self::Nothing => f.write_str("it closes without a word when it sees our certificate"),
        }
    }
}

/// One client connection.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    /// How it came.
    pub via: Via,
    /// The client's address.
    pub client: SocketAddr,
    /// Where the client meant to go.
    pub original_dst: Option<SocketAddr>,
    /// What the first bytes were: `http1`, `http2`, `tls`, `opaque`, `silent`; absent when none came.
    pub class: Option<&'static str>,
    /// What was done: one of [`DECISIONS`].
    pub decision: &'static str,
    /// The process that connected, where the datapath tells it.
    pub process: Option<Process>,
    /// What the client's own TLS agreed on, with us or with the intake, as far as it came.
    pub tls: Option<ClientTls>,
    /// The name asked for, when there was one.
    pub name: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Requests served.
    pub requests: u64,
    /// Bytes from the client (tunnel only; requests count their own).
    pub bytes_up: u64,
    /// Bytes to the client (tunnel only).
    pub bytes_down: u64,
    /// How long it lasted.
    pub duration: Duration,
    /// Why it failed; redacted, for people.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_serialised_names() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.label());
        }
    }
}
