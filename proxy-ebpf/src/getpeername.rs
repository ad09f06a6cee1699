//! `getpeername4` and `getpeername6`: an Agent that asks for its peer sees the one it connected to.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use proxy_ebpf::{Address, Counter, Original};

use crate::maps::{CLIENT, count, load};
use crate::sock_addr;

/// The only value that these hooks may return.
const OK: i32 = 1;

/// IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context of an IPv4 getpeername hook.
    let (peer, port) = unsafe { sock_addr::read_v4(ctx.sock_addr) };
    if let Some(original) = rewritten(&ctx, &peer, port)
        && let Some(word) = original.address.v4()
    {
        // SAFETY: as above.
        unsafe { sock_addr::write_v4(ctx.sock_addr, word, original.port) };
        count(Counter::PeerAnswered);
    }
    OK
}

/// IPv6 sockets; an IPv4-mapped peer stays IPv4-mapped.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context of an IPv6 getpeername hook.
    let (peer, port) = unsafe { sock_addr::read_v6(ctx.sock_addr) };
    if let Some(original) = rewritten(&ctx, &peer, port) {
        // SAFETY: as above.
        unsafe { sock_addr::write_v6(ctx.sock_addr, original.address.words, original.port) };
        count(Counter::PeerAnswered);
    }
    OK
}

/// The original destination, when the peer that the kernel shows is the one we rewrote to.
#[inline(always)]
fn rewritten(ctx: &SockAddrContext, peer: &Address, port: u16) -> Option<Original> {
    // SAFETY: a field of the kernel's context.
    let socket = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    load(&CLIENT, socket).filter(|original| original.is_rewritten_to(peer, port))
}
