//! The rules and layouts that kernel and user space share. Run with `cargo test -p proxy-ebpf`.

extern crate std;

use core::mem::{align_of, offset_of, size_of};
use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

mod event;
mod flow;
mod leak;
mod words;

fn v4(text: &str) -> Address {
    Address::from_v4(u32::from_ne_bytes(text.parse::<Ipv4Addr>().unwrap().octets()))
}

fn v6(text: &str) -> Address {
    let octets = text.parse::<Ipv6Addr>().unwrap().octets();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().unwrap());
    }
    Address { words }
}

fn settings(ports: &[u16]) -> Settings {
    let mut settings = Settings {
        flags: FLAG_ENABLED | FLAG_CLOSED,
        port_count: u32::try_from(ports.len()).unwrap(),
        ..Settings::OFF
    };
    settings.ports[..ports.len()].copy_from_slice(ports);
    settings
}

fn attempt(destination: Address, port: u16) -> Attempt {
    Attempt {
        protocol: IPPROTO_TCP,
        destination,
        port,
        cgroup: 42,
    }
}

/// Keys and values cross the kernel boundary as bytes: size, offsets and the absence of padding are a contract, also
/// with maps that an older version pinned.
#[test]
fn layouts() {
    assert_eq!(size_of::<Address>(), 16);

    assert_eq!((size_of::<Settings>(), align_of::<Settings>()), (80, 8));
    assert_eq!(offset_of!(Settings, own_cgroups), 0);
    assert_eq!(offset_of!(Settings, ports), 32);
    assert_eq!(offset_of!(Settings, port_count), 64);
    assert_eq!(offset_of!(Settings, flags), 68);
    assert_eq!(offset_of!(Settings, mark_value), 72);
    assert_eq!(offset_of!(Settings, mark_mask), 76);
    assert_eq!(
        8 * MAX_OWN_CGROUPS + 2 * MAX_PORTS + 4 * 4,
        size_of::<Settings>(),
        "padding"
    );

    assert_eq!((size_of::<Original>(), align_of::<Original>()), (24, 4));
    assert_eq!(offset_of!(Original, address), 0);
    assert_eq!(offset_of!(Original, port), 16);
    assert_eq!(offset_of!(Original, listener_port), 18);
    assert_eq!(offset_of!(Original, process), 20);
    assert_eq!(16 + 2 + 2 + 4, size_of::<Original>(), "padding");

    assert_eq!((size_of::<HandoverKey>(), align_of::<HandoverKey>()), (32, 8));
    assert_eq!(offset_of!(HandoverKey, client), 8);
    assert_eq!(offset_of!(HandoverKey, client_port), 24);
    assert_eq!(offset_of!(HandoverKey, listener_port), 26);
    assert_eq!(offset_of!(HandoverKey, reserved), 28);
    assert_eq!(8 + 16 + 2 + 2 + 4, size_of::<HandoverKey>(), "padding");

    assert_eq!((size_of::<Namespace>(), align_of::<Namespace>()), (8, 4));
    assert_eq!(offset_of!(Namespace, reserved), 4);

    assert_eq!((size_of::<Interface>(), align_of::<Interface>()), (24, 8));
    assert_eq!(offset_of!(Interface, seen), 8);
    assert_eq!(offset_of!(Interface, network), 16);
    assert_eq!(offset_of!(Interface, flags), 20);

    assert_eq!((size_of::<Flow>(), align_of::<Flow>()), (40, 4));
    assert_eq!(offset_of!(Flow, destination), 16);
    assert_eq!(offset_of!(Flow, source_port), 32);
    assert_eq!(offset_of!(Flow, destination_port), 34);
    assert_eq!(offset_of!(Flow, reserved), 36);

    assert_eq!((size_of::<OwnFlow>(), align_of::<OwnFlow>()), (48, 8));
    assert_eq!(offset_of!(OwnFlow, flow), 8);

    assert_eq!((size_of::<LeakKey>(), align_of::<LeakKey>()), (16, 8));
    assert_eq!((offset_of!(LeakKey, reason), offset_of!(LeakKey, kind)), (8, 12));
    assert_eq!((size_of::<Direct>(), align_of::<Direct>()), (24, 4));
    assert_eq!((offset_of!(Direct, port), offset_of!(Direct, process)), (16, 20));
    assert_eq!((size_of::<Leak>(), offset_of!(Leak, last)), (32, 8));
    assert_eq!((size_of::<Passed>(), align_of::<Passed>()), (16, 8));
    assert_eq!((offset_of!(Passed, process), offset_of!(Passed, state)), (8, 12));
}

#[test]
fn counters_are_numbered_and_named_once() {
    let names: HashSet<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
    assert_eq!(names.len(), Counter::ALL.len());
    for (index, counter) in Counter::ALL.iter().enumerate() {
        assert_eq!(*counter as usize, index);
    }
}

