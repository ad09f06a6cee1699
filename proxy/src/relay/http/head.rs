//! The strict reading of an HTTP/1 request head, on its raw bytes.
//!
//! Most servers settle an ambiguous message silently (Transfer-Encoding wins over Content-Length, RFC 9112 section 6.3). The
//! next server on the way may settle it differently: that difference is request smuggling. So whatever two parsers could
//! read in two ways is refused here; no Agent sends any of it.

use memchr::memchr;

use super::outline::{Outline, Outliner};
pub(in crate::relay) use super::violation::Violation;

/// Headers of one message, in either direction. Agents send some fifteen.
pub(super) const MAX_HEADERS: usize = 100;
/// Methods are short; a longer token is not HTTP.
const MAX_METHOD: usize = 32;

/// How long the body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    #[default]
    None,
    /// Content-Length, not zero.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// What a good head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) struct Head<'a> {
    pub(super) method: &'a str,
    /// The request target as sent.
    pub(in crate::relay) target: &'a str,
    pub(super) framing: Framing,
    /// The Host header's value, when there is one.
    pub(in crate::relay) host: Option<&'a str>,
    /// HTTP/1.0.
    pub(super) http10: bool,
    /// The client means to keep the connection (RFC 9112 section 9.3).
    pub(super) keep_alive: bool,
    /// Its Connection header lists other headers, which are for us alone.
    pub(super) lists_headers: bool,
    /// It waits for `100 Continue` before it sends the body (RFC 9110 section 10.1.1).
    pub(super) expects_continue: bool,
    /// It has a Content-Length.
    pub(super) has_length: bool,
    /// It asks for another protocol (RFC 9110 section 7.8): not served, but no fault either.
    pub(super) upgrade: bool,
    /// Where all this stands.
    pub(in crate::relay) outline: Outline,
}

impl<'a> Head<'a> {
    /// The target's authority, if it is in absolute form, and its origin form (RFC 9112 section 3.2). A target without path
    /// means `/`: it is given as it stands then, empty or beginning with `?`.
    pub(in crate::relay) fn split_target(&self) -> (Option<&'a str>, &'a str) {
        match strip_scheme(self.target) {
            None => (None, self.target),
            Some(rest) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                (Some(authority), path)
            }
        }
    }
}

fn strip_scheme(target: &str) -> Option<&str> {
    target
        .split_at_checked("http://".len())
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http://"))
        .map(|(_, rest)| rest)
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
    while let Some(lf) = memchr(b'\n', &bytes[at..]).map(|n| at + n) {
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
///
/// # Errors
/// What no Agent sends and two servers could read in two ways.
pub(in crate::relay) fn check(head: &[u8]) -> Result<Head<'_>, Violation> {
    let mut lines = Lines::new(head);
    let line = lines.next().ok_or(Violation::RequestLine)?;
    let (method, target, http10) = request_line(line)?;
    let mut read = Head {
        method,
        target,
        framing: Framing::None,
        host: None,
        http10,
        keep_alive: !http10,
        lists_headers: false,
        expects_continue: false,
        has_length: false,
        upgrade: false,
        outline: Outline::default(),
    };
    let mut outliner = Outliner::new(line.len());
    let mut length = 0_u64;
    let (mut chunked, mut close) = (false, false);
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
        outliner.header(line, name, value);
        // By length first: most names are none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let text = str::from_utf8(value).map_err(|_| Violation::HeaderValue)?;
                if read.host.replace(text).is_some() {
                    return Err(Violation::DuplicateHost);
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                read.expects_continue = !http10 && value.eq_ignore_ascii_case(b"100-continue");
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => read.upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                let said = Connection::of(value);
                close |= said.close;
                read.keep_alive |= said.keep_alive;
                read.lists_headers |= said.lists_headers;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                length = content_length(value)?;
                if std::mem::replace(&mut read.has_length, true) {
                    return Err(Violation::DuplicateContentLength);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::TransferEncoding);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    read.keep_alive &= !close;
    read.framing = match (chunked, length) {
        (true, _) if read.has_length => return Err(Violation::BothFramings),
        (true, _) if http10 => return Err(Violation::TransferEncodingOn10),
        (true, _) => Framing::Chunked,
        (false, 0) => Framing::None,
        (false, length) => Framing::Length(length),
    };
    if read.host.is_none() && !http10 {
        return Err(Violation::NoHost);
    }
    read.outline = outliner.finish(&read);
    Ok(read)
}

/// What a Connection header says (RFC 9110 section 7.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    /// Something else stands in it: the name of a header that is for the next hop alone.
    pub(super) lists_headers: bool,
}

impl Connection {
    pub(super) fn of(value: &[u8]) -> Self {
        let mut said = Self::default();
        for option in options(value) {
            if option.eq_ignore_ascii_case(b"close") {
                said.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                said.keep_alive = true;
            } else {
                said.lists_headers = true;
            }
        }
        said
    }
}

/// The members of a comma-separated list.
pub(super) fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&b| b == b',')
        .map(trim)
        .filter(|option| !option.is_empty())
}

