//! The orchestrator: what is measured, in which order, and how one round is measured.
//!
//! For each workload the clients of all peers are there at once, and one peer's work at a time, in short windows: what drifts on the
//! machine drifts for all. A peer that fails a window is shown with that failure; the run goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::child::{Child, interrupted, pause, watch_signals};
use super::figures::Round;
use super::memory::{self, Idle};
use super::options::Words;
use super::peers::{Front, Peer, Running, usual};
use super::process::{Cpu, Machine, Memory, USER_HZ, trees};
use super::stage::{Load, Stage, Target};
use super::{goals, intercept, report};

/// Every workload, in the order in which they run.
pub const WORKLOADS: [&str; 8] = ["W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8"];
/// Those that are about the explicit port.
const RELAYS: [&str; 5] = ["W1", "W2", "W3", "W4", "W5"];
/// Before each window, not counted.
const WARMUP: Duration = Duration::from_secs(1);
/// What the last answers of the warm-up left to do is done then.
const SETTLE: Duration = Duration::from_millis(100);
/// Each peer has as many turns in a block.
pub const WINDOWS: u32 = 8;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of [`WORKLOADS`].
    pub workloads: Vec<String>,
    /// Whom to compare.
    pub peers: Vec<Peer>,
    /// How many blocks, each with clients of its own (W7: how many times its proxies are started).
    pub rounds: usize,
    /// How long each peer works in a block, in [`WINDOWS`] windows.
    pub block: Duration,
    /// Compare with the goals.
    pub gate: bool,
    /// Where the raw figures go.
    pub json: Option<PathBuf>,
}

impl Plan {
    /// From the command line.
    pub fn parse(words: &[String]) -> Result<Self> {
        let words = Words::parse(
            words,
            &["workloads", "peers", "rounds", "seconds", "json"],
            &["gate"],
        )?;
        let workloads = words
            .list("workloads")
            .unwrap_or_else(|| WORKLOADS.map(str::to_owned).to_vec());
        if let Some(unknown) = workloads.iter().find(|name| !WORKLOADS.contains(&name.as_str())) {
            bail!("no workload `{unknown}`; there are: {}", WORKLOADS.join(", "));
        }
        let peers = match words.list("peers") {
            None => usual(),
            Some(names) => names
                .iter()
                .map(|name| Peer::named(name))
                .collect::<Result<_>>()?,
        };
        let seconds: u64 = words.number("seconds", 5)?;
        let rounds = words.number("rounds", 3)?;
        if seconds == 0 || rounds == 0 || peers.is_empty() || workloads.is_empty() {
            bail!("nothing to do: --seconds, --rounds, --peers and --workloads need at least one each");
        }
        Ok(Self {
            workloads,
            peers,
            rounds,
            block: Duration::from_secs(seconds),
            gate: words.has("gate"),
            json: words.get("json").map(PathBuf::from),
        })
    }

    /// True when this workload was asked for.
    pub fn wants(&self, workload: &str) -> bool {
        self.workloads.iter().any(|name| name == workload)
    }

    /// How long each peer works in a block of W5, which has few requests: 5 s become 8, windows of a second with 500 in each.
    pub fn paced_block(&self) -> Duration {
        self.block.mul_f64(1.6)
    }

    /// The load of W1 to W5 and W8; nothing for another.
    pub fn load(&self, workload: &str) -> Option<Load> {
        let (mode, connections, body) = match workload {
            "W1" => ("kept", 64, 1 << 10),
            "W2" => ("kept", 32, 64 << 10),
            "W3" => ("kept", 8, 3 << 20),
            "W4" => ("new", 32, 1 << 10),
            "W5" => ("paced", 8, 1 << 10),
            "W8" => ("http2", 8, 1 << 10),
            _ => return None,
        };
        let block = if mode == "paced" {
            self.paced_block()
        } else {
            self.block
        };
        Some(Load {
            mode,
            connections,
            body,
            window: block / WINDOWS,
            warmup: WARMUP,
        })
    }
}

