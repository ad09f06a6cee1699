//! What user space tells the programs, table by table: listeners, namespaces, interfaces; and what they know.
//!
//! A network is a number below [`MAX_NETWORKS`]; the caller gives them out. All calls are single map operations: nothing
//! is undone when a later one fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::programs::sk_lookup::SkLookupLink;
use aya::programs::{CgroupAttachMode, Program, SchedClassifier};
use proxy_ebpf::{
    Flow, INTERFACE_NO_IPV6, INTERFACE_OWN_QDISC, Interface, MAX_NETWORKS, Namespace, PROBE_PORT, slot,
};

use super::error::InterceptError;
use super::load::{CLASSIFIER, Loaded, NETNS_PROBE, SK_LOOKUP};
use super::prefixes::is_absent;
use super::sys;
use super::tc::{InterfaceTable, Row, Wanted};

/// [`proxy_ebpf::PROBE_V4`].
const PROBE: Ipv4Addr = Ipv4Addr::new(0, 0, 0, 2);

impl Loaded {
    /// Puts the listeners of a network where the programs look for them, and clears the slot of a family without one. A
    /// listener that closes leaves its slot by itself.
    ///
    /// # Errors
    /// A descriptor that is no listening TCP socket; a number that is no network's.
    pub fn set_listeners(
        &mut self,
        network: u32,
        v4: Option<BorrowedFd<'_>>,
        v6: Option<BorrowedFd<'_>>,
    ) -> Result<(), InterceptError> {
        check(network)?;
        for (listener, is_v4) in [(v4, true), (v6, false)] {
            let index = slot(network, is_v4);
            let result = match listener {
                Some(socket) => self.listeners.set(index, &socket.as_raw_fd(), 0),
                None => match self.listeners.clear_index(&index) {
                    Err(error) if is_absent(&error) => Ok(()),
                    other => other,
                },
            };
            result.map_err(InterceptError::map("put a listener into", "LISTENERS"))?;
        }
        Ok(())
    }

    /// Says that a network namespace, by its cookie, is served as this network.
    ///
    /// # Errors
    /// The table is full; a number that is no network's.
    pub fn put_namespace(&mut self, cookie: u64, network: u32) -> Result<(), InterceptError> {
        check(network)?;
        let namespace = Namespace { network, reserved: 0 };
        self.namespaces
            .insert(cookie, namespace, 0)
            .map_err(InterceptError::map("add a namespace to", "NAMESPACES"))
    }

    /// Forgets a network namespace; that it was not there is fine.
    ///
    /// # Errors
    /// The table could not be written.
    pub fn remove_namespace(&mut self, cookie: u64) -> Result<(), InterceptError> {
        absent_is_fine(self.namespaces.remove(&cookie)).map_err(InterceptError::map("write", "NAMESPACES"))
    }

