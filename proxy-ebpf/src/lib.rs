//! Shared by the kernel programs and user space: types with a fixed layout, and the rules that both must agree on.
//!
//! Nothing here touches the kernel, so that every rule is tested in user space exactly as it runs in the programs.
//! Addresses are four 32-bit words in network byte order, as the kernel's contexts show them; IPv4 is kept in its
//! IPv4-mapped form (`::ffff:a.b.c.d`) everywhere, so that one type serves both families. Ports are in host order.
#![no_std]

mod event;
mod flow;
mod leak;
mod words;

pub use event::{
    EVENT_ACCEPTED_ELSE, EVENT_INTERCEPTED, EVENT_LET_GO, EVENT_REFUSED, EVENT_TC_REFUSED, EVENT_TC_TAKEN,
    Event,
};
pub use flow::{
    Action, Facts, Flow, HOPS_V4, HOPS_V6, INTERFACE_NO_IPV6, INTERFACE_OWN_QDISC, Interface, Namespace,
    OwnFlow, Packet, Taken, Transport, classify, last_hop_v4, last_hop_v6,
};
pub use leak::{
    Direct, Leak, LeakKey, LeakRecord, MAX_COUNTED, MAX_LEAKED, PASSED_COUNTED, PASSED_OWN, Passed, Reason,
    WHO_CGROUP, WHO_NETNS,
};

/// How many destination ports can be taken.
pub const MAX_PORTS: usize = 16;
/// How many cgroups of proxies are remembered: the running one and those of instances it replaced.
pub const MAX_OWN_CGROUPS: usize = 4;
/// Entries of each prefix map: at most 4096 learnt addresses and as many static networks.
pub const MAX_PREFIXES: u32 = 8192;
/// Entries of the handover map. It holds a connection only from its SYN to the listener's ESTABLISHED, so that even
/// 65,536 simultaneous handshakes fit; the largest listen backlog we ask for is 4096.
pub const MAX_HANDOVER: u32 = 65_536;

/// Networks that are served at a time: network namespaces, or what lies behind an interface. 0 is the host's own.
pub const MAX_NETWORKS: u32 = 1024;
/// Slots of the listener map: two for each network.
pub const SLOTS: u32 = 2 * MAX_NETWORKS;
/// Entries of the map of flows that the classifier took; an idle connection beyond them is found by its socket.
pub const MAX_FLOWS: u32 = 65_536;
/// Entries of the map of our own upstream connections that are being opened.
pub const MAX_OWN_FLOWS: u32 = 16_384;

/// The slot of a network's listener in the listener map.
#[inline(always)]
pub const fn slot(network: u32, is_v4: bool) -> u32 {
    2 * network + if is_v4 { 0 } else { 1 }
}

/// IPPROTO_TCP. An MPTCP socket shows it too: the hook runs for its first subflow.
pub const IPPROTO_TCP: u32 = 6;

/// IPPROTO_UDP
pub const IPPROTO_UDP: u32 = 17;

/// 0.0.0.2, in network order: where user space "connects" to ask for a namespace's cookie. No host has that address.
pub const PROBE_V4: u32 = 0x0000_0002_u32.to_be();
/// The port of that question (discard).
pub const PROBE_PORT: u16 = 9;

/// Third word of an IPv4-mapped address, in network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();
/// Level and option by which the worker asks an accepted socket for its original destination, a `sockaddr_in6` for both
/// families. The level is no protocol's. To `SO_ORIGINAL_DST`, netfilter's question, the kernel first searches its table of
/// connections, which costs more than all the rest of the call.
pub const ASK_LEVEL: i32 = 0x6166_7078;
/// See [`ASK_LEVEL`].
pub const ASK_ORIGINAL: i32 = 1;

/// 127.0.0.1, in network order.
const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();

/// An address: IPv6, or IPv4 in its IPv4-mapped form.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    /// Four words, each in network byte order.
    pub words: [u32; 4],
}

