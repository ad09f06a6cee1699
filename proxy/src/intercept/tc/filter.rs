//! Our classic filter and the clsact qdisc below it: added, replaced in place, put first, deleted; by index, not by name.

use std::os::fd::{AsFd, AsRawFd};

use aya::programs::SchedClassifier;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcMessage, TcOption};
use nix::libc;

use super::attach::{Attached, failed, program_id};
use super::chain::{EGRESS, Entry, INGRESS, Place, classic, message};
use super::links::Link;
use super::netlink::Netlink;
use crate::intercept::error::InterceptError;

/// The handle of our classic filter. Never 1, which every vendor takes: Cilium replaces and AWS deletes by it.
pub const HANDLE: u32 = 0xdd01;
/// Both handles: the second is for the moment when ours is added anew before the old one goes.
pub const HANDLES: [u32; 2] = [HANDLE, 0xdd02];
/// `TCA_BPF_NAME` of our classic filters: what tells them from anybody's, after a restart and after an upgrade too.
pub const FILTER_NAME: &str = "agent-fips-proxy";

/// `TC_H_CLSACT` as a parent, and the handle that its qdisc always has (linux/pkt_sched.h).
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;

/// Puts ours before another filter of the same priority: adds it under the other handle, which the kernel puts first, then
/// deletes the old one. There is no moment without ours.
///
/// # Errors
/// A foreign filter holds the other handle; the kernel's.
pub fn prepend(
    netlink: &mut Netlink,
    program: &SchedClassifier,
    link: &Link,
    priority: u16,
) -> Result<Attached, InterceptError> {
    let old = classic(netlink, link.index, INGRESS, &|_, _| false)?
        .iter()
        .filter(|entry| is_own_filter(entry))
        .find_map(|entry| at_priority(entry, priority));
    if let Some(old) = old {
        // Left by a process that was killed between the two steps below: it holds the other handle.
        delete_filters(netlink, link.index, Some((priority, old)))?;
    }
    let entries = classic(netlink, link.index, INGRESS, &|_, _| false)?;
    let handle = if old == Some(HANDLES[0]) {
        HANDLES[1]
    } else {
        HANDLES[0]
    };
    ensure_free(&entries, link, priority, handle)?;
    put_filter(
        netlink,
        program,
        link,
        priority,
        handle,
        NLM_F_CREATE | NLM_F_EXCL,
    )?;
    delete_filters(netlink, link.index, Some((priority, handle)))?;
    Ok(Attached::Classic {
        priority,
        handle,
        made_qdisc: false,
    })
}

/// True when the interface has a clsact or an ingress qdisc: filters can be added.
///
/// # Errors
/// As [`Netlink::dump`].
pub fn has_qdisc(netlink: &mut Netlink, index: u32) -> Result<bool, InterceptError> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(message(index, 0, 0, 0));
    let answers = netlink.dump("list the qdiscs", &request)?;
    Ok(answers.iter().any(|answer| match answer {
        // Kernels list every interface's, whatever the request says.
        Ok(RouteNetlinkMessage::NewQueueDiscipline(qdisc)) => {
            qdisc.header.index.cast_unsigned() == index
                && qdisc
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact" || kind == "ingress"))
        }
        _ => false,
    }))
}

pub(super) fn attach_classic(
    netlink: &mut Netlink,
    program: &SchedClassifier,
    link: &Link,
    priority: u16,
) -> Result<Attached, InterceptError> {
    let id = program_id(program, link)?;
    let entries = classic(netlink, link.index, INGRESS, &|_, _| false)?;
    let own = entries
        .iter()
        .filter(|entry| is_own_filter(entry))
        .find_map(|entry| Some((entry, at_priority(entry, priority)?)));
    if let Some((entry, handle)) = own {
        if entry.program.as_ref().is_none_or(|program| program.id != id) {
            // No CREATE: what stands there is replaced in its place, or the request fails.
            put_filter(netlink, program, link, priority, handle, 0)?;
        }
        return Ok(Attached::Classic {
            priority,
            handle,
            made_qdisc: false,
        });
    }
    ensure_free(&entries, link, priority, HANDLE)?;
    let made_qdisc = !has_qdisc(netlink, link.index)? && make_qdisc(netlink, link.index)?;
    let put = put_filter(
        netlink,
        program,
        link,
        priority,
        HANDLE,
        NLM_F_CREATE | NLM_F_EXCL,
    );
    if put.is_err() && made_qdisc && is_unused(netlink, link.index)? {
        delete_qdisc(netlink, link.index)?;
    }
    put?;
    Ok(Attached::Classic {
        priority,
        handle: HANDLE,
        made_qdisc,
    })
}

