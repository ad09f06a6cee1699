//! `Tc::sync` against vendors that do what vendors do: ours is back or the shadow is named, and theirs stays as they left it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use agent_fips_proxy::config::{ClassifierAttach, Intercept, SamePriority};
use agent_fips_proxy::intercept::tc::{
    Changes, FILTER_NAME, InterfaceState, InterfaceStatus, Surplus, Tc, Wanted, has_qdisc, links, uninstall,
};
use anyhow::{Context, Result};
use harness::vendor::{Answer, OK, SHOT, UNSPEC, filters, has_tcx, tc};
use harness::{check, check_eq};

use crate::world::{DEVICE, Ours, Table, World, ip, settings, world};

/// A running datapath.
pub struct Running {
    pub tc: Tc,
    ours: Ours,
    pub table: Table,
    /// What it takes for the time.
    now: Instant,
}

impl Running {
    pub fn start(world: &World, config: &Intercept) -> Result<Self> {
        Ok(Self {
            tc: Tc::new(config, world.pins())?,
            ours: Ours::load(world, "ours")?,
            table: Table::default(),
            now: Instant::now(),
        })
    }

    pub fn sync(&mut self, world: &mut World) -> Result<Changes> {
        let wanted = world.wanted()?;
        let changes = self.sync_with(&wanted)?;
        check_eq!(changes.failed, Vec::<String>::new(), "failures");
        Ok(changes)
    }

