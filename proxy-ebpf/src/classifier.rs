//! `classify`, on the host's side of a pod's interface: marks the packets of connections that are ours, so that a
//! routing rule leads them to this host instead of the intake.
//!
//! Everything that is not ours returns `TC_ACT_UNSPEC`, so that the programs and filters of others run as without us. A
//! taken packet returns `TC_ACT_OK`: a later redirect or drop would steal it. What is decided, and why, is in `flow.rs`.
//!
//! A taken packet has one hop left: this host may keep it, and no router may pass it on, this host included. So nothing
//! leaves while our rule is away, for whatever reason: rules know interfaces by their names, and the kernel detaches one
//! when its interface gets another name. The exception is the opening segment where the policy is `open`: when somebody
//! else answers it, the connection is let go and counted.

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_skb_load_bytes_relative, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use proxy_ebpf::{
    Action, Address, Counter, Direct, EVENT_TC_REFUSED, EVENT_TC_TAKEN, Event, Facts, Flow, HOPS_V4, HOPS_V6,
    Interface, LeakKey, OwnFlow, Packet, Reason, Settings, Taken, Transport, WHO_NETNS, last_hop_v4,
    last_hop_v6,
};

use crate::leaked::leaked;
use crate::maps::{
    FLOWS, HAS_SOCKOPS_NETNS_COOKIE, INTERFACES, LET_GO, OWN_FLOWS, count, listener_port, selected, settings,
    taken,
};
use crate::report::report;
use crate::stack;

/// ETH_P_IP and ETH_P_IPV6 (linux/if_ether.h).
const PROTOCOL_V4: u16 = 0x0800;
const PROTOCOL_V6: u16 = 0x86dd;

/// ETH_HLEN (linux/if_ether.h)
const ETHERNET: u32 = 14;
/// BPF_HDR_START_MAC and BPF_HDR_START_NET (linux/bpf.h): offsets count from the packet's start, or from the IP header.
const HEADER_MAC: u32 = 0;
const HEADER_NET: u32 = 1;

/// Classifies one packet.
#[classifier]
pub fn classify(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: a field of the kernel's context.
    let index = unsafe { (*skb).ifindex };
    let Some(interface) = INTERFACES.get_ptr_mut(stack::number(&mut stack::space(), index)) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: a live map value: without preallocation it is freed after an RCU grace period. A plain addition: the count
    // says that packets pass here, an exact number on several CPUs would cost more than it tells.
    let interface = unsafe {
        (*interface).seen += 1;
        &*interface
    };
    // SAFETY: the kernel's context.
    let Some(packet) = (unsafe { packet(skb) }) else {
        return TC_ACT_UNSPEC;
    };
    let Some(settings) = settings() else {
        return TC_ACT_UNSPEC;
    };
    let action = proxy_ebpf::classify(settings, &packet, &Maps(interface));
    if let Some(counter) = action.counter(&packet.flow.destination) {
        count(counter);
    }
    match action {
        Action::Pass => TC_ACT_UNSPEC,
        Action::Forget | Action::Own | Action::Open => {
            if action == Action::Open {
                let_go(interface, &packet, Reason::NoListener);
            }
            // That there was none is no error.
            let _ = FLOWS.remove(stack::flow(&mut stack::space(), &packet.flow));
            TC_ACT_UNSPEC
        }
        Action::Refuse => {
            tell(EVENT_TC_REFUSED, &packet.flow);
            TC_ACT_SHOT
        }
        Action::Lost => TC_ACT_SHOT,
        Action::Direct => {
            let_go(interface, &packet, Reason::NotLed);
            let _ = FLOWS.remove(stack::flow(&mut stack::space(), &packet.flow));
            TC_ACT_UNSPEC
        }
        Action::Take => {
            if !remember(&packet.flow, interface.network) {
                return no_memory(settings, interface, &packet);
            }
            tell(EVENT_TC_TAKEN, &packet.flow);
            lead(&ctx, settings, &packet, settings.closed())
        }
        // Whoever has talked with us must not go on with somebody else, whatever the policy.
        Action::Follow => lead(&ctx, settings, &packet, true),
    }
}

