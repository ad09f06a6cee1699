//! Values over a run, and whether they grew: the medians of its quarters are compared, since a sample may fall into a moment in which
//! a worker is being replaced.

use std::collections::BTreeMap;

use anyhow::Result;
use harness::{check, check_eq};

/// Samples of each value, in order.
#[derive(Default)]
pub struct Series(BTreeMap<String, Vec<u64>>);

impl Series {
    /// One more sample of a value.
    pub fn add(&mut self, name: &str, value: u64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    /// The medians of the four quarters of a run.
    pub fn quarters(&self, name: &str) -> [u64; 4] {
        let all = self.0.get(name).map(Vec::as_slice).unwrap_or_default();
        [0, 1, 2, 3].map(|quarter| {
            let range = all.len() * quarter / 4..all.len() * (quarter + 1) / 4;
            let mut part = all[range].to_vec();
            part.sort_unstable();
            part.get(part.len() / 2).copied().unwrap_or(0)
        })
    }

    /// Fails when the median of the last quarter is above the third's by more than `most`. As text, both.
    pub fn flat(&self, name: &str, most: u64) -> Result<String> {
        let quarters @ [_, _, third, last] = self.quarters(name);
        check!(
            last <= third + most,
            "{name} grew by more than {most}: the quarters' medians are {quarters:?}, and each sample was {:?}",
            self.0.get(name)
        );
        Ok(format!("{third} → {last}"))
    }

    /// Every value whose name begins so.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let names = self.0.keys().filter(|name| name.starts_with(prefix));
        names.cloned().collect()
    }
}

/// What this suite judges by would see a leak, and is not misled by a moment.
pub fn growth_is_seen() -> Result<()> {
    let mut series = Series::default();
    for sample in 0..40 {
        series.add("one for each", 100 + sample);
        series.add("at first", 100 + sample.min(15));
        series.add("in moments", if sample % 5 == 0 { 900 } else { 100 });
    }
    check_eq!(series.quarters("one for each"), [105, 115, 125, 135], "quarters");
    check!(series.flat("one for each", 9).is_err(), "growth was not seen");
    check!(series.flat("one for each", 10).is_ok(), "what may grow");
    check_eq!(series.flat("at first", 0)?, "115 → 115", "warming up");
    check_eq!(series.flat("in moments", 0)?, "100 → 100", "moments");
    Ok(())
}
