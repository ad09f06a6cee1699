//! Tests of rules and routes: recorded requests, rules as the kernel lists them, and what is in the way.

use netlink_packet_core::{DecodeError, Emitable, NetlinkHeader};

use super::super::netlink::{Protocol, encoded, recorded};
use super::*;

/// Behind the family of our rule for `veth7`, and of our route.
const RULE: &str = "000000000000010000000008000600080000000\
                    8000a000000d000080010000000f00008000f00d00d000005001500d00000000a0003007665746837000000";
const ROUTE: &str = "020000000008000f00d00d00000800040001000000";

const MARK: Mark = Mark {
    value: 0x00d0_0000,
    mask: 0x00f0_0000,
};

fn devices(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Recorded: what was sent before the messages were built by a library.
#[test]
fn requests_are_laid_out_as_the_kernel_wants_them() {
    let rule = |family| Rule::ours(family, MARK, "veth7").message();
    for (family, number) in [(V4, "02"), (V6, "0a")] {
        // The scope of a local route: host, which IPv6 does not know.
        let scope = if family == V4 { "fe" } else { "00" };
        for (request, flags, bytes) in [
            (
                RouteNetlinkMessage::GetRule(get_rules(family)),
                0x300,
                format!("1c000000220001030700000000000000{number}0000000000000000000000"),
            ),
            (
                RouteNetlinkMessage::NewRule(rule(family)),
                0x604,
                format!("50000000200005060700000000000000{number}{RULE}"),
            ),
            (
                RouteNetlinkMessage::DelRule(rule(family)),
                4,
                format!("50000000210005000700000000000000{number}{RULE}"),
            ),
            (
                RouteNetlinkMessage::NewRoute(route(family).unwrap()),
                0x604,
                format!("2c000000180005060700000000000000{number}00000000d0{scope}{ROUTE}"),
            ),
            (
                RouteNetlinkMessage::DelRoute(route(family).unwrap()),
                4,
                format!("2c000000190005000700000000000000{number}00000000d0{scope}{ROUTE}"),
            ),
        ] {
            assert_eq!(encoded(request, flags, 7), bytes);
        }
    }
}

/// What the exchange makes of a rule with these bytes behind netlink's header.
fn taken(payload: &[u8]) -> Result<Rule, DecodeError> {
    let mut header = NetlinkHeader::default();
    header.message_type = libc::RTM_NEWRULE;
    match RouteNetlinkMessage::read(&header, payload)? {
        RouteNetlinkMessage::NewRule(message) => Ok(Rule::read(&message)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rule_is_read_as_it_was_written() {
    for family in [V4, V6] {
        let rule = Rule::ours(family, MARK, "veth7");
        let message = rule.message();
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        assert_eq!(taken(&bytes).unwrap(), rule);
        assert!(rule.is_ours());
        assert!(taken(&bytes[..bytes.len() - 1]).is_ok(), "padding only");
        assert!(taken(&bytes[..bytes.len() - 4]).is_err(), "cut in a name");
    }
    assert!(taken(&[2, 0, 0, 0]).is_err());
}

/// Recorded from Linux 6.18 (little endian): `pref 8 fwmark 0xd00000/0xf00000 iif veth0 lookup 3536 protocol 208`.
#[cfg(target_endian = "little")]
#[test]
fn a_recorded_rule_is_ours() {
    let answers = recorded::<RouteNetlinkMessage>(
        "580000002000020001000000a244000002000000fc0000010000000008000f00d00d000008000e00ffffffff05001500d0000000\
         0a0003007665746830000000080006000800000008000a000000d000080010000000f000",
    );
    let [Ok(RouteNetlinkMessage::NewRule(message))] = answers.as_slice() else {
        panic!("{answers:?}");
    };
    assert_eq!(Rule::read(message), Rule::ours(V4, MARK, "veth0"));
}

/// The rule 0 of every namespace: its table in the header, no mark; and a mark without a mask.
#[test]
fn what_is_not_said_has_its_default() {
    let header = [2, 0, 0, 0, 255, 0, 0, 1, 0, 0, 0, 0];
    let local = taken(&header).unwrap();
    assert_eq!(
        (local.table, local.mark, local.mask, local.preference),
        (255, 0, 0, 0)
    );
    let marked = [&header[..], &[8, 0, 10, 0], &7_u32.to_ne_bytes()].concat();
    assert_eq!(taken(&marked).unwrap().mask, u32::MAX);
}

#[test]
fn rules_of_others_are_not_ours() {
    let ours = Rule::ours(V4, MARK, "veth7");
    for other in [
        Rule {
            protocol: 4,
            ..ours.clone()
        },
        Rule {
            table: 2004,
            ..ours.clone()
        },
        Rule {
            preference: 9,
            ..ours.clone()
        },
    ] {
        assert!(!other.is_ours(), "{other:?}");
    }
}

#[test]
fn only_rules_that_can_take_our_packets_first_are_reported() {
    let foreign = Rule {
        protocol: 4,
        table: 100,
        mark: 0,
        mask: 0,
        iif: None,
        ..Rule::ours(V4, MARK, "veth7")
    };
    let set = devices(&["veth7"]);
    assert!(foreign.catches(MARK, &set));
    assert_eq!(foreign.describe(), "IPv4 rule 8: lookup 100");
    for harmless in [
        Rule {
            preference: 0,
            ..foreign.clone()
        },
        Rule {
            preference: 9,
            ..foreign.clone()
        },
        Rule {
            iif: Some("eth0".into()),
            ..foreign.clone()
        },
        Rule {
            mark: 0x0020_0000,
            mask: 0x00f0_0000,
            ..foreign.clone()
        },
        Rule {
            oif: Some("eth0".into()),
            ..foreign.clone()
        },
    ] {
        assert!(!harmless.catches(MARK, &set), "{harmless:?}");
    }
    // Other bits than ours may be set on the same packet.
    let cilium = Rule {
        mark: 0x200,
        mask: 0xf00,
        ..foreign
    };
    assert!(cilium.catches(MARK, &set));
    assert_eq!(cilium.describe(), "IPv4 rule 8: fwmark 0x200/0xf00 lookup 100");
}
