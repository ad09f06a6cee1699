//! The configuration file: YAML text to settings with their places. Unknown and repeated keys are errors here, types
//! are not: that is the key's business.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DuplicateKeyPolicy, Location, MergeKeyPolicy, MessageFormatter, Spanned, UserMessageFormatter,
};

use super::error::{ConfigError, Source};
use super::keys::{self, Key};
use super::value::{Entry, Raw, Written};

/// The settings of a file; what is wrong goes to `errors`, and the rest is still read.
pub(super) fn read(path: &Path, text: &str, errors: &mut Vec<ConfigError>) -> Vec<(&'static Key, Raw)> {
    let options = serde_saphyr::options! {
        // Both are handed to us, so that the message can name both places.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `<<` would set keys out of sight.
        merge_keys: MergeKeyPolicy::Error,
        // `off` is a log level, and `no` is nobody's boolean.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
        // Comments are for people: a file may have as many as it likes.
        emit_comments: false,
    };
    let mut reader = Reader {
        path,
        settings: Vec::new(),
        errors,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options) {
        Ok(root) => reader.section("", root.value, root.referenced),
        Err(error) => {
            let source = reader.source(error.location().unwrap_or(Location::UNKNOWN));
            let problem = match error {
                serde_saphyr::Error::MultipleDocuments { .. } => {
                    "a second document begins here; only one is accepted".into()
                }
                ref other => UserMessageFormatter.format_message(other),
            };
            reader.errors.push(ConfigError::new(
                source,
                "",
                format!("not valid YAML: {}", problem.escape_debug()),
            ));
        }
    }
    reader.settings
}

struct Reader<'a> {
    path: &'a Path,
    settings: Vec<(&'static Key, Raw)>,
    errors: &'a mut Vec<ConfigError>,
}

impl Reader<'_> {
    fn section(&mut self, prefix: &str, node: Node, location: Location) {
        let entries = match node {
            Node::Map(entries) => entries,
            // An empty file, or a heading whose keys are all commented out.
            Node::Null => return,
            Node::Scalar(_) | Node::List(_) => {
                let source = self.source(location);
                self.errors.push(ConfigError::new(
                    source,
                    prefix,
                    "a map of settings is expected here (`key: value`)",
                ));
                return;
            }
        };
        let mut seen: Vec<(String, Location)> = Vec::new();
        for (key, value) in entries {
            let path = if prefix.is_empty() {
                key.value.clone()
            } else {
                format!("{prefix}.{}", key.value)
            };
            if let Some((_, first)) = seen.iter().find(|(name, _)| *name == key.value) {
                let problem = format!(
                    "given twice in this section, first in line {}; keep one",
                    first.line()
                );
                let source = self.source(key.referenced);
                self.errors.push(ConfigError::new(source, path, problem));
                continue;
            }
            seen.push((key.value, key.referenced));
            if let Some(row) = keys::find(&path) {
                let raw = self.raw(value);
                self.settings.push((row, raw));
            } else if keys::is_section(&path) {
                self.section(&path, value.value, value.referenced);
            } else {
                let source = self.source(key.referenced);
                self.errors.push(ConfigError::new(source, &path, unknown(&path)));
            }
        }
    }

    fn raw(&self, node: Spanned<Node>) -> Raw {
        let source = self.source(node.referenced);
        let value = match node.value {
            Node::Null => Written::Null,
            Node::Scalar(text) => Written::Scalar(text),
            Node::List(items) => Written::List(items.into_iter().map(|item| self.raw(item)).collect()),
            Node::Map(entries) => Written::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| Entry {
                        key_source: self.source(key.referenced),
                        key: key.value,
                        value: self.raw(value),
                    })
                    .collect(),
            ),
        };
        Raw { value, source }
    }

    fn source(&self, location: Location) -> Source {
        Source::File {
            path: self.path.to_owned(),
            line: location.line(),
            column: location.column(),
        }
    }
}

/// What to say about a key that does not exist.
pub(super) fn unknown(path: &str) -> String {
    match keys::nearest(path) {
        Some(near) => format!("there is no such key; did you mean `{near}`?"),
        None => "there is no such key; `agent-fips-proxy config default` shows all of them".to_owned(),
    }
}

/// Any YAML, with the places of everything.
enum Node {
    Null,
    Scalar(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // No key takes a fraction; Debug keeps `80.0` from looking like 80.
        Ok(Node::Scalar(format!("{value:?}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Node::Map(map))
    }
}
