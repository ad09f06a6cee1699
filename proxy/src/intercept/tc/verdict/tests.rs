//! Every vendor against every way of ours, and what each message must name.

use super::super::chain::Program;
use super::super::owner::Owner;
use super::*;

const PIPE: Returns = Returns::Other(3);

/// A vendor's program: on TCX, or at a priority.
fn vendor(place: Option<u16>, returns: Returns) -> Judged {
    Judged {
        entry: Entry {
            place: place.map_or(Place::Tcx, |priority| Place::Classic {
                priority,
                handle: 1,
                protocol: 3,
                chain: 0,
            }),
            kind: "bpf".into(),
            program: Some(Program {
                id: 42,
                name: "cil_from_container".into(),
                tag: "00".into(),
            }),
            direct_action: true,
            owner: Owner::Cilium,
            ours: false,
        },
        returns,
    }
}

fn classic(priority: u16, prepend: bool) -> Attachment {
    Attachment::Classic { priority, prepend }
}

/// The rule of the design, said another way than the code says it: a vendor that ends the run hides ours unless ours is
/// on TCX first, or is a classic filter before a classic vendor.
#[test]
fn every_vendor_against_every_attachment() {
    let mut cases = 0;
    for place in [None, Some(1), Some(5), Some(10), Some(11), Some(20)] {
        for (returns, ends) in [
            (Returns::Ok, true),
            (Returns::Shot, true),
            (Returns::Redirect, true),
            (Returns::Unspec, false),
            (PIPE, false),
        ] {
            for (ours, before) in [
                (Attachment::TcxFirst, true),
                (classic(1, false), place.is_some_and(|theirs| theirs > 1)),
                (classic(4, false), place.is_some_and(|theirs| theirs > 4)),
                (classic(10, false), place.is_some_and(|theirs| theirs > 10)),
                (classic(10, true), place.is_some_and(|theirs| theirs >= 10)),
            ] {
                let forecast = forecast(&[vendor(place, returns)], ours);
                let expected = before || !ends;
                assert_eq!(
                    forecast.reached == Reached::Yes,
                    expected,
                    "{place:?} {returns:?} {ours:?}: {forecast:?}"
                );
                assert!(!matches!(forecast.reached, Reached::Unknown { .. }));
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 150);
}

fn setting_of(chain: &[Judged], ours: Attachment) -> String {
    match forecast(chain, ours).reached {
        Reached::No { setting, .. } | Reached::Unknown { setting, .. } => setting,
        Reached::Yes => panic!("reached"),
    }
}

#[test]
fn messages_name_the_exact_number() {
    for (theirs, ours, number) in [
        (2, 10, "intercept.classifier_priority: 1 "),
        (5, 10, "intercept.classifier_priority: 4 "),
        (10, 10, "intercept.classifier_priority: 9 "),
        (11, 50, "intercept.classifier_priority: 10 "),
    ] {
        let setting = setting_of(&[vendor(Some(theirs), Returns::Ok)], classic(ours, false));
        assert!(setting.starts_with(number), "{setting}");
    }
    // Below everyone who may stop a packet, not only below the first that was met.
    let both = [vendor(Some(3), Returns::Unknown), vendor(Some(7), Returns::Ok)];
    let setting = setting_of(&both, classic(10, false));
    assert!(
        setting.starts_with("intercept.classifier_priority: 2 "),
        "{setting}"
    );
    let Reached::No { by, .. } = forecast(&both, classic(10, false)).reached else {
        panic!("the second one stops it for sure");
    };
    assert!(by.ends_with("(Cilium) at priority 7, handle 0x1"), "{by}");
}

#[test]
fn below_priority_one_there_is_nothing() {
    let first = setting_of(&[vendor(Some(1), Returns::Redirect)], classic(10, false));
    for part in [
        "intercept.classifier_attach: tcx",
        "intercept.datapath: cgroup",
        "intercept.classifier_priority: 1 and intercept.classifier_same_priority: prepend",
    ] {
        assert!(first.contains(part), "{first}");
    }
    let on_tcx = setting_of(&[vendor(None, Returns::Ok)], classic(1, true));
    assert!(on_tcx.starts_with("intercept.classifier_attach: tcx"), "{on_tcx}");
    assert!(!on_tcx.contains("prepend"), "{on_tcx}");
    // With a TCX program that stops it, no number helps against the classic one either.
    let both = [vendor(None, Returns::Unknown), vendor(Some(5), Returns::Ok)];
    let setting = setting_of(&both, classic(10, false));
    assert!(!setting.contains("classifier_priority"), "{setting}");
}

#[test]
fn what_nobody_knows_is_said() {
    let unknown = |chain: &[Judged]| match forecast(chain, classic(10, false)).reached {
        Reached::Unknown { why, .. } => why,
        other => panic!("{other:?}"),
    };
    assert!(unknown(&[vendor(Some(5), Returns::Unknown)]).contains("doctor --probe"));
    let mut indirect = vendor(Some(5), Returns::Ok);
    indirect.entry.direct_action = false;
    assert!(unknown(&[indirect]).contains("direct-action"));
    let mut flower = vendor(Some(5), Returns::Unspec);
    flower.entry.kind = "flower".into();
    flower.entry.program = None;
    assert!(unknown(&[flower.clone()]).contains("no eBPF program"));
    // After ours it does not matter, nor in a chain that is only jumped to.
    assert_eq!(
        forecast(&[flower.clone()], classic(4, false)).reached,
        Reached::Yes
    );
    flower.entry.place = Place::Classic {
        priority: 1,
        handle: 1,
        protocol: 3,
        chain: 5,
    };
    assert_eq!(forecast(&[flower], classic(10, false)).reached, Reached::Yes);
}

/// A priority holds one kind and one protocol, so `prepend` cannot help beside another.
#[test]
fn prepend_needs_the_same_kind_and_protocol() {
    let mut flower = vendor(Some(10), Returns::Unknown);
    flower.entry.kind = "flower".into();
    flower.entry.program = None;
    let setting = setting_of(&[flower], classic(10, true));
    assert!(
        setting.starts_with("intercept.classifier_priority: 9 "),
        "{setting}"
    );
    let mut ip_only = vendor(Some(1), Returns::Ok);
    ip_only.entry.place = Place::Classic {
        priority: 1,
        handle: 1,
        protocol: 0x0800,
        chain: 0,
    };
    assert!(!setting_of(&[ip_only], classic(1, true)).contains("prepend"));
}

#[test]
fn pipe_on_tcx_leaves_the_rest_of_tcx_out() {
    // The second never runs, so it cannot stop anything.
    let chain = [
        vendor(None, PIPE),
        vendor(None, Returns::Ok),
        vendor(Some(20), Returns::Ok),
    ];
    assert_eq!(forecast(&chain, classic(10, false)).reached, Reached::Yes);
    for (value, expected) in [(4, false), (8, false), (1, true), (5, true), (6, true)] {
        let reached = forecast(&[vendor(Some(1), Returns::Other(value))], classic(10, false)).reached;
        assert_eq!(reached == Reached::Yes, expected, "{value}");
    }
}

#[test]
fn advice_is_given_only_where_there_is_something_to_watch() {
    assert!(
        forecast(&[vendor(Some(11), Returns::Ok)], classic(10, false))
            .advice
            .is_empty()
    );
    assert!(
        forecast(&[vendor(Some(1), Returns::Ok)], Attachment::TcxFirst)
            .advice
            .is_empty()
    );
    let shared = forecast(&[vendor(Some(10), Returns::Ok)], classic(10, true)).advice;
    assert!(
        shared.len() == 1 && shared[0].contains("shares priority 10"),
        "{shared:?}"
    );
    let duel = forecast(&[vendor(None, Returns::Ok)], Attachment::TcxFirst).advice;
    assert!(duel.len() == 1 && duel[0].contains("put back"), "{duel:?}");
}
