//! The wall clock of one process, moved: the machine's own is nobody's to set, and CLOCK_REALTIME has no namespace.
//!
//! A process reads the clock by the vDSO, code that the kernel puts into its memory. There the function is replaced by a few
//! instructions that make the system call and add seconds to CLOCK_REALTIME. The page becomes the process's own by that, as for a
//! debugger's breakpoint: no other process sees it, and the program that is tested is the one that is shipped, however it was
//! linked. CLOCK_MONOTONIC, by which every time limit runs, stays right, as it does when a real clock is set.
//!
//! x86_64 only, as [`crate::inject`].

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

/// The function that the C library calls (arch/x86/entry/vdso/vdso.lds.S).
const FUNCTION: &[u8] = b"__vdso_clock_gettime";
/// `mov eax, 228 (clock_gettime); syscall; test eax, eax; jnz end; test edi, edi (CLOCK_REALTIME); jnz end;
/// mov rcx, [seconds]; add [rsi], rcx; end: ret; seconds:`. The system call destroys rcx and r11 anyway, and a function may.
const CODE: &[u8] = &[
    0xb8, 0xe4, 0, 0, 0, // mov eax, 228
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test eax, eax
    0x75, 0x0e, // jnz end
    0x85, 0xff, // test edi, edi
    0x75, 0x0a, // jnz end
    0x48, 0x8b, 0x0d, 0x04, 0, 0, 0, // mov rcx, [rip + 4]
    0x48, 0x01, 0x0e, // add [rsi], rcx
    0xc3, // ret
];

/// A process whose clock can be moved.
pub struct Clock {
    memory: std::fs::File,
    /// Where the seconds are.
    seconds: u64,
}

impl Clock {
    /// Of this process; it goes on telling the right time.
    pub fn of(process: Pid) -> Result<Self> {
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{process}/mem"))
            .with_context(|| format!("cannot open the memory of process {process}"))?;
        let (start, end) = vdso(process)?;
        let mut image = vec![0; usize::try_from(end - start)?];
        memory.read_exact_at(&mut image, start)?;
        let (at, size) = function(&image).context("the vDSO has no clock_gettime that is read here")?;
        let seconds = start + at + CODE.len() as u64;
        if size < CODE.len() as u64 + 8 {
            bail!("the vDSO's clock_gettime has {size} bytes: no room");
        }
        let mut whole = CODE.to_vec();
        whole.extend([0; 8]);
        // Nobody may be in the middle of it.
        eventually("no thread in clock_gettime", Duration::from_secs(5), || {
            kill(process, Signal::SIGSTOP)?;
            let written = stopped_outside(process, start + at..start + at + size).and_then(|outside| {
                if outside {
                    memory
                        .write_all_at(&whole, start + at)
                        .context("cannot write into the vDSO of another process")?;
                }
                Ok(outside.then_some(()))
            });
            kill(process, Signal::SIGCONT)?;
            written
        })?;
        Ok(Self { memory, seconds })
    }

    /// From now on it is this much later, or earlier, than it is.
    pub fn shift(&self, seconds: i64) -> Result<()> {
        self.memory
            .write_all_at(&seconds.to_le_bytes(), self.seconds)
            .context("cannot move the clock of another process")
    }
}

/// True when every thread of a process has stopped, and none in this code (`/proc/PID/task/TID/syscall`: `running`, or numbers of
/// which the last is the program counter).
fn stopped_outside(process: Pid, code: std::ops::Range<u64>) -> Result<bool> {
    eventually("threads that stop", Duration::from_secs(5), || {
        let mut outside = true;
        for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let path = task?.path();
            let state = std::fs::read_to_string(path.join("stat"))?;
            let call = std::fs::read_to_string(path.join("syscall"))?;
            let at = call
                .split_whitespace()
                .last()
                .and_then(|word| word.strip_prefix("0x"));
            match at.map(|at| u64::from_str_radix(at, 16)) {
                Some(Ok(at)) if state.contains(") T ") => outside &= !code.contains(&at),
                _ => return Ok(None),
            }
        }
        Ok(Some(outside))
    })
}

/// Where the vDSO of a process is.
fn vdso(process: Pid) -> Result<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps"))?;
    maps.lines()
        .find(|line| line.ends_with("[vdso]"))
        .and_then(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some((
                u64::from_str_radix(start, 16).ok()?,
                u64::from_str_radix(end, 16).ok()?,
            ))
        })
        .with_context(|| format!("process {process} has no vDSO"))
}

/// Where [`FUNCTION`] begins in an ELF image, and how long it is: by its sections .dynsym and .dynstr (elf(5)).
fn function(image: &[u8]) -> Option<(u64, u64)> {
    const SHT_DYNSYM: u32 = 11;
    let bytes = |at: usize, length: usize| image.get(at..at.checked_add(length)?);
    let word = |at: usize| Some(u64::from_le_bytes(bytes(at, 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_le_bytes(bytes(at, 4)?.try_into().ok()?));
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?)));
    let size = |at: usize| usize::try_from(word(at)?).ok();
    let (sections, each, count) = (size(40)?, short(58)?, short(60)?);
    let header = |number: usize| sections + number * each;
    let symbols = (0..count)
        .map(header)
        .find(|at| half(at + 4) == Some(SHT_DYNSYM))?;
    let names = size(header(usize::try_from(half(symbols + 40)?).ok()?) + 24)?;
    let (first, length) = (size(symbols + 24)?, size(symbols + 32)?);
    (first..first + length).step_by(24).find_map(|symbol| {
        let name = names + usize::try_from(half(symbol)?).ok()?;
        let found = bytes(name, FUNCTION.len() + 1)?;
        let ours = found.strip_suffix(&[0])? == FUNCTION;
        ours.then(|| Some((word(symbol + 8)?, word(symbol + 16)?)))?
    })
}
