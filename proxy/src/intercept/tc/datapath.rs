//! Puts the `tc` datapath together: makes the host equal to what is wanted, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::programs::SchedClassifier;
use nix::libc;

use super::attach::{Attached, attach, detach, lead_tcx, pinned_interfaces, program_id, view};
use super::chain::{Entry, Place, on_tcx, own, tcx_supported};
use super::filter::{has_qdisc, is_own_filter, prepend};

use super::links::{Link, links};
use super::netlink::Netlink;
use super::removal::remove;
use super::routes;
use super::shadow::{LIMIT, Permission, Sight, shadowed};
use super::state::{
    Changes, InterfaceState, InterfaceStatus, InterfaceTable, Port, Removed, Row, Surplus, Wanted,
};
use crate::config::{self, ClassifierAttach, Mark, SamePriority};
use crate::intercept::error::InterceptError;

/// How long an interface is looked at often after something moved on it: what the newcomer does to packets shows only from
/// one look to the next, and what is put back may be pushed away again.
const RESTLESS: Duration = Duration::from_secs(10);

/// The `tc` datapath of the network namespace in which it was made. One thread owns it.
pub struct Tc {
    netlink: Netlink,
    how: ClassifierAttach,
    priority: u16,
    same_priority: SamePriority,
    mark: Mark,
    pins: PathBuf,
    ports: BTreeMap<u32, Port>,
    /// Whether marked IPv6 packets get to our listeners.
    ipv6: bool,
    /// What the last look said of rules and routes.
    trouble: Vec<String>,
}

