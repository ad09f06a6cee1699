//! What must never be told: keys and the like, taken out of everything that is logged or shown.
//!
//! Header values, queries and bodies are never recorded at all; this module guards the two texts that are: the path of
//! a request and the text of an error. [`Document`] does the same for whole texts that are handed to others, by stricter rules.

use std::borrow::Cow;

mod document;

pub use document::Document;

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// The shortest run of hexadecimal digits that is taken for a key: a Datadog API key has 32, an application key 40.
const KEY_LEN: usize = 32;

/// The path of a request target, fit to be recorded: without query and fragment, without the key of
/// `/v1/input/<key>` (the old log intake), without anything that looks like a key.
pub fn path(target: &str) -> String {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let lower_marker = find_ignore_case(path, "/v1/input/");
    if let Some(at) = lower_marker {
        let after = at + "/v1/input/".len();
        let rest = &path[after..];
        let key_end = rest.find('/').unwrap_or(rest.len());
        let key = if key_end == 0 { "" } else { REDACTED };
        return [&path[..after], key, &text(&rest[key_end..])].concat();
    }
    text(path).into_owned()
}

/// Any text with runs of 32 or more hexadecimal digits, and the values of `api_key=` and `application_key=`, replaced.
pub fn text(text: &str) -> Cow<'_, str> {
    let mut out: Option<String> = None;
    let mut copied = 0;
    let mut at = 0;
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let (start, end) = if let Some(start) = key_value_at(text, at) {
            (start, value_end(bytes, start))
        } else {
            let end = bytes[at..]
                .iter()
                .position(|b| !b.is_ascii_hexdigit())
                .map_or(bytes.len(), |n| at + n);
            (at, if end - at >= KEY_LEN { end } else { at })
        };
        if end > start {
            let out = out.get_or_insert_with(String::new);
            out.push_str(&text[copied..start]);
            out.push_str(REDACTED);
            copied = end;
            at = end;
        } else {
            // Skip the whole short run: its tail cannot begin a key either.
            let run = bytes[at..]
                .iter()
                .position(|b| !b.is_ascii_hexdigit())
                .unwrap_or(bytes.len() - at);
            at += run.max(1);
            // A key name may begin inside a run of hex digits (`a` of `api_key`): look again from there.
            if run > 0
                && let Some(back) = key_name_start(text, at, run)
            {
                at = back;
                let start = back + key_name_len(text, back);
                let end = value_end(bytes, start);
                let out = out.get_or_insert_with(String::new);
                out.push_str(&text[copied..start]);
                out.push_str(REDACTED);
                copied = end;
                at = end.max(at + 1);
            }
        }
    }
    match out {
        None => Cow::Borrowed(text),
        Some(mut out) => {
            out.push_str(&text[copied..]);
            Cow::Owned(out)
        }
    }
}

/// Names whose value is a secret wherever they stand.
const KEY_NAMES: [&str; 4] = ["api_key=", "application_key=", "app_key=", "dd-api-key="];

/// Where the value begins when a key's name stands at `at`.
fn key_value_at(text: &str, at: usize) -> Option<usize> {
    match key_name_len(text, at) {
        0 => None,
        len => Some(at + len),
    }
}

fn key_name_len(text: &str, at: usize) -> usize {
    let rest = &text.as_bytes()[at..];
    KEY_NAMES
        .iter()
        .find(|name| rest.len() >= name.len() && rest[..name.len()].eq_ignore_ascii_case(name.as_bytes()))
        .map_or(0, |name| name.len())
}

fn key_name_start(text: &str, end: usize, run: usize) -> Option<usize> {
    (end - run..end).find(|&at| key_name_len(text, at) > 0)
}

fn value_end(bytes: &[u8], start: usize) -> usize {
    bytes[start..]
        .iter()
        .position(|b| matches!(b, b'&' | b' ' | b'#' | b'"' | b'\'' | b';' | b',' | b'/'))
        .map_or(bytes.len(), |n| start + n)
}

fn find_ignore_case(text: &str, needle: &str) -> Option<usize> {
    text.as_bytes()
        .windows(needle.len())
        .position(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

/// The method as it may be shown: any token is a valid method, so an unknown one could be anything, a key among it.
pub fn method(method: &http::Method) -> http::Method {
    let known = [
        http::Method::GET,
        http::Method::HEAD,
        http::Method::POST,
        http::Method::PUT,
        http::Method::PATCH,
        http::Method::DELETE,
        http::Method::OPTIONS,
        http::Method::TRACE,
    ];
    if known.contains(method) {
        return method.clone();
    }
    // A constant that every HTTP library accepts as a method.
    http::Method::from_bytes(b"OTHER").unwrap_or(http::Method::GET)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn paths_lose_queries_and_keys() {
        for (target, expected) in [
            ("/api/v2/series", "/api/v2/series"),
            ("/api/v1/validate?api_key=secret", "/api/v1/validate"),
            ("/v1/input/anything-at-all", "/v1/input/[redacted]"),
            ("/V1/Input/anything/tail", "/V1/Input/[redacted]/tail"),
            ("/v1/input", "/v1/input"),
            ("/v1/input/", "/v1/input/"),
            ("/x/0123456789abcdef0123456789abcdef/y", "/x/[redacted]/y"),
            ("/x/0123456789ABCDEF0123456789abcdef01234567", "/x/[redacted]"),
            ("/x/0123456789abcdef", "/x/0123456789abcdef"),
            ("", ""),
        ] {
            assert_eq!(path(target), expected, "{target}");
        }
    }

    #[test]
    fn text_loses_keys_wherever_they_stand() {
        for (input, expected) in [
            ("nothing here", "nothing here"),
            (
                "GET /v?api_key=abc&x=1 failed",
                "GET /v?api_key=[redacted]&x=1 failed",
            ),
            ("bad API_KEY=abc", "bad API_KEY=[redacted]"),
            ("aapi_key=abc rest", "aapi_key=[redacted] rest"),
            ("application_key=q", "application_key=[redacted]"),
        ] {
            assert_eq!(text(input), expected, "{input}");
        }
        assert_eq!(text(&format!("a {KEY} b {KEY}cafe")), "a [redacted] b [redacted]");
        assert_eq!(text(&format!("é{KEY}é")), "é[redacted]é");
    }

    proptest::proptest! {
        #[test]
        fn property_no_key_survives_wherever_it_stands(before in "[a-z0-9/=&_ é]{0,40}", after in "[a-z0-9/=&_ é]{0,40}") {
            let all = format!("{before}{KEY}{after}");
            proptest::prop_assert!(!text(&all).contains(KEY), "{}", text(&all));
            proptest::prop_assert!(!path(&all).contains(KEY), "{}", path(&all));
            let named = format!("{before}api_key=zzsecretzz&{after}");
            proptest::prop_assert!(!text(&named).contains("zzsecretzz"), "{}", text(&named));
        }
    }

    #[test]
    fn a_method_that_is_none_is_not_shown() {
        assert_eq!(method(&http::Method::POST), http::Method::POST);
        let key = http::Method::from_bytes(b"0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(method(&key).as_str(), "OTHER");
    }
}
