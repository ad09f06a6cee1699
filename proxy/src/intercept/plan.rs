//! Decides how each Agent is taken: by cgroup hooks, by a classifier on the host side of its interface, or not at all.
//! Looks, and changes nothing: the master acts on the plan (`follow`), `doctor` shows it (`forecast`).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::agents::{Agent, Selector, Unseen};
use super::choose::{Choice, Facts, Taken, choose};
use super::netns::{Namespace, NamespaceId, NamespaceThread};
use super::networks::Key;
use super::status::AgentStatus;
use super::tc::{self, Netlink, Spot};
use crate::config;

/// Why an Agent is taken whose processes we may not look at.
const HOOKED_UNSEEN: &str = "connections are rewritten at connect(), in the host's network; its processes cannot be seen: were they in \
                             a pod, the proxy would need CAP_SYS_ADMIN and CAP_SYS_PTRACE (agent-fips-proxy-pods.conf)";

/// What should be, from one look.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) agents: Vec<Planned>,
    pub(super) hooks: BTreeMap<u64, PathBuf>,
    pub(super) networks: BTreeMap<Key, Option<Arc<Namespace>>>,
    pub(super) spots: Places,
}

/// One Agent, and the networks that it needs.
pub(super) struct Planned {
    pub(super) status: AgentStatus,
    pub(super) keys: Vec<Key>,
    /// Its cgroups and namespaces, by the kernel's numbers.
    pub(super) cgroups: BTreeSet<u64>,
    pub(super) namespaces: BTreeSet<NamespaceId>,
}

/// Something that could not be done, remembered so that the next look decides otherwise.
pub(super) struct Obstacle {
    pub(super) why: String,
    pub(super) since: Instant,
}

impl Obstacle {
    /// As from now.
    pub(super) fn now(why: String) -> Self {
        Self {
            why,
            since: Instant::now(),
        }
    }
}

/// Where classifiers stand, and whose they are, by interface index.
pub(super) type Places = BTreeMap<u32, (Spot, Key)>;

/// The host sides of namespaces' interfaces, found when they are asked for, once per look.
struct Spots<'a> {
    thread: &'a NamespaceThread,
    before: &'a Places,
    host: Option<Result<Vec<tc::Link>, String>>,
    found: BTreeMap<NamespaceId, Result<Sides, String>>,
}

/// The host side of one namespace.
struct Sides {
    spots: Vec<Spot>,
    /// Interfaces beside those whose packets no classifier sees, in words; empty when there are none.
    overlooked: String,
}

impl Spots<'_> {
    fn of(&mut self, namespace: &Arc<Namespace>) -> &Result<Sides, String> {
        let id = namespace.id();
        if !self.found.contains_key(&id) {
            let result = self.look(namespace);
            self.found.insert(id, result);
        }
        &self.found[&id]
    }

    fn host(&mut self) -> &Result<Vec<tc::Link>, String> {
        self.host.get_or_insert_with(|| {
            Netlink::open()
                .and_then(|mut netlink| tc::links(&mut netlink))
                .map_err(|error| error.to_string())
        })
    }

    fn look(&mut self, namespace: &Arc<Namespace>) -> Result<Sides, String> {
        let (pod, number) = match self.inside(namespace) {
            Ok(inside) => inside,
            Err(why) => return self.as_before(namespace.id(), why),
        };
        let host = match self.host() {
            Ok(host) => host,
            Err(why) => {
                let why = why.clone();
                return self.as_before(namespace.id(), why);
            }
        };
        let spots = tc::host_side(&pod, host, number).map_err(|unsuitable| unsuitable.to_string())?;
        let overlooked: Vec<String> = tc::overlooked(&pod, host, number)
            .iter()
            .map(|unsuitable| format!("; connections by another interface are NOT seen: {unsuitable}"))
            .collect();
        Ok(Sides {
            spots,
            overlooked: overlooked.concat(),
        })
    }

    /// What a namespace shows of itself, and the host's number for it.
    fn inside(&self, namespace: &Arc<Namespace>) -> Result<(tc::Inside, Option<i32>), String> {
        let pod = self
            .thread
            .run(namespace, || {
                Netlink::open().and_then(|mut netlink| tc::Inside::look(&mut netlink))
            })
            .map_err(|error| format!("cannot enter its network namespace: {error}"))?
            .map_err(|error| error.to_string())?;
        let number = Netlink::open()
            .and_then(|mut netlink| tc::netns_id(&mut netlink, namespace.file().as_fd()))
            .map_err(|error| error.to_string())?;
        Ok((pod, number))
    }

    /// A look that failed says nothing of the pod: classifiers that stand there stay until one succeeds. To take them away would
    /// let the pod's connections out.
    fn as_before(&self, namespace: NamespaceId, why: String) -> Result<Sides, String> {
        let spots: Vec<Spot> = places_of(self.before, Key::Namespace(namespace, Taken::Tc))
            .map(|(_, spot)| spot.clone())
            .collect();
        if spots.is_empty() {
            return Err(why);
        }
        tracing::warn!(%namespace, %why, "cannot look at a pod's interfaces: what stands there stays");
        Ok(Sides {
            spots,
            overlooked: String::new(),
        })
    }
}

