//! The kernel side: brings Agents' connections to our listeners. Only this module talks to the kernel's bpf and netlink
//! interfaces.
//!
//! [`Interceptor`] is the whole of it for the master: enter our own cgroup, load, set the host's listeners, switch on and
//! off, learn destinations, follow Agents as they come and go (`follow`). The state that matters lives in the kernel,
//! pinned below bpffs: a killed master leaves the policy in force, the next one takes it over without a gap.

mod agents;
mod attach;
mod choose;
mod diag;
mod error;
mod exclusive;
mod existing;
mod firewall;
mod follow;
mod forecast;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod host;
mod host_checks;
mod kernel_log;
mod leaks;
pub mod listing;
mod load;
mod memlock;
mod netns;
mod networks;
mod own;
mod peer;
mod pins;
mod plan;
pub mod policy;
mod prefixes;
pub mod preflight;
mod probe_cgroup;
mod status;
mod sys;
mod tables;
pub mod tc;
mod uninstall;
mod verify;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::maps::MapError;
use ipnet::IpNet;
use proxy_ebpf::{FLAG_CLOSED, FLAG_ENABLED, MAX_PORTS, Settings};

pub use agents::{Agent, AgentWatcher, CgroupGlob, Discovery, PodRef, Selector};
pub use choose::{Choice, Facts, Taken, choose};
pub use error::{ErrorKind, InterceptError};
pub use existing::reset_check;
pub use follow::Changes;
pub use forecast::{Forecast, forecast};
pub use host::{Cgroup2, enter_host_cgroups};
pub use kernel_log::KernelLog;
pub use leaks::LeakStatus;
pub use load::Features;
// The kernel side by itself, without the policy of `Interceptor`: for the suite that tests the programs.
#[doc(hidden)]
pub use load::Loaded;
pub use netns::{Namespace, NamespaceId, NamespaceThread};
pub use networks::{InheritedNetwork, NetworkListeners, NetworkRecord};
pub use own::OwnCgroup;
pub use peer::{Peer, peer};
pub use pins::{OWN_BPFFS, PinDirectory};
pub use status::{AgentStatus, InterceptStatus, Resources, ServedNetwork};
pub use uninstall::{UninstallReport, uninstall};
pub use ways::Way;

use crate::config::{self, PodsApi};
use crate::self_test;
use attach::OwnLinks;
use existing::Audit;
use leaks::Leaks;
use leaks::names::Kin;
use networks::{Key, Networks};
use plan::{Obstacle, Places};
use policy::Destinations;
use probe_cgroup::ProbeCgroup;
use tc::{Surplus, Tc};

/// The slot of the namespace that this process is in.
const HOST_NETWORK: u32 = 0;

/// Between the moment when no connection is rewritten any more and the removal of the accepting side's programs: time
/// for connections in flight to be accepted and asked for their origin.
const HANDOVER_GRACE: Duration = Duration::from_millis(200);

/// The host's own listeners that intercepted connections go to, one per family, bound to loopback, with their ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listeners<'a> {
    /// On 127.0.0.1; serves IPv4 and IPv4-mapped destinations.
    pub v4: Option<(BorrowedFd<'a>, u16)>,
    /// On ::1.
    pub v6: Option<(BorrowedFd<'a>, u16)>,
}

/// What stays in the kernel when an [`Interceptor`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing of ours.
    Nothing,
    /// The policy. Nobody listens any more.
    Policy,
    /// The policy, and what accepts: somebody holds our listeners until the next process comes.
    Listeners,
}

/// Sockets of Agents' networks, for a master that has left the kernel alone and waits for its worker's last requests.
pub struct UpstreamSockets(Networks);

impl UpstreamSockets {
    /// As [`Interceptor::upstream_socket`].
    ///
    /// # Errors
    /// See there.
    pub fn socket(&self, network: u32, ipv6: bool) -> io::Result<OwnedFd> {
        self.0.socket(network, ipv6)
    }
}

