//! The Prometheus text format, as far as the cases ask.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One scrape.
#[derive(Debug)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Parses a scrape; a line that is neither comment nor sample is an error.
    pub fn parse(text: &str) -> Result<Self> {
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).with_context(|| format!("not a sample: {line}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The sum of the samples of `name` that carry all these labels; zero when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .iter()
            .filter(|sample| {
                sample.name == name
                    && labels
                        .iter()
                        .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
            })
            .map(|sample| sample.value)
            .sum()
    }

    /// Every sample of `name` by the value of one label.
    pub fn by(&self, name: &str, label: &str) -> Vec<(String, f64)> {
        self.0
            .iter()
            .filter(|sample| sample.name == name)
            .filter_map(|sample| Some((sample.labels.get(label)?.clone(), sample.value)))
            .collect()
    }

    /// Client connections of this way in, our own self-tests left out.
    pub fn connections(&self, via: &str) -> f64 {
        let name = "agent_fips_proxy_connections_total";
        self.sum(name, &[("via", via)]) - self.sum(name, &[("via", via), ("decision", "self-test")])
    }

    /// True when there is a sample of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }
}

/// `name{label="value",...} 1`; label values of ours hold neither quotes nor commas.
fn sample(line: &str) -> Option<Sample> {
    let (left, value) = line.rsplit_once(' ')?;
    let (name, labels) = match left.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (left, ""),
    };
    let labels = labels
        .split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.trim_matches('"').to_owned()))
        })
        .collect::<Option<_>>()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().ok()?,
    })
}