/// Everything that a run found.
#[derive(Default)]
pub struct Results {
    /// W1 to W5, W7 and W8.
    pub rounds: Vec<Round>,
    /// W6.
    pub idle: Vec<Idle>,
    /// Peak memory after W1 to W3, by peer and part.
    pub peaks: BTreeMap<(String, String), Memory>,
    /// Date, commit, machine, versions.
    pub head: BTreeMap<String, String>,
}

/// Runs the plan, prints the tables; false when a goal was asked for and missed.
pub fn run(words: &[String]) -> Result<bool> {
    let plan = Plan::parse(words)?;
    watch_signals()?;
    raise_limit()?;
    let mut results = Results {
        head: report::head(&plan)?,
        ..Results::default()
    };
    let mut failed = Vec::new();
    for section in ["W1 to W5", "W6", "W7", "W8"] {
        // What was found before, in many minutes, is not lost for it.
        if let Err(error) = self::section(section, &plan, &mut results) {
            interrupted()?;
            eprintln!("bench-relay: {section}: {error:#}");
            failed.push(format!("{section}: {error:#}"));
        }
    }
    let verdicts = goals::judge(&goals::of(&plan.workloads), &results);
    report::print(&plan, &results, &verdicts);
    if let Some(path) = &plan.json {
        report::write(path, &results, &verdicts)?;
    }
    if !failed.is_empty() {
        bail!("not everything could be measured: {}", failed.join("; "));
    }
    Ok(!plan.gate || goals::passed(&verdicts))
}

/// One part of a run, if it was asked for.
fn section(name: &str, plan: &Plan, results: &mut Results) -> Result<()> {
    match name {
        "W6" if plan.wants(name) => results.idle = memory::run(&plan.peers)?,
        "W7" if plan.wants(name) => results.rounds.extend(intercept::datapaths(plan)?),
        "W8" if plan.wants(name) => results.rounds.extend(intercept::https(plan)?),
        "W1 to W5" => relays(plan, results)?,
        _ => {}
    }
    Ok(())
}

/// Thousands of connections in W6: everybody inherits the limit.
pub fn raise_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    /// 5,000 clients of stunnel are 10,000 sockets; haproxy asks for two for each of its `maxconn` before it starts.
    const FILES: u64 = 18_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = hard.max(FILES);
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
        .with_context(|| format!("cannot raise the limit of open files from {hard} to {FILES}"))
}

/// W1 to W5: all peers at once on one host, each measured while the others idle.
fn relays(plan: &Plan, results: &mut Results) -> Result<()> {
    let workloads: Vec<&String> = plan
        .workloads
        .iter()
        .filter(|name| RELAYS.contains(&name.as_str()))
        .collect();
    if workloads.is_empty() {
        return Ok(());
    }
    let stage = Stage::one_host()?;
    let running = plan
        .peers
        .iter()
        .map(|peer| Running::start(&stage, *peer, Front::Clear))
        .collect::<Result<Vec<_>>>()?;
    for workload in workloads {
        let load = plan.load(workload).context("a workload without a load")?;
        let parts: Vec<Part> = running.iter().map(|peer| Part::of(peer, &stage)).collect();
        results
            .rounds
            .extend(alternating(0..plan.rounds, workload, &parts, &load)?);
        // The peak belongs to all three: of fewer it would be another figure under the same name.
        if workload == "W3" && plan.wants("W1") && plan.wants("W2") {
            for peer in running.iter().filter(|peer| !peer.roots().is_empty()) {
                for (part, processes) in memory::parts(peer)? {
                    let key = (peer.peer.name().to_owned(), part);
                    results.peaks.insert(key, Memory::of(&processes)?);
                }
            }
        }
    }
    Ok(())
}

/// One that takes part in a workload.
pub struct Part<'a> {
    /// As in the tables.
    pub name: String,
    /// Roots of its process trees.
    pub processes: Vec<u32>,
    /// How it is reached.
    pub target: Target<'a>,
    /// Where it stands.
    pub stage: &'a Stage,
}

impl<'a> Part<'a> {
    /// A peer on a stage.
    pub fn of(peer: &Running<'a>, stage: &'a Stage) -> Self {
        Self {
            name: peer.peer.name().to_owned(),
            processes: peer.roots(),
            target: peer.target.clone(),
            stage,
        }
    }
}

