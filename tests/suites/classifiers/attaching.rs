//! Ours comes and goes: in place, without a gap, and without touching what is not ours.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agent_fips_proxy::config::ClassifierAttach;
use agent_fips_proxy::intercept::tc::{
    Attached, FILTER_NAME, HANDLE, HANDLES, Place, attach, chain, detach, has_qdisc, prepend,
};
use anyhow::{Context, Result};
use harness::vendor::{OK, SHOT, UNSPEC, Vendor, filters, has_tcx, tc};
use harness::{check, check_eq};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcMessage, TcOption};

use crate::world::{DEVICE, Ours, World, world};

/// Program ids on the interface, in order.
fn ids(world: &mut World) -> Result<Vec<u32>> {
    let link = world.link(DEVICE)?;
    Ok(chain(&mut world.netlink, link.index, DEVICE, &|_, _| false)?
        .iter()
        .filter_map(|entry| entry.program.as_ref().map(|program| program.id))
        .collect())
}

/// Runs `work` while packets come in without a pause.
fn under_load(world: &mut World, work: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let namespace = world.pod.namespace()?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    // Some before, some within, some after, however slow the machine is.
    let more = |what: &str| {
        let enough = sent.load(Ordering::Relaxed) + 500;
        harness::eventually(what, Duration::from_secs(30), || {
            Ok((sent.load(Ordering::Relaxed) >= enough).then_some(()))
        })
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let socket = std::net::UdpSocket::bind("198.51.100.2:0")?;
            while !stop.load(Ordering::Relaxed) {
                socket.send_to(b"x", "198.51.100.1:9")?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let result = more("packets before")
            .and_then(|()| work(world))
            .and_then(|()| more("packets afterwards"));
        stop.store(true, Ordering::Relaxed);
        sender
            .join()
            .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        result
    })
}

/// Another program of ours takes the place of the first one under load; of what passes the witness behind them, one of the two has
/// seen every packet.
fn replaced(world: &mut World, how: ClassifierAttach, first: &Ours, witness: &Vendor) -> Result<Ours> {
    let link = world.link(DEVICE)?;
    let pins = world.pins();
    let mut second = Ours::load(world, "ours_2")?;
    let before = witness.count()?;
    let earlier = first.counter.count()?;
    under_load(world, |world| {
        attach(&mut world.netlink, &mut second.program, &link, how, 10, &pins)?;
        Ok(())
    })?;
    world.send(1)?;
    let passed = witness.count()? - before;
    let saw = first.counter.count()? - earlier + second.counter.count()?;
    check!(
        saw >= passed && second.counter.count()? > 0,
        "{saw} of {passed} packets were seen"
    );
    check_eq!(ids(world)?, [second.counter.id, witness.id], "replaced in place");
    Ok(second)
}

/// Before Linux 6.6: a clear word, and `auto` goes the other way.
fn without_tcx(world: &mut World) -> Result<()> {
    let link = world.link(DEVICE)?;
    let pins = world.pins();
    let mut ours = Ours::load(world, "ours")?;
    let error = attach(
        &mut world.netlink,
        &mut ours.program,
        &link,
        ClassifierAttach::Tcx,
        10,
        &pins,
    )
    .err()
    .context("TCX on a kernel without it")?
    .to_string();
    check!(error.contains("no TCX (Linux 6.6)"), "{error}");
    check!(
        !has_qdisc(&mut world.netlink, link.index)?,
        "something was made all the same"
    );
    let attached = attach(
        &mut world.netlink,
        &mut ours.program,
        &link,
        ClassifierAttach::Auto,
        10,
        &pins,
    )?;
    check!(matches!(attached, Attached::Classic { .. }), "{attached:?}");
    Ok(())
}

pub fn tcx_is_replaced_without_a_gap() -> Result<()> {
    world(|world| {
        if !has_tcx()? {
            return without_tcx(world);
        }
        let link = world.link(DEVICE)?;
        let pins = world.pins();
        // Behind ours, sees every packet.
        let witness = world.vendor("cil_from_container", OK)?;
        let _held = witness.tcx(link.index, false)?;
        let mut first = Ours::load(world, "ours_1")?;
        let how = ClassifierAttach::Auto;
        let attached = attach(&mut world.netlink, &mut first.program, &link, how, 10, &pins)?;
        check_eq!(attached, Attached::Tcx, "on this kernel");
        check_eq!(ids(world)?, [first.counter.id, witness.id], "ours first");
        check!(
            !has_qdisc(&mut world.netlink, link.index)?,
            "a qdisc was made for TCX"
        );
        attach(&mut world.netlink, &mut first.program, &link, how, 10, &pins)?;
        check_eq!(ids(world)?, [first.counter.id, witness.id], "attached twice");

        let _second = replaced(world, how, &first, &witness)?;
        let names: Vec<String> = std::fs::read_dir(&pins)?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        check_eq!(names, [link.index.to_string()], "pins");
        check!(
            detach(&mut world.netlink, link.index, &pins, false)?.link,
            "a link was there"
        );
        check_eq!(ids(world)?, [witness.id], "detached at once");
        Ok(())
    })
}

