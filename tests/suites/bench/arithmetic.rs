//! Numbers: quantiles, medians, ratios, and what is read from `/proc`.

use anyhow::{Context, Result};
use harness::bench::figures::{Figure, Round, Spread, ratio, spread};
use harness::bench::histogram::Histogram;
use harness::bench::options::Words;
use harness::bench::process::{Cpu, Machine, Memory, Stat, kib, trees};
use harness::{check, check_eq};

/// Quantiles by nearest rank, within 0.8 % for any size of value; merging is adding.
pub fn histogram() -> Result<()> {
    let mut small = Histogram::default();
    check_eq!(small.quantile(500), None, "nothing in it");
    (1..=100).for_each(|value| small.record(value));
    for (per_mille, expected) in [(500, 50), (990, 99), (999, 100), (1000, 100), (1, 1)] {
        check_eq!(
            small.quantile(per_mille),
            Some(expected),
            "of 1 to 100, {per_mille}"
        );
    }
    // Every power of two and its neighbours, up to the largest there is.
    for power in 0..64 {
        let value = 1_u64 << power;
        for value in [value - 1, value, value + value / 3, value.saturating_mul(2) - 1] {
            let mut one = Histogram::default();
            one.record(value);
            let found = one.quantile(500).context("no quantile")?;
            check!(
                found.abs_diff(value) <= value / 128,
                "{value} came back as {found}"
            );
            check_eq!(one.largest(), value, "the largest is exact");
        }
    }
    let mut other = Histogram::default();
    (0..100).for_each(|_| other.record(1_000_000));
    small.merge(&other);
    check_eq!(small.total(), 200, "merged");
    check_eq!(small.largest(), 1_000_000, "merged");
    let p99 = small.quantile(990).context("no quantile")?;
    check!(p99.abs_diff(1_000_000) <= 1_000_000 / 128, "merged: {p99}");
    check_eq!(small.quantile(500), Some(100), "merged");
    Ok(())
}

fn round(peer: &str, round: usize, requests: u64, cpu_ms: u64) -> Round {
    Round {
        workload: "W1".to_owned(),
        peer: peer.to_owned(),
        round,
        elapsed_ns: 2_000_000_000,
        requests,
        cpu_ns: Some(cpu_ms * 1_000_000),
        client_ns: 1_000_000,
        p99_ns: 5_000,
        ..Round::default()
    }
}

/// The median is of the rounds' ratios, not the ratio of medians; what is missing stays missing.
pub fn medians_and_ratios() -> Result<()> {
    let of = |values: &[f64]| Spread::of(values).map(|spread| (spread.median, spread.low, spread.high));
    check_eq!(of(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)), "odd");
    check_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)), "even");
    let eight = [8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0];
    check_eq!(of(&eight), Some((4.5, 2.0, 7.0)), "quartiles");
    check_eq!(of(&[7.0]), Some((7.0, 7.0, 7.0)), "one");
    check_eq!(of(&[]), None, "none");
    check_eq!(of(&[1.0, f64::NAN]), None, "no number");
    check_eq!(of(&[1.0, f64::INFINITY]), None, "no number");

    let one = round("ours", 0, 1_000, 10);
    check_eq!(one.figure(Figure::Cpu), Some(10.0), "us a request");
    check_eq!(one.figure(Figure::CpuWithClient), Some(11.0), "us a request");
    check_eq!(one.figure(Figure::Rate), Some(500.0), "requests a second");
    check_eq!(one.figure(Figure::P99), Some(5.0), "us");
    check_eq!(round("ours", 0, 0, 10).figure(Figure::Cpu), None, "no request");

    // Ratios 1/1, 2/4, 9/3: the median is 1, that of the medians would be 2/3.
    let all: Vec<Round> = [(1, 1), (2, 4), (9, 3)]
        .iter()
        .enumerate()
        .flat_map(|(index, (ours, theirs))| {
            [
                round("ours", index, 1_000, *ours),
                round("haproxy", index, 1_000, *theirs),
            ]
        })
        .collect();
    let ratios = ratio(&all, "W1", "ours", "haproxy", Figure::Cpu).context("no ratio")?;
    check_eq!(
        (ratios.median, ratios.low, ratios.high),
        (1.0, 0.5, 3.0),
        "ratios"
    );
    let own = spread(&all, "W1", "ours", Figure::Cpu).context("no spread")?;
    check_eq!((own.median, own.low, own.high), (2.0, 1.0, 9.0), "own");
    check_eq!(
        ratio(&all, "W2", "ours", "haproxy", Figure::Cpu),
        None,
        "another workload"
    );
    check_eq!(
        ratio(&all, "W1", "ours", "nginx", Figure::Cpu),
        None,
        "another peer"
    );
    check_eq!(
        ratio(&all[..5], "W1", "ours", "haproxy", Figure::Cpu),
        None,
        "a round without its counterpart"
    );
    let mut failed = all.clone();
    failed[0].requests = 0;
    check_eq!(
        ratio(&failed, "W1", "ours", "haproxy", Figure::Cpu),
        None,
        "a round that failed"
    );
    Ok(())
}

