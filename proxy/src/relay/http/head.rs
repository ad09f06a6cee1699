//! The strict reading of a request head, on its raw bytes, before hyper sees one of them.
//!
//! hyper, like most servers, settles an ambiguous message silently (Transfer-Encoding wins over Content-Length, RFC 9112
//! section 6.3). The next server on the way may settle it differently: that difference is request smuggling. So whatever
//! two parsers could read in two ways is refused here; no Agent sends any of it.

use std::fmt;

/// hyper's own bound on the number of headers; beyond it hyper would answer 431.
pub(super) const MAX_HEADERS: usize = 100;
/// Methods are short; a longer token is not HTTP.
const MAX_METHOD: usize = 32;

/// Why a request was refused. The set is closed; the text is safe to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum Violation {
    BareLf,
    BareCr,
    ControlByte,
    RequestLine,
    Method,
    Connect,
    Target,
    Asterisk,
    Version,
    HeadTooLarge,
    TooManyHeaders,
    ObsFold,
    HeaderName,
    SpaceBeforeColon,
    HeaderValue,
    NoHost,
    DuplicateHost,
    ContentLength,
    DuplicateContentLength,
    TransferEncoding,
    BothFramings,
    TransferEncodingOn10,
    Upgrade,
    Chunk,
    ChunkTooLong,
    HeadTimeout,
    BodyTimeout,
}

impl Violation {
    /// For the client and the record.
    pub(in crate::relay) fn reason(self) -> &'static str {
        match self {
            Self::BareLf => "a line ends with a bare LF",
            Self::BareCr => "a CR stands without its LF",
            Self::ControlByte => "a control byte in the request head",
            Self::RequestLine => "malformed request line",
            Self::Method => "invalid method",
            Self::Connect => "CONNECT is not served",
            Self::Target => "invalid request target",
            Self::Asterisk => "asterisk-form is not served",
            Self::Version => "only HTTP/1.0 and HTTP/1.1 are served",
            Self::HeadTooLarge => "the request head is longer than limits.max_header_bytes",
            Self::TooManyHeaders => "more than 100 headers",
            Self::ObsFold => "obsolete line folding",
            Self::HeaderName => "invalid header name",
            Self::SpaceBeforeColon => "white space before the colon of a header",
            Self::HeaderValue => "invalid byte in a header value",
            Self::NoHost => "no Host",
            Self::DuplicateHost => "more than one Host",
            Self::ContentLength => "invalid Content-Length",
            Self::DuplicateContentLength => "more than one Content-Length",
            Self::TransferEncoding => "Transfer-Encoding other than chunked",
            Self::BothFramings => "Transfer-Encoding together with Content-Length",
            Self::TransferEncodingOn10 => "Transfer-Encoding on HTTP/1.0",
            Self::Upgrade => "Upgrade is not served",
            Self::Chunk => "malformed chunked body",
            Self::ChunkTooLong => "chunk extensions or trailers are too long",
            Self::HeadTimeout => "the request head was not complete within limits.header_timeout",
            Self::BodyTimeout => "the request body made no progress within limits.idle_timeout",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Violation {}

/// How long the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    None,
    /// Content-Length, not zero.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// What the head says that matters before hyper parses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) struct Head<'a> {
    pub(super) framing: Framing,
    /// The Host header's value, when there is one.
    pub(in crate::relay) host: Option<&'a str>,
    /// The request target as sent.
    pub(in crate::relay) target: &'a str,
    /// It asks for another protocol (RFC 9110 section 7.8): not served, but no fault either.
    pub(super) upgrade: bool,
}

/// Finds the end of the head that begins at `bytes[0]`: the index behind its empty line. The first `seen` bytes were
/// looked at before.
///
/// # Errors
/// What can be told before the head is complete: a bare LF, or a first byte no method begins with.
pub(in crate::relay) fn find_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Violation> {
    if bytes.first().is_some_and(|&first| !is_token(first)) {
        return Err(Violation::Method);
    }
    let mut at = seen;
    while let Some(lf) = bytes[at..].iter().position(|&b| b == b'\n').map(|n| at + n) {
        if lf == 0 || bytes[lf - 1] != b'\r' {
            return Err(Violation::BareLf);
        }
        if lf >= 3 && bytes[lf - 2] == b'\n' {
            return Ok(Some(lf + 1));
        }
        at = lf + 1;
    }
    Ok(None)
}

/// Checks a complete head, empty line included.
pub(in crate::relay) fn check(head: &[u8]) -> Result<Head<'_>, Violation> {
    let mut lines = Lines { rest: head };
    let line = lines.next().ok_or(Violation::RequestLine)?;
    let (target, http10) = request_line(line)?;