pub fn classic_is_replaced_without_a_gap() -> Result<()> {
    world(|world| {
        let link = world.link(DEVICE)?;
        let pins = world.pins();
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
        let witness = world.vendor("cil_from_container", OK)?;
        witness.tc("add", DEVICE, 20, 1)?;
        let left = filters(DEVICE, FILTER_NAME)?;
        let how = ClassifierAttach::Netlink;
        let mut first = Ours::load(world, "ours_1")?;
        let expected = Attached::Classic {
            priority: 10,
            handle: HANDLE,
            made_qdisc: false,
        };
        for _ in 0..2 {
            let attached = attach(&mut world.netlink, &mut first.program, &link, how, 10, &pins)?;
            check_eq!(attached, expected, "first and again");
        }
        check_eq!(ids(world)?, [first.counter.id, witness.id], "order");

        let mut second = replaced(world, how, &first, &witness)?;

        // Another priority, then TCX: what stood elsewhere goes.
        attach(&mut world.netlink, &mut second.program, &link, how, 7, &pins)?;
        check_eq!(ids(world)?, [second.counter.id, witness.id], "one filter of ours");
        if has_tcx()? {
            let tcx = ClassifierAttach::Tcx;
            attach(&mut world.netlink, &mut second.program, &link, tcx, 7, &pins)?;
            check_eq!(ids(world)?, [second.counter.id, witness.id], "on TCX only");
            let shown = tc(&format!("filter show dev {DEVICE} ingress"))?;
            check!(!shown.contains(FILTER_NAME), "{shown}");
        }
        attach(&mut world.netlink, &mut second.program, &link, how, 7, &pins)?;
        check_eq!(std::fs::read_dir(&pins).map_or(0, Iterator::count), 0, "pins");
        check_eq!(filters(DEVICE, FILTER_NAME)?, left, "the vendor's");
        // The filter outlives the process that made it, the program too.
        drop(second);
        world.send(1)?;
        check_eq!(ids(world)?.len(), 2, "programs");
        Ok(())
    })
}

