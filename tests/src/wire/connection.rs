//! What the side that opened a connection sent on it, in order: TLS records and nothing else, or where it was something else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use super::packet::Segment;

/// A connection, by what its opener sent.
#[derive(Debug)]
pub struct Connection {
    /// Who opened it.
    pub client: SocketAddr,
    /// Where it went.
    pub server: SocketAddr,
    /// The opener has heard of the other side.
    pub established: bool,
    /// How many bytes of payload the opener sent.
    pub bytes: u64,
    /// The number of the SYN.
    pub(super) first: u32,
    /// The number of the byte that comes next.
    next: u32,
    /// What came before its turn, by its place among all bytes.
    waiting: BTreeMap<u64, Vec<u8>>,
    records: Records,
    /// The end of what came, shorter than the secret: that may come in two pieces.
    tail: Vec<u8>,
    secret: bool,
    fault: Option<String>,
}

impl Connection {
    /// One that begins with this SYN.
    pub(super) fn new(syn: &Segment<'_>) -> Self {
        Self {
            client: syn.from,
            server: syn.to,
            established: false,
            bytes: 0,
            first: syn.sequence,
            next: syn.sequence.wrapping_add(1),
            waiting: BTreeMap::new(),
            records: Records::default(),
            tail: Vec::new(),
            secret: false,
            fault: None,
        }
    }

    /// One whose beginning nobody heard.
    pub(super) fn from_the_middle(segment: &Segment<'_>) -> Self {
        let mut connection = Self::new(segment);
        connection.next = segment.sequence;
        connection.fault = Some("it was open before the capture".to_owned());
        connection
    }

    /// One more segment of the opener's.
    pub(super) fn segment(&mut self, segment: &Segment<'_>, secret: &[u8]) {
        self.established |= segment.stands();
        self.secret |= contains(segment.payload, secret);
        // A SYN has a number, too, and a payload behind it with TCP fast open.
        let at = segment.sequence.wrapping_add(segment.opens().into());
        // Numbers go round; a segment is never 2 GiB away.
        let ahead = at.wrapping_sub(self.next).cast_signed();
        if ahead > 0 {
            if !segment.payload.is_empty() {
                let place = self.bytes + u64::from(ahead.unsigned_abs());
                let known = self.waiting.entry(place).or_default();
                // Sent again it may be more or less than the first time.
                if known.len() < segment.payload.len() {
                    *known = segment.payload.to_vec();
                }
            }
            return;
        }
        self.take(ahead.unsigned_abs() as usize, segment.payload, secret);
        while let Some(early) = self
            .waiting
            .first_entry()
            .filter(|early| *early.key() <= self.bytes)
        {
            let (place, bytes) = early.remove_entry();
            self.take(
                usize::try_from(self.bytes - place).unwrap_or(usize::MAX),
                &bytes,
                secret,
            );
        }
    }

    /// The next bytes, the first `known` of which came before.
    fn take(&mut self, known: usize, bytes: &[u8], secret: &[u8]) {
        let Some(fresh) = bytes.get(known..) else {
            return;
        };
        if let (None, Err(fault)) = (&self.fault, self.records.read(fresh)) {
            self.fault = Some(fault);
        }
        self.tail.extend_from_slice(fresh);
        self.secret |= contains(&self.tail, secret);
        let kept = self.tail.len().min(secret.len().saturating_sub(1));
        self.tail.drain(..self.tail.len() - kept);
        self.bytes += fresh.len() as u64;
        // What counts is the remainder of the division: numbers go round.
        self.next = self
            .next
            .wrapping_add(u32::try_from(fresh.len()).unwrap_or_default());
    }

    /// Whether the secret was in the clear on it.
    pub fn carries_the_secret(&self) -> bool {
        self.secret
    }

    /// Where it is not TLS from its first byte to its last, or cannot be told.
    pub fn violation(&self) -> Option<String> {
        let secret = self.secret.then(|| "it carries the secret".to_owned());
        let gap = self.waiting.first_key_value();
        let gap = gap.map(|(place, _)| format!("bytes {} to {place} of it were not seen", self.bytes));
        let why = secret.or_else(|| self.fault.clone()).or(gap)?;
        Some(format!("{} to {}: {why}", self.client, self.server))
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.violation() {
            Some(violation) => f.write_str(&violation),
            None => write!(
                f,
                "{} to {}: {} bytes of TLS",
                self.client, self.server, self.bytes
            ),
        }
    }
}

/// Follows the records of TLS (RFC 8446 section 5.1), byte by byte: not one may stand outside of them.
#[derive(Debug, Default)]
struct Records {
    head: Vec<u8>,
    /// How many bytes of the record are to come.
    left: usize,
    seen: u64,
}

impl Records {
    const HANDSHAKE: u8 = 22;
    /// change_cipher_spec, alert, handshake, application_data
    const TYPES: std::ops::RangeInclusive<u8> = 20..=23;
    /// RFC 5246 section 6.2.3, the more generous one.
    const LONGEST: usize = (1 << 14) + 2048;

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let Some(byte) = bytes.first() {
            let body = self.left.min(bytes.len());
            if body > 0 {
                self.left -= body;
                self.seen += body as u64;
                bytes = &bytes[body..];
                continue;
            }
            self.head.push(*byte);
            let good = match *self.head.as_slice() {
                [kind] if self.seen == 0 => kind == Self::HANDSHAKE,
                [kind] => Self::TYPES.contains(&kind),
                [_, major] => major == 3,
                [_, _, minor] => minor <= 4,
                [_, _, _, high, low] => {
                    self.left = usize::from(u16::from_be_bytes([high, low]));
                    self.head.clear();
                    self.left <= Self::LONGEST
                }
                _ => true,
            };
            if !good {
                let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
                return Err(format!("byte {} of it is no TLS: {shown:?}", self.seen));
            }
            self.seen += 1;
            bytes = &bytes[1..];
        }
        Ok(())
    }
}

/// Whether `needle` is somewhere in there.
pub(super) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
