//! `connect4` and `connect6`: a selected Agent's connection goes to our listener, and its socket remembers whereto.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use proxy_ebpf::{Address, Attempt, Counter, Original, Settings, Skip};

use crate::maps::{CLIENT, HAS_SET_RETVAL, count, forget, listener_port, selected, settings, store};
use crate::sock_addr;

/// The kernel goes on with the connect.
const ALLOW: i32 = 1;
/// The kernel ends the connect with EPERM, or with what `bpf_set_retval` said.
const DENY: i32 = 0;
/// ECONNREFUSED: what an Agent sees of a peer that is down, and retries.
const ECONNREFUSED: i32 = 111;

/// What to do with a connection.
enum Verdict {
    /// Leave it alone; true: forget what the socket carried.
    Pass(bool),
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
        return Verdict::Pass(true);
    };
    // SAFETY: plain helper calls on the kernel's context.
    let attempt = unsafe {
        Attempt {
            protocol: (*ctx.sock_addr).protocol,
            destination,
            port,
            cgroup: bpf_get_current_cgroup_id(),
            netns_cookie: if settings.netns_cookie == 0 {
                0
            } else {
                bpf_get_netns_cookie(ctx.as_ptr())
            },
        }
    };
    if let Some(skip) = proxy_ebpf::skip(settings, &attempt) {
        if let Some(counter) = skip.counter() {
            count(counter);
        }
        // A loopback destination may be the work of another copy of this program, whose note must stay.
        return Verdict::Pass(!matches!(skip, Skip::Local | Skip::NotTcp));
    }
    if !selected(&destination) {
        count(Counter::NotSelectedDestination);
        return Verdict::Pass(true);
    }
    let socket = socket(ctx);
    if socket.is_null() {
        return unavailable(
            ctx,
            settings,
            &attempt,
            Counter::RefusedNoStorage,
            Counter::OpenNoStorage,
        );
    }
    // SAFETY: not null, from the context.
    if unsafe { (&raw const (*socket).bound_dev_if).read_volatile() } != 0 {
        // Rewritten, it would send packets for 127.0.0.1 out of that device and hang until its time-out.
        return unavailable(
            ctx,
            settings,
            &attempt,
            Counter::RefusedBoundDevice,
            Counter::OpenBoundDevice,
        );
    }
    let Some(listener) = listener_port(destination.slot()) else {
        return unavailable(
            ctx,
            settings,
            &attempt,
            Counter::RefusedNoListener,
            Counter::OpenNoListener,
        );
    };
    let original = Original {
        address: destination,
        port,
        listener_port: listener,
    };
    if !store(&CLIENT, socket, &original) {
        return unavailable(
            ctx,
            settings,
            &attempt,
            Counter::RefusedNoStorage,
            Counter::OpenNoStorage,
        );
    }
    count(match destination.v4() {
        Some(_) => Counter::InterceptedV4,
        None => Counter::InterceptedV6,
    });
    debug!(
        ctx,
        "intercepted connect to [{:i}]:{} -> port {}",
        destination.octets(),
        port,
        listener
    );
    Verdict::Rewrite(listener)
}

/// A selected connection that we cannot take: the policy decides.
#[inline(always)]
fn unavailable(
    ctx: &SockAddrContext,
    settings: &Settings,
    attempt: &Attempt,
    refused: Counter,
    open: Counter,
) -> Verdict {
    let octets = attempt.destination.octets();
    if settings.closed() {
        count(refused);
        debug!(
            ctx,
            "refused connect to [{:i}]:{}: counter {}", octets, attempt.port, refused as u32
        );
        Verdict::Refuse
    } else {
        count(open);
        debug!(
            ctx,
            "let go connect to [{:i}]:{}: counter {}", octets, attempt.port, open as u32
        );
        Verdict::Pass(true)
    }
}

/// The verdicts that change no address.
#[inline(always)]
fn finish(ctx: &SockAddrContext, verdict: &Verdict) -> i32 {
    match verdict {
        Verdict::Pass(false) | Verdict::Rewrite(_) => ALLOW,
        Verdict::Pass(true) => {
            forget(&CLIENT, socket(ctx));
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

/// The connecting socket.
#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: a field of the kernel's context (5.3).
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}