    /// Cookies and numbers of the namespaces that are served, in no order.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn namespaces(&self) -> Result<Vec<(u64, u32)>, InterceptError> {
        let all = entries(&self.namespaces).map_err(InterceptError::map("read", "NAMESPACES"))?;
        Ok(all
            .into_iter()
            .map(|(cookie, namespace)| (cookie, namespace.network))
            .collect())
    }

    /// The number that each namespace, by its cookie, has in either table. Interfaces behind which no namespace is known
    /// have the cookie 0.
    ///
    /// # Errors
    /// A table could not be read.
    pub(super) fn slots(&self) -> Result<BTreeMap<u64, u32>, InterceptError> {
        let mut slots: BTreeMap<u64, u32> = self
            .interfaces()?
            .into_iter()
            .map(|(_, interface)| (interface.netns_cookie, interface.network))
            .collect();
        slots.extend(self.namespaces()?);
        Ok(slots)
    }

    /// Says what lies behind an interface. The count of packets of an entry that is there goes on.
    ///
    /// # Errors
    /// The table is full; a number that is no network's.
    pub fn put_interface(
        &mut self,
        ifindex: u32,
        netns_cookie: u64,
        network: u32,
        flags: u32,
    ) -> Result<(), InterceptError> {
        put_interface(&mut self.interfaces, ifindex, netns_cookie, network, flags)
    }

    /// What the programs know of an interface; `None` when its packets are not classified.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn interface(&self, ifindex: u32) -> Result<Option<Interface>, InterceptError> {
        match self.interfaces.get(&ifindex, 0) {
            Ok(interface) => Ok(Some(interface)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(InterceptError::map("read", "INTERFACES")(error)),
        }
    }

    /// Every interface whose packets are classified, in no order.
    ///
    /// # Errors
    /// The table could not be read.
    pub fn interfaces(&self) -> Result<Vec<(u32, Interface)>, InterceptError> {
        entries(&self.interfaces).map_err(InterceptError::map("read", "INTERFACES"))
    }

    /// Lets the packets of an interface pass; that it was not there is fine.
    ///
    /// # Errors
    /// The table could not be written.
    pub fn remove_interface(&mut self, ifindex: u32) -> Result<(), InterceptError> {
        absent_is_fine(self.interfaces.remove(&ifindex)).map_err(InterceptError::map("write", "INTERFACES"))
    }

    /// The program for interfaces, loaded, to be attached.
    ///
    /// # Errors
    /// The object has none.
    pub fn classifier(&mut self) -> Result<&mut SchedClassifier, InterceptError> {
        match self.ebpf.program_mut(CLASSIFIER) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(InterceptError::Missing(CLASSIFIER)),
        }
    }

    /// The program for interfaces together with the table that it reads.
    ///
    /// # Errors
    /// The object has none.
    pub(super) fn classifier_and_interfaces(
        &mut self,
    ) -> Result<(&mut SchedClassifier, Interfaces<'_>), InterceptError> {
        match self.ebpf.program_mut(CLASSIFIER) {
            Some(Program::SchedClassifier(program)) => Ok((program, Interfaces(&mut self.interfaces))),
            _ => Err(InterceptError::Missing(CLASSIFIER)),
        }
    }

    /// Attaches the program that picks our listener to a network namespace, that of the listeners: for as long as the
    /// result lives, unless it is pinned.
    ///
    /// # Errors
    /// Not a network namespace, no privilege, or too many such programs there (64).
    pub fn attach_sk_lookup(&mut self, netns: &File) -> Result<SkLookupLink, InterceptError> {
        match self.ebpf.program_mut(SK_LOOKUP) {
            Some(Program::SkLookup(program)) => program
                .attach(netns)
                .and_then(|id| program.take_link(id))
                .map_err(|source| InterceptError::AttachNetns {
                    program: SK_LOOKUP,
                    source: Box::new(source),
                }),
            _ => Err(InterceptError::Missing(SK_LOOKUP)),
        }
    }

    /// How many flows the classifier remembers. Reads the whole table.
    pub fn flows(&self) -> usize {
        self.flows.keys().flatten().count()
    }

    /// Forgets the flows of networks that are gone. Reads the whole table.
    ///
    /// # Errors
    /// The table could not be written.
    pub(super) fn forget_flows(&mut self, networks: &BTreeSet<u32>) -> Result<(), InterceptError> {
        let gone: Vec<Flow> = self
            .flows
            .iter()
            .flatten()
            .filter(|(_, taken)| networks.contains(&taken.network()))
            .map(|(flow, _)| flow)
            .collect();
        for flow in gone {
            absent_is_fine(self.flows.remove(&flow)).map_err(InterceptError::map("write", "FLOWS"))?;
        }
        Ok(())
    }

    /// How many of our own upstream connections are being opened. Reads the whole table.
    pub fn own_flows(&self) -> usize {
        self.own_flows.keys().flatten().count()
    }

    /// The cookie of a socket's network namespace: `SO_NETNS_COOKIE` (Linux 5.14), and by [`Loaded::probe_netns_cookie`]
    /// where the kernel has none.
    ///
    /// `own` is the directory of our own cgroup; the fall-back asks in the network namespace of the calling thread, which
    /// must be the socket's.
    ///
    /// # Errors
    /// Not a socket, or see [`Loaded::probe_netns_cookie`].
    pub fn netns_cookie(&mut self, own: &Path, socket: BorrowedFd<'_>) -> Result<u64, InterceptError> {
        match cookie_of(socket)? {
            Some(cookie) => Ok(cookie),
            None => {
                let probe = UdpSocket::bind("0.0.0.0:0").map_err(|source| InterceptError::Call {
                    call: "making a UDP socket to ask for the network namespace",
                    source,
                })?;
                self.probe_netns_cookie(own, &probe)
            }
        }
    }

    /// As [`Loaded::netns_cookie`], of a UDP socket that may have been made in another namespace than the caller's.
    ///
    /// # Errors
    /// See there.
    pub fn netns_cookie_of(&mut self, own: &Path, probe: &UdpSocket) -> Result<u64, InterceptError> {
        match cookie_of(probe.as_fd())? {
            Some(cookie) => Ok(cookie),
            None => self.probe_netns_cookie(own, probe),
        }
    }

    /// The cookie of a UDP socket's network namespace, asked by a program. The socket is IPv4, unconnected, and made by a
    /// process in our own cgroup, whose directory is `own`: the cgroup of its maker decides which programs it meets.
    ///
    /// # Errors
    /// The program could not be attached, or it did not see the socket.
    pub fn probe_netns_cookie(&mut self, own: &Path, probe: &UdpSocket) -> Result<u64, InterceptError> {
        let failed = |call| move |source| InterceptError::Call { call, source };
        let key = sys::socket_cookie(probe.as_fd()).map_err(failed("getsockopt(SO_COOKIE)"))?;
        let directory = File::open(own).map_err(InterceptError::file("open the cgroup", own))?;
        let link = match self.ebpf.program_mut(NETNS_PROBE) {
            Some(Program::CgroupSockAddr(program)) => program
                .attach(&directory, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id))
                .map_err(|source| InterceptError::Attach {
                    program: NETNS_PROBE,
                    cgroup: own.to_owned(),
                    source: Box::new(source),
                })?,
            _ => return Err(InterceptError::Missing(NETNS_PROBE)),
        };
        // The program refuses it: that is the expected end, and the answer is in the map.
        let connected = probe.connect((PROBE, PROBE_PORT));
        drop(link);
        match self.probed.get(&key, 0) {
            Ok(cookie) => {
                absent_is_fine(self.probed.remove(&key)).map_err(InterceptError::map("write", "PROBED"))?;
                Ok(cookie)
            }
            Err(error) if is_absent(&error) => Err(InterceptError::Unsupported(format!(
                "the kernel did not run `{NETNS_PROBE}` for a socket of ours (connect: {connected:?}): is this process \
                 still in its own cgroup {}?",
                own.display()
            ))),
            Err(error) => Err(InterceptError::map("read", "PROBED")(error)),
        }
    }
}

