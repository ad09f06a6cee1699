//! Requests to the kernel by netlink: one socket, one question at a time, every answer bounded in time.
//!
//! Synchronous and without a runtime, so that it works on any thread: a thread that entered a network namespace asks
//! that one, because a netlink socket belongs to the namespace in which it was made. The same exchange serves routing and
//! traffic control (`NETLINK_ROUTE`) and netfilter (`NETLINK_NETFILTER`); messages are those of `netlink-packet-route` and
//! `netlink-packet-core`. Each message of an answer is read by itself: one that cannot be read is [`Unread`], and never
//! fails the list that it stands in.

use std::fmt::Display;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    DecodeError, DoneBuffer, ErrorBuffer, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP,
    NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, Parseable,
    parse_string, parse_u32,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::narrow::{attributes, narrow};
use crate::intercept::error::InterceptError;

/// How long the kernel may take for one answer. It answers within the call; only a held RTNL lock makes it slower.
const ANSWER_TIME: i64 = 5;
/// How often a list that changed while it was read is read again.
const ATTEMPTS: usize = 8;
/// The kernel fills at most 32 KiB of a dump into one datagram (`netlink_dump`, since 3.15); a single message is smaller.
const DATAGRAM: usize = 64 * 1024;
/// Nothing that we ask comes near: names, numbers, and nests of these. An attribute of 64 KiB would make the library panic.
const LONGEST_REQUEST: usize = 4096;
/// `struct nlmsghdr` (linux/netlink.h).
const HEADER: usize = 16;
/// linux/netlink.h
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A netlink protocol, known by the type of its messages.
pub trait Protocol: NetlinkSerializable + NetlinkDeserializable + Clone {
    /// `NETLINK_*` (linux/netlink.h).
    const NUMBER: isize;

    /// Reads what follows a message's header.
    ///
    /// # Errors
    /// It is not laid out as its type says.
    fn read(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError>;
}

impl Protocol for RouteNetlinkMessage {
    const NUMBER: isize = NETLINK_ROUTE;

    fn read(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Self::deserialize(header, &narrow(header.message_type, payload)?)
    }
}

/// A message that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Its type: `RTM_*`, ...
    pub kind: u16,
    /// What follows its header.
    pub payload: Vec<u8>,
    /// Why it could not be read.
    pub why: String,
}

/// One message of an answer.
pub type Read<M> = Result<M, Unread>;

/// A socket to routing and traffic control of the namespace in which it was opened.
pub type Netlink = Connection<RouteNetlinkMessage>;

/// A socket to one side of the kernel, in the namespace in which it was opened.
pub struct Connection<M> {
    socket: Socket,
    sequence: u32,
    messages: PhantomData<fn(M) -> M>,
}

impl<M> AsRawFd for Connection<M> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl<M: Protocol> Connection<M> {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// The system call's: no descriptor left, a sandbox that forbids netlink, a kernel without this protocol
    /// (`EPROTONOSUPPORT`).
    pub fn open() -> Result<Self, InterceptError> {
        let socket = socket(M::NUMBER).map_err(|source| InterceptError::Call {
            call: "opening a netlink socket",
            source,
        })?;
        Ok(Self {
            socket,
            sequence: 0,
            messages: PhantomData,
        })
    }

    /// Asks for one thing, or for a change; returns the messages before the acknowledgement. `what` completes "cannot",
    /// `flags` are `NLM_F_*` beside those that every request has.
    ///
    /// # Errors
    /// What the kernel said, with its own words; no answer in time; an answer without netlink's layout.
    pub fn request(&mut self, what: &str, flags: u16, message: M) -> Result<Vec<Read<M>>, InterceptError> {
        match self.exchange(message, flags | NLM_F_ACK) {
            Ok((answers, _)) => Ok(note(what, answers)),
            Err(refusal) => Err(refusal.into_error(what)),
        }
    }