impl Address {
    /// `::ffff:127.0.0.1`
    pub const LOOPBACK_V4: Self = Self::from_v4(LOOPBACK_V4);
    /// `::1`
    pub const LOOPBACK_V6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };

    /// An IPv4 address given as one word in network order.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// The IPv4 address, as a word in network order, when this is one.
    #[inline(always)]
    pub const fn v4(&self) -> Option<u32> {
        if self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED {
            Some(self.words[3])
        } else {
            None
        }
    }

    /// True when a connection to this address never leaves the host's network namespace by itself: 127.0.0.0/8, `::1`,
    /// and the unspecified addresses, which `connect()` takes as loopback.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        match self.v4() {
            Some(word) => word == 0 || u32::from_be(word) >> 24 == 127,
            None => {
                let [a, b, c, d] = self.words;
                a == 0 && b == 0 && c == 0 && (d == 0 || d == Self::LOOPBACK_V6.words[3])
            }
        }
    }

    /// The loopback address of the listener that serves this destination's family.
    #[inline(always)]
    pub const fn loopback(&self) -> Self {
        if self.v4().is_some() {
            Self::LOOPBACK_V4
        } else {
            Self::LOOPBACK_V6
        }
    }

    /// The listener map's slot that serves this destination's family in a network.
    #[inline(always)]
    pub const fn slot(&self, network: u32) -> u32 {
        slot(network, self.v4().is_some())
    }

    /// The sixteen bytes of the address.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.words[0].to_ne_bytes(),
            self.words[1].to_ne_bytes(),
            self.words[2].to_ne_bytes(),
            self.words[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ]
    }
}

/// What the programs are told, replaced as a whole (one entry of a hash map without preallocation, so that a program
/// never sees half of a change).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cgroup ids of proxies, newest first; 0 is an empty place. Cgroup ids are never used twice.
    pub own_cgroups: [u64; MAX_OWN_CGROUPS],
    /// Selected destination ports; only the first `port_count` count.
    pub ports: [u16; MAX_PORTS],
    /// How many ports are selected.
    pub port_count: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Datapath `tc`: what the bits of `mark_mask` become on a packet that is taken.
    pub mark_value: u32,
    /// Datapath `tc`: the bits of a packet's mark that are ours.
    pub mark_mask: u32,
}

/// [`Settings::flags`]: connections are taken.
pub const FLAG_ENABLED: u32 = 1;
/// [`Settings::flags`]: a selected connection that we cannot take is refused; without it, it goes out as without us.
pub const FLAG_CLOSED: u32 = 2;

impl Settings {
    /// Nothing is taken.
    pub const OFF: Self = Self {
        own_cgroups: [0; MAX_OWN_CGROUPS],
        ports: [0; MAX_PORTS],
        port_count: 0,
        flags: FLAG_CLOSED,
        mark_value: 0,
        mark_mask: 0,
    };

    /// Connections are taken.
    #[inline(always)]
    pub const fn enabled(&self) -> bool {
        self.flags & FLAG_ENABLED != 0
    }

    /// A selected connection that cannot be taken is refused.
    #[inline(always)]
    pub const fn closed(&self) -> bool {
        self.flags & FLAG_CLOSED != 0
    }

    /// True when `port` is a selected destination port.
    #[inline(always)]
    pub fn selects_port(&self, port: u16) -> bool {
        // A loop with a constant bound: the verifiers of 5.10 to 7.2 all accept it.
        let mut index = 0;
        while index < MAX_PORTS {
            if index < self.port_count as usize && self.ports[index] == port {
                return true;
            }
            index += 1;
        }
        false
    }

    /// True when `cgroup` is a proxy's.
    #[inline(always)]
    pub fn is_own(&self, cgroup: u64) -> bool {
        let mut index = 0;
        while index < MAX_OWN_CGROUPS {
            if cgroup != 0 && self.own_cgroups[index] == cgroup {
                return true;
            }
            index += 1;
        }
        false
    }

