//! Every classifier on ingress of an interface, in the order in which the kernel runs them.

use std::fmt;

use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramError, SchedClassifier, loaded_programs};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHeader, TcMessage, TcOption};
use nix::libc;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::netlink::{Netlink, Read, Unread};
use super::owner::Owner;
use crate::intercept::error::InterceptError;

/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and its egress twin (linux/pkt_sched.h).
pub(super) const INGRESS: u32 = 0xffff_fff2;
pub(super) const EGRESS: u32 = 0xffff_fff3;
/// The kind of a filter that cannot be read.
const UNREAD: &str = "?";
/// A program may go between being listed and being asked about.
const ATTEMPTS: usize = 5;

/// Where a classifier stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On TCX (kernel 6.6), which runs before every classic filter.
    Tcx,
    /// A classic filter of the clsact (or ingress) qdisc.
    Classic {
        /// Smaller runs first.
        priority: u16,
        /// Its name within the priority.
        handle: u32,
        /// EtherType, 3 (`ETH_P_ALL`) for all.
        protocol: u16,
        /// Only chain 0 is entered by itself.
        chain: u32,
    },
}

/// A kernel program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The kernel's number for it, never used twice while the machine runs.
    pub id: u32,
    /// The filter's name where it has one, else the program's own (at most 15 characters).
    pub name: String,
    /// A digest of its instructions, 16 hexadecimal digits.
    pub tag: String,
}

/// One classifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// `bpf`, `flower`, `u32`, `matchall`, ...; `?` for one whose message cannot be read.
    pub kind: String,
    /// Its program, for kind `bpf`.
    pub program: Option<Program>,
    /// True when the program's return value is the verdict; always on TCX.
    pub direct_action: bool,
    /// Who it is from, probably.
    pub owner: Owner,
    /// True when the caller said that this program is ours.
    pub ours: bool,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Some(program) => write!(f, "program {} `{}` ({})", program.id, program.name, self.owner)?,
            None => write!(f, "a `{}` classifier", self.kind)?,
        }
        match self.place {
            Place::Tcx => f.write_str(" on TCX"),
            Place::Classic { priority, handle, .. } => {
                write!(f, " at priority {priority}, handle {handle:#x}")
            }
        }
    }
}

/// Everything on ingress of the interface of this index and name: TCX first, then classic filters by chain and priority,
/// and within a priority as the kernel lists them, which is how it runs them. `ours` says which programs (id, tag) are
/// ours. Must run in the namespace of `netlink`.
///
/// # Errors
/// The lists cannot be read, or index and name no longer belong together (`ENODEV`).
pub fn chain(
    netlink: &mut Netlink,
    index: u32,
    name: &str,
    ours: &dyn Fn(u32, &str) -> bool,
) -> Result<Vec<Entry>, InterceptError> {
    same_interface(index, name)?;
    let mut found = Vec::new();
    for program in tcx(name)?.unwrap_or_default() {
        found.push(Entry {
            place: Place::Tcx,
            kind: "bpf".to_owned(),
            owner: Owner::guess(&program.name),
            ours: ours(program.id, &program.tag),
            program: Some(program),
            direct_action: true,
        });
    }
    found.extend(classic(netlink, index, INGRESS, ours)?);
    // The TCX list went by name: it was this interface's only when the name did not move meanwhile.
    same_interface(index, name)?;
    name_strangers(&mut found);
    Ok(found)
}

/// True when the kernel has TCX (6.6) on this interface of the calling thread's namespace.
///
/// # Errors
/// No such interface, or no CAP_NET_ADMIN.
pub fn tcx_supported(name: &str) -> Result<bool, InterceptError> {
    Ok(tcx(name)?.is_some())
}

/// The TCX programs of an interface in order; none when the kernel has no TCX.
fn tcx(name: &str) -> Result<Option<Vec<Program>>, InterceptError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match SchedClassifier::query_tcx(name, TcAttachType::Ingress) {
            Ok((_, programs)) => {
                return Ok(Some(
                    programs
                        .iter()
                        .map(|info| Program {
                            id: info.id(),
                            name: String::from_utf8_lossy(info.name()).into_owned(),
                            tag: format!("{:016x}", info.tag()),
                        })
                        .collect(),
                ));
            }
            Err(source) => {
                let error = failed(name, source);
                match error.errno() {
                    // Before 6.6 the query itself is unknown.
                    Some(libc::EINVAL) => return Ok(None),
                    Some(libc::ENOENT) => last = Some(error),
                    _ => return Err(error),
                }
            }
        }
    }
    last.map_or(Ok(None), Err)
}

/// The classic filters below one parent of an interface.
pub(super) fn classic(
    netlink: &mut Netlink,
    index: u32,
    parent: u32,
    ours: &dyn Fn(u32, &str) -> bool,
) -> Result<Vec<Entry>, InterceptError> {
    let request = RouteNetlinkMessage::GetTrafficFilter(message(index, 0, parent, 0));
    let answers = netlink.dump("list the filters of an interface", &request)?;
    let mut found: Vec<Entry> = answers.iter().filter_map(|answer| read(answer, ours)).collect();
    // Stable: the order within a priority is the kernel's.
    found.sort_by_key(|entry| match entry.place {
        Place::Tcx => (0, 0),
        Place::Classic { chain, priority, .. } => (chain, priority),
    });
    Ok(found)
}

/// A message about this interface; `info` holds the priority above and the protocol (big endian) below.
pub(super) fn message(index: u32, handle: u32, parent: u32, info: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = handle.into();
    message.header.parent = parent.into();
    message.header.info = info;
    message
}

