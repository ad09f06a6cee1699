//! `getpeername4` and `getpeername6`: an Agent that asks for its peer sees the one it connected to.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use proxy_ebpf::{Address, Counter, Original};

use crate::maps::{CLIENT, count, load};

/// The only value that these hooks may return.
const OK: i32 = 1;

/// IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    // SAFETY: the kernel's context; the verifier checks each access.
    let (peer, port) = unsafe {
        (
            Address::from_v4((*address).user_ip4),
            u16::from_be((&raw const (*address).user_port).read_volatile() as u16),
        )
    };
    if let Some(original) = rewritten(&ctx, &peer, port)
        && let Some(word) = original.address.v4()
    {
        // SAFETY: as above; both fields are writable for this hook (5.8).
        unsafe {
            (&raw mut (*address).user_ip4).write_volatile(word);
            (&raw mut (*address).user_port).write_volatile(u32::from(original.port.to_be()));
        }
        count(Counter::PeerAnswered);
    }
    OK
}

/// IPv6 sockets; an IPv4-mapped peer stays IPv4-mapped.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    let address = ctx.sock_addr;
    // SAFETY: as above; constant indices, as the verifier wants them.
    let (peer, port) = unsafe {
        let ip = &raw const (*address).user_ip6;
        let words = [
            (&raw const (*ip)[0]).read_volatile(),
            (&raw const (*ip)[1]).read_volatile(),
            (&raw const (*ip)[2]).read_volatile(),
            (&raw const (*ip)[3]).read_volatile(),
        ];
        (
            Address { words },
            u16::from_be((&raw const (*address).user_port).read_volatile() as u16),
        )
    };
    if let Some(original) = rewritten(&ctx, &peer, port) {
        let words = original.address.words;
        // SAFETY: as above.
        unsafe {
            let ip = &raw mut (*address).user_ip6;
            (&raw mut (*ip)[0]).write_volatile(words[0]);
            (&raw mut (*ip)[1]).write_volatile(words[1]);
            (&raw mut (*ip)[2]).write_volatile(words[2]);
            (&raw mut (*ip)[3]).write_volatile(words[3]);
            (&raw mut (*address).user_port).write_volatile(u32::from(original.port.to_be()));
        }
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
