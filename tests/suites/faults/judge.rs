//! Plays a row and holds what happened against it.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::{check, check_eq, eventually};

use crate::client::Answer;
use crate::stage::{Set, Stage};
use crate::table::{Ask, Hold, Inject, PRODUCT, Row};

/// Within this the service is back. Longer than any pause of the proxy's own (5 s after a failed look-up).
const BACK: Duration = Duration::from_secs(20);

/// The whole row.
pub fn play(row: &Row) -> Result<()> {
    if let Inject::Whole(body) = row.inject {
        return body(row);
    }
    let set = Set::new(row.leads)?;
    let mut stage = set.stage(row)?;
    judge(row, &mut stage).map_err(|error| told(&error, &stage))
}

/// A failure with the log, of which only the load's lines are left out.
pub fn told(error: &anyhow::Error, stage: &Stage<'_>) -> anyhow::Error {
    let log = stage.proxy.log();
    let of_use = |line: &&str| {
        !["\"product\":\"metrics\"", "\"configured\""]
            .iter()
            .any(|load| line.contains(load))
    };
    let lines: Vec<&str> = log.lines().filter(of_use).collect();
    anyhow::anyhow!("{error:#}\n{}", lines.join("\n"))
}

/// The row, on a stage that is set.
pub fn judge(row: &Row, stage: &mut Stage<'_>) -> Result<()> {
    if row.warm {
        let answer = stage.warm()?;
        check_eq!(answer.status, 202, "before the fault: {answer:?}");
    }
    stage.begin(&row.inject)?;
    let before = (stage.set.broken.bytes(), stage.set.broken.connections());
    let mut answers = Vec::new();
    for ask in row.asks {
        answers.push(stage.ask(*ask)?);
    }
    let after = (stage.set.broken.bytes(), stage.set.broken.connections());
    for hold in row.holds {
        match hold {
            Hold::Untouched => check_eq!(after.0, before.0, "bytes of requests at the intake: {answers:?}"),
            Hold::Connections(most) => {
                check!(
                    after.1 - before.1 <= *most,
                    "{} connections: {answers:?}",
                    after.1 - before.1
                );
            }
            _ => holds(*hold, &answers, stage).with_context(|| format!("{hold}: {answers:#?}"))?,
        }
    }
    stage.end(&row.inject, row.leads)?;
    finish(stage)
}

/// What must hold when the fault is over: the service is back, and [`crate::table::ALWAYS`].
pub fn finish(stage: &mut Stage<'_>) -> Result<()> {
    let mut last = None;
    eventually("the service is back", BACK, || {
        let answer = stage.ask(Ask::Post(5_000))?;
        let good = relayed(&answer, 202);
        last = Some(answer);
        Ok(good.then_some(()))
    })
    .with_context(|| format!("the last answer: {last:?}"))?;
    let report = stage.finish()?;
    check!(report.all(202), "the load beside it: {report:?}");
    always(stage)
}

/// The rest of [`crate::table::ALWAYS`].
fn always(stage: &Stage<'_>) -> Result<()> {
    let world = &stage.set.world;
    let mut met = HashSet::new();
    let healthy = world.intake.seen();
    let ids = healthy
        .iter()
        .filter_map(|seen| seen.header("x-test-id").map(str::to_owned));
    for id in ids.chain(stage.set.broken.heads()).filter(|id| id != "warm") {
        check!(met.insert(id.clone()), "{id} arrived twice");
    }
    check_eq!(
        stage.set.broken.mistakes(),
        Vec::<String>::new(),
        "scripts that were not played"
    );
    check_eq!(
        world.intake.faults(),
        Vec::<String>::new(),
        "what the intake found"
    );
    check_eq!(world.leaks(), Vec::<String>::new(), "in the clear");
    let sessions = healthy.iter().map(|seen| seen.session.clone());
    for session in sessions.chain(stage.set.broken.sessions()) {
        check!(session.approved(), "a session below the policy: {session:?}");
    }
    let now = (stage.proxy.pid(), stage.proxy.worker()?);
    check_eq!(now, stage.processes(), "master and worker");
    check!(!stage.proxy.log().contains("panicked"), "a panic");
    Ok(())
}

