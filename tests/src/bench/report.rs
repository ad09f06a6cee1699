//! How results are shown: Markdown for people, JSON with every raw figure.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figures::{Figure, Round, Spread, ratio, rounds, spread};
use super::goals::Verdict;
use super::intercept::{BLOCKS, LOADS, SHORT, VARIANTS};
use super::memory::Idle;
use super::process::{Memory, processor};
use super::run::{Plan, Results, WINDOWS, json as raw};
use crate::capture;

/// What a run's report says first: date, commit, and what the machine is and does.
pub fn machine() -> [(&'static str, String); 5] {
    let line = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).current_dir(env!("CARGO_MANIFEST_DIR"));
        capture(&mut command)
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_else(|| "not known".to_owned())
    };
    [
        ("date", line("date", &["-u", "+%F %H:%M UTC"])),
        (
            "commit of the benchmark",
            line("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        ),
        ("processor", processor()),
        ("kernel", line("uname", &["-sr"])),
        ("load before", line("cut", &["-d", " ", "-f1-3", "/proc/loadavg"])),
    ]
}

/// Date, commit, machine and versions. A peer that cannot be had is an error here, before anything is measured.
pub fn head(plan: &Plan) -> Result<BTreeMap<String, String>> {
    let mut head: BTreeMap<String, String> = machine()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    head.insert(
        "rounds".to_owned(),
        format!(
            "{} blocks of {WINDOWS} windows of {} ms (W5: {} ms; W7: {} blocks, {} ms), by turns; the clients of a block are new, and work \
             for 1 s (W7: 0.2 s) before",
            plan.rounds,
            (plan.block / WINDOWS).as_millis(),
            (plan.paced_block() / WINDOWS).as_millis(),
            plan.rounds * BLOCKS,
            plan.block.mul_f64(SHORT).as_millis(),
        ),
    );
    for peer in &plan.peers {
        let version = peer
            .version()
            .with_context(|| format!("the peer {} cannot be had", peer.name()))?;
        head.insert(format!("peer {}", peer.name()), version);
    }
    Ok(head)
}

/// One line for a peer's windows of a block, while it runs.
pub fn progress(found: &[Round], peer: &str, block: usize) -> String {
    let mine: Vec<&Round> = found.iter().filter(|round| round.peer == peer).collect();
    let number = |figure| {
        let values: Option<Vec<f64>> = mine.iter().map(|round| round.figure(figure)).collect();
        middle(values.and_then(|values| Spread::of(&values)), 1)
    };
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, count) in mine.iter().flat_map(|round| &round.errors) {
        *errors.entry(kind).or_default() += count;
    }
    let errors = if errors.is_empty() {
        String::new()
    } else {
        format!(", errors {errors:?}")
    };
    format!(
        "{} {peer:<18} block {}: CPU {} us, {} req/s, p50 {} us, p99 {} us{errors}",
        mine.first().map_or("", |round| &round.workload),
        block + 1,
        number(Figure::Cpu),
        number(Figure::Rate),
        number(Figure::P50),
        number(Figure::P99),
    )
}

const TITLES: [(&str, &str); 8] = [
    ("W1", "1 KiB POST, keep-alive, 64 connections"),
    ("W2", "64 KiB POST, keep-alive, 32 connections"),
    ("W3", "3 MiB POST, keep-alive, 8 connections"),
    ("W4", "1 KiB POST, a new connection for each, 32 at a time"),
    ("W5", "1 KiB POST, open loop, 500 a second, 8 connections"),
    ("W6", "memory, MiB; each idle client has sent one request"),
    (
        "W7",
        "ours through interception, the intake on another host; x explicit: the explicit port on the same way",
    ),
    (
        "W8",
        "HTTPS with HTTP/2 in, 1 KiB POST, 8 connections of 16 streams; ours through interception (cgroup, `https: terminate`)",
    ),
];

/// Everything on standard output, as Markdown.
pub fn print(plan: &Plan, results: &Results, verdicts: &[Verdict]) {
    println!("{}", text(plan, results, verdicts));
}

