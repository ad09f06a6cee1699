//! The answers that we make ourselves: one place that maps causes to statuses.
//!
//! An Agent drops a payload for good on 400, 403 and 413 and retries on 5xx (research: `comp/forwarder`, transaction
//! handling), so every failure that is not the client's own is 502, 503 or 504.

use std::io::Write;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::body::Download;
use super::head::Violation;
use super::reply::{Asked, Delimited};
use super::rewrite;
use crate::relay::decide::Refusal;
use crate::relay::outcome::Outcome;

/// Says who answered and why, for people and tests: the outcome's label.
pub(in crate::relay) const ERROR_HEADER: HeaderName = HeaderName::from_static("x-agent-fips-proxy-error");

/// Seconds after which a client may try again.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// What a client that speaks HTTP/2 in the clear is told (RFC 9113 sections 6.5 and 6.8): an empty SETTINGS frame, and a
/// GOAWAY with HTTP_1_1_REQUIRED before its first stream.
pub(in crate::relay) const GO_AWAY: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, //
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13,
];

/// The status that goes with an outcome.
pub(in crate::relay) fn status(outcome: Outcome) -> StatusCode {
    match outcome {
        Outcome::Ok => StatusCode::OK,
        Outcome::BadRequest | Outcome::Unsupported => StatusCode::BAD_REQUEST,
        Outcome::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Outcome::ClientTimeout => StatusCode::REQUEST_TIMEOUT,
        // An Agent that was forgotten in a list must not lose what it has to say.
        Outcome::NotAllowed | Outcome::Overloaded | Outcome::Draining | Outcome::NoAddress => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Outcome::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        Outcome::UpstreamConnect
        | Outcome::UpstreamProxy
        | Outcome::UpstreamTls
        | Outcome::UpstreamProtocol
        | Outcome::Internal
        | Outcome::ClientAborted
        | Outcome::ClientTls
        | Outcome::ClientDistrust
        | Outcome::BelowPolicy
        | Outcome::HttpsRefused
        | Outcome::NoOrigin => StatusCode::BAD_GATEWAY,
    }
}

/// The outcome of a refused request and its reason.
pub(in crate::relay) fn refused(refusal: Refusal) -> (Outcome, &'static str) {
    match refusal {
        Refusal::Bad(reason) => (Outcome::BadRequest, reason),
        Refusal::Unsupported(reason) => (Outcome::Unsupported, reason),
        Refusal::Stranger => (
            Outcome::NotAllowed,
            "explicit.allowed_users or explicit.allowed_cgroups do not let this process use the port",
        ),
        Refusal::SelfTest => (Outcome::Ok, "the proxy answers"),
        Refusal::Https => (
            Outcome::HttpsRefused,
            "an Agent speaks HTTPS and intercept.https is refuse: let it speak http (its fips settings), or set \
             intercept.https to terminate",
        ),
        Refusal::Misdirected => (
            Outcome::Misdirected,
            "Host is not an intake name that this connection serves",
        ),
    }
}

/// The outcome of a violation.
pub(in crate::relay) fn violated(violation: Violation) -> Outcome {
    match violation {
        Violation::HeadTimeout | Violation::BodyTimeout => Outcome::ClientTimeout,
        Violation::Upgrade => Outcome::Unsupported,
        _ => Outcome::BadRequest,
    }
}

/// An answer of ours. Client faults close the connection; `message` must hold no secret.
pub(in crate::relay) fn response(outcome: Outcome, message: &str) -> Response<Download> {
    let mut body = Vec::with_capacity(message.len() + 1);
    body.extend_from_slice(message.as_bytes());
    body.push(b'\n');
    let mut response = Response::new(Download::Own(Some(Bytes::from(body))));
    let status = status(outcome);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(ERROR_HEADER, HeaderValue::from_static(outcome.label()));
    if status.is_client_error() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, RETRY_SECONDS);
    }
    response
}

/// The bytes of an answer of ours to an HTTP/1 client; `message` must hold no secret.
pub(super) fn bytes(outcome: Outcome, message: &str, asked: Asked) -> Vec<u8> {
    let status = status(outcome);
    let mut out = Vec::with_capacity(256 + message.len());
    let reason = status.canonical_reason().unwrap_or_default();
    rewrite::status_line(asked, status.as_u16(), reason, &mut out);
    // Writing into a vector cannot fail.
    let _ = write!(
        out,
        "Content-Type: text/plain\r\nContent-Length: {}\r\nX-Agent-FIPS-Proxy-Error: {}\r\n",
        message.len() + 1,
        outcome.label(),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        out.extend_from_slice(b"Retry-After: 1\r\n");
    }
    rewrite::end_of_head(Delimited::AsIs, asked, &mut out);
    if !asked.head {
        out.extend_from_slice(message.as_bytes());
        out.push(b'\n');
    }
    out
}

/// The bytes of an answer to a head that is refused.
pub(in crate::relay) fn refusal(violation: Violation) -> Vec<u8> {
    raw(violated(violation), violation.reason())
}

/// The bytes of an answer of ours, for when no HTTP server is at work.
pub(in crate::relay) fn raw(outcome: Outcome, reason: &str) -> Vec<u8> {
    let asked = Asked {
        head: false,
        http10: false,
        keep_alive: false,
    };
    bytes(outcome, reason, asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_server_is_well_formed() {
        let text = raw(Outcome::Overloaded, "limits.max_connections reached");
        let (head, body) = str::from_utf8(&text).unwrap().split_once("\r\n\r\n").unwrap();
        for line in [
            &format!("Content-Length: {}", body.len()),
            "Retry-After: 1",
            "Connection: close",
        ] {
            assert!(
                head.lines().any(|there| there.eq_ignore_ascii_case(line)),
                "{head}"
            );
        }
    }

    #[test]
    fn only_the_clients_own_faults_are_4xx() {
        for outcome in [
            Outcome::Overloaded,
            Outcome::Draining,
            Outcome::NoAddress,
            Outcome::UpstreamConnect,
            Outcome::UpstreamTls,
            Outcome::UpstreamProtocol,
            Outcome::UpstreamTimeout,
            Outcome::Internal,
        ] {
            assert!([502, 503, 504].contains(&status(outcome).as_u16()), "{outcome:?}");
        }
    }
}
