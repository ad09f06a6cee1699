//! Command lines of the benchmark's processes: `--key value`, and `--key` alone for a switch.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// The words after the role's name.
pub struct Words(BTreeMap<String, String>);

impl Words {
    /// Reads them; a key that is not in `known` is an error.
    pub fn parse(words: &[String], known: &[&str], switches: &[&str]) -> Result<Self> {
        let mut table = BTreeMap::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let key = word.strip_prefix("--").unwrap_or_default();
            let value = if switches.contains(&key) {
                "true".to_owned()
            } else if known.contains(&key) {
                words
                    .next()
                    .with_context(|| format!("{word} wants a value"))?
                    .clone()
            } else {
                bail!(
                    "unknown word `{word}`; known: --{}",
                    [known, switches].concat().join(", --")
                );
            };
            table.insert(key.to_owned(), value);
        }
        Ok(Self(table))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// True when a switch was given.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The value of a key, or this one.
    pub fn number<T: FromStr>(&self, key: &str, default: T) -> Result<T> {
        match self.get(key) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .ok()
                .with_context(|| format!("--{key} {text}: not a number that fits")),
        }
    }

    /// A list with commas; nothing when the key was not given.
    pub fn list(&self, key: &str) -> Option<Vec<String>> {
        Some(
            self.get(key)?
                .split(',')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
        )
    }
}
