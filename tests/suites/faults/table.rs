//! What a row of the table of faults is made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use harness::hostile::{HangUp, Step, Times};
use harness::suite::Need;

use crate::stage::Stage;

/// The intake that breaks, and where its product is asked for.
pub const PRODUCT: &str = "profiles";
/// See [`PRODUCT`].
pub const PORT: u16 = 9806;
/// See [`PRODUCT`].
pub const NAME: &str = "intake.profile.ddog-gov.com";
/// Its addresses.
pub const BROKEN4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 66));
/// See [`BROKEN4`].
pub const BROKEN6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x66));
/// An address that takes no connection and says so.
pub const REFUSING: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77));
/// An address that says nothing.
pub const SILENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 78));
/// The same in the other family.
pub const SILENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x78));

/// A fault and what must hold.
pub struct Row {
    /// The case is called so.
    pub name: &'static str,
    /// What goes wrong and where, in words.
    pub fault: &'static str,
    /// The same as something that is done.
    pub inject: Inject,
    /// Settings that differ from the stage's: path and JSON.
    pub settings: &'static [(&'static str, &'static str)],
    /// Where [`NAME`] leads.
    pub leads: Leads,
    /// How the proxy is started.
    pub place: Place,
    /// How the load beside it uses its connections.
    pub load: Load,
    /// A request goes first, so that a connection to the intake is open.
    pub warm: bool,
    /// What is asked of the intake that breaks.
    pub asks: &'static [Ask],
    /// What must hold beside [`ALWAYS`].
    pub holds: &'static [Hold],
    /// What the case cannot do without.
    pub needs: &'static [Need],
}

/// What must hold in every row.
pub const ALWAYS: &[&str] = &[
    "the load beside it, by the same proxy to another intake, has no failed request",
    "no request arrives twice",
    "nothing leaves in the clear, and every TLS session with an intake is within the policy",
    "when the fault is over, the next requests are answered within 20 s",
    "no process of the proxy ended or was replaced, and none panicked",
];

/// What most rows share.
pub const ROW: Row = Row {
    name: "",
    fault: "",
    inject: Inject::Nothing,
    settings: &[],
    leads: Leads::Hosts(&[BROKEN4]),
    place: Place::Usual,
    load: Load::Turns,
    warm: false,
    asks: &[Ask::Get, Ask::Post(20_000)],
    holds: &[],
    needs: &[Need::Root],
};

/// Settings of rows in which a time limit ends a request: long enough for the load.
pub const SHORT: &[(&str, &str)] = &[
    ("upstream.connect_timeout", "\"5s\""),
    ("upstream.response_timeout", "\"5s\""),
];

/// How a fault is made.
pub enum Inject {
    /// It is in the row's settings or in what is asked.
    Nothing,
    /// New connections to the intake play this.
    Play(&'static [Step], Times),
    /// Its open connections end.
    HangUp(HangUp),
    /// It starts again with another certificate.
    Certificate(Certificate),
    /// A script on one side, and one that takes it back.
    Script {
        side: Side,
        begin: &'static str,
        end: &'static str,
    },
    /// What the name server says.
    Dns(Dns),
    /// The worker's wall clock is so many seconds ahead.
    Clock(i64),
    /// By these two functions.
    Own {
        begin: fn(&mut Stage) -> Result<()>,
        end: fn(&mut Stage) -> Result<()>,
    },
    /// A stage of its own.
    Whole(fn(&Row) -> Result<()>),
}

/// How the proxy is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Usual,
    /// Its log goes into a file on a small file system, [`LOG_FOLDER`].
    LogFile,
    /// It has so many MiB of memory.
    Memory(u64),
}

/// See [`Place::LogFile`].
pub const LOG_FOLDER: &str = "/run/logs";

/// How clients of the load use their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Each for twenty requests.
    Turns,
    /// Each for all.
    Keeps,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Nothing: it is a new one.
    Good,
    /// Its end has passed.
    Expired,
    /// It ends while a connection is open.
    Ends,
    /// Somebody else signed it.
    OtherAuthority,
    /// It is for another name.
    OtherName,
}

/// On which side a script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The proxy's host.
    Host,
    /// The network with the intakes.
    Net,
}

/// Where the name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    /// Where the hosts file says.
    Hosts(&'static [IpAddr]),
    /// Where the name server says, for so many seconds.
    Dns(&'static [IpAddr], u32),
}

/// What is wrong with the name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dns {
    /// It says nothing.
    Silence,
    /// SERVFAIL.
    Failure,
    /// It answers with bytes that are no message.
    Garbage,
    /// The name does not exist.
    Unknown,
    /// It leads to these addresses.
    Leads(&'static [IpAddr]),
    /// It takes so many milliseconds for each answer.
    Slow(u64),
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Without a body.
    Get,
    /// With a body of so many bytes.
    Post(usize),
    /// The same with `Expect: 100-continue`.
    Expect(usize),
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Each request gets this status from the proxy, with this outcome, which is counted.
    Answered(u16, &'static str),
    /// Each request gets the intake's answer, whole.
    Relayed(u16),
    /// Each request gets the beginning of an answer, whose end is seen to be missing; the outcome is counted.
    Cut(&'static str),
    /// No byte of a request reached the intake meanwhile.
    Untouched,
    /// The intake got so many connections meanwhile, not more.
    Connections(u64),
    /// So many requests were sent once more, because the first time proved that nobody had them.
    Retries(u64),
    /// None took longer than so many seconds.
    Within(u64),
    /// The log says this.
    Logs(&'static str),
    /// This counter of `/metrics` is not zero.
    Counts(&'static str),
    /// `status` says so: a JSON pointer, and that what is there is neither null, zero nor false.
    Status(&'static str),
    /// Something that only the row's own function can look at; in words.
    Own(&'static str),
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answered(status, outcome) => write!(f, "{status} `{outcome}`"),
            Self::Relayed(status) => write!(f, "the intake's {status}, whole"),
            Self::Cut(outcome) => write!(f, "the answer is cut and looks so, `{outcome}`"),
            Self::Untouched => write!(f, "the intake gets no byte of a request"),
            Self::Connections(count) => write!(f, "at most {count} connections to it"),
            Self::Retries(count) => write!(f, "sent again {count} times"),
            Self::Within(seconds) => write!(f, "within {seconds} s"),
            Self::Logs(text) => write!(f, "the log says \"{text}\""),
            Self::Counts(metric) => write!(f, "`{metric}` counts it"),
            Self::Status(pointer) => write!(f, "`status --json` has `{pointer}`"),
            Self::Own(words) => write!(f, "{words}"),
        }
    }
}
