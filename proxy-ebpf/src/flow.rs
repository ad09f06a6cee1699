//! What the packet side (datapath `tc`) shares with user space: flows, interfaces, namespaces, and the classifier's
//! decisions, from the words of a packet's headers to what is done with it.

use crate::{Address, Counter, IPPROTO_TCP, Settings};

/// A network namespace whose Agents are served: the value of `NAMESPACES`, whose key is the namespace's cookie
/// (`SO_NETNS_COOKIE`, Linux 5.14; `bpf_get_netns_cookie`, Linux 5.7).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its number, below [`crate::MAX_NETWORKS`].
    pub network: u32,
    /// Always 0.
    pub reserved: u32,
}

/// An interface whose packets are classified: the value of `INTERFACES`, whose key is the interface's index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Cookie of the network namespace behind it; 0 when unknown.
    pub netns_cookie: u64,
    /// Packets that our classifier saw there. A statistic: a packet of another CPU may be missed.
    pub seen: u64,
    /// Number of the network behind it, below [`crate::MAX_NETWORKS`].
    pub network: u32,
    /// `INTERFACE_*`.
    pub flags: u32,
}

/// [`Interface::flags`]: the clsact qdisc of the interface was made by us. For user space: the programs do not read it.
pub const INTERFACE_OWN_QDISC: u32 = 1;
/// [`Interface::flags`]: this host has no route of ours for marked IPv6 packets, because IPv6 is off on it. Where nobody
/// can be reached nobody listens, so that `intercept.on_failure` decides.
pub const INTERFACE_NO_IPV6: u32 = 2;

impl Interface {
    /// True when a marked packet to this address would not get to our listeners.
    #[inline(always)]
    pub const fn astray(&self, destination: &Address) -> bool {
        self.flags & INTERFACE_NO_IPV6 != 0 && destination.v4().is_none()
    }
}

/// A TCP connection as its packets name it, in the direction of its first one. Keys are compared as bytes, so that
/// there is no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who connects.
    pub source: Address,
    /// Whereto.
    pub destination: Address,
    /// Source port, in host order.
    pub source_port: u16,
    /// Destination port, in host order.
    pub destination_port: u16,
    /// Always 0.
    pub reserved: u32,
}

impl Flow {
    /// The flow of these ends.
    #[inline(always)]
    pub const fn new(source: Address, source_port: u16, destination: Address, destination_port: u16) -> Self {
        Self {
            source,
            destination,
            source_port,
            destination_port,
            reserved: 0,
        }
    }
}

/// What is remembered of a flow that the classifier took: the value of `FLOWS`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken(u32);

impl Taken {
    /// Set until our listener is picked. Far above [`crate::MAX_NETWORKS`]; versions that did not know it never set it.
    const WAITS: u32 = 1 << 31;

    /// Just taken, in this network.
    #[inline(always)]
    pub const fn waiting(network: u32) -> Self {
        Self(network | Self::WAITS)
    }

    /// The same, with our listener picked.
    #[inline(always)]
    pub const fn picked(self) -> Self {
        Self(self.0 & !Self::WAITS)
    }

    /// Number of the network that it was taken in.
    #[inline(always)]
    pub const fn network(self) -> u32 {
        self.0 & !Self::WAITS
    }

    /// No packet of it was seen at our listener.
    #[inline(always)]
    pub const fn waits(self) -> bool {
        self.0 & Self::WAITS != 0
    }

    /// The value itself, as it lies in the map.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }
}

/// One of our own upstream connections, while it is opened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnFlow {
    /// Cookie of the network namespace it is made in; 0 where sockops programs cannot ask for it (before 5.15).
    pub netns_cookie: u64,
    /// Our socket's end first.
    pub flow: Flow,
}

/// A TCP segment of an interface that is classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its addresses and ports.
    pub flow: Flow,
    /// SYN without ACK: it opens a connection.
    pub opening: bool,
    /// ACK without RST: the other side has answered. A reset may carry on about an answer that nobody wanted.
    pub answering: bool,
    /// Its sequence number: a SYN that is sent again has the same, one of another connection does not (RFC 9293, 3.4.1).
    pub sequence: u32,
}

/// Where a packet's TCP header is, and the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Bytes from the start of the IP header to the TCP header.
    pub offset: u32,
    /// Who sent it.
    pub source: Address,
    /// Whereto.
    pub destination: Address,
}

impl Transport {
    /// Reads the first 20 bytes of an IPv4 header (RFC 791), as words in network order. `None` for anything but TCP, and
    /// for a fragment that is not the first: it has no ports.
    #[inline(always)]
    pub const fn of_v4(words: &[u32; 5]) -> Option<Self> {
        let first = u32::from_be(words[0]);
        let header = (first >> 24 & 0xf) * 4;
        let fragment_offset = u32::from_be(words[1]) & 0x1fff;
        let protocol = u32::from_be(words[2]) >> 16 & 0xff;
        if first >> 28 != 4 || header < 20 || fragment_offset != 0 || protocol != IPPROTO_TCP {
            return None;
        }
        Some(Self {
            offset: header,
            source: Address::from_v4(words[3]),
            destination: Address::from_v4(words[4]),
        })
    }

    /// Reads an IPv6 header (RFC 8200), as words in network order. `None` for anything but TCP right behind it: no
    /// Agent's kernel puts extension headers into a TCP connection.
    #[inline(always)]
    pub const fn of_v6(words: &[u32; 10]) -> Option<Self> {
        let next = u32::from_be(words[1]) >> 8 & 0xff;
        if u32::from_be(words[0]) >> 28 != 6 || next != IPPROTO_TCP {
            return None;
        }
        Some(Self {
            offset: 40,
            source: Address {
                words: [words[2], words[3], words[4], words[5]],
            },
            destination: Address {
                words: [words[6], words[7], words[8], words[9]],
            },
        })
    }

