//! What `cargo xtask fuzz` runs on bytes that libFuzzer makes: our readers of others' bytes. Built only with the feature
//! `fuzz`, which the programs in `tests/fuzz` need and no shipped build has, and for the unit tests, which run every input of the
//! corpora there.
//!
//! One function a target. Each calls what the product calls, with nothing in between, and panics where a property does not hold:
//! that is how a finding is reported. What is private stands beside its module: `relay::http::fuzz`, `intercept::fuzz` with
//! `intercept::tc::fuzz` and `intercept::firewall::fuzz`, `config::fuzz`.
//!
//! Where a property is about bytes that come in pieces, the input's first two bytes say in which: see [`Pieces`].

use std::net::{IpAddr, Ipv6Addr};

use proxy_ebpf::{
    Action, Address, Attempt, Counter, Event, Facts, Flow, IPPROTO_TCP, MAX_OWN_CGROUPS, MAX_PORTS, Packet,
    Settings, Taken, Transport, classify, skip,
};

use crate::config;
use crate::intercept;
use crate::relay;
use crate::tls::observe::{ClientHello, HelloReader, Malformed, Observer, Progress, judge};

/// What is run on an input.
pub type Target = fn(&[u8]);

/// Every target, by the name of its program and of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("answer_head", answer_head),
    ("chunked_body", chunked_body),
    ("client_hello", client_hello),
    ("configuration", configuration),
    ("event", event),
    ("lpm_key", lpm_key),
    ("netlink", netlink),
    ("nftables", nftables),
    ("packet", packet),
    ("request_head", request_head),
    ("server_hello", server_hello),
];

/// A request's head: its end, its check, and what is written for the intake. Any split gives the same; what is written is
/// accepted again and says the same, with one framing; every header line is there that should be, and no other. What is accepted,
/// httparse, which hyper and others read with, reads as the same.
pub fn request_head(bytes: &[u8]) {
    relay::fuzz::request_head(bytes);
}

/// A chunked body: any split gives the same data and the same verdict at the same byte; the window, which decodes in place, too.
pub fn chunked_body(bytes: &[u8]) {
    let (pieces, body) = Pieces::of(bytes);
    relay::fuzz::chunked_body(body, pieces);
}

/// An answer's head. The first byte says how it was asked for, see `relay::http::fuzz`. Less of it is never another answer;
/// what is written for the client is an answer with the same status and the same end.
pub fn answer_head(bytes: &[u8]) {
    if let Some((asked, head)) = bytes.split_first() {
        relay::fuzz::answer_head(*asked, head);
    }
}

/// A client's first bytes, read as a ClientHello: any split gives the same.
pub fn client_hello(bytes: &[u8]) {
    fn fed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Option<ClientHello>, Malformed> {
        let mut reader = HelloReader::default();
        for piece in pieces {
            match reader.feed(piece) {
                Ok(None) => {}
                over => return over,
            }
        }
        Ok(None)
    }
    let (pieces, bytes) = Pieces::of(bytes);
    assert_eq!(fed(pieces), fed([bytes].into_iter()));
}

/// A server's first bytes, read for the session that comes of them: any split gives the same, and what is known can be judged.
pub fn server_hello(bytes: &[u8]) {
    fn fed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Progress, bool) {
        let mut observer = Observer::default();
        let mut progress = Progress::More;
        for piece in pieces {
            progress = observer.server(piece);
        }
        (progress, observer.awaits_client())
    }
    let (pieces, bytes) = Pieces::of(bytes);
    let whole = fed([bytes].into_iter());
    assert_eq!(fed(pieces), whole);
    if let Progress::Known(session) = whole.0 {
        // Any verdict will do: what it says of the session is tested with sessions that are known.
        let _ = judge(&session);
    }
}

/// A configuration file and, behind a zero byte, an environment file. What is accepted is shown, and what was set, written down
/// as it is shown, gives the same configuration.
pub fn configuration(bytes: &[u8]) {
    config::fuzz::configuration(bytes);
}

