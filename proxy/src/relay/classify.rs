//! What a client speaks, from its first bytes.
//!
//! The bytes are kept and handed on: classification never loses or changes one. Where the answer is unclear the
//! connection counts as opaque and is passed on rather than broken, with one exception: what begins like an HTTP/1
//! request must become one within `limits.header_timeout`, because passing it on could put an API key on the wire in
//! the clear. What begins like TLS is read until its ClientHello is whole: the name in it decides.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::http::head;
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

/// The first bytes, and what they mean.
#[derive(Debug)]
pub(super) struct First {
    /// What the client speaks.
    pub(super) class: Class,
    /// Everything read so far. For [`Class::Http1`] at least the whole head, unless it is malformed or too long; for
    /// [`Class::Tls`] at least the whole hello, unless it is malformed.
    pub(super) bytes: Vec<u8>,
    /// For [`Class::Tls`].
    pub(super) hello: Option<Result<ClientHello, Malformed>>,
}

impl First {
    fn new(class: Class, bytes: Vec<u8>) -> Self {
        Self {
            class,
            bytes,
            hello: None,
        }
    }
}

/// Reads on behind `bytes`, the client's first, until the class is clear; for HTTP/1 and TLS until the head or the hello is
/// complete or cannot become good.
///
/// # Errors
/// `UnexpectedEof` when the client leaves before the class is clear, `TimedOut` when what began like HTTP/1 or TLS is not
/// complete after `header_timeout`, and what the socket says.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
    max_head: usize,
    header_timeout: Duration,
) -> io::Result<First> {
    let mut deadline: Option<Instant> = None;
    let mut searched = 0;
    let mut hello = HelloReader::default();
    // What came already is looked at before anything is waited for.
    let mut came = bytes.len();
    loop {
        let before = bytes.len();
        let read = stream.read_buf(&mut bytes);
        let read = match deadline {
            _ if came > 0 => std::mem::take(&mut came),
            None => read.await?,
            Some(deadline) => timeout_at(deadline, read).await.map_err(|_| {
                let what = match guess(&bytes[..before]) {
                    Some(Class::Tls) => "the ClientHello is incomplete",
                    _ => "the first request head is incomplete",
                };
                io::Error::new(io::ErrorKind::TimedOut, what)
            })??,
        };
        deadline.get_or_insert_with(|| Instant::now() + header_timeout);
        if read == 0 {
            return match guess(&bytes) {
                // The beginning of something, and the end: whoever it was meant for may know it.
                None if !bytes.is_empty() && !looks_http1(&bytes) => Ok(First::new(Class::Opaque, bytes)),
                Some(class) if !matches!(class, Class::Http1 | Class::Tls) => Ok(First::new(class, bytes)),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        match guess(&bytes) {
            None => {}
            Some(Class::Http1) => match head::find_end(&bytes, searched) {
                Ok(None) if bytes.len() <= max_head => searched = bytes.len(),
                _ => return Ok(First::new(Class::Http1, bytes)),
            },
            Some(Class::Tls) => {
                let fed = std::mem::replace(&mut searched, bytes.len());
                if let Some(result) = hello.feed(&bytes[fed..]).transpose() {
                    return Ok(First {
                        hello: Some(result),
                        ..First::new(Class::Tls, bytes)
                    });
                }
                // The reader has a limit of its own.
                continue;
            }
            Some(class) => return Ok(First::new(class, bytes)),
        }
        if bytes.len() > max_head {
            let class = if looks_http1(&bytes) {
                Class::Http1
            } else {
                Class::Opaque
            };
            return Ok(First::new(class, bytes));
        }
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
    let line_end = bytes.iter().position(|&b| b == b'\n')?;
    let mut words = bytes[..line_end].split(|&b| is_space(b)).skip(1);
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
    use super::*;
    use tokio::io::AsyncWriteExt;

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
        let first = read(&mut server, Vec::new(), 1024, Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(first.class, Class::Http1);
        assert!(head.starts_with(&first.bytes) && first.bytes.len() >= head.len() - 4);
        drop(writer.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_http_head_is_not_passed_on() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"POST /api/v1/validate?api_key=").await.unwrap();
        let error = read(&mut server, Vec::new(), 1024, Duration::from_secs(10))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
