//! `sockops`: carries the original destination, and who connected, from the client's socket to the accepted one.
//!
//! In an Agent's cgroup it publishes the tuple when the SYN leaves; in the proxy's cgroup it finds it when the accepted
//! socket becomes ESTABLISHED, before `accept()` can return. The entry lives for that moment only: ports are recycled,
//! and a stale entry would be somebody else's destination.
//!
//! A connection that no connect hook of ours took is asked where it really goes: to an intake, and it is a leak.
//!
//! In the proxy's cgroup it also tells the classifier which connections are our own, when they are made inside a pod.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::sock_ops,
    programs::SockOpsContext,
};
use proxy_ebpf::{
    Address, Counter, Direct, EVENT_ACCEPTED_ELSE, Event, Flow, HandoverKey, LeakKey, OwnFlow,
    PASSED_COUNTED, PASSED_OWN, Passed, Reason, WHO_CGROUP, WHO_NETNS,
};

use crate::leaked::leaked;
use crate::maps::{
    ACCEPTED, CLIENT, COUNTED, HANDOVER, HAS_SOCKOPS_NETNS_COOKIE, OWN_FLOWS, PASSED, count, load, note,
    selected, settings, store,
};
use crate::report::report;
use crate::stack;

const AF_INET: u32 = 2;

// Not named `sockops`: a function named like its ELF section does not link.
/// An Agent's end of the handover.
#[sock_ops]
pub fn handover(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_TCP_CONNECT_CB {
        publish(&ctx);
    }
    0
}

