//! Connections of Agents to intakes that are open without us, found in the kernel's tables of sockets: they were there
//! before the Agent was taken, or before their address was known. Each is counted once, by its cookie, and where
//! `intercept.reset_existing` says so it is reset, so that it comes back through us.
//!
//! What is an Agent's is proved by the socket's own cgroup (5.8), or, where a classifier takes everything that a pod sends,
//! by the namespace that it is in. Our own connections are in our own cgroup, wherever they were made, and those of workers
//! that an earlier instance left in one with our name. A socket that says no cgroup, or the root, is nobody's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proxy_ebpf::{Address, Direct, Flow, LeakKey, LeakRecord, Reason, WHO_CGROUP, WHO_NETNS};

use super::Interceptor;
use super::choose::Taken;
use super::diag::{self, Destroyed, End, Socket};
use super::error::InterceptError;
use super::leaks::names::{self, Kin};
use super::netns::{Namespace, NamespaceId};
use super::own;
use super::preflight::Check;

/// How often open connections are looked at without another reason: that none was missed.
const EVERY: Duration = Duration::from_secs(60);
/// How soon again, when a connection was being opened: it is none yet, and may become one.
const SOON: Duration = Duration::from_secs(5);
/// The first cgroup, which every process is in that nobody put elsewhere. Before 5.15 also what a socket shows whose cgroup
/// the kernel forgot in favour of a net_cls or net_prio number.
const ROOT_CGROUP: u64 = 1;

/// When connections are looked at.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// `None`: at the next tick.
    next: Option<Instant>,
    /// This kernel cannot reset: said once.
    helpless: bool,
    /// What failed last: said once.
    failed: BTreeSet<String>,
}

impl Audit {
    /// There is a reason to look: an Agent, or an address, is new.
    pub(super) fn wanted(&mut self) {
        self.next = None;
    }
}

/// Whose a socket is, by its cgroup.
struct Owners {
    /// Agents, by their place among all.
    agents: BTreeMap<u64, usize>,
    /// Instances of the proxy, also earlier ones.
    own: BTreeSet<u64>,
}

/// A namespace to look into.
struct Place {
    id: NamespaceId,
    /// `None`: that of the calling thread.
    namespace: Option<Arc<Namespace>>,
}

/// A connection of an Agent that is open without us.
struct Found<'a> {
    socket: &'a Socket,
    kin: &'a Kin,
    key: LeakKey,
    counted: bool,
    reason: Reason,
}

impl Interceptor {
    /// Looks at what is open, when there is a reason.
    pub(super) fn audit(&mut self, now: Instant) {
        if self.attached && self.audit.next.is_none_or(|next| next <= now) {
            let opening = self.audit_all();
            self.audit.next = Some(now + if opening { SOON } else { EVERY });
        }
    }

    /// Looks into every namespace in which an Agent lives; true when a connection was being opened.
    fn audit_all(&mut self) -> bool {
        let owners = Owners {
            agents: names::cgroups(&self.kin),
            own: own::ids(&self.cgroups, &self.cgroups_parent),
        };
        let mut places: BTreeMap<NamespaceId, Option<Arc<Namespace>>> = self
            .kin
            .iter()
            .flat_map(|kin| &kin.namespaces)
            .map(|namespace| (namespace.id(), Some(Arc::clone(namespace))))
            .collect();
        if !owners.agents.is_empty() {
            // Also while no process of an Agent was seen there: one may have come since.
            places.insert(self.home, None);
        }
        let mut failed = BTreeSet::new();
        let mut opening = false;
        for (id, namespace) in places {
            let place = Place { id, namespace };
            match self.audit_one(&place, &owners) {
                Ok(more) => opening |= more,
                Err(error) => {
                    let error = error.to_string();
                    if !self.audit.failed.contains(&error) {
                        tracing::warn!(
                            namespace = %id, error,
                            "cannot look for connections that were open before the proxy, or not reset them (kernel: \
                             CONFIG_INET_DIAG, module tcp_diag); those that leave now are counted all the same"
                        );
                    }
                    failed.insert(error);
                }
            }
        }
        self.audit.failed = failed;
        opening
    }

