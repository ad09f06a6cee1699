//! The system calls that neither std nor nix offers: every `unsafe` of the kernel side is in this file.

use std::ffi::{CStr, CString, c_int, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `SO_NETNS_COOKIE` (asm-generic/socket.h, kernel 5.14).
const SO_NETNS_COOKIE: c_int = 71;
/// `NS_GET_NSTYPE`: `_IO(0xb7, 3)` (linux/nsfs.h).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
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
    match option(socket, SO_NETNS_COOKIE) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The programs attached to a cgroup itself, not those it inherits, and the flags they were attached with
/// (`BPF_PROG_QUERY`, kernel 4.15).
pub(super) fn cgroup_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<(u32, Vec<u32>)> {
    /// The fields of `union bpf_attr` for this command, up to those that we use (linux/bpf.h).
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        reserved: u32,
    }
    /// `BPF_PROG_QUERY`
    const COMMAND: c_int = 16;
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target: u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: 64,
        reserved: 0,
    };
    // SAFETY: `query` and the array it points to are live for the call and as large as they say. aya asks this only for
    // network devices.
    let result = unsafe { libc::syscall(libc::SYS_bpf, COMMAND, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let count = (query.count as usize).min(ids.len());
    Ok((query.attach_flags, ids[..count].to_vec()))
}

/// Attaches a program to a cgroup by a link (`BPF_LINK_CREATE`, kernel 5.7): attached for as long as the descriptor or a pin is
/// there.
pub(super) fn link_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    /// The fields of `union bpf_attr` for this command, up to those that we use (linux/bpf.h).
    #[repr(C)]
    struct Create {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    /// `BPF_LINK_CREATE`
    const COMMAND: c_int = 28;
    let create = Create {
        program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        target: u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?,
        attach_type,
        flags: 0,
    };
    // SAFETY: `create` is live for the call and as large as it says; the call returns a new descriptor or -1. aya's link of a
    // getsockopt program can neither be pinned nor taken out of its wrapper.
    owned(unsafe { libc::syscall(libc::SYS_bpf, COMMAND, &raw const create, size_of::<Create>()) })
}

/// Pins an object of bpf (`BPF_OBJ_PIN`, kernel 4.4).
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    /// The fields of `union bpf_attr` for this command.
    #[repr(C)]
    struct Pin {
        path: u64,
        object: u32,
        flags: u32,
    }
    /// `BPF_OBJ_PIN`
    const COMMAND: c_int = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let pin = Pin {
        path: path.as_ptr() as u64,
        object: u32::try_from(object.as_raw_fd()).map_err(io::Error::other)?,
        flags: 0,
    };
    // SAFETY: `pin` and the C string it points to are live for the call. For links that were made by `link_to_cgroup`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, COMMAND, &raw const pin, size_of::<Pin>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Detaches the link that is pinned at `path`, at once (`BPF_LINK_DETACH`, kernel 5.9): whoever holds it besides has a link to
/// nothing. Without it the kernel detaches in a work queue, a moment after the last reference is gone.
pub(super) fn detach_pinned(path: &Path) -> io::Result<()> {
    /// The fields of `union bpf_attr` for `BPF_OBJ_GET`.
    #[repr(C)]
    struct Get {
        path: u64,
        object: u32,
        flags: u32,
    }
    /// `BPF_OBJ_GET` and `BPF_LINK_DETACH`
    const GET: c_int = 7;
    const DETACH: c_int = 34;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let get = Get {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    // SAFETY: `get` and the C string it points to are live for the call, which returns a new descriptor or -1. aya opens the pins
    // of links, and detaches none.
    let link = owned(unsafe { libc::syscall(libc::SYS_bpf, GET, &raw const get, size_of::<Get>()) })?;
    let link = u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the number of a live descriptor, the only field of `union bpf_attr` for this command.
    let result = unsafe { libc::syscall(libc::SYS_bpf, DETACH, &raw const link, size_of::<u32>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The cookie of a socket (`SO_COOKIE`, kernel 4.6).
pub(super) fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SO_COOKIE)
}

/// A socket option that is a number of 64 bits.
fn option(socket: BorrowedFd<'_>, name: c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: value and length are live and of the size given. nix has no such options.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// True when the open file is a network namespace: on nsfs, and of that type (`NS_GET_NSTYPE`, kernel 4.11).
pub(super) fn is_network_namespace(file: &File) -> io::Result<bool> {
    if fstatfs(file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(false);
    }
    // SAFETY: takes no argument, and the file system is the one that knows this request. nix has no such call.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kind == libc::CLONE_NEWNET)
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
    fn only_a_network_namespace_is_one() {
        for (path, expected) in [
            ("/proc/self/ns/net", true),
            ("/proc/self/ns/uts", false),
            ("/proc/self/stat", false),
        ] {
            let file = File::open(path).unwrap();
            assert_eq!(is_network_namespace(&file).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn sockets_have_cookies_of_their_own() {
        let a = TcpListener::bind("127.0.0.1:0").unwrap();
        let b = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = socket_cookie(a.as_fd()).unwrap();
        assert_eq!(cookie, socket_cookie(a.as_fd()).unwrap());
        assert_ne!(cookie, socket_cookie(b.as_fd()).unwrap());
    }

    #[test]
    fn no_socket_no_cookie() {
        let file = File::open("/proc/self/stat").unwrap();
        assert_eq!(
            netns_cookie(file.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTSOCK)
        );
    }
}
