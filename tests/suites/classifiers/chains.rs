//! Who stands where: host sides of real interfaces, the order of real chains, forecasts against what really happens.

use std::os::fd::AsFd;

use agent_fips_proxy::config::ClassifierAttach;
use agent_fips_proxy::intercept::tc::{
    Attachment, Entry, Inside, Judged, Netlink, Owner, Reached, Returns, Spot, Unsuitable, attach, chain,
    detach, forecast, host_side, links, netns_id, prepend, probe,
};
use anyhow::{Context, Result};
use harness::vendor::{Answer, OK, PIPE, SHOT, UNSPEC, has_tcx, tc};
use harness::{check, check_eq};

use crate::world::{DEVICE, Ours, World, ip, world};

/// The host side as the datapath finds it: lists made inside each namespace.
fn sides(world: &mut World) -> Result<Result<Vec<Spot>, Unsuitable>> {
    let pod = world.pod.within(|| Ok(Inside::look(&mut Netlink::open()?)?))?;
    let host = links(&mut world.netlink)?;
    let namespace = world.pod.namespace()?;
    let id = netns_id(&mut world.netlink, namespace.as_fd())?;
    Ok(host_side(&pod, &host, id))
}

pub fn host_side_of_a_routed_pod() -> Result<()> {
    world(|world| {
        // More interfaces on both sides, so that the indexes of a pair differ.
        ip("link add other type veth peer name other1")?;
        ip(&format!(
            "link add veth1 type veth peer name net1 netns {}",
            world.pod.pid()
        ))?;
        let spots = sides(world)??;
        let names: Vec<(&str, &str)> = spots
            .iter()
            .map(|spot| (spot.link.name.as_str(), spot.rule_device.as_str()))
            .collect();
        check_eq!(names, [(DEVICE, DEVICE), ("veth1", "veth1")], "host sides");
        Ok(())
    })
}

pub fn host_side_of_a_bridged_pod() -> Result<()> {
    world(|world| {
        ip("link add cni0 type bridge")?;
        ip(&format!("address flush dev {DEVICE}"))?;
        ip(&format!("link set {DEVICE} master cni0"))?;
        for (state, reason) in [("down", "is down"), ("up", "has no IP address")] {
            ip(&format!("link set cni0 {state} addrgenmode none"))?;
            let text = sides(world)?
                .err()
                .context("a switching bridge is taken")?
                .to_string();
            check!(
                text.contains(reason) && text.contains("intercept.datapath: cgroup"),
                "{text}"
            );
        }
        ip("address add 198.51.100.1/24 dev cni0")?;
        let spots = sides(world)??;
        check_eq!(spots.len(), 1, "places");
        check_eq!(
            (spots[0].link.name.as_str(), spots[0].rule_device.as_str()),
            (DEVICE, "cni0"),
            "classifier and rule"
        );

        // A gateway that is somebody else: the bridge switches the pod's packets to it.
        world.pod.ip("route add default via 198.51.100.1")?;
        check_eq!(sides(world)??.len(), 1, "the bridge is the gateway");
        let elsewhere = |world: &mut World, words: &str| -> Result<()> {
            let text = sides(world)?
                .err()
                .context("it is taken all the same")?
                .to_string();
            check!(
                text.contains(words) && text.contains("intercept.datapath: cgroup"),
                "no `{words}`: {text}"
            );
            Ok(())
        };
        world.pod.ip("route replace default via 198.51.100.9")?;
        elsewhere(world, "IPv4 gateway (198.51.100.9,")?;
        world.pod.ip("route replace default dev eth0")?;
        elsewhere(world, "names none")?;
        world.pod.ip("route replace default via 198.51.100.1")?;
        for command in [
            "address add 2001:db8::2/64 dev eth0 nodad",
            "-6 route add default via 2001:db8::1",
        ] {
            world.pod.ip(command)?;
        }
        elsewhere(world, "IPv6 gateway (2001:db8::1,")?;
        ip("address add 2001:db8::1/64 dev cni0 nodad")?;
        check_eq!(sides(world)??.len(), 1, "both families by the bridge");
        world.pod.ip("-6 route replace default via fe80::99 dev eth0")?;
        elsewhere(world, "IPv6 gateway (fe80::99,")?;
        Ok(())
    })
}

