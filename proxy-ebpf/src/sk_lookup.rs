//! `sk_lookup` in the host's network namespace: the packets that the classifier took find our listener, whatever its
//! address, and nobody else's.
//!
//! The kernel asks for every connection to this host that has no socket yet. Only a flow that the classifier took is in
//! the map of flows, so that no other socket of the node can ever be affected.

use aya_ebpf::{bindings::bpf_sk_lookup, macros::sk_lookup, programs::SkLookupContext};
use proxy_ebpf::{Address, Counter, Flow, IPPROTO_TCP};

use crate::maps::{FLOWS, LISTENERS, count};
use crate::stack;

/// The kernel goes on: with the socket that was picked, else as without us.
const PASS: u32 = 1;
/// The kernel finds no socket.
const DROP: u32 = 0;

const AF_INET: u32 = 2;

/// Picks the listener.
#[sk_lookup]
pub fn pick(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel's context; the verifier checks each access.
    if unsafe { (*ctx.lookup).protocol } != IPPROTO_TCP {
        return PASS;
    }
    // SAFETY: as above.
    let flow = unsafe { flow(ctx.lookup) };
    let Some(entry) = FLOWS.get_ptr_mut(stack::flow(&mut stack::space(), &flow)) else {
        return PASS;
    };
    // SAFETY: a live map value. An LRU entry may be reused while it is read, when the map is full.
    let taken = unsafe { *entry };
    // Without BPF_SK_LOOKUP_F_NO_REUSEPORT (5.9): the socket in the slot stands for its set, of which the kernel chooses one.
    if LISTENERS
        .redirect_sk_lookup(&ctx, flow.destination.slot(taken.network()), 0)
        .is_err()
    {
        // Our listener went since the classifier looked. Some other socket of the node, one on a wildcard address, must
        // not get what was meant for the intake.
        return DROP;
    }
    if taken.waits() {
        // SAFETY: as above. Of what is there by now, should the entry have been reused: its network stays.
        unsafe { *entry = (*entry).picked() };
    }
    count(Counter::TcPicked);
    PASS
}

/// The flow of the packet.
///
/// # Safety
/// `context` is the kernel's context of an sk_lookup program.
#[inline(always)]
unsafe fn flow(context: *const bpf_sk_lookup) -> Flow {
    // SAFETY: promised by the caller. Constant indices and volatile: the verifier allows loads of four bytes only, and
    // for the remote port, which is in network order, of two (5.9 to 5.17 keep it in a field of four). Everything is
    // read before the families part: LLVM would merge the last loads of both into one at a computed offset, which the
    // verifier refuses (seen on 6.18). The kernel shows the other family's addresses as 0.
    let (v4, local, remote, local_port, remote_port) = unsafe {
        let words = |address: *const [u32; 4]| Address {
            words: [
                (&raw const (*address)[0]).read_volatile(),
                (&raw const (*address)[1]).read_volatile(),
                (&raw const (*address)[2]).read_volatile(),
                (&raw const (*address)[3]).read_volatile(),
            ],
        };
        let v4 = ((&raw const (*context).family).read_volatile() == AF_INET).then_some((
            (&raw const (*context).local_ip4).read_volatile(),
            (&raw const (*context).remote_ip4).read_volatile(),
        ));
        (
            v4,
            words(&raw const (*context).local_ip6),
            words(&raw const (*context).remote_ip6),
            (&raw const (*context).local_port).read_volatile() as u16,
            u16::from_be((&raw const (*context).remote_port).read_volatile()),
        )
    };
    match v4 {
        Some((local, remote)) => Flow::new(
            Address::from_v4(remote),
            remote_port,
            Address::from_v4(local),
            local_port,
        ),
        None => Flow::new(remote, remote_port, local, local_port),
    }
}
