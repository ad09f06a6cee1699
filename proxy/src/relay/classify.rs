//! What a client speaks, from its first bytes.
//!
//! The bytes are kept and handed on: classification never loses or changes one. Where the answer is unclear the
//! connection counts as opaque and is passed on rather than broken, with one exception: what begins like an HTTP/1
//! request must become one within `limits.header_timeout`, because passing it on could put an API key on the wire in
//! the clear. What begins like TLS is read until its ClientHello is whole: the name in it decides.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use memchr::memchr;
use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout_at};

use super::http::head;
use super::http::window::{Filled, Window};
use crate::tls::observe::{ClientHello, HelloReader, Malformed};

/// A client that has said nothing for this long may be waiting for the server to speak first.
pub(super) const SILENCE: Duration = Duration::from_millis(500);

/// The connection preface of HTTP/2 (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longer than any method: a run of token bytes without a space is something else.
const MAX_METHOD: usize = 32;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// HTTP/1.x in the clear.
    Http1,
    /// HTTP/2 with prior knowledge, in the clear.
    Http2,
    /// A TLS ClientHello.
    Tls,
    /// Bytes of some other protocol.
    Opaque,
    /// The server spoke first.
    Silent,
}

impl Class {
    /// Its name in records.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
            Self::Silent => "silent",
        }
    }
}

/// What a connection's first bytes mean. In the window is then, for [`Class::Http1`], at least the whole head, unless it is
/// malformed or too long; for [`Class::Tls`] at least the whole hello, unless it is malformed.
#[derive(Debug)]
pub(super) struct First {
    /// What the client speaks.
    pub(super) class: Class,
    /// Length of the whole head, for [`Class::Http1`] when there is one.
    pub(super) head: Option<usize>,
    /// For [`Class::Tls`].
    pub(super) hello: Option<Result<ClientHello, Malformed>>,
}

impl From<Class> for First {
    fn from(class: Class) -> Self {
        Self {
            class,
            head: None,
            hello: None,
        }
    }
}

/// Reads on behind what is in `window`, until the class is clear; for HTTP/1 and TLS until the head or the hello is complete
/// or cannot become good.
///
/// # Errors
/// `UnexpectedEof` when the client leaves before the class is clear, `TimedOut` when what began like HTTP/1 or TLS is not
/// complete after `header_timeout`, and what the socket says.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    window: &mut Window,
    max_head: usize,
    header_timeout: Duration,
) -> io::Result<First> {
    let mut deadline: Option<Instant> = None;
    let mut reader = Reader::default();
    loop {
        // What came already is looked at before anything is waited for.
        let bytes = window.raw();
        if !bytes.is_empty() {
            if let Some(first) = reader.read(bytes) {
                return Ok(first);
            }
            let too_long = bytes.len() > max_head && !reader.is_tls;
            if too_long || !window.has_room() {
                let http1 = looks_http1(bytes);
                return Ok(if http1 { Class::Http1 } else { Class::Opaque }.into());
            }
            deadline.get_or_insert_with(|| Instant::now() + header_timeout);
        }
        let fill = poll_fn(|cx| window.poll_fill(stream, cx));
        let filled = match deadline {
            None => fill.await?,
            Some(deadline) => match timeout_at(deadline, fill).await {
                Ok(filled) => filled?,
                Err(_) => return Err(reader.late()),
            },
        };
        if filled == Filled::End {
            return ended(window.raw());
        }
    }
}