/// The loaded programs and what they were told. All calls are short system calls; one thread owns it.
pub struct Interceptor {
    config: config::Intercept,
    loaded: Loaded,
    pins: PinDirectory,
    /// What keeps them where they are.
    _held: Option<File>,
    cgroups: Cgroup2,
    own_id: u64,
    own_path: PathBuf,
    /// Where cgroups of ours are made, below the cgroup2 root.
    cgroups_parent: PathBuf,
    /// The namespace that we live in ourselves.
    home: NamespaceId,
    /// Its cookie, once listeners are there.
    home_cookie: Option<u64>,
    discovery: Discovery,
    networks: Networks,
    /// Made when the first classifier is wanted.
    tc: Option<Tc>,
    /// What was planned for it last.
    spots: Places,
    /// Switched off, the datapath `tc` carries connections in flight until then.
    draining: Option<Instant>,
    settings: Settings,
    destinations: Destinations,
    /// What the prefix maps hold.
    present: BTreeSet<IpNet>,
    /// The accepting side. In place before a listener is, so that no connection is accepted without its origin.
    own_links: Option<OwnLinks>,
    attached: bool,
    /// Cgroups with hooks.
    hooked: BTreeMap<u64, PathBuf>,
    /// Cgroups that refused our hooks, and why.
    refused: BTreeMap<u64, Obstacle>,
    /// Namespaces that cannot be served from inside, and why.
    closed: BTreeMap<NamespaceId, Obstacle>,
    /// Networks that could not be opened, and why: what is led there follows `intercept.on_failure`.
    unserved: BTreeMap<Key, String>,
    /// Cgroups and namespaces of Agents that are not taken.
    untaken: (BTreeSet<u64>, BTreeSet<NamespaceId>),
    /// Slots of closed networks whose flows the kernel still has.
    flowless: BTreeSet<u32>,
    /// Kubernetes has said which pods there are, or is not asked.
    pods_known: bool,
    /// What failed at the last look.
    trouble: Vec<String>,
    /// What [`Interceptor::met_unknown_namespace`] counted last.
    unknown_seen: u64,
    /// What it counted before this process.
    unknown_before: u64,
    /// There are Agents whose processes we may not look at.
    denied: bool,
    /// What [`Interceptor::count_resources`] and [`Interceptor::count_flows`] counted last.
    resources: Resources,
    agents: BTreeMap<Selector, AgentStatus>,
    /// The same, as far as leaks are concerned.
    kin: Vec<Kin>,
    leaks: Leaks,
    audit: Audit,
    /// Where connections of our own come from, once somebody makes them.
    probe: Option<ProbeCgroup>,
}

impl Interceptor {
    /// Moves this process into our own cgroup. Before listeners are made: a socket belongs to the cgroup of its maker.
    ///
    /// # Errors
    /// No cgroup2 hierarchy, or no right to make a cgroup.
    pub fn enter_own_cgroup() -> Result<OwnCgroup, InterceptError> {
        OwnCgroup::enter()
    }