pub fn pods_without_a_host_side() -> Result<()> {
    world(|world| {
        world.part()?;
        check_eq!(
            sides(world)?.err(),
            Some(Unsuitable::NoInterface),
            "only loopback"
        );
        ip("link add lower type veth peer name lower1")?;
        ip(&format!(
            "link add link lower name eth0 netns {} type macvlan mode bridge",
            world.pod.pid()
        ))?;
        let expected = Unsuitable::Kind {
            interface: "eth0".into(),
            kind: "macvlan".into(),
        };
        check_eq!(sides(world)?.err(), Some(expected), "macvlan");
        world.pod.ip("link delete eth0")?;
        // A pair between the pod and somebody else: the host has an interface of the same index.
        let other = harness::netns::Host::new(&[])?;
        other.ip(&format!(
            "link add far type veth peer name eth0 netns {}",
            world.pod.pid()
        ))?;
        let expected = Unsuitable::NoHostSide {
            interface: "eth0".into(),
        };
        check_eq!(sides(world)?.err(), Some(expected), "somebody else's pair");
        Ok(())
    })
}

fn nobody(_: u32, _: &str) -> bool {
    false
}

fn read(world: &mut World) -> Result<Vec<Entry>> {
    let link = world.link(DEVICE)?;
    Ok(chain(&mut world.netlink, link.index, DEVICE, &nobody)?)
}

pub fn chain_is_the_kernels_order() -> Result<()> {
    world(|world| {
        check_eq!(read(world)?.len(), 0, "an interface without a qdisc");
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
        let index = world.link(DEVICE)?.index;
        let five = world.vendor("five", UNSPEC)?;
        let older = world.vendor("cil_from_container", UNSPEC)?;
        let newer = world.vendor("classifier_ingress", UNSPEC)?;
        let last = world.vendor("handle_ingress", UNSPEC)?;
        let head = world.vendor("cali_head", UNSPEC)?;
        five.tc("add", DEVICE, 5, 1)?;
        older.tc("add", DEVICE, 1, 1)?;
        newer.tc("add", DEVICE, 1, 2)?;
        let mut order = vec![&newer, &older, &five];
        let mut owners = vec![Owner::Datadog, Owner::Cilium, Owner::Unknown, Owner::Unknown];
        let mut held = Vec::new();
        if has_tcx()? {
            held.push(last.tcx(index, false)?);
            held.push(head.tcx(index, true)?);
            order.splice(..0, [&head, &last]);
            owners.splice(..0, [Owner::Calico, Owner::Aws]);
        }
        let classic = held.len();
        let count = order.len();
        tc(&format!(
            "filter add dev {DEVICE} ingress prio 20 protocol ip u32 match u32 0 0 classid 1:1"
        ))?;

        let entries = read(world)?;
        let ids: Vec<Option<u32>> = entries
            .iter()
            .map(|entry| entry.program.as_ref().map(|program| program.id))
            .collect();
        let expected: Vec<Option<u32>> = order.iter().map(|vendor| Some(vendor.id)).collect();
        check_eq!(ids[..count], expected, "order");
        check_eq!(
            (entries.len(), entries[count].kind.as_str()),
            (count + 1, "u32"),
            "the last"
        );
        check_eq!(
            entries.iter().map(|entry| entry.owner).collect::<Vec<_>>(),
            owners,
            "owners"
        );
        // The order is real: each one that ends the run hides those that come after it, and nobody before it.
        world.send(5)?;
        for vendor in &order {
            check!(
                vendor.count()? >= 5,
                "{} saw {}",
                vendor.pin().display(),
                vendor.count()?
            );
        }
        let ender = world.vendor("ender", OK)?;
        ender.tc("replace", DEVICE, 1, 2)?;
        let before = [older.count()?, five.count()?];
        world.send(5)?;
        check_eq!(
            [older.count()?, five.count()?],
            before,
            "behind one that ends the run"
        );
        check!(ender.count()? >= 5, "the one that ends it");

        // Tags are those of the kernel, and a moved name is noticed.
        let shown = tc(&format!("filter show dev {DEVICE} ingress"))?;
        for entry in &read(world)?[classic..count] {
            let program = entry.program.as_ref().context("no program")?;
            check!(
                shown.contains(&format!("tag {}", program.tag)),
                "{} not in {shown}",
                program.tag
            );
            check!(entry.direct_action, "direct action");
        }
        // Older kernels rename nothing that is up.
        ip(&format!("link set {DEVICE} down"))?;
        ip(&format!("link set {DEVICE} name moved"))?;
        let error = chain(&mut world.netlink, index, DEVICE, &nobody)
            .err()
            .context("taken")?;
        check!(
            error.to_string().contains("there is none of this name"),
            "{error}"
        );
        Ok(())
    })
}

