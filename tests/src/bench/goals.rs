//! What is promised: one table of goals, and the decision. A figure that is missing is a goal missed.

use super::figures::{Figure, Round, Spread, ratio};
use super::memory::Idle;
use super::run::Results;
use super::{SUITE, intercept};

/// How a goal is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Ratio of a figure to a reference's in the same round, the median of the rounds.
    Ratio {
        /// As in the results: `W1`, `W7 kept`.
        workload: &'static str,
        /// Which figure.
        figure: Figure,
        /// Whose.
        peer: &'static str,
        /// Over whose.
        reference: &'static str,
    },
    /// RSS of the worker with 1,000 idle clients over haproxy's. The worker is what clients are held in; the master, which haproxy
    /// has no counterpart of, is shown apart.
    IdleMemory,
    /// Failed requests of these peers, and rounds that failed.
    Errors(&'static [&'static str]),
    /// Rounds in which the backend saw another suite than the one that everybody is held to.
    OtherSuites,
}

/// A goal.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// The workload to which it belongs; empty: every.
    pub workload: &'static str,
    /// For people.
    pub name: &'static str,
    /// How.
    pub measure: Measure,
    /// At most this.
    pub must: f64,
    /// Exactly this much is too much.
    pub below: bool,
    /// What would be excellent.
    pub aim: Option<f64>,
}

/// What became of a goal.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which.
    pub goal: Goal,
    /// Nothing when it could not be measured.
    pub measured: Option<Spread>,
    /// Met.
    pub pass: bool,
}

const fn against(
    reference: &'static str,
    workload: &'static str,
    name: &'static str,
    figure: Figure,
    must: f64,
    aim: Option<f64>,
) -> Goal {
    Goal {
        workload,
        name,
        measure: Measure::Ratio {
            workload,
            figure,
            peer: "ours",
            reference,
        },
        must,
        // haproxy with large buffers has to be beaten, not equalled.
        below: aim.is_none(),
        aim,
    }
}

const fn added(
    load: &'static str,
    name: &'static str,
    peer: &'static str,
    reference: &'static str,
    must: f64,
) -> Goal {
    Goal {
        workload: "W7",
        name,
        measure: Measure::Ratio {
            workload: load,
            figure: Figure::Cpu,
            peer,
            reference,
        },
        must,
        below: false,
        aim: None,
    }
}

const HOST: (&str, &str) = intercept::VARIANTS[1];
const POD: (&str, &str) = intercept::VARIANTS[3];
const TC: (&str, &str) = intercept::VARIANTS[5];
const KEPT: &str = intercept::LOADS[0].0;
const NEW: &str = intercept::LOADS[1].0;

/// Every goal: ratios of ours to haproxy in the same run.
pub const GOALS: &[Goal] = &[
    against("haproxy", "W1", "W1 CPU a request", Figure::Cpu, 0.90, Some(0.65)),
    against("haproxy", "W2", "W2 CPU a request", Figure::Cpu, 0.60, Some(0.42)),
    against("haproxy", "W3", "W3 CPU a request", Figure::Cpu, 0.62, Some(0.52)),
    against("haproxy", "W4", "W4 CPU a request", Figure::Cpu, 1.05, Some(0.80)),
    against("haproxy", "W5", "W5 CPU a request", Figure::Cpu, 0.85, Some(0.60)),
    against("haproxy", "W1", "W1 p99", Figure::P99, 1.00, Some(0.50)),
    against("haproxy", "W5", "W5 p99", Figure::P99, 1.15, Some(0.85)),
    Goal {
        workload: "W6",
        name: "W6 RSS with 1,000 idle clients (worker)",
        measure: Measure::IdleMemory,
        must: 1.5,
        below: false,
        aim: Some(0.8),
    },
    against(
        "haproxy-64k",
        "W1",
        "W1 CPU against haproxy-64k",
        Figure::Cpu,
        1.0,
        None,
    ),
    against(
        "haproxy-64k",
        "W2",
        "W2 CPU against haproxy-64k",
        Figure::Cpu,
        1.0,
        None,
    ),
    against(
        "haproxy-64k",
        "W3",
        "W3 CPU against haproxy-64k",
        Figure::Cpu,
        1.0,
        None,
    ),
    against(
        "haproxy-64k",
        "W4",
        "W4 CPU against haproxy-64k",
        Figure::Cpu,
        1.0,
        None,
    ),
    against(
        "haproxy-64k",
        "W5",
        "W5 CPU against haproxy-64k",
        Figure::Cpu,
        1.0,
        None,
    ),
    added(KEPT, "W7 cgroup, kept connections", HOST.0, HOST.1, 1.03),
    added(KEPT, "W7 cgroup in a pod, kept connections", POD.0, POD.1, 1.03),
    added(KEPT, "W7 tc, kept connections", TC.0, TC.1, 1.03),
    added(NEW, "W7 cgroup, new connections", HOST.0, HOST.1, 1.10),
    added(NEW, "W7 cgroup in a pod, new connections", POD.0, POD.1, 1.10),
    added(NEW, "W7 tc, new connections", TC.0, TC.1, 1.10),
    Goal {
        workload: "",
        name: "errors of ours",
        measure: Measure::Errors(&[
            "ours",
            intercept::VARIANTS[0].0,
            HOST.0,
            intercept::VARIANTS[2].0,
            POD.0,
            intercept::VARIANTS[4].0,
            TC.0,
            intercept::VARIANTS[6].0,
        ]),
        must: 0.0,
        below: false,
        aim: None,
    },
    Goal {
        workload: "",
        name: "errors of haproxy (else the ratios mean nothing)",
        measure: Measure::Errors(&["haproxy", "haproxy-64k"]),
        must: 0.0,
        below: false,
        aim: None,
    },
    Goal {
        workload: "",
        name: "rounds with another suite at the backend",
        measure: Measure::OtherSuites,
        must: 0.0,
        below: false,
        aim: None,
    },
];