    /// Puts a proxy's cgroup first in the list of own cgroups; the oldest drops out.
    pub fn remember_own(&mut self, cgroup: u64) {
        let mut list = [0; MAX_OWN_CGROUPS];
        list[0] = cgroup;
        let others = self.own_cgroups.iter().filter(|&&id| id != cgroup && id != 0);
        for (place, &id) in list.iter_mut().skip(1).zip(others) {
            *place = id;
        }
        self.own_cgroups = list;
    }
}

/// What a connect hook knows of a connection before it looks at the destination prefixes.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The socket's protocol.
    pub protocol: u32,
    /// Where it wants to go.
    pub destination: Address,
    /// Destination port.
    pub port: u16,
    /// `bpf_get_current_cgroup_id()`.
    pub cgroup: u64,
}

/// Why a connection is left alone; everything but the destination prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Not TCP. Not counted: UDP connects of an Agent (DNS, DogStatsD) are none of our business.
    NotTcp,
    /// Interception is off.
    Disabled,
    /// The proxy's own connection.
    Own,
    /// A loopback or unspecified destination. Also what a second copy of the program sees, during an upgrade, of a
    /// connection that the first copy rewrote.
    Local,
    /// The port is not selected.
    Port,
}

impl Skip {
    /// The counter for this reason.
    #[inline(always)]
    pub const fn counter(self) -> Option<Counter> {
        match self {
            Self::Own => Some(Counter::Own),
            Self::Port => Some(Counter::NotSelectedPort),
            Self::NotTcp | Self::Disabled | Self::Local => None,
        }
    }
}

/// The match function, all but the look-ups of prefix and namespace: `None` when the connection is a candidate.
///
/// The order matters: our own connections are recognised before anything about the destination is asked, and a
/// loopback destination before the port, so that the rewritten address of a first copy is never counted or undone.
#[inline(always)]
pub fn skip(settings: &Settings, attempt: &Attempt) -> Option<Skip> {
    if attempt.protocol != IPPROTO_TCP {
        return Some(Skip::NotTcp);
    }
    if !settings.enabled() {
        return Some(Skip::Disabled);
    }
    if settings.is_own(attempt.cgroup) {
        return Some(Skip::Own);
    }
    if attempt.destination.is_local() {
        return Some(Skip::Local);
    }
    if !settings.selects_port(attempt.port) {
        return Some(Skip::Port);
    }
    None
}

/// What is remembered of a rewritten connection, its original destination above all: in the storage of the client's
/// socket, in the handover map, and in the storage of the accepted socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// Where the client wanted to go.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// The listener's port that the connection was rewritten to.
    pub listener_port: u16,
    /// The process that called `connect()`: its thread group id in the host's pid namespace, whichever the process sees
    /// itself in. Never 0.
    pub process: u32,
}

impl Original {
    /// True when `peer`, as the kernel shows it, is the loopback address and port that this connection was rewritten to.
    /// Anything else is a later connection of the same socket, which must not be told the old peer.
    #[inline(always)]
    pub fn is_rewritten_to(&self, peer: &Address, port: u16) -> bool {
        let loopback = self.address.loopback();
        port == self.listener_port
            && peer.words[0] == loopback.words[0]
            && peer.words[1] == loopback.words[1]
            && peer.words[2] == loopback.words[2]
            && peer.words[3] == loopback.words[3]
    }
}

/// How the accepted side finds the client side: the client's tuple, in its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HandoverKey {
    /// Network-namespace cookie where sockops programs can ask for it (5.15), else 0.
    pub netns_cookie: u64,
    /// The client's address.
    pub client: Address,
    /// The client's port.
    pub client_port: u16,
    /// The listener's port.
    pub listener_port: u16,
    /// Always 0: keys are compared as bytes, so that there must be no padding.
    pub reserved: u32,
}

impl HandoverKey {
    /// The key of a connection.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, client: Address, client_port: u16, listener_port: u16) -> Self {
        Self {
            netns_cookie,
            client,
            client_port,
            listener_port,
            reserved: 0,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// What the programs count, per CPU. Names are those of the metrics.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])+ $variant,)+
        }

