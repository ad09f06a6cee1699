//! `connect4` and `connect6`: a selected Agent's connection goes to our listener, and its socket remembers whereto.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use proxy_ebpf::{Address, Attempt, Counter, Original, Settings, Skip};

use crate::maps::{CLIENT, HAS_SET_RETVAL, count, forget, listener_port, selected, settings, store};

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
    let address = ctx.sock_addr;
    // SAFETY: the kernel's context; the verifier checks each access. There is no safe accessor in aya.
    let (destination, port) = unsafe { (Address::from_v4((*address).user_ip4), user_port(address)) };
    match decide(&ctx, destination, port) {
        Verdict::Rewrite(listener) => {
            // SAFETY: as above; both fields are writable for connect hooks.
            unsafe {
                (&raw mut (*address).user_ip4).write_volatile(Address::LOOPBACK_V4.words[3]);
                (&raw mut (*address).user_port).write_volatile(u32::from(listener.to_be()));
            }
            ALLOW
        }
        verdict => finish(&ctx, &verdict),
    }
}

/// IPv6 sockets, IPv4-mapped destinations among them.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    // SAFETY: as in `connect4`. Constant indices: the verifier refuses computed context offsets.
    let (destination, port) = unsafe {
        let ip = &raw const (*address).user_ip6;
        let words = [
            (&raw const (*ip)[0]).read_volatile(),
            (&raw const (*ip)[1]).read_volatile(),
            (&raw const (*ip)[2]).read_volatile(),
            (&raw const (*ip)[3]).read_volatile(),
        ];
        (Address { words }, user_port(address))
    };
    match decide(&ctx, destination, port) {
        Verdict::Rewrite(listener) => {
            let loopback = destination.loopback();
            // SAFETY: as above. Volatile: LLVM would merge neighbouring words into one store of eight bytes, which
            // kernels before 5.3 and some contexts since refuse.
            unsafe {
                let ip = &raw mut (*address).user_ip6;
                (&raw mut (*ip)[0]).write_volatile(loopback.words[0]);
                (&raw mut (*ip)[1]).write_volatile(loopback.words[1]);
                (&raw mut (*ip)[2]).write_volatile(loopback.words[2]);
                (&raw mut (*ip)[3]).write_volatile(loopback.words[3]);
                (&raw mut (*address).user_port).write_volatile(u32::from(listener.to_be()));
            }
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

/// The destination port; the context has it in network order in a 32-bit field.
///
/// # Safety
/// `address` is the kernel's context.
#[inline(always)]
unsafe fn user_port(address: *const bpf_sock_addr) -> u16 {
    // SAFETY: promised by the caller.
    u16::from_be(unsafe { (&raw const (*address).user_port).read_volatile() } as u16)
}