    /// Loads the programs and takes over what an earlier process pinned. To Agents nothing is attached yet, and hooks
    /// that an earlier process left stay in force as they are; the accepting side is ready for listeners. Each listener
    /// that is made for an Agent's network will be a set of `threads` sockets, one for each data thread of the worker.
    ///
    /// # Errors
    /// See [`InterceptError::kind`]: a missing capability, a kernel that refuses a program, or a bad selector.
    pub fn load(config: &config::Intercept, own: &OwnCgroup, threads: usize) -> Result<Self, InterceptError> {
        let discovery = Discovery::new(&config.agents, own.cgroups().clone())?;
        let home = Namespace::own()
            .map_err(InterceptError::file("open", "/proc/thread-self/ns/net"))?
            .id();
        let pins = PinDirectory::prepare()?;
        let leaks = Leaks::default();
        let loaded = load::load(&pins, leaks.teller())?;
        let held = pins.hold()?;
        let settings = match loaded.settings.get(&0, 0) {
            Ok(settings) => settings,
            Err(MapError::KeyNotFound) => Settings::OFF,
            Err(error) => return Err(InterceptError::map("read", "SETTINGS")(error)),
        };
        let present = prefixes::read(&loaded)?;
        let mut this = Self {
            config: config.clone(),
            loaded,
            pins,
            _held: held,
            cgroups: own.cgroups().clone(),
            own_id: own.id(),
            own_path: own.path().to_owned(),
            cgroups_parent: own.parent().to_owned(),
            home,
            home_cookie: None,
            discovery,
            networks: Networks::new(threads)?,
            tc: None,
            spots: BTreeMap::new(),
            draining: None,
            settings,
            destinations: Destinations::default(),
            present,
            own_links: None,
            attached: false,
            hooked: BTreeMap::new(),
            refused: BTreeMap::new(),
            closed: BTreeMap::new(),
            unserved: BTreeMap::new(),
            untaken: (BTreeSet::new(), BTreeSet::new()),
            flowless: BTreeSet::new(),
            pods_known: config.agents.pods.api == PodsApi::Off,
            trouble: Vec::new(),
            unknown_seen: 0,
            unknown_before: 0,
            denied: false,
            resources: Resources::default(),
            agents: BTreeMap::new(),
            probe: None,
            kin: Vec::new(),
            leaks,
            audit: Audit::default(),
        };
        this.unknown_before = this.unknown_namespaces();
        this.attach_own()?;
        this.settings.remember_own(own.id());
        this.destinations.inherit(&this.present, Instant::now());
        this.apply_config(config)?;
        Ok(this)
    }

    /// Puts the host's listeners where the programs look for them. A listener that closes leaves by itself; while a
    /// family has none, its selected connections are refused or let go as `intercept.on_failure` says.
    ///
    /// # Errors
    /// A descriptor that is no listening TCP socket.
    pub fn set_listeners(&mut self, listeners: Listeners<'_>) -> Result<(), InterceptError> {
        let (v4, v6) = (listeners.v4.map(|(fd, _)| fd), listeners.v6.map(|(fd, _)| fd));
        // The programs read the port from the socket itself, so that slot and port cannot disagree.
        self.loaded.set_listeners(HOST_NETWORK, v4, v6)?;
        if let Some(socket) = v4.or(v6) {
            let own = self.cgroups.directory(&self.own_path);
            let cookie = self.loaded.netns_cookie(&own, socket)?;
            self.loaded.put_namespace(cookie, HOST_NETWORK)?;
            self.home_cookie = Some(cookie);
        }
        Ok(())
    }

    /// Brings a changed configuration into force: ports, networks, `on_failure`, selectors, datapath. Says what that
    /// changed.
    ///
    /// # Errors
    /// A bad selector or too many ports (then nothing changed), or a failing system call.
    pub fn reconfigure(&mut self, config: &config::Intercept) -> Result<Changes, InterceptError> {
        if config.ports.len() > MAX_PORTS {
            return Err(InterceptError::TooManyPorts(config.ports.len()));
        }
        self.discovery.reconfigure(&config.agents)?;
        if let Some(tc) = self.tc.as_mut().filter(|_| self.attached) {
            // Rules for another mark before the first packet carries it; the old ones go with the look below.
            tc.reconfigure(config);
            self.sync_tc(Surplus::Keep)?;
        }
        self.apply_config(config)?;
        self.config = config.clone();
        self.refused.clear();
        self.closed.clear();
        self.audit.wanted();
        Ok(self.sync())
    }