/// The intake's own answer, whole.
fn relayed(answer: &Answer, status: u16) -> bool {
    answer.exit == 0 && answer.status == status && answer.outcome.is_none()
}

fn holds(hold: Hold, answers: &[Answer], stage: &Stage<'_>) -> Result<()> {
    let all = |good: &dyn Fn(&Answer) -> bool| answers.iter().all(good);
    match hold {
        Hold::Answered(status, outcome) => {
            check!(
                all(&|answer| answer.exit == 0
                    && answer.status == status
                    && answer.outcome.as_deref() == Some(outcome)),
                "another answer"
            );
            let again =
                all(&|answer| status != 503 || answer.text.to_ascii_lowercase().contains("\nretry-after: "));
            check!(again, "503 without Retry-After");
            counted(stage, outcome, answers.len())
        }
        Hold::Relayed(status) => {
            check!(all(&|answer| relayed(answer, status)), "another answer");
            Ok(())
        }
        Hold::Cut(outcome) => {
            check!(
                all(&|answer| answer.exit != 0
                    && (200..300).contains(&answer.status)
                    && answer.outcome.is_none()),
                "another answer"
            );
            counted(stage, outcome, answers.len())
        }
        Hold::Retries(wanted) => {
            // Of each request there is a line, a moment after its answer.
            let retries = || -> Vec<u64> {
                let lines = stage.proxy.access();
                let of = lines.iter().filter(|line| line["product"] == PRODUCT);
                let asked = of.filter(|line| line["path"] != "/warm");
                asked.filter_map(|line| line["retries"].as_u64()).collect()
            };
            eventually("access lines that say how often", Duration::from_secs(5), || {
                let found = retries();
                Ok((found.len() >= answers.len() && found.iter().sum::<u64>() == wanted).then_some(()))
            })
            .with_context(|| format!("{:?} times", retries()))
        }
        Hold::Within(seconds) => {
            let limit = harness::patient(Duration::from_secs(seconds));
            check!(all(&|answer| answer.took < limit), "too slow");
            Ok(())
        }
        Hold::Logs(text) => eventually("a line of the log", Duration::from_secs(10), || {
            Ok(stage.proxy.log().contains(text).then_some(()))
        }),
        Hold::Counts(metric) => eventually("a counter", Duration::from_secs(10), || {
            Ok((stage.proxy.metrics()?.sum(metric, &[]) > 0.0).then_some(()))
        }),
        Hold::Status(pointer) => eventually("a field of the status", Duration::from_secs(10), || {
            let status = stage.proxy.status()?;
            let found = status.pointer(pointer).filter(|value| {
                !(value.is_null() || value.as_f64() == Some(0.0) || value.as_bool() == Some(false))
            });
            Ok(found.map(drop))
        }),
        Hold::Untouched | Hold::Connections(_) | Hold::Own(_) => Ok(()),
    }
}

/// The outcome of these requests is in `/metrics`.
fn counted(stage: &Stage<'_>, outcome: &str, wanted: usize) -> Result<()> {
    let labels = [("product", PRODUCT), ("outcome", outcome)];
    // Beyond the limit nobody is asked what it wants.
    let (metric, labels) = match outcome {
        "overloaded" => ("agent_fips_proxy_connections_total", &labels[1..]),
        _ => ("agent_fips_proxy_requests_total", &labels[..]),
    };
    eventually("the outcome is counted", Duration::from_secs(5), || {
        let found = stage.proxy.metrics()?.sum(metric, labels);
        Ok((found >= f64::from(u32::try_from(wanted)?)).then_some(()))
    })
}
