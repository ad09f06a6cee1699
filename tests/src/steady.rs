//! A load that runs throughout a case, and the account of what reached the intake.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::agent::{Failed, Load, Report};
use crate::cgroup::Cgroup;
use crate::intake::Seen;
use crate::netns::Host;
use crate::world::{API_KEY, VERSIONED, World};
use crate::{check, check_eq};

/// For whatever must come; it decides nothing but that a case ends.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Where a product's explicit port is.
pub const EXPLICIT: &str = "http://localhost:9804/api/v2/series";

/// Where an Agent sends what is intercepted.
pub fn intercepted() -> String {
    format!("http://{VERSIONED}/api/v2/series")
}

/// A load until told: `clients` of `name`, each request with a body of its own, `each` requests a connection.
pub fn start(
    host: &Host,
    agent: Option<&Cgroup>,
    url: &str,
    name: &str,
    clients: u32,
    each: u32,
    more: &[&str],
) -> Result<Load> {
    let (clients, each) = (clients.to_string(), each.to_string());
    let words = [
        "--url",
        url,
        "--name",
        name,
        "--clients",
        &clients,
        "--per-connection",
        &each,
        "--body",
        "700",
        "--api-key",
        API_KEY,
        "--retries",
        "5",
    ];
    let words: Vec<&str> = words.iter().chain(more).copied().collect();
    Load::start(host, agent, &words)
}

/// Two open loops of `rate` requests a second together, over `clients` connections together: half to the explicit port, half from an
/// Agent in `cgroup` and intercepted. Both ways keep a connection for some requests, then make another.
pub fn both(host: &Host, cgroup: &Cgroup, clients: u32, rate: u32) -> Result<[Load; 2]> {
    /// Requests on one connection.
    const EACH: u32 = 25;
    let half = (rate / 2).to_string();
    let more = ["--rate", half.as_str()];
    let url = intercepted();
    Ok([
        start(host, None, EXPLICIT, BOTH[0], clients / 2, EACH, &more)?,
        start(host, Some(cgroup), &url, BOTH[1], clients / 2, EACH, &more)?,
    ])
}

/// The names of the loads of [`both`].
pub const BOTH: [&str; 2] = ["explicit", "taken"];

/// What some loads did together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Requests.
    pub requests: u64,
    /// Of these, sent again.
    pub again: usize,
    /// The longest that one took, in milliseconds.
    pub slowest_ms: u64,
}

impl Sum {
    /// Of these reports.
    pub fn of(reports: &[Report]) -> Self {
        reports.iter().fold(Self::default(), |sum, report| Self {
            requests: sum.requests + report.count("attempts"),
            again: sum.again + report.again().len(),
            slowest_ms: sum.slowest_ms.max(report.count("slowest_ms")),
        })
    }

    /// Requests a second.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn rate(&self, time: Duration) -> f64 {
        self.requests as f64 / time.as_secs_f64()
    }
}

/// Requests of loads as the intake saw them. A byte and its key for each: of a long run there are millions.
#[derive(Default)]
pub struct Account {
    /// By load and number of the request: a bit for each try that came.
    loads: BTreeMap<String, BTreeMap<u64, u8>>,
    /// Tries that came more than once.
    doubled: Vec<String>,
    faults: Vec<String>,
}

/// A request that came more than once.
#[derive(Debug)]
pub struct Twice {
    /// Its id.
    pub id: String,
    /// What the client says of the tries that came, but for the one that was answered.
    pub failed: Vec<Failed>,
}

impl Account {
    /// What an intake has seen until now.
    pub fn of(world: &World) -> Self {
        let mut account = Self::default();
        account.add(world.intake.seen());
        account
    }

    /// Takes what the intake has seen since the last time.
    pub fn take(&mut self, world: &World) {
        self.add(world.intake.take());
    }

    /// More that an intake has seen.
    pub fn add(&mut self, all: Vec<Seen>) {
        for seen in all {
            let about = || format!("{} {}", seen.method, seen.path());
            self.faults
                .extend(seen.faults.iter().map(|fault| format!("{}: {fault}", about())));
            let Some((load, number)) = seen.header("x-test-id").and_then(|id| id.rsplit_once('-')) else {
                continue;
            };
            let tries = seen
                .header("x-test-try")
                .and_then(|word| word.parse::<u32>().ok());
            let (Ok(number), Some(bit)) = (number.parse(), tries.and_then(|tries| 1u8.checked_shl(tries)))
            else {
                self.faults
                    .push(format!("{}: request {load}-{number}, try {tries:?}", about()));
                continue;
            };
            let load = self.loads.entry(load.to_owned()).or_default();
            let came = load.entry(number).or_default();
            if *came & bit != 0 {
                let id = seen.header("x-test-id").unwrap_or_default();
                self.doubled.push(format!("{id}, try {}", bit.trailing_zeros()));
            }
            *came |= bit;
        }
    }

    /// How many requests of a load came.
    pub fn requests(&self, load: &str) -> u64 {
        self.loads.get(load).map_or(0, |requests| requests.len() as u64)
    }

    /// Every request of a load was answered 202 and came intact, each try of it at most once; nobody was refused, and what was sent
    /// again was so because its connection ended without an answer. Those that came more than once.
    pub fn whole(&self, load: &str, report: &Report, log: &str) -> Result<Vec<Twice>> {
        check!(report.all(202), "{load}: {report:?}\n{log}");
        check_eq!(self.faults, Vec::<String>::new(), "{load}: faults");
        check_eq!(
            self.doubled,
            Vec::<String>::new(),
            "sent once and came twice\n{log}"
        );
        let again = report.again();
        let others: Vec<_> = again
            .iter()
            .filter(|(_, tries)| tries.iter().any(|one| !one.broke()))
            .collect();
        check!(
            others.is_empty(),
            "{load}: sent again for another reason than a broken connection: {others:?}\n{log}"
        );
        check_eq!(
            self.requests(load),
            report.count("attempts"),
            "{load}: requests at the intake"
        );
        let mut twice = Vec::new();
        for (number, came) in self.loads.get(load).into_iter().flatten() {
            let id = format!("{load}-{number}");
            let failed = again.get(&id).map(Vec::as_slice).unwrap_or_default();
            // The answer belongs to the last try: those before came to nothing for the client.
            check!(
                8 - came.leading_zeros() as usize == failed.len() + 1,
                "{id}: tries {came:#b} came, but the client was answered after {failed:?}\n{log}"
            );
            if came.count_ones() > 1 {
                let failed = failed.iter().enumerate();
                twice.push(Twice {
                    id,
                    failed: failed
                        .filter(|(number, _)| came & (1 << number) != 0)
                        .map(|(_, one)| one.clone())
                        .collect(),
                });
            }
        }
        Ok(twice)
    }
}
