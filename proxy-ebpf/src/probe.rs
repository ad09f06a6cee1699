//! `netns_probe`: tells user space the cookie of a network namespace on kernels without `SO_NETNS_COOKIE` (before 5.14).
//!
//! Attached to our own cgroup only while user space asks. The question is a UDP connect to an address that nobody else
//! connects to; the answer is kept under the socket's cookie, and the connect itself is refused.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use proxy_ebpf::{IPPROTO_UDP, PROBE_PORT, PROBE_V4};

use crate::maps::PROBED;
use crate::sock_addr;

/// The kernel goes on with the connect.
const ALLOW: i32 = 1;
/// The kernel ends the connect with EPERM.
const DENY: i32 = 0;

/// Answers the question, and lets every other connect pass.
#[cgroup_sock_addr(connect4)]
pub fn netns_probe(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context of an IPv4 connect hook.
    let (destination, port) = unsafe { sock_addr::read_v4(ctx.sock_addr) };
    // SAFETY: a field of the kernel's context.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol != IPPROTO_UDP || port != PROBE_PORT || destination.v4() != Some(PROBE_V4) {
        return ALLOW;
    }
    // SAFETY: plain helper calls on the context (4.18 and 5.7).
    let (socket, namespace) = unsafe {
        (
            bpf_get_socket_cookie(ctx.as_ptr()),
            bpf_get_netns_cookie(ctx.as_ptr()),
        )
    };
    // Without an answer user space reports that there was none.
    let _ = PROBED.insert(socket, namespace, 0);
    DENY
}
