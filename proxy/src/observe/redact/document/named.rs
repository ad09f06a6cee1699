//! Values behind a telling name: `api_key: x`, `DD_API_KEY=x`, `"password":"x"`, `Authorization: x`, `token%3Dx`.

use super::super::REDACTED;

/// What is in the name of a secret; `-`, `.` and blanks count as `_`, case does not count.
const TELLING: &[&str] = &[
    "api_key",
    "apikey",
    "app_key",
    "appkey",
    "application_key",
    "access_key",
    "private_key",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "cookie",
];
/// Names of files that hold secrets are none: their paths are what a reader needs.
const PATHS: &[&str] = &["_file", "_path", "_dir", "_command"];
/// Longer than any name.
const LONGEST_NAME: usize = 128;

/// True for the name of a secret.
pub(super) fn is_telling(name: &str) -> bool {
    let name: String = name
        .chars()
        .map(|c| match c {
            '-' | '.' | ' ' => '_',
            other => other.to_ascii_lowercase(),
        })
        .collect();
    TELLING.iter().any(|part| name.contains(part)) && !PATHS.iter().any(|end| name.ends_with(end))
}

/// `text` with the value behind each telling name replaced. A name with nothing behind it, or with the sign of a block, takes the lines
/// below it that are further in, or items of a list.
pub(super) fn without_values(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // How far in the name is whose block this is.
    let mut block: Option<usize> = None;
    for line in text.split_inclusive('\n') {
        let body = line.trim_end_matches(['\n', '\r']);
        let end = &line[body.len()..];
        let inner = body.trim_start();
        let indent = body.len() - inner.len();
        if let Some(own) = block {
            let item = inner.starts_with("- ") && indent >= own;
            if inner.is_empty() || indent > own || item {
                if !inner.is_empty() {
                    out.push_str(&body[..indent]);
                    out.push_str(REDACTED);
                }
                out.push_str(end);
                continue;
            }
            block = None;
        }
        if one_line(body, &mut out) {
            block = Some(indent);
        }
        out.push_str(end);
    }
    out
}

/// One line; true when the value of its name is below it.
fn one_line(line: &str, out: &mut String) -> bool {
    let mut at = 0;
    let mut copied = 0;
    while let Some(found) = next_name(line, at) {
        let value = &line[found.value..];
        let (skip, len) = match extent(value, &found) {
            Extent::Below => {
                return {
                    out.push_str(&line[copied..]);
                    true
                };
            }
            Extent::Value { skip, len } => (skip, len),
        };
        let start = found.value + skip;
        if len > 0 {
            out.push_str(&line[copied..start]);
            out.push_str(REDACTED);
            copied = start + len;
        }
        at = (start + len).max(found.value);
    }
    out.push_str(&line[copied..]);
    false
}

/// A telling name with its sign behind it.
struct Name {
    /// Where its value may begin.
    value: usize,
    /// `:` and not `=`.
    colon: bool,
    /// It is the first word of its line: all of the line is its value.
    first: bool,
}

fn next_name(line: &str, from: usize) -> Option<Name> {
    let mut at = from;
    loop {
        let (sign, len, colon) = next_sign(line, at)?;
        let before = line[from.min(sign)..sign].trim_end_matches([' ', '\t', '"', '\'', '\\', ']']);
        let start = before
            .char_indices()
            .rev()
            .take(LONGEST_NAME)
            .take_while(|(_, c)| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
            .last()
            .map_or(before.len(), |(start, _)| start);
        if is_telling(&before[start..]) {
            let lead = line[..from.min(sign) + start].trim_start_matches("export ");
            return Some(Name {
                value: sign + len,
                colon,
                first: lead
                    .trim_matches(['-', ' ', '\t', '"', '\'', '#', '>', '<'])
                    .is_empty(),
            });
        }
        at = sign + len;
    }
}

/// The next `:`, `=`, or one of them percent-encoded: where, how long, whether it is a colon.
fn next_sign(line: &str, from: usize) -> Option<(usize, usize, bool)> {
    let bytes = line.as_bytes();
    (from..bytes.len()).find_map(|at| match bytes[at] {
        b':' => Some((at, 1, true)),
        b'=' => Some((at, 1, false)),
        b'%' => match bytes.get(at + 1..at + 3)? {
            [b'3', b'd' | b'D'] => Some((at, 3, false)),
            [b'3', b'a' | b'A'] => Some((at, 3, false)),
            _ => None,
        },
        _ => None,
    })
}

enum Extent {
    /// So many bytes after so many others.
    Value { skip: usize, len: usize },
    /// On the lines below.
    Below,
}

fn extent(value: &str, name: &Name) -> Extent {
    let trimmed = value.trim_start_matches([' ', '\t']);
    let blank = value.len() - trimmed.len();
    let sign = trimmed.split_whitespace().next().unwrap_or_default();
    let block = sign.starts_with(['|', '>'])
        && sign
            .trim_start_matches(['|', '>', '+', '-'])
            .chars()
            .all(|c| c.is_ascii_digit());
    if name.colon && name.first && (trimmed.is_empty() || trimmed.starts_with('#') || block) {
        return Extent::Below;
    }
    // A quote, or one within a text that is quoted itself.
    let slashes = trimmed.len() - trimmed.trim_start_matches('\\').len();
    if let Some(quote @ ('"' | '\'')) = trimmed[slashes..].chars().next() {
        let skip = slashes + 1;
        return Extent::Value {
            skip: blank + skip,
            len: quoted(&trimmed[skip..], quote, slashes),
        };
    }
    // Another sign: `token::x`, `==`.
    if name.colon && trimmed.starts_with(':') {
        return Extent::Value { skip: 0, len: 0 };
    }
    let len = if name.colon || name.first {
        trimmed.trim_end().len()
    } else {
        trimmed
            .find(|c: char| {
                c.is_whitespace() || matches!(c, '&' | '"' | '\'' | '<' | '>' | '\\' | ')' | ']' | '}')
            })
            .unwrap_or(trimmed.len())
    };
    Extent::Value { skip: blank, len }
}

/// Up to the quote that closes it, which has as many backslashes before it as the one that opened it; without one, all.
fn quoted(text: &str, quote: char, slashes: usize) -> usize {
    let mut run = 0;
    for (at, c) in text.char_indices() {
        match c {
            '\\' => run += 1,
            _ if c == quote && run == slashes => return at - run,
            _ => run = 0,
        }
    }
    text.len()
}