/// The headers of a head that was checked, in order, as they were sent; values without the white space around them.
pub(super) fn headers(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    Lines::new(head)
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let colon = memchr(b':', line)?;
            Some((&line[..colon], trim(&line[colon + 1..])))
        })
}

/// Lines ended by CRLF; the line is given without it.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    fn new(head: &'a [u8]) -> Self {
        Self { rest: head }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let lf = memchr(b'\n', self.rest)?;
        let line = self.rest.get(..lf.checked_sub(1)?)?;
        self.rest = &self.rest[lf + 1..];
        Some(line)
    }
}

/// `METHOD SP target SP HTTP/1.x`: exactly two spaces. Gives method, target and whether the version is 1.0.
fn request_line(line: &[u8]) -> Result<(&str, &str, bool), Violation> {
    if memchr(b'\r', line).is_some() {
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
    let method = str::from_utf8(method).map_err(|_| Violation::Method)?;
    let target = request_target(target)?;
    Ok((method, target, http10))
}

fn request_target(target: &[u8]) -> Result<&str, Violation> {
    if target == b"*" {
        return Err(Violation::Asterisk);
    }
    let text = str::from_utf8(target).map_err(|_| Violation::Target)?;
    if !text.starts_with('/') && strip_scheme(text).is_none() {
        return Err(Violation::Target);
    }
    // Visible ASCII. A fragment is never sent, and some servers cut it off silently. Of what must be percent-encoded (RFC
    // 3986) the URL standard's own parsers let through what JSON in a path or a query needs, and no more.
    let mut refused: &[u8] = b"<>`";
    for &byte in target {
        if !(0x21..=0x7e).contains(&byte) || byte == b'#' || refused.contains(&byte) {
            return Err(Violation::Target);
        }
        if byte == b'?' {
            refused = b"<>\"";
        }
    }
    Ok(text)
}

fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(Violation::ObsFold);
    }
    let colon = memchr(b':', line).ok_or(Violation::HeaderName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err(Violation::SpaceBeforeColon);
    }
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Violation::HeaderName);
    }
    // Branch-free, so that it is done many bytes at a time; which byte it was matters only when there is one.
    let control = |byte: u8| (byte < 0x20 && byte != b'\t') || byte == 0x7f;
    if value.iter().fold(false, |found, &byte| found | control(byte)) {
        return Err(match value.iter().find(|&&byte| control(byte)) {
            Some(b'\r') => Violation::BareCr,
            _ => Violation::ControlByte,
        });
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
pub(super) fn content_length(value: &[u8]) -> Result<u64, Violation> {
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
    TOKEN[usize::from(byte)]
}

/// Looked up and not compared: it is asked for every byte of every name.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        table[byte as usize] = is_tchar(byte);
        byte += 1;
    }
    table
};

const fn is_tchar(byte: u8) -> bool {
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