/// A record of the kernel programs: only one of the right length is one, it holds what its bytes hold, and the log shows it on a
/// single line.
pub fn event(bytes: &[u8]) {
    let Some(event) = Event::from_bytes(bytes) else {
        assert_ne!(bytes.len(), size_of::<Event>());
        return;
    };
    let written: Vec<u8> = event.words().into_iter().flat_map(u64::to_ne_bytes).collect();
    assert_eq!(written, bytes);
    let shown = event.to_string();
    assert!(
        shown.chars().all(|c| c.is_ascii_graphic() || c == ' '),
        "{shown:?}"
    );
}

/// A datagram of netlink, as an answer to request 1, and what we make of each message in it.
pub fn netlink(bytes: &[u8]) {
    intercept::fuzz::netlink(bytes);
}

/// A datagram of netlink about nf_tables, each of its messages taken for a chain and for a rule: a chain that drops whatever comes
/// stops every packet, and every input chain that stops ours is told, and no other.
pub fn nftables(bytes: &[u8]) {
    intercept::fuzz::nftables(bytes);
}

/// A network and an address: the network's key in a prefix map gives the network back, and finds the address, as the programs ask
/// for it, exactly when the network holds it.
pub fn lpm_key(bytes: &[u8]) {
    let mut rest = Bytes(bytes);
    let (network, length, address) = (rest.ip(), rest.next(), rest.ip());
    let word = |octets: &[u8]| octets.try_into().map_or(0, u32::from_ne_bytes);
    let as_seen = match address {
        IpAddr::V4(ip) => Address::from_v4(word(&ip.octets())),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            Address {
                words: [0, 4, 8, 12].map(|at| word(&octets[at..at + 4])),
            }
        }
    };
    let canonical = address.to_canonical();
    let mapped = match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    assert_eq!(Ipv6Addr::from(as_seen.octets()), mapped);
    assert_eq!(as_seen.v4().is_some(), canonical.is_ipv4());
    assert_eq!(
        as_seen.is_local(),
        canonical.is_loopback() || canonical.is_unspecified()
    );
    intercept::fuzz::lpm_key(network, length, canonical, &as_seen);
}

/// A packet, settings, and what the maps say: what is taken, refused or let go has every reason for it.
pub fn packet(bytes: &[u8]) {
    let mut rest = Bytes(bytes);
    let settings = rest.settings();
    let known = Known(rest.next());
    let transport = if rest.next() & 1 == 0 {
        Transport::of_v4(&rest.words())
    } else {
        Transport::of_v6(&rest.words())
    };
    let mark = rest.word();
    let marked = settings.marked(mark);
    assert_eq!((marked ^ mark) & !settings.mark_mask, 0);
    assert_eq!((marked ^ settings.mark_value) & settings.mark_mask, 0);
    let Some(transport) = transport else { return };
    assert!((20..=60).contains(&transport.offset) && transport.offset.is_multiple_of(4));
    let packet = transport.segment(&rest.words());
    let destination = packet.flow.destination;
    let action = classify(&settings, &packet, &known);
    judged(&settings, &packet, known, action);
    let counter = action.counter(&destination);
    let taken = matches!(counter, Some(Counter::TcTakenV4 | Counter::TcTakenV6));
    assert_eq!(taken, action == Action::Take);
    assert_eq!(
        counter == Some(Counter::TcTakenV4),
        taken && destination.v4().is_some()
    );

    // The same connection, as the other datapath sees it begin.
    let attempt = Attempt {
        protocol: u32::from(rest.next()),
        destination,
        port: packet.flow.destination_port,
        cgroup: u64::from(rest.next()),
    };
    let candidate = attempt.protocol == IPPROTO_TCP
        && settings.enabled()
        && !settings.is_own(attempt.cgroup)
        && !destination.is_local()
        && selects(&settings, attempt.port);
    assert_eq!(skip(&settings, &attempt).is_none(), candidate);
}