/// That nobody holds a place.
fn ensure_free(entries: &[Entry], link: &Link, priority: u16, handle: u32) -> Result<(), InterceptError> {
    let holder = entries
        .iter()
        .find(|entry| at_priority(entry, priority) == Some(handle));
    match holder {
        Some(entry) => Err(InterceptError::PlaceTaken {
            interface: link.name.clone(),
            holder: entry.to_string(),
            priority,
            handle,
        }),
        None => Ok(()),
    }
}

/// Adds or replaces our filter.
fn put_filter(
    netlink: &mut Netlink,
    program: &SchedClassifier,
    link: &Link,
    priority: u16,
    handle: u32,
    flags: u16,
) -> Result<(), InterceptError> {
    let descriptor = program
        .fd()
        .map_err(|error| failed("attach", link)(Box::new(error)))?;
    let number = descriptor.as_fd().as_raw_fd().cast_unsigned();
    let what = format!("add our filter to {}, priority {priority}", link.name);
    let request = new_filter(link.index, priority, handle, number);
    netlink.request(&what, flags, request).map(drop)
}

/// The request for our filter with the program behind this descriptor.
fn new_filter(index: u32, priority: u16, handle: u32, descriptor: u32) -> RouteNetlinkMessage {
    let mut message = our_filter(index, priority, handle);
    let options = [
        TcFilterBpfOption::ProgFd(descriptor),
        TcFilterBpfOption::ProgName(FILTER_NAME.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message
        .attributes
        .push(TcAttribute::Options(options.map(TcOption::Bpf).into()));
    RouteNetlinkMessage::NewTrafficFilter(message)
}

/// What names a filter of ours.
fn our_filter(index: u32, priority: u16, handle: u32) -> TcMessage {
    let mut message = message(index, handle, INGRESS, info(priority));
    message.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
    message
}

/// Deletes the classic filters that are ours after a fresh list, but for the one to keep; returns how many.
pub(super) fn delete_filters(
    netlink: &mut Netlink,
    index: u32,
    keep: Option<(u16, u32)>,
) -> Result<usize, InterceptError> {
    let mut deleted = 0;
    for entry in classic(netlink, index, INGRESS, &|_, _| false)? {
        let Place::Classic { priority, handle, .. } = entry.place else {
            continue;
        };
        // A request without priority or handle would delete everybody's.
        if !is_own_filter(&entry) || keep == Some((priority, handle)) || priority == 0 || handle == 0 {
            continue;
        }
        let request = RouteNetlinkMessage::DelTrafficFilter(our_filter(index, priority, handle));
        let result = netlink.request("delete our filter", 0, request);
        let still_there = || {
            Ok(classic(netlink, index, INGRESS, &|_, _| false)?
                .iter()
                .any(|now| now.place == entry.place))
        };
        deleted += usize::from(unless_gone(result, still_there)?);
    }
    Ok(deleted)
}

/// True for a classic filter that only we make.
pub(super) fn is_own_filter(entry: &Entry) -> bool {
    let Place::Classic {
        handle,
        protocol,
        chain,
        ..
    } = entry.place
    else {
        return false;
    };
    HANDLES.contains(&handle)
        && protocol == ETH_P_ALL
        && chain == 0
        && entry.kind == "bpf"
        && entry.direct_action
        && entry
            .program
            .as_ref()
            .is_some_and(|program| program.name == FILTER_NAME)
}

/// The handle of a classic filter of chain 0 at this priority.
fn at_priority(entry: &Entry, wanted: u16) -> Option<u32> {
    match entry.place {
        Place::Classic {
            priority,
            handle,
            chain: 0,
            ..
        } if priority == wanted => Some(handle),
        _ => None,
    }
}

/// Makes a clsact qdisc; false when somebody was faster.
fn make_qdisc(netlink: &mut Netlink, index: u32) -> Result<bool, InterceptError> {
    let request = RouteNetlinkMessage::NewQueueDiscipline(new_clsact(index));
    match netlink.request("make a clsact qdisc", NLM_F_CREATE | NLM_F_EXCL, request) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the clsact qdisc with everything on it; false when it was not there. For one that is ours and unused only.
pub(super) fn delete_qdisc(netlink: &mut Netlink, index: u32) -> Result<bool, InterceptError> {
    let request = RouteNetlinkMessage::DelQueueDiscipline(clsact(index));
    let result = netlink.request("delete our clsact qdisc", 0, request);
    unless_gone(result, || has_qdisc(netlink, index))
}

fn new_clsact(index: u32) -> TcMessage {
    let mut message = clsact(index);
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    message
}

/// What names the clsact qdisc of an interface.
fn clsact(index: u32) -> TcMessage {
    message(index, CLSACT_HANDLE, CLSACT, 0)
}

/// True when no filter is left on the qdisc, in either direction.
pub(super) fn is_unused(netlink: &mut Netlink, index: u32) -> Result<bool, InterceptError> {
    for parent in [INGRESS, EGRESS] {
        if !classic(netlink, index, parent, &|_, _| false)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `tcm_info`: the priority, and that we want every protocol.
fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be())
}

/// False when the object went before we could take it away.
fn unless_gone<T>(
    result: Result<T, InterceptError>,
    still_there: impl FnOnce() -> Result<bool, InterceptError>,
) -> Result<bool, InterceptError> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => Ok(false),
        // What the kernel says for a filter or qdisc below one that is not there, and for much else.
        Err(error) if error.errno() == Some(libc::EINVAL) && !still_there()? => {
            tracing::debug!(%error, "it is gone");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::netlink::encoded;
    use super::*;

    #[test]
    fn invalid_is_gone_only_if_the_list_says_so() {
        let refused = |errno| {
            Err::<(), _>(InterceptError::Netlink {
                request: "delete our filter".to_owned(),
                source: std::io::Error::from_raw_os_error(errno),
                detail: String::new(),
            })
        };
        assert!(unless_gone(Ok(()), || panic!("nobody asked")).unwrap());
        for errno in [libc::ENOENT, libc::ENODEV] {
            assert!(!unless_gone(refused(errno), || panic!("nobody asked")).unwrap());
        }
        assert!(!unless_gone(refused(libc::EINVAL), || Ok(false)).unwrap());
        let error = unless_gone(refused(libc::EINVAL), || Ok(true)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert!(unless_gone(refused(libc::EPERM), || Ok(false)).is_err());
    }

    /// Recorded: what was sent before the messages were built by a library.
    #[test]
    fn requests_are_laid_out_as_the_kernel_wants_them() {
        for (request, flags, bytes) in [
            (
                RouteNetlinkMessage::GetQueueDiscipline(message(9, 0, 0, 0)),
                0x300,
                "240000002600010307000000000000000000000009000000000000000000000000000000",
            ),
            (
                new_filter(9, 10, HANDLE, 5),
                0x604,
                "580000002c0005060700000000000000000000000900000001dd0000f2ffffff00030a0008000100627066002c000200080006000\
                 5000000150007006167656e742d666970732d70726f7879000000000800080001000000",
            ),
            (
                RouteNetlinkMessage::DelTrafficFilter(our_filter(9, 10, HANDLE)),
                4,
                "2c0000002d0005000700000000000000000000000900000001dd0000f2ffffff00030a000800010062706600",
            ),
            (
                RouteNetlinkMessage::NewQueueDiscipline(new_clsact(9)),
                0x604,
                "3000000024000506070000000000000000000000090000000000fffff1ffffff000000000b000100636c736163740000",
            ),
            (
                RouteNetlinkMessage::DelQueueDiscipline(clsact(9)),
                4,
                "2400000025000500070000000000000000000000090000000000fffff1ffffff00000000",
            ),
        ] {
            assert_eq!(encoded(request, flags, 7), bytes);
        }
    }
}
