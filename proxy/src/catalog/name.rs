//! Host names: how they are compared, what a sound one looks like, and the patterns of the table.

use std::borrow::Cow;

/// A host name as it is compared: lower case, at most one trailing dot removed.
pub fn normalise(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The same of a name that mostly is as it should be.
pub(super) fn normalised(name: &str) -> Cow<'_, str> {
    if name.ends_with('.') || name.bytes().any(|b| b.is_ascii_uppercase()) {
        normalise(name).into()
    } else {
        name.into()
    }
}

/// True for a syntactically valid DNS name of letters, digits, hyphens and underscores (RFC 1035 sizes).
pub fn is_dns_name(name: &str) -> bool {
    // One pass: every request asks.
    let (mut label, mut last) = (0, b'.');
    for byte in name.bytes() {
        match byte {
            b'.' if label == 0 || last == b'-' => return false,
            b'.' => label = 0,
            b'-' if label == 0 => return false,
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => label += 1,
            _ => return false,
        }
        if label > 63 {
            return false;
        }
        last = byte;
    }
    label > 0 && last != b'-' && name.len() <= 253
}

/// True for a host of the table that stands for many names. It cannot be resolved as it stands.
pub(super) fn is_pattern(host: &str) -> bool {
    host.starts_with('*')
}

/// Whether a pattern covers a name, or the part of it before the site: a leading `*` stands for any non-empty text within the
/// first label. What is no pattern covers nothing here.
pub fn covers(pattern: &str, prefix: &str) -> bool {
    pattern
        .strip_prefix('*')
        .and_then(|rest| prefix.strip_suffix(rest))
        .is_some_and(|wild| !wild.is_empty() && !wild.contains('.'))
}
