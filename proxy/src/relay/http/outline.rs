//! Where the parts of a good request head stand in its bytes, so that it is written for the next hop, or decided on once more,
//! without being checked again.
//!
//! Most lines of a head are written on as they came: what lies between two lines that are not is one piece.

use super::head::{Framing, Head};
use super::rewrite::ends_here;

/// Gaps between the pieces that are written on. An Agent's head has one or two: `Host`, and `Connection` or `Expect`.
const GAPS: usize = 4;

/// The parts of a head, when nothing of [`Head`] can be borrowed any more. Only good for the bytes that were checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::relay) struct Outline {
    method: Span,
    target: Span,
    path: Span,
    host: Option<Span>,
    /// See [`Head::http10`].
    http10: bool,
    /// See [`Head::keep_alive`].
    keep_alive: bool,
    /// See [`Head::expects_continue`].
    expects_continue: bool,
    /// See [`Head::upgrade`].
    upgrade: bool,
    /// All header lines.
    lines: Span,
    /// Those of them that are not written on, in order and apart from each other. Unused ones are empty.
    gaps: [Span; GAPS],
    used: u8,
    /// The headers are written one by one: their lines are not as we write them, or there are too many gaps.
    one_by_one: bool,
    /// See [`Head::lists_headers`].
    pub(super) lists_headers: bool,
    /// See [`Head::framing`].
    pub(super) framing: Framing,
    /// See [`Head::has_length`].
    pub(super) has_length: bool,
}

/// A head at the beginning of a window that was checked before its request is looked at.
#[derive(Clone, Copy, Debug)]
pub(in crate::relay) struct Checked {
    /// Its length.
    pub(in crate::relay) end: usize,
    pub(in crate::relay) outline: Outline,
}

/// Bytes from here to there. A head is no longer than a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn of(self, head: &[u8]) -> &[u8] {
        head.get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

impl Outline {
    /// The method in `head`.
    pub(super) fn method<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        self.method.of(head)
    }

    /// Path and query in `head`, as [`Head::split_target`] gives them.
    pub(super) fn path<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        self.path.of(head)
    }

    /// What [`head::check`](super::head::check) gave for `head`; nothing when these are other bytes.
    pub(super) fn read<'a>(&self, head: &'a [u8]) -> Option<Head<'a>> {
        let text = |span: Span| str::from_utf8(span.of(head)).ok();
        Some(Head {
            method: text(self.method)?,
            target: text(self.target)?,
            framing: self.framing,
            host: match self.host {
                Some(host) => Some(text(host)?),
                None => None,
            },
            http10: self.http10,
            keep_alive: self.keep_alive,
            lists_headers: self.lists_headers,
            expects_continue: self.expects_continue,
            has_length: self.has_length,
            upgrade: self.upgrade,
            outline: *self,
        })
    }

    /// The header lines of `head` that are written on as they are, in pieces; `None` when they are to be looked at one by
    /// one.
    pub(super) fn pieces<'a>(&'a self, head: &'a [u8]) -> Option<impl Iterator<Item = &'a [u8]>> {
        if self.one_by_one || self.lists_headers {
            return None;
        }
        let Span { start, end } = self.lines;
        let gaps = self.gaps.iter().take(usize::from(self.used));
        let starts = std::iter::once(start).chain(gaps.clone().map(|gap| gap.end));
        let ends = gaps.map(|gap| gap.start).chain(std::iter::once(end));
        Some(starts.zip(ends).map(|(start, end)| Span { start, end }.of(head)))
    }
}

/// Makes an [`Outline`] of the lines as they are read.
#[derive(Debug)]
pub(super) struct Outliner {
    outline: Outline,
}

impl Outliner {
    /// The request line is this long, without its end.
    pub(super) fn new(request_line: usize) -> Self {
        let start = small(request_line + 2);
        let lines = Span { start, end: start };
        Self {
            outline: Outline {
                lines,
                ..Outline::default()
            },
        }
    }

    /// The next line, without its end, is this header.
    pub(super) fn header(&mut self, line: &[u8], name: &[u8], value: &[u8]) {
        let outline = &mut self.outline;
        let start = outline.lines.end;
        let end = start + small(line.len() + 2);
        outline.lines.end = end;
        let is_host = name.len() == 4 && name.eq_ignore_ascii_case(b"host");
        if is_host {
            let before = value.as_ptr().addr().saturating_sub(line.as_ptr().addr());
            let start = start + small(before);
            let end = start + small(value.len());
            outline.host = Some(Span { start, end });
        }
        if !(is_host || ends_here(name)) {
            // One space behind the colon, and no other around the value.
            let ours = line.len() == name.len() + 2 + value.len() && line.get(name.len() + 1) == Some(&b' ');
            outline.one_by_one |= !ours;
            return;
        }
        let used = usize::from(outline.used);
        match outline.gaps[..used].last_mut() {
            Some(gap) if gap.end == start => gap.end = end,
            _ if used == GAPS => outline.one_by_one = true,
            _ => {
                outline.gaps[used] = Span { start, end };
                outline.used += 1;
            }
        }
    }