    /// Asks for a list. One that changed while it was read (`NLM_F_DUMP_INTR`) or did not fit the socket (`ENOBUFS`) is
    /// read again, eight times at most.
    ///
    /// # Errors
    /// As [`Connection::request`]; a list that never held still.
    pub fn dump(&mut self, what: &str, message: &M) -> Result<Vec<Read<M>>, InterceptError> {
        for _ in 0..ATTEMPTS {
            match self.exchange(message.clone(), NLM_F_DUMP) {
                Ok((answers, false)) => return Ok(note(what, answers)),
                Ok((_, true)) => {}
                Err(Refusal::Socket(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                // EINTR: the kernel's own word for "the list changed"; EBUSY: an earlier list is still being sent.
                Err(Refusal::Kernel {
                    errno: libc::EINTR | libc::EBUSY,
                    ..
                }) => {}
                Err(refusal) => return Err(refusal.into_error(what)),
            }
            // What is left of the broken attempt goes with its socket.
            self.socket = socket(M::NUMBER).map_err(|error| Refusal::Socket(error).into_error(what))?;
        }
        let busy = io::Error::new(
            io::ErrorKind::Interrupted,
            format!("the list changed during each of {ATTEMPTS} readings"),
        );
        Err(Refusal::Socket(busy).into_error(what))
    }

    /// One request and its answers; true when the list changed meanwhile.
    fn exchange(&mut self, message: M, flags: u16) -> Result<(Vec<Read<M>>, bool), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = encode(message, flags, self.sequence)?;
        let sent = self
            .socket
            .send_to(&bytes, &SocketAddr::new(0, 0), 0)
            .map_err(Refusal::Socket)?;
        if sent != bytes.len() {
            return Err(Refusal::malformed("the request was sent in part only"));
        }
        let mut exchange = Exchange::new(self.sequence);
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            let (length, sender) = match self.socket.recv_from(&mut buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(Refusal::Socket)?,
            };
            // Processes can send to our address too.
            if sender.port_number() != 0 {
                continue;
            }
            if length > buffer.len() {
                return Err(Refusal::malformed("the answer was cut: it is longer than 64 KiB"));
            }
            if exchange.absorb(&buffer)? {
                return Ok((exchange.answers, exchange.interrupted));
            }
        }
    }
}

/// Says which messages of an answer cannot be read.
fn note<M>(what: &str, answers: Vec<Read<M>>) -> Vec<Read<M>> {
    for unread in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        pass_over(what, unread.kind, &unread.why);
    }
    answers
}

/// Says that a message cannot be read.
pub(super) fn pass_over(what: &str, kind: u16, why: &dyn Display) {
    tracing::debug!(request = what, kind, %why, "a netlink message cannot be read");
}

/// A socket with a bound on waiting. Kernels before 4.12 have no words for their errors.
fn socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    let _ = socket.set_ext_ack(true);
    // Lets a list of routes be asked for by table (4.20); older kernels send them all.
    let _ = socket.set_netlink_get_strict_chk(true);
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIME))?;
    Ok(socket)
}

/// A request as bytes.
pub(super) fn encode<M: Protocol>(message: M, flags: u16, sequence: u32) -> Result<Vec<u8>, Refusal> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    if message.buffer_len() > LONGEST_REQUEST {
        return Err(Refusal::malformed("the request is longer than 4 KiB"));
    }
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    Ok(bytes)
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    Socket(io::Error),
    Kernel { errno: i32, words: String },
    Malformed(DecodeError),
}

impl Refusal {
    fn malformed(why: &str) -> Self {
        Self::Malformed(DecodeError::from(why))
    }

    pub(super) fn into_error(self, what: &str) -> InterceptError {
        let request = what.to_owned();
        match self {
            Self::Socket(error) if error.kind() == io::ErrorKind::WouldBlock => InterceptError::Netlink {
                request,
                source: io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the kernel did not answer within {ANSWER_TIME} s"),
                ),
                detail: String::new(),
            },
            Self::Socket(source) => InterceptError::Netlink {
                request,
                source,
                detail: String::new(),
            },
            Self::Kernel { errno, words } => InterceptError::Netlink {
                request,
                source: io::Error::from_raw_os_error(errno),
                detail: words,
            },
            Self::Malformed(why) => malformed(what, &why),
        }
    }
}

