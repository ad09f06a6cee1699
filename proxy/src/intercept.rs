//! The kernel side: brings Agents' connections to our listeners. Only this module talks to the kernel's bpf interface.
//!
//! [`Interceptor`] is the whole of it for the master: enter our own cgroup, load, set the listeners, attach, learn
//! destinations, follow Agents as they come and go. The state that matters lives in the kernel, pinned below bpffs: a
//! killed master leaves the policy in force, the next one takes it over without a gap.

mod agents;
mod attach;
mod error;
mod host;
mod kernel_log;
mod load;
mod own;
pub mod policy;
pub mod preflight;
mod sys;
mod uninstall;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData, MapError};
use ipnet::IpNet;
use proxy_ebpf::{Counter, FLAG_CLOSED, FLAG_ENABLED, MAX_PORTS, SLOT_V4, SLOT_V6, Settings};
use serde::{Deserialize, Serialize};

pub use agents::{AgentWatcher, CgroupGlob};
pub use error::{ErrorKind, InterceptError};
pub use host::{Cgroup2, OWN_BPFFS, PinDirectory};
pub use kernel_log::KernelLog;
pub use load::Features;
pub use own::OwnCgroup;
pub use uninstall::{UninstallReport, uninstall};

use crate::config;
use attach::OwnLinks;
use load::Loaded;
use policy::Destinations;

/// Between the moment when no connection is rewritten any more and the removal of the accepting side's programs: time
/// for connections in flight to be accepted and asked for their origin.
const HANDOVER_GRACE: Duration = Duration::from_millis(200);

/// The listeners that intercepted connections go to, one per family, bound to loopback, with their ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listeners<'a> {
    /// On 127.0.0.1; serves IPv4 and IPv4-mapped destinations.
    pub v4: Option<(BorrowedFd<'a>, u16)>,
    /// On ::1.
    pub v6: Option<(BorrowedFd<'a>, u16)>,
}

/// What a scan for Agents changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentChanges {
    /// Cgroups whose connections are taken from now on.
    pub attached: Vec<PathBuf>,
    /// Cgroups that are gone or no longer selected.
    pub detached: Vec<PathBuf>,
}

/// The state of interception, for `status` and metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterceptStatus {
    /// `cgroup`: rewritten at `connect()`.
    pub datapath: String,
    /// False while switched off. Told once, by whoever shows this (`supervise::protocol::InterceptionStatus`).
    #[serde(skip)]
    pub attached: bool,
    /// Agents whose connections are taken.
    pub agents: Vec<AgentStatus>,
    /// Entries of the prefix maps.
    pub destinations: usize,
    /// The programs' counters since their maps were made, by name.
    pub counters: BTreeMap<String, u64>,
    /// Optional kernel features in use.
    pub features: Features,
    /// `uname -r`
    pub kernel: String,
    /// Our own cgroup.
    pub own_cgroup: PathBuf,
    /// Where maps and links are pinned.
    pub pins: PathBuf,
}

/// An Agent's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its path below the cgroup2 root.
    pub path: PathBuf,
    /// The kernel's id.
    pub id: u64,
    /// When this process attached to it.
    pub since: SystemTime,
}

