//! Leaks: connections of Agents to intakes that did not pass through us. The kernel counts them, whether or not we run;
//! here the counts get the Agents' names, go to status and metrics, and raise the alarm.
//!
//! A count belongs to a cgroup or a namespace and a reason ([`proxy_ebpf::LeakKey`]), and lies in a pinned map. An Agent's
//! figure is the sum over its cgroups, those that are gone included.

mod account;
pub(super) mod names;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proxy_ebpf::{Direct, Leak, LeakKey, LeakRecord, Reason};
use serde::{Deserialize, Serialize};

use self::names::{Kin, Names};
use crate::process;

/// How often the same Agent and reason raise the alarm at most.
const ALARM: Duration = Duration::from_secs(60);

/// The leaks of one Agent for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakStatus {
    /// What named the Agent; `unknown` where its cgroup was gone before we saw it.
    pub agent: String,
    /// [`Reason::name`]
    pub reason: String,
    /// Connections, since the kernel's map was made.
    pub connections: u64,
    /// How many of them this process has reset.
    pub reset: u64,
    /// Where the last one went.
    pub last_destination: SocketAddr,
    /// Whose it was, as in `curl (4711)`.
    pub last_process: Option<String>,
}

impl LeakStatus {
    /// How many, why and whereto.
    pub fn what(&self) -> String {
        let mut what = format!(
            "{} connections ({}), the last to {}",
            self.connections, self.reason, self.last_destination
        );
        if let Some(process) = &self.last_process {
            what.push_str(&format!(" by {process}"));
        }
        if self.reset > 0 {
            what.push_str(&format!("; {} were reset", self.reset));
        }
        what
    }
}

impl fmt::Display for LeakStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.agent, self.what())
    }
}

/// The names behind the kernel's numbers, for whoever tells of leaks.
#[derive(Clone, Debug, Default)]
pub(super) struct Teller(Arc<Mutex<Names>>);

impl Teller {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the line of one connection.
    pub(super) fn tell(&self, record: &LeakRecord) {
        let LeakRecord { key, direct } = record;
        let reason = Reason::from_number(key.reason);
        tracing::warn!(
            agent = self.names().agent(key),
            destination = %destination(direct),
            process = process(direct),
            reason = reason.map_or("unknown", Reason::name),
            who = key.who,
            "an intake connection did not pass through the proxy"
        );
    }
}

/// What is known of all leaks.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    teller: Teller,
    /// What the programs' counter said at the last reading; `None`: the map is to be read in any case.
    counted: Option<u64>,
    /// What the map said then.
    seen: BTreeMap<LeakKey, u64>,
    figures: BTreeMap<(String, Reason), Figure>,
}

#[derive(Debug, Default)]
struct Figure {
    connections: u64,
    reset: u64,
    last: Direct,
    last_process: Option<String>,
    /// Not yet part of an alarm.
    untold: u64,
    alarmed: Option<Instant>,
}

impl Leaks {
    /// For whoever reads the programs' records.
    pub(super) fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// Takes note of the Agents that there are.
    pub(super) fn learn(&self, kin: &[Kin], namespaces: impl IntoIterator<Item = (u64, String)>) {
        self.teller.names().learn(kin, namespaces);
    }

    /// True when the map changed since the last reading, by the programs' counter.
    pub(super) fn changed(&self, counted: u64) -> bool {
        self.counted != Some(counted)
    }

    /// The map is to be read although no program counted.
    pub(super) fn touch(&mut self) {
        self.counted = None;
    }

    /// Takes over what the map says.
    pub(super) fn read(&mut self, counted: u64, entries: Vec<(LeakKey, Leak)>) {
        self.counted = Some(counted);
        let before = std::mem::take(&mut self.seen);
        for (key, leak) in entries {
            let known = before.get(&key).copied().unwrap_or(0);
            // Less than before: the entry made room for another one, and was made anew.
            let new = leak.count.checked_sub(known).unwrap_or(leak.count);
            self.seen.insert(key, leak.count);
            let (Some(reason), 1..) = (Reason::from_number(key.reason), new) else {
                continue;
            };
            let agent = self.teller.names().agent(&key);
            let figure = self.figures.entry((agent, reason)).or_default();
            figure.connections += new;
            figure.untold += new;
            figure.last = leak.last;
            figure.last_process = process(&leak.last);
        }
    }

    /// Connections of an Agent were reset.
    pub(super) fn note_reset(&mut self, agent: &str, reason: Reason, connections: u64) {
        let figure = self.figures.entry((agent.to_owned(), reason)).or_default();
        figure.reset += connections;
    }

    /// Raises the alarm for what is new: at once for an Agent and a reason that had none, then once a minute at most.
    pub(super) fn alarm(&mut self, now: Instant) {
        for ((agent, reason), figure) in &mut self.figures {
            let due = figure
                .alarmed
                .is_none_or(|last| now.saturating_duration_since(last) >= ALARM);
            if figure.untold == 0 || !due {
                continue;
            }
            tracing::error!(
                agent,
                reason = reason.name(),
                connections = figure.untold,
                total = figure.connections,
                destination = %destination(&figure.last),
                process = figure.last_process,
                "LEAK: intake connections of an Agent did not pass through the proxy: {}",
                words(*reason)
            );
            figure.untold = 0;
            figure.alarmed = Some(now);
        }
    }

    /// For status and metrics.
    pub(super) fn status(&self) -> Vec<LeakStatus> {
        let figures = self.figures.iter().filter(|(_, figure)| figure.connections > 0);
        figures
            .map(|((agent, reason), figure)| LeakStatus {
                agent: agent.clone(),
                reason: reason.name().to_owned(),
                connections: figure.connections,
                reset: figure.reset,
                last_destination: destination(&figure.last),
                last_process: figure.last_process.clone(),
            })
            .collect()
    }
}

/// Why, and what to do, for the log.
fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::UnknownNetns => {
            "the proxy did not serve its network namespace yet (intercept.on_failure: open)"
        }
        Reason::NoListener => "nobody of the proxy listened (intercept.on_failure: open)",
        Reason::BoundDevice => {
            "its socket is bound to a network interface, which keeps it from the proxy (intercept.on_failure: open)"
        }
        Reason::NoMemory => "the kernel had no memory to remember it (intercept.on_failure: open)",
        Reason::Around => {
            "another program of this host changed its address behind the proxy's: see TROUBLESHOOTING, `leaked`"
        }
        Reason::OpenBefore => {
            "they were open before the proxy took the Agent or knew the address (intercept.reset_existing resets them)"
        }
        Reason::NotTaken => "the Agent is selected and not intercepted: `status` says why",
        Reason::NotLed => {
            "no routing rule led its packets to the proxy: `doctor` names a rule before ours (intercept.on_failure: open)"
        }
    }
}

/// Where a connection went.
fn destination(direct: &Direct) -> SocketAddr {
    let ip = IpAddr::V6(Ipv6Addr::from(direct.destination.octets())).to_canonical();
    SocketAddr::new(ip, direct.port)
}

/// Who connected, where that can be told.
fn process(direct: &Direct) -> Option<String> {
    if direct.process == 0 {
        return None;
    }
    let name = process::in_host_namespace()
        .then(|| process::name(direct.process))
        .flatten();
    Some(match name {
        Some(name) => format!("{name} ({})", direct.process),
        None => direct.process.to_string(),
    })
}

#[cfg(test)]
mod tests;
