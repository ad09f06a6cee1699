//! The master's side of interception: wanted or not, possible or not, in place or not. `handed` is what another program in this
//! process must know of it.

mod handed;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::listeners::Listeners;
use super::protocol::{InterceptionStatus, Pods};
use crate::config::{self, OnFailure};
use crate::intercept::{
    self, AgentWatcher, Changes, InterceptError, Interceptor, Leave, Listeners as KernelListeners, OwnCgroup,
    tc,
};
use crate::relay::network::NetworkId;
use handed::Inherited;

/// How soon an Agent without a process or a cgroup is looked at again: it is about to start.
const SOON: Duration = Duration::from_millis(200);
/// How long that goes on. Later, as for a pod that cannot start, the ordinary look every few seconds does.
const SOON_FOR: Duration = Duration::from_secs(60);

/// How often somebody who came or moved on TCX is looked for: the kernel tells nobody.
const CLASSIFIERS: Duration = Duration::from_millis(250);

/// How the master ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Somebody stopped it, or it cannot start and says why. In `open` mode nothing of ours stays; in `closed` mode the policy does,
    /// so that nothing leaves while we are away.
    Stop {
        /// The service manager holds our listeners: connections wait in them.
        stored: bool,
    },
    /// The worker crashed before it ever served, and the master goes with it. Whoever watches over us starts us again: as when
    /// the master itself crashes the policy stays in either mode, so that what goes around us meanwhile is counted.
    Crash,
}

/// Interception over the life of the master.
pub struct Interception {
    config: config::Intercept,
    /// Data threads of the worker, which stay the same for the master's life.
    threads: usize,
    /// Wanted now: by configuration, or by the last command.
    enabled: bool,
    /// Why it is not in place.
    detail: Option<String>,
    kernel: Option<Interceptor>,
    /// After the end: for requests in flight.
    last_sockets: Option<intercept::UpstreamSockets>,
    watcher: Option<AgentWatcher>,
    /// Links, classifiers and rules; there while the datapath `tc` may be used.
    netlink: Option<tc::TcWatcher>,
    /// Made at the first wait. Kept between waits: while many things happen, it must come all the same.
    look: Option<tokio::time::Interval>,
    /// Nothing else was seen than that: the next look is at those classifiers only.
    restless: bool,
    /// Since when an Agent is looked at often.
    unsettled: Option<Instant>,
    /// When that is next.
    soon: Option<tokio::time::Instant>,
    /// What failed at the last look: said once.
    failed: Vec<String>,
    /// What Kubernetes said last.
    pods: Pods,
    /// After `kernel`: leaving the cgroup comes last.
    own: Option<OwnCgroup>,
    /// Addresses learned before the programs were loaded.
    addresses: Vec<(IpAddr, Duration)>,
    /// Every intake name was asked for at least once.
    asked: bool,
    /// Of the program that this one replaces, until the kernel side is loaded.
    inherited: Option<Inherited>,
}

impl Interception {
    /// Nothing is touched yet. Every listener will have `threads` sockets, one for each data thread.
    pub fn new(config: config::Intercept, threads: usize) -> Self {
        Self {
            enabled: config.enabled,
            config,
            threads,
            detail: None,
            kernel: None,
            last_sockets: None,
            watcher: None,
            netlink: None,
            look: None,
            restless: false,
            unsettled: None,
            soon: None,
            failed: Vec::new(),
            pods: Pods::default(),
            own: None,
            addresses: Vec::new(),
            asked: false,
            inherited: None,
        }
    }

    /// Wanted now.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The hooks are in place.
    pub fn attached(&self) -> bool {
        self.kernel.as_ref().is_some_and(Interceptor::attached)
    }

    /// First half of switching on: moves this process to its own cgroup and binds the loopback listeners there (a
    /// socket belongs to the cgroup that made it). True when that was done now, so that a worker started before must be
    /// replaced by one that holds the listeners and lives in the cgroup.
    pub fn prepare(&mut self, listeners: &mut Listeners) -> Result<bool, InterceptError> {
        if !self.enabled || self.own.is_some() {
            return Ok(false);
        }
        let before = self.inherited.as_mut();
        let own = match before {
            Some(before) => OwnCgroup::enter_again(before.previous_cgroup.take()),
            None => Interceptor::enter_own_cgroup(),
        };
        self.own = Some(self.note(own)?);
        listeners.add_interception();
        Ok(true)
    }