        impl Counter {
            /// All counters in map order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in metrics and status.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

counters! {
    /// IPv4 and IPv4-mapped connections rewritten to the listener.
    InterceptedV4 = "intercepted_v4",
    /// IPv6 connections rewritten to the listener.
    InterceptedV6 = "intercepted_v6",
    /// TCP connections of an Agent to a port that is not selected.
    NotSelectedPort = "not_selected_port",
    /// TCP connections of an Agent to a selected port of a destination that is not selected.
    NotSelectedDestination = "not_selected_destination",
    /// Connections of a proxy that a selector covered.
    Own = "own",
    /// Refused because we do not serve the network namespace (yet) and the policy is `closed`.
    RefusedUnknownNetns = "refused_unknown_netns",
    /// Refused because nobody listens here and the policy is `closed`.
    RefusedNoListener = "refused_no_listener",
    /// Refused because the socket is bound to a device and the policy is `closed`.
    RefusedBoundDevice = "refused_bound_device",
    /// Refused because the socket's storage could not be written (out of memory) and the policy is `closed`.
    RefusedNoStorage = "refused_no_storage",
    /// Let go because we do not serve the network namespace (yet) and the policy is `open`.
    OpenUnknownNetns = "open_unknown_netns",
    /// Let go because nobody listens here and the policy is `open`.
    OpenNoListener = "open_no_listener",
    /// Let go because the socket is bound to a device and the policy is `open`.
    OpenBoundDevice = "open_bound_device",
    /// Let go because the socket's storage could not be written (out of memory) and the policy is `open`.
    OpenNoStorage = "open_no_storage",
    /// Rewritten connections whose tuple was published for the accepting side.
    Published = "published",
    /// Accepted connections that got their original destination.
    HandedOver = "handed_over",
    /// Accepted connections that no Agent's connect brought: those of the explicit ports and the status port, and
    /// whoever connects to the interception listener directly, which the worker closes without a byte.
    AcceptedElse = "accepted_else",
    /// Original destinations that the kernel had no memory to keep: the worker closes such a connection.
    HandoverFailed = "handover_failed",
    /// Questions for the original destination that were answered.
    OriginalDstAnswered = "original_dst_answered",
    /// `getpeername()` calls answered with the original destination.
    PeerAnswered = "peer_answered",
    /// IPv4 connections that the classifier took: opening segments, a retransmitted one counts again.
    TcTakenV4 = "tc_taken_v4",
    /// IPv6 connections that the classifier took, counted in the same way.
    TcTakenV6 = "tc_taken_v6",
    /// Taken segments for which our listener was picked: the opening one, and the one that ends the handshake when it
    /// finds no socket.
    TcPicked = "tc_picked",
    /// The proxy's own connections that the classifier met and left alone.
    TcOwn = "tc_own",
    /// Opening segments that were dropped because nobody listens and the policy is `closed`.
    TcRefusedNoListener = "tc_refused_no_listener",
    /// Opening segments that were let go because nobody listens and the policy is `open`.
    TcOpenNoListener = "tc_open_no_listener",
    /// Opening segments that were dropped because the kernel had no memory to remember the flow and the policy is
    /// `closed`.
    TcRefusedNoMemory = "tc_refused_no_memory",
    /// Opening segments that were let go because the kernel had no memory to remember the flow and the policy is `open`.
    TcOpenNoMemory = "tc_open_no_memory",
    /// Connections to an intake that did not go through us: [`Reason`] says why.
    Leaked = "leaked",
}

#[cfg(feature = "user")]
mod user {
    use super::{
        Address, Event, Flow, HandoverKey, Interface, Leak, LeakKey, Namespace, Original, OwnFlow, Settings,
        Taken,
    };

    // SAFETY: `repr(C)`, made of integers only, and without padding (the layout tests prove it), so that every bit
    // pattern is a value. Needed to hand the types to aya's maps.
    unsafe impl aya::Pod for Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Original {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HandoverKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Namespace {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Interface {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Taken {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OwnFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Event {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LeakKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Leak {}
}

#[cfg(test)]
mod tests;