/// The places of one network.
fn places_of(places: &Places, network: Key) -> impl Iterator<Item = (u32, &Spot)> {
    let all = places.iter();
    all.filter(move |(_, (_, key))| *key == network)
        .map(|(index, (spot, _))| (*index, spot))
}

/// What decisions rest on.
pub(super) struct Planner<'a> {
    pub(super) config: &'a config::Intercept,
    /// The namespace that we live in ourselves.
    pub(super) home: NamespaceId,
    /// For a look at the interfaces inside a pod.
    pub(super) thread: &'a NamespaceThread,
    /// Cgroups that refuse our hooks, and why.
    pub(super) refused: &'a BTreeMap<u64, Obstacle>,
    /// Namespaces that cannot be served from inside, and why.
    pub(super) closed: &'a BTreeMap<NamespaceId, Obstacle>,
    /// The places of the last plan, for when a look fails.
    pub(super) before: &'a Places,
}

impl Planner<'_> {
    /// Decides for every Agent.
    pub(super) fn plan(&self, found: &[Agent]) -> Plan {
        let mut spots = self.spots();
        // A namespace that one Agent can only be taken in by tc is taken by tc for all: it has one pair of listeners.
        let mut by_tc = BTreeSet::new();
        let mut choices: Vec<Vec<(NamespaceId, Choice)>> = Vec::new();
        for agent in found {
            let choices_of: Vec<_> = agent
                .namespaces
                .values()
                .map(|namespace| (namespace.id(), self.choose(agent, namespace, &mut spots)))
                .collect();
            by_tc.extend(
                choices_of
                    .iter()
                    .filter(|(_, choice)| choice.taken == Some(Taken::Tc))
                    .map(|(id, _)| *id),
            );
            choices.push(choices_of);
        }
        // Hooks hold in all of an Agent's namespaces, and refuse where we serve none: it is taken one way in all of them.
        for (agent, choices) in found.iter().zip(&mut choices) {
            let mixed = choices.iter().any(|(id, choice)| {
                choice.taken == Some(Taken::Tc) || (choice.taken.is_some() && by_tc.contains(id))
            });
            for (id, choice) in choices.iter_mut().filter(|_| mixed) {
                if choice.taken == Some(Taken::Cgroup) && *id != self.home {
                    match spots.of(&agent.namespaces[id]) {
                        Ok(_) => choice.taken = Some(Taken::Tc),
                        Err(why) => {
                            *choice = Choice {
                                taken: None,
                                why: format!("another namespace of it is taken by tc, and this one: {why}"),
                            }
                        }
                    }
                }
            }
        }
        let mut plan = Plan::default();
        for (agent, choices) in found.iter().zip(choices) {
            self.plan_agent(agent, choices, &mut spots, &mut plan);
        }
        self.plan_interfaces(found, &mut spots, &mut plan);
        plan
    }

    /// True when this host forwards what at least one Agent's namespace sends.
    pub(super) fn routed_here(&self, found: &[Agent]) -> bool {
        let mut spots = self.spots();
        found
            .iter()
            .flat_map(|agent| agent.namespaces.values())
            .any(|namespace| namespace.id() != self.home && spots.of(namespace).is_ok())
    }

    fn spots(&self) -> Spots<'_> {
        Spots {
            thread: self.thread,
            before: self.before,
            host: None,
            found: BTreeMap::new(),
        }
    }

    fn choose(&self, agent: &Agent, namespace: &Arc<Namespace>, spots: &mut Spots<'_>) -> Choice {
        let host = namespace.id() == self.home;
        let no_cgroup = self.no_cgroup(agent, namespace.id());
        let wants_tc = self.config.datapath == config::Datapath::Tc
            || (self.config.datapath == config::Datapath::Auto && no_cgroup.is_some());
        let no_classifier = (!host && wants_tc)
            .then(|| spots.of(namespace).as_ref().err().cloned())
            .flatten();
        choose(
            self.config.datapath,
            Facts {
                host,
                no_cgroup: no_cgroup.as_deref(),
                no_classifier: no_classifier.as_deref(),
            },
        )
    }

    /// Why an Agent's cgroups cannot be hooked.
    fn no_cgroup(&self, agent: &Agent, namespace: NamespaceId) -> Option<String> {
        agent.no_cgroup.clone().or_else(|| {
            let refused = agent.cgroups.keys().find_map(|id| self.refused.get(id));
            Some(refused.or_else(|| self.closed.get(&namespace))?.why.clone())
        })
    }

    fn plan_agent(
        &self,
        agent: &Agent,
        choices: Vec<(NamespaceId, Choice)>,
        spots: &mut Spots<'_>,
        plan: &mut Plan,
    ) {
        let mut datapath = None;
        let mut why = "it has no process yet".to_owned();
        let mut keys = Vec::new();
        let mut missed = None;
        let several = choices.len() > 1;
        let taken_by_tc = choices.iter().any(|(_, choice)| choice.taken == Some(Taken::Tc));
        let hooks_possible =
            self.config.datapath != config::Datapath::Tc && self.no_cgroup(agent, self.home).is_none();
        if choices.is_empty() && hooks_possible {
            // Hooks before its first process: what it connects before its namespace is known is refused, not missed.
            plan.hooks.extend(agent.cgroups.clone());
            datapath = Some(Taken::Cgroup);
        } else if let Some(reason) = choices.is_empty().then(|| agent.no_cgroup.clone()).flatten() {
            why = reason;
        }
        for (id, choice) in choices {
            datapath = datapath.or(choice.taken);
            let namespace = &agent.namespaces[&id];
            match choice.taken {
                Some(Taken::Cgroup) => {
                    plan.hooks.extend(agent.cgroups.clone());
                    if id != self.home {
                        let key = Key::Namespace(id, Taken::Cgroup);
                        plan.networks.insert(key, Some(Arc::clone(namespace)));
                        keys.push(key);
                    }
                    why = choice.why;
                }
                Some(Taken::Tc) => {
                    let key = Key::Namespace(id, Taken::Tc);
                    plan.networks.insert(key, Some(Arc::clone(namespace)));
                    keys.push(key);
                    why = choice.why;
                    if let Ok(found) = spots.of(namespace) {
                        why.push_str(&found.overlooked);
                        plan.spots.extend(
                            found
                                .spots
                                .iter()
                                .map(|spot| (spot.link.index, (spot.clone(), key))),
                        );
                    }
                }
                None => {
                    // Better refused, where the policy says so, than let out.
                    if hooks_possible && !taken_by_tc {
                        plan.hooks.extend(agent.cgroups.clone());
                    }
                    missed = Some(match several {
                        true => format!("in {id}: {}", choice.why),
                        false => choice.why,
                    });
                }
            }
        }
        // Whoever is not taken everywhere is not taken.
        if let Some(missed) = missed {
            (datapath, why) = (None, missed);
        }
        let waiting = agent.namespaces.is_empty() && agent.unseen.is_none();
        if let Some(unseen) = agent.unseen {
            why = unseen.to_string();
            // Whoever is in the host's network is taken by its hooks, seen or not. The kernel tells of whoever is not.
            let by_hooks = unseen == Unseen::Denied && matches!(agent.selector, Selector::Cgroup(_));
            if agent.namespaces.is_empty() {
                datapath = datapath.filter(|_| by_hooks);
                if datapath.is_some() {
                    why = HOOKED_UNSEEN.to_owned();
                }
            }
        }
        let status = AgentStatus {
            selector: agent.selector.clone(),
            datapath,
            why,
            cgroups: agent.cgroups.values().cloned().collect(),
            namespaces: agent
                .namespaces
                .keys()
                .map(|id| {
                    if *id == self.home {
                        "host".to_owned()
                    } else {
                        id.to_string()
                    }
                })
                .collect(),
            waiting,
            since: SystemTime::now(),
        };
        plan.agents.push(Planned {
            status,
            keys,
            cgroups: agent.cgroups.keys().copied().collect(),
            namespaces: agent.namespaces.keys().copied().collect(),
        });
    }

    /// The interfaces of `intercept.interfaces`, where no Agent's own stand already. The host side of a namespace that is
    /// taken by cgroup is left out: the classifier would meet our own connections from there.
    fn plan_interfaces(&self, found: &[Agent], spots: &mut Spots<'_>, plan: &mut Plan) {
        if self.config.interfaces.is_empty() {
            return;
        }
        let mut by_cgroup = BTreeSet::new();
        for namespace in found.iter().flat_map(|agent| agent.namespaces.values()) {
            if plan
                .networks
                .contains_key(&Key::Namespace(namespace.id(), Taken::Cgroup))
                && let Ok(sides) = spots.of(namespace)
            {
                by_cgroup.extend(sides.spots.iter().map(|spot| spot.link.index));
            }
        }
        let host = match spots.host() {
            Ok(host) => host,
            Err(error) => {
                tracing::warn!(%error, "cannot list interfaces for intercept.interfaces: what stands there stays");
                for (index, spot) in places_of(self.before, Key::Interfaces) {
                    plan.networks.insert(Key::Interfaces, None);
                    plan.spots
                        .entry(index)
                        .or_insert_with(|| (spot.clone(), Key::Interfaces));
                }
                return;
            }
        };
        for link in host {
            let wanted = self
                .config
                .interfaces
                .iter()
                .any(|pattern| pattern.matches(&link.name));
            if wanted && !plan.spots.contains_key(&link.index) && !by_cgroup.contains(&link.index) {
                plan.networks.insert(Key::Interfaces, None);
                plan.spots
                    .insert(link.index, (named_spot(link, host), Key::Interfaces));
            }
        }
    }
}

