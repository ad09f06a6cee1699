//! What the programs and user space agree on about leaks: connections of Agents that go to an intake and not through us.
//!
//! A connect hook that lets a connection pass leaves a note ([`Passed`]) at its socket; the sockops program sees the
//! address that the SYN really goes to, and counts by the note. So a connection is counted once, when it leaves, however
//! many copies of our programs see it, and also when somebody changed its address behind us.

use crate::Address;

/// Entries of the map of leaks: one for each cgroup or namespace and reason. The least recently counted one makes room.
pub const MAX_LEAKED: u32 = 4096;
/// Sockets and flows that are remembered as counted.
pub const MAX_COUNTED: u32 = 16_384;

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// Why a connection went to an intake without us.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $variant,)+
        }

        impl Reason {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in metrics and status.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

reasons! {
    /// We did not serve its network namespace (yet), and the policy is `open`.
    UnknownNetns = "unknown_netns",
    /// Nobody listened, and the policy is `open`.
    NoListener = "no_listener",
    /// Its socket is bound to a device, and the policy is `open`.
    BoundDevice = "bound_device",
    /// The kernel had no memory to remember it, and the policy is `open`.
    NoMemory = "no_memory",
    /// It asked for an address that is not selected, and another program behind ours led it to one that is.
    Around = "around",
    /// It was open before its Agent was taken, or before its address was known to be an intake's.
    OpenBefore = "open_before",
    /// Its Agent is selected, and cannot be taken.
    NotTaken = "not_taken",
    /// Datapath `tc`: it was taken, no routing rule led it to us, and the policy is `open`.
    NotLed = "not_led",
}

impl Reason {
    /// The reason with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// True when a new connection in its place would come through us by now: what kept it from us was a matter of time.
    pub const fn passes(self) -> bool {
        matches!(
            self,
            Self::UnknownNetns | Self::NoListener | Self::OpenBefore | Self::NotLed
        )
    }
}

/// [`LeakKey::kind`]: `who` is the id of a cgroup.
pub const WHO_CGROUP: u32 = 0;
/// [`LeakKey::kind`]: `who` is the cookie of a network namespace; 0 where nobody knows it.
pub const WHO_NETNS: u32 = 1;

/// Whose leak, and why: the key of `LEAKED`. Keys are compared as bytes, so that there is no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeakKey {
    /// The cgroup of the process that connected, or the namespace behind the interface.
    pub who: u64,
    /// A [`Reason`].
    pub reason: u32,
    /// `WHO_*`
    pub kind: u32,
}

/// A connection that leaked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// Where it went.
    pub destination: Address,
    /// The port there.
    pub port: u16,
    /// Always 0.
    pub reserved: u16,
    /// Who connected, by the number in the host's pid namespace; 0 where nobody knows it.
    pub process: u32,
}

/// How many leaks, and the last one: the value of `LEAKED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leak {
    /// Connections.
    pub count: u64,
    /// The last one. Written in parts: two at the same moment may mix.
    pub last: Direct,
}

/// A single leak, as it is told in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeakRecord {
    /// Whose, and why.
    pub key: LeakKey,
    /// Which connection.
    pub direct: Direct,
}

impl LeakRecord {
    /// A record as it lies in the ring buffer; `None` for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let mut words = [0; 10];
        for (word, part) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(part.try_into().ok()?);
        }
        let [low, high, reason, kind, a, b, c, d, ports, process] = words;
        let [p, q, r, s] = ports.to_ne_bytes();
        Some(Self {
            key: LeakKey {
                who: u64::from(low) | u64::from(high) << 32,
                reason,
                kind,
            },
            direct: Direct {
                destination: Address { words: [a, b, c, d] },
                port: u16::from_ne_bytes([p, q]),
                reserved: u16::from_ne_bytes([r, s]),
                process,
            },
        })
    }
}

/// The note that a connect hook leaves at a socket whose connection it does not take.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The cgroup of the process that connects.
    pub cgroup: u64,
    /// That process, as in [`crate::Original::process`].
    pub process: u32,
    /// What it is, should it go to an intake: a [`Reason`], [`PASSED_OWN`] or [`PASSED_COUNTED`].
    pub state: u32,
}

/// [`Passed::state`]: the proxy's own connection, which is no leak.
pub const PASSED_OWN: u32 = 0xffff_0001;
/// [`Passed::state`]: it was counted.
pub const PASSED_COUNTED: u32 = 0xffff_0002;
