//! Attaches and detaches: pinned links in Agents' cgroups and in our own.
//!
//! A pin is replaced by attaching the new link first and renaming its pin over the old one (`rename` on bpffs is
//! atomic): between the two both programs run, and the second sees a loopback destination, which it leaves alone. So a
//! restart or an upgrade has no gap. After pinning we keep no descriptor: removing the pin detaches, whoever does it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError};

use super::error::InterceptError;
use super::host::Cgroup2;
use super::load::{AGENT_HOOKS, Loaded, OWN_HOOKS};
use super::pins::{PinDirectory, create_private, remove_directory};
use super::sys;

/// Suffix of a pin that is about to replace another. (bpffs allows no dot in a name.)
pub(super) const NEXT: &str = "-next";

/// bpf_link has no flags for cgroups: `AllowMultiple` gives EINVAL, and a link always runs beside others (5.7).
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// Attaches every Agent-side program to a cgroup and pins the links; replaces pins that are there.
pub(super) fn attach_agent(
    ebpf: &mut Ebpf,
    cgroups: &Cgroup2,
    pins: &PinDirectory,
    cgroup: &Path,
    id: u64,
) -> Result<(), InterceptError> {
    let directory = pins.links_of(id);
    create_private(&directory)?;
    let path = cgroups.directory(cgroup);
    let handle = File::open(&path).map_err(InterceptError::file("open the cgroup", &path))?;
    for hook in AGENT_HOOKS {
        pin_over(link(ebpf, hook, &handle, cgroup)?, &directory.join(hook))?;
    }
    Ok(())
}

/// Pins a link in the place of whatever is pinned there.
pub(super) fn pin_over(link: FdLink, pin: &Path) -> Result<(), InterceptError> {
    let next = next(pin);
    // Left by an instance that was killed between the two steps below.
    remove_file(&next)?;
    let pinned = link.pin(&next).map_err(|source| InterceptError::Pin {
        path: next.clone(),
        source: Box::new(source),
    })?;
    fs::rename(&next, pin).map_err(InterceptError::file("put a pin in place at", pin))?;
    drop(pinned);
    Ok(())
}

/// Removes a pin, and what a killed instance left beside it; returns what was there.
pub(super) fn unpin(pin: &Path) -> Result<Vec<PathBuf>, InterceptError> {
    let mut removed = Vec::new();
    for path in [pin.to_owned(), next(pin)] {
        if remove_file(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Where a link waits before it takes a pin's place.
pub(super) fn next(pin: &Path) -> PathBuf {
    let mut next = pin.as_os_str().to_owned();
    next.push(NEXT);
    next.into()
}

/// Attaches the program that picks our listener to a network namespace, for as long as the pin is there: should all of us
/// be killed, packets that are still led to this host must find no other socket of it.
pub(super) fn attach_sk_lookup(
    loaded: &mut Loaded,
    pins: &PinDirectory,
    netns: &File,
) -> Result<(), InterceptError> {
    pin_over(loaded.attach_sk_lookup(netns)?.into(), &pins.sk_lookup())
}

/// True when every Agent-side link of a cgroup is pinned.
pub(super) fn is_attached(pins: &PinDirectory, id: u64) -> bool {
    let directory = pins.links_of(id);
    AGENT_HOOKS.iter().all(|hook| directory.join(hook).exists())
}

/// Cgroup ids that have a directory of pins.
pub(super) fn pinned_cgroups(pins: &PinDirectory) -> Result<Vec<u64>, InterceptError> {
    numbered(&pins.links())
}

/// The names of a directory's entries that are numbers.
fn numbered(directory: &Path) -> Result<Vec<u64>, InterceptError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(InterceptError::file("read", directory))?,
    };
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect())
}

/// Removes the pins of a cgroup, which detaches the programs; connect hooks first, so that no connection is rewritten
/// that nobody would hand over. Returns what was removed.
pub(super) fn detach_agent(pins: &PinDirectory, id: u64) -> Result<Vec<PathBuf>, InterceptError> {
    let directory = pins.links_of(id);
    let mut removed = Vec::new();
    for hook in AGENT_HOOKS.iter().rev() {
        let pin = directory.join(hook);
        // So that whoever ordered it finds it done. Where the kernel cannot, or nothing is pinned, it is done with the pin, or was.
        if let Err(error) = sys::detach_pinned(&pin) {
            tracing::trace!(pin = %pin.display(), %error, "not detached at once");
        }
        removed.extend(unpin(&pin)?);
    }
    remove_directory(&directory)?;
    Ok(removed)
}

