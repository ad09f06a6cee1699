//! Secrets that are known by where they stand: PEM blocks, URLs, credentials of HTTP, paths.

use super::super::REDACTED;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const KEY: &str = "PRIVATE KEY-----";
/// Lines of such a body: RSA of 16384 bits, the longest that tools make, has two hundred.
const LONGEST: usize = 256;

/// `text` without private keys in PEM, also where the text begins or ends in the middle of one, and where line ends are written `\n`.
pub(super) fn without_private_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let begin = header(rest, BEGIN);
        let end = header(rest, END);
        match (begin, end) {
            (None, None) => break,
            // It began before this text.
            (begin, Some(end)) if begin.is_none_or(|begin| end.0 < begin.0) => {
                out.push_str(&rest[..before_body(&rest[..end.0])]);
                out.push_str(REDACTED);
                rest = &rest[end.1..];
            }
            (Some(begin), _) => {
                out.push_str(&rest[..begin.0]);
                out.push_str(REDACTED);
                let body = &rest[begin.1..];
                match header(body, END) {
                    Some(end) => rest = &body[end.1..],
                    None => rest = "",
                }
            }
            (None, Some(_)) => break,
        }
    }
    out.push_str(rest);
    out
}

/// Where such a line of a private key begins and ends.
fn header(text: &str, word: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let start = from + text[from..].find(word)?;
        let kind = start + word.len();
        let line = text[kind..]
            .find(['\n', '\\'])
            .map_or(text.len(), |end| kind + end);
        if let Some(at) = text[kind..line].find(KEY) {
            return Some((start, kind + at + KEY.len()));
        }
        from = kind;
    }
}

/// Where the body may begin of which this is the end: each line of it may have a time before it, as in a log.
fn before_body(text: &str) -> usize {
    let lines = text.rmatch_indices('\n').take(LONGEST + 1);
    match lines.last() {
        Some((at, _)) if text.matches('\n').count() > LONGEST => at + 1,
        _ => 0,
    }
}

/// `text` without what stands before the `@` of a URL, in `user:password@host`, or behind the scheme of an Authorization header.
pub(super) fn without_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut scheme = false;
    for piece in text.split_inclusive(is_gap) {
        let word = piece.strip_suffix(is_gap).unwrap_or(piece);
        let gap = &piece[word.len()..];
        if word.is_empty() {
            out.push_str(gap);
            // `Authorization: "Bearer  x"`: gaps do not part them; the end of a line does.
            scheme &= gap != "\n";
            continue;
        }
        if scheme && word.len() >= SHORTEST_TOKEN {
            out.push_str(REDACTED);
        } else {
            out.push_str(&userinfo(word));
        }
        scheme = SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme));
        out.push_str(gap);
    }
    out
}

/// Of HTTP's authentication (RFC 9110 section 11).
const SCHEMES: [&str; 5] = ["bearer", "basic", "digest", "negotiate", "ntlm"];
/// A word that follows one of them in prose is mostly shorter.
const SHORTEST_TOKEN: usize = 6;

/// What ends a word: a URL has none of it.
fn is_gap(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`')
}

fn userinfo(word: &str) -> String {
    let start = word.find("://").map(|at| at + 3);
    let begin = start.unwrap_or(0);
    let Some(at) = word.rfind('@').filter(|at| *at > begin) else {
        return word.to_owned();
    };
    let user = &word[begin..at];
    let authority = user.find(['/', '?', '#']).unwrap_or(user.len());
    // `host:80/x@y` has none: what follows the colon is a port.
    let port = user[..authority].split_once(':').is_some_and(|(_, port)| {
        authority < user.len() && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
    });
    let path = authority < user.len() && (!user[..authority].contains(':') || port);
    let secret = match start {
        Some(_) => !path,
        // An address for mail has no colon.
        None => user[..authority].contains(':') && !path,
    };
    if secret {
        [&word[..begin], REDACTED, &word[at..]].concat()
    } else {
        word.to_owned()
    }
}

/// The old log intake's paths, with the key in them; percent-encoded, too.
const PATHS: [(&str, bool); 3] = [
    ("/v1/input/", false),
    ("%2fv1%2finput%2f", true),
    ("\\/v1\\/input\\/", false),
];

/// `text` without keys in paths.
pub(super) fn without_keys_in_paths(text: &str) -> String {
    let mut text = text.to_owned();
    for (marker, encoded) in PATHS {
        // As long as the text: only letters of ASCII change.
        let lower = text.to_ascii_lowercase();
        let mut out = String::with_capacity(text.len());
        let mut copied = 0;
        for (at, _) in lower.match_indices(marker) {
            let start = at + marker.len();
            let end = text[start..]
                .find(|c: char| {
                    is_gap(c)
                        || matches!(c, '/' | '?' | '#' | '&' | '\\' | ',' | ';' | ')')
                        || (encoded && c == '%')
                })
                .map_or(text.len(), |end| start + end);
            if end > start && start >= copied {
                out.push_str(&text[copied..start]);
                out.push_str(REDACTED);
                copied = end;
            }
        }
        out.push_str(&text[copied..]);
        text = out;
    }
    text
}
