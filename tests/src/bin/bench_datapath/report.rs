//! How the figures are shown: Markdown for people, JSON with every round.

use std::path::Path;

use anyhow::{Context, Result};
use harness::bench::figures::Spread;
use harness::bench::report::machine;
use serde_json::{Value, json};

use crate::rounds::{Runs, Times};

/// One datapath's figures.
pub struct Part {
    /// The heading.
    pub title: &'static str,
    /// What to know about it.
    pub note: &'static str,
    /// By the clock.
    pub times: Vec<Times>,
    /// By the kernel, or why it does not tell.
    pub runs: Result<Vec<Runs>, String>,
}

/// Date, machine, and how much was done.
pub struct Head(Vec<(&'static str, String)>);

impl Head {
    /// Of this run, before anything is measured.
    pub fn new(rounds: usize) -> Self {
        let rounds = format!("{rounds}, after one that does not count; everything on one processor");
        Self(machine().into_iter().chain([("rounds", rounds)]).collect())
    }
}

/// The whole as Markdown.
pub fn markdown(head: &Head, parts: &[Part]) -> String {
    let mut text = "| | |\n|---|---|\n".to_owned();
    for (name, value) in &head.0 {
        text.push_str(&format!("| {name} | {value} |\n"));
    }
    for part in parts {
        text.push_str(&format!("\n#### {}\n\n{}", part.title, part.note));
        if let Err(why) = &part.runs {
            text.push_str(&format!(" The kernel's count of runs is missing: {why}."));
        }
        text.push_str(
            "\n\n| | | without, us | with, us | more, ns | ratio | programs: runs x ns a run |\n\
             |---|---|---:|---:|---:|---:|---|\n",
        );
        // Both families of a row beside each other.
        for (index, row) in part.times.iter().enumerate() {
            let same = |other: &&Times| other.case.what == row.case.what;
            if !part.times[..index].iter().any(|before| same(&before)) {
                part.times
                    .iter()
                    .filter(same)
                    .for_each(|row| text.push_str(&line(row, &part.runs)));
            }
        }
    }
    text
}

/// What is compared is compared within a round: the machine changes its pace between rounds by more than a program costs.
fn line(row: &Times, runs: &Result<Vec<Runs>, String>) -> String {
    let rounds = || row.off.iter().zip(&row.on);
    let more: Vec<f64> = rounds().map(|(off, on)| on - off).collect();
    let ratios: Vec<f64> = rounds().map(|(off, on)| on / off).collect();
    format!(
        "| {} | IPv{} | {:.2} | {:.2} | {:.0} [{:.0}, {:.0}] | {:.3} [{:.3}, {:.3}] | {} |\n",
        row.case.what,
        row.case.family,
        quantile(&row.off, 1, 2) / 1000.0,
        quantile(&row.on, 1, 2) / 1000.0,
        quantile(&more, 1, 2),
        quantile(&more, 1, 4),
        quantile(&more, 3, 4),
        quantile(&ratios, 1, 2),
        quantile(&ratios, 1, 4),
        quantile(&ratios, 3, 4),
        programs(row, runs),
    )
}

fn programs(row: &Times, runs: &Result<Vec<Runs>, String>) -> String {
    let Ok(runs) = runs else {
        return "?".to_owned();
    };
    let texts: Vec<String> = runs
        .iter()
        .filter(|run| run.case.what == row.case.what && run.case.family == row.case.family)
        .map(|run| {
            let Spread { median, low, high } = run.ns;
            format!(
                "`{}` {:.2} x {median:.0} [{low:.0}, {high:.0}]",
                run.program, run.per_operation
            )
        })
        .collect();
    if texts.is_empty() {
        "none runs".to_owned()
    } else {
        texts.join(", ")
    }
}

/// The value that `part` of `of` parts are below, by nearest rank.
fn quantile(values: &[f64], part: usize, of: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * part / of).copied().unwrap_or(f64::NAN)
}

/// Every round, for programs.
pub fn write(head: &Head, parts: &[Part], path: &Path) -> Result<()> {
    let parts: Vec<Value> = parts
        .iter()
        .map(|part| {
            let times: Vec<Value> = part.times.iter().map(times_json).collect();
            let runs = match &part.runs {
                Ok(runs) => json!(runs.iter().map(runs_json).collect::<Vec<_>>()),
                Err(why) => json!({"not_measured": why}),
            };
            json!({"title": part.title, "times": times, "runs": runs})
        })
        .collect();
    let head: serde_json::Map<String, Value> = head
        .0
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(&json!({"head": head, "parts": parts}))?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn times_json(row: &Times) -> Value {
    json!({"what": row.case.what, "family": row.case.family, "off_ns": row.off, "on_ns": row.on})
}

fn runs_json(row: &Runs) -> Value {
    json!({
        "what": row.case.what, "family": row.case.family, "program": row.program, "runs": row.per_operation,
        "ns": {"median": row.ns.median, "low": row.ns.low, "high": row.ns.high},
    })
}