    /// Second half: loads the programs where they are not, tells them the listeners, takes every Agent.
    pub fn engage(&mut self, listeners: &Listeners) -> Result<Changes, InterceptError> {
        if !self.enabled {
            return Ok(Changes::default());
        }
        let result = self.try_engage(listeners);
        let changes = self.note(result)?;
        self.detail = None;
        Ok(self.told(changes))
    }

    /// Takes the hooks away; the programs stay loaded for the next time. Packets of connections in flight are led to us for
    /// `drain` longer.
    pub fn disengage(&mut self, drain: Duration) -> Changes {
        let changes = match &mut self.kernel {
            Some(kernel) => kernel.switch_off(drain),
            None => Changes::default(),
        };
        self.told(changes)
    }

    /// At start, switched off: takes away what an earlier process left in force.
    pub fn clear(&self) {
        if self.enabled {
            return;
        }
        match intercept::uninstall() {
            Ok(report) if !report.is_empty() => tracing::info!("interception is off; {report}"),
            Ok(_) => {}
            // Without the right to look there was no right to leave anything either.
            Err(error) => tracing::debug!(%error, "cannot look for an earlier process's hooks"),
        }
    }

    /// What the operator wants from now on. Follow with [`Interception::prepare`] and [`Interception::engage`], or
    /// [`Interception::disengage`].
    pub fn want(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.detail = None;
    }

    /// A new configuration: everything of it is exchanged in place.
    pub fn reconfigure(&mut self, config: config::Intercept) -> Result<Changes, InterceptError> {
        self.want(config.enabled);
        let globs_changed = self.config.agents.cgroups != config.agents.cgroups;
        self.config = config;
        let Some(kernel) = &mut self.kernel else {
            return Ok(Changes::default());
        };
        // The watchers before the look at what is there: what comes in between is seen twice, never missed.
        let watcher = globs_changed.then(|| AgentWatcher::new(&self.config.agents.cgroups));
        if self.netlink.is_none() {
            self.netlink = watch_netlink(&self.config);
        }
        let changes = kernel.reconfigure(&self.config)?;
        if let Some(watcher) = watcher {
            self.watcher = watched(watcher);
        }
        Ok(self.told(changes))
    }

    /// Addresses of intake names that the worker resolved.
    pub fn add_addresses(&mut self, addresses: Vec<(IpAddr, Duration)>) -> Result<(), InterceptError> {
        match &mut self.kernel {
            Some(kernel) => kernel.add_destinations(&addresses),
            None => {
                self.addresses.extend(addresses);
                Ok(())
            }
        }
    }

    /// Every intake name was asked for.
    pub fn addresses_asked(&mut self) {
        self.asked = true;
    }

    /// Nothing that could be selected now is still unknown; also while switched off, when nothing is to be selected.
    pub fn settled(&self) -> bool {
        self.asked || !self.attached()
    }