/// What the maps say, for packets of one interface.
struct Maps<'a>(&'a Interface);

impl Facts for Maps<'_> {
    #[inline(always)]
    fn selected(&self, destination: &Address) -> bool {
        selected(destination)
    }

    #[inline(always)]
    fn taken(&self, flow: &Flow) -> Option<Taken> {
        taken(flow)
    }

    #[inline(always)]
    fn own(&self, flow: &Flow) -> bool {
        let netns_cookie = if HAS_SOCKOPS_NETNS_COOKIE.load() == 0 {
            0
        } else {
            self.0.netns_cookie
        };
        let key = OwnFlow {
            netns_cookie,
            flow: *flow,
        };
        OWN_FLOWS
            .get_ptr(stack::own_flow(&mut stack::space(), &key))
            .is_some()
    }

    #[inline(always)]
    fn astray(&self, destination: &Address) -> bool {
        self.0.astray(destination)
    }

    #[inline(always)]
    fn listener(&self, destination: &Address) -> bool {
        listener_port(destination.slot(self.0.network)).is_some()
    }
}

/// Enters a flow that is taken; false when there is no memory for it. An opening segment that is sent again changes nothing: our
/// listener may have been picked for the first one, and is not picked once more.
#[inline(always)]
fn remember(flow: &Flow, network: u32) -> bool {
    let waiting = Taken::waiting(network);
    let mut space = stack::space();
    // SAFETY: `Taken` is a word and nothing else.
    let value = unsafe { &*ptr::from_ref(stack::number(&mut space, waiting.word())).cast::<Taken>() };
    if FLOWS
        .insert(stack::flow(&mut stack::space(), flow), value, BPF_NOEXIST.into())
        .is_ok()
    {
        return true;
    }
    let Some(entry) = FLOWS.get_ptr_mut(stack::flow(&mut stack::space(), flow)) else {
        return false;
    };
    // SAFETY: a live map value, written as a whole.
    unsafe {
        // Another pod had the address before.
        if (*entry).network() != network {
            *entry = waiting;
        }
    }
    true
}

/// A flow that cannot be remembered cannot be taken: the policy decides.
#[inline(always)]
fn no_memory(settings: &Settings, interface: &Interface, packet: &Packet) -> i32 {
    if settings.closed() {
        count(Counter::TcRefusedNoMemory);
        TC_ACT_SHOT
    } else {
        count(Counter::TcOpenNoMemory);
        let_go(interface, packet, Reason::NoMemory);
        TC_ACT_UNSPEC
    }
}

/// Counts a connection that goes on without us: by its first opening segment, and not by those that are sent again.
#[inline(always)]
fn let_go(interface: &Interface, packet: &Packet, reason: Reason) {
    let flow = &packet.flow;
    // SAFETY: an LRU entry may be reused while it is read, when the map is full: the copy is taken at once.
    let before = unsafe { LET_GO.get(stack::flow(&mut stack::space(), flow)) }.copied();
    if before == Some(packet.sequence) {
        return;
    }
    let mut space = stack::space();
    let sequence = stack::number(&mut space, packet.sequence);
    // Without an entry a segment that is sent again counts again.
    let _ = LET_GO.insert(stack::flow(&mut stack::space(), flow), sequence, 0);
    leaked(
        &LeakKey {
            who: interface.netns_cookie,
            reason: reason as u32,
            kind: WHO_NETNS,
        },
        &Direct {
            destination: flow.destination,
            port: flow.destination_port,
            reserved: 0,
            process: 0,
        },
    );
}