impl Tc {
    /// Makes it; nothing on the host is changed yet. `pins` is a directory on bpffs, for one link per interface.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn new(config: &config::Intercept, pins: PathBuf) -> Result<Self, InterceptError> {
        Ok(Self {
            netlink: Netlink::open()?,
            how: config.classifier_attach,
            priority: config.classifier_priority,
            same_priority: config.classifier_same_priority,
            mark: config.mark,
            pins,
            ports: BTreeMap::new(),
            ipv6: true,
            trouble: Vec::new(),
        })
    }

    /// Takes over a changed configuration; the next [`Tc::sync`] brings it into force.
    pub fn reconfigure(&mut self, config: &config::Intercept) {
        self.how = config.classifier_attach;
        self.priority = config.classifier_priority;
        self.same_priority = config.classifier_same_priority;
        self.mark = config.mark;
        for port in self.ports.values_mut() {
            port.attached = None;
        }
    }

    /// Makes the host equal to `wanted` (by index): attaches, attaches again what was removed, detaches what is not wanted
    /// any more (`surplus`), keeps rules and routes equal. An interface that vanished meanwhile is no error, and what fails on one does
    /// not stop the others: it is in [`Changes::failed`] and in [`Tc::status`]. `now` is what pauses are measured by.
    ///
    /// # Errors
    /// Interfaces, or rules and routes, cannot be read or written at all.
    pub fn sync(
        &mut self,
        program: &mut SchedClassifier,
        table: &mut dyn InterfaceTable,
        wanted: &BTreeMap<u32, Wanted>,
        surplus: Surplus,
        now: Instant,
    ) -> Result<Changes, InterceptError> {
        let mut changes = Changes::default();
        let present: BTreeMap<u32, Link> = links(&mut self.netlink)?
            .into_iter()
            .map(|link| (link.index, link))
            .collect();
        // After the interfaces' own counters, so that ours are not behind them.
        let rows: BTreeMap<u32, Row> = table.entries().into_iter().collect();

        for index in self.known(&rows)? {
            let inherited = !self.ports.contains_key(&index) && present.contains_key(&index);
            if (wanted.contains_key(&index) && present.contains_key(&index))
                || (inherited && surplus == Surplus::Keep)
            {
                continue;
            }
            let own_qdisc = rows.get(&index).is_some_and(|row| row.own_qdisc);
            match detach(&mut self.netlink, index, &self.pins, own_qdisc) {
                Ok(_) => {
                    table.remove(index);
                    self.ports.remove(&index);
                    changes.detached.push(index);
                }
                Err(error) => changes.failed.push(error.to_string()),
            }
        }

        let here = || {
            wanted
                .iter()
                .filter_map(|(index, wanted)| Some((present.get(index)?, wanted)))
        };
        // Before the first packet is marked, and after the last one was.
        let devices: BTreeSet<String> = here().map(|(_, wanted)| wanted.rule_device.clone()).collect();
        changes.routes = routes::sync(&mut self.netlink, self.mark, &devices, surplus)?;
        let ipv6 = present
            .values()
            .filter(|link| devices.contains(&link.name) && link.addresses.iter().any(IpAddr::is_ipv6))
            .map(|link| link.name.clone())
            .collect();
        let trouble = changes.routes.trouble(&ipv6);
        self.ipv6 = changes.routes.ipv6;
        self.note(trouble);

        for (link, wanted) in here() {
            let row = rows.get(&link.index).copied();
            self.look(program, table, link, wanted, row, now, &mut changes);
        }
        Ok(changes)
    }

    /// The part of [`Tc::sync`] that is about interfaces of which [`Tc::restless`] speaks: the others, rules and routes stay as
    /// they are.
    ///
    /// # Errors
    /// Interfaces cannot be read.
    pub fn sync_restless(
        &mut self,
        program: &mut SchedClassifier,
        table: &mut dyn InterfaceTable,
        wanted: &BTreeMap<u32, Wanted>,
        now: Instant,
    ) -> Result<Changes, InterceptError> {
        let mut changes = Changes::default();
        let present = links(&mut self.netlink)?;
        let rows: BTreeMap<u32, Row> = table.entries().into_iter().collect();
        for link in &present {
            let stirs = self.ports.get(&link.index).is_some_and(|port| port.stirs(now));
            if let Some(wanted) = wanted.get(&link.index).filter(|_| stirs) {
                let row = rows.get(&link.index).copied();
                self.look(program, table, link, wanted, row, now, &mut changes);
            }
        }
        Ok(changes)
    }

    /// Looks at one interface. What fails there is in [`Changes::failed`] and in its status.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one step of `sync`, borrowed apart"
    )]
    fn look(
        &mut self,
        program: &mut SchedClassifier,
        table: &mut dyn InterfaceTable,
        link: &Link,
        wanted: &Wanted,
        row: Option<Row>,
        now: Instant,
        changes: &mut Changes,
    ) {
        let mut port = self
            .ports
            .remove(&link.index)
            .unwrap_or_else(|| Port::new(&link.name));
        port.name.clone_from(&link.name);
        port.seen = row.unwrap_or_default().seen;
        match self.interface(&mut port, program, table, link, wanted, row, now, changes) {
            Ok(()) => {}
            // It vanished between the list and now; the next look removes what is left.
            Err(error) if error.errno() == Some(libc::ENODEV) => {}
            Err(error) => {
                port.attached = None;
                changes.failed.push(error.to_string());
                port.set(InterfaceState::Failed, error.to_string());
            }
        }
        self.ports.insert(link.index, port);
    }

    /// Every interface, by index.
    pub fn status(&self) -> Vec<InterfaceStatus> {
        self.ports
            .iter()
            .map(|(&index, port)| port.status(index))
            .collect()
    }

    /// What keeps marked packets from our listeners on every interface, as the last [`Tc::sync`] saw it: one sentence each,
    /// with what to do. Empty when all is well.
    pub fn routing_trouble(&self) -> Vec<String> {
        self.trouble.clone()
    }

    /// Says what is new.
    fn note(&mut self, trouble: Vec<String>) {
        for new in trouble.iter().filter(|sentence| !self.trouble.contains(sentence)) {
            tracing::warn!("{new}");
        }
        for gone in self.trouble.iter().filter(|sentence| !trouble.contains(sentence)) {
            tracing::info!("no longer: {gone}");
        }
        self.trouble = trouble;
    }

    /// True when [`Tc::sync_restless`] is due although no notification came: somebody came, went or moved on TCX, which notifies
    /// nobody, or a short time ago something moved. Costs one bpf call for each interface and two for each program on its TCX
    /// (aya 0.14 opens and describes every one), up to the first interface that changed.
    pub fn restless(&self, now: Instant) -> bool {
        self.ports.values().any(|port| port.stirs(now))
    }

    /// Takes everything away: classifiers, qdiscs that we made, rules, routes, entries of the table.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is removed all the same.
    pub fn remove_all(&mut self, table: &mut dyn InterfaceTable) -> Result<Removed, InterceptError> {
        let rows = table.entries();
        let own_qdiscs = rows
            .iter()
            .filter(|(_, row)| row.own_qdisc)
            .map(|(index, _)| *index)
            .collect();
        let removed = remove(&mut self.netlink, &self.pins, &own_qdiscs);
        for (index, _) in rows {
            table.remove(index);
        }
        self.ports.clear();
        self.note(Vec::new());
        removed
    }

    /// Interfaces that something of ours may be on.
    fn known(&self, rows: &BTreeMap<u32, Row>) -> Result<BTreeSet<u32>, InterceptError> {
        let mut known: BTreeSet<u32> = rows.keys().chain(self.ports.keys()).copied().collect();
        known.extend(pinned_interfaces(&self.pins)?);
        Ok(known)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one step of `sync`, borrowed apart"
    )]
    fn interface(
        &mut self,
        port: &mut Port,
        program: &mut SchedClassifier,
        table: &mut dyn InterfaceTable,
        link: &Link,
        wanted: &Wanted,
        row: Option<Row>,
        now: Instant,
        changes: &mut Changes,
    ) -> Result<(), InterceptError> {
        let id = program_id(program, link)?;
        let mut entries = view(&mut self.netlink, link, Some(id), &self.pins)?;
        port.tcx = on_tcx(&entries);
        let there = own(&entries, id);
        let own_qdisc = row.is_some_and(|row| row.own_qdisc);
        if port.attached.is_some() && there.is_some() {
            self.enter(port, table, link.index, wanted, row, own_qdisc)?;
        } else {
            if port.attached.is_some() {
                // It was there, and nobody asked us.
                let by = "our classifier was removed from this interface by somebody else";
                match port.bounds.ask(now) {
                    Permission::Now => port.bounds.spend(now),
                    Permission::Later => {
                        port.restless = Some(now + RESTLESS);
                        port.set(
                            InterfaceState::Failed,
                            format!("{by}; it is put back in a moment"),
                        );
                        return Ok(());
                    }
                    Permission::Spent => {
                        port.set(
                            InterfaceState::Failed,
                            format!(
                                "{by}, {LIMIT} times in a short time; it is put back once a minute now. Find out who does it, or \
                                 set intercept.classifier_attach: tcx (Linux 6.6) or intercept.datapath: cgroup"
                            ),
                        );
                        return Ok(());
                    }
                }
                changes.reasserted.push(link.name.clone());
            } else {
                changes.attached.push(link.name.clone());
            }
            // A qdisc is provably ours while our filter is on it: if the filter went, so may have the qdisc.
            let kept = own_qdisc && entries.iter().any(is_own_filter);
            let makes = self.is_classic(link)? && !has_qdisc(&mut self.netlink, link.index)?;
            self.enter(port, table, link.index, wanted, row, kept || makes)?;
            let attached = attach(
                &mut self.netlink,
                program,
                link,
                self.how,
                self.priority,
                &self.pins,
            )?;
            let made = matches!(attached, Attached::Classic { made_qdisc: true, .. });
            if makes && !made {
                self.enter(port, table, link.index, wanted, row, kept)?;
            }
            port.attached = Some(attached);
            port.window.reset();
            port.restless = Some(now + RESTLESS);
            port.set(InterfaceState::Active, String::new());
            entries = view(&mut self.netlink, link, Some(id), &self.pins)?;
            port.tcx = on_tcx(&entries);
        }
        self.look_for_shadow(port, program, link, &entries, id, now, changes)
    }

    /// Whether somebody before ours stops packets, and what to do about it.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one step of `sync`, borrowed apart"
    )]
    fn look_for_shadow(
        &mut self,
        port: &mut Port,
        program: &mut SchedClassifier,
        link: &Link,
        entries: &[Entry],
        id: u32,
        now: Instant,
        changes: &mut Changes,
    ) -> Result<(), InterceptError> {
        let Some(at) = own(entries, id) else {
            return Ok(());
        };
        let front: Vec<&Entry> = entries[..at].iter().filter(|entry| !entry.ours).collect();
        if !front.iter().copied().eq(&port.front) {
            port.front = front.iter().copied().cloned().collect();
            // What it did until now says nothing of what it does from now on.
            port.window.reset();
            port.restless = Some(now + RESTLESS);
        }
        if front.is_empty() {
            port.window.reset();
            port.set(InterfaceState::Active, String::new());
            return Ok(());
        }
        match port.window.look(link.rx_packets, port.seen) {
            Sight::TooFew => return Ok(()),
            Sight::Seen => {
                port.set(InterfaceState::Active, String::new());
                return Ok(());
            }
            Sight::Missed(packets) => port.missed += packets,
        }
        let own = &entries[at];
        let detail = shadowed(&front, own, self.same_priority);
        let remedy = match own.place {
            Place::Tcx => true,
            Place::Classic { priority, .. } => {
                self.same_priority == SamePriority::Prepend
                    && front
                        .iter()
                        .all(|entry| matches!(entry.place, Place::Classic { priority: theirs, .. } if theirs == priority))
            }
        };
        if !remedy {
            port.set(InterfaceState::Shadowed, detail);
            return Ok(());
        }
        match port.bounds.ask(now) {
            Permission::Now => {
                port.bounds.spend(now);
                port.attached = Some(match own.place {
                    Place::Tcx => {
                        lead_tcx(&mut self.netlink, program, link, &self.pins)?;
                        Attached::Tcx
                    }
                    Place::Classic { priority, .. } => prepend(&mut self.netlink, program, link, priority)?,
                });
                port.window.reset();
                changes.reasserted.push(link.name.clone());
                tracing::info!(interface = %link.name, behind = %front[0], "the classifier was put first again");
            }
            Permission::Later => {
                port.restless = Some(now + RESTLESS);
                port.set(
                    InterfaceState::Shadowed,
                    format!("{detail} (ours is put first again in a moment)"),
                );
            }
            Permission::Spent => port.set(
                InterfaceState::Shadowed,
                format!("{detail} (ours was put first {LIMIT} times in a short time, and the other one came back each time; it \
                     is tried once a minute now)"),
            ),
        }
        Ok(())
    }

    /// Writes the table when there is something new.
    fn enter(
        &self,
        port: &mut Port,
        table: &mut dyn InterfaceTable,
        index: u32,
        wanted: &Wanted,
        row: Option<Row>,
        own_qdisc: bool,
    ) -> Result<(), InterceptError> {
        let entry = (wanted.clone(), own_qdisc, self.ipv6);
        if row.is_none() || port.put.as_ref() != Some(&entry) {
            table.put(index, wanted, own_qdisc, self.ipv6)?;
            port.put = Some(entry);
        }
        Ok(())
    }

    fn is_classic(&self, link: &Link) -> Result<bool, InterceptError> {
        Ok(match self.how {
            ClassifierAttach::Tcx => false,
            ClassifierAttach::Netlink => true,
            ClassifierAttach::Auto => !tcx_supported(&link.name)?,
        })
    }
}