    /// Returns when Agents, interfaces or classifiers may have come or gone: then call [`Interception::sync`]. Never
    /// returns while there is nothing to watch. Cancel-safe.
    pub async fn changed(&mut self) {
        let soon = self.soon;
        tokio::select! {
            lost = async {
                match &mut self.watcher {
                    Some(watcher) => watcher.changed().await,
                    None => std::future::pending().await,
                }
            } => if let Err(error) = lost {
                tracing::error!(%error, "cannot watch for new Agents any more; they are still found every few seconds");
                self.watcher = None;
            },
            lost = async {
                match &mut self.netlink {
                    Some(watcher) => watcher.changed().await,
                    None => std::future::pending().await,
                }
            } => if let Err(error) = lost {
                tracing::error!(%error, "cannot watch interfaces any more; changes are still seen every few seconds");
                self.netlink = None;
            },
            () = async {
                match soon {
                    // A point in time, not a pause: it comes however much else happens.
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => {}
            () = async {
                let kernel = self.kernel.as_ref().filter(|kernel| kernel.has_classifiers());
                let Some(kernel) = kernel else { return std::future::pending().await };
                let look = self.look.get_or_insert_with(|| {
                    let mut look = tokio::time::interval(CLASSIFIERS);
                    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                    look
                });
                loop {
                    look.tick().await;
                    if kernel.restless() {
                        return;
                    }
                }
            } => self.restless = true,
        }
    }

    /// Takes Agents that are new and forgets those that are gone; puts right what others changed.
    pub fn sync(&mut self) -> Changes {
        let restless = std::mem::take(&mut self.restless);
        let changes = match &mut self.kernel {
            Some(kernel) => {
                if restless && kernel.sync_restless() {
                    return Changes::default();
                }
                kernel.sync()
            }
            None => Changes::default(),
        };
        self.told(changes)
    }

    /// True when an Agent's connection came from a network namespace that we did not know: then call
    /// [`Interception::sync`] at once.
    pub fn met_unknown_namespace(&mut self) -> bool {
        self.kernel
            .as_mut()
            .is_some_and(Interceptor::met_unknown_namespace)
    }

    /// What Kubernetes says now. Follow with [`Interception::sync`]. A worker that could not ask yet says nothing of pods:
    /// those that are known stay.
    pub fn set_pods(&mut self, mut pods: Pods) {
        if let Some(problem) = pods
            .problem
            .as_ref()
            .filter(|_| pods.problem != self.pods.problem)
        {
            tracing::error!("cannot ask Kubernetes for Agent pods: {problem}");
        }
        if !pods.synced {
            pods.found = std::mem::take(&mut self.pods.found);
            pods.synced = self.pods.synced;
        }
        self.pods = pods;
        self.tell_pods();
    }

    fn tell_pods(&mut self) {
        if let Some(kernel) = self.kernel.as_mut().filter(|_| self.pods.synced) {
            kernel.set_pods(self.pods.found.clone());
        }
    }

    /// A socket for an upstream connection, made where the Agent of this network lives.
    pub fn upstream_socket(&self, network: NetworkId, ipv6: bool) -> io::Result<OwnedFd> {
        match (&self.kernel, &self.last_sockets) {
            (Some(kernel), _) => kernel.upstream_socket(network.0, ipv6),
            (None, Some(sockets)) => sockets.socket(network.0, ipv6),
            (None, None) => Err(io::Error::new(io::ErrorKind::NotFound, "interception is off")),
        }
    }

    /// See [`Interceptor::probe_cgroups`].
    pub fn probe_cgroups(&mut self) -> Result<[PathBuf; 2], InterceptError> {
        match &mut self.kernel {
            Some(kernel) => kernel.probe_cgroups(),
            None => Err(InterceptError::Unsupported("interception is off".to_owned())),
        }
    }

    /// See [`Interceptor::probe_is_ready`].
    pub fn probe_is_ready(&self) -> bool {
        self.kernel.as_ref().is_some_and(Interceptor::probe_is_ready)
    }

    /// See [`Interceptor::ways`].
    pub fn ways(&self) -> io::Result<Vec<intercept::Way>> {
        self.kernel
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), Interceptor::ways)
    }

    /// See [`Interceptor::unhooked`].
    pub fn unhooked(&self) -> Vec<(PathBuf, Vec<&'static str>)> {
        self.kernel.as_ref().map_or_else(Vec::new, Interceptor::unhooked)
    }

