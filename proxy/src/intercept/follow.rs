//! Follows Agents as they come and go: looks for them, decides for each how it is taken, and makes the kernel equal to
//! that. Every call looks at everything anew; what is as it should be is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proxy_ebpf::FLAG_ENABLED;

use super::agents::{Agent, Unseen};
use super::attach;
use super::choose::Taken;
use super::error::InterceptError;
use super::netns::Namespace;
use super::networks::{self, Key, NetworkListeners};
use super::plan::{Obstacle, Plan, Planned, Planner};
use super::status::AgentStatus;
use super::tc::{Surplus, Tc, Wanted};
use super::{HOST_NETWORK, Interceptor};

/// How long what failed for an Agent that is not taken at all is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What one look changed, also when a part of it failed. The listeners belong to whoever serves them from now on.
#[derive(Debug, Default)]
pub struct Changes {
    /// Agents whose connections are taken from now on, with the reason for the way.
    pub taken: Vec<AgentStatus>,
    /// Agents that cannot be taken, with the reason; only when that is news.
    pub not_taken: Vec<AgentStatus>,
    /// Agents that are gone, or not selected any more.
    pub gone: Vec<AgentStatus>,
    /// Networks that are served from now on.
    pub opened: Vec<NetworkListeners>,
    /// Numbers of networks that are not served any more.
    pub closed: Vec<u32>,
    /// What could not be done, in words. The next look tries again.
    pub failed: Vec<String>,
}

impl Changes {
    /// True when nothing changed.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
            && self.not_taken.is_empty()
            && self.gone.is_empty()
            && self.opened.is_empty()
            && self.closed.is_empty()
    }

    /// Takes note of a step that failed; the others are done all the same.
    pub(super) fn note(&mut self, step: Result<(), InterceptError>) {
        self.failed.extend(step.err().map(|error| error.to_string()));
    }
}

impl Interceptor {
    /// Looks for Agents and makes the kernel follow. While switched off it only finishes what switching off began. One
    /// Agent's trouble is told in its status and does not keep the others from being taken; what fails for all of them is
    /// in [`Changes::failed`] and in the status.
    pub fn sync(&mut self) -> Changes {
        let mut changes = Changes::default();
        if !self.attached {
            if self.draining.is_some_and(|until| Instant::now() >= until) {
                self.end_tc(&mut changes);
            }
            return changes;
        }
        if self.pins.maps().exists() {
            match self.discovery.scan(&self.own_cgroups()) {
                Ok(found) => {
                    self.denied = found.iter().any(|agent| agent.unseen == Some(Unseen::Denied));
                    self.follow(&found, &mut changes);
                }
                // What is known stays.
                Err(error) => changes.note(Err(error)),
            }
        } else {
            // Somebody ran `uninstall`: that is an order, not an accident.
            tracing::warn!(pins = %self.pins.root().display(), "our pins were removed: interception is off");
            self.settings.flags &= !FLAG_ENABLED;
            changes.note(self.write_settings());
            changes.note(self.detach_own());
            self.attached = false;
            self.end_tc(&mut changes);
            self.forget_all(&mut changes);
        }
        self.trouble.clone_from(&changes.failed);
        self.trouble.extend(self.out_of_sight());
        changes
    }

    /// Agents that are taken unseen are taken in the host's network only: whether there are others, the programs tell.
    fn out_of_sight(&self) -> Option<String> {
        let strangers = self.unknown_namespaces().saturating_sub(self.unknown_before);
        (self.attached && self.denied && strangers > 0).then(|| {
            format!(
                "{strangers} connections of Agents came from network namespaces that this process may not look at \
                 (intercept.on_failure decided about them): Agents in pods need CAP_SYS_ADMIN and CAP_SYS_PTRACE, with systemd \
                 the drop-in agent-fips-proxy-pods.conf"
            )
        })
    }