/// The loaded programs and what they were told. All calls are short system calls; one thread owns it.
pub struct Interceptor {
    loaded: Loaded,
    pins: PinDirectory,
    cgroups: Cgroup2,
    own_id: u64,
    own_path: PathBuf,
    globs: Vec<CgroupGlob>,
    settings: Settings,
    destinations: Destinations,
    /// What the prefix maps hold.
    present: BTreeSet<IpNet>,
    /// The accepting side. In place before a listener is, so that no connection is accepted without its origin.
    own_links: Option<OwnLinks>,
    attached: bool,
    agents: BTreeMap<u64, AgentStatus>,
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
    /// that an earlier process left stay in force as they are; the accepting side is ready for listeners.
    ///
    /// # Errors
    /// See [`InterceptError::kind`]: a missing capability, a kernel that refuses a program, or a bad selector.
    pub fn load(config: &config::Intercept, own: &OwnCgroup) -> Result<Self, InterceptError> {
        let globs = agents::parse_globs(&config.agents.cgroups)?;
        let pins = PinDirectory::prepare()?;
        let loaded = load::load(&pins)?;
        let settings = match loaded.settings.get(&0, 0) {
            Ok(settings) => settings,
            Err(MapError::KeyNotFound) => Settings::OFF,
            Err(error) => return Err(InterceptError::map("read", "SETTINGS")(error)),
        };
        let present = prefixes(&loaded)?;
        let mut this = Self {
            loaded,
            pins,
            cgroups: own.cgroups().clone(),
            own_id: own.id(),
            own_path: own.path().to_owned(),
            globs,
            settings,
            destinations: Destinations::default(),
            present,
            own_links: None,
            attached: false,
            agents: BTreeMap::new(),
        };
        this.attach_own()?;
        this.settings.remember_own(own.id());
        this.destinations.inherit(&this.present, Instant::now());
        this.apply_config(config)?;
        Ok(this)
    }

    /// Puts our listeners where the programs look for them. A listener that closes leaves by itself; while a family has
    /// none, its selected connections are refused or let go as `intercept.on_failure` says.
    ///
    /// # Errors
    /// A descriptor that is no listening TCP socket.
    pub fn set_listeners(&mut self, listeners: Listeners<'_>) -> Result<(), InterceptError> {
        let Listeners { v4, v6 } = listeners;
        if let Some((socket, _)) = v4.or(v6) {
            let cookie = sys::netns_cookie(socket).map_err(|source| InterceptError::Call {
                call: "getsockopt(SO_NETNS_COOKIE) on a listener",
                source,
            })?;
            self.settings.netns_cookie = cookie.unwrap_or(0);
            self.write_settings()?;
        }
        for (slot, listener) in [(SLOT_V4, v4), (SLOT_V6, v6)] {
            // The programs read the port from the socket itself, so that slot and port cannot disagree.
            let result = match listener {
                Some((socket, _)) => self.loaded.listeners.set(slot, &socket.as_raw_fd(), 0),
                None => match self.loaded.listeners.clear_index(&slot) {
                    Err(error) if is_absent(&error) => Ok(()),
                    other => other,
                },
            };
            result.map_err(InterceptError::map("put a listener into", "LISTENERS"))?;
        }
        Ok(())
    }

