//! `connect4` and `connect6`: a selected Agent's connection goes to our listener, and its socket remembers whereto it
//! meant to go and which process connected it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_set_retval},
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use proxy_ebpf::{
    Address, Attempt, Counter, EVENT_INTERCEPTED, EVENT_LET_GO, EVENT_REFUSED, Event, Original, PASSED_OWN,
    Passed, Reason, Settings, Skip,
};

use crate::maps::{
    CLIENT, HAS_SET_RETVAL, NAMESPACES, count, forget, listener_port, note, selected, settings, store,
};
use crate::report::report;
use crate::sock_addr;

/// The kernel goes on with the connect.
const ALLOW: i32 = 1;
/// The kernel ends the connect with EPERM, or with what `bpf_set_retval` said.
const DENY: i32 = 0;
/// ECONNREFUSED: what an Agent sees of a peer that is down, and retries.
const ECONNREFUSED: i32 = 111;

/// What to do with a connection.
enum Verdict {
    /// Leave it alone, with what the socket carries.
    Keep,
    /// Leave it alone, and forget what the socket carried.
    Forget,
    /// The same, with a note of what it is should it go to an intake.
    Pass(Passed),
    /// Make the connect fail.
    Refuse,
    /// Send it to the listener on this port.
    Rewrite(u16),
}

/// IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context of an IPv4 connect hook.
    let (destination, port) = unsafe { sock_addr::read_v4(ctx.sock_addr) };
    match decide(&ctx, destination, port) {
        Verdict::Rewrite(listener) => {
            // SAFETY: as above.
            unsafe { sock_addr::write_v4(ctx.sock_addr, Address::LOOPBACK_V4.words[3], listener) };
            ALLOW
        }
        verdict => finish(&ctx, &verdict),
    }
}

/// IPv6 sockets, IPv4-mapped destinations among them.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context of an IPv6 connect hook.
    let (destination, port) = unsafe { sock_addr::read_v6(ctx.sock_addr) };
    match decide(&ctx, destination, port) {
        Verdict::Rewrite(listener) => {
            // SAFETY: as above.
            unsafe { sock_addr::write_v6(ctx.sock_addr, destination.loopback().words, listener) };
            ALLOW
        }
        verdict => finish(&ctx, &verdict),
    }
}

/// All but the rewriting, for both families.
#[inline(always)]
fn decide(ctx: &SockAddrContext, destination: Address, port: u16) -> Verdict {
    let Some(settings) = settings() else {
        return Verdict::Forget;
    };
    // SAFETY: plain helper calls on the kernel's context.
    let attempt = unsafe {
        Attempt {
            protocol: (*ctx.sock_addr).protocol,
            destination,
            port,
            cgroup: bpf_get_current_cgroup_id(),
        }
    };
    if let Some(skip) = proxy_ebpf::skip(settings, &attempt) {
        if let Some(counter) = skip.counter() {
            count(counter);
        }
        return match skip {
            // A loopback destination may be the work of another copy of this program, whose note must stay.
            Skip::Local | Skip::NotTcp => Verdict::Keep,
            Skip::Disabled => Verdict::Forget,
            Skip::Own => pass(&attempt, PASSED_OWN),
            Skip::Port => pass(&attempt, Reason::Around as u32),
        };
    }
    if !selected(&destination) {
        count(Counter::NotSelectedDestination);
        return pass(&attempt, Reason::Around as u32);
    }
    // The hooks are attached to a new Agent's cgroup before anybody looked where it lives: until its namespace is known,
    // the policy holds, and no connection slips through.
    let Some(network) = network(ctx) else {
        return unavailable(
            settings,
            &attempt,
            Counter::RefusedUnknownNetns,
            Counter::OpenUnknownNetns,
            Reason::UnknownNetns,
        );
    };
    let socket = socket(ctx);
    if socket.is_null() {
        return unavailable(
            settings,
            &attempt,
            Counter::RefusedNoStorage,
            Counter::OpenNoStorage,
            Reason::NoMemory,
        );
    }
    // SAFETY: not null, from the context.
    if unsafe { (&raw const (*socket).bound_dev_if).read_volatile() } != 0 {
        // Rewritten, it would send packets for 127.0.0.1 out of that device and hang until its time-out.
        return unavailable(
            settings,
            &attempt,
            Counter::RefusedBoundDevice,
            Counter::OpenBoundDevice,
            Reason::BoundDevice,
        );
    }
    let Some(listener) = listener_port(destination.slot(network)) else {
        return unavailable(
            settings,
            &attempt,
            Counter::RefusedNoListener,
            Counter::OpenNoListener,
            Reason::NoListener,
        );
    };
    let original = Original {
        address: destination,
        port,
        listener_port: listener,
        process: process(),
    };
    if !store(&CLIENT, socket, &original) {
        return unavailable(
            settings,
            &attempt,
            Counter::RefusedNoStorage,
            Counter::OpenNoStorage,
            Reason::NoMemory,
        );
    }
    count(match destination.v4() {
        Some(_) => Counter::InterceptedV4,
        None => Counter::InterceptedV6,
    });
    tell(EVENT_INTERCEPTED, &attempt, listener.into());
    Verdict::Rewrite(listener)
}

