//! Attaches our classifier to ingress of an interface and takes it away again: by TCX or as a classic filter.
//!
//! Ours is, on TCX: the program behind our pin, or the loaded program itself. As a classic filter: kind `bpf` in direct
//! action, one of our two handles **and** our filter name, in a list read just before. Whatever does not fit is somebody
//! else's, and stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{ProgramError, SchedClassifier};
use nix::libc;

use super::chain::{Entry, Place, chain, same_interface, tcx_supported};
use super::filter::{attach_classic, delete_filters, delete_qdisc, is_own_filter, is_unused};
use super::links::Link;
use super::netlink::Netlink;
use super::owner::Owner;
use crate::config::ClassifierAttach;
use crate::intercept::attach::{NEXT, next, pin_over, remove_file};
use crate::intercept::error::InterceptError;
use crate::intercept::pins::create_private;

/// A link whose last pin was removed is detached by a kernel worker, a moment later.
const RELEASE_ATTEMPTS: usize = 100;
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// How our classifier is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// By a pinned TCX link.
    Tcx,
    /// As a classic filter.
    Classic {
        /// Its priority.
        priority: u16,
        /// One of [`super::HANDLES`].
        handle: u32,
        /// True when the clsact qdisc was made for it just now.
        made_qdisc: bool,
    },
}

/// What [`detach`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// A TCX link.
    pub link: bool,
    /// Classic filters.
    pub filters: usize,
    /// The clsact qdisc that we had made.
    pub qdisc: bool,
}

/// Attaches, or leaves what is attached already. An older program of ours is replaced without a gap, and whatever of ours
/// stands elsewhere on this interface goes afterwards. `pins` is a directory on bpffs; the pin is named by the index.
///
/// # Errors
/// A foreign filter holds our place; TCX was asked for and the kernel has none; the interface is gone (`ENODEV`).
pub fn attach(
    netlink: &mut Netlink,
    program: &mut SchedClassifier,
    link: &Link,
    how: ClassifierAttach,
    priority: u16,
    pins: &Path,
) -> Result<Attached, InterceptError> {
    same_interface(link.index, &link.name)?;
    let tcx = how != ClassifierAttach::Netlink && tcx_supported(&link.name)?;
    if how == ClassifierAttach::Tcx && !tcx {
        return Err(InterceptError::Unsupported(
            "this kernel has no TCX (Linux 6.6); set intercept.classifier_attach: auto or netlink".to_owned(),
        ));
    }
    if tcx {
        attach_tcx(netlink, program, link, pins)?;
        delete_filters(netlink, link.index, None)?;
        return Ok(Attached::Tcx);
    }
    let attached = attach_classic(netlink, program, link, priority)?;
    if let Attached::Classic { priority, handle, .. } = attached {
        delete_filters(netlink, link.index, Some((priority, handle)))?;
    }
    unpin(pins, link.index)?;
    Ok(attached)
}

/// Takes away what is ours on this interface, which may be gone already. The qdisc goes only when `own_qdisc` says that we
/// made it and nobody has a filter on it, in either direction.
///
/// # Errors
/// The kernel's.
pub fn detach(
    netlink: &mut Netlink,
    index: u32,
    pins: &Path,
    own_qdisc: bool,
) -> Result<Detached, InterceptError> {
    let mut done = Detached {
        link: unpin(pins, index)?,
        filters: delete_filters(netlink, index, None)?,
        qdisc: false,
    };
    if own_qdisc && is_unused(netlink, index)? {
        done.qdisc = delete_qdisc(netlink, index)?;
    }
    Ok(done)
}

/// Puts ours at the head of TCX again. The kernel refuses one program twice, so it is away for an instant: no loss, since
/// whoever calls this has seen that packets do not reach it.
pub(super) fn lead_tcx(
    netlink: &mut Netlink,
    program: &mut SchedClassifier,
    link: &Link,
    pins: &Path,
) -> Result<(), InterceptError> {
    unpin(pins, link.index)?;
    attach_tcx(netlink, program, link, pins)
}