    /// Takes note of intake connections that did not pass through us, and raises the alarm. For every second.
    pub fn account(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            kernel.account();
        }
    }

    /// Counts what is held, for the next status; flows, which are many, only when `flows` says so.
    pub fn count(&mut self, flows: bool) {
        if let Some(kernel) = &mut self.kernel {
            if flows {
                kernel.count_flows();
            }
            kernel.count_resources();
        }
    }

    /// One phrase for the service manager.
    pub fn summary(&self) -> String {
        match (&self.kernel, self.enabled) {
            (_, false) => "off".to_owned(),
            (Some(kernel), true) if kernel.attached() => format!("on, {} Agent cgroups", kernel.agents()),
            (_, true) => "not attached".to_owned(),
        }
    }

    /// For status.
    pub fn status(&self) -> InterceptionStatus {
        InterceptionStatus {
            enabled: self.enabled,
            requested: self.config.requested,
            attached: self.attached(),
            detail: self.detail.clone(),
            addresses_asked: self.asked,
            pods_problem: self.pods.problem.clone(),
            kernel: self.kernel.as_ref().map(Interceptor::status),
        }
    }

    /// The end of the master. Our own cgroup goes when this is dropped, which is after the last worker.
    pub fn leave(&mut self, end: End) {
        let Some(kernel) = self.kernel.take() else { return };
        let closed = self.config.on_failure == OnFailure::Closed;
        let keep = self.enabled && kernel.attached() && (closed || end == End::Crash);
        let leave = match (keep, end) {
            (false, _) => Leave::Nothing,
            (true, End::Stop { stored: true }) => Leave::Listeners,
            (true, _) => Leave::Policy,
        };
        match leave {
            Leave::Nothing => {}
            Leave::Listeners => tracing::info!(
                "interception stays in force (intercept.on_failure: closed): Agents' intake connections wait for the next start, \
                 and fail once the service manager lets go of the listeners"
            ),
            Leave::Policy if closed => tracing::warn!(
                "interception stays in force (intercept.on_failure: closed): Agents' intake connections fail until the \
                 proxy runs again; `agent-fips-proxy uninstall` removes it"
            ),
            Leave::Policy => tracing::warn!(
                "interception stays in force (intercept.on_failure: open): Agents' intake connections go direct, and are \
                 counted, until the proxy runs again; `agent-fips-proxy uninstall` removes it"
            ),
        }
        match kernel.leave(leave) {
            Ok(sockets) => self.last_sockets = Some(sockets),
            Err(error) => {
                tracing::error!(%error, "cannot leave the kernel as it was; `agent-fips-proxy uninstall` removes what is left");
            }
        }
    }

    fn try_engage(&mut self, listeners: &Listeners) -> Result<Changes, InterceptError> {
        let Some(own) = &self.own else {
            return Ok(Changes::default());
        };
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => {
                let mut kernel = Interceptor::load(&self.config, own, self.threads)?;
                if let Some(before) = self.inherited.take() {
                    kernel.inherit(before.last_network, before.networks);
                }
                if !listeners.retiring() {
                    kernel.forget_earlier_cgroups()?;
                }
                if let Some(log) = kernel.take_kernel_log() {
                    tokio::spawn(async move {
                        if let Err(error) = log.forward().await {
                            tracing::warn!(%error, "no more log lines from the kernel programs");
                        }
                    });
                }
                none.insert(kernel)
            }
        };
        if self.pods.synced {
            kernel.set_pods(self.pods.found.clone());
        }
        kernel.set_listeners(KernelListeners {
            v4: listeners.interception(false),
            v6: listeners.interception(true),
        })?;
        if !self.addresses.is_empty() {
            kernel.add_destinations(&std::mem::take(&mut self.addresses))?;
        }
        let watcher = self
            .watcher
            .is_none()
            .then(|| AgentWatcher::new(&self.config.agents.cgroups));
        if self.netlink.is_none() {
            self.netlink = watch_netlink(&self.config);
        }
        let changes = kernel.switch_on()?;
        if let Some(watcher) = watcher {
            self.watcher = watched(watcher);
        }
        Ok(changes)
    }

    /// Logs what changed, and sees whether more is about to.
    fn told(&mut self, changes: Changes) -> Changes {
        tell(&changes);
        if !changes.is_empty() {
            self.count(false);
        }
        for failed in changes
            .failed
            .iter()
            .filter(|failed| !self.failed.contains(failed))
        {
            tracing::error!("interception: {failed}");
        }
        self.failed.clone_from(&changes.failed);
        let unsettled = self.kernel.as_ref().is_some_and(Interceptor::unsettled);
        self.unsettled = match (unsettled, changes.is_empty(), self.unsettled) {
            (false, ..) => None,
            (true, true, Some(since)) => Some(since),
            (true, ..) => Some(Instant::now()),
        };
        self.soon = self
            .unsettled
            .filter(|since| since.elapsed() < SOON_FOR)
            .map(|_| tokio::time::Instant::now() + SOON);
        changes
    }

    fn note<T>(&mut self, result: Result<T, InterceptError>) -> Result<T, InterceptError> {
        if let Err(error) = &result {
            self.detail = Some(error.to_string());
        }
        result
    }
}

/// The watcher, when there is one: without, Agents are still found every few seconds.
fn watched(watcher: Result<AgentWatcher, InterceptError>) -> Option<AgentWatcher> {
    watcher
        .inspect_err(
            |error| tracing::warn!(%error, "cannot watch for new Agents; they are found every few seconds"),
        )
        .ok()
}

/// Watches interfaces where the datapath may need them. Without, they are looked at every few seconds.
fn watch_netlink(config: &config::Intercept) -> Option<tc::TcWatcher> {
    if config.datapath == config::Datapath::Cgroup {
        return None;
    }
    tc::TcWatcher::new()
        .inspect_err(
            |error| tracing::warn!(%error, "cannot watch interfaces; changes are seen every few seconds"),
        )
        .ok()
}

/// Logs which Agents came and went.
fn tell(changes: &Changes) {
    for agent in &changes.taken {
        let namespaces = agent.namespaces.join(", ");
        let datapath = agent.datapath.map_or("none", |taken| taken.name());
        tracing::info!(agent = %agent.selector, datapath, namespaces, "intercepting an Agent: {}", agent.why);
    }
    for agent in &changes.not_taken {
        tracing::warn!(agent = %agent.selector, "an Agent is not intercepted: {}", agent.why);
    }
    for agent in &changes.gone {
        tracing::info!(agent = %agent.selector, "an Agent is no longer intercepted: it is gone or not selected any more, or interception is off");
    }
}
