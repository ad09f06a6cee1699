//! What is measured: for each place where a program of ours runs, what it does to those that it serves and to everybody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ends::{ANSWERS, FORGETS, Op, Who};

/// One row.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is done, in words.
    pub what: &'static str,
    /// 4 or 6.
    pub family: u8,
    /// By whom.
    pub who: Who,
    /// What.
    pub op: Op,
    /// Where to while there is no program.
    pub off: SocketAddr,
    /// Where to while there are programs.
    pub on: SocketAddr,
    /// The programs' counter that shows that the row is what it says.
    pub counts: Option<Counts>,
}

/// A counter of the programs, and how often it must count.
#[derive(Clone, Copy, Debug)]
pub enum Counts {
    /// For every operation.
    Each(&'static str),
    /// For the connection at least.
    Once(&'static str),
}

/// Addresses of one family.
struct Place {
    family: u8,
    /// The node's end of the veth pair.
    node: IpAddr,
    /// The pod's end: an intake, for the node's Agents.
    pod: IpAddr,
    /// Also the pod's: nobody's intake.
    pod_else: IpAddr,
    /// Nobody's address: an intake, for the pod.
    intake: IpAddr,
    loopback: IpAddr,
}

const PLACES: [Place; 2] = [
    Place {
        family: 4,
        node: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        pod: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
        pod_else: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 3)),
        intake: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
        loopback: IpAddr::V4(Ipv4Addr::LOCALHOST),
    },
    Place {
        family: 6,
        node: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
        pod: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2)),
        pod_else: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 3)),
        intake: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 10)),
        loopback: IpAddr::V6(Ipv6Addr::LOCALHOST),
    },
];

/// What the node's Agents have taken from them.
pub const AGENT_NETWORKS: [&str; 2] = ["198.51.100.2/32", "2001:db8:ffff::2/128"];
/// What the pod has taken from it.
pub const POD_NETWORKS: [&str; 2] = ["203.0.113.0/24", "2001:db8:1::/48"];
/// What the pod has besides the addresses that `harness::netns::join` gives it.
pub const POD_ELSE: [&str; 2] = ["198.51.100.3/24", "2001:db8:ffff::3/64 nodad"];

/// The datapath `cgroup`. `listeners` are the proxy's, one for each family.
pub fn cgroup(listeners: [SocketAddr; 2]) -> Vec<Case> {
    use Counts::{Each, Once};
    use Op::{AcceptedError, AcceptedOriginal, AcceptedPeer, Connect, ConnectUdp, Error, PeerName, Trip};
    let mut cases = Vec::new();
    for (place, listener) in PLACES.iter().zip(listeners) {
        let at = SocketAddr::new;
        let [selected, not_selected] = FORGETS;
        let [selected_answer, not_selected_answer] = ANSWERS;
        let intercepted = match place.family {
            4 => "intercepted_v4",
            _ => "intercepted_v6",
        };
        let mut row = |what, who, op, off, on, counts| {
            cases.push(Case {
                what,
                family: place.family,
                who,
                op,
                off,
                on,
                counts,
            });
        };
        let intake = at(place.pod, selected);
        let (else_port, else_host) = (at(place.pod, not_selected), at(place.pod_else, selected));
        row(
            "`connect()`, process outside of every Agent's cgroup",
            Who::Other,
            Connect,
            intake,
            intake,
            None,
        );
        row(
            "`connect()` of an Agent, port not selected",
            Who::Agent,
            Connect,
            else_port,
            else_port,
            Some(Each("not_selected_port")),
        );
        row(
            "`connect()` of an Agent, destination not selected",
            Who::Agent,
            Connect,
            else_host,
            else_host,
            Some(Each("not_selected_destination")),
        );
        row(
            "`connect()` of an Agent to the loopback, not ours",
            Who::Agent,
            Connect,
            at(place.loopback, not_selected),
            at(place.loopback, not_selected),
            None,
        );
        row(
            "`connect()` of an Agent, UDP",
            Who::Agent,
            ConnectUdp,
            at(place.pod, not_selected_answer),
            at(place.pod, not_selected_answer),
            None,
        );
        row(
            "`connect()` of an Agent, intercepted; without: over the veth pair",
            Who::Agent,
            Connect,
            intake,
            intake,
            Some(Each(intercepted)),
        );
        row(
            "`connect()` of an Agent, intercepted; without: to the loopback",
            Who::Agent,
            Connect,
            listener,
            intake,
            Some(Each(intercepted)),
        );
        row(
            "`connect()` to an explicit port of the proxy",
            Who::Other,
            Connect,
            listener,
            listener,
            Some(Each("accepted_else")),
        );
        row(
            "`connect()` of the proxy to an intake",
            Who::Own,
            Connect,
            intake,
            intake,
            None,
        );
        row(
            "round trip of an Agent, connection not selected",
            Who::Agent,
            Trip,
            at(place.pod, not_selected_answer),
            at(place.pod, not_selected_answer),
            Some(Once("not_selected_port")),
        );
        let answered = at(place.pod, selected_answer);
        row(
            "round trip of an Agent, intercepted; without: on the loopback",
            Who::Agent,
            Trip,
            listener,
            answered,
            Some(Once(intercepted)),
        );
        row(
            "`getpeername()` of an Agent, connection not selected",
            Who::Agent,
            PeerName,
            at(place.pod, not_selected_answer),
            at(place.pod, not_selected_answer),
            Some(Once("not_selected_port")),
        );
        row(
            "`getpeername()` of an Agent, intercepted; without: the listener's",
            Who::Agent,
            PeerName,
            listener,
            answered,
            Some(Each("peer_answered")),
        );
        row(
            "`getsockopt(SO_ERROR)`, process outside of the proxy's cgroup",
            Who::Other,
            Error,
            at(place.pod, not_selected_answer),
            at(place.pod, not_selected_answer),
            None,
        );
        row(
            "`getsockopt(SO_ERROR)` of the proxy, its connection to an intake",
            Who::Own,
            Error,
            answered,
            answered,
            None,
        );
        row(
            "`getsockopt(SO_ERROR)` of the proxy, accepted connection of an Agent",
            Who::Agent,
            AcceptedError,
            listener,
            answered,
            Some(Once("handed_over")),
        );
        row(
            "`getsockopt(SO_PEERCRED)`, the same",
            Who::Agent,
            AcceptedPeer,
            listener,
            answered,
            Some(Once("handed_over")),
        );
        row(
            "`getsockopt(SO_ORIGINAL_DST)`, the same; without: there is no answer",
            Who::Agent,
            AcceptedOriginal,
            listener,
            answered,
            Some(Each("original_dst_answered")),
        );
    }
    cases
}

