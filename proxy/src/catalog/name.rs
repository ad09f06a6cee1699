//! Host names: how they are compared, what a sound one looks like, and the patterns of the table.

/// A host name as it is compared: lower case, at most one trailing dot removed.
pub fn normalise(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// True for a syntactically valid DNS name of letters, digits, hyphens and underscores (RFC 1035 sizes).
pub fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
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
