//! System calls made inside of another process, as somebody would who had taken it over: by ptrace(2), which stops a thread of it
//! where it waits in the kernel and makes it call something else. The program that is tested needs nothing for it.
//!
//! x86_64 only: registers differ elsewhere.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came back with this.
    Value(u64),
    /// It was refused.
    Refused(Errno),
    /// The process was ended for it.
    Killed(Signal),
}

/// `syscall` is two bytes long.
const INSTRUCTION: u64 = 2;
/// Far below what the thread has on its stack, and its red zone: room for what an argument points to.
const ROOM: u64 = 16 * 1024;
/// Errors are the last page of numbers.
const ERRORS: u64 = u64::MAX - 4095;
/// What the kernel leaves behind for itself when a call is to be made once more (include/linux/errno.h).
const AGAIN: std::ops::RangeInclusive<i64> = 512..=516;

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A number.
    Number(u64),
    /// The address of these bytes.
    Bytes(&'static [u8]),
}

/// Makes the main thread of a process call something. It must be waiting in the kernel now and then.
pub fn call(process: Pid, number: i64, arguments: &[Argument]) -> Result<Outcome> {
    ptrace::seize(process, Options::PTRACE_O_TRACESYSGOOD).context("ptrace(PTRACE_SEIZE)")?;
    let outcome = traced(process, number, arguments);
    if !matches!(outcome, Ok(Outcome::Killed(_))) {
        // Fails when it is gone, which is told already.
        let _ = ptrace::detach(process, None);
    }
    outcome
}

fn traced(process: Pid, number: i64, arguments: &[Argument]) -> Result<Outcome> {
    let before = stop_in_a_call(process)?;
    let mut there = before;
    let mut values = [0; 6];
    let mut room = (before.rsp - ROOM) & !15;
    for (value, argument) in values.iter_mut().zip(arguments) {
        *value = match argument {
            Argument::Number(number) => *number,
            Argument::Bytes(bytes) => {
                let memory = OpenOptions::new()
                    .write(true)
                    .open(format!("/proc/{process}/mem"))?;
                memory.write_all_at(bytes, room)?;
                room += (bytes.len() as u64).next_multiple_of(16);
                room - (bytes.len() as u64).next_multiple_of(16)
            }
        };
    }
    [there.rdi, there.rsi, there.rdx, there.r10, there.r8, there.r9] = values;
    there.rax = number.cast_unsigned();
    // Not a call that was interrupted: nothing is to be made once more.
    there.orig_rax = u64::MAX;
    there.rip -= INSTRUCTION;
    ptrace::setregs(process, there)?;
    // To its beginning, and to its end.
    for _ in 0..2 {
        ptrace::syscall(process, None)?;
        match waitpid(process, None)? {
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Signaled(_, signal, _) => return Ok(Outcome::Killed(signal)),
            other => bail!("a call that was put in ended with {other:?}"),
        }
    }
    let after = ptrace::getregs(process)?;
    if after.rax == after.orig_rax {
        // Not answered but rolled back, with a signal that ends the process (seccomp_log and what follows in kernel/seccomp.c).
        ptrace::cont(process, None)?;
        return match waitpid(process, None)? {
            WaitStatus::Signaled(_, signal, _) => Ok(Outcome::Killed(signal)),
            other => bail!("after a call that was rolled back: {other:?}"),
        };
    }
    let result = after.rax;
    let mut back = before;
    if AGAIN.contains(&before.rax.cast_signed().wrapping_neg()) {
        back.rax = before.orig_rax;
        back.rip -= INSTRUCTION;
    }
    back.orig_rax = u64::MAX;
    ptrace::setregs(process, back)?;
    Ok(if result >= ERRORS {
        Outcome::Refused(Errno::from_raw(i32::try_from(result.wrapping_neg())?))
    } else {
        Outcome::Value(result)
    })
}

/// Stops the thread where it is in a system call: then the instruction before the next one makes calls.
fn stop_in_a_call(process: Pid) -> Result<user_regs_struct> {
    for _ in 0..100 {
        ptrace::interrupt(process)?;
        match waitpid(process, None)? {
            WaitStatus::PtraceEvent(..) => {}
            WaitStatus::Stopped(_, signal) => {
                ptrace::cont(process, signal)?;
                continue;
            }
            other => bail!("a process that was to be stopped: {other:?}"),
        }
        let registers = ptrace::getregs(process)?;
        if registers.orig_rax != u64::MAX {
            return Ok(registers);
        }
        ptrace::cont(process, None)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("process {process} is never found waiting in the kernel")
}

/// A thread of another process that stands still, as long as this lives and no longer.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops one thread; the others of its process go on.
    pub fn thread(thread: Pid) -> Result<Self> {
        ptrace::seize(thread, Options::empty()).context("ptrace(PTRACE_SEIZE)")?;
        let stopped = Self(thread);
        ptrace::interrupt(thread)?;
        match waitpid(thread, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) => Ok(stopped),
            other => bail!("a thread that was to be stopped: {other:?}"),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Fails when its process was killed meanwhile, which is what the tests wait for.
        let _ = ptrace::detach(self.0, None);
    }
}
