//! What the programs tell of single connections while debug logging is on: records of one size in a ring buffer. (Leaks are
//! told always, by records of another size: `leak.rs`.)
//!
//! Of one size and without text: code that puts words together needs slices on the stack and writes at computed offsets,
//! which the verifiers of 6.1 and 6.12 refuse to a process without CAP_PERFMON. User space makes the sentence.

use core::fmt;
use core::net::Ipv6Addr;

use crate::{Address, Counter};

/// One record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Who connects; all 0 where the program cannot know it yet.
    pub source: Address,
    /// Whereto.
    pub destination: Address,
    /// Source port, in host order.
    pub source_port: u16,
    /// Destination port, in host order.
    pub destination_port: u16,
    /// `EVENT_*`
    pub what: u32,
    /// The listener's port or a [`Counter`]'s number, as `what` says.
    pub detail: u32,
    /// Always 0.
    pub reserved: u32,
}

/// [`Event::what`]: a connect went to the listener whose port is the detail.
pub const EVENT_INTERCEPTED: u32 = 1;
/// [`Event::what`]: a connect was refused; the detail is the counter.
pub const EVENT_REFUSED: u32 = 2;
/// [`Event::what`]: a connect that we could not take went out as without us; the detail is the counter.
pub const EVENT_LET_GO: u32 = 3;
/// [`Event::what`]: a connection was accepted that no Agent's connect brought.
pub const EVENT_ACCEPTED_ELSE: u32 = 4;
/// [`Event::what`]: the classifier took a new connection.
pub const EVENT_TC_TAKEN: u32 = 5;
/// [`Event::what`]: the classifier dropped the first packet of a connection.
pub const EVENT_TC_REFUSED: u32 = 6;

impl Event {
    /// A record as it lies in the ring buffer; `None` for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let mut words = [0; 12];
        for (word, part) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(part.try_into().ok()?);
        }
        let [a, b, c, d, e, f, g, h, ports, what, detail, reserved] = words;
        let [p, q, r, s] = ports.to_ne_bytes();
        Some(Self {
            source: Address { words: [a, b, c, d] },
            destination: Address { words: [e, f, g, h] },
            source_port: u16::from_ne_bytes([p, q]),
            destination_port: u16::from_ne_bytes([r, s]),
            what,
            detail,
            reserved,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source_port,
            destination_port: port,
            detail,
            ..
        } = *self;
        let source = Ipv6Addr::from(self.source.octets());
        let destination = Ipv6Addr::from(self.destination.octets());
        let counter = Counter::ALL
            .get(detail as usize)
            .map_or("unknown", |counter| counter.name());
        match self.what {
            EVENT_INTERCEPTED => write!(
                f,
                "intercepted connect to [{destination}]:{port} -> port {detail}"
            ),
            EVENT_REFUSED => write!(f, "refused connect to [{destination}]:{port}: {counter}"),
            EVENT_LET_GO => write!(f, "let go connect to [{destination}]:{port}: {counter}"),
            EVENT_ACCEPTED_ELSE => write!(
                f,
                "accepted [{source}]:{source_port} on port {port} without an original destination"
            ),
            EVENT_TC_TAKEN => write!(f, "taken [{source}]:{source_port} -> [{destination}]:{port}"),
            EVENT_TC_REFUSED => write!(f, "refused [{source}]:{source_port} -> [{destination}]:{port}"),
            what => write!(f, "unknown event {what} of the programs"),
        }
    }
}
