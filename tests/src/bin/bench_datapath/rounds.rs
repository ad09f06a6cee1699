//! One datapath, switched on and off in turn: times with and without programs, and what the kernel says of each program's runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_fips_proxy::intercept::{Changes, Interceptor, Leave};
use anyhow::{Context, Result, bail};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use harness::bench::figures::Spread;
use harness::bpf;
use nix::unistd::Pid;

use crate::cases::{Case, Counts};
use crate::ends::{Client, Serving, Who};

/// How often each row is done while the kernel counts runs.
const PASSES: u32 = 9;
/// Fewer runs for an operation are of the connection that was made or closed beside it.
const STRAY: f64 = 0.005;

/// Everybody who can be told to do something.
pub struct Clients(pub Vec<(Who, Client)>);

impl Clients {
    fn of(&mut self, who: Who) -> Result<&mut Client> {
        self.0
            .iter_mut()
            .find_map(|(known, client)| (*known == who).then_some(client))
            .with_context(|| format!("no client {who:?}"))
    }
}

/// What a row took.
pub struct Times {
    /// The row.
    pub case: Case,
    /// Nanoseconds for an operation without a program, by round.
    pub off: Vec<f64>,
    /// The same with programs.
    pub on: Vec<f64>,
}

/// What the kernel says of one program during a row.
pub struct Runs {
    /// The row.
    pub case: Case,
    /// `connect4`
    pub program: String,
    /// How often it ran for one operation.
    pub per_operation: f64,
    /// Nanoseconds of one run, over the passes.
    pub ns: Spread,
}

/// A datapath and those who use it.
pub struct Stage<'a> {
    kernel: Interceptor,
    on: bool,
    clients: &'a mut Clients,
    /// Whether the proxy's listeners answer.
    answering: Arc<AtomicBool>,
    /// The listeners that came with switching on.
    serving: Vec<Serving>,
}

impl<'a> Stage<'a> {
    /// Nothing is switched on yet.
    pub fn new(kernel: Interceptor, clients: &'a mut Clients, answering: &Arc<AtomicBool>) -> Self {
        Self {
            kernel,
            on: false,
            clients,
            answering: Arc::clone(answering),
            serving: Vec::new(),
        }
    }

    fn switch(&mut self, on: bool) -> Result<()> {
        if self.on == on {
            return Ok(());
        }
        self.serving.clear();
        let changes = if on {
            self.kernel.switch_on()?
        } else {
            self.kernel.switch_off(Duration::ZERO)
        };
        self.serve(changes)?;
        self.on = on;
        Ok(())
    }

    fn serve(&mut self, changes: Changes) -> Result<()> {
        if let Some(failed) = changes.failed.first() {
            bail!("switching: {failed}");
        }
        for network in changes.opened {
            for listener in [network.v4, network.v6].into_iter().flatten() {
                self.serving.push(Serving::start(listener, &self.answering)?);
            }
        }
        Ok(())
    }

    /// A turn of a row; what happens between getting ready and going is the caller's.
    fn turn<T>(&mut self, case: &Case, ready: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
        self.answering.store(case.op.wants_answers(), Ordering::Relaxed);
        let address = if self.on { case.on } else { case.off };
        let client = self.clients.of(case.who)?;
        let context = || format!("{}, IPv{}", case.what, case.family);
        client
            .prepare(case.op, address, case.op.times())
            .with_context(context)?;
        let made = ready()?;
        Ok((client.go().with_context(context)?, made))
    }

    /// Times of every row in so many rounds, after one that does not count.
    pub fn times(&mut self, cases: &[Case], rounds: usize) -> Result<Vec<Times>> {
        let mut times: Vec<Times> = cases
            .iter()
            .map(|case| Times {
                case: case.clone(),
                off: Vec::new(),
                on: Vec::new(),
            })
            .collect();
        for round in 0..=rounds {
            // Off, on, on, off: half of the switching, and no side always first.
            for on in if round % 2 == 0 {
                [false, true]
            } else {
                [true, false]
            } {
                self.switch(on)?;
                for row in &mut times {
                    let (time, ()) = self.turn(&row.case, || Ok(()))?;
                    if round > 0 {
                        if on { &mut row.on } else { &mut row.off }.push(time);
                    }
                }
            }
        }
        Ok(times)
    }