/// The same as text.
pub fn text(plan: &Plan, results: &Results, verdicts: &[Verdict]) -> String {
    let mut out = String::from("## Run\n\n| | |\n|---|---|\n");
    for (name, value) in &results.head {
        out.push_str(&format!("| {name} | {value} |\n"));
    }
    out.push_str(
        "\nMedians [quartiles] of the windows. \"x haproxy\" is the median of the ratios of the same turn. CPU is the proxy's \
         process tree only, kernel included. Upstream: connections that the backend accepted within a window.\n",
    );
    for (workload, title) in TITLES {
        if !plan.wants(workload) {
            continue;
        }
        out.push_str(&format!("\n### {workload}: {title}\n\n"));
        match workload {
            "W6" => out.push_str(&memory(results)),
            "W7" => {
                for (load, like) in LOADS {
                    out.push_str(&format!("\n{load}, load as in {like}:\n\n"));
                    out.push_str(&table(&results.rounds, load, &VARIANTS, "explicit"));
                }
            }
            _ => {
                let peers: Vec<(&str, &str)> =
                    plan.peers.iter().map(|peer| (peer.name(), "haproxy")).collect();
                out.push_str(&table(&results.rounds, workload, &peers, "haproxy"));
            }
        }
    }
    out.push_str(&quiet(&results.rounds));
    if !verdicts.is_empty() {
        out.push_str("\n### Goals\n\n| goal | must | aim | measured | |\n|---|---:|---:|---:|---|\n");
        for verdict in verdicts {
            out.push_str(&row(verdict));
        }
    }
    out
}

fn row(verdict: &Verdict) -> String {
    let goal = &verdict.goal;
    let sign = if goal.below { "< " } else { "" };
    let aim = goal.aim.map_or_else(|| "-".to_owned(), |aim| format!("{aim:.2}"));
    let measured = verdict
        .measured
        .map_or_else(|| "missing".to_owned(), |spread| show(spread, 3));
    let pass = match (verdict.pass, goal.aim, verdict.measured) {
        (false, _, _) => "**missed**",
        (true, Some(aim), Some(spread)) if spread.median <= aim => "met, and the aim",
        (true, _, _) => "met",
    };
    format!(
        "| {} | {sign}{:.2} | {aim} | {measured} | {pass} |\n",
        goal.name, goal.must
    )
}

/// One workload. Each row has a peer and the reference of its ratios.
fn table(all: &[Round], workload: &str, peers: &[(&str, &str)], reference: &str) -> String {
    let mut out = format!(
        "| peer | CPU us/req | x {reference} | user us | us/MiB | with client | x {reference} | req/s | x {reference} | MB/s | p50 us | p99 us | \
         p99.9 us | upstream | errors |\n|---|{}\n",
        "---:|".repeat(14)
    );
    for (peer, reference) in peers {
        let mine = rounds(all, workload, peer);
        if mine.is_empty() {
            continue;
        }
        let figure = |figure, digits| cell(spread(all, workload, peer, figure), digits);
        let times = |figure| cell(ratio(all, workload, peer, reference, figure), 2);
        let of = |value: &dyn Fn(&Round) -> Option<f64>| {
            let values: Option<Vec<f64>> = mine.iter().map(|round| value(round)).collect();
            values.and_then(|values| Spread::of(&values))
        };
        let user = of(&|round| Some(round.figure(Figure::Cpu)? * round.user?));
        let mib = of(&|round| {
            (round.body >= 1 << 16).then(|| Some(round.figure(Figure::Cpu)? / megabytes(round, 1 << 20)))?
        });
        let speed = of(&|round| {
            (round.body >= 1 << 16)
                .then(|| Some(round.figure(Figure::Rate)? * megabytes(round, 1_000_000)))?
        });
        let upstream: u64 = mine.iter().map(|round| round.upstream).max().unwrap_or(0);
        let failures: u64 = mine.iter().map(|round| round.failures()).sum();
        out.push_str(&format!(
            "| {peer} | {} | **{}** | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {failures} |\n",
            figure(Figure::Cpu, 1),
            times(Figure::Cpu),
            middle(user, 1),
            middle(mib, 0),
            middle(spread(all, workload, peer, Figure::CpuWithClient), 1),
            middle(ratio(all, workload, peer, reference, Figure::CpuWithClient), 2),
            figure(Figure::Rate, 0),
            middle(ratio(all, workload, peer, reference, Figure::Rate), 2),
            middle(speed, 0),
            middle(spread(all, workload, peer, Figure::P50), 0),
            figure(Figure::P99, 0),
            middle(spread(all, workload, peer, Figure::P999), 0),
            if upstream == 0 {
                "0".to_owned()
            } else {
                format!("at most {upstream}")
            },
        ));
        for (kind, count) in mine.iter().flat_map(|round| &round.errors) {
            out.push_str(&format!("| | {count} x {} |\n", kind.replace('|', "/")));
        }
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "a body of megabytes")]
fn megabytes(round: &Round, unit: u64) -> f64 {
    round.body as f64 / unit as f64
}

