//! When a request may be sent again: only when the intake cannot have acted on it.
//!
//! 1. It never left: hyper gives it back.
//! 2. HTTP/1.1, on a connection that carried requests before: it died before the first byte of an answer, and the peer
//!    either reset it or confirmed no byte of the request (see `Line::has_not_processed`). That is the race between
//!    our request and the intake's idle time-out. A clean end after our bytes were confirmed is not retried: the intake
//!    has the request, and what it did with it is unknown.
//! 3. HTTP/2: the peer says so itself, by REFUSED_STREAM or a GOAWAY with a lower last stream (RFC 9113 section 8.7).
//!
//! In 2 and 3 the part of the body that was read must still be there.

use std::error::Error;

use super::pool::{Line, Sender};
use crate::relay::http::body::Upload;

/// Fresh connections for one request, after which it fails even if it never left.
pub(in crate::relay) const MAX_RETRIES: u32 = 3;

/// True when `upload`'s request, which failed on `line` with `error`, may be sent once more.
pub(in crate::relay) async fn is_safe(line: &Line, error: &hyper::Error, upload: &Upload) -> bool {
    if !upload.is_replayable() {
        return false;
    }
    match &line.sender {
        // Its speaker asks for itself.
        Sender::Wire(_) => false,
        Sender::Http1(_) => line.reused && line.has_not_processed().await,
        Sender::Http2 { .. } => refused_by_peer(error),
    }
}

fn refused_by_peer(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // h2 fails only the streams above a GOAWAY's last stream with that GOAWAY; NO_ERROR is a graceful one.
            return error.is_remote()
                && (error.reason() == Some(h2::Reason::REFUSED_STREAM)
                    || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)));
        }
        source = error.source();
    }
    false
}