/// The datapath `tc`: packets of a pod on the node's interface.
pub fn classifier() -> Vec<Case> {
    use Counts::{Each, Once};
    use Op::{Connect, Trip, TripUdp};
    let mut cases = Vec::new();
    for place in &PLACES {
        let at = |port| SocketAddr::new(place.node, port);
        let [selected, not_selected] = FORGETS;
        let [selected_answer, not_selected_answer] = ANSWERS;
        let taken = match place.family {
            4 => "tc_taken_v4",
            _ => "tc_taken_v6",
        };
        let mut row = |what, op, off, on, counts| {
            cases.push(Case {
                what,
                family: place.family,
                who: Who::Pod,
                op,
                off,
                on,
                counts,
            });
        };
        let (else_port, else_host) = (at(not_selected_answer), at(selected_answer));
        row("round trip, UDP", TripUdp, else_port, else_port, None);
        row("round trip, port not selected", Trip, else_port, else_port, None);
        row(
            "round trip, selected port, destination not selected",
            Trip,
            else_host,
            else_host,
            None,
        );
        let intake = SocketAddr::new(place.intake, selected_answer);
        row(
            "round trip, taken; without: to the node",
            Trip,
            else_port,
            intake,
            Some(Once(taken)),
        );
        let (else_port, else_host) = (at(not_selected), at(selected));
        row(
            "`connect()`, port not selected",
            Connect,
            else_port,
            else_port,
            None,
        );
        row(
            "`connect()`, selected port, destination not selected",
            Connect,
            else_host,
            else_host,
            None,
        );
        let intake = SocketAddr::new(place.intake, selected);
        row(
            "`connect()`, taken; without: to the node",
            Connect,
            else_port,
            intake,
            Some(Each(taken)),
        );
    }
    cases
}

/// The node's own traffic, which the program of `sk_lookup` is asked about.
pub fn sk_lookup() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in &PLACES {
        for (what, op, port) in [
            (
                "the node's own `connect()` on the loopback",
                Op::Connect,
                FORGETS[0],
            ),
            (
                "the node's own round trip on the loopback, TCP",
                Op::Trip,
                ANSWERS[0],
            ),
            (
                "the node's own round trip on the loopback, UDP",
                Op::TripUdp,
                ANSWERS[1],
            ),
        ] {
            let address = SocketAddr::new(place.loopback, port);
            cases.push(Case {
                what,
                family: place.family,
                who: Who::Other,
                op,
                off: address,
                on: address,
                counts: None,
            });
        }
    }
    cases
}