/// The rounds of a workload, one for each window of these blocks.
///
/// A machine's speed drifts by some per cent within seconds, so windows are short and follow one another at once: the clients of all
/// parts are there, one part's at work. Every other window has the order turned round (A B B A), so that a drift favours nobody, and
/// who begins changes with each two, so that nobody follows on himself more often than another. Each block has clients of its own: what
/// their connections have by chance (which data thread, which port) changes.
pub fn alternating(
    blocks: std::ops::Range<usize>,
    workload: &str,
    parts: &[Part],
    load: &Load,
) -> Result<Vec<Round>> {
    let mut all = Vec::new();
    for block in blocks {
        let mut clients: Vec<Result<Clients>> = parts.iter().map(|part| Clients::start(part, load)).collect();
        let begin = all.len();
        for window in 0..WINDOWS as usize {
            let round = block * WINDOWS as usize + window;
            let mut order: Vec<usize> = (0..parts.len()).collect();
            order.rotate_left(round / 2 % parts.len());
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                interrupted()?;
                let found = match &mut clients[index] {
                    Ok(clients) => clients.window(),
                    Err(error) => Err(anyhow::anyhow!("{error:#}")),
                };
                all.push(named(found, workload, &parts[index].name, round)?);
            }
        }
        for part in parts {
            eprintln!("{}", report::progress(&all[begin..], &part.name, block));
        }
    }
    Ok(all)
}

/// A round with its name. A failure is a round's error: the run goes on.
fn named(found: Result<Round>, workload: &str, peer: &str, round: usize) -> Result<Round> {
    let mut found = match found {
        Ok(found) => found,
        Err(error) => {
            interrupted()?;
            eprintln!("bench-relay: {workload}, {peer}: {error:#}");
            Round {
                errors: BTreeMap::from([(format!("the round failed: {error:#}"), 1)]),
                ..Round::default()
            }
        }
    };
    (found.workload, found.peer, found.round) = (workload.to_owned(), peer.to_owned(), round);
    Ok(found)
}

/// What the clocks say at one moment.
struct Moment {
    peer: Cpu,
    client: Cpu,
    backend: Cpu,
    ours: Cpu,
    machine: Machine,
}

impl Moment {
    fn now(part: &Part, client: u32) -> Result<Self> {
        // Everything that belongs to the run is below this process.
        let own = std::process::id();
        let (ours, machine) = (Cpu::of(&[own])?, Machine::now()?);
        Ok(Self {
            client: Cpu::of(&[client])?,
            backend: Cpu::of(&[part.stage.backend_pid()])?,
            peer: Cpu::of(&part.processes)?,
            ours,
            machine,
        })
    }
}

/// A part's clients, between two windows.
struct Clients<'a> {
    part: &'a Part<'a>,
    load: Load,
    process: Child,
    /// What the backend counted up to the last window, or before the warm-up: what came since belongs to the next one.
    counted: Value,
}

impl<'a> Clients<'a> {
    /// Starts them and lets them warm up.
    fn start(part: &'a Part<'a>, load: &Load) -> Result<Self> {
        let counted = part.stage.counters()?;
        let process = part.stage.load(&part.target, load)?;
        let word = process.line(load.warmup + Duration::from_secs(30))?;
        if word != "warm" {
            bail!("the load generator said {word}");
        }
        pause(SETTLE)?;
        Ok(Self {
            part,
            load: *load,
            process,
            counted,
        })
    }

