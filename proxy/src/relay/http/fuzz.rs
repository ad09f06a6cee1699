//! What is fuzzed of heads and bodies. See [`crate::fuzz`].
#![expect(clippy::panic, reason = "that is how a finding is reported")]

use std::rc::Rc;

use super::MAX_BUFFER;
use super::chunk::{Chunked, Piece};
use super::head::{self, Framing, Head, MAX_HEADERS, Violation};
use super::reply::{self, Asked, Delimited, Reply};
use super::rewrite;
use super::window::{Body, Window};
use crate::fuzz::Pieces;
use crate::relay::buffers::Buffers;

/// The name that is written into heads.
const HOST: &str = "intake.example";

/// See [`crate::fuzz::request_head`].
pub(crate) fn request_head(bytes: &[u8]) {
    let whole = head::find_end(bytes, 0);
    // Byte by byte, as slowly as a head can come.
    let slowly = (1..=bytes.len())
        .map(|length| head::find_end(&bytes[..length], length - 1))
        .find(|found| *found != Ok(None))
        .unwrap_or(Ok(None));
    assert_eq!(slowly, whole);
    let Ok(Some(end)) = whole else { return };
    let bytes = &bytes[..end];
    if let Ok(read) = head::check(bytes) {
        read_by_others(bytes, &read);
        written(bytes, &read);
    }
}

/// What we accept, others read as we do.
fn read_by_others(bytes: &[u8], read: &Head<'_>) {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut other = httparse::Request::new(&mut headers);
    assert_eq!(other.parse(bytes), Ok(httparse::Status::Complete(bytes.len())));
    assert_eq!((other.method, other.path), (Some(read.method), Some(read.target)));
    assert_eq!(other.version, Some(u8::from(!read.http10)));
    let theirs = other
        .headers
        .iter()
        .map(|header| (header.name.as_bytes(), header.value));
    assert!(theirs.eq(head::headers(bytes)));
}

/// What is written of a head that was accepted.
fn written(bytes: &[u8], read: &Head<'_>) {
    assert_eq!(read.outline.read(bytes), Some(*read));
    let mut out = Vec::new();
    rewrite::request_head(bytes, &read.outline, HOST.as_bytes(), &mut out);
    assert_eq!(head::find_end(&out, 0), Ok(Some(out.len())));
    let again = match head::check(&out) {
        Ok(again) => again,
        // Host, and the length of an empty body: two more than came at most.
        Err(Violation::TooManyHeaders) => {
            assert!(head::headers(bytes).count() + 2 > MAX_HEADERS);
            return;
        }
        Err(violation) => panic!("what is written is refused: {violation}"),
    };
    let (_, path) = read.split_target();
    let root = if path.starts_with('/') { "" } else { "/" };
    assert_eq!(again.target, format!("{root}{path}"));
    assert_eq!((again.method, again.framing), (read.method, read.framing));
    assert_eq!(again.host, Some(HOST));
    assert!(again.keep_alive && !again.http10);
    assert!(!again.lists_headers && !again.expects_continue && !again.upgrade);

    let framings = head::headers(&out).filter(|(name, _)| {
        name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding")
    });
    assert_eq!(
        framings.count(),
        usize::from(read.framing != Framing::None || again.has_length)
    );

    // In their order, and nothing but the framing behind them.
    let expected: Vec<_> = head::headers(bytes)
        .filter(|(name, _)| goes_on(name, bytes))
        .collect();
    let all: Vec<_> = head::headers(&out).collect();
    assert_eq!(all[0], (&b"Host"[..], HOST.as_bytes()));
    let (same, added) = all[1..].split_at(expected.len());
    assert_eq!(same, expected);
    let ours = [
        (&b"Transfer-Encoding"[..], &b"chunked"[..]),
        (b"Content-Length", b"0"),
    ];
    assert!(added.len() <= 1 && added.iter().all(|header| ours.contains(header)));
}

/// Whether a header is for the intake too, as RFC 9110 section 7.6.1 has it.
fn goes_on(name: &[u8], bytes: &[u8]) -> bool {
    let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
    let listed = || {
        head::headers(bytes)
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"))
            .flat_map(|(_, value)| head::options(value))
            .any(is)
    };
    !rewrite::ends_here(name) && !is(b"host") && (is(b"content-length") || !listed())
}