    /// Adds the addresses of an answer with their TTL; forgets those whose time is over.
    ///
    /// # Errors
    /// A prefix map could not be written.
    pub fn add_destinations(&mut self, addresses: &[(IpAddr, Duration)]) -> Result<(), InterceptError> {
        let now = Instant::now();
        let evicted = self.destinations.learn(addresses, now);
        if evicted > 0 {
            tracing::warn!(
                evicted,
                limit = policy::MAX_LEARNT,
                "too many intake addresses; the oldest are forgotten"
            );
        }
        self.destinations.expire(now);
        self.write_destinations()
    }

    /// The pods of this node that Kubernetes names as Agents, all of them. Until the first call, what an earlier process
    /// left is kept. Follow with [`Interceptor::sync`].
    pub fn set_pods(&mut self, pods: Vec<PodRef>) {
        self.discovery.set_pods(pods);
        self.pods_known = true;
    }

    /// True while connections are taken.
    pub fn attached(&self) -> bool {
        self.attached
    }

    /// Switches on, or looks again; says what changed.
    ///
    /// # Errors
    /// The accepting side could not be attached, or a table not written: then nothing was switched.
    pub fn switch_on(&mut self) -> Result<Changes, InterceptError> {
        // After an `uninstall` by hand the pins are made anew; the maps behind them are still ours.
        if !self.pins.maps().exists() {
            self.pins = PinDirectory::prepare()?;
            self.loaded.restore_pins(&self.pins)?;
            // Their pins are gone, too.
            self.own_links = None;
        }
        self.attach_own()?;
        self.settings.flags |= FLAG_ENABLED;
        self.write_settings()?;
        self.attached = true;
        self.draining = None;
        let mut changes = self.sync();
        changes.note(uninstall::remove_other_layouts(
            &self.pins,
            &mut UninstallReport::default(),
        ));
        Ok(changes)
    }

    /// Switches off: new connections go their own way from now on, and every hook is detached, of an earlier process too.
    /// Connections in flight are handed over first, which takes a fifth of a second. Packets of connections that a
    /// classifier took are led here for `drain` longer; then [`Interceptor::sync`] takes away that, too. What could not be
    /// undone is in [`Changes::failed`].
    pub fn switch_off(&mut self, drain: Duration) -> Changes {
        let mut changes = Changes::default();
        self.settings.flags &= !FLAG_ENABLED;
        changes.note(self.write_settings());
        self.attached = false;
        self.grace();
        match attach::pinned_cgroups(&self.pins) {
            Ok(pinned) => {
                for id in pinned {
                    changes.note(attach::detach_agent(&self.pins, id).map(drop));
                }
            }
            Err(error) => changes.note(Err(error)),
        }
        changes.note(self.detach_own());
        if self.tc.is_some() && !drain.is_zero() {
            self.draining = Some(Instant::now() + drain);
        } else {
            self.end_tc(&mut changes);
            // What an earlier process left, whose work we did not take over.
            let own_qdiscs = tables::own_qdiscs(&self.pins.maps());
            changes.note(tc::uninstall(&self.pins.classifiers(), &own_qdiscs).map(drop));
        }
        self.forget_all(&mut changes);
        self.trouble.clone_from(&changes.failed);
        changes
    }

    /// A socket for a connection to an intake, made where the Agent of this network lives.
    ///
    /// # Errors
    /// There is no such network (any more), or its namespace cannot be entered.
    pub fn upstream_socket(&self, network: u32, ipv6: bool) -> io::Result<OwnedFd> {
        self.networks.socket(network, ipv6)
    }

    /// What the programs tell: of each leak, and with debug logging at [`Interceptor::load`] of every connection. `None` when
    /// taken before, or when the ring cannot be read.
    pub fn take_kernel_log(&mut self) -> Option<KernelLog> {
        self.loaded.log.take()
    }

    /// True for [`Interceptor::switch_off`]'s `drain`: packets of open connections are still led here.
    pub fn draining(&self) -> bool {
        self.draining.is_some()
    }

    /// For the program that replaces this one in this process: the number that a network got last, and every network.
    pub fn records(&self) -> (u32, Vec<NetworkRecord>) {
        self.networks.records()
    }

