//! The gate: every goal can be met and can be missed, and a figure that is not there is a goal missed.

use anyhow::Result;
use harness::bench::SUITE;
use harness::bench::figures::Round;
use harness::bench::goals::{GOALS, Measure, judge, of, passed};
use harness::bench::memory::Idle;
use harness::bench::process::Memory;
use harness::bench::run::{Results, WORKLOADS};
use harness::{check, check_eq};

/// Everything that the goals ask for, measured twice; ours costs a tenth of everybody else.
fn good() -> Results {
    let mut results = Results::default();
    for goal in GOALS {
        let Measure::Ratio {
            workload,
            peer,
            reference,
            ..
        } = goal.measure
        else {
            continue;
        };
        for (name, cost) in [(peer, 1), (reference, 10)] {
            for round in 0..2 {
                let there = results.rounds.iter().any(|one| {
                    (one.workload.as_str(), one.peer.as_str(), one.round) == (workload, name, round)
                });
                if !there {
                    results.rounds.push(Round {
                        workload: workload.to_owned(),
                        peer: name.to_owned(),
                        round,
                        elapsed_ns: 1_000_000_000,
                        requests: 1_000,
                        cpu_ns: Some(cost * 1_000_000),
                        p50_ns: cost * 1_000,
                        p99_ns: cost * 1_000,
                        suites: SUITE.to_owned(),
                        ..Round::default()
                    });
                }
            }
        }
    }
    for (peer, part, rss) in [
        ("ours", "worker", 1_000),
        ("ours", "all", 9_000),
        ("haproxy", "all", 10_000),
    ] {
        results.idle.push(Idle {
            peer: peer.to_owned(),
            part: part.to_owned(),
            with: [Memory {
                rss,
                ..Memory::default()
            }; 2],
            ..Idle::default()
        });
    }
    results
}

/// The names of the goals that these results miss.
fn missed(results: &Results) -> Vec<&'static str> {
    judge(GOALS, results)
        .iter()
        .filter(|verdict| !verdict.pass)
        .map(|verdict| verdict.goal.name)
        .collect()
}

pub fn goals_met() -> Result<()> {
    let results = good();
    check_eq!(
        missed(&results),
        Vec::<&str>::new(),
        "with everything as it should be"
    );
    check!(passed(&judge(GOALS, &results)), "passed");
    check!(!passed(&[]), "no goal at all is no success");
    let all = WORKLOADS.map(str::to_owned).to_vec();
    check_eq!(of(&all).len(), GOALS.len(), "every goal belongs to a workload");
    let some = of(&["W3".to_owned()]);
    check!(
        some.iter().all(|goal| ["", "W3"].contains(&goal.workload)) && some.len() < GOALS.len(),
        "the goals of W3 alone"
    );
    Ok(())
}

/// Makes each goal worse than it must be, alone, and sees it missed; exactly as it must be is enough unless `below`.
pub fn each_goal_can_be_missed() -> Result<()> {
    for goal in GOALS {
        let Measure::Ratio {
            workload, reference, ..
        } = goal.measure
        else {
            continue;
        };
        for (factor, expected) in [(0.99, true), (1.0, !goal.below), (1.01, false)] {
            let mut results = good();
            let ours = goal.must * factor;
            for round in &mut results.rounds {
                if round.workload == workload {
                    // In units of the reference: both have 10,000 requests, so that hundredths are exact.
                    let cost = if round.peer == reference { 1.0 } else { ours };
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "small and positive"
                    )]
                    let ns = (cost * 1e6).round() as u64;
                    (round.cpu_ns, round.p99_ns) = (Some(ns), ns);
                }
            }
            let verdict = judge(&[*goal], &results);
            check_eq!(verdict[0].pass, expected, "{} at {ours}", goal.name);
            check_eq!(passed(&verdict), expected, "{} at {ours}", goal.name);
        }
    }
    let mut results = good();
    results.idle[0].with[0].rss = 15_001;
    check_eq!(
        missed(&results),
        ["W6 RSS with 1,000 idle clients (worker)"],
        "memory"
    );
    for (peer, goal) in [
        ("ours", "errors of ours"),
        ("haproxy", "errors of haproxy (else the ratios mean nothing)"),
    ] {
        let mut results = good();
        let round = results.rounds.iter_mut().find(|round| round.peer == peer);
        if let Some(round) = round {
            round.errors.insert("read: ConnectionReset".to_owned(), 1);
        }
        check_eq!(missed(&results), [goal], "one error of {peer}");
    }
    let mut results = good();
    results.rounds[0].suites = format!("{SUITE},TLS13_AES_128_GCM_SHA256");
    check_eq!(
        missed(&results),
        ["rounds with another suite at the backend"],
        "another suite"
    );
    Ok(())
}

/// Takes every figure away in turn.
pub fn a_missing_figure_is_missed() -> Result<()> {
    let nothing = Results::default();
    check_eq!(missed(&nothing).len(), GOALS.len(), "nothing was measured");
    for goal in GOALS {
        let Measure::Ratio {
            workload,
            peer,
            reference,
            ..
        } = goal.measure
        else {
            continue;
        };
        for gone in [peer, reference] {
            let mut results = good();
            results
                .rounds
                .retain(|round| (round.workload.as_str(), round.peer.as_str()) != (workload, gone));
            check!(
                missed(&results).contains(&goal.name),
                "{} without {gone}",
                goal.name
            );
            let mut results = good();
            for round in &mut results.rounds {
                if (round.workload.as_str(), round.peer.as_str(), round.round) == (workload, gone, 1) {
                    round.requests = 0;
                }
            }
            check!(
                missed(&results).contains(&goal.name),
                "{}: a round of {gone} failed",
                goal.name
            );
        }
    }
    let mut results = good();
    results.idle[0].errors.push("refused".to_owned());
    check!(
        missed(&results).contains(&"W6 RSS with 1,000 idle clients (worker)"),
        "clients that were refused cost nothing"
    );
    let mut results = good();
    results.rounds.iter_mut().for_each(|round| round.suites.clear());
    check_eq!(
        missed(&results),
        ["rounds with another suite at the backend"],
        "a suite that nobody saw"
    );
    Ok(())
}
