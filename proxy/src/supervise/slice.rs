//! The time slice of a data thread: how long it keeps a processor that others wait for.
//!
//! By default that is some milliseconds. A data thread moves bytes between others, who have nothing to do until it has: a
//! client, an intake's connection, and another data thread that share its processor wait out the whole slice. With a short
//! one they take turns often, it is woken sooner (the scheduler prefers who asks for less at a time), and its share of the
//! processor is what it was.

use std::io;

use nix::libc;

/// In nanoseconds; the least that the kernel grants (`__setparam_fair` in `kernel/sched/syscalls.c`, Linux 6.12).
const SLICE: u64 = 100_000;

/// Asks for a short slice for the calling thread. Its policy and nice value stay as they are; a thread of a real-time policy is left
/// alone. Kernels before 6.12 have one slice for all and ignore the wish.
///
/// # Errors
/// The kernel, or a filter of system calls, refuses. Everything works without.
pub fn shorten() -> io::Result<()> {
    let mut attributes = of_this_thread()?;
    let ordinary = [libc::SCHED_OTHER, libc::SCHED_BATCH]
        .iter()
        .any(|policy| u32::try_from(*policy) == Ok(attributes.sched_policy));
    if !ordinary {
        return Ok(());
    }
    attributes.sched_runtime = SLICE;
    // SAFETY: the structure is live and says its own size; 0 is the calling thread. nix has no such call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0) };
    done(result)
}

fn of_this_thread() -> io::Result<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the structure is live and as large as said; 0 is the calling thread. nix has no such call.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    done(result).map(|()| attributes)
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the slice changes, and only of the thread that asks; before 6.12 nothing does.
    #[test]
    fn a_thread_gets_a_short_slice() {
        let before = of_this_thread().unwrap();
        let after = std::thread::spawn(|| {
            shorten().unwrap();
            of_this_thread().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(
            (after.sched_policy, after.sched_nice, after.sched_priority),
            (before.sched_policy, before.sched_nice, before.sched_priority)
        );
        let slices = before.sched_runtime > 0;
        assert_eq!(after.sched_runtime, if slices { SLICE } else { 0 });
        assert_eq!(of_this_thread().unwrap().sched_runtime, before.sched_runtime);
    }
}