/// The client has ended its side behind `bytes`, which say too little.
fn ended(bytes: &[u8]) -> io::Result<First> {
    match guess(bytes) {
        // The beginning of something, and the end: whoever it was meant for may know it.
        None if !bytes.is_empty() && !looks_http1(bytes) => Ok(Class::Opaque.into()),
        Some(class) if !matches!(class, Class::Http1 | Class::Tls) => Ok(class.into()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Looks at bytes that become more.
#[derive(Default)]
struct Reader {
    /// Bytes that need not be looked at again.
    seen: usize,
    hello: HelloReader,
    /// The reader of hellos has a limit of its own.
    is_tls: bool,
}

impl Reader {
    /// `bytes` are all that came so far. `None` when more are needed.
    fn read(&mut self, bytes: &[u8]) -> Option<First> {
        match guess(bytes)? {
            Class::Http1 => match head::find_end(bytes, self.seen) {
                Ok(None) => {
                    self.seen = bytes.len();
                    None
                }
                found => Some(First {
                    class: Class::Http1,
                    // Malformed ones are refused by whoever reads on.
                    head: found.ok().flatten(),
                    hello: None,
                }),
            },
            Class::Tls => {
                self.is_tls = true;
                let fed = std::mem::replace(&mut self.seen, bytes.len());
                let hello = self.hello.feed(&bytes[fed..]).transpose()?;
                Some(First {
                    class: Class::Tls,
                    head: None,
                    hello: Some(hello),
                })
            }
            class => Some(class.into()),
        }
    }

    fn late(&self) -> io::Error {
        let what = match self.is_tls {
            true => "the ClientHello is incomplete",
            false => "the first request head is incomplete",
        };
        io::Error::new(io::ErrorKind::TimedOut, what)
    }
}

/// The class of what begins with `bytes`; `None` when more is needed.
fn guess(bytes: &[u8]) -> Option<Class> {
    let first = *bytes.first()?;
    // A handshake record: type 22, major version 3 (RFC 8446 section 5.1).
    if first == 0x16 {
        return match bytes.get(1) {
            None => None,
            Some(3) => Some(Class::Tls),
            Some(_) => Some(Class::Opaque),
        };
    }
    if H2_PREFACE.starts_with(bytes) {
        return (bytes.len() == H2_PREFACE.len()).then_some(Class::Http2);
    }
    if bytes.starts_with(H2_PREFACE) {
        return Some(Class::Http2);
    }
    // Whoever is lenient skips empty lines before a request (RFC 9112 section 2.2), takes any white space in its first line
    // (section 3), and reads a version in any case: for them it is a request, so it is one here, to be refused.
    let empty = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let bytes = &bytes[empty..];
    if bytes.is_empty() {
        return None;
    }
    let method = bytes.iter().take_while(|&&b| head::is_token(b)).count();
    if method == 0 || method > MAX_METHOD {
        return Some(Class::Opaque);
    }
    match bytes.get(method) {
        None => return None,
        Some(byte) if is_space(*byte) => {}
        Some(_) => return Some(Class::Opaque),
    }
    // `EHLO example.org` is a token and a space too: the version in the line tells.
    let line = &bytes[..memchr(b'\n', bytes)?];
    // As nearly everybody writes it.
    if line.ends_with(b" HTTP/1.1\r") {
        return Some(Class::Http1);
    }
    let mut words = line.split(|&b| is_space(b)).skip(1);
    let is_version = |word: &[u8]| {
        word.get(..5)
            .is_some_and(|name| name.eq_ignore_ascii_case(b"HTTP/"))
    };
    Some(if words.any(is_version) {
        Class::Http1
    } else {
        Class::Opaque
    })
}

/// What RFC 9112 section 3 lets a recipient take for the space of a request line.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | b'\r')
}

/// True for what may still become, or is, an HTTP/1 request.
fn looks_http1(bytes: &[u8]) -> bool {
    match guess(bytes) {
        Some(class) => class == Class::Http1,
        None => bytes
            .iter()
            .find(|b| !matches!(b, b'\r' | b'\n'))
            .is_some_and(u8::is_ascii_uppercase),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::relay::buffers::Buffers;

    fn empty() -> Window {
        Window::new(Rc::new(Buffers::new(4096)))
    }

    #[test]
    fn first_bytes_tell() {
        for (bytes, expected) in [
            (&b""[..], None),
            (b"\x16", None),
            (b"\x16\x03", Some(Class::Tls)),
            (b"\x16\x04", Some(Class::Opaque)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00", Some(Class::Http2)),
            (b"PRI", None),
            (b"POST", None),
            (b"POST /x", None),
            (b"POST /x HTTP/1.1\r\n", Some(Class::Http1)),
            (b"POST /x HTTP/1.1\n", Some(Class::Http1)),
            (b"POST /x HTTP/3.7\r\n", Some(Class::Http1)),
            (b"\r\n", None),
            (b"\r\nPOST /x HTTP/1.1\r\n", Some(Class::Http1)),
            (b"POST /x HTTP/1.1 \r\n", Some(Class::Http1)),
            (b"POST\t/x\thttp/1.1\r\n", Some(Class::Http1)),
            (b"POST /x HTTP/1.1 y\r\n", Some(Class::Http1)),
            (b"POST /HTTP/1.1\r\n", Some(Class::Opaque)),
            (b"EHLO example.org\r\n", Some(Class::Opaque)),
            (b"\x00\x00\x00\x10", Some(Class::Opaque)),
            (b"SSH-2.0-x\r\n", Some(Class::Opaque)),
            (&[b'A'; 40], Some(Class::Opaque)),
        ] {
            assert_eq!(guess(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn a_head_is_read_whole_and_no_byte_is_lost() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        let writer = tokio::spawn(async move {
            for byte in head {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let mut window = empty();
        let first = read(&mut server, &mut window, 1024, Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(first.class, Class::Http1);
        assert!(head.starts_with(window.raw()) && window.raw().len() >= head.len() - 4);
        drop(writer.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_http_head_is_not_passed_on() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"POST /api/v1/validate?api_key=").await.unwrap();
        let error = read(&mut server, &mut empty(), 1024, Duration::from_secs(10))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