    /// All headers were read, and this is what they say.
    pub(super) fn finish(self, read: &Head<'_>) -> Outline {
        let (_, path) = read.split_target();
        let method = read.method.len();
        let target_end = method + 1 + read.target.len();
        Outline {
            method: Span {
                start: 0,
                end: small(method),
            },
            target: Span {
                start: small(method + 1),
                end: small(target_end),
            },
            // What an absolute target has more stands in front.
            path: Span {
                start: small(target_end - path.len()),
                end: small(target_end),
            },
            http10: read.http10,
            keep_alive: read.keep_alive,
            expects_continue: read.expects_continue,
            upgrade: read.upgrade,
            lists_headers: read.lists_headers,
            framing: read.framing,
            has_length: read.has_length,
            ..self.outline
        }
    }
}

/// Heads are far shorter than what this cannot count.
fn small(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::{head, rewrite};
    use super::*;

    fn line() -> impl Strategy<Value = &'static str> {
        select(vec![
            "Host: localhost",
            "host:localhost",
            "Connection: keep-alive",
            "Connection: close, x-a",
            "Keep-Alive: 5",
            "TE: trailers",
            "Expect: 100-continue",
            "Proxy-Authorization: x",
            "Content-Length: 5",
            "content-length:5",
            "Transfer-Encoding: chunked",
            "X-A: 1",
            "X-A: 2",
            "X-B:1",
            "X-C:1 ",
            "X-D: 1 ",
            "X-E:\t1",
            "X-F:",
            "X-G: ",
            "X-H:  ",
            "User-Agent: a b  c",
            "DD-API-KEY: 0123",
        ])
    }

    /// What is written, and that without pieces.
    fn written(bytes: &[u8], outline: &Outline) -> [Vec<u8>; 2] {
        let single = Outline {
            one_by_one: true,
            ..*outline
        };
        [outline, &single].map(|outline| {
            let mut out = Vec::new();
            rewrite::request_head(bytes, outline, b"intake", &mut out);
            out
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 3000, ..Default::default() })]

        #[test]
        fn what_is_written_in_pieces_is_what_is_written_one_by_one(
            lines in prop::collection::vec(line(), 0..12),
            method in select(vec!["GET", "POST", "PUT", "X"]),
            target in select(vec!["/", "/a?b", "http://h", "http://h?x", "HTTP://h/a/b?c"]),
        ) {
            let mut text = format!("{method} {target} HTTP/1.1\r\n");
            lines.iter().for_each(|line| text.extend([line, "\r\n"]));
            text.push_str("\r\n");
            let bytes = text.as_bytes();
            let Ok(read) = head::check(bytes) else { return Ok(()) };
            let outline = read.outline;
            prop_assert_eq!(outline.read(bytes), Some(read));
            prop_assert_eq!(outline.method(bytes), method.as_bytes());
            prop_assert_eq!(outline.path(bytes), read.split_target().1.as_bytes());
            let [pieces, single] = written(bytes, &outline);
            prop_assert_eq!(pieces.escape_ascii().to_string(), single.escape_ascii().to_string());
        }
    }

    #[test]
    fn an_agents_head_is_written_in_pieces() {
        let head = b"POST /api/v2/series HTTP/1.1\r\nHost: localhost:9804\r\nUser-Agent: datadog-agent/7.80.0\r\n\
            Content-Length: 5\r\nDD-API-KEY: 0123\r\nTE: trailers\r\nConnection: keep-alive\r\nAccept-Encoding: gzip\r\n\r\n";
        let outline = head::check(head).unwrap().outline;
        let pieces: Vec<&[u8]> = outline.pieces(head).unwrap().collect();
        let expected: [&[u8]; 3] = [
            b"",
            b"User-Agent: datadog-agent/7.80.0\r\nContent-Length: 5\r\nDD-API-KEY: 0123\r\n",
            b"Accept-Encoding: gzip\r\n",
        ];
        assert_eq!(pieces, expected);
        for odd in [
            // Five gaps.
            "TE: a\r\nA: 1\r\nTE: a\r\nA: 1\r\nTE: a\r\nA: 1\r\nTE: a\r\nA: 1\r\nHost: a",
            "Host: a\r\nA:1",
            "Host: a\r\nA: 1 ",
            "Host: a\r\nA:1 ",
            "Host: a\r\nConnection: a\r\nA: 1",
        ] {
            let head = format!("GET / HTTP/1.1\r\n{odd}\r\n\r\n");
            let outline = head::check(head.as_bytes()).unwrap().outline;
            assert!(outline.pieces(head.as_bytes()).is_none(), "{odd}");
        }
    }
}
