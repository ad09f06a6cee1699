//! What interception would do on this host with this configuration, without doing it: for `doctor`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::agents::{Discovery, PodRef};
use super::error::InterceptError;
use super::exclusive;
use super::host::Cgroup2;
use super::netns::{Namespace, NamespaceThread};
use super::pins::PinDirectory;
use super::plan::{Obstacle, Plan, Planner};
use super::preflight::Check;
use super::status::AgentStatus;
use super::tc::{
    self, Attachment, Entry, InterfaceState, InterfaceStatus, Judged, Netlink, Reached, Returns,
};
use super::{host_checks, own};
use crate::config::{self, ClassifierAttach, Datapath, SamePriority, UpstreamNetwork};

/// What will happen.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// Every Agent that is there now, and how it will be taken.
    pub agents: Vec<AgentStatus>,
    /// Every interface that has classifiers, or will have ours.
    pub interfaces: Vec<InterfaceForecast>,
    /// The host's settings that interception depends on here.
    pub checks: Vec<Check>,
}

impl Forecast {
    /// True when every Agent that is there will be intercepted.
    pub fn good(&self) -> bool {
        self.agents.iter().all(|agent| agent.datapath.is_some())
            && self
                .interfaces
                .iter()
                .all(|interface| !interface.needed || interface.reached == Some(true))
            && self.checks.iter().all(|check| check.ok || !check.required)
    }

    /// What the running proxy sees counts more than what is foreseen of the same interface.
    pub fn observe(&mut self, running: &[InterfaceStatus]) {
        for seen in running.iter().filter(|seen| seen.state != InterfaceState::Active) {
            for interface in self
                .interfaces
                .iter_mut()
                .filter(|interface| interface.index == seen.index)
            {
                interface.reached = Some(false);
                interface.detail = format!("the running proxy says: {seen}");
            }
        }
    }
}

/// One interface.
#[derive(Debug, Serialize)]
pub struct InterfaceForecast {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// True when an Agent will be taken here.
    pub needed: bool,
    /// Everybody's classifiers on ingress in the order in which they run.
    pub chain: Vec<ChainLine>,
    /// How ours stands, or would stand.
    pub ours: String,
    /// Whether an Agent's packets reach ours; `None`: that depends on what a program answers, which nobody asked it.
    pub reached: Option<bool>,
    /// Why, and the setting to change.
    pub detail: String,
    /// What else to know.
    pub advice: Vec<String>,
}

/// One classifier of an interface.
#[derive(Debug, Serialize)]
pub struct ChainLine {
    /// Place, kind, program and owner.
    #[serde(flatten)]
    pub entry: Entry,
    /// What it answers for an intake packet; `unknown` unless it was asked.
    pub returns: Returns,
}

/// Looks at everything. `pods`: what Kubernetes named; `probe`: run others' programs once with a test packet.
///
/// # Errors
/// No cgroup2, or no right to look.
pub fn forecast(
    config: &config::Intercept,
    upstream: UpstreamNetwork,
    pods: Vec<PodRef>,
    probe: bool,
) -> Result<Forecast, InterceptError> {
    let cgroups = Cgroup2::find()?;
    let mut discovery = Discovery::new(&config.agents, cgroups.clone())?;
    discovery.set_pods(pods);
    let own = own::current()
        .and_then(|path| cgroups.id(&path))
        .unwrap_or_default();
    let found = discovery.scan(&[own])?;
    let mut refused = BTreeMap::new();
    for (id, path) in found.iter().flat_map(|agent| &agent.cgroups) {
        if let Some(why) = exclusive::refusal(&cgroups, path) {
            refused.insert(*id, Obstacle::now(why));
        }
    }
    let thread = NamespaceThread::start().map_err(|source| InterceptError::Call {
        call: "starting the thread that enters network namespaces",
        source,
    })?;
    let closed = BTreeMap::new();
    let before = BTreeMap::new();
    let planner = Planner {
        config,
        home: Namespace::own()
            .map_err(InterceptError::file("open", "/proc/thread-self/ns/net"))?
            .id(),
        thread: &thread,
        refused: &refused,
        closed: &closed,
        before: &before,
    };
    let plan = planner.plan(&found);
    let routed = planner.routed_here(&found);
    let uses_tc = config.datapath == Datapath::Tc || !plan.spots.is_empty();
    Ok(Forecast {
        interfaces: interfaces(config, &plan, probe)?,
        checks: host_checks::checks(
            config,
            uses_tc,
            &plan
                .spots
                .values()
                .map(|(spot, _)| spot.rule_device.clone())
                .collect(),
            routed && upstream == UpstreamNetwork::Pod,
        ),
        agents: plan.agents.into_iter().map(|planned| planned.status).collect(),
    })
}