/// Sends a packet on to our listener by the mark; with `nowhere_else`, to nobody else should no rule be there that knows it.
#[inline(always)]
fn lead(ctx: &TcContext, settings: &Settings, packet: &Packet, nowhere_else: bool) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel's context.
    if nowhere_else && !unsafe { last_hop(skb, &packet.flow.destination) } {
        // No memory for a header that may be written. The sender sends it again.
        return TC_ACT_SHOT;
    }
    // SAFETY: a field of the kernel's context.
    let mark = unsafe { (*skb).mark };
    ctx.set_mark(settings.marked(mark));
    TC_ACT_OK
}

/// Leaves a packet one hop: what is delivered on this host is asked for none, what is forwarded needs two. False when the
/// header could not be written. Of a device with another link layer than Ethernet, or none, nothing is changed.
///
/// # Safety
/// `skb` is the kernel's context.
#[inline(always)]
unsafe fn last_hop(skb: *mut __sk_buff, destination: &Address) -> bool {
    let is_v4 = destination.v4().is_some();
    let hops = if is_v4 { HOPS_V4 } else { HOPS_V6 };
    // SAFETY: promised by the caller.
    let (before, raw) = unsafe {
        (
            load::<1>(skb, hops, HEADER_NET),
            load::<1>(skb, ETHERNET + hops, HEADER_MAC),
        )
    };
    let (Some([before]), Some([raw])) = (before, raw) else {
        return true;
    };
    let after = if is_v4 {
        last_hop_v4(before)
    } else {
        last_hop_v6(before)
    };
    if raw != before || after == before {
        return true;
    }
    let mut space = stack::space();
    let word = stack::number(&mut space, after);
    // SAFETY: the kernel's context, and a word that is live for the call. The helper makes the header writable when it is called;
    // a store by the program itself would have the kernel do so for every packet that passes here.
    let result = unsafe {
        bpf_skb_store_bytes(
            skb.cast(),
            ETHERNET + hops,
            ptr::from_ref(word).cast(),
            const { size_of::<u32>() as u32 },
            BPF_F_RECOMPUTE_CSUM.into(),
        )
    };
    result == 0
}

#[inline(always)]
fn tell(what: u32, flow: &Flow) {
    report(Event {
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        what,
        ..Event::default()
    });
}

/// The addresses, ports and flags of a TCP segment over IPv4 or IPv6; `None` for every other packet. A packet with a
/// VLAN tag is some other interface's.
///
/// # Safety
/// `skb` is the kernel's context.
#[inline(always)]
unsafe fn packet(skb: *mut __sk_buff) -> Option<Packet> {
    // SAFETY: promised by the caller.
    let (protocol, tagged) = unsafe { ((*skb).protocol, (*skb).vlan_present) };
    if tagged != 0 {
        return None;
    }
    // SAFETY: as above.
    let transport = unsafe {
        match u16::from_be(protocol as u16) {
            PROTOCOL_V4 => Transport::of_v4(&load(skb, 0, HEADER_NET)?)?,
            PROTOCOL_V6 => Transport::of_v6(&load(skb, 0, HEADER_NET)?)?,
            _ => return None,
        }
    };
    // SAFETY: as above.
    let words = unsafe { load(skb, transport.offset, HEADER_NET)? };
    Some(transport.segment(&words))
}

/// Words of the packet, from `offset` bytes behind the start of that header: of the IP header the same on devices with and
/// without an Ethernet header; wherever in the buffer the bytes are.
///
/// # Safety
/// `skb` is the kernel's context.
#[inline(always)]
unsafe fn load<const N: usize>(skb: *mut __sk_buff, offset: u32, header: u32) -> Option<[u32; N]> {
    // Not zeroed: LLVM would call a loop of single bytes, which costs, and which the verifier refuses without CAP_PERFMON.
    let mut words = MaybeUninit::<[u32; N]>::uninit();
    // SAFETY: the buffer is live and of the size given, a constant. aya has no such call.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            words.as_mut_ptr().cast(),
            const { size_of::<[u32; N]>() as u32 },
            header,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: the helper filled the buffer to its end, as it says by returning 0.
    Some(unsafe { words.assume_init() })
}