/// Where a vendor stands: on TCX, or at a priority.
const PLACES: [Option<u16>; 6] = [None, Some(1), Some(5), Some(10), Some(11), Some(20)];
/// How ours is attached, at which priority, and whether it answers a newcomer.
const OURS: [(ClassifierAttach, u16, bool); 5] = [
    (ClassifierAttach::Tcx, 10, false),
    (ClassifierAttach::Netlink, 1, false),
    (ClassifierAttach::Netlink, 4, false),
    (ClassifierAttach::Netlink, 10, false),
    (ClassifierAttach::Netlink, 10, true),
];

/// Every vendor against every way of ours: the forecast says exactly what the kernel does.
pub fn forecast_is_what_happens() -> Result<()> {
    world(|world| {
        tc(&format!("qdisc add dev {DEVICE} clsact"))?;
        let link = world.link(DEVICE)?;
        let answers = [
            ("ok", OK, Returns::Ok),
            ("unspec", UNSPEC, Returns::Unspec),
            ("pipe", PIPE, Returns::Other(3)),
            ("shot", SHOT, Returns::Shot),
            ("redirect", Answer::Redirects(link.index), Returns::Redirect),
        ];
        let (places, ours): (&[_], &[_]) = if has_tcx()? {
            (&PLACES, &OURS)
        } else {
            (&PLACES[1..], &OURS[1..])
        };
        let mut cases = 0;
        for (name, answer, returns) in answers {
            let vendor = world.vendor(name, answer)?;
            for &place in places {
                for &(how, priority, prepends) in ours {
                    let mut ours = Ours::load(world, "ours")?;
                    let pins = world.pins();
                    let added = |vendor: &harness::vendor::Vendor| match place {
                        None => vendor.tcx(link.index, false).map(Some),
                        Some(priority) => vendor.tc("add", DEVICE, priority, 1).map(|()| None),
                    };
                    let mut held = added(&vendor)?;
                    let judged: Vec<Judged> = read(world)?
                        .into_iter()
                        .map(|entry| Judged { entry, returns })
                        .collect();
                    attach(&mut world.netlink, &mut ours.program, &link, how, priority, &pins)?;
                    if place == Some(priority) && how == ClassifierAttach::Netlink {
                        // The vendor comes back and is first; `prepend` answers, `keep` does not.
                        tc(&format!(
                            "filter delete dev {DEVICE} ingress prio {priority} handle 1 bpf"
                        ))?;
                        held = added(&vendor)?;
                        if prepends {
                            prepend(&mut world.netlink, &ours.program, &link, priority)?;
                        }
                    }
                    let before = ours.counter.count()?;
                    world.send(3)?;
                    let saw = ours.counter.count()? >= before + 3;
                    let attachment = match how {
                        ClassifierAttach::Tcx => Attachment::TcxFirst,
                        _ => Attachment::Classic {
                            priority,
                            prepend: prepends,
                        },
                    };
                    let foreseen = forecast(&judged, attachment);
                    check_eq!(
                        foreseen.reached == Reached::Yes,
                        saw,
                        "{returns:?} at {place:?}, ours {attachment:?}: {foreseen:?}; packets"
                    );
                    cases += 1;

                    detach(&mut world.netlink, link.index, &pins, false)?;
                    drop(held);
                    if let Some(priority) = place {
                        tc(&format!(
                            "filter delete dev {DEVICE} ingress prio {priority} handle 1 bpf"
                        ))?;
                    }
                    std::fs::remove_file(ours.counter.pin())?;
                    harness::eventually("an empty chain", std::time::Duration::from_secs(2), || {
                        Ok(read(world)?.is_empty().then_some(()))
                    })?;
                }
            }
        }
        check_eq!(cases, 5 * places.len() * ours.len(), "combinations");
        Ok(())
    })
}

pub fn probe_tells_the_answer() -> Result<()> {
    world(|world| {
        for (name, answer, expected) in [
            ("ok", OK, Returns::Ok),
            ("unspec", UNSPEC, Returns::Unspec),
            ("shot", SHOT, Returns::Shot),
            ("pipe", PIPE, Returns::Other(3)),
            ("redirect", Answer::Redirects(1), Returns::Redirect),
        ] {
            let vendor = world.vendor(name, answer)?;
            let told = probe(vendor.id, &[443])?;
            check_eq!((told.v4, told.v6), (expected, expected), "{name}");
            // That is what the documentation warns of.
            check_eq!(vendor.count()?, 2, "runs of {name}");
        }
        let error = probe(u32::MAX, &[443])
            .err()
            .context("a program that nobody loaded")?;
        check!(error.to_string().contains("program 4294967295"), "{error}");
        Ok(())
    })
}
