//! Reads the framing of a chunked body (RFC 9112 section 7.1): where its data is, where it ends, and what is malformed.

use super::head::{Violation, is_token};

/// Extensions of one body together; hyper's own decoder stops at the same number.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Trailer section.
const MAX_TRAILERS: usize = 8 * 1024;

/// Where in the framing the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Digits of a size; `bool`: at least one was there.
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    LineStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
}

/// What the next bytes of a chunked body are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// This many bytes of framing.
    Framing(usize),
    /// This many bytes of data.
    Data(usize),
    /// This many bytes of framing, behind which the body has ended.
    End(usize),
}

/// The reader: fed with a body's bytes in any pieces.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    extensions: usize,
    trailers: usize,
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self {
            state: State::Size { value: 0, digits: 0 },
            extensions: 0,
            trailers: 0,
        }
    }

    /// What `bytes`, which are not empty, begin with.
    ///
    /// # Errors
    /// The framing is malformed, with the number of bytes before the fault. Nothing behind it may be believed.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Piece, (usize, Violation)> {
        if let State::Data(left) = self.state {
            // Data is passed in one step: the cost is per chunk, not per byte.
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let left = left - here as u64;
            self.state = if left == 0 {
                State::DataCr
            } else {
                State::Data(left)
            };
            return Ok(Piece::Data(here));
        }
        for (at, &byte) in bytes.iter().enumerate() {
            match self.step(byte) {
                Ok(false) if matches!(self.state, State::Data(_)) => return Ok(Piece::Framing(at + 1)),
                Ok(false) => {}
                Ok(true) => return Ok(Piece::End(at + 1)),
                Err(violation) => return Err((at, violation)),
            }
        }
        Ok(Piece::Framing(bytes.len()))
    }

    /// One byte of framing; true at the end of the body.
    fn step(&mut self, byte: u8) -> Result<bool, Violation> {
        self.state = match (self.state, byte) {
            (State::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                // 15 digits stay below 2^60: no overflow, and no two readings of a huge size.
                if digits == 15 {
                    return Err(Violation::Chunk);
                }
                let digit = (byte as char).to_digit(16).ok_or(Violation::Chunk)?;
                State::Size {
                    value: value * 16 + u64::from(digit),
                    digits: digits + 1,
                }
            }
            (State::Size { value, digits: 1.. }, b';') => State::Extension { size: value },
            (State::Size { value, digits: 1.. }, b'\r') => State::SizeLf { size: value },
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { size }, b'\t' | 0x20..=0x7e | 0x80..=0xff) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(Violation::ChunkTooLong);
                }
                State::Extension { size }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::LineStart,
            (State::SizeLf { size }, b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::LineStart, b'\r') => State::LastLf,
            (State::LastLf, b'\n') => return Ok(true),
            (State::LineStart | State::TrailerName, byte) if is_token(byte) => {
                self.trailer(State::TrailerName)?
            }
            (State::TrailerName, b':') => self.trailer(State::TrailerValue)?,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | 0x20..=0x7e | 0x80..=0xff) => self.trailer(State::TrailerValue)?,
            (State::TrailerLf, b'\n') => State::LineStart,
            _ => return Err(Violation::Chunk),
        };
        Ok(false)
    }

    fn trailer(&mut self, next: State) -> Result<State, Violation> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS {
            return Err(Violation::ChunkTooLong);
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes over `bytes` up to the end of the body: how many belong to it, its data, and whether it ended.
    fn advance(chunked: &mut Chunked, bytes: &[u8]) -> Result<(usize, Vec<u8>, bool), (usize, Violation)> {
        let (mut at, mut data) = (0, Vec::new());
        while at < bytes.len() {
            match chunked.next(&bytes[at..]).map_err(|(n, why)| (at + n, why))? {
                Piece::Framing(n) => at += n,
                Piece::Data(n) => {
                    data.extend_from_slice(&bytes[at..at + n]);
                    at += n;
                }
                Piece::End(n) => return Ok((at + n, data, true)),
            }
        }
        Ok((at, data, false))
    }

    #[test]
    fn good_bodies_end_where_they_end_however_they_are_split() {
        for (body, data) in [
            (&b"0\r\n\r\n"[..], &b""[..]),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
            (
                b"5;a=b;c=\"d e\"\r\nhello\r\nA\r\n0123456789\r\n000\r\n\r\n",
                b"hello0123456789",
            ),
            (b"1\r\nx\r\n0\r\nDigest: abc\r\nX-Y:\r\n\r\n", b"x"),
        ] {
            for split in 0..body.len() {
                let mut chunked = Chunked::new();
                let (used, mut got, ended) = advance(&mut chunked, &body[..split]).unwrap();
                assert_eq!((used, ended), (split, false), "{split}");
                let mut rest = body[split..].to_vec();
                rest.extend_from_slice(b"GET ");
                let (used, more, ended) = advance(&mut chunked, &rest).unwrap();
                assert_eq!((used, ended), (body.len() - split, true), "{split}");
                got.extend(more);
                assert_eq!(got, data, "{split}");
            }
        }
    }

    #[test]
    fn bad_bodies_are_stopped_at_the_fault() {
        for (body, at) in [
            (&b"\r\n"[..], 0),
            (b"g\r\n", 0),
            (b"0x5\r\n", 1),
            (b"-1\r\n", 0),
            (b"5\nhello", 1),
            (b"5 \r\nhello", 1),
            (b"5\r\nhelloX", 8),
            (b"5\r\nhello\n", 8),
            (b"5\r\nhello\rX", 9),
            (b"1000000000000000\r\n", 15),
            (b"5;a\x00\r\n", 3),
            (b"0\r\n folded\r\n", 3),
            (b"0\r\nBad Name: x\r\n", 6),
            (b"0\r\nName: x\n\r\n", 10),
        ] {
            let stopped = advance(&mut Chunked::new(), body).map(drop);
            assert_eq!(
                stopped,
                Err((at, Violation::Chunk)),
                "{:?}",
                String::from_utf8_lossy(body)
            );
        }
        let long = [b"1;".as_slice(), &[b'a'; MAX_EXTENSIONS + 1]].concat();
        assert_eq!(
            advance(&mut Chunked::new(), &long)
                .map(drop)
                .map_err(|(_, why)| why),
            Err(Violation::ChunkTooLong)
        );
        let long = [b"0\r\n".as_slice(), &[b'a'; MAX_TRAILERS + 1]].concat();
        assert_eq!(
            advance(&mut Chunked::new(), &long)
                .map(drop)
                .map_err(|(_, why)| why),
            Err(Violation::ChunkTooLong)
        );
    }
}