fn cookie_of(socket: BorrowedFd<'_>) -> Result<Option<u64>, InterceptError> {
    sys::netns_cookie(socket).map_err(|source| InterceptError::Call {
        call: "getsockopt(SO_NETNS_COOKIE)",
        source,
    })
}

/// The table of interfaces, as the `tc` datapath writes it.
pub(super) struct Interfaces<'a>(&'a mut HashMap<MapData, u32, Interface>);

impl InterfaceTable for Interfaces<'_> {
    fn put(
        &mut self,
        ifindex: u32,
        wanted: &Wanted,
        own_qdisc: bool,
        ipv6: bool,
    ) -> Result<(), InterceptError> {
        let mut flags = if own_qdisc { INTERFACE_OWN_QDISC } else { 0 };
        if !ipv6 {
            flags |= INTERFACE_NO_IPV6;
        }
        put_interface(self.0, ifindex, wanted.netns_cookie, wanted.network, flags)
    }

    fn remove(&mut self, ifindex: u32) {
        if let Err(error) = absent_is_fine(self.0.remove(&ifindex)) {
            tracing::warn!(ifindex, %error, "an interface that is gone stays in the kernel's table");
        }
    }

    fn entries(&self) -> Vec<(u32, Row)> {
        let all = entries(self.0).unwrap_or_default();
        all.into_iter()
            .map(|(ifindex, interface)| (ifindex, row(&interface)))
            .collect()
    }
}

fn row(interface: &Interface) -> Row {
    Row {
        seen: interface.seen,
        own_qdisc: interface.flags & INTERFACE_OWN_QDISC != 0,
    }
}

/// Interfaces whose clsact qdisc we made, as the pinned table below `maps` says, without a loaded program.
pub(super) fn own_qdiscs(maps: &Path) -> BTreeSet<u32> {
    let table = MapData::from_pin(maps.join("INTERFACES"))
        .and_then(|map| HashMap::<_, u32, Interface>::try_from(Map::HashMap(map)));
    // No pin, or one of another layout: nothing that we could prove to be ours.
    let Ok(table) = table else {
        return BTreeSet::new();
    };
    let all = entries(&table).unwrap_or_default();
    all.into_iter()
        .filter(|(_, interface)| row(interface).own_qdisc)
        .map(|(ifindex, _)| ifindex)
        .collect()
}

fn put_interface(
    table: &mut HashMap<MapData, u32, Interface>,
    ifindex: u32,
    netns_cookie: u64,
    network: u32,
    flags: u32,
) -> Result<(), InterceptError> {
    check(network)?;
    let seen = match table.get(&ifindex, 0) {
        Ok(known) => known.seen,
        Err(error) if is_absent(&error) => 0,
        Err(error) => return Err(InterceptError::map("read", "INTERFACES")(error)),
    };
    let interface = Interface {
        netns_cookie,
        seen,
        network,
        flags,
    };
    table
        .insert(ifindex, interface, 0)
        .map_err(InterceptError::map("add an interface to", "INTERFACES"))
}

/// Refuses a number that would reach another network's slot, or none.
fn check(network: u32) -> Result<(), InterceptError> {
    if network < MAX_NETWORKS {
        return Ok(());
    }
    Err(InterceptError::Unsupported(format!(
        "at most {MAX_NETWORKS} networks can be served at a time: {network} is none"
    )))
}

/// All entries; one that goes while the table is read is left out.
pub(super) fn entries<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
) -> Result<Vec<(K, V)>, MapError> {
    map.keys()
        .filter_map(
            |key| match key.and_then(|key| map.get(&key, 0).map(|value| (key, value))) {
                Err(error) if is_absent(&error) => None,
                other => Some(other),
            },
        )
        .collect()
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}
