//! The system calls that neither std nor nix offers: every `unsafe` of the kernel side is in this file.

use std::ffi::{CStr, c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `SO_NETNS_COOKIE` (asm-generic/socket.h, kernel 5.14).
const SO_NETNS_COOKIE: c_int = 71;
/// `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC` (linux/mount.h, kernel 5.2).
const CLOEXEC: c_uint = 1;
/// `FSCONFIG_CMD_CREATE`
const CMD_CREATE: c_uint = 6;

/// A mount of cgroup2 that is attached nowhere: visible through the descriptor only, gone with it. Needs CAP_SYS_ADMIN.
pub(super) fn detached_cgroup2() -> io::Result<OwnedFd> {
    let kind: &CStr = c"cgroup2";
    // SAFETY: `kind` is a live C string; the call returns a new descriptor or -1. No safe binding exists.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: CMD_CREATE takes no key, value or auxiliary. No safe binding exists.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            CMD_CREATE,
            null,
            null,
            0 as c_int,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain integers; the call returns a new descriptor or -1. No safe binding exists.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0 as c_uint) })
}

/// The cookie of a socket's network namespace; `None` when the kernel has none (before 5.14).
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: value and length are live and of the size given. nix has no such option.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(Some(cookie));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT) => Ok(None),
        _ => Err(error),
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = c_int::try_from(result).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Registers a descriptor that `inner` owns with the runtime, for reading.
///
/// # Errors
/// The runtime's epoll refuses it.
pub(super) fn register<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `OwnsDescriptor` promises one open descriptor for the whole life of `inner`, which moves into the result.
    // Needed because tokio cannot see from `AsRawFd` alone that the descriptor is owned.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(Into::into)
}

/// A type that keeps one descriptor open for as long as it lives, and whose `as_raw_fd` always returns that one.
pub(super) trait OwnsDescriptor: AsRawFd {}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn sockets_of_one_namespace_have_one_cookie() {
        let a = TcpListener::bind("127.0.0.1:0").unwrap();
        let b = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = netns_cookie(a.as_fd()).unwrap();
        assert_eq!(cookie, netns_cookie(b.as_fd()).unwrap());
        assert_ne!(cookie, Some(0));
    }

    #[test]
    fn no_socket_no_cookie() {
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert_eq!(
            netns_cookie(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTSOCK)
        );
    }
}