/// The forms of the files in `/proc`, as proc(5) has them.
pub fn files_of_proc() -> Result<()> {
    let odd = "123 (a (b) c d) S 77 123 123 0 -1 4194560 1 2 3 4 555 666 7 8 20 0 2 0 99 1 1";
    check_eq!(
        Stat::parse(odd),
        Some(Stat {
            parent: 77,
            user: 555,
            system: 666
        }),
        "a name with spaces and parentheses"
    );
    check_eq!(Stat::parse("123 (cut S 77"), None, "cut off");
    let machine = "cpu  10 20 30 4000 50 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
    check_eq!(
        Machine::parse(machine),
        Some(Machine {
            busy: 10 + 20 + 30 + 6 + 7,
            steal: 8
        }),
        "/proc/stat"
    );
    check_eq!(Machine::parse("intr 1 2 3\n"), None, "no line for all CPUs");
    let status = "VmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
    check_eq!(
        (kib(status, "VmRSS:"), kib(status, "VmHWM:"), kib(status, "Pss:")),
        (Some(1024), Some(2048), None),
        "kB lines"
    );
    Ok(())
}

/// The CPU clock of a process counts what it burnt, also in a thread that has ended; a process that comes or goes is noticed.
pub fn clocks_of_processes() -> Result<()> {
    let own = std::process::id();
    let before = Cpu::of(&[own])?;
    let burn = || {
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 50 {}
    };
    std::thread::spawn(burn).join().ok().context("a thread")?;
    let burnt = Cpu::of(&[own])?.since(&before)?;
    check!(burnt > 0, "an ended thread's time is gone");
    check!(burnt < 60_000_000_000, "{burnt} ns cannot be");
    let memory = Memory::of(&[i32::try_from(own)?])?;
    check!(
        memory.pss > 0 && memory.pss <= memory.rss && memory.rss <= memory.peak,
        "{memory:?}"
    );
    let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
    let with = Cpu::of(&[own])?;
    let known = trees(&[own])?.contains(&i32::try_from(child.id())?);
    child.kill()?;
    child.wait()?;
    check!(known, "a child belongs to the tree");
    check!(with.since(&before).is_err(), "a process that came is noticed");
    check!(
        Cpu::of(&[own])?.since(&with).is_err(),
        "a process that went is noticed"
    );
    Ok(())
}

/// Unknown words and missing values are errors.
pub fn command_lines() -> Result<()> {
    let parse = |text: &str| {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Words::parse(&words, &["peers", "rounds"], &["gate"])
    };
    let good = parse("--peers a,b --gate --rounds 7")?;
    check_eq!(
        good.list("peers"),
        Some(vec!["a".to_owned(), "b".to_owned()]),
        "list"
    );
    check_eq!((good.has("gate"), good.number("rounds", 3)?), (true, 7), "values");
    let empty = parse("")?;
    check_eq!(
        (empty.has("gate"), empty.number("rounds", 3)?),
        (false, 3),
        "defaults"
    );
    for bad in ["--peers", "--nothing 1", "peers a", "--gate 1"] {
        check!(parse(bad).is_err(), "`{bad}` was taken");
    }
    check!(parse("--rounds x")?.number("rounds", 3).is_err(), "not a number");
    Ok(())
}