    fn audit_one(&mut self, place: &Place, owners: &Owners) -> Result<bool, InterceptError> {
        let count = usize::try_from(self.settings.port_count).unwrap_or_default();
        let ports = self.settings.ports.get(..count).unwrap_or_default().to_vec();
        let accepted = self.accepted(place.id, &ports)?;
        let sockets = self.inside(place, move || diag::connections(End::Remote, &ports))??;
        let kin = std::mem::take(&mut self.kin);
        let found: Vec<Found<'_>> = sockets
            .iter()
            .filter(|socket| self.is_selected(socket.remote.ip()))
            .filter(|socket| !accepted.contains(&(socket.remote, socket.local)))
            .filter_map(|socket| self.found(socket, place.id, owners, &kin))
            .collect();
        let opening = found.iter().any(|one| one.socket.opening);
        let mut doomed: BTreeMap<(&str, Reason), Vec<Socket>> = BTreeMap::new();
        let mut result = Ok(());
        for one in found.iter().filter(|one| !one.socket.opening) {
            if !one.counted {
                result = result.and(self.count_open(one));
            }
            if self.config.reset_existing && one.reason.passes() && one.kin.taken.is_some() {
                let of_agent = doomed.entry((one.kin.name.as_str(), one.reason)).or_default();
                of_agent.push(one.socket.clone());
            }
        }
        for ((agent, reason), sockets) in doomed {
            result = result.and(self.reset(place, agent, reason, sockets));
        }
        self.kin = kin;
        result.map(|()| opening)
    }

    /// The ends of the connections that this host accepted of a pod whose packets are led here: such a connection came to us,
    /// also when it was idle for so long that the kernel forgot its flow.
    fn accepted(
        &self,
        namespace: NamespaceId,
        ports: &[u16],
    ) -> Result<BTreeSet<(SocketAddr, SocketAddr)>, InterceptError> {
        let by_packets = self.kin.iter().any(|kin| {
            kin.taken == Some(Taken::Tc) && kin.namespaces.iter().any(|one| one.id() == namespace)
        });
        if !by_packets {
            return Ok(BTreeSet::new());
        }
        let sockets = diag::connections(End::Local, ports)?;
        Ok(sockets
            .into_iter()
            .map(|socket| (socket.local, socket.remote))
            .collect())
    }

