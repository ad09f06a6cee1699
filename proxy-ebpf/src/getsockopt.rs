//! `getsockopt` in the proxy's cgroup: tells the original destination from the accepted socket's storage, so that the worker
//! needs no bpf call. It asks in our own words; `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` are answered too, for whoever
//! asks as behind an iptables REDIRECT. To `SO_PEERCRED`, whose answer for TCP says nothing (pid 0, no user, no group), it
//! adds the process that connected, from the same place.
//!
//! Every other question keeps the kernel's answer to the last bit.

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use proxy_ebpf::{ASK_LEVEL, ASK_ORIGINAL, Address, Counter, Original};

use crate::maps::{ACCEPTED, PAGE_SIZE, count, load};

/// The kernel's answer stands, or ours when we wrote one. (0 would be EPERM.)
const OK: i32 = 1;

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
const ORIGINAL_DST: i32 = 80;
/// `SOL_SOCKET` and `SO_PEERCRED` (asm-generic/socket.h), the same on every little-endian machine but MIPS and PowerPC, for
/// which nobody builds us.
const SOL_SOCKET: i32 = 1;
const SO_PEERCRED: i32 = 17;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `struct sockaddr_in`
#[repr(C)]
struct SockAddrIn {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6`
#[repr(C)]
struct SockAddrIn6 {
    family: u16,
    port: u16,
    flow: u32,
    address: [u32; 4],
    scope: u32,
}

/// `struct ucred` (linux/socket.h)
#[repr(C)]
struct Credentials {
    process: u32,
    user: u32,
    group: u32,
}

/// Answers these questions.
#[cgroup_sockopt(getsockopt)]
pub fn original_dst(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    // SAFETY: the kernel's context; the verifier checks each access.
    let (level, name) = unsafe { ((*option).level, (*option).optname) };
    let netfilters = name == ORIGINAL_DST && (level == SOL_IP || level == SOL_IPV6);
    if netfilters || (name == ASK_ORIGINAL && level == ASK_LEVEL) {
        // SAFETY: as above.
        let socket = unsafe { (*option).__bindgen_anon_1.sk };
        if let Some(original) = load(&ACCEPTED, socket)
            && answer(option, level, &original)
        {
            count(Counter::OriginalDstAnswered);
            return OK;
        }
    }
    if name == SO_PEERCRED && level == SOL_SOCKET {
        // SAFETY: as above.
        let socket = unsafe { (*option).__bindgen_anon_1.sk };
        // A socket that no connection of an Agent became has none: Unix sockets and all others keep the kernel's answer.
        if let Some(original) = load(&ACCEPTED, socket) {
            add_process(option, &original);
        }
    }
    // A result larger than a page is not copied back from the program's buffer; a length of 0 says that the caller's
    // buffer is to be left as the kernel filled it. Without it the caller would get EFAULT.
    // SAFETY: as above; `optlen` is writable.
    unsafe {
        if i64::from((&raw const (*option).optlen).read_volatile()) > i64::from(PAGE_SIZE.load()) {
            (&raw mut (*option).optlen).write_volatile(0);
        }
    }
    OK
}

/// Puts the process into the kernel's answer, whose length and other parts stay. An answer that was cut short, because
/// the caller's buffer was, stays as it is.
#[inline(always)]
fn add_process(option: *mut bpf_sockopt, original: &Original) {
    // SAFETY: the kernel's context. Volatile: the verifier allows loads of four bytes only, which LLVM would merge.
    let (start, end, length, result) = unsafe {
        (
            (*option).__bindgen_anon_2.optval as usize,
            (*option).__bindgen_anon_3.optval_end as usize,
            (&raw const (*option).optlen).read_volatile(),
            (&raw const (*option).retval).read_volatile(),
        )
    };
    if result != 0 || length != size_of::<Credentials>() as i32 || start + size_of::<Credentials>() > end {
        return;
    }
    // SAFETY: the verifier sees the bound just checked; the buffer belongs to this call.
    unsafe { (&raw mut (*(start as *mut Credentials)).process).write(original.process) };
}

/// Writes the socket address when the family fits the question and the buffer is large enough.
#[inline(always)]
fn answer(option: *mut bpf_sockopt, level: i32, original: &Original) -> bool {
    // SAFETY: the kernel's context.
    let (start, end) = unsafe {
        (
            (*option).__bindgen_anon_2.optval as usize,
            (*option).__bindgen_anon_3.optval_end as usize,
        )
    };
    match (level, original.address.v4()) {
        (SOL_IP, Some(word)) => {
            if start + size_of::<SockAddrIn>() > end {
                return false;
            }
            // SAFETY: the verifier sees the bound just checked; the buffer belongs to this call.
            unsafe {
                (start as *mut SockAddrIn).write(SockAddrIn {
                    family: AF_INET,
                    port: original.port.to_be(),
                    address: word,
                    zero: [0; 2],
                });
            }
            done(option, size_of::<SockAddrIn>());
            true
        }
        // Our own question has one answer for both families: IPv4 is mapped.
        (SOL_IPV6, None) | (ASK_LEVEL, _) => {
            if start + size_of::<SockAddrIn6>() > end {
                return false;
            }
            let Address { words } = original.address;
            // SAFETY: as above.
            unsafe {
                (start as *mut SockAddrIn6).write(SockAddrIn6 {
                    family: AF_INET6,
                    port: original.port.to_be(),
                    flow: 0,
                    address: words,
                    scope: 0,
                });
            }
            done(option, size_of::<SockAddrIn6>());
            true
        }
        _ => false,
    }
}

/// Success with this many bytes. Volatile: LLVM would merge the two stores into one of eight bytes, which the verifier
/// refuses (seen on 6.18).
#[inline(always)]
fn done(option: *mut bpf_sockopt, length: usize) {
    // SAFETY: the kernel's context; both fields are writable for getsockopt.
    unsafe {
        (&raw mut (*option).optlen).write_volatile(length as i32);
        (&raw mut (*option).retval).write_volatile(0);
    }
}