fn memory(results: &Results) -> String {
    let mut out = format!(
        "| peer | part | RSS fresh | PSS fresh | RSS, 1,000 idle | PSS | KiB a client | RSS, 5,000 idle | PSS | KiB a client | RSS after they \
         left | peak RSS after W1 to W3 | errors |\n|---|---|{}\n",
        "---:|".repeat(11)
    );
    for idle in &results.idle {
        let peak = results.peaks.get(&(idle.peer.clone(), idle.part.clone()));
        out.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            idle.peer,
            idle.part,
            mib(idle.fresh.rss),
            mib(idle.fresh.pss),
            mib(idle.with[0].rss),
            mib(idle.with[0].pss),
            each(idle, 0),
            mib(idle.with[1].rss),
            mib(idle.with[1].pss),
            each(idle, 1),
            mib(idle.left.rss),
            peak.map_or_else(|| "-".to_owned(), |memory: &Memory| mib(memory.peak)),
            if idle.errors.is_empty() {
                "0".to_owned()
            } else {
                idle.errors.join("; ")
            },
        ));
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "KiB of processes")]
fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "KiB of processes")]
fn each(idle: &Idle, index: usize) -> String {
    let more = idle.with[index].rss.saturating_sub(idle.fresh.rss);
    format!("{:.1}", more as f64 / super::memory::CLIENTS[index] as f64)
}

/// Whether the machine was quiet.
fn quiet(all: &[Round]) -> String {
    let of = |value: &dyn Fn(&Round) -> f64| Spread::of(&all.iter().map(value).collect::<Vec<_>>());
    match (of(&|round| round.others), of(&|round| round.steal)) {
        (Some(others), Some(steal)) => format!(
            "\nOther processes of the machine kept {} CPUs busy during the windows; the hypervisor took {}.\n",
            show(others, 2),
            show(steal, 2)
        ),
        _ => String::new(),
    }
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| show(spread, digits))
}

fn middle(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.digits$}", spread.median))
}

fn show(spread: Spread, digits: usize) -> String {
    if spread.low.to_bits() == spread.high.to_bits() {
        return format!("{:.digits$}", spread.median);
    }
    format!(
        "{:.digits$} [{:.digits$}-{:.digits$}]",
        spread.median, spread.low, spread.high
    )
}

/// Writes the raw figures.
pub fn write(path: &Path, results: &Results, verdicts: &[Verdict]) -> Result<()> {
    let mut all = raw(results);
    all["goals"] = verdicts
        .iter()
        .map(|verdict| {
            json!({
                "name": verdict.goal.name, "must": verdict.goal.must, "aim": verdict.goal.aim, "pass": verdict.pass,
                "measured": verdict.measured.map(|spread| json!({"median": spread.median, "low": spread.low, "high": spread.high})),
            })
        })
        .collect::<Vec<Value>>()
        .into();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(&all)?)
        .with_context(|| format!("cannot write {}", path.display()))
}