/// The error for an answer that cannot be read and cannot be done without.
pub(super) fn malformed(what: &str, why: &dyn Display) -> InterceptError {
    InterceptError::Netlink {
        request: what.to_owned(),
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the kernel's answer cannot be read: {why}"),
        ),
        detail: String::new(),
    }
}

/// The answers to one request as they come in.
pub(super) struct Exchange<M> {
    sequence: u32,
    pub(super) answers: Vec<Read<M>>,
    interrupted: bool,
}

impl<M: Protocol> Exchange<M> {
    pub(super) fn new(sequence: u32) -> Self {
        Self {
            sequence,
            answers: Vec::new(),
            interrupted: false,
        }
    }

    /// Takes a datagram; true when it was the last.
    pub(super) fn absorb(&mut self, datagram: &[u8]) -> Result<bool, Refusal> {
        let mut rest = datagram;
        while !rest.is_empty() {
            // Checks that the message is no shorter than a header and no longer than what is there.
            let buffer = NetlinkBuffer::new_checked(rest).map_err(Refusal::Malformed)?;
            let header = NetlinkHeader::parse(&buffer).map_err(Refusal::Malformed)?;
            let payload = buffer.payload();
            rest = rest
                .get((HEADER + payload.len()).next_multiple_of(4)..)
                .unwrap_or_default();
            // Of an earlier request whose answer came too late.
            if header.sequence_number != self.sequence {
                continue;
            }
            self.interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
            match header.message_type {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(Refusal::Socket(io::Error::from_raw_os_error(libc::ENOBUFS))),
                NLMSG_ERROR | NLMSG_DONE => {
                    return match result(&header, payload) {
                        0 => Ok(true),
                        errno => Err(Refusal::Kernel {
                            errno,
                            words: words(&header, payload),
                        }),
                    };
                }
                kind => self
                    .answers
                    .push(M::read(&header, payload).map_err(|error| Unread {
                        kind,
                        payload: payload.to_vec(),
                        why: error.to_string(),
                    })),
            }
        }
        Ok(false)
    }
}

/// The error number of an acknowledgement, 0 for success. The end of a list carries none on old kernels.
fn result(header: &NetlinkHeader, payload: &[u8]) -> i32 {
    let code = match header.message_type {
        NLMSG_DONE => DoneBuffer::new_checked(payload).map_or(0, |done| done.code()),
        _ => match ErrorBuffer::new_checked(payload) {
            Ok(error) => error.code().map_or(0, Into::into),
            Err(_) => -libc::EPROTO,
        },
    };
    code.saturating_neg()
}

/// The kernel's own words behind an error number, if any.
fn words(header: &NetlinkHeader, payload: &[u8]) -> String {
    if header.flags & NLM_F_ACK_TLVS == 0 {
        return String::new();
    }
    // error number, then the header of the request, then the request itself unless it was left out.
    let repeated = match (header.message_type, header.flags & NLM_F_CAPPED) {
        (NLMSG_DONE, _) => 0,
        (_, 0) => payload
            .get(4..8)
            .and_then(|length| parse_u32(length).ok())
            .map_or(HEADER, |length| length as usize),
        _ => HEADER,
    };
    payload
        .get(4 + repeated.saturating_add(3) / 4 * 4..)
        .and_then(|bytes| attributes(bytes).ok())
        .and_then(|found| {
            let (_, text) = found.into_iter().find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?;
            parse_string(text).ok()
        })
        .unwrap_or_default()
}

/// A request as hexadecimal digits, for tests with recorded bytes.
#[cfg(test)]
pub(in crate::intercept) fn encoded<M: Protocol>(message: M, flags: u16, sequence: u32) -> String {
    let bytes = encode(message, flags, sequence).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal digits: datagrams recorded from a kernel.
#[cfg(test)]
fn decoded(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// What the exchange makes of a datagram recorded from a kernel, as the answer to request 1.
#[cfg(test)]
pub(super) fn recorded<M: Protocol>(hex: &str) -> Vec<Read<M>> {
    let mut exchange = Exchange::new(1);
    exchange.absorb(&decoded(hex)).unwrap();
    exchange.answers
}

#[cfg(test)]
mod tests;