    let mut host = None;
    let mut length: Option<u64> = None;
    let (mut chunked, mut upgrade) = (false, false);
    let mut count = 0_usize;
    for line in lines {
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > MAX_HEADERS {
            return Err(Violation::TooManyHeaders);
        }
        let (name, value) = header(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            let text = str::from_utf8(value).map_err(|_| Violation::HeaderValue)?;
            if host.replace(text).is_some() {
                return Err(Violation::DuplicateHost);
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if length.replace(content_length(value)?).is_some() {
                return Err(Violation::DuplicateContentLength);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::TransferEncoding);
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        }
    }

    let framing = match (chunked, length) {
        (true, Some(_)) => return Err(Violation::BothFramings),
        (true, None) if http10 => return Err(Violation::TransferEncodingOn10),
        (true, None) => Framing::Chunked,
        (false, None | Some(0)) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
    };
    if host.is_none() && !http10 {
        return Err(Violation::NoHost);
    }
    Ok(Head {
        framing,
        host,
        target,
        upgrade,
    })
}

/// Lines ended by CRLF; the line is given without it.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let lf = self.rest.iter().position(|&b| b == b'\n')?;
        let line = self.rest.get(..lf.checked_sub(1)?)?;
        self.rest = &self.rest[lf + 1..];
        Some(line)
    }
}

/// `METHOD SP target SP HTTP/1.x`: exactly two spaces. Gives the target and whether the version is 1.0.
fn request_line(line: &[u8]) -> Result<(&str, bool), Violation> {
    if line.contains(&b'\r') {
        return Err(Violation::BareCr);
    }
    let mut parts = line.split(|&b| b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    if method.is_empty() || method.len() > MAX_METHOD || !method.iter().copied().all(is_token) {
        return Err(Violation::Method);
    }
    if method.eq_ignore_ascii_case(b"CONNECT") {
        return Err(Violation::Connect);
    }
    let http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Violation::Version),
    };
    // RFC 3986: visible ASCII, and a fragment is never sent. `http` would cut it off silently.
    if target.is_empty() || !target.iter().all(|&b| (0x21..=0x7e).contains(&b) && b != b'#') {
        return Err(Violation::Target);
    }
    if target == b"*" {
        return Err(Violation::Asterisk);
    }
    let target = str::from_utf8(target).map_err(|_| Violation::Target)?;
    let absolute = target
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    if !target.starts_with('/') && !absolute {
        return Err(Violation::Target);
    }
    Ok((target, http10))
}

fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(Violation::ObsFold);
    }
    let colon = line
        .iter()
        .position(|&b| b == b':')
        .ok_or(Violation::HeaderName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err(Violation::SpaceBeforeColon);
    }
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Violation::HeaderName);
    }
    for &byte in value {
        match byte {
            b'\r' => return Err(Violation::BareCr),
            b'\t' | 0x20..=0x7e | 0x80..=0xff => {}
            _ => return Err(Violation::ControlByte),
        }
    }
    Ok((name, trim(value)))
}

/// Optional white space is SP and HTAB only (RFC 9110 section 5.6.3), not what Rust calls ASCII white space.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Digits only, and small enough for every implementation's signed 64 bit.
fn content_length(value: &[u8]) -> Result<u64, Violation> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Violation::ContentLength);
    }
    let length = value
        .iter()
        .fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    if i64::try_from(length).is_err() {
        return Err(Violation::ContentLength);
    }
    Ok(length)
}

/// `tchar` of RFC 9110 section 5.6.2.
pub(in crate::relay) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_agents_send() {
        let head = b"POST /api/v2/series?x=1 HTTP/1.1\r\nHost: localhost:9804\r\nContent-Encoding: zstd1\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(find_end(head, 0), Ok(Some(head.len())));
        let read = check(head).unwrap();
        assert_eq!(read.framing, Framing::Length(5));
        assert_eq!(
            (read.host, read.target),
            (Some("localhost:9804"), "/api/v2/series?x=1")
        );
    }

    #[test]
    fn the_end_is_found_however_the_bytes_arrive() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for seen in 0..head.len() {
            assert_eq!(find_end(&head[..seen], 0), Ok(None), "{seen}");
            assert_eq!(
                find_end(head, seen.saturating_sub(1)),
                Ok(Some(head.len())),
                "{seen}"
            );
        }
    }

    #[test]
    fn the_largest_content_length_is_a_signed_64_bit_number() {
        assert_eq!(
            content_length(b"9223372036854775807"),
            Ok(9_223_372_036_854_775_807)
        );
        assert_eq!(
            content_length(b"9223372036854775808"),
            Err(Violation::ContentLength)
        );
        assert_eq!(
            content_length(b"99999999999999999999"),
            Err(Violation::ContentLength)
        );
    }
}