/// A filter with our name, somewhere else: `tc` cannot set the name by itself.
fn add_named(
    world: &mut World,
    vendor: &Vendor,
    parent: u32,
    priority: u32,
    handle: u32,
    protocol: u16,
) -> Result<()> {
    let mut message = TcMessage::with_index(world.link(DEVICE)?.index.cast_signed());
    message.header.handle = handle.into();
    message.header.parent = parent.into();
    message.header.info = priority << 16 | u32::from(protocol);
    let options = [
        TcFilterBpfOption::ProgFd(vendor.program().as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(FILTER_NAME.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(options.map(TcOption::Bpf).into()),
    ];
    let request = RouteNetlinkMessage::NewTrafficFilter(message);
    world
        .netlink
        .request("add a filter", NLM_F_CREATE | NLM_F_EXCL, request)?;
    Ok(())
}

pub fn only_what_is_ours_is_taken_away() -> Result<()> {
    world(|world| {
        let link = world.link(DEVICE)?;
        let pins = world.pins();
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
        let how = ClassifierAttach::Netlink;
        let mut ours = Ours::load(world, "ours")?;
        // Everything that resembles ours in all but one respect.
        let stranger = world.vendor("stranger", UNSPEC)?;
        stranger.tc("add", DEVICE, 10, HANDLE)?;
        let same_name = world.vendor("same_name", UNSPEC)?;
        let (ingress, egress) = (0xffff_fff2, 0xffff_fff3);
        let everything = 3_u16.to_be();
        for (parent, priority, handle, protocol) in [
            (ingress, 10, 0x17, everything),
            (ingress, 11, HANDLE, 0x0800_u16.to_be()),
            (egress, 10, HANDLE, everything),
        ] {
            add_named(world, &same_name, parent, priority, handle, protocol)?;
        }
        let left = filters(DEVICE, "nothing")?;
        check_eq!(left.len(), 4, "filters");

        let error = attach(&mut world.netlink, &mut ours.program, &link, how, 10, &pins)
            .err()
            .context("a foreign filter was replaced")?
            .to_string();
        for part in [
            "`stranger:[",
            "priority 10, handle 0xdd01",
            "intercept.classifier_priority",
        ] {
            check!(error.contains(part), "{part} is not in: {error}");
        }
        check_eq!(filters(DEVICE, "nothing")?, left, "after the refusal");
        // The kernel refuses another protocol at one priority; its own words are shown.
        let error = attach(&mut world.netlink, &mut ours.program, &link, how, 11, &pins)
            .err()
            .context("two protocols at one priority")?
            .to_string();
        check!(
            error.contains("0xdd01") || error.to_lowercase().contains("protocol"),
            "{error}"
        );

        attach(&mut world.netlink, &mut ours.program, &link, how, 9, &pins)?;
        let gone = detach(&mut world.netlink, link.index, &pins, true)?;
        check_eq!((gone.filters, gone.qdisc), (1, false), "taken away");
        check_eq!(filters(DEVICE, "nothing")?, left, "byte for byte");
        check_eq!(
            detach(&mut world.netlink, link.index, &pins, true)?.filters,
            0,
            "again"
        );
        Ok(())
    })
}

pub fn the_qdisc_goes_only_when_ours() -> Result<()> {
    world(|world| {
        let link = world.link(DEVICE)?;
        let pins = world.pins();
        let how = ClassifierAttach::Netlink;
        let mut ours = Ours::load(world, "ours")?;
        let made = Attached::Classic {
            priority: 10,
            handle: HANDLE,
            made_qdisc: true,
        };
        let attached = attach(&mut world.netlink, &mut ours.program, &link, how, 10, &pins)?;
        check_eq!(attached, made, "where there is none");
        check!(
            detach(&mut world.netlink, link.index, &pins, true)?.qdisc,
            "ours and empty"
        );
        check!(!has_qdisc(&mut world.netlink, link.index)?, "it is left");
        check!(
            !detach(&mut world.netlink, link.index, &pins, true)?.qdisc,
            "nothing there"
        );

        // A vendor used it meanwhile, on egress: it stays.
        attach(&mut world.netlink, &mut ours.program, &link, how, 10, &pins)?;
        let vendor = world.vendor("cil_to_container", OK)?;
        tc(&format!(
            "filter add dev {DEVICE} egress prio 1 handle 1 bpf direct-action object-pinned {}",
            vendor.pin().display()
        ))?;
        check!(
            !detach(&mut world.netlink, link.index, &pins, true)?.qdisc,
            "used by a vendor"
        );
        check_eq!(filters(DEVICE, FILTER_NAME)?.len(), 1, "the vendor's");

        // A vendor's empty one stays, and so does the older kind.
        for kind in ["clsact", "ingress"] {
            tc(&format!("qdisc delete dev {DEVICE} clsact"))
                .or_else(|_| tc(&format!("qdisc delete dev {DEVICE} ingress")))?;
            tc(&format!("qdisc add dev {DEVICE} {kind}"))?;
            let attached = attach(&mut world.netlink, &mut ours.program, &link, how, 10, &pins)?;
            check!(
                matches!(
                    attached,
                    Attached::Classic {
                        made_qdisc: false,
                        ..
                    }
                ),
                "{kind}: {attached:?}"
            );
            let before = ours.counter.count()?;
            world.send(3)?;
            check!(ours.counter.count()? >= before + 3, "{kind}: ours does not run");
            check!(
                !detach(&mut world.netlink, link.index, &pins, false)?.qdisc,
                "{kind}"
            );
            check!(has_qdisc(&mut world.netlink, link.index)?, "{kind} is gone");
        }
        Ok(())
    })
}

pub fn prepend_flips_without_a_gap() -> Result<()> {
    world(|world| {
        let link = world.link(DEVICE)?;
        let pins = world.pins();
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
        let mut ours = Ours::load(world, "ours")?;
        let how = ClassifierAttach::Netlink;
        attach(&mut world.netlink, &mut ours.program, &link, how, 1, &pins)?;
        // Behind ours as long as ours is first; a packet that it sees alone was missed by ours.
        let vendor = world.vendor("cil_from_container", OK)?;
        vendor.tc("add", DEVICE, 1, 1)?;
        check_eq!(ids(world)?, [vendor.id, ours.counter.id], "the newest is first");
        let left = filters(DEVICE, FILTER_NAME)?;
        let flipped = prepend(&mut world.netlink, &ours.program, &link, 1)?;
        check!(
            matches!(flipped, Attached::Classic { handle, .. } if handle == HANDLES[1]),
            "{flipped:?}"
        );
        check_eq!(ids(world)?, [ours.counter.id, vendor.id], "ours is first");
        let (before, earlier) = (vendor.count()?, ours.counter.count()?);
        under_load(world, |world| {
            for _ in 0..20 {
                prepend(&mut world.netlink, &ours.program, &link, 1)?;
            }
            Ok(())
        })?;
        world.send(1)?;
        let (passed, saw) = (vendor.count()? - before, ours.counter.count()? - earlier);
        check!(saw >= passed, "{saw} of {passed} packets were seen");
        let entries = chain(&mut world.netlink, link.index, DEVICE, &|_, _| false)?;
        check_eq!(entries.len(), 2, "filters");
        check!(
            matches!(entries[0].place, Place::Classic { handle, .. } if HANDLES.contains(&handle)),
            "{entries:?}"
        );
        check_eq!(filters(DEVICE, FILTER_NAME)?, left, "the vendor's");

        // Somebody holds the other handle.
        let at = match entries[0].place {
            Place::Classic { handle, .. } => handle,
            Place::Tcx => 0,
        };
        let other = if at == HANDLES[0] { HANDLES[1] } else { HANDLES[0] };
        let stranger = world.vendor("stranger", SHOT)?;
        stranger.tc("add", DEVICE, 1, other)?;
        let error = prepend(&mut world.netlink, &ours.program, &link, 1)
            .err()
            .context("replaced")?;
        check!(error.to_string().contains("`stranger:["), "{error}");
        Ok(())
    })
}