    fn follow(&mut self, found: &[Agent], changes: &mut Changes) {
        let cgroups: BTreeSet<u64> = found
            .iter()
            .flat_map(|agent| agent.cgroups.keys())
            .copied()
            .collect();
        self.refused.retain(|id, obstacle| {
            cgroups.contains(id) && !(self.untaken.0.contains(id) && obstacle.since.elapsed() > RETRY)
        });
        let namespaces: BTreeSet<_> = found
            .iter()
            .flat_map(|agent| agent.namespaces.keys())
            .copied()
            .collect();
        self.closed.retain(|id, obstacle| {
            namespaces.contains(id) && !(self.untaken.1.contains(id) && obstacle.since.elapsed() > RETRY)
        });
        let obstacles = self.refused.len() + self.closed.len();
        let mut plan = self.planner().plan(found);
        plan.hooks.extend(self.probe_hooks());
        self.apply_networks(&plan, changes);
        self.apply_hooks(&plan.hooks, changes);
        if self.refused.len() + self.closed.len() != obstacles {
            // What refuses our hooks leaves tc: decide once more, with that knowledge.
            plan = self.planner().plan(found);
            plan.hooks.extend(self.probe_hooks());
            self.apply_networks(&plan, changes);
            self.apply_hooks(&plan.hooks, changes);
        }
        let tc = self.apply_tc(&plan);
        changes.note(tc);
        self.forget_stale(changes);
        self.note(plan.agents, changes);
        self.note_kin(found);
        if !changes.taken.is_empty() {
            self.audit.wanted();
        }
    }

    /// What an earlier process left stays until we know of every Agent: until then nobody can say that it is not wanted.
    fn surplus(&self) -> Surplus {
        if self.pods_known {
            Surplus::Remove
        } else {
            Surplus::Keep
        }
    }

    /// True while an Agent was found that has no process or no cgroup, or a network that is not ready yet: look again soon.
    pub fn unsettled(&self) -> bool {
        self.attached && (!self.unserved.is_empty() || self.agents.values().any(|agent| agent.waiting))
    }

    /// True while classifiers of ours are wanted somewhere.
    pub fn has_classifiers(&self) -> bool {
        self.attached && self.tc.is_some()
    }

    /// True when classifiers are to be looked at although the kernel told of no change: see [`Tc::restless`].
    pub fn restless(&self) -> bool {
        self.attached && self.tc.as_ref().is_some_and(|tc| tc.restless(Instant::now()))
    }

    /// Looks at those classifiers only of which [`Interceptor::restless`] speaks. False when that did not do: then call
    /// [`Interceptor::sync`].
    pub fn sync_restless(&mut self) -> bool {
        let wanted = self.wanted();
        let Some(tc) = self
            .tc
            .as_mut()
            .filter(|_| self.attached && self.pins.maps().exists())
        else {
            return false;
        };
        let step = self
            .loaded
            .classifier_and_interfaces()
            .and_then(|(program, mut table)| tc.sync_restless(program, &mut table, &wanted, Instant::now()));
        step.is_ok()
    }

    /// True when the programs met an Agent's connection from a namespace that they were not told of since the last call.
    pub fn met_unknown_namespace(&mut self) -> bool {
        let now = self.unknown_namespaces();
        std::mem::replace(&mut self.unknown_seen, now) != now
    }

    /// How many Agents there were at the last look.
    pub fn agents(&self) -> usize {
        self.agents.len()
    }

