//! What is changed on the way: hop-by-hop headers and Host, nothing else.

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Their values are marked sensitive: `Debug` hides them, and HTTP/2 never puts them into its compression table.
const SECRETS: [HeaderName; 5] = [
    HeaderName::from_static("dd-api-key"),
    HeaderName::from_static("dd-application-key"),
    HeaderName::from_static("dd-par-jwt"),
    http::header::AUTHORIZATION,
    http::header::COOKIE,
];

/// Makes a client's headers fit for the intake. Host is set by whoever sends the request.
///
/// `Expect` is taken away: hyper answers `100 Continue` itself when the body is first asked for, which is when a
/// connection to the intake is there. Trailers are not forwarded (RFC 9110 section 6.5.1), so `Trailer` goes too;
/// those of HTTP/2 need no announcement.
///
/// True when the client says that it takes trailers, which is per hop: an HTTP/2 intake is told the same.
pub(super) fn request(headers: &mut HeaderMap) -> bool {
    let trailers = headers
        .get(TE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    hop_by_hop(headers);
    headers.remove(HOST);
    headers.remove(EXPECT);
    for name in &SECRETS {
        if let http::header::Entry::Occupied(mut entry) = headers.entry(name) {
            for value in entry.iter_mut() {
                value.set_sensitive(true);
            }
        }
    }
    trailers
}

/// Makes the intake's headers fit for the client.
pub(super) fn response(headers: &mut HeaderMap) {
    hop_by_hop(headers);
}

/// RFC 9110 section 7.6.1.
fn hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|token| token.trim().parse().ok())
            // A message must not lose its framing or its destination because someone lists them here.
            .filter(|name| *name != CONTENT_LENGTH && *name != HOST)
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
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