    /// What each program did in each row, and whether each row is what it says. `Err` in the result: the kernel does not tell.
    pub fn runs(&mut self, cases: &[Case]) -> Result<Result<Vec<Runs>, String>> {
        self.switch(true)?;
        let stats = match enable_stats(Stats::RunTime) {
            Ok(stats) => stats,
            Err(error) => return Ok(Err(format!("bpf(BPF_ENABLE_STATS): {error}"))),
        };
        let ours = bpf::held(Pid::this())?.programs;
        if let Some(program) = loaded_programs()
            .flatten()
            .find(|program| ours.contains(&program.id()) && program.size_jitted() == 0)
        {
            bail!(
                "`{}` is interpreted: figures without the JIT compiler (net.core.bpf_jit_enable) say nothing of other machines",
                program.name_as_str().unwrap_or("?")
            );
        }
        let mut seen: BTreeMap<(usize, String), Vec<(f64, f64)>> = BTreeMap::new();
        for _ in 0..PASSES {
            for (index, case) in cases.iter().enumerate() {
                let counted = self.counted(case);
                let (_, before) = self.turn(case, || Ok(counters(&ours)))?;
                let after = counters(&ours);
                self.check(case, counted)?;
                let operations = f64::from(case.op.times());
                for (program, (time, runs)) in after {
                    let (time_before, runs_before) = before.get(&program).copied().unwrap_or_default();
                    let runs = number(runs - runs_before);
                    let time = (time - time_before).as_secs_f64() * 1e9;
                    if runs > 0.0 {
                        seen.entry((index, program))
                            .or_default()
                            .push((runs / operations, time / runs));
                    }
                }
            }
        }
        drop(stats);
        let mut all = Vec::new();
        for ((index, program), passes) in seen {
            let of = |pick: fn(&(f64, f64)) -> f64| passes.iter().map(pick).collect::<Vec<_>>();
            let per_operation = of(|pass| pass.0).iter().sum::<f64>() / f64::from(PASSES);
            if per_operation >= STRAY {
                all.push(Runs {
                    case: cases[index].clone(),
                    program,
                    per_operation,
                    ns: Spread::of(&of(|pass| pass.1)).context("no pass")?,
                });
            }
        }
        Ok(Ok(all))
    }

    fn counted(&self, case: &Case) -> u64 {
        let (Some(Counts::Each(name)) | Some(Counts::Once(name))) = case.counts else {
            return 0;
        };
        let counters = self.kernel.status().counters;
        counters.get(name).copied().unwrap_or(0)
    }

    /// A row that is not what it says would be a figure without a meaning.
    fn check(&self, case: &Case, before: u64) -> Result<()> {
        let wanted = match case.counts {
            None => return Ok(()),
            Some(Counts::Each(_)) => u64::from(case.op.times()),
            Some(Counts::Once(_)) => 1,
        };
        let counted = self.counted(case) - before;
        if counted < wanted {
            bail!(
                "{}, IPv{}: {:?} counted {counted} of {wanted}: this row is not what it says",
                case.what,
                case.family,
                case.counts
            );
        }
        Ok(())
    }

    /// Takes everything away.
    pub fn end(mut self) -> Result<()> {
        self.serving.clear();
        self.kernel.leave(Leave::Nothing)?;
        Ok(())
    }
}

/// Time on the processor and runs of each of these programs, by name.
fn counters(ours: &BTreeSet<u32>) -> BTreeMap<String, (Duration, u64)> {
    loaded_programs()
        .flatten()
        .filter(|program| ours.contains(&program.id()))
        .map(|program| {
            let name = program.name_as_str().unwrap_or("?").to_owned();
            (name, (program.run_time(), program.run_count()))
        })
        .collect()
}

/// Counts here are far below 2^32.
fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