    fn sync_with(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<Changes> {
        self.table.seen = self.ours.counter.count()?;
        let program = &mut self.ours.program;
        Ok(self
            .tc
            .sync(program, &mut self.table, wanted, Surplus::Remove, self.now)?)
    }

    fn status(&self) -> Result<InterfaceStatus> {
        self.tc.status().into_iter().next().context("no interface")
    }

    /// True when packets reach ours.
    fn works(&self, world: &mut World) -> Result<bool> {
        let before = self.ours.counter.count()?;
        world.send(5)?;
        Ok(self.ours.counter.count()? >= before + 5)
    }
}

/// A classic filter of this priority.
pub fn classic(priority: u16) -> Intercept {
    settings(ClassifierAttach::Netlink, priority, SamePriority::Keep)
}

pub fn a_vendor_may_do_what_it_likes() -> Result<()> {
    world(|world| {
        let mut running = Running::start(world, &classic(10))?;
        let changes = running.sync(world)?;
        check_eq!(changes.attached, [DEVICE.to_owned()], "attached");
        check!(running.table.entries_own_qdisc()?, "the qdisc is ours");
        check_eq!(running.sync(world)?, unchanged(), "nothing to do");
        check!(running.works(world)?, "packets do not reach ours");

        let vendor = world.vendor("cil_from_container", UNSPEC)?;
        vendor.tc("add", DEVICE, 1, 1)?;
        let left = filters(DEVICE, FILTER_NAME)?;
        let replacement = world.vendor("cil_next", UNSPEC)?;
        replacement.tc("replace", DEVICE, 1, 1)?;
        vendor.tc("replace", DEVICE, 1, 1)?;
        check_eq!(running.sync(world)?, unchanged(), "a vendor replaced its own");
        tc(&format!("filter delete dev {DEVICE} ingress prio 1 handle 1 bpf"))?;
        vendor.tc("add", DEVICE, 1, 1)?;
        check_eq!(
            running.sync(world)?,
            unchanged(),
            "a vendor deleted and added its own"
        );
        check!(running.works(world)?, "packets do not reach ours");
        check_eq!(filters(DEVICE, FILTER_NAME)?, left, "the vendor's");

        // Our filter, by priority; then everything with the qdisc.
        tc(&format!("filter delete dev {DEVICE} ingress prio 10"))?;
        check_eq!(running.sync(world)?.reasserted, [DEVICE.to_owned()], "put back");
        check!(running.works(world)?, "packets do not reach ours");
        check_eq!(filters(DEVICE, FILTER_NAME)?, left, "the vendor's");
        tc(&format!("qdisc delete dev {DEVICE} clsact"))?;
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
        vendor.tc("add", DEVICE, 1, 1)?;
        // The second time in a row comes after a pause.
        check_eq!(running.sync(world)?.reasserted, Vec::<String>::new(), "too soon");
        let status = running.status()?;
        check_eq!(status.state, InterfaceState::Failed, "meanwhile");
        check!(
            status
                .detail
                .contains("removed from this interface by somebody else"),
            "{}",
            status.detail
        );
        running.now += Duration::from_millis(600);
        check_eq!(running.sync(world)?.reasserted, [DEVICE.to_owned()], "put back");
        check!(running.works(world)?, "packets do not reach ours");
        let status = running.status()?;
        check_eq!(
            (status.state, status.reassertions),
            (InterfaceState::Active, 2),
            "status"
        );
        check!(
            !running.table.entries_own_qdisc()?,
            "the qdisc is the vendor's now"
        );
        running.tc.remove_all(&mut running.table)?;
        let index = world.link(DEVICE)?.index;
        check!(
            has_qdisc(&mut world.netlink, index)?,
            "the vendor's qdisc is gone"
        );
        check_eq!(filters(DEVICE, "nothing")?.len(), 1, "the vendor's alone");
        Ok(())
    })
}

pub fn a_tcx_duel_is_bounded() -> Result<()> {
    world(|world| {
        let config = settings(ClassifierAttach::Tcx, 10, SamePriority::Keep);
        let mut running = Running::start(world, &config)?;
        if !has_tcx()? {
            let wanted = world.wanted()?;
            let failed = running.sync_with(&wanted)?.failed;
            check!(failed.len() == 1 && failed[0].contains("no TCX"), "{failed:?}");
            check_eq!(running.status()?.state, InterfaceState::Failed, "without TCX");
            return Ok(());
        }
        running.sync(world)?;
        let index = world.link(DEVICE)?.index;
        // A friendly one before ours changes nothing, however long.
        let friend = world.vendor("friend", UNSPEC)?;
        let held = friend.tcx(index, true)?;
        for _ in 0..3 {
            world.send(5)?;
            check_eq!(running.sync(world)?, unchanged(), "a friendly program");
        }
        check_eq!(
            running.status()?.state,
            InterfaceState::Active,
            "a friendly program"
        );
        drop(held);

        let vendor = world.vendor("cil_from_container", OK)?;
        let start = running.now;
        let mut rounds = 0;
        let mut held = None;
        loop {
            // Always first again.
            drop(held.take());
            held = Some(vendor.tcx(index, true)?);
            running.sync(world)?;
            world.send(5)?;
            let changes = running.sync(world)?;
            if changes.reasserted.is_empty() {
                let detail = running.status()?.detail;
                if detail.contains("5 times") {
                    break;
                }
                check!(running.now < start + Duration::from_secs(30), "no end: {detail}");
                running.now += Duration::from_millis(100);
            } else {
                rounds += 1;
                check!(running.works(world)?, "put first, and packets do not reach ours");
            }
        }
        check_eq!(rounds, 5, "times ours was put first");
        check!(
            running.now >= start + Duration::from_millis(7500),
            "pauses of 0.5, 1, 2 and 4 s, after {:?}",
            running.now - start
        );
        let status = running.status()?;
        check_eq!(
            (status.state, status.reassertions),
            (InterfaceState::Shadowed, 5),
            "status"
        );
        check!(status.missed >= 5, "missed {}", status.missed);
        for part in ["`cil_from_contai` (Cilium) on TCX", "intercept.datapath: cgroup"] {
            check!(
                status.detail.contains(part),
                "{part} is not in: {}",
                status.detail
            );
        }
        // It leaves: ours sees packets again by itself.
        drop(held);
        running.sync(world)?;
        check_eq!(running.status()?.state, InterfaceState::Active, "after it left");
        check!(running.works(world)?, "packets do not reach ours");
        Ok(())
    })
}

/// Where another one stands (on TCX, or at a priority), what it answers, and parts of what is said of it.
type Shadow = (Option<u16>, Answer, [&'static str; 2]);

pub fn a_shadow_is_named() -> Result<()> {
    shadows(&[
        (Some(5), OK, ["`aws_like:[", "intercept.classifier_priority: 4 "]),
        (
            Some(10),
            OK,
            ["at priority 10, handle 0x1", "intercept.classifier_priority: 9 "],
        ),
        (
            Some(1),
            SHOT,
            ["at priority 1, handle 0x1", "intercept.classifier_attach: tcx"],
        ),
    ])
}

pub fn a_shadow_on_tcx_is_named() -> Result<()> {
    shadows(&[(None, OK, ["on TCX", "no priority of a classic filter"])])
}

fn shadows(all: &[Shadow]) -> Result<()> {
    world(|world| {
        for &(place, answer, parts) in all {
            let mut running = Running::start(world, &classic(10))?;
            running.sync(world)?;
            let index = world.link(DEVICE)?.index;
            let vendor = world.vendor("aws_like", answer)?;
            let held = match place {
                Some(priority) => vendor.tc("add", DEVICE, priority, 1).map(|()| None)?,
                None => Some(vendor.tcx(index, true)?),
            };
            let left = filters(DEVICE, "nothing")?;
            check_eq!(running.sync(world)?, unchanged(), "too few packets to say");
            check_eq!(
                running.status()?.state,
                InterfaceState::Active,
                "too few packets to say"
            );
            world.send(8)?;
            check_eq!(running.sync(world)?, unchanged(), "reported only");
            let status = running.status()?;
            check_eq!(status.state, InterfaceState::Shadowed, "{place:?}: {status:?}");
            // A neighbour's answer or two besides.
            check!(
                (8..12).contains(&status.missed),
                "{place:?}: missed {}",
                status.missed
            );
            check_eq!(status.attached.as_deref(), Some("netlink"), "{place:?}");
            for part in parts {
                check!(
                    status.detail.contains(part),
                    "{part} is not in: {}",
                    status.detail
                );
            }
            check_eq!(filters(DEVICE, "nothing")?, left, "nothing was moved");
            let json = serde_json::to_value(&status)?;
            check_eq!(
                (&json["state"], &json["handle"]),
                (&"shadowed".into(), &0xdd01.into()),
                "as JSON"
            );
            drop(held);
            running.tc.remove_all(&mut running.table)?;
            if place.is_some() {
                tc(&format!("qdisc delete dev {DEVICE} clsact"))?;
            }
            std::fs::remove_file(vendor.pin())?;
            std::fs::remove_file(running.ours.counter.pin())?;
        }
        Ok(())
    })
}

pub fn prepend_comes_back() -> Result<()> {
    world(|world| {
        let config = settings(ClassifierAttach::Netlink, 1, SamePriority::Prepend);
        let vendor = world.vendor("handle_ingress", OK)?;
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
        vendor.tc("add", DEVICE, 1, 1)?;
        let left = filters(DEVICE, FILTER_NAME)?;
        let mut running = Running::start(world, &config)?;
        running.sync(world)?;
        check!(running.works(world)?, "the newest is first");
        // In place: the order stays.
        vendor.tc("replace", DEVICE, 1, 1)?;
        check!(running.works(world)?, "after a replacement");
        tc(&format!("filter delete dev {DEVICE} ingress prio 1 handle 1 bpf"))?;
        vendor.tc("add", DEVICE, 1, 1)?;
        check!(!running.works(world)?, "the vendor is the newest now");
        running.sync(world)?;
        world.send(5)?;
        check_eq!(running.sync(world)?.reasserted, [DEVICE.to_owned()], "put first");
        check!(running.works(world)?, "packets do not reach ours");
        check_eq!(filters(DEVICE, FILTER_NAME)?, left, "the vendor's");
        let status = running.status()?;
        check_eq!(
            (status.handle, status.priority),
            (Some(0xdd02), Some(1)),
            "the other handle"
        );
        check_eq!(running.sync(world)?, unchanged(), "nothing to do");
        running.tc.remove_all(&mut running.table)?;
        check_eq!(filters(DEVICE, "nothing")?, left, "the vendor's alone");
        Ok(())
    })
}

pub fn a_new_veth_is_a_new_interface() -> Result<()> {
    world(|world| {
        for &how in ways()? {
            let mut running = Running::start(world, &settings(how, 10, SamePriority::Keep))?;
            running.sync(world)?;
            let old = world.wanted()?;
            world.part()?;
            // Still wanted by somebody who did not look yet.
            let changes = running.sync_with(&old)?;
            check_eq!(changes.failed, Vec::<String>::new(), "an interface that is gone");
            check_eq!(
                changes.detached,
                old.keys().copied().collect::<Vec<_>>(),
                "its remains"
            );
            check!(running.table.rows.is_empty(), "the table");
            let pins = std::fs::read_dir(world.pins()).map_or(0, Iterator::count);
            check_eq!(pins, 0, "pins");
            world.join()?;
            let changes = running.sync(world)?;
            check_eq!(changes.attached, [DEVICE.to_owned()], "the new one");
            check_eq!(running.tc.status().len(), 1, "interfaces");
            check!(running.works(world)?, "packets do not reach ours");
            running.tc.remove_all(&mut running.table)?;
            std::fs::remove_file(running.ours.counter.pin())?;
        }
        Ok(())
    })
}

pub fn a_successor_takes_over() -> Result<()> {
    world(|world| {
        for &how in ways()? {
            let config = settings(how, 10, SamePriority::Keep);
            let mut first = Running::start(world, &config)?;
            first.sync(world)?;
            // The first process is gone without a word; table, pins and filters are as it left them.
            let pin = first.ours.counter.pin().to_owned();
            let table = Table {
                rows: std::mem::take(&mut first.table.rows),
                seen: first.table.seen,
                ipv6: first.table.ipv6,
            };
            let owned = table.entries_own_qdisc()?;
            check_eq!(owned, how == ClassifierAttach::Netlink, "whose qdisc");
            drop(first);
            std::fs::remove_file(pin)?;
            let mut second = Running::start(world, &config)?;
            second.table = table;
            second.sync(world)?;
            check_eq!(second.table.entries_own_qdisc()?, owned, "it is remembered");
            check!(second.works(world)?, "packets do not reach the successor");
            check_eq!(second.sync(world)?, unchanged(), "nothing to do");
            let index = world.link(DEVICE)?.index;
            let removed = second.tc.remove_all(&mut second.table)?;
            check_eq!(removed.links + removed.filters, 1, "one classifier");
            check!(!has_qdisc(&mut world.netlink, index)?, "our qdisc is left");
            std::fs::remove_file(second.ours.counter.pin())?;
        }
        Ok(())
    })
}

pub fn uninstall_leaves_nothing() -> Result<()> {
    world(|world| {
        ip("link add veth8 type veth peer name veth9")?;
        let before = picture(world)?;
        for &how in ways()? {
            let config = settings(how, 10, SamePriority::Keep);
            let mut running = Running::start(world, &config)?;
            let mut wanted = world.wanted()?;
            let other = world.link("veth8")?;
            let mut second = wanted.values().next().context("wanted")?.clone();
            second.name = other.name.clone();
            second.rule_device = other.name;
            wanted.insert(other.index, second);
            let changes = running.sync_with(&wanted)?;
            check_eq!(
                (changes.attached.len(), changes.failed.len()),
                (2, 0),
                "{changes:?}"
            );
            // One interface less: the other stays.
            wanted.remove(&other.index);
            let changes = running.sync_with(&wanted)?;
            check_eq!(changes.detached, [other.index], "not wanted any more");
            check_eq!(changes.routes.removed, 2, "its rules");
            check!(picture(world)? != before, "nothing is attached");

            let own: BTreeSet<u32> = match how {
                ClassifierAttach::Netlink => BTreeSet::from([world.link(DEVICE)?.index]),
                _ => BTreeSet::new(),
            };
            let pin = running.ours.counter.pin().to_owned();
            drop(running);
            let removed = uninstall(&world.pins(), &own)?;
            check_eq!(
                (removed.links + removed.filters, removed.qdiscs, removed.routes),
                (1, own.len(), 4),
                "{removed:?}"
            );
            check_eq!(picture(world)?, before, "left behind");
            check_eq!(
                uninstall(&world.pins(), &own)?,
                agent_fips_proxy::intercept::tc::Removed::default(),
                "again"
            );
            std::fs::remove_file(pin)?;
        }
        Ok(())
    })
}

/// Everything that the datapath could leave: rules, routes of every table, qdiscs, filters, TCX programs.
fn picture(world: &mut World) -> Result<BTreeMap<String, String>> {
    let mut picture = BTreeMap::new();
    for words in [
        "-4 rule list",
        "-6 rule list",
        "-4 route show table all",
        "-6 route show table all",
    ] {
        picture.insert(words.to_owned(), ip(words)?);
    }
    picture.insert("qdiscs".to_owned(), tc("qdisc show")?);
    for link in links(&mut world.netlink)? {
        let chain =
            agent_fips_proxy::intercept::tc::chain(&mut world.netlink, link.index, &link.name, &|_, _| {
                false
            })?;
        picture.insert(link.name, format!("{chain:?}"));
    }
    Ok(picture)
}

/// The ways in which this kernel takes a classifier.
fn ways() -> Result<&'static [ClassifierAttach]> {
    let ways = &[ClassifierAttach::Netlink, ClassifierAttach::Tcx];
    Ok(if has_tcx()? { ways } else { &ways[..1] })
}

/// A look that found everything as it should be. IPv6 is on in these namespaces.
fn unchanged() -> Changes {
    let mut changes = Changes::default();
    changes.routes.ipv6 = true;
    changes
}

impl Table {
    /// Whether the one interface's qdisc is noted as ours.
    fn entries_own_qdisc(&self) -> Result<bool> {
        self.rows.values().next().map(|(_, own)| *own).context("no row")
    }
}