fn interfaces(
    config: &config::Intercept,
    plan: &Plan,
    probe: bool,
) -> Result<Vec<InterfaceForecast>, InterceptError> {
    let mut netlink = Netlink::open()?;
    // Without a place for pins there is no TCX link of ours.
    let pins = PinDirectory::find()
        .map(|pins| pins.classifiers())
        .unwrap_or_default();
    let mut forecasts = Vec::new();
    let mut asked: BTreeMap<u32, Returns> = BTreeMap::new();
    for link in tc::links(&mut netlink)? {
        let needed = plan.spots.contains_key(&link.index);
        // An interface can go while we look.
        let Ok(chain) = tc::view(&mut netlink, &link, None, &pins) else {
            continue;
        };
        if chain.is_empty() && !needed {
            continue;
        }
        let judged: Vec<Judged> = chain
            .into_iter()
            .map(|entry| {
                let returns = match (&entry.program, entry.ours) {
                    (_, true) => Returns::Unspec,
                    (Some(program), _) if probe => *asked.entry(program.id).or_insert_with(|| {
                        tc::probe(program.id, &config.ports).map_or(Returns::Unknown, tc::Probe::worst)
                    }),
                    _ => Returns::Unknown,
                };
                Judged { entry, returns }
            })
            .collect();
        forecasts.push(judge(config, &link, needed, judged));
    }
    Ok(forecasts)
}

fn judge(config: &config::Intercept, link: &tc::Link, needed: bool, chain: Vec<Judged>) -> InterfaceForecast {
    let tcx = match config.classifier_attach {
        ClassifierAttach::Tcx => true,
        ClassifierAttach::Netlink => false,
        ClassifierAttach::Auto => tc::tcx_supported(&link.name).unwrap_or(false),
    };
    let attachment = if tcx {
        Attachment::TcxFirst
    } else {
        Attachment::Classic {
            priority: config.classifier_priority,
            prepend: config.classifier_same_priority == SamePriority::Prepend,
        }
    };
    let others: Vec<Judged> = chain
        .iter()
        .filter(|judged| !judged.entry.ours)
        .cloned()
        .collect();
    let mut forecast = tc::forecast(&others, attachment);
    forecast.advice.extend(
        others
            .iter()
            .filter(|judged| judged.returns == Returns::Shot)
            .map(|judged| {
                format!(
                    "{} drops a test packet to port {}: should it drop an Agent's packets to the intake too, nothing of ours gets \
                     out either, since the proxy's own connections for this pod leave by the same interface",
                    judged.entry,
                    config
                        .ports
                        .iter()
                        .map(u16::to_string)
                        .collect::<Vec<_>>()
                        .join(" or ")
                )
            }),
    );
    let (reached, detail) = match forecast.reached {
        Reached::Yes => (Some(true), "an Agent's packets reach our classifier".to_owned()),
        Reached::No { by, setting } => (
            Some(false),
            format!("{by} ends the chain before ours: set {setting}"),
        ),
        Reached::Unknown { by, why, setting } => (
            None,
            format!("it depends on {by}: {why}; {setting}, or ask it with `doctor --probe`"),
        ),
    };
    InterfaceForecast {
        name: link.name.clone(),
        index: link.index,
        needed,
        ours: match attachment {
            Attachment::TcxFirst => "TCX, first".to_owned(),
            Attachment::Classic { priority, prepend } => format!(
                "classic filter, intercept.classifier_priority {priority}{}",
                if prepend { ", before others of it" } else { "" }
            ),
        },
        chain: chain
            .into_iter()
            .map(|Judged { entry, returns }| ChainLine { entry, returns })
            .collect(),
        reached,
        detail,
        advice: forecast.advice,
    }
}