    /// Reads the first 16 bytes of the TCP header (RFC 9293), as words in network order.
    #[inline(always)]
    pub const fn segment(&self, words: &[u32; 4]) -> Packet {
        let [a, b, c, d] = words[0].to_ne_bytes();
        let flags = u32::from_be(words[3]) >> 16;
        Packet {
            flow: Flow::new(
                self.source,
                u16::from_be_bytes([a, b]),
                self.destination,
                u16::from_be_bytes([c, d]),
            ),
            opening: flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
            answering: flags & (TCP_RST | TCP_ACK) == TCP_ACK,
            sequence: u32::from_be(words[1]),
        }
    }
}

const TCP_SYN: u32 = 0x02;
const TCP_RST: u32 = 0x04;
const TCP_ACK: u32 = 0x10;

/// Where the word with the hop limit lies in an IPv4 header, in bytes (RFC 791): time to live, protocol, checksum.
pub const HOPS_V4: u32 = 8;
/// The same in an IPv6 header (RFC 8200): payload length, next header, hop limit.
pub const HOPS_V6: u32 = 4;

/// The word at [`HOPS_V4`], in network order, with a time to live of one and the checksum that belongs to it (RFC 1624,
/// equation 3).
#[inline(always)]
pub const fn last_hop_v4(word: u32) -> u32 {
    let word = u32::from_be(word);
    let before = word >> 16;
    let after = 1 << 8 | before & 0xff;
    let sum = (!word & 0xffff) + (!before & 0xffff) + after;
    // Three numbers of 16 bits: the second fold has no carry any more.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (after << 16 | !sum & 0xffff).to_be()
}

/// The word at [`HOPS_V6`], in network order, with a hop limit of one.
#[inline(always)]
pub const fn last_hop_v6(word: u32) -> u32 {
    (u32::from_be(word) & !0xff | 1).to_be()
}

/// What the classifier asks the maps, in the order of cost; a question is asked only when its answer matters.
pub trait Facts {
    /// The address is one of the selected prefixes.
    fn selected(&self, destination: &Address) -> bool;
    /// What is remembered of this flow, if the classifier took it.
    fn taken(&self, flow: &Flow) -> Option<Taken>;
    /// It is one of our own upstream connections, made in the pod's namespace.
    fn own(&self, flow: &Flow) -> bool;
    /// Marked packets of this family do not get to our listeners.
    fn astray(&self, destination: &Address) -> bool;
    /// Somebody of us listens for this family of the interface's network.
    fn listener(&self, destination: &Address) -> bool;
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Not ours: whoever comes next decides.
    Pass,
    /// A new connection that is not ours: it goes on, and an earlier one with the same ends is forgotten.
    Forget,
    /// As [`Action::Forget`]: the proxy's own connection.
    Own,
    /// As [`Action::Forget`]: nobody listens, and the policy is `open`.
    Open,
    /// Dropped: nobody listens, and the policy is `closed`.
    Refuse,
    /// A new connection that goes to our listener from now on.
    Take,
    /// A packet of a connection that was taken.
    Follow,
    /// A packet of a connection that was taken, which a mark would not lead to our listener any more: dropped.
    Lost,
    /// A packet of a connection that was taken and that somebody else answered, since no rule led it to us; the policy is
    /// `open`: it goes on as it began.
    Direct,
}

impl Action {
    /// The counter of this action.
    #[inline(always)]
    pub const fn counter(self, destination: &Address) -> Option<Counter> {
        match self {
            Self::Pass | Self::Forget | Self::Follow | Self::Lost | Self::Direct => None,
            Self::Own => Some(Counter::TcOwn),
            Self::Open => Some(Counter::TcOpenNoListener),
            Self::Refuse => Some(Counter::TcRefusedNoListener),
            Self::Take => Some(match destination.v4() {
                Some(_) => Counter::TcTakenV4,
                None => Counter::TcTakenV6,
            }),
        }
    }
}

/// The classifier's decision.
///
/// Packets of a taken flow follow it whatever addresses are selected by now, and also while interception is off: a
/// connection in flight ends as it began, and when its socket is gone the packet dies here and never leaves in the clear.
/// The exception is a flow that never came to us ([`Action::Direct`]).
/// Only the selected ports are asked for, so that the other traffic of a pod costs no look-up. So a port that a reload
/// takes out of `intercept.ports` is the exception: its connections in flight break, for their packets leave unmarked.
#[inline(always)]
pub fn classify(settings: &Settings, packet: &Packet, facts: &impl Facts) -> Action {
    let flow = &packet.flow;
    let port = settings.selects_port(flow.destination_port);
    if !packet.opening {
        if !port {
            return Action::Pass;
        }
        return match facts.taken(flow) {
            None => Action::Pass,
            Some(_) if facts.astray(&flow.destination) => Action::Lost,
            Some(taken) if taken.waits() && packet.answering && !settings.closed() => Action::Direct,
            Some(_) => Action::Follow,
        };
    }
    if !settings.enabled() || !port || !facts.selected(&flow.destination) {
        return Action::Forget;
    }
    if facts.own(flow) {
        return Action::Own;
    }
    if !facts.astray(&flow.destination) && facts.listener(&flow.destination) {
        return Action::Take;
    }
    if settings.closed() {
        Action::Refuse
    } else {
        Action::Open
    }
}

impl Settings {
    /// The mark of a packet that is taken: only the bits of the mask change, the others belong to somebody else.
    #[inline(always)]
    pub const fn marked(&self, mark: u32) -> u32 {
        mark & !self.mark_mask | self.mark_value & self.mark_mask
    }
}