/// The chain with `ours` set for what is provably ours. `program` is the loaded one's id, if any.
///
/// # Errors
/// As [`chain`].
pub(in crate::intercept) fn view(
    netlink: &mut Netlink,
    link: &Link,
    program: Option<u32>,
    pins: &Path,
) -> Result<Vec<Entry>, InterceptError> {
    let pinned = pinned_program(&pin(pins, link.index));
    let mut entries = chain(netlink, link.index, &link.name, &|id, _| {
        Some(id) == program || Some(id) == pinned
    })?;
    for entry in &mut entries {
        if matches!(entry.place, Place::Classic { .. }) {
            entry.ours = is_own_filter(entry);
        }
        if entry.ours {
            entry.owner = Owner::Ours;
        }
    }
    Ok(entries)
}

fn attach_tcx(
    netlink: &mut Netlink,
    program: &mut SchedClassifier,
    link: &Link,
    pins: &Path,
) -> Result<(), InterceptError> {
    let id = program_id(program, link)?;
    let pin = pin(pins, link.index);
    // The pin of an interface that is gone may carry the index of a new one: the list says what is.
    if pinned_program(&pin) == Some(id)
        && chain(netlink, link.index, &link.name, &|other, _| other == id)?
            .iter()
            .any(|entry| entry.ours && entry.place == Place::Tcx)
    {
        return Ok(());
    }
    create_private(pins)?;
    let made = first(program, link)?;
    // The link was made by name. If that moved to another interface, it goes with this descriptor.
    same_interface(link.index, &link.name)?;
    pin_over(made, &pin)
}

/// A new link at the head of TCX.
fn first(program: &mut SchedClassifier, link: &Link) -> Result<FdLink, InterceptError> {
    let mut attempt = 0;
    loop {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let made = program
            .attach_with_options(&link.name, TcAttachType::Ingress, order)
            .and_then(|id| program.take_link(id));
        match made {
            Ok(made) => {
                return made
                    .try_into()
                    .map_err(|error: LinkError| failed("attach", link)(Box::new(error)));
            }
            Err(error) => {
                let error = failed("attach", link)(Box::new(error));
                attempt += 1;
                if error.errno() != Some(libc::EEXIST) || attempt > RELEASE_ATTEMPTS {
                    return Err(error);
                }
                std::thread::sleep(RELEASE_PAUSE);
            }
        }
    }
}

fn pin(pins: &Path, index: u32) -> PathBuf {
    pins.join(index.to_string())
}

/// The program behind a pinned link; none when there is no pin.
fn pinned_program(pin: &Path) -> Option<u32> {
    let link: FdLink = PinnedLink::from_pin(pin).ok()?.into();
    link.info().ok().map(|info| info.program_id())
}

/// Removes the pins of an interface, which detaches its link at once: the last descriptor is closed here. (Without one,
/// the kernel detaches a moment later.) True when there was one.
fn unpin(pins: &Path, index: u32) -> Result<bool, InterceptError> {
    let mut found = false;
    let pin = pin(pins, index);
    for path in [pin.clone(), next(&pin)] {
        let open = match PinnedLink::from_pin(&path) {
            Ok(open) => Some(open),
            Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            // Something else lies there; the file is still ours by its place.
            Err(_) => None,
        };
        found |= remove_file(&path)?;
        drop(open);
    }
    Ok(found)
}

/// Indexes of interfaces that have a pin here.
pub(super) fn pinned_interfaces(pins: &Path) -> Result<Vec<u32>, InterceptError> {
    let entries = match fs::read_dir(pins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(InterceptError::file("read", pins))?,
    };
    let mut found: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(NEXT).unwrap_or(&name).parse().ok()
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The kernel's number of the loaded program.
pub(super) fn program_id(program: &SchedClassifier, link: &Link) -> Result<u32, InterceptError> {
    program
        .info()
        .map(|info| info.id())
        .map_err(|error: ProgramError| failed("identify", link)(Box::new(error)))
}

pub(super) fn failed(
    action: &'static str,
    link: &Link,
) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> InterceptError {
    let interface = link.name.clone();
    move |source| InterceptError::Classifier {
        action,
        interface,
        source,
    }
}