#[test]
fn address_classes() {
    for local in [
        v4("127.0.0.1"),
        v4("127.255.255.255"),
        v4("0.0.0.0"),
        v6("::1"),
        v6("::"),
        v6("::ffff:127.0.0.1"),
    ] {
        assert!(local.is_local(), "{local:?}");
    }
    for remote in [
        v4("126.255.255.255"),
        v4("128.0.0.0"),
        v6("::2"),
        v6("100::1"),
        v6("2001:db8::1"),
        v6("1::"),
    ] {
        assert!(!remote.is_local(), "{remote:?}");
    }
    assert_eq!(v6("::ffff:203.0.113.9"), v4("203.0.113.9"), "IPv4-mapped is IPv4");
    assert_eq!((v4("203.0.113.9").slot(0), v6("2001:db8::1").slot(0)), (0, 1));
    assert_eq!(v4("203.0.113.9").loopback(), v6("::ffff:127.0.0.1"));
    assert_eq!(v6("2001:db8::1").loopback(), v6("::1"));
    assert_eq!(
        v6("2001:db8::1").octets(),
        "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets()
    );
}

#[test]
fn the_order_of_the_match_function() {
    let mut rules = settings(&[80, 443]);
    let target = v4("203.0.113.9");
    assert_eq!(skip(&rules, &attempt(target, 80)), None);
    assert_eq!(skip(&rules, &attempt(v6("2001:db8::1"), 443)), None);
    assert_eq!(skip(&rules, &attempt(target, 81)), Some(Skip::Port));
    assert_eq!(skip(&rules, &attempt(v4("127.0.0.1"), 81)), Some(Skip::Local));

    rules.remember_own(42);
    assert_eq!(skip(&rules, &attempt(target, 80)), Some(Skip::Own));
    rules.flags = FLAG_CLOSED;
    assert_eq!(skip(&rules, &attempt(target, 80)), Some(Skip::Disabled));
    let udp = Attempt {
        protocol: 17,
        ..attempt(target, 80)
    };
    assert_eq!(skip(&rules, &udp), Some(Skip::NotTcp));
}

#[test]
fn own_cgroups_are_remembered_newest_first() {
    let mut rules = Settings::OFF;
    assert!(!rules.is_own(0), "an empty place is nobody's");
    for id in [1, 2, 3, 2, 4, 5] {
        rules.remember_own(id);
    }
    assert_eq!(rules.own_cgroups, [5, 4, 2, 3]);
    assert!(rules.is_own(3) && !rules.is_own(1) && !rules.is_own(0));
}

#[test]
fn a_peer_is_answered_only_for_the_rewritten_connection() {
    let original = Original {
        address: v4("203.0.113.9"),
        port: 80,
        listener_port: 15080,
        process: 4711,
    };
    assert!(original.is_rewritten_to(&v4("127.0.0.1"), 15080));
    assert!(original.is_rewritten_to(&v6("::ffff:127.0.0.1"), 15080));
    assert!(!original.is_rewritten_to(&v4("127.0.0.1"), 15081));
    assert!(!original.is_rewritten_to(&v4("127.0.0.2"), 15080));
    assert!(!original.is_rewritten_to(&v6("::1"), 15080));
    assert!(!original.is_rewritten_to(&v4("203.0.113.9"), 80));
}

proptest! {
    /// Ports: exactly the first `port_count`, whatever lies behind them.
    #[test]
    fn selects_exactly_the_configured_ports(
        ports in proptest::collection::vec(any::<u16>(), 0..=MAX_PORTS),
        stale in any::<u16>(),
        probe in any::<u16>(),
    ) {
        let mut rules = settings(&ports);
        rules.ports[ports.len()..].fill(stale);
        prop_assert_eq!(rules.selects_port(probe), ports.contains(&probe));
    }

    /// The address classes agree with the standard library's for every address.
    #[test]
    fn classes_agree_with_std(bits in any::<u128>(), mapped in any::<bool>(), small in any::<bool>()) {
        let bits = match (mapped, small) {
            (true, _) => 0xffff_0000_0000 | (bits & 0xffff_ffff),
            (false, true) => bits & 0x3,
            (false, false) => bits,
        };
        let ip = Ipv6Addr::from_bits(bits);
        let words: Vec<u32> = ip.octets().chunks_exact(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect();
        let address = Address { words: words.try_into().unwrap() };
        let canonical = ip.to_canonical();
        prop_assert_eq!(address.is_local(), canonical.is_loopback() || canonical.is_unspecified());
        prop_assert_eq!(address.v4().is_some(), canonical.is_ipv4());
        prop_assert_eq!(address.octets(), ip.octets());
        prop_assert!(address.loopback().is_local());
        prop_assert_eq!(address.loopback().slot(5), address.slot(5));
    }

    /// The match function as one sentence, against the function with its early returns.
    #[test]
    fn match_function_is_the_conjunction(
        tcp in any::<bool>(), enabled in any::<bool>(), own in any::<bool>(), local in any::<bool>(),
        port in 78_u16..82, host in 1_u8..255,
    ) {
        let mut rules = settings(&[80, 81]);
        rules.flags = if enabled { FLAG_ENABLED } else { 0 };
        rules.remember_own(if own { 42 } else { 41 });
        let destination = Address::from_v4(u32::from_ne_bytes([if local { 127 } else { 203 }, 0, 113, host]));
        let probe = Attempt {
            protocol: if tcp { IPPROTO_TCP } else { 17 },
            ..attempt(destination, port)
        };
        let expected = tcp && enabled && !own && !local && (port == 80 || port == 81);
        prop_assert_eq!(skip(&rules, &probe).is_none(), expected);
    }
}