    /// In that program, before [`Interceptor::switch_on`]: goes on with the networks that there were.
    pub fn inherit(&mut self, last: u32, networks: Vec<InheritedNetwork>) {
        self.networks.inherit(last, networks);
    }

    /// Lets go of cgroups of earlier processes of ours, once no socket that was made in one of them is waited for: what the
    /// kernel accepted for such a socket has its origin from there.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn forget_earlier_cgroups(&self) -> Result<(), InterceptError> {
        for id in attach::own_cgroups(&self.pins)? {
            if id != self.own_id {
                attach::unpin_own(&self.pins, id)?;
            }
        }
        Ok(())
    }

    /// Ends, after a fifth of a second for connections in flight. With [`Leave::Policy`] and [`Leave::Listeners`], pinned links
    /// and maps stay: Agents' connections are refused (or let go, as configured), or wait, until the next process takes over.
    /// With [`Leave::Nothing`], everything is undone. What is returned goes on to make sockets for requests in flight, where the
    /// policy stays.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn leave(mut self, leave: Leave) -> Result<UpstreamSockets, InterceptError> {
        if leave != Leave::Nothing {
            // A successor may have taken over a moment ago: connections to our listeners are still in flight.
            self.grace();
            if leave == Leave::Policy {
                self.detach_own()?;
            }
        } else {
            if let Some(failed) = self.switch_off(Duration::ZERO).failed.into_iter().next() {
                return Err(InterceptError::Unsupported(failed));
            }
            uninstall::remove_pins(&self.pins, &mut UninstallReport::default())?;
        }
        Ok(UpstreamSockets(self.networks))
    }

    fn attach_own(&mut self) -> Result<(), InterceptError> {
        if self.own_links.is_none() {
            self.own_links = Some(attach::attach_own(
                &mut self.loaded.ebpf,
                &self.cgroups,
                &self.pins,
                &self.own_path,
                self.own_id,
            )?);
        }
        Ok(())
    }

    fn detach_own(&mut self) -> Result<(), InterceptError> {
        self.own_links = None;
        attach::unpin_own(&self.pins, self.own_id).map(drop)
    }

    /// Waits for connections in flight, before the accepting side's programs go.
    fn grace(&self) {
        if self.own_links.is_some() {
            std::thread::sleep(HANDOVER_GRACE);
        }
    }

    fn apply_config(&mut self, config: &config::Intercept) -> Result<(), InterceptError> {
        let count = config.ports.len();
        if count > MAX_PORTS {
            return Err(InterceptError::TooManyPorts(count));
        }
        self.settings.ports = [0; MAX_PORTS];
        self.settings.ports[..count].copy_from_slice(&config.ports);
        self.settings.port_count = u32::try_from(count).map_err(|_| InterceptError::TooManyPorts(count))?;
        match config.on_failure {
            config::OnFailure::Closed => self.settings.flags |= FLAG_CLOSED,
            config::OnFailure::Open => self.settings.flags &= !FLAG_CLOSED,
        }
        self.settings.mark_value = config.mark.value;
        self.settings.mark_mask = config.mark.mask;
        let own = self_test::ADDRESSES.map(IpNet::from);
        self.destinations
            .set_static(config.cidrs.iter().copied().chain(own));
        self.write_destinations()?;
        self.write_settings()
    }

    fn write_settings(&mut self) -> Result<(), InterceptError> {
        self.loaded
            .settings
            .insert(0, self.settings, 0)
            .map_err(InterceptError::map("write", "SETTINGS"))
    }

    fn write_destinations(&mut self) -> Result<(), InterceptError> {
        let change = self.destinations.change(&self.present);
        if !change.add.is_empty() {
            // Somebody may be there already.
            self.audit.wanted();
        }
        prefixes::apply(&mut self.loaded, &mut self.present, change)
    }
}