    /// One window.
    fn window(&mut self) -> Result<Round> {
        let (part, load) = (self.part, &self.load);
        let before_counters = part.stage.counters()?;
        let before = Moment::now(part, self.process.pid())?;
        self.process.say("go")?;
        let line = self.process.line(load.window + Duration::from_secs(30))?;
        let after = Moment::now(part, self.process.pid())?;
        let after_counters = part.stage.counters()?;
        let first = std::mem::replace(&mut self.counted, after_counters.clone());
        let said: Value =
            serde_json::from_str(&line).with_context(|| format!("the load generator said {line}"))?;
        let number = |name: &str| {
            said[name]
                .as_u64()
                .with_context(|| format!("no {name} in {line}"))
        };
        let grown = |name: &str| {
            let at = |counters: &Value| counters[name].as_u64().unwrap_or(0);
            at(&after_counters).saturating_sub(at(&before_counters))
        };
        let (requests, elapsed_ns) = (number("requests")?, number("elapsed_ns")?);
        let mut errors: BTreeMap<String, u64> = serde_json::from_value(said["errors"].clone())?;
        for (fault, count) in grown_table(&first["faults"], &after_counters["faults"]) {
            *errors.entry(format!("backend: {fault}")).or_default() += count;
        }
        let body = load.body as u64;
        let arrived = (grown("requests"), grown("bytes"));
        if errors.is_empty() && arrived != (requests, requests * body) {
            errors.insert(
                format!(
                    "{requests} answers, but {} requests with {} bytes at the backend",
                    arrived.0, arrived.1
                ),
                1,
            );
        }
        let (others, steal) = around(&before, &after, elapsed_ns);
        Ok(Round {
            elapsed_ns,
            requests,
            body,
            errors,
            p50_ns: number("p50_ns")?,
            p99_ns: number("p99_ns")?,
            p999_ns: number("p999_ns")?,
            cpu_ns: match part.processes.is_empty() {
                true => None,
                false => Some(after.peer.since(&before.peer).context("CPU time of the peer")?),
            },
            user: after.peer.user_share(&before.peer),
            client_ns: after
                .client
                .since(&before.client)
                .context("CPU time of the client")?,
            backend_ns: after
                .backend
                .since(&before.backend)
                .context("CPU time of the backend")?,
            others,
            steal,
            upstream: grown("connections"),
            handshakes: (grown("full"), grown("resumed")),
            suites: grown_table(&first["suites"], &after_counters["suites"])
                .into_keys()
                .collect::<Vec<_>>()
                .join(","),
            ..Round::default()
        })
    }
}

/// CPUs that others kept busy, and CPUs that were stolen.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds and ticks of seconds")]
fn around(before: &Moment, after: &Moment, elapsed_ns: u64) -> (f64, f64) {
    let ticks = |now: u64, then: u64| now.saturating_sub(then) as f64 / USER_HZ * 1e9;
    let ours: u64 = after
        .ours
        .processes
        .iter()
        .map(|(pid, now)| now.saturating_sub(before.ours.processes.get(pid).copied().unwrap_or(0)))
        .sum();
    let elapsed = elapsed_ns.max(1) as f64;
    let busy = ticks(after.machine.busy, before.machine.busy);
    (
        ((busy - ours as f64) / elapsed).max(0.0),
        ticks(after.machine.steal, before.machine.steal) / elapsed,
    )
}

fn grown_table(before: &Value, after: &Value) -> BTreeMap<String, u64> {
    let mut grown = BTreeMap::new();
    for (name, count) in after.as_object().into_iter().flatten() {
        let more = count
            .as_u64()
            .unwrap_or(0)
            .saturating_sub(before[name].as_u64().unwrap_or(0));
        if more > 0 {
            grown.insert(name.clone(), more);
        }
    }
    grown
}

/// For the raw figures.
pub fn json(results: &Results) -> Value {
    let peaks: Vec<Value> = results
        .peaks
        .iter()
        .map(|((peer, part), memory)| {
            json!({"peer": peer, "part": part, "peak_rss_kib": memory.peak, "rss_kib": memory.rss, "pss_kib": memory.pss})
        })
        .collect();
    json!({
        "head": results.head,
        "rounds": results.rounds.iter().map(Round::json).collect::<Vec<_>>(),
        "idle": results.idle.iter().map(Idle::json).collect::<Vec<_>>(),
        "peaks_after_w3": peaks,
    })
}

/// The processes of a tree, split into the first and those below it.
pub fn family(root: u32) -> Result<(i32, Vec<i32>)> {
    let mut all = trees(&[root])?;
    let root = i32::try_from(root)?;
    all.retain(|pid| *pid != root);
    Ok((root, all))
}
