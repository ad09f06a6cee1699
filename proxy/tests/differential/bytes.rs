//! Streams of bytes: how they are changed, and how they are split on their way.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// One change of a stream.
#[derive(Clone, Debug)]
pub enum Edit {
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Replace(Index, u8),
    /// A part once more, behind itself.
    Repeat(Index, usize),
    /// A line behind one of the first lines.
    Line(usize, Vec<u8>),
    /// What follows never comes.
    End(Index),
}

impl Edit {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let part = |at: &Index, len: usize| {
            let at = at.index(bytes.len());
            at..(at + len).min(bytes.len())
        };
        match self {
            Self::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Remove(at, len) => {
                let part = part(at, *len);
                bytes.drain(part);
            }
            Self::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Repeat(at, len) => {
                let part = part(at, *len);
                let again = bytes[part.clone()].to_vec();
                bytes.splice(part.end..part.end, again);
            }
            Self::Line(number, line) => {
                let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
                let at = ends.map(|(at, _)| at + 1).nth(*number).unwrap_or(0);
                bytes.splice(at..at, line.iter().copied());
            }
            Self::End(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

/// Bytes that matter to a parser of HTTP/1.
const TOKENS: &[&[u8]] = &[
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b"\x7f",
    b"\xff",
    b":",
    b";",
    b",",
    b"\"",
    b"+",
    b"-",
    b"0x",
    b"0",
    b"f",
    b"*",
    b"?",
    b"#",
    b"%0d%0a",
    b"/",
    b"//",
    b"http://localhost",
    b"chunked",
    b"identity",
    b"gzip, ",
    b"close",
    b"keep-alive",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"HEAD",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"5;a=b\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HTTP/1.1 299 Stale\r\nContent-Length: 0\r\n\r\n",
];

/// Lines of a head, and what is nearly one.
const LINES: &[&[u8]] = &[
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding:chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"content-length:\t3 \r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 99999999999\r\n",
    b"Content-Length: 05\r\n",
    b"Content-Length\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: content-length, x-a\r\n",
    b"Connection: transfer-encoding, host\r\n",
    b"Connection: ,, close ,\r\n",
    b"Host: localhost\r\n",
    b"Host: evil.example\r\n",
    b"X-A: 1\r\n",
    b"X-A: 2\r\n",
    b"X-Odd: \xe4\xff \t\r\n",
    b" folded: x\r\n",
    b"Keep-Alive: timeout=1\r\n",
    b"TE: trailers\r\n",
    b"Trailer: x\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\n",
    b"Proxy-Connection: close\r\n",
    b"X-Empty:\r\n",
    b"\r\n",
    b"X: a\rb\r\n",
    b"X: a\nY: b\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
];

/// One change.
pub fn edit() -> impl Strategy<Value = Edit> {
    let token = || select(TOKENS).prop_map(<[u8]>::to_vec);
    prop_oneof![
        4 => (any::<Index>(), token()).prop_map(|(at, token)| Edit::Insert(at, token)),
        2 => (any::<Index>(), 1..8_usize).prop_map(|(at, len)| Edit::Remove(at, len)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, len)| Edit::Repeat(at, len)),
        5 => (0..8_usize, select(LINES)).prop_map(|(number, line)| Edit::Line(number, line.to_vec())),
        1 => any::<Index>().prop_map(Edit::End),
    ]
}

/// No change as often as some.
pub fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop_oneof![1 => Just(Vec::new()), 2 => prop::collection::vec(edit(), 1..4)]
}

/// How a stream is split.
#[derive(Clone, Debug)]
pub struct Split {
    cuts: Vec<Index>,
    /// Between two parts, so that they arrive as two.
    pause: Duration,
}

impl Split {
    /// All at once.
    pub fn none() -> Self {
        Self {
            cuts: Vec::new(),
            pause: Duration::ZERO,
        }
    }

    /// Writes `bytes` in parts. The other side may have heard enough before the last one.
    pub fn write(&self, bytes: &[u8], stream: &mut TcpStream) -> io::Result<()> {
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let mut from = 0;
        for cut in cuts {
            stream.write_all(&bytes[from..cut])?;
            from = cut;
            std::thread::sleep(self.pause);
        }
        Ok(())
    }
}

/// Up to eight parts.
pub fn split() -> impl Strategy<Value = Split> {
    (
        prop::collection::vec(any::<Index>(), 0..8),
        select(vec![0, 200, 1000]),
    )
        .prop_map(|(cuts, pause)| Split {
            cuts,
            pause: Duration::from_micros(pause),
        })
}

/// A body in chunks of these sizes, the last of them for what is left, with or without an extension and a trailer section.
pub fn chunked(body: &[u8], sizes: &[usize], extension: &str, trailers: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut sizes) = (body, sizes.iter().copied().cycle());
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(sizes.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        write!(out, "{:x}{extension}\r\n", chunk.len()).unwrap();
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
    }
    write!(out, "0{extension}\r\n{trailers}\r\n").unwrap();
    out
}

/// A body: usually small, sometimes larger than what is read at once.
pub fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..200),
        2 => Just(b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        1 => (90_000..210_000_usize, 0..251_usize)
            .prop_map(|(len, seed)| (0..len).map(|n| ((n * 31 + n / 253 + seed) % 251).try_into().unwrap_or(0)).collect()),
    ]
}