    fn planner(&self) -> Planner<'_> {
        Planner {
            config: &self.config,
            home: self.home,
            thread: self.networks.thread(),
            refused: &self.refused,
            closed: &self.closed,
            before: &self.spots,
        }
    }

    /// Opens and closes networks. One that cannot be opened is remembered, for the next plan, and tried again.
    fn apply_networks(&mut self, plan: &Plan, changes: &mut Changes) {
        for key in self.networks.keys() {
            if !plan.networks.contains_key(&key) {
                self.close(key, changes);
            }
        }
        self.unserved.retain(|key, _| plan.networks.contains_key(key));
        let known = match self.loaded.slots() {
            Ok(known) => known,
            Err(error) => return changes.note(Err(error)),
        };
        let own = self.cgroups.directory(&self.own_path);
        for (key, namespace) in &plan.networks {
            if self.networks.get(*key).is_some() {
                continue;
            }
            let loaded = &mut self.loaded;
            let opened = self.networks.open(
                *key,
                namespace.as_ref(),
                |socket| loaded.netns_cookie_of(&own, socket),
                &known,
            );
            match opened.and_then(|listeners| self.publish(*key, listeners)) {
                Ok(listeners) => {
                    self.unserved.remove(key);
                    changes.opened.push(listeners);
                }
                Err(error) => {
                    self.close(*key, changes);
                    let why = error.to_string();
                    if self.unserved.get(key) != Some(&why) {
                        tracing::warn!(?key, %why, "cannot serve an Agent's network");
                    }
                    // Another datapath may do, unless it is only a matter of time.
                    match key {
                        Key::Namespace(id, Taken::Cgroup)
                            if !matches!(error, InterceptError::LoopbackDown) =>
                        {
                            self.closed.insert(*id, Obstacle::now(why));
                        }
                        _ => {
                            self.unserved.insert(*key, why);
                        }
                    }
                }
            }
        }
        // Workers of the program before may still serve them.
        changes.closed.extend(self.networks.forget_inherited());
        self.forget_flows(changes);
    }

    /// Tells the kernel of a network: listeners first, so that nobody is sent to where none are.
    fn publish(&mut self, key: Key, listeners: NetworkListeners) -> Result<NetworkListeners, InterceptError> {
        let [v4, v6] = listeners.descriptors();
        self.loaded.set_listeners(listeners.slot, v4, v6)?;
        if let (Key::Namespace(_, Taken::Cgroup), Some(network)) = (key, self.networks.get(key)) {
            self.loaded.put_namespace(network.cookie, network.slot)?;
        }
        Ok(listeners)
    }

    fn close(&mut self, key: Key, changes: &mut Changes) {
        let Some(network) = self.networks.close(key) else {
            return;
        };
        let by_cgroup = matches!(key, Key::Namespace(_, Taken::Cgroup));
        let removed = match by_cgroup {
            true => self.loaded.remove_namespace(network.cookie),
            false => Ok(()),
        };
        changes.note(removed.and_then(|()| self.loaded.set_listeners(network.slot, None, None)));
        if !by_cgroup {
            self.flowless.insert(network.slot);
        }
        changes.closed.push(network.id);
    }

    /// Forgets the flows of networks that are gone: one walk through the table for all of them.
    fn forget_flows(&mut self, changes: &mut Changes) {
        let gone = std::mem::take(&mut self.flowless);
        if !gone.is_empty() {
            changes.note(self.loaded.forget_flows(&gone));
        }
    }

    /// Forgets namespaces that an earlier process served and nobody asks for any more.
    fn forget_stale(&mut self, changes: &mut Changes) {
        if self.surplus() == Surplus::Keep {
            return;
        }
        let namespaces = match self.loaded.namespaces() {
            Ok(namespaces) => namespaces,
            Err(error) => return changes.note(Err(error)),
        };
        let served = self.networks.cookies_by_cgroup();
        for (cookie, slot) in namespaces {
            if slot != HOST_NETWORK && !served.contains(&cookie) {
                changes.note(self.loaded.remove_namespace(cookie));
            }
        }
    }

    /// Attaches hooks to new cgroups, removes them from those that are gone or not selected any more.
    fn apply_hooks(&mut self, wanted: &BTreeMap<u64, PathBuf>, changes: &mut Changes) {
        match attach::pinned_cgroups(&self.pins) {
            Ok(pinned) => {
                for id in pinned {
                    let keep = self.surplus() == Surplus::Keep && !self.hooked.contains_key(&id);
                    if !wanted.contains_key(&id) && !keep {
                        changes.note(attach::detach_agent(&self.pins, id).map(drop));
                    }
                }
            }
            Err(error) => changes.note(Err(error)),
        }
        self.hooked.retain(|id, _| wanted.contains_key(id));
        for (id, path) in wanted {
            let there = attach::is_attached(&self.pins, *id);
            if self.hooked.contains_key(id) && there {
                continue;
            }
            match attach::attach_agent(&mut self.loaded.ebpf, &self.cgroups, &self.pins, path, *id) {
                Ok(()) => {
                    self.hooked.insert(*id, path.clone());
                }
                // It ended between the scan and now.
                Err(_) if !self.cgroups.directory(path).exists() => {
                    changes.note(attach::detach_agent(&self.pins, *id).map(drop));
                }
                Err(error) => {
                    // What an earlier process attached still works, with the maps that we share.
                    if !there {
                        changes.note(attach::detach_agent(&self.pins, *id).map(drop));
                    }
                    self.refused.insert(*id, Obstacle::now(error.to_string()));
                }
            }
        }
    }

    fn apply_tc(&mut self, plan: &Plan) -> Result<(), InterceptError> {
        if self.tc.is_none() {
            // Also for what an earlier process left, once it is known to be unwanted.
            let left = || Ok(!self.loaded.interfaces()?.is_empty());
            if plan.spots.is_empty() && (self.surplus() == Surplus::Keep || !left()?) {
                return Ok(());
            }
            let home = Namespace::own().map_err(InterceptError::file("open", "/proc/thread-self/ns/net"))?;
            attach::attach_sk_lookup(&mut self.loaded, &self.pins, home.file())?;
            self.tc = Some(Tc::new(&self.config, self.pins.classifiers())?);
        }
        self.spots.clone_from(&plan.spots);
        self.sync_tc(self.surplus())
    }

    /// What the classifiers' tables are to say of the interfaces that were planned last.
    fn wanted(&self) -> BTreeMap<u32, Wanted> {
        self.spots
            .iter()
            .map(|(index, (spot, key))| {
                let network = self.networks.get(*key);
                let wanted = Wanted {
                    name: spot.link.name.clone(),
                    rule_device: spot.rule_device.clone(),
                    network: network.map_or(networks::NOBODY, |network| network.slot),
                    netns_cookie: network.map_or(0, |network| network.cookie),
                };
                (*index, wanted)
            })
            .collect()
    }

    /// Makes interfaces, rules and routes equal to what was planned last.
    pub(super) fn sync_tc(&mut self, surplus: Surplus) -> Result<(), InterceptError> {
        let wanted = self.wanted();
        let Some(tc) = &mut self.tc else { return Ok(()) };
        let (program, mut table) = self.loaded.classifier_and_interfaces()?;
        tc.sync(program, &mut table, &wanted, surplus, Instant::now())?;
        Ok(())
    }

    /// Ends the datapath `tc`: classifiers, rules, routes, and the networks that it served.
    pub(super) fn end_tc(&mut self, changes: &mut Changes) {
        self.draining = None;
        changes.note(self.drop_tc());
        for key in self.networks.keys() {
            self.close(key, changes);
        }
        self.forget_flows(changes);
    }

    /// Takes every classifier, rule and route of ours away.
    pub(super) fn drop_tc(&mut self) -> Result<(), InterceptError> {
        if let Some(mut tc) = self.tc.take() {
            let (_, mut table) = self.loaded.classifier_and_interfaces()?;
            tc.remove_all(&mut table)?;
        }
        self.spots.clear();
        attach::unpin(&self.pins.sk_lookup())?;
        Ok(())
    }

    /// Everything that was told of Agents, when interception ends. Networks of the datapath `tc` stay while it drains.
    pub(super) fn forget_all(&mut self, changes: &mut Changes) {
        for key in self.networks.keys() {
            if self.draining.is_none() || matches!(key, Key::Namespace(_, Taken::Cgroup)) {
                self.close(key, changes);
            }
        }
        self.forget_flows(changes);
        self.hooked.clear();
        self.refused.clear();
        self.closed.clear();
        self.unserved.clear();
        self.kin.clear();
        changes.gone = std::mem::take(&mut self.agents).into_values().collect();
    }

    /// Keeps the time since when an Agent is taken, and tells what is new.
    fn note(&mut self, agents: Vec<Planned>, changes: &mut Changes) {
        let mut before = std::mem::take(&mut self.agents);
        self.untaken = (BTreeSet::new(), BTreeSet::new());
        for planned in agents {
            let mut agent = planned.status;
            if let Some(why) = planned.keys.iter().find_map(|key| self.unserved.get(key)) {
                (agent.datapath, agent.why) = (None, why.clone());
            }
            if agent.datapath.is_none() {
                self.untaken.0.extend(planned.cgroups);
                self.untaken.1.extend(planned.namespaces);
            }
            let known = before.remove(&agent.selector);
            let same = known
                .as_ref()
                .is_some_and(|known| known.datapath == agent.datapath && known.why == agent.why);
            match known {
                Some(known) if same => agent.since = known.since,
                _ if agent.datapath.is_some() => changes.taken.push(agent.clone()),
                _ => changes.not_taken.push(agent.clone()),
            }
            self.agents.insert(agent.selector.clone(), agent);
        }
        changes.gone.extend(before.into_values());
    }
}
