//! seccomp: the system calls that a worker makes, found by tracing the test suites; each group says what for.
//!
//! What is in no list does not exist (`ENOSYS`): a C library that is newer than this list falls back on what it did before. What only
//! somebody who took the process over would call ends it, and the master tells of it.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Made as they are needed, whatever the arguments.
const ALLOWED: &[&[i64]] = &[
    // Connections. New ones are restricted below by their family.
    &[
        libc::SYS_accept4,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_listen,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_sendto,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
    ],
    // The runtime: waiting, waking, signals to itself by a pair of sockets.
    &[
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_pipe2,
        libc::SYS_ppoll,
        libc::SYS_socketpair,
    ],
    // Files, as far as Landlock and permissions let them be opened.
    &[
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_getcwd,
        libc::SYS_getdents64,
        libc::SYS_lseek,
        libc::SYS_newfstatat,
        libc::SYS_openat,
        libc::SYS_pread64,
        libc::SYS_read,
        libc::SYS_readlinkat,
        libc::SYS_readv,
        libc::SYS_statx,
        libc::SYS_write,
        libc::SYS_writev,
    ],
    // Memory. `mmap` and `mprotect` are restricted below.
    &[
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_mremap,
        libc::SYS_munmap,
    ],
    // Threads. `clone` is restricted below.
    &[
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_membarrier,
        libc::SYS_restart_syscall,
        libc::SYS_rseq,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_sigaltstack,
    ],
    // Time, chance, and who we are.
    &[
        libc::SYS_clock_getres,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_gettimeofday,
        libc::SYS_getuid,
        libc::SYS_nanosleep,
        libc::SYS_sysinfo,
        libc::SYS_uname,
    ],
    OLD,
];

/// Calls that newer architectures never had.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// Nothing in a worker has any of these in its way, not even by mistake: programs, other processes, the kernel, namespaces.
const FATAL: &[i64] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsopen,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Families of sockets: the intake and DNS; and those by which the C library asks for names and looks at our own addresses.
const FAMILIES: [i32; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];

/// `libc::FIONBIO`, as wide as the lower half of an argument.
const FIONBIO: i32 = 0x5421;

/// Why the filters could not be put in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallsError {
    #[error("the filter is not valid: {0}")]
    Made(#[from] BackendError),
    #[error("the kernel refuses the filter: {0}")]
    Refused(#[from] Error),
    #[error("no filter is made for the architecture {0}")]
    Architecture(&'static str),
}

/// From now on, for this thread and those it starts. Needs `no_new_privs`.
pub(super) fn restrict() -> Result<(), CallsError> {
    let architecture = std::env::consts::ARCH;
    let target = || TargetArch::try_from(architecture).map_err(|_| CallsError::Architecture(architecture));
    // ENOSYS, and not EPERM: see the head of this file.
    let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let allowed = SeccompFilter::new(allowed()?, missing, SeccompAction::Allow, target()?)?;
    let fatal = FATAL.iter().map(|call| (*call, Vec::new())).collect();
    let fatal = SeccompFilter::new(fatal, SeccompAction::Allow, SeccompAction::KillProcess, target()?)?;
    // The stricter answer counts. The one that allows the call by which filters are set must come last: it does not allow it.
    for filter in [fatal, allowed] {
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .copied()
        .flatten()
        .map(|call| (*call, Vec::new()))
        .collect();
    let families = FAMILIES.iter().map(|family| when([(0, Bits::All, *family)]));
    calls.extend([
        (libc::SYS_socket, families.collect::<Result<_, _>>()?),
        (
            libc::SYS_clone,
            vec![when([(0, Bits::Of(libc::CLONE_THREAD), libc::CLONE_THREAD)])?],
        ),
        // Memory is never writable and executable at once, and does not become executable. (As systemd's
        // MemoryDenyWriteExecute: the C library may still load its modules for names.)
        (
            libc::SYS_mmap,
            vec![
                when([(2, Bits::Of(libc::PROT_EXEC), 0)])?,
                when([(2, Bits::Of(libc::PROT_WRITE), 0)])?,
            ],
        ),
        (
            libc::SYS_mprotect,
            vec![when([(2, Bits::Of(libc::PROT_EXEC), 0)])?],
        ),
        // Names of threads.
        (libc::SYS_prctl, vec![when([(0, Bits::All, libc::PR_SET_NAME)])?]),
        // Non-blocking, as the standard library asks for it.
        (libc::SYS_ioctl, vec![when([(1, Bits::All, FIONBIO)])?]),
        // A look at our own limits; the last but one argument is what they should become.
        (
            libc::SYS_prlimit64,
            vec![when([(0, Bits::All, 0), (2, Bits::All, 0)])?],
        ),
        // abort(): a signal to a thread of our own.
        (
            libc::SYS_tgkill,
            vec![when([(0, Bits::All, std::process::id().cast_signed())])?],
        ),
    ]);
    Ok(calls)
}

/// What is compared of an argument.
#[derive(Clone, Copy)]
enum Bits {
    /// Its lower half.
    All,
    /// These bits.
    Of(i32),
}

/// When all of these arguments, by index, have these values.
fn when<const N: usize>(arguments: [(u8, Bits, i32); N]) -> Result<SeccompRule, BackendError> {
    let conditions = arguments.into_iter().map(|(index, bits, value)| {
        let comparison = match bits {
            Bits::All => SeccompCmpOp::Eq,
            Bits::Of(mask) => SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned())),
        };
        SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            comparison,
            u64::from(value.cast_unsigned()),
        )
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}
