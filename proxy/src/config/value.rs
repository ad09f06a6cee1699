//! Values as they were written, before they have a type, and the parsers that give them one.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::error::Source;

/// A value as written, with its place.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) value: Written,
    pub(super) source: Source,
}

/// What was written. Numbers and booleans stay text: the key knows what it wants, and `log.level: off` is no boolean.
#[derive(Clone, Debug)]
pub(super) enum Written {
    Null,
    Scalar(String),
    List(Vec<Raw>),
    Map(Vec<Entry>),
}

/// An entry of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_source: Source,
    pub(super) value: Raw,
}

/// How a value is written on one line: scalars as they are, lists with commas, maps as `k=v` with commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    Scalar,
    /// One value or nothing.
    Optional,
    /// A list.
    List,
    /// A map of scalars.
    Map,
}

impl Raw {
    /// The text of a variable or a flag. Empty means nothing where nothing is a value.
    pub(super) fn from_line(shape: Shape, text: &str, source: &Source) -> Result<Self, Fault> {
        let text = text.trim();
        let raw = |value| Self {
            value,
            source: source.clone(),
        };
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(match shape {
            Shape::Scalar => raw(Written::Scalar(text.to_owned())),
            Shape::Optional if text.is_empty() => raw(Written::Null),
            Shape::Optional => raw(Written::Scalar(text.to_owned())),
            Shape::List => raw(Written::List(
                parts()
                    .map(|part| raw(Written::Scalar(part.to_owned())))
                    .collect(),
            )),
            Shape::Map => {
                let mut entries = Vec::new();
                for part in parts() {
                    let (key, value) = part
                        .split_once('=')
                        .ok_or_else(|| Fault::wrong(format!("`{part}` is not of the form name=value")))?;
                    entries.push(Entry {
                        key: key.trim().to_owned(),
                        key_source: source.clone(),
                        value: raw(Written::Scalar(value.trim().to_owned())),
                    });
                }
                raw(Written::Map(entries))
            }
        })
    }

    /// What it is, for a message about what it should have been.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Written::Null => "nothing",
            Written::Scalar(_) => "a single value",
            Written::List(_) => "a list",
            Written::Map(_) => "a map",
        }
    }
}

/// Why a value is not accepted.
#[derive(Debug)]
pub(super) struct Fault {
    /// Where exactly, when that is inside a list or map.
    pub(super) source: Option<Source>,
    pub(super) problem: String,
}

impl Fault {
    pub(super) fn wrong(problem: impl Into<String>) -> Self {
        Self {
            source: None,
            problem: problem.into(),
        }
    }

    fn at(mut self, source: &Source) -> Self {
        self.source.get_or_insert_with(|| source.clone());
        self
    }
}

pub(super) fn text(raw: &Raw) -> Result<&str, Fault> {
    match &raw.value {
        Written::Scalar(text) if text.is_empty() => Err(Fault::wrong("the value is empty")),
        Written::Scalar(text) => Ok(text),
        _ => Err(Fault::wrong(format!(
            "a single value is expected, not {}",
            raw.kind()
        ))),
    }
}

pub(super) fn parsed<T>(raw: &Raw) -> Result<T, Fault>
where
    T: FromStr,
    T::Err: Display,
{
    text(raw)?
        .parse()
        .map_err(|error: T::Err| Fault::wrong(error.to_string()))
}

/// `null`, `~` or an empty variable is none.
pub(super) fn optional<T>(raw: &Raw, parse: impl Fn(&Raw) -> Result<T, Fault>) -> Result<Option<T>, Fault> {
    if matches!(raw.value, Written::Null) {
        Ok(None)
    } else {
        parse(raw).map(Some)
    }
}

pub(super) fn boolean(raw: &Raw) -> Result<bool, Fault> {
    let text = text(raw)?;
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Fault::wrong(format!("`{text}` is neither true nor false"))),
    }
}

/// Decimal, or hexadecimal after `0x`. No leading zeros: half of the readers take them for octal.
pub(super) fn integer<T>(raw: &Raw, range: RangeInclusive<T>) -> Result<T, Fault>
where
    T: TryFrom<u64> + PartialOrd,
{
    let text = text(raw)?;
    let number = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        None if text == "0" || text.starts_with(|c: char| ('1'..='9').contains(&c)) => text.parse().ok(),
        _ => None,
    };
    // Whether it is a negative number, too large a number or no number: the range in the message answers all three.
    number
        .and_then(|number| T::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| Fault::wrong(format!("`{text}` is not a whole number in the accepted range")))
}

/// `500ms`, `5s`, `1m`, `2h`.
pub(super) fn duration(raw: &Raw, range: RangeInclusive<Duration>) -> Result<Duration, Fault> {
    let text = text(raw)?;
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let duration = digits
        .parse::<u64>()
        .ok()
        .zip(milliseconds)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            Fault::wrong(format!(
                "`{text}` is not a duration: a whole number with its unit, as in 500ms, 5s or 1m"
            ))
        })?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    Err(Fault::wrong(format!("`{text}` is out of the accepted range")))
}

/// One of a few words.
pub(super) fn choice<'a, T: Copy>(raw: &'a Raw, words: &[(&'a str, T)]) -> Result<T, Fault> {
    let text = text(raw)?;
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| Fault::wrong(format!("`{text}` is not accepted")))
}

pub(super) fn list<T>(raw: &Raw, parse: impl Fn(&Raw) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    match &raw.value {
        Written::List(items) => items
            .iter()
            .map(|item| parse(item).map_err(|fault| fault.at(&item.source)))
            .collect(),
        _ => Err(Fault::wrong(format!("a list is expected, not {}", raw.kind()))),
    }
}

pub(super) fn map<K, V>(
    raw: &Raw,
    key: impl Fn(&str) -> Result<K, Fault>,
    value: impl Fn(&Raw) -> Result<V, Fault>,
) -> Result<BTreeMap<K, V>, Fault>
where
    K: Ord,
{
    let Written::Map(entries) = &raw.value else {
        return Err(Fault::wrong(format!("a map is expected, not {}", raw.kind())));
    };
    let mut map = BTreeMap::new();
    for entry in entries {
        let name = key(&entry.key).map_err(|fault| fault.at(&entry.key_source))?;
        let value = value(&entry.value).map_err(|fault| fault.at(&entry.value.source))?;
        if map.insert(name, value).is_some() {
            return Err(Fault::wrong(format!("`{}` is given twice", entry.key)).at(&entry.key_source));
        }
    }
    Ok(map)
}

/// A network, or an address as the network of just itself.
pub(super) fn network(raw: &Raw) -> Result<IpNet, Fault> {
    let text = text(raw)?;
    let network = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            Fault::wrong(format!(
                "`{text}` is not a network such as 10.20.0.0/16 or 2001:db8::/32"
            ))
        })?;
    if network.trunc() != network {
        return Err(Fault::wrong(format!(
            "`{text}` has bits beyond its prefix; `{}` is meant",
            network.trunc()
        )));
    }
    Ok(network)
}