/// One filter; none for the line that only announces a priority. What cannot be read stays in the list as an unknown.
pub(super) fn read(answer: &Read<RouteNetlinkMessage>, ours: &dyn Fn(u32, &str) -> bool) -> Option<Entry> {
    match answer {
        Ok(RouteNetlinkMessage::NewTrafficFilter(message)) => read_filter(message, ours),
        Err(Unread { kind, payload, .. }) if *kind == libc::RTM_NEWTFILTER => {
            // Without even a header it may stand anywhere: first, where it is in the way the most.
            let header = TcHeader::parse(payload).ok();
            if header
                .as_ref()
                .is_some_and(|header| u32::from(header.handle) == 0)
            {
                return None;
            }
            Some(unknown(&header.unwrap_or_default(), 0))
        }
        _ => None,
    }
}

fn read_filter(message: &TcMessage, ours: &dyn Fn(u32, &str) -> bool) -> Option<Entry> {
    let handle = u32::from(message.header.handle);
    let (mut kind, mut chain, mut options) = (None, 0, &[][..]);
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = Some(name),
            TcAttribute::Chain(number) => chain = *number,
            TcAttribute::Options(found) => options = found,
            _ => {}
        }
    }
    // u32 lists its hash tables as well: handles without a key.
    let table = kind.is_some_and(|kind| kind == "u32") && handle.trailing_zeros() >= 20;
    if handle == 0 || table {
        return None;
    }
    let mut entry = unknown(&message.header, chain);
    let Some(kind) = kind else {
        return Some(entry);
    };
    entry.kind.clone_from(kind);
    // The options of other kinds are not read.
    let (program, direct) = program(options);
    entry.direct_action = direct;
    entry.owner = program
        .as_ref()
        .map_or(Owner::Unknown, |program| Owner::guess(&program.name));
    entry.ours = program
        .as_ref()
        .is_some_and(|program| ours(program.id, &program.tag));
    entry.program = program;
    Some(entry)
}

/// A filter of which only the place is known.
fn unknown(header: &TcHeader, chain: u32) -> Entry {
    let [low, high, ..] = header.info.to_ne_bytes();
    Entry {
        place: Place::Classic {
            priority: u16::try_from(header.info >> 16).unwrap_or(u16::MAX),
            handle: header.handle.into(),
            protocol: u16::from_be_bytes([low, high]),
            chain,
        },
        kind: UNREAD.to_owned(),
        program: None,
        direct_action: false,
        owner: Owner::Unknown,
        ours: false,
    }
}

/// The program of a bpf filter, none for a classic BPF one, which has no number; and whether its value is the verdict.
fn program(options: &[TcOption]) -> (Option<Program>, bool) {
    let (mut id, mut name, mut tag, mut direct) = (None, String::new(), String::new(), false);
    for option in options {
        let TcOption::Bpf(option) = option else {
            continue;
        };
        match option {
            TcFilterBpfOption::ProgId(number) => id = Some(*number),
            TcFilterBpfOption::ProgName(text) => name.clone_from(text),
            TcFilterBpfOption::ProgTag(bytes) => tag = format!("{:016x}", u64::from_be_bytes(*bytes)),
            TcFilterBpfOption::Flags(flags) => direct = flags.contains(TcBpfFlags::DirectAction),
            _ => {}
        }
    }
    (id.map(|id| Program { id, name, tag }), direct)
}

/// Filters whose name says nothing get the program's own, which costs a walk over all programs of the machine.
fn name_strangers(entries: &mut [Entry]) {
    let stranger = |entry: &Entry| {
        matches!(entry.place, Place::Classic { .. }) && entry.owner == Owner::Unknown && !entry.ours
    };
    if !entries
        .iter()
        .any(|entry| stranger(entry) && entry.program.is_some())
    {
        return;
    }
    // A program that went meanwhile is an error of its own, and no loss.
    for info in loaded_programs().flatten() {
        for entry in entries.iter_mut().filter(|entry| stranger(entry)) {
            let Some(program) = entry.program.as_mut().filter(|program| program.id == info.id()) else {
                continue;
            };
            let name = String::from_utf8_lossy(info.name()).into_owned();
            entry.owner = Owner::guess(&name);
            if program.name.is_empty() {
                program.name = name;
            }
        }
    }
}

/// That an index still has its name, in the calling thread's namespace.
pub(super) fn same_interface(index: u32, name: &str) -> Result<(), InterceptError> {
    let now = if_nametoindex(name).ok();
    if now == Some(index) {
        return Ok(());
    }
    Err(InterceptError::Netlink {
        request: format!("find the interface {name} (index {index})"),
        source: std::io::Error::from_raw_os_error(libc::ENODEV),
        detail: match now {
            Some(other) => format!("the name now belongs to index {other}"),
            None => "there is none of this name".to_owned(),
        },
    })
}

fn failed(name: &str, source: ProgramError) -> InterceptError {
    InterceptError::Classifier {
        action: "list",
        interface: name.to_owned(),
        source: Box::new(source),
    }
}

/// Programs on TCX, in order.
pub(super) fn on_tcx(entries: &[Entry]) -> Vec<u32> {
    let on_tcx = entries.iter().filter(|entry| entry.place == Place::Tcx);
    on_tcx
        .filter_map(|entry| entry.program.as_ref().map(|program| program.id))
        .collect()
}

/// Where the loaded program of ours stands.
pub(super) fn own(entries: &[Entry], id: u32) -> Option<usize> {
    entries
        .iter()
        .position(|entry| entry.ours && entry.program.as_ref().is_some_and(|program| program.id == id))
}

#[cfg(test)]
mod tests;