    /// Whose connection it is, when it is an Agent's and did not come through us.
    fn found<'a>(
        &self,
        socket: &'a Socket,
        namespace: NamespaceId,
        owners: &Owners,
        kin: &'a [Kin],
    ) -> Option<Found<'a>> {
        let cgroup = socket.cgroup.filter(|id| *id != ROOT_CGROUP)?;
        if self.settings.is_own(cgroup) || owners.own.contains(&cgroup) {
            return None;
        }
        let by_cgroup = owners.agents.get(&cgroup).and_then(|at| kin.get(*at));
        let by_namespace = || {
            // Of the host's namespace an Agent is a part only.
            kin.iter().find(|kin| {
                kin.taken == Some(Taken::Tc)
                    && namespace != self.home
                    && kin.namespaces.iter().any(|one| one.id() == namespace)
            })
        };
        let (kin, key) = match by_cgroup {
            Some(kin) => (kin, (WHO_CGROUP, cgroup)),
            None => (by_namespace()?, (WHO_NETNS, self.networks.cookie_of(namespace)?)),
        };
        let flow = flow(socket.local, socket.remote);
        if kin.taken == Some(Taken::Tc) && self.loaded.flows.get(&flow, 0).is_ok() {
            return None;
        }
        let counted = self
            .loaded
            .counted
            .get(&socket.cookie, 0)
            .ok()
            .and_then(Reason::from_number)
            .or_else(|| self.loaded.let_go.get(&flow, 0).ok().map(|_| Reason::NoListener));
        let fresh = match kin.taken {
            Some(_) => Reason::OpenBefore,
            None => Reason::NotTaken,
        };
        let reason = counted.unwrap_or(fresh);
        let (kind, who) = key;
        Some(Found {
            socket,
            kin,
            key: LeakKey {
                who,
                reason: reason as u32,
                kind,
            },
            counted: counted.is_some(),
            reason,
        })
    }

    /// Counts a connection that no program of ours saw leave.
    fn count_open(&mut self, found: &Found<'_>) -> Result<(), InterceptError> {
        let direct = Direct {
            destination: address(found.socket.remote.ip()),
            port: found.socket.remote.port(),
            reserved: 0,
            process: 0,
        };
        self.loaded
            .count_leak(&found.key, direct, found.socket.cookie, found.reason)?;
        self.leaks.touch();
        self.leaks.teller().tell(&LeakRecord {
            key: found.key,
            direct,
        });
        Ok(())
    }

    /// Resets connections of an Agent, all of one namespace.
    fn reset(
        &mut self,
        place: &Place,
        agent: &str,
        reason: Reason,
        sockets: Vec<Socket>,
    ) -> Result<(), InterceptError> {
        if self.audit.helpless {
            return Ok(());
        }
        let outcomes = self.inside(place, move || {
            let outcomes: Result<Vec<_>, _> = sockets.iter().map(diag::destroy).collect();
            outcomes
        })??;
        if outcomes.contains(&Destroyed::Unsupported) {
            self.audit.helpless = true;
            tracing::error!(
                "this kernel resets no connections (CONFIG_INET_DIAG_DESTROY): intercept.reset_existing has no effect; \
                 restart the Agents, so that they connect anew"
            );
        }
        let reset = outcomes
            .iter()
            .filter(|outcome| **outcome == Destroyed::Yes)
            .count() as u64;
        if reset > 0 {
            self.leaks.note_reset(agent, reason, reset);
            tracing::info!(
                agent,
                connections = reset,
                reason = reason.name(),
                "reset intake connections that were open without the proxy (intercept.reset_existing)"
            );
        }
        Ok(())
    }

    /// Runs `work` in a namespace.
    fn inside<T: Send + 'static>(
        &self,
        place: &Place,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, InterceptError> {
        let Some(namespace) = &place.namespace else {
            return Ok(work());
        };
        let thread = self.networks.thread();
        thread
            .run(namespace, work)
            .map_err(|source| InterceptError::Call {
                call: "entering an Agent's network namespace",
                source,
            })
    }

    /// True when connections to this address are to be taken.
    fn is_selected(&self, ip: IpAddr) -> bool {
        self.present.contains(&IpNet::from(ip))
            || self
                .present
                .iter()
                .any(|net| net.prefix_len() < net.max_prefix_len() && net.contains(&ip))
    }
}

/// As the programs write a flow's ends.
fn flow(local: SocketAddr, remote: SocketAddr) -> Flow {
    Flow::new(
        address(local.ip()),
        local.port(),
        address(remote.ip()),
        remote.port(),
    )
}

/// As the programs write an address.
fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = bytes.try_into().map_or(0, u32::from_ne_bytes);
    }
    Address { words }
}

/// Whether `intercept.reset_existing` can do what it says: for `doctor`.
pub fn reset_check() -> Check {
    let (ok, detail) = match diag::can_destroy() {
        Ok(true) => (true, "open connections can be reset".to_owned()),
        Ok(false) => (
            false,
            "the kernel resets no connections (CONFIG_INET_DIAG_DESTROY)".to_owned(),
        ),
        Err(error) => (false, error.to_string()),
    };
    Check::new(
        "reset_existing",
        ok,
        detail,
        "restart the Agents after the proxy, so that they connect anew; CAP_NET_ADMIN is needed where the kernel can",
    )
    .optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_programs_do() {
        let v4: IpAddr = "203.0.113.10".parse().unwrap();
        assert_eq!(
            address(v4),
            Address::from_v4(u32::from_ne_bytes([203, 0, 113, 10]))
        );
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(
            address(v6).octets(),
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        );
    }
}
