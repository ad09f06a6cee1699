//! Records, and the handshake messages in them, taken apart as the bytes come: in any split, at a cost that is linear in their
//! number, holding no more than the one message that somebody wants.

use std::collections::BTreeMap;

use tls_parser::nom::Parser;
use tls_parser::nom::combinator::all_consuming;
use tls_parser::nom::error::Error;
use tls_parser::{
    TlsExtension, TlsHandshakeType, TlsRecordType, parse_tls_extension_unknown, parse_tls_record_header,
};

/// Why bytes cannot be read: short, fixed, without a byte of theirs.
pub(super) type Problem = &'static str;

/// Type, version, length (RFC 8446 section 5.1).
const RECORD_HEADER: usize = 5;
/// Type, length (RFC 8446 section 4).
const MESSAGE_HEADER: usize = 4;
/// The longest record in the clear, in bytes (RFC 8446 section 5.1).
const LONGEST_PLAINTEXT: u16 = 1 << 14;

/// Takes records apart.
#[derive(Debug, Default)]
pub(super) struct Records {
    header: [u8; RECORD_HEADER],
    /// Bytes of `header` that are there.
    have: usize,
    /// The record whose header is complete, and how much of it is still to come.
    open: Option<(TlsRecordType, usize)>,
}

/// A piece of a record. Never empty.
#[derive(Debug)]
pub(super) struct Fragment<'a> {
    pub(super) kind: TlsRecordType,
    pub(super) bytes: &'a [u8],
    /// Bytes of the same record after this piece.
    pub(super) left: usize,
}

impl Records {
    /// True when no record has begun that has not ended.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.open.is_none()
    }

    /// The next piece, from the front of `bytes`, which loses what was taken; `None` when more is needed.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Fragment<'a>>, Problem> {
        let (kind, length) = match self.open {
            Some(open) => open,
            None => {
                if !fill(&mut self.header, &mut self.have, bytes) {
                    return Ok(None);
                }
                let (_, header) = parse_tls_record_header(&self.header).map_err(|_| "no TLS record")?;
                // The minor version means nothing (RFC 8446 section 5.1); another major one is another protocol.
                if header.version.0 >> 8 != 3 || !(0x14..=0x18).contains(&header.record_type.0) {
                    return Err("no TLS record");
                }
                // RFC 8446 section 5.1: no empty fragments of handshake messages, and none of alerts.
                if header.len == 0 {
                    return Err("an empty record");
                }
                if header.len > LONGEST_PLAINTEXT {
                    return Err("a record longer than 16384 bytes");
                }
                self.have = 0;
                (header.record_type, usize::from(header.len))
            }
        };
        let (now, later) = bytes.split_at(length.min(bytes.len()));
        *bytes = later;
        let left = length - now.len();
        self.open = (left > 0).then_some((kind, left));
        Ok((!now.is_empty()).then_some(Fragment {
            kind,
            bytes: now,
            left,
        }))
    }
}

/// Puts handshake messages together.
#[derive(Debug, Default)]
pub(super) struct Messages {
    header: [u8; MESSAGE_HEADER],
    have: usize,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    kind: TlsHandshakeType,
    left: usize,
    /// Absent when nobody wants it.
    body: Option<Vec<u8>>,
}

impl Messages {
    /// The next whole message, from the front of `bytes`, which loses what was taken; `None` when more is needed. `wanted` sees type
    /// and length of each message first: it refuses it, or says whether its body is kept. The body of one that is not is empty.
    pub(super) fn next(
        &mut self,
        bytes: &mut &[u8],
        wanted: impl FnOnce(TlsHandshakeType, usize) -> Result<bool, Problem>,
    ) -> Result<Option<(TlsHandshakeType, Vec<u8>)>, Problem> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                if !fill(&mut self.header, &mut self.have, bytes) {
                    return Ok(None);
                }
                self.have = 0;
                let [kind, length @ ..] = self.header;
                let left = length
                    .iter()
                    .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
                let kind = TlsHandshakeType(kind);
                // Grows with what comes, not with what is announced.
                let body = wanted(kind, left)?.then(Vec::new);
                Open { kind, left, body }
            }
        };
        let (now, later) = bytes.split_at(open.left.min(bytes.len()));
        *bytes = later;
        open.left -= now.len();
        if let Some(body) = &mut open.body {
            body.extend_from_slice(now);
        }
        if open.left > 0 {
            self.open = Some(open);
            return Ok(None);
        }
        Ok(Some((open.kind, open.body.unwrap_or_default())))
    }

    /// True when no message has begun that has not ended.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.open.is_none()
    }
}

/// Moves bytes to where `target` has none yet; true when it is full.
fn fill(target: &mut [u8], have: &mut usize, bytes: &mut &[u8]) -> bool {
    let room = target.get_mut(*have..).unwrap_or_default();
    let (now, later) = bytes.split_at(room.len().min(bytes.len()));
    for (to, from) in room.iter_mut().zip(now) {
        *to = *from;
    }
    *have += now.len();
    *bytes = later;
    *have == target.len()
}

/// Extensions of a hello by their numbers. Their contents are not looked at.
pub(super) fn extensions(mut bytes: &[u8]) -> Result<BTreeMap<u16, &[u8]>, Problem> {
    let mut found = BTreeMap::new();
    while !bytes.is_empty() {
        let Ok((rest, TlsExtension::Unknown(kind, contents))) = parse_tls_extension_unknown(bytes) else {
            return Err("wrong length of an extension");
        };
        // RFC 8446 section 4.2, RFC 5246 section 7.4.1.4.
        if found.insert(kind.0, contents).is_some() {
            return Err("an extension that occurs twice");
        }
        bytes = rest;
    }
    Ok(found)
}

/// What `parser` makes of all of `bytes`; `problem` when it cannot, or when something is left over.
pub(super) fn whole<'a, T>(
    parser: impl Parser<&'a [u8], T, Error<&'a [u8]>>,
    bytes: &'a [u8],
    problem: Problem,
) -> Result<T, Problem> {
    all_consuming(parser)(bytes)
        .map(|(_, value)| value)
        .map_err(|_| problem)
}
