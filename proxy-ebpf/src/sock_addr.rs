//! The address in the context of the connect and getpeername hooks: read and written as the verifier wants it.
//!
//! Indices are constant, because computed context offsets are refused. Accesses are volatile, because LLVM would merge
//! neighbouring words into one store of eight bytes, which kernels before 5.3 and some contexts since refuse.

use aya_ebpf::bindings::bpf_sock_addr;
use proxy_ebpf::Address;

/// Address and port of an IPv4 hook.
///
/// # Safety
/// `context` is the kernel's context of an IPv4 hook.
#[inline(always)]
pub unsafe fn read_v4(context: *const bpf_sock_addr) -> (Address, u16) {
    // SAFETY: promised by the caller; the verifier checks each access. There is no safe accessor in aya.
    unsafe { (Address::from_v4((*context).user_ip4), port(context)) }
}

/// Address and port of an IPv6 hook; IPv4-mapped addresses stay as they are.
///
/// # Safety
/// `context` is the kernel's context of an IPv6 hook.
#[inline(always)]
pub unsafe fn read_v6(context: *const bpf_sock_addr) -> (Address, u16) {
    // SAFETY: as in `read_v4`.
    unsafe {
        let ip = &raw const (*context).user_ip6;
        let words = [
            (&raw const (*ip)[0]).read_volatile(),
            (&raw const (*ip)[1]).read_volatile(),
            (&raw const (*ip)[2]).read_volatile(),
            (&raw const (*ip)[3]).read_volatile(),
        ];
        (Address { words }, port(context))
    }
}

/// Replaces address and port of an IPv4 hook.
///
/// # Safety
/// `context` is the kernel's context of an IPv4 hook that may write both (connect; getpeername since 5.8).
#[inline(always)]
pub unsafe fn write_v4(context: *mut bpf_sock_addr, word: u32, port: u16) {
    // SAFETY: promised by the caller.
    unsafe {
        (&raw mut (*context).user_ip4).write_volatile(word);
        (&raw mut (*context).user_port).write_volatile(u32::from(port.to_be()));
    }
}

/// Replaces address and port of an IPv6 hook.
///
/// # Safety
/// `context` is the kernel's context of an IPv6 hook that may write both (connect; getpeername since 5.8).
#[inline(always)]
pub unsafe fn write_v6(context: *mut bpf_sock_addr, words: [u32; 4], port: u16) {
    // SAFETY: promised by the caller.
    unsafe {
        let ip = &raw mut (*context).user_ip6;
        (&raw mut (*ip)[0]).write_volatile(words[0]);
        (&raw mut (*ip)[1]).write_volatile(words[1]);
        (&raw mut (*ip)[2]).write_volatile(words[2]);
        (&raw mut (*ip)[3]).write_volatile(words[3]);
        (&raw mut (*context).user_port).write_volatile(u32::from(port.to_be()));
    }
}

/// The context has the port in network order in a 32-bit field.
///
/// # Safety
/// `context` is the kernel's context.
#[inline(always)]
unsafe fn port(context: *const bpf_sock_addr) -> u16 {
    // SAFETY: promised by the caller.
    u16::from_be(unsafe { (&raw const (*context).user_port).read_volatile() } as u16)
}