/// A selected connection that we cannot take: the policy decides.
#[inline(always)]
fn unavailable(
    settings: &Settings,
    attempt: &Attempt,
    refused: Counter,
    open: Counter,
    reason: Reason,
) -> Verdict {
    if settings.closed() {
        count(refused);
        tell(EVENT_REFUSED, attempt, refused as u32);
        Verdict::Refuse
    } else {
        count(open);
        tell(EVENT_LET_GO, attempt, open as u32);
        // Counted as a leak when its SYN leaves, not before: `sockops` sees whether it does, and whereto.
        pass(attempt, reason as u32)
    }
}

/// Leaves it alone, with a note.
#[inline(always)]
fn pass(attempt: &Attempt, state: u32) -> Verdict {
    Verdict::Pass(Passed {
        cgroup: attempt.cgroup,
        process: process(),
        state,
    })
}

#[inline(always)]
fn tell(what: u32, attempt: &Attempt, detail: u32) {
    report(Event {
        destination: attempt.destination,
        destination_port: attempt.port,
        what,
        detail,
        ..Event::default()
    });
}

/// The verdicts that change no address.
#[inline(always)]
fn finish(ctx: &SockAddrContext, verdict: &Verdict) -> i32 {
    match verdict {
        Verdict::Keep | Verdict::Rewrite(_) => ALLOW,
        Verdict::Forget => {
            forget(&CLIENT, socket(ctx));
            ALLOW
        }
        Verdict::Pass(passed) => {
            forget(&CLIENT, socket(ctx));
            note(socket(ctx), passed);
            ALLOW
        }
        Verdict::Refuse => {
            forget(&CLIENT, socket(ctx));
            if HAS_SET_RETVAL.load() != 0 {
                // SAFETY: a plain helper call; the branch is dead where the helper does not exist.
                unsafe { bpf_set_retval(-ECONNREFUSED) };
            }
            DENY
        }
    }
}

/// The number of the network that the connecting socket is in; `None` when we do not serve it.
#[inline(always)]
fn network(ctx: &SockAddrContext) -> Option<u32> {
    // SAFETY: a plain helper call on the context (5.7).
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: without preallocation an entry is freed after an RCU grace period, which no program run outlives.
    unsafe { NAMESPACES.get(cookie) }.map(|namespace| namespace.network)
}

/// The process that connects, which need not be the one that made the socket. The hook runs in the calling thread; the
/// upper half is its thread group. Connect hooks may ask since 5.7 ("bpf: Enable retrival of pid/tgid/comm from bpf cgroup
/// hooks").
#[inline(always)]
fn process() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The connecting socket.
#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: a field of the kernel's context (5.3).
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}
