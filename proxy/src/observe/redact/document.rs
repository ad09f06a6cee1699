//! Whole texts that are shown to others: files of a support bundle. What is thrown away here may be innocent; what stays is not secret.
//!
//! Two layers. Secrets that this process knows (its own API key, a proxy's password, variables with a telling name) go wherever they
//! stand, also in base64 and percent-encoded. What nobody knows goes by where it stands: behind a telling name, in a URL, in a path,
//! in a PEM block, or because it has the form of a key. E-mail addresses stay: they open nothing, and whoever reads a log line needs
//! to know whose it is.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{KEY_LEN, REDACTED};

mod named;
mod places;

/// A secret that is shorter than this would be found in innocent words: it is left to the second layer.
const SHORTEST: usize = 6;

/// Takes secrets out of texts.
#[derive(Default)]
pub struct Document {
    known: Vec<Zeroizing<String>>,
    /// Long hexadecimal numbers that are no keys.
    innocent: Vec<String>,
}

impl Document {
    /// One that knows no secret by itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// True for a name, of a variable for example, that tells of a secret.
    pub fn is_telling(name: &str) -> bool {
        named::is_telling(name)
    }

    /// A secret that must not be shown wherever it stands.
    pub fn know(&mut self, secret: &str) {
        let secret = secret.trim();
        if secret.len() < SHORTEST {
            return;
        }
        let mut forms: Vec<String> = vec![secret.to_owned(), percent(secret, true), percent(secret, false)];
        for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
            forms.push(engine.encode(secret));
        }
        self.known.extend(forms.into_iter().map(Zeroizing::new));
        // The longest first: one may hold another.
        self.known.sort_by_key(|form| std::cmp::Reverse(form.len()));
        self.known.dedup();
    }

    /// A number that has the form of a key and is none: the commit of this program.
    pub fn trust(&mut self, number: &str) {
        self.innocent.push(number.to_owned());
    }

    /// `text` without secrets. JSON, whole or a line of it, is read, and stays JSON.
    pub fn scrub(&self, text: &str) -> String {
        if let Some(json) = json(text) {
            let scrubbed = self.value(None, json);
            return serde_json::to_string_pretty(&scrubbed)
                .map_or_else(|_| REDACTED.to_owned(), |text| text + "\n");
        }
        let text = places::without_private_keys(text);
        let mut out = String::with_capacity(text.len());
        let mut plain = String::new();
        for line in text.split_inclusive('\n') {
            match json(line) {
                Some(json) => {
                    out.push_str(&self.text(&std::mem::take(&mut plain)));
                    out.push_str(&self.value(None, json).to_string());
                    out.push('\n');
                }
                None => plain.push_str(line),
            }
        }
        out.push_str(&self.text(&plain));
        out
    }

    fn value(&self, name: Option<&str>, value: Value) -> Value {
        let telling = name.is_some_and(named::is_telling);
        match value {
            Value::String(text) if text.is_empty() => Value::String(text),
            Value::String(_) | Value::Number(_) if telling => Value::String(REDACTED.to_owned()),
            Value::String(text) => Value::String(self.text(&places::without_private_keys(&text))),
            // A long number could be a key without a letter.
            Value::Number(number) => match self.text(&number.to_string()) {
                same if same == number.to_string() => Value::Number(number),
                other => Value::String(other),
            },
            // Everything under a telling name is what it tells of.
            Value::Array(items) => {
                Value::Array(items.into_iter().map(|item| self.value(name, item)).collect())
            }
            Value::Object(map) => Value::Object(
                map.into_iter()
                    .map(|(key, item)| {
                        let under = if telling { name } else { Some(key.as_str()) };
                        let item = self.value(under, item);
                        (self.text(&key), item)
                    })
                    .collect::<Map<_, _>>(),
            ),
            other @ (Value::Bool(_) | Value::Null) => other,
        }
    }

    /// A text that is no JSON.
    fn text(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for secret in &self.known {
            if let Some(replaced) = replace(&text, secret) {
                text = Cow::Owned(replaced);
            }
        }
        let text = named::without_values(&text);
        let text = places::without_credentials(&text);
        let text = places::without_keys_in_paths(&text);
        self.without_long_numbers(&text)
    }

    /// As [`super::text`] does, but for numbers that are known for something else.
    fn without_long_numbers(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
            let (before, from) = rest.split_at(start);
            let end = from.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(from.len());
            let (run, after) = from.split_at(end);
            out.push_str(before);
            out.push_str(
                if run.len() >= KEY_LEN && !self.innocent.iter().any(|number| number == run) {
                    REDACTED
                } else {
                    run
                },
            );
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document")
            .field("known", &self.known.len())
            .finish_non_exhaustive()
    }
}

/// An object or a list of JSON, and nothing else.
fn json(text: &str) -> Option<Value> {
    let begins = text.trim_start().starts_with(['{', '[']);
    begins.then(|| serde_json::from_str(text).ok()).flatten()
}

/// Percent-encoded: every byte that is neither letter nor digit, with digits of either case.
fn percent(text: &str, upper: bool) -> String {
    text.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
            byte if upper => format!("%{byte:02X}"),
            byte => format!("%{byte:02x}"),
        })
        .collect()
}

/// Without regard to the case of ASCII letters; `None` when it is not in there.
fn replace(text: &str, secret: &str) -> Option<String> {
    let (lower, secret) = (text.to_ascii_lowercase(), secret.to_ascii_lowercase());
    let mut at = lower.find(&secret)?;
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    loop {
        out.push_str(&text[copied..at]);
        out.push_str(REDACTED);
        copied = at + secret.len();
        match lower[copied..].find(&secret) {
            Some(next) => at = copied + next,
            None => break,
        }
    }
    out.push_str(&text[copied..]);
    Some(out)
}

#[cfg(test)]
mod tests;
