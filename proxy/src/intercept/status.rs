//! What interception tells about itself: for `status`, the status page and metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use ipnet::IpNet;
use proxy_ebpf::Counter;
use serde::{Deserialize, Serialize};

use super::agents::Selector;
use super::choose::Taken;
use super::leaks::LeakStatus;
use super::load::{self, Features};
use super::tc::{InterfaceState, InterfaceStatus, Tc};
use super::{Interceptor, attach};
use crate::self_test;

/// The state of interception. It is flattened into a larger message, where serde cannot read maps whose keys are no text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterceptStatus {
    /// Agents that were found.
    pub agents: Vec<AgentStatus>,
    /// Interfaces with a classifier of ours, or that should have one.
    pub interfaces: Vec<InterfaceStatus>,
    /// What failed at the last look for Agents, or keeps taken packets from reaching us.
    pub trouble: Vec<String>,
    /// Networks that are served besides the host's own.
    pub networks: Vec<ServedNetwork>,
    /// Entries of the prefix maps, without those of our own self-tests.
    pub destinations: usize,
    /// Intake connections of Agents that did not pass through us.
    #[serde(default)]
    pub leaked: Vec<LeakStatus>,
    /// The programs' counters since their maps were made, by name.
    pub counters: BTreeMap<String, u64>,
    /// What is held open or left in the kernel, so that a leak shows.
    pub resources: Resources,
    /// Optional kernel features in use.
    pub features: Features,
    /// `uname -r`
    pub kernel: String,
    /// Our own cgroup.
    pub own_cgroup: PathBuf,
    /// Where maps and links are pinned.
    pub pins: PathBuf,
}

/// A network besides the host's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedNetwork {
    /// The number that the worker knows it by.
    pub id: u32,
    /// A namespace as in `net:[4026531840]`; `interfaces` for what is behind `intercept.interfaces`.
    pub name: String,
}

/// One Agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// What named it.
    pub selector: Selector,
    /// How its connections are taken; `None`: they are not.
    pub datapath: Option<Taken>,
    /// Why this way, or why not at all.
    pub why: String,
    /// Its cgroups, below the cgroup2 root.
    pub cgroups: Vec<PathBuf>,
    /// Its network namespaces, as in `net:[4026531840]`; `host` for the host's own.
    pub namespaces: Vec<String>,
    /// True while it has no process: there is nothing to take yet.
    pub waiting: bool,
    /// When this process took it.
    pub since: SystemTime,
}

impl fmt::Display for InterfaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Shadowed => "SHADOWED",
            Self::Failed => "FAILED",
        })
    }
}

impl InterfaceStatus {
    /// How our classifier is attached, what it saw, and what is wrong.
    pub fn what(&self) -> String {
        let mut what = match (self.attached.as_deref(), self.priority, self.handle) {
            (Some(attached), Some(priority), Some(handle)) => {
                format!("{attached} priority {priority} handle {handle:#x}, ")
            }
            (Some(attached), ..) => format!("{attached}, "),
            _ => String::new(),
        };
        what.push_str(&format!("{} packets seen", self.seen));
        if self.missed > 0 {
            what.push_str(&format!(", {} missed", self.missed));
        }
        if self.reassertions > 0 {
            what.push_str(&format!(", put back {} times", self.reassertions));
        }
        if !self.detail.is_empty() {
            what.push_str(&format!(": {}", self.detail));
        }
        what
    }
}

impl fmt::Display for InterfaceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.name, self.state, self.what())
    }
}

/// Counts of what interception holds, as they were at the last [`Interceptor::count_resources`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Pods that Kubernetes names as Agents.
    pub pods: usize,
    /// Network namespaces held open by a descriptor.
    pub open_namespaces: usize,
    /// Networks that are served besides the host's own, each with a socket per family and data thread.
    pub networks: usize,
    /// Entries of the kernel's table of namespaces.
    pub namespace_entries: usize,
    /// Entries of the kernel's table of interfaces.
    pub interface_entries: usize,
    /// Cgroups with pinned hooks.
    pub hooked_cgroups: usize,
    /// Flows that the classifier took and the kernel has not forgotten.
    pub flows: usize,
    /// File descriptors of the master.
    pub descriptors: usize,
    /// Threads of the master.
    pub threads: usize,
}

impl Interceptor {
    /// What is in force, and what was counted.
    pub fn status(&self) -> InterceptStatus {
        let routing = self.tc.as_ref().map(Tc::routing_trouble).unwrap_or_default();
        InterceptStatus {
            agents: self.agents.values().cloned().collect(),
            interfaces: self.tc.as_ref().map(|tc| tc.status()).unwrap_or_default(),
            trouble: self.trouble.iter().cloned().chain(routing).collect(),
            networks: self.networks.status(),
            destinations: self.present.iter().filter(|net| !is_own(net)).count(),
            leaked: self.leaks.status(),
            counters: self.counters(),
            resources: self.resources,
            features: self.loaded.features,
            kernel: load::kernel(),
            own_cgroup: self.own_path.clone(),
            pins: self.pins.root(),
        }
    }

    /// Counts the classifier's flows anew, for the next status. A system call for each: not for every second.
    pub fn count_flows(&mut self) {
        self.resources.flows = self.loaded.flows();
    }

    /// Counts everything else that is held, for the next status. System calls for each network, entry and descriptor: not for
    /// every second either.
    pub fn count_resources(&mut self) {
        let entries = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
        self.resources = Resources {
            pods: self.discovery.pods(),
            open_namespaces: self.discovery.open_namespaces(),
            networks: self.networks.len(),
            namespace_entries: self.loaded.namespaces().map_or(0, |entries| entries.len()),
            interface_entries: self.loaded.interfaces().map_or(0, |entries| entries.len()),
            hooked_cgroups: attach::pinned_cgroups(&self.pins).map_or(0, |cgroups| cgroups.len()),
            flows: self.resources.flows,
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
        };
    }

    /// How often the programs met a connection of an Agent from a namespace that they were not told of.
    pub(super) fn unknown_namespaces(&self) -> u64 {
        [Counter::RefusedUnknownNetns, Counter::OpenUnknownNetns]
            .into_iter()
            .filter_map(|counter| self.counter(counter))
            .sum()
    }

    pub(super) fn counter(&self, counter: Counter) -> Option<u64> {
        let values = self.loaded.counters.get(&(counter as u32), 0).ok()?;
        Some(values.iter().sum())
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        Counter::ALL
            .iter()
            .filter_map(|counter| Some((counter.name().to_owned(), self.counter(*counter)?)))
            .collect()
    }
}

/// True for an entry that is there for connections of our own only.
fn is_own(net: &IpNet) -> bool {
    self_test::ADDRESSES.iter().any(|own| IpNet::from(*own) == *net)
}
