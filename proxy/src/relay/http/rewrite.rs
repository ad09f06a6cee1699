//! What is changed on the way: hop-by-hop headers and Host, nothing else.

use std::io::Write;

use http::StatusCode;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TE};

use super::head::{self, Framing, options};
use super::outline::Outline;
use super::reply::{Asked, Delimited, Lines};

/// Their values are marked sensitive: `Debug` hides them, and HTTP/2 never puts them into its compression table.
const SECRETS: [HeaderName; 5] = [
    HeaderName::from_static("dd-api-key"),
    HeaderName::from_static("dd-application-key"),
    HeaderName::from_static("dd-par-jwt"),
    http::header::AUTHORIZATION,
    http::header::COOKIE,
];

/// Headers that end here (RFC 9110 section 7.6.1), and what is written anew: Host and the framing.
///
/// `Expect` too: whoever relays the body answers `100 Continue` when the intake's connection is there. Trailers are not
/// forwarded in HTTP/1 (RFC 9110 section 6.5.1), so `Trailer` goes; those of HTTP/2 need no announcement.
pub(super) fn ends_here(name: &[u8]) -> bool {
    let known: &[&str] = match name.len() {
        2 => &["te"],
        6 => &["expect"],
        7 => &["trailer", "upgrade"],
        10 => &["connection", "keep-alive"],
        16 => &["proxy-connection"],
        17 => &["transfer-encoding"],
        18 => &["proxy-authenticate"],
        19 => &["proxy-authorization"],
        _ => return false,
    };
    known
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// True when one of the `Connection` headers among `headers` lists `name`. A message must not lose its framing or its
/// destination because someone lists them there.
fn is_listed<'a>(name: &[u8], headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
    !name.eq_ignore_ascii_case(b"content-length")
        && headers
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"))
            .flat_map(|(_, value)| options(value))
            .any(|option| option.eq_ignore_ascii_case(name))
}

/// Writes one header.
pub(super) fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes the head for an HTTP/1.1 intake of that `host` name. `outline` is what [`head::check`] gave for `bytes`.
pub(super) fn request_head(bytes: &[u8], outline: &Outline, host: &[u8], out: &mut Vec<u8>) {
    let (method, path) = (outline.method(bytes), outline.path(bytes));
    out.reserve(bytes.len() + host.len() + 64);
    out.extend_from_slice(method);
    // An absolute target without path means the root.
    out.extend_from_slice(if path.starts_with(b"/") { b" " } else { b" /" });
    out.extend_from_slice(path);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    put(out, b"Host", host);
    match outline.pieces(bytes) {
        Some(pieces) => pieces.for_each(|piece| out.extend_from_slice(piece)),
        None => request_headers(bytes, outline.lists_headers, out),
    }
    match outline.framing {
        Framing::Chunked => put(out, b"Transfer-Encoding", b"chunked"),
        // Some servers want to be told that a body is empty (RFC 9110 section 8.6).
        Framing::None if !outline.has_length && matches!(method, b"POST" | b"PUT" | b"PATCH") => {
            put(out, b"Content-Length", b"0");
        }
        Framing::None | Framing::Length(_) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the headers of a request one by one.
fn request_headers(bytes: &[u8], lists: bool, out: &mut Vec<u8>) {
    for (name, value) in head::headers(bytes) {
        let dropped = ends_here(name)
            || (name.len() == 4 && name.eq_ignore_ascii_case(b"host"))
            || (lists && is_listed(name, head::headers(bytes)));
        if !dropped {
            put(out, name, value);
        }
    }
}

/// Writes the head for an HTTP/1 client.
pub(super) fn response_head(
    response: &httparse::Response<'_, '_>,
    lines: Lines,
    delimited: Delimited,
    asked: Asked,
    out: &mut Vec<u8>,
) {
    let headers = || {
        response
            .headers
            .iter()
            .map(|header| (header.name.as_bytes(), header.value))
    };
    status_line(
        asked,
        response.code.unwrap_or_default(),
        response.reason.unwrap_or_default(),
        out,
    );
    let mut no_length = lines.drop_length;
    for (name, value) in headers() {
        let is_length = name.len() == 14 && name.eq_ignore_ascii_case(b"content-length");
        // Two that say the same are one.
        let dropped = (is_length && std::mem::replace(&mut no_length, true))
            || ends_here(name)
            || (lines.lists_headers && is_listed(name, headers()));
        if !dropped {
            put(out, name, value);
        }
    }
    end_of_head(delimited, asked, out);
}

/// Writes the beginning of a head for an HTTP/1 client.
pub(super) fn status_line(asked: Asked, code: u16, reason: &str, out: &mut Vec<u8>) {
    let version = if asked.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    // Writing into a vector cannot fail.
    let _ = write!(out, "{version} {code} {reason}\r\n");
}

/// Writes what we say of the connection, and the end of the head.
pub(super) fn end_of_head(delimited: Delimited, asked: Asked, out: &mut Vec<u8>) {
    if delimited == Delimited::Chunked {
        put(out, b"Transfer-Encoding", b"chunked");
    }
    if !asked.keep_alive || delimited == Delimited::Close {
        put(out, b"Connection", b"close");
    } else if asked.http10 {
        put(out, b"Connection", b"keep-alive");
    }
    out.extend_from_slice(b"\r\n");
}

/// Makes the headers of a request that goes by hyper fit for the intake. Host is set by whoever sends it.
///
/// True when the client says that it takes trailers, which is per hop: an HTTP/2 intake is told the same.
pub(super) fn request(headers: &mut HeaderMap) -> bool {
    let trailers = headers
        .get(TE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    hop_by_hop(headers);
    headers.remove(HOST);
    for name in &SECRETS {
        if let http::header::Entry::Occupied(mut entry) = headers.entry(name) {
            for value in entry.iter_mut() {
                value.set_sensitive(true);
            }
        }
    }
    trailers
}

/// Makes the headers of an answer that came by hyper fit for the client.
pub(super) fn response(status: StatusCode, headers: &mut HeaderMap) {
    hop_by_hop(headers);
    if status == StatusCode::NO_CONTENT {
        // It has no content to have a length of (RFC 9110 section 8.6).
        headers.remove(CONTENT_LENGTH);
    }
}

fn hop_by_hop(headers: &mut HeaderMap) {
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let all = headers
                .iter()
                .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
            let name = name.as_str().as_bytes();
            ends_here(name) || (name != b"host" && headers.contains_key(CONNECTION) && is_listed(name, all))
        })
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_what_belongs_to_one_hop_is_taken_away() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "localhost:9804"),
            ("connection", "keep-alive, X-Private , content-length"),
            ("connection", "x-other"),
            ("x-private", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "secret"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("expect", "100-continue"),
            ("content-length", "5"),
            ("content-encoding", "zstd1"),
            ("dd-api-key", "abc"),
        ] {
            headers.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_static(value),
            );
        }
        assert!(request(&mut headers));
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        assert_eq!(headers["content-encoding"], "zstd1");
        assert_eq!(headers["content-length"], "5");
        assert!(headers["dd-api-key"].is_sensitive());
        assert!(!format!("{headers:?}").contains("abc"));
    }
}