/// The accepting side's links. They are pinned, too, and outlive us: what the kernel accepts for our listeners while nobody runs
/// (the service manager holds them, or this process replaces its program) must have its origin. So they are gone when both this
/// value and the pins are.
#[derive(Debug)]
pub(super) struct OwnLinks {
    _handover: OwnedFd,
    _original_dst: OwnedFd,
}

/// `BPF_CGROUP_SOCK_OPS` and `BPF_CGROUP_GETSOCKOPT` (linux/bpf.h), in the order of [`OWN_HOOKS`].
const OWN_ATTACH_TYPES: [u32; 2] = [3, 21];

/// Attaches the accepting side's programs to our own cgroup and pins the links; replaces pins that are there.
pub(super) fn attach_own(
    ebpf: &mut Ebpf,
    cgroups: &Cgroup2,
    pins: &PinDirectory,
    cgroup: &Path,
    id: u64,
) -> Result<OwnLinks, InterceptError> {
    let path = cgroups.directory(cgroup);
    let handle = File::open(&path).map_err(InterceptError::file("open the cgroup", &path))?;
    let directory = pins.own_of(id);
    create_private(&directory)?;
    let mut attach = |at: usize| {
        let hook = OWN_HOOKS[at];
        let program = match ebpf.program_mut(hook) {
            Some(Program::SockOps(program)) => program.fd(),
            Some(Program::CgroupSockopt(program)) => program.fd(),
            _ => return Err(InterceptError::Missing(hook)),
        };
        let program = program.map_err(failed(hook, cgroup))?;
        let link =
            sys::link_to_cgroup(program.as_fd(), handle.as_fd(), OWN_ATTACH_TYPES[at]).map_err(|source| {
                InterceptError::Call {
                    call: "attaching a program to our own cgroup (BPF_LINK_CREATE)",
                    source,
                }
            })?;
        let pin = directory.join(hook);
        let next = next(&pin);
        // Left by an instance that was killed between the two steps below.
        remove_file(&next)?;
        sys::pin(link.as_fd(), &next).map_err(InterceptError::file("pin a link at", &next))?;
        fs::rename(&next, &pin).map_err(InterceptError::file("put a pin in place at", &pin))?;
        Ok(link)
    };
    Ok(OwnLinks {
        _handover: attach(0)?,
        _original_dst: attach(1)?,
    })
}

/// Removes the pins of the accepting side in a cgroup of ours; returns what was removed.
pub(super) fn unpin_own(pins: &PinDirectory, id: u64) -> Result<Vec<PathBuf>, InterceptError> {
    let directory = pins.own_of(id);
    let mut removed = Vec::new();
    for hook in OWN_HOOKS {
        removed.extend(unpin(&directory.join(hook))?);
    }
    remove_directory(&directory)?;
    Ok(removed)
}

/// Ids of the cgroups, of this and earlier processes of ours, that have pins of the accepting side.
pub(super) fn own_cgroups(pins: &PinDirectory) -> Result<Vec<u64>, InterceptError> {
    numbered(&pins.own())
}

/// A new link of an Agent-side program.
fn link(ebpf: &mut Ebpf, hook: &'static str, handle: &File, cgroup: &Path) -> Result<FdLink, InterceptError> {
    let link = match ebpf.program_mut(hook).ok_or(InterceptError::Missing(hook))? {
        Program::CgroupSockAddr(program) => program
            .attach(handle.as_fd(), MODE)
            .and_then(|id| program.take_link(id))
            .map(FdLink::try_from),
        Program::SockOps(program) => program
            .attach(handle.as_fd(), MODE)
            .and_then(|id| program.take_link(id))
            .map(FdLink::try_from),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    link.map_err(failed(hook, cgroup))?.map_err(|_| {
        InterceptError::Unsupported("links that outlive the process need bpf_link (Linux 5.7)".to_owned())
    })
}

fn failed(program: &'static str, cgroup: &Path) -> impl FnOnce(ProgramError) -> InterceptError {
    let cgroup = cgroup.to_owned();
    move |source| InterceptError::Attach {
        program,
        cgroup,
        source: Box::new(source),
    }
}

/// Removes a file; false when it was not there.
pub(super) fn remove_file(path: &Path) -> Result<bool, InterceptError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(InterceptError::file("remove", path)(error)),
    }
}
