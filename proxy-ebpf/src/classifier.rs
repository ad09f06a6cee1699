//! `classify`, on the host's side of a pod's interface: marks the packets of connections that are ours, so that a
//! routing rule leads them to this host instead of the intake.
//!
//! Everything that is not ours returns `TC_ACT_UNSPEC`, so that the programs and filters of others run as without us. A
//! taken packet returns `TC_ACT_OK`: a later redirect or drop would steal it. What is decided, and why, is in `flow.rs`.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_skb_load_bytes_relative,
    macros::classifier,
    programs::TcContext,
};
use proxy_ebpf::{
    Action, Address, Counter, Direct, EVENT_TC_REFUSED, EVENT_TC_TAKEN, Event, Facts, Flow, Interface,
    LeakKey, OwnFlow, Packet, Reason, Settings, Transport, WHO_NETNS,
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

/// BPF_HDR_START_NET (linux/bpf.h): offsets count from the IP header.
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
        Action::Take => {
            if FLOWS
                .insert(
                    stack::flow(&mut stack::space(), &packet.flow),
                    interface.network,
                    0,
                )
                .is_err()
            {
                return no_memory(settings, interface, &packet);
            }
            tell(EVENT_TC_TAKEN, &packet.flow);
            mark(&ctx, settings);
            TC_ACT_OK
        }
        Action::Follow => {
            mark(&ctx, settings);
            TC_ACT_OK
        }
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
    fn taken(&self, flow: &Flow) -> bool {
        taken(flow).is_some()
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

#[inline(always)]
fn mark(ctx: &TcContext, settings: &Settings) {
    // SAFETY: a field of the kernel's context.
    let mark = unsafe { (*ctx.skb.skb).mark };
    ctx.set_mark(settings.marked(mark));
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
            PROTOCOL_V4 => Transport::of_v4(&load(skb, 0)?)?,
            PROTOCOL_V6 => Transport::of_v6(&load(skb, 0)?)?,
            _ => return None,
        }
    };
    // SAFETY: as above.
    let words = unsafe { load(skb, transport.offset)? };
    Some(transport.segment(&words))
}

/// Words of the packet, from `offset` bytes behind the start of its IP header: the same on devices with and without an
/// Ethernet header, and wherever in the buffer the bytes are.
///
/// # Safety
/// `skb` is the kernel's context.
#[inline(always)]
unsafe fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u32; N]> {
    // Not zeroed: LLVM would call a loop of single bytes, which costs, and which the verifier refuses without CAP_PERFMON.
    let mut words = MaybeUninit::<[u32; N]>::uninit();
    // SAFETY: the buffer is live and of the size given, a constant. aya has no such call.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            words.as_mut_ptr().cast(),
            const { size_of::<[u32; N]>() as u32 },
            HEADER_NET,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: the helper filled the buffer to its end, as it says by returning 0.
    Some(unsafe { words.assume_init() })
}