/// The proxy's end, and its own connections.
#[sock_ops]
pub fn own_handover(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => receive(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish_own(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => forget_own(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => forget_own(&ctx),
        _ => {}
    }
    0
}

/// Our own connection is about to send its SYN: the classifier, should it meet that, leaves it alone.
#[inline(always)]
fn publish_own(ctx: &SockOpsContext) {
    let key = own_flow(ctx);
    if key.flow.destination.is_local()
        || !settings().is_some_and(|s| s.selects_port(key.flow.destination_port))
    {
        return;
    }
    // Without the call on a change of state the entry of a failed connect would stay, and an Agent's later connection
    // with the same ends would escape: then better none, and our own connection is refused.
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if ctx.set_cb_flags(flags as i32).is_ok() {
        // When the kernel has no memory for it, our connection is taken for an Agent's, which the relay refuses.
        let _ = OWN_FLOWS.insert(stack::own_flow(&mut stack::space(), &key), 1, 0);
    }
}

/// The classifier asks at the SYN only, so that the entry is not needed for longer than the handshake. That also bounds
/// what a killed proxy leaves: nobody would remove its entries later.
#[inline(always)]
fn forget_own(ctx: &SockOpsContext) {
    // That there was none is no error.
    let _ = OWN_FLOWS.remove(stack::own_flow(&mut stack::space(), &own_flow(ctx)));
}

#[inline(always)]
fn own_flow(ctx: &SockOpsContext) -> OwnFlow {
    let (local, remote) = addresses(ctx);
    OwnFlow {
        netns_cookie: netns_cookie(ctx),
        flow: Flow::new(local, local_port(ctx), remote, remote_port(ctx)),
    }
}

/// The client's side.
#[inline(always)]
fn publish(ctx: &SockOpsContext) {
    let (client, peer) = addresses(ctx);
    // The note may be of an earlier connection of this socket.
    let rewritten =
        load(&CLIENT, socket(ctx)).filter(|original| original.is_rewritten_to(&peer, remote_port(ctx)));
    let Some(original) = rewritten else {
        direct(ctx, &peer);
        return;
    };
    let key = HandoverKey::new(netns_cookie(ctx), client, local_port(ctx), original.listener_port);
    let (mut key_space, mut space) = (stack::space(), stack::space());
    let key = stack::handover(&mut key_space, &key);
    let value = stack::original(&mut space, &original);
    if HANDOVER.insert(key, value, 0).is_ok() {
        count(Counter::Published);
    }
}

/// A connection that was not rewritten is about to send its SYN. Here its address is final, whoever changed it: when it is
/// an intake's, somebody goes around us.
#[inline(always)]
fn direct(ctx: &SockOpsContext, peer: &Address) {
    let port = remote_port(ctx);
    let Some(settings) = settings() else {
        return;
    };
    if !settings.enabled() || !settings.selects_port(port) || !selected(peer) {
        return;
    }
    let passed = load(&PASSED, socket(ctx));
    let (key, process) = match passed {
        Some(Passed {
            state: PASSED_OWN | PASSED_COUNTED,
            ..
        }) => return,
        Some(passed) => (
            LeakKey {
                who: passed.cgroup,
                reason: passed.state,
                kind: WHO_CGROUP,
            },
            passed.process,
        ),
        // No note: there was no memory for one, or it asked for a loopback address, which is not worth one. The first is
        // refused where the policy is `closed`. This program may not ask for the cgroup.
        None => {
            let reason = if settings.closed() {
                Reason::Around
            } else {
                Reason::NoMemory
            };
            let key = LeakKey {
                who: netns_cookie(ctx),
                reason: reason as u32,
                kind: WHO_NETNS,
            };
            (key, 0)
        }
    };
    leaked(
        &key,
        &Direct {
            destination: *peer,
            port,
            reserved: 0,
            process,
        },
    );
    if let Some(passed) = passed {
        // Another copy of this program, during an upgrade, sees that it was counted.
        note(
            socket(ctx),
            &Passed {
                state: PASSED_COUNTED,
                ..passed
            },
        );
    }
    // SAFETY: a plain helper call on the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let mut space = stack::space();
    let reason = stack::number(&mut space, key.reason);
    // Without an entry, the search for connections that were open before counts it once more.
    let _ = COUNTED.insert(stack::long(&mut stack::space(), cookie), reason, 0);
}

/// The accepted socket's side.
#[inline(always)]
fn receive(ctx: &SockOpsContext) {
    let (_, client) = addresses(ctx);
    let key = HandoverKey::new(netns_cookie(ctx), client, remote_port(ctx), local_port(ctx));
    // SAFETY: an LRU entry may be reused while it is read, when the map is full: the copy is taken at once, and the map
    // is far larger than the number of handshakes in flight.
    let Some(original) = (unsafe { HANDOVER.get(stack::handover(&mut stack::space(), &key)) }).copied()
    else {
        // Another copy of this program, during an upgrade, may have been here before.
        if load(&ACCEPTED, socket(ctx)).is_none() {
            count(Counter::AcceptedElse);
            report(Event {
                source: client,
                source_port: key.client_port,
                destination_port: key.listener_port,
                what: EVENT_ACCEPTED_ELSE,
                ..Event::default()
            });
        }
        return;
    };
    if store(&ACCEPTED, socket(ctx), &original) {
        count(Counter::HandedOver);
    } else {
        count(Counter::HandoverFailed);
    }
    // That another copy removed it first is no error.
    let _ = HANDOVER.remove(stack::handover(&mut stack::space(), &key));
}

/// Local and remote address. An IPv4-mapped client and the IPv4 socket that accepts it give the same result.
#[inline(always)]
fn addresses(ctx: &SockOpsContext) -> (Address, Address) {
    if ctx.family() == AF_INET {
        return (
            Address::from_v4(ctx.local_ip4()),
            Address::from_v4(ctx.remote_ip4()),
        );
    }
    // SAFETY: the kernel's context; constant indices and volatile, as the verifier allows 32-bit loads only.
    unsafe {
        let local = &raw const (*ctx.ops).local_ip6;
        let remote = &raw const (*ctx.ops).remote_ip6;
        (
            Address {
                words: [
                    (&raw const (*local)[0]).read_volatile(),
                    (&raw const (*local)[1]).read_volatile(),
                    (&raw const (*local)[2]).read_volatile(),
                    (&raw const (*local)[3]).read_volatile(),
                ],
            },
            Address {
                words: [
                    (&raw const (*remote)[0]).read_volatile(),
                    (&raw const (*remote)[1]).read_volatile(),
                    (&raw const (*remote)[2]).read_volatile(),
                    (&raw const (*remote)[3]).read_volatile(),
                ],
            },
        )
    }
}

/// The namespace, where the kernel tells it to sockops programs.
#[inline(always)]
fn netns_cookie(ctx: &SockOpsContext) -> u64 {
    if HAS_SOCKOPS_NETNS_COOKIE.load() == 0 {
        return 0;
    }
    // SAFETY: a plain helper call on the context; the branch is dead where the helper does not exist.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// `remote_port` is in network order, in the upper half on little-endian machines.
#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> u16 {
    u32::from_be(ctx.remote_port()) as u16
}

/// `local_port` is in host order.
#[inline(always)]
fn local_port(ctx: &SockOpsContext) -> u16 {
    ctx.local_port() as u16
}

/// The socket; null while it is only a request.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: a field of the kernel's context (5.3).
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}
