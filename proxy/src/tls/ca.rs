//! The local certificate authority: what lets a stock Agent, which insists on `https://`, end its TLS session with us.
//!
//! Made on the host ([`make`]), kept in a folder ([`store`]), read back only after every check ([`check`], [`authority`]).
//! What keeps a stolen key from being worth anything elsewhere is in the certificate: critical name constraints that
//! permit the intake's domains only and exclude every IP address, path length 0, server authentication only.
//!
//! The key is read in two places: by `ca init` and `ca rotate`, which make it, and by the worker, which signs with it. The
//! master hands its descriptor on unread (docs/adr/0007-key-of-the-local-authority.md).

use std::time::{SystemTime, UNIX_EPOCH};

pub mod authority;
pub mod certificate;
pub mod check;
pub mod error;
pub mod files;
mod key;
pub mod make;
pub mod open;
pub mod store;
mod trust_folder;

#[cfg(test)]
mod tests;

pub use authority::{Authorities, AuthoritiesStatus, Authority};
pub use certificate::Facts;
pub use error::CaError;
pub use open::{OpenAuthority, Role};
pub use store::{Published, Store};

/// Days before its end at which an authority is complained about: in the log, in `status` and in the metrics.
pub const WARN_DAYS: i64 = 30;

/// Seconds of a day.
pub(crate) const DAY: i64 = 86_400;

/// Now, in seconds since 1970. A clock before that is broken beyond our help and counts as 1970.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}

/// A moment as people read it, in UTC: `2026-11-22T09:30:00Z`.
pub fn moment(seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(seconds).map_or_else(
        |_| format!("{seconds} s after 1970"),
        |t| {
            format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                t.year(),
                u8::from(t.month()),
                t.day(),
                t.hour(),
                t.minute(),
                t.second()
            )
        },
    )
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