/// The reasons that a decision must have, written down once more, as a table.
fn judged(settings: &Settings, packet: &Packet, known: Known, action: Action) {
    let Known(bits) = known;
    let port = selects(settings, packet.flow.destination_port);
    let wanted = packet.opening && settings.enabled() && port && bits & SELECTED != 0;
    let reached = bits & ASTRAY == 0 && bits & LISTENER != 0;
    let own = bits & OWN != 0;
    let later = !packet.opening && port && bits & TAKEN != 0;
    let gone = bits & WAITS != 0 && packet.answering && !settings.closed();
    let right = match action {
        Action::Take => wanted && !own && reached,
        Action::Own => wanted && own,
        Action::Refuse => wanted && !own && !reached && settings.closed(),
        Action::Open => wanted && !own && !reached && !settings.closed(),
        Action::Forget => packet.opening && !wanted,
        Action::Follow => later && bits & ASTRAY == 0 && !gone,
        Action::Direct => later && bits & ASTRAY == 0 && gone,
        Action::Lost => later && bits & ASTRAY != 0,
        Action::Pass => !packet.opening && !later,
    };
    assert!(
        right,
        "{action:?} for {packet:?} under {settings:?} with {bits:#b}"
    );
}

fn selects(settings: &Settings, port: u16) -> bool {
    let count = (settings.port_count as usize).min(MAX_PORTS);
    settings.ports[..count].contains(&port)
}

const SELECTED: u8 = 1;
const TAKEN: u8 = 2;
const OWN: u8 = 4;
const ASTRAY: u8 = 8;
const LISTENER: u8 = 16;
const WAITS: u8 = 32;

/// What the maps say, one bit for each question.
#[derive(Clone, Copy)]
struct Known(u8);

impl Facts for Known {
    fn selected(&self, _: &Address) -> bool {
        self.0 & SELECTED != 0
    }

    fn taken(&self, _: &Flow) -> Option<Taken> {
        let waiting = Taken::waiting(0);
        let value = if self.0 & WAITS == 0 {
            waiting.picked()
        } else {
            waiting
        };
        (self.0 & TAKEN != 0).then_some(value)
    }

    fn own(&self, _: &Flow) -> bool {
        self.0 & OWN != 0
    }

    fn astray(&self, _: &Address) -> bool {
        self.0 & ASTRAY != 0
    }

    fn listener(&self, _: &Address) -> bool {
        self.0 & LISTENER != 0
    }
}

/// An input, taken apart from its beginning. Behind its end there are zeros.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next())
    }

    fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.array())
    }

    fn words<const N: usize>(&mut self) -> [u32; N] {
        std::array::from_fn(|_| self.word())
    }

    /// Of the family that the first byte says.
    fn ip(&mut self) -> IpAddr {
        match self.next() & 1 {
            0 => self.array::<4>().into(),
            _ => self.array::<16>().into(),
        }
    }

    /// Few ports and small numbers of cgroups, so that they are met.
    fn settings(&mut self) -> Settings {
        Settings {
            own_cgroups: std::array::from_fn::<_, MAX_OWN_CGROUPS, _>(|_| u64::from(self.next())),
            ports: std::array::from_fn(|_| u16::from(self.next())),
            port_count: u32::from(self.next()),
            flags: u32::from(self.next()),
            mark_value: self.word(),
            mark_mask: self.word(),
        }
    }
}

/// Bytes in pieces of 1 to 256 bytes, as a network may bring them.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'a> {
    rest: &'a [u8],
    state: u32,
}

impl<'a> Pieces<'a> {
    /// The bytes behind the first two in the pieces that these say; and whole.
    fn of(bytes: &'a [u8]) -> (Self, &'a [u8]) {
        let (seed, rest) = bytes.split_at(bytes.len().min(2));
        let state = seed.iter().fold(1, |state, byte| state << 8 | u32::from(*byte));
        (Self { rest, state }, rest)
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        // Numerical Recipes' generator; its high bits are the good ones. Short pieces as often as long ones.
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let most = 1 << (self.state >> 29);
        let length = 1 + (self.state >> 8) as usize % (2 * most);
        let (piece, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        Some(piece)
    }
}

#[cfg(test)]
mod tests;