/// How far a body goes, its data, and whether it ended; or where the fault is.
type Decoded = (Vec<u8>, Result<(usize, bool), (usize, Violation)>);

/// See [`crate::fuzz::chunked_body`].
pub(crate) fn chunked_body(bytes: &[u8], pieces: Pieces<'_>) {
    let whole = decoded([bytes].into_iter());
    assert_eq!(decoded(pieces), whole);

    let (data, verdict) = whole;
    let mut window = Window::holding(Rc::new(Buffers::new(MAX_BUFFER)), bytes);
    window.begin_body(0, Body::Chunked(Chunked::new()));
    let result = window.decode();
    assert_eq!(window.data(), data);
    match verdict {
        Ok((used, ended)) => {
            assert_eq!((result, window.is_ended()), (Ok(()), ended));
            assert_eq!(window.raw(), &bytes[used..]);
        }
        Err((_, violation)) => {
            assert_eq!(result, Err(violation));
            assert_eq!(window.decode(), Err(violation), "it stays broken");
        }
    }
}

fn decoded<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let mut chunked = Chunked::new();
    let (mut used, mut data) = (0, Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            let length = match chunked.next(piece) {
                Ok(Piece::Framing(length)) => length,
                Ok(Piece::Data(length)) => {
                    data.extend_from_slice(&piece[..length]);
                    length
                }
                Ok(Piece::End(length)) => return (data, Ok((used + length, true))),
                Err((before, violation)) => return (data, Err((used + before, violation))),
            };
            assert!(length > 0, "it gets on");
            used += length;
            piece = &piece[length..];
        }
    }
    (data, Ok((used, false)))
}

/// See [`crate::fuzz::answer_head`]. The lowest three bits of `asked` are those of [`Asked`]; the others say how much of the head
/// came first.
pub(crate) fn answer_head(asked: u8, bytes: &[u8]) {
    let first = bytes.len() * usize::from(asked >> 3) / 32;
    let asked = Asked {
        head: asked & 1 != 0,
        http10: asked & 2 != 0,
        keep_alive: asked & 4 != 0,
    };
    let (whole, out) = answered(bytes, asked);
    match (answered(&bytes[..first], asked), &whole) {
        ((Ok(None), _), _) | ((Err(_), _), Err(_)) => {}
        ((Ok(Some((early, _))), early_out), Ok(Some((reply, _)))) => {
            assert_eq!((early.len, &early_out), (reply.len, &out));
        }
        ((early, _), _) => panic!("less of it was {early:?}, and it is {whole:?}"),
    }
    let Ok(Some((reply, delimited))) = whole else {
        return;
    };
    assert!(reply.len <= bytes.len());
    // Neither is passed on.
    if reply.is_interim() || reply.status == http::StatusCode::SWITCHING_PROTOCOLS {
        assert!(out.is_empty() || !reply.is_interim());
        return;
    }
    let (again, _) = answered(&out, asked);
    let (again, _) = match again {
        Ok(Some(again)) => again,
        // What is said of the framing and of the connection: two more than came at most.
        Err("its answer has more than 100 headers") => return,
        other => panic!("what is written is {other:?}"),
    };
    assert_eq!((again.len, again.status), (out.len(), reply.status));
    let same = match (delimited, &reply.body, &again.body) {
        (Delimited::AsIs, Body::Ended, Body::Ended) => true,
        (Delimited::AsIs, Body::Length(length), Body::Length(same)) => length == same,
        (Delimited::Chunked, _, Body::Chunked(_)) => !asked.http10,
        (Delimited::Close, _, Body::UntilEnd) => asked.http10,
        _ => false,
    };
    assert!(same, "{delimited:?}: {:?} became {:?}", reply.body, again.body);
    if !asked.keep_alive || delimited == Delimited::Close {
        assert!(!again.keep_alive);
    }
}

/// An answer's head as it was read: it, or that it is not complete, or why it is none.
type Answered = Result<Option<(Reply, Delimited)>, &'static str>;

/// What is read, and what is written of it.
fn answered(bytes: &[u8], asked: Asked) -> (Answered, Vec<u8>) {
    let mut out = Vec::new();
    let read = reply::read(bytes, asked, |response, lines, delimited| {
        rewrite::response_head(response, lines, delimited, asked, &mut out);
    });
    (read, out)
}
