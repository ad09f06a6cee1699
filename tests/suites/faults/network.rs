//! Rows: the network between the proxy and its intakes.
//!
//! Loss is made by netfilter (`statistic`), which every kernel of ours has, and not by `netem`, which some have not.

use harness::suite::Need;

use crate::table::Hold::{self, Answered, Relayed, Retries, Untouched, Within};
use crate::table::{Ask, BROKEN4, BROKEN6, Inject, Leads, REFUSING, ROW, Row, SHORT, SILENT, SILENT6, Side};

const LATE: Hold = Answered(504, "upstream_timeout");
const UNREACHABLE: Hold = Answered(502, "upstream_connect");

/// A script in the network with the intakes.
const fn net(begin: &'static str, end: &'static str) -> Inject {
    let side = Side::Net;
    Inject::Script { side, begin, end }
}

/// A script on the proxy's host.
const fn host(begin: &'static str, end: &'static str) -> Inject {
    let side = Side::Host;
    Inject::Script { side, begin, end }
}

/// What the rows of this area share.
const NET: Row = Row {
    needs: &[Need::Root, Need::Iptables],
    ..ROW
};

pub const ROWS: &[Row] = &[
    Row {
        name: "network_loses_packets",
        fault: "one of twenty packets is lost, both ways, of all connections",
        inject: net(
            "for t in iptables ip6tables; do for c in INPUT OUTPUT; do
             $t -A $c -p tcp -m statistic --mode random --probability 0.05 -j DROP; done; done",
            "iptables -F; ip6tables -F",
        ),
        asks: &[Ask::Get, Ask::Post(200_000), Ask::Get, Ask::Post(20_000)],
        holds: &[Relayed(202), Retries(0)],
        ..NET
    },
    Row {
        name: "network_black_hole",
        fault: "packets for the intake vanish before a connection is made",
        inject: net("iptables -A INPUT -d 203.0.113.66 -j DROP", "iptables -F"),
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Untouched, Within(15)],
        ..NET
    },
    Row {
        name: "network_black_hole_open_connection",
        fault: "packets for the intake vanish while a connection is open (half-open)",
        inject: net("iptables -A INPUT -d 203.0.113.66 -j DROP", "iptables -F"),
        warm: true,
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Untouched, Retries(0), Within(15)],
        ..NET
    },
    Row {
        name: "network_forgets_a_connection",
        fault: "a firewall between has forgotten the open connection and resets what belongs to it",
        // Of data, not of the acknowledgement that may still be due: the pool would see the reset, and there were nothing to send again.
        inject: net(
            "iptables -A INPUT -d 203.0.113.66 -p tcp --tcp-flags PSH PSH -m connmark ! --mark 1 -j REJECT --reject-with tcp-reset
             iptables -t mangle -A PREROUTING -d 203.0.113.66 -p tcp --syn -j CONNMARK --set-mark 1",
            "iptables -F; iptables -t mangle -F",
        ),
        warm: true,
        asks: &[Ask::Post(20_000), Ask::Get],
        holds: &[Relayed(202), Retries(1)],
        ..NET
    },
    Row {
        name: "network_rejects_by_reset",
        fault: "a firewall answers connections to the intake with RST",
        inject: net(
            "iptables -A INPUT -d 203.0.113.66 -p tcp -j REJECT --reject-with tcp-reset",
            "iptables -F",
        ),
        holds: &[UNREACHABLE, Untouched],
        ..NET
    },
    Row {
        name: "network_rejects_by_icmp",
        fault: "a firewall answers connections to the intake with ICMP, administratively prohibited",
        inject: net(
            "iptables -A INPUT -d 203.0.113.66 -p tcp -j REJECT --reject-with icmp-admin-prohibited",
            "iptables -F",
        ),
        holds: &[UNREACHABLE, Untouched],
        ..NET
    },
    Row {
        name: "network_small_mtu",
        fault: "the line takes packets of 576 bytes, and says so",
        inject: net(
            "ip link set inner mtu 576; ip route change 198.51.100.0/24 dev inner mtu lock 576",
            "ip link set inner mtu 1500; ip route change 198.51.100.0/24 dev inner",
        ),
        leads: Leads::Hosts(&[BROKEN4]),
        asks: &[Ask::Post(300_000), Ask::Get],
        holds: &[Relayed(202)],
        ..NET
    },
    Row {
        name: "network_mtu_black_hole",
        fault: "packets of more than 600 bytes to the intake vanish, and nobody says so",
        inject: net(
            "iptables -A INPUT -d 203.0.113.66 -m length --length 601: -j DROP",
            "iptables -F",
        ),
        warm: true,
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Retries(0), Within(20)],
        ..NET
    },
    Row {
        name: "network_link_flaps",
        fault: "the line is down for a second, with all connections on it",
        inject: net("ip link set inner down; sleep 1; ip link set inner up
             ip -6 address replace 2001:db8:ffff::1/64 dev inner nodad", ":"),
        warm: true,
        holds: &[Relayed(202)],
        ..NET
    },
    Row {
        name: "own_address_removed",
        fault: "the host loses the IPv4 address that its connections have, and gets it back after a second",
        inject: host(
            "ip address del 198.51.100.2/24 dev eth0; sleep 1
             ip address add 198.51.100.2/24 dev eth0; ip route add default via 198.51.100.1",
            ":",
        ),
        warm: true,
        holds: &[Relayed(202)],
        ..NET
    },
    Row {
        name: "intake_address_removed",
        fault: "one of the intake's two addresses is gone; it has the other",
        inject: net(
            "ip address del 203.0.113.66/32 dev lo; ip route add unreachable 203.0.113.66/32",
            "ip route del unreachable 203.0.113.66/32; ip address add 203.0.113.66/32 dev lo",
        ),
        leads: Leads::Hosts(&[BROKEN4, BROKEN6]),
        holds: &[Relayed(202), Within(10)],
        ..NET
    },
    Row {
        name: "intake_address_refuses",
        fault: "the first two of the intake's addresses take no connection",
        leads: Leads::Hosts(&[REFUSING, SILENT, BROKEN4]),
        holds: &[Relayed(202), Within(10)],
        ..NET
    },
    Row {
        name: "ipv6_gone",
        fault: "the name leads to IPv6 first, where packets vanish",
        leads: Leads::Hosts(&[SILENT6, BROKEN4]),
        asks: &[Ask::Get, Ask::Post(20_000), Ask::Get],
        holds: &[Relayed(202), Within(10)],
        ..NET
    },
    Row {
        name: "ipv6_route_gone",
        fault: "the name leads to IPv6 first, and the host has no way there",
        inject: host(
            "ip -6 route del default via 2001:db8:ffff::1",
            "ip -6 route add default via 2001:db8:ffff::1",
        ),
        leads: Leads::Hosts(&[BROKEN6, BROKEN4]),
        holds: &[Relayed(202), Within(10)],
        ..NET
    },
    Row {
        name: "all_addresses_silent",
        fault: "no address of the intake answers, in either family",
        inject: net(
            "iptables -A INPUT -d 203.0.113.66 -j DROP; ip6tables -A INPUT -d 2001:db8:1::66 -j DROP",
            "iptables -F; ip6tables -F",
        ),
        leads: Leads::Hosts(&[BROKEN6, BROKEN4]),
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Untouched, Within(15)],
        ..NET
    },
];