/// The goals that these workloads decide.
pub fn of(workloads: &[String]) -> Vec<Goal> {
    GOALS
        .iter()
        .filter(|goal| goal.workload.is_empty() || workloads.iter().any(|name| name == goal.workload))
        .copied()
        .collect()
}

/// Compares what was measured with the goals.
pub fn judge(goals: &[Goal], results: &Results) -> Vec<Verdict> {
    goals
        .iter()
        .map(|goal| {
            let measured = measure(goal.measure, &results.rounds, &results.idle);
            let pass = measured.is_some_and(|spread| {
                spread.median < goal.must || (!goal.below && spread.median <= goal.must)
            });
            Verdict {
                goal: *goal,
                measured,
                pass,
            }
        })
        .collect()
}

/// True when every goal was met, and there was one.
pub fn passed(verdicts: &[Verdict]) -> bool {
    !verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.pass)
}

#[expect(clippy::cast_precision_loss, reason = "counts of failures, and KiB")]
fn measure(measure: Measure, rounds: &[Round], idle: &[Idle]) -> Option<Spread> {
    match measure {
        Measure::Ratio {
            workload,
            figure,
            peer,
            reference,
        } => ratio(rounds, workload, peer, reference, figure),
        Measure::IdleMemory => {
            let rss = |peer: &str, part: &str| {
                let one = idle.iter().find(|one| one.peer == peer && one.part == part)?;
                (one.errors.is_empty() && one.with[0].rss > 0).then_some(one.with[0].rss as f64)
            };
            Spread::of(&[rss("ours", "worker")? / rss("haproxy", "all")?])
        }
        Measure::Errors(peers) => {
            let mine = |peer: &str| peers.contains(&peer);
            let mut found = rounds.iter().filter(|round| mine(&round.peer)).peekable();
            let mut held = idle.iter().filter(|one| mine(&one.peer)).peekable();
            if found.peek().is_none() && held.peek().is_none() {
                return None;
            }
            let failures: u64 = found.map(Round::failures).sum();
            let held: usize = held.map(|one| one.errors.len()).sum();
            Spread::of(&[failures as f64 + held as f64])
        }
        Measure::OtherSuites => {
            if rounds.is_empty() {
                // W6 alone: the backend accepts nothing else, and every client was answered.
                return (!idle.is_empty()).then(|| Spread::of(&[0.0])).flatten();
            }
            // Of each peer at least one session was seen, and none with anything else.
            let mut peers: Vec<&str> = rounds.iter().map(|round| round.peer.as_str()).collect();
            peers.sort_unstable();
            peers.dedup();
            let seen = |peer: &&str| {
                rounds
                    .iter()
                    .any(|round| round.peer == *peer && round.suites == SUITE)
            };
            if !peers.iter().all(seen) {
                return None;
            }
            let others = rounds
                .iter()
                .filter(|round| !round.suites.is_empty() && round.suites != SUITE)
                .count();
            Spread::of(&[others as f64])
        }
    }
}
