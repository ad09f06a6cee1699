//! The strict reading of a request head that came by HTTP/2.
//!
//! hyper and h2 have refused what HTTP/2 itself does not allow (RFC 9113 section 8.2 and 8.3): connection headers, upper
//! case, control bytes, a body that is not as long as it says. What is left is what HTTP/1 on the way to the intake could
//! read in two ways.

use http::Method;
use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;

use super::head::MAX_HEADERS;
use crate::relay::decide::Refusal;

/// Checks it.
///
/// # Errors
/// What no Agent sends.
pub(super) fn check(parts: &Parts) -> Result<(), Refusal> {
    // An intake that reads methods without regard to case must not take it for one.
    if parts
        .method
        .as_str()
        .eq_ignore_ascii_case(Method::CONNECT.as_str())
    {
        return Err(Refusal::Unsupported("CONNECT is not served"));
    }
    if parts.uri.scheme_str().is_some_and(|scheme| scheme != "https") {
        return Err(Refusal::Bad("the scheme of a request within TLS is not https"));
    }
    let path = parts.uri.path();
    if path == "*" {
        return Err(Refusal::Bad("asterisk-form is not served"));
    }
    // Without it HTTP/1 would have an absolute or an authority form in its request line.
    if !path.starts_with('/') {
        return Err(Refusal::Bad("invalid :path"));
    }
    if parts.headers.len() > MAX_HEADERS {
        return Err(Refusal::Bad("more than 100 headers"));
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    if let Some(host) = hosts.next() {
        if hosts.next().is_some() {
            return Err(Refusal::Bad("more than one Host"));
        }
        let host = host.to_str().map_err(|_| Refusal::Bad("malformed Host"))?;
        if let Some(authority) = parts.uri.authority()
            && !authority.as_str().eq_ignore_ascii_case(host)
        {
            return Err(Refusal::Bad(":authority and Host name different hosts"));
        }
    }
    if parts.headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(Refusal::Bad("more than one Content-Length"));
    }
    Ok(())
}