    /// Brings a changed configuration into force: ports, networks, `on_failure`, selectors. Says which Agents that changed.
    ///
    /// # Errors
    /// A bad selector or too many ports (then nothing changed), or a failing system call.
    pub fn reconfigure(&mut self, config: &config::Intercept) -> Result<AgentChanges, InterceptError> {
        self.globs = agents::parse_globs(&config.agents.cgroups)?;
        self.apply_config(config)?;
        self.sync_agents()
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

    /// Looks for Agents: attaches to new ones, forgets those that are gone. Does nothing while switched off.
    ///
    /// # Errors
    /// The hierarchy could not be read, or a program could not be attached: the other Agents are attached all the same.
    pub fn sync_agents(&mut self) -> Result<AgentChanges, InterceptError> {
        let mut changes = AgentChanges::default();
        if !self.attached {
            return Ok(changes);
        }
        if !self.pins.maps().exists() {
            // Somebody ran `uninstall`: that is an order, not an accident.
            tracing::warn!(pins = %self.pins.root().display(), "our pins were removed: interception is off");
            self.own_links = None;
            self.attached = false;
            changes.detached = std::mem::take(&mut self.agents)
                .into_values()
                .map(|agent| agent.path)
                .collect();
            return Ok(changes);
        }
        let mut selected = agents::scan(&self.cgroups, &self.globs)?.selected;
        selected.remove(&self.own_id);

        for id in attach::pinned_cgroups(&self.pins)? {
            if !selected.contains_key(&id) {
                attach::detach_agent(&self.pins, id)?;
            }
        }
        self.agents.retain(|id, agent| {
            let keep = selected.contains_key(id);
            if !keep {
                changes.detached.push(agent.path.clone());
            }
            keep
        });
        let mut failure = None;
        for (id, path) in selected {
            if self.agents.contains_key(&id) && attach::is_attached(&self.pins, id) {
                continue;
            }
            match attach::attach_agent(&mut self.loaded.ebpf, &self.cgroups, &self.pins, &path, id) {
                Ok(()) => {
                    let since = SystemTime::now();
                    changes.attached.push(path.clone());
                    self.agents.insert(id, AgentStatus { path, id, since });
                }
                // It ended between the scan and now.
                Err(_) if !self.cgroups.directory(&path).exists() => {
                    attach::detach_agent(&self.pins, id)?;
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(changes), Err)
    }

    /// True while connections are taken.
    pub fn attached(&self) -> bool {
        self.attached
    }

    /// The run-time switch. Off detaches every hook, of an earlier process too; connections in flight are handed over
    /// first, which takes a fifth of a second. On attaches again, and says to which Agents.
    ///
    /// # Errors
    /// A program could not be attached or a pin not removed.
    pub fn set_attached(&mut self, on: bool) -> Result<AgentChanges, InterceptError> {
        if on {
            // After an `uninstall` by hand the pins are made anew; the maps behind them are still ours.
            if !self.pins.maps().exists() {
                self.pins = PinDirectory::prepare()?;
                self.loaded.restore_pins(&self.pins)?;
            }
            self.attach_own()?;
            self.settings.flags |= FLAG_ENABLED;
            self.write_settings()?;
            self.attached = true;
            return self.sync_agents();
        }
        self.settings.flags &= !FLAG_ENABLED;
        self.write_settings()?;
        self.attached = false;
        self.grace();
        for id in attach::pinned_cgroups(&self.pins)? {
            attach::detach_agent(&self.pins, id)?;
        }
        let detached = std::mem::take(&mut self.agents)
            .into_values()
            .map(|agent| agent.path)
            .collect();
        self.own_links = None;
        Ok(AgentChanges {
            attached: Vec::new(),
            detached,
        })
    }

    /// What is in force, and what was counted.
    pub fn status(&self) -> InterceptStatus {
        InterceptStatus {
            datapath: "cgroup".to_owned(),
            attached: self.attached(),
            agents: self.agents.values().cloned().collect(),
            destinations: self.present.len(),
            counters: self.counters(),
            features: self.loaded.features,
            kernel: load::kernel(),
            own_cgroup: self.own_path.clone(),
            pins: self.pins.root(),
        }
    }

    /// The programs' own log lines; `None` unless debug logging was on at [`Interceptor::load`], or when taken before.
    pub fn take_kernel_log(&mut self) -> Option<KernelLog> {
        self.loaded.log.take()
    }

    /// Ends, after a fifth of a second for connections in flight. With `keep`, pinned links and maps stay: Agents' connections are refused (or let go, as configured) until
    /// the next process takes over. Without, everything is undone.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn leave(mut self, keep: bool) -> Result<(), InterceptError> {
        if keep {
            // A successor may have taken over a moment ago: connections to our listeners are still in flight.
            self.grace();
            return Ok(());
        }
        self.set_attached(false)?;
        let mut report = UninstallReport::default();
        uninstall::remove_pins(&self.pins, &mut report).map(drop)
    }

    fn attach_own(&mut self) -> Result<(), InterceptError> {
        if self.own_links.is_none() {
            self.own_links = Some(attach::attach_own(
                &mut self.loaded.ebpf,
                &self.cgroups,
                &self.own_path,
            )?);
        }
        Ok(())
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
        self.destinations.set_static(&config.cidrs);
        self.write_destinations()?;
        self.write_settings()
    }

    fn write_settings(&mut self) -> Result<(), InterceptError> {
        self.loaded
            .settings
            .insert(0, self.settings, 0)
            .map_err(InterceptError::map("write", "SETTINGS"))
    }

    /// Additions before removals: a network that is replaced by a part of it is covered throughout.
    fn write_destinations(&mut self) -> Result<(), InterceptError> {
        let change = self.destinations.change(&self.present);
        for net in change.add {
            let result = match net.addr() {
                IpAddr::V4(ip) => self.loaded.prefix4.insert(&key4(ip, net.prefix_len()), 1, 0),
                IpAddr::V6(ip) => self.loaded.prefix6.insert(&key6(ip, net.prefix_len()), 1, 0),
            };
            result.map_err(InterceptError::map("add a destination to", "PREFIX4/PREFIX6"))?;
            self.present.insert(net);
        }
        for net in change.remove {
            let result = match net.addr() {
                IpAddr::V4(ip) => self.loaded.prefix4.remove(&key4(ip, net.prefix_len())),
                IpAddr::V6(ip) => self.loaded.prefix6.remove(&key6(ip, net.prefix_len())),
            };
            match result {
                Err(error) if !is_absent(&error) => {
                    return Err(InterceptError::map(
                        "remove a destination from",
                        "PREFIX4/PREFIX6",
                    )(error));
                }
                _ => self.present.remove(&net),
            };
        }
        Ok(())
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let value = |counter: Counter| {
            let values = self.loaded.counters.get(&(counter as u32), 0).ok()?;
            Some((counter.name().to_owned(), values.iter().sum()))
        };
        Counter::ALL
            .iter()
            .filter_map(|counter| value(*counter))
            .collect()
    }
}

/// What the prefix maps hold.
fn prefixes(loaded: &Loaded) -> Result<BTreeSet<IpNet>, InterceptError> {
    let v4 = keys(&loaded.prefix4, "PREFIX4", |key| {
        let address = Ipv4Addr::from(key.data().to_ne_bytes());
        IpNet::new(address.into(), length(key.prefix_len())).ok()
    })?;
    let v6 = keys(&loaded.prefix6, "PREFIX6", |key| {
        let octets: Vec<u8> = key.data().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let address = Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?);
        IpNet::new(address.into(), length(key.prefix_len())).ok()
    })?;
    Ok(v4.into_iter().chain(v6).collect())
}

fn keys<K: aya::Pod>(
    map: &LpmTrie<MapData, K, u32>,
    name: &'static str,
    read: impl Fn(&Key<K>) -> Option<IpNet>,
) -> Result<Vec<IpNet>, InterceptError> {
    let keys: Vec<Key<K>> = map
        .keys()
        .collect::<Result<_, _>>()
        .map_err(InterceptError::map("read", name))?;
    Ok(keys.iter().filter_map(read).collect())
}

/// A length that no address has is refused by `IpNet::new`.
fn length(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

fn key4(address: Ipv4Addr, length: u8) -> Key<u32> {
    Key::new(length.into(), u32::from_ne_bytes(address.octets()))
}

fn key6(address: Ipv6Addr, length: u8) -> Key<[u32; 4]> {
    // Segments of the address as words in network order, which is how the programs see them.
    let bits = address.to_bits();
    let word = |shift: u32| {
        let [.., a, b, c, d] = (bits >> shift).to_be_bytes();
        u32::from_ne_bytes([a, b, c, d])
    };
    Key::new(length.into(), [word(96), word(64), word(32), word(0)])
}

/// The entry was not there: nothing to remove.
fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => matches!(
            error.io_error.raw_os_error(),
            // A SockMap answers EINVAL for an empty slot.
            Some(nix::libc::ENOENT | nix::libc::EINVAL)
        ),
        _ => false,
    }
}
