//! Handshakes between an Agent and its server, read while they pass and not broken: which name is asked for, and what the
//! two agree on.
//!
//! [`HelloReader`] takes the first bytes of a connection and tells what the client wants. [`Observer`] takes the bytes of the
//! server and tells the session that comes of it, as soon as it can be known. [`judge()`] compares that with what our own sessions
//! use under policy `fips`. Nothing here does I/O, holds a key or changes a byte; the bytes stay with the caller, who passes them
//! on. The messages are taken apart by tls-parser; rustls reads only handshakes in which it takes part itself.
//!
//! What is encrypted stays unseen: certificates of TLS 1.3, and whether the two renegotiate in an older version.
//!
//! Two rules: what is written in a shape that no peer may send is refused (a reader that guesses can be made to guess wrongly),
//! and what is merely old, unknown or unwise is read like anything else, because to judge it is for [`judge()`].

use serde::{Deserialize, Serialize};

mod hello;
mod judge;
mod names;
mod records;
mod server;
#[cfg(test)]
mod tests;

pub use hello::{ClientHello, HelloReader, LONGEST_HELLO, Malformed};
pub use judge::{BELOW, Below, judge};
pub use server::{LONGEST_FLIGHT, Observer, Progress};

/// What an Agent and its server agreed on, as read from the ServerHello and the messages after it: the Agent's own cryptography,
/// recorded and not claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AgentSession {
    /// `SSLv3`, `TLSv1.0`, `TLSv1.1`, `TLSv1.2`, `TLSv1.3`; a number (`0x7f17`) when it is none of these.
    pub version: String,
    /// IANA name of the suite; a number (`0x1399`) when the registry has none.
    pub suite: String,
    /// IANA name of the key exchange group; a number when the registry has none. Absent when none is named: TLS 1.2 resumed, key
    /// transport by RSA, finite fields before TLS 1.3, TLS 1.3 from a pre-shared key alone.
    pub group: Option<String>,
    /// Whether the master secret is the extended one (RFC 7627). Absent for TLS 1.3, whose key schedule always covers the
    /// handshake.
    pub ems: Option<bool>,
    /// True when it goes on from an earlier session (or, in TLS 1.3, from a pre-shared key of any origin).
    pub resumed: bool,
    /// True when the server asked for another ClientHello first (HelloRetryRequest, RFC 8446 section 4.1.4).
    pub retried: bool,
}