/// The place of an interface that was named: it is the host side of whatever is behind it.
fn named_spot(link: &tc::Link, host: &[tc::Link]) -> Spot {
    let bridge = link.master.and_then(|master| {
        host.iter()
            .find(|other| other.index == master && other.kind.as_deref() == Some("bridge"))
    });
    Spot {
        link: link.clone(),
        rule_device: bridge.unwrap_or(link).name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn place(index: u32, key: Key) -> (u32, (Spot, Key)) {
        let link = tc::Link {
            index,
            name: format!("veth{index}"),
            ..tc::Link::default()
        };
        let rule_device = link.name.clone();
        (index, (Spot { link, rule_device }, key))
    }

    /// What a failed look leaves: the indices of places, and of networks how many.
    fn planned_blindly(before: &Places, patterns: &str) -> (Result<Vec<u32>, String>, Vec<u32>, usize) {
        let thread = NamespaceThread::start().unwrap();
        let namespace = Arc::new(Namespace::own().unwrap());
        let mut config = Config::default().intercept;
        config.interfaces = serde_json::from_str(patterns).unwrap();
        let planner = Planner {
            config: &config,
            home: namespace.id(),
            thread: &thread,
            refused: &BTreeMap::new(),
            closed: &BTreeMap::new(),
            before,
        };
        let mut spots = planner.spots();
        spots.host = Some(Err("the list changed during each of 8 readings".to_owned()));
        let sides = spots.of(&namespace).as_ref();
        let pods = sides
            .map(|sides| sides.spots.iter().map(|spot| spot.link.index).collect())
            .map_err(Clone::clone);
        let mut plan = Plan::default();
        planner.plan_interfaces(&[], &mut spots, &mut plan);
        (pods, plan.spots.into_keys().collect(), plan.networks.len())
    }

    #[test]
    fn a_look_that_failed_takes_no_classifier_away() {
        let own = Namespace::own().unwrap().id();
        let other = NamespaceId {
            inode: own.inode + 1,
            ..own
        };
        let before = Places::from([
            place(4, Key::Namespace(own, Taken::Tc)),
            place(5, Key::Namespace(other, Taken::Tc)),
            place(6, Key::Interfaces),
        ]);
        let (pods, interfaces, networks) = planned_blindly(&before, r#"["veth*"]"#);
        assert_eq!(pods, Ok(vec![4]));
        assert_eq!((interfaces, networks), (vec![6], 1));
    }

    #[test]
    fn without_a_classifier_the_failure_is_the_reason() {
        let (pods, interfaces, networks) = planned_blindly(&Places::new(), r#"["veth*"]"#);
        assert!(pods.unwrap_err().contains("8 readings"));
        assert_eq!((interfaces, networks), (vec![], 0));
    }
}
