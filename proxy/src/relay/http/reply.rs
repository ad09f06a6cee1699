//! The head of an intake's HTTP/1 answer: read, and what it means for the answer's body and for the connection.

use http::StatusCode;
use httparse::{Header, ParserConfig, Response, Status};
use std::mem::MaybeUninit;

use super::chunk::Chunked;
use super::head::{Connection, MAX_HEADERS, content_length, options};
use super::window::Body;

/// A complete head.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// How long it is, in bytes.
    pub(super) len: usize,
    pub(super) body: Body,
    /// The connection may carry another request.
    pub(super) keep_alive: bool,
}

impl Reply {
    /// It is not the answer yet: the final one follows (RFC 9110 section 15.2).
    pub(super) fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// What a response head must say for the client. See [`super::rewrite::response`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// The request was a HEAD.
    pub(super) head: bool,
    /// The client speaks HTTP/1.0: it knows no chunked framing.
    pub(super) http10: bool,
    /// The client wants to keep its connection, and so do we.
    pub(super) keep_alive: bool,
}

/// How the client is told where the answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delimited {
    /// By the headers as they are: a length, or no body at all.
    AsIs,
    Chunked,
    /// By the end of the connection.
    Close,
}

/// Reads the head that `bytes` begin with, and hands it to `write` with the headers in order. `None`: it is not complete.
///
/// # Errors
/// What is wrong with it: an answer that two parsers could end in two places is no answer (RFC 9112 section 6.3).
pub(super) fn read<W>(
    bytes: &[u8],
    asked: Asked,
    write: W,
) -> Result<Option<(Reply, Delimited)>, &'static str>
where
    W: FnOnce(&Response<'_, '_>, Lines, Delimited),
{
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_HEADERS];
    let mut response = Response::new(&mut []);
    let parsed =
        ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
    let len = match parsed {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("its answer has more than 100 headers"),
        Err(_) => return Err("its answer is no HTTP/1"),
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or("its answer is no HTTP/1")?;
    let framing = Framing::of(&response)?;
    let mut keep_alive = framing.keep_alive;
    if status == StatusCode::NO_CONTENT
        && (framing.chunked || framing.length.is_some_and(|length| length > 0))
    {
        // It promises a body where none can be (RFC 9112 section 6.3): what it sends next may be that.
        keep_alive = false;
    }
    let bodiless = asked.head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let body = match (bodiless, framing.chunked, framing.length) {
        (true, ..) | (false, false, Some(0)) => Body::Ended,
        (false, true, None) => Body::Chunked(Chunked::new()),
        (false, false, Some(length)) => Body::Length(length),
        (false, true, Some(_)) => return Err("its answer has both Content-Length and Transfer-Encoding"),
        (false, false, None) => {
            keep_alive = false;
            Body::UntilEnd
        }
    };
    let delimited = match &body {
        Body::Chunked(_) | Body::UntilEnd if asked.http10 => Delimited::Close,
        Body::Chunked(_) | Body::UntilEnd => Delimited::Chunked,
        _ => Delimited::AsIs,
    };
    let reply = Reply {
        status,
        len,
        body,
        keep_alive,
    };
    if !reply.is_interim() {
        write(&response, framing.lines(status), delimited);
    }
    Ok(Some((reply, delimited)))
}

/// What is special about the header lines of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    /// Its Connection header lists other headers, which are for us alone.
    pub(super) lists_headers: bool,
    /// Its Content-Length says nothing that the client may rely on.
    pub(super) drop_length: bool,
}

#[derive(Debug, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    keep_alive: bool,
    lists_headers: bool,
}

impl Framing {
    fn of(response: &Response<'_, '_>) -> Result<Self, &'static str> {
        let mut framing = Self {
            keep_alive: response.version == Some(1),
            ..Self::default()
        };
        let mut close = false;
        for header in response.headers.iter() {
            match header.name.len() {
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    let said = Connection::of(header.value);
                    close |= said.close;
                    framing.keep_alive |= said.keep_alive;
                    framing.lists_headers |= said.lists_headers;
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    let length =
                        content_length(header.value).map_err(|_| "its Content-Length is no number")?;
                    if framing
                        .length
                        .replace(length)
                        .is_some_and(|before| before != length)
                    {
                        return Err("its answer has two lengths");
                    }
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    let mut codings = options(header.value);
                    let chunked = codings
                        .next()
                        .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
                    if !chunked || codings.next().is_some() || framing.chunked {
                        return Err("its Transfer-Encoding is not chunked");
                    }
                    framing.chunked = true;
                }
                _ => {}
            }
        }
        if framing.chunked && response.version == Some(0) {
            return Err("its answer has Transfer-Encoding on HTTP/1.0");
        }
        framing.keep_alive &= !close;
        Ok(framing)
    }

    fn lines(&self, status: StatusCode) -> Lines {
        Lines {
            lists_headers: self.lists_headers,
            // A 204 never has one (RFC 9110 section 8.6). Where both framings stand, which only an answer without a body may
            // have here, the other one counts (RFC 9112 section 6.3).
            drop_length: status == StatusCode::NO_CONTENT || self.chunked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked {
        head: false,
        http10: false,
        keep_alive: true,
    };

    fn read_all(bytes: &[u8], asked: Asked) -> Result<Option<(Reply, Delimited)>, &'static str> {
        read(bytes, asked, |_, _, _| ())
    }

    #[test]
    fn where_an_answer_ends() {
        for (head, delimited, keep_alive) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                Delimited::AsIs,
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                Delimited::AsIs,
                true,
            ),
            (
                "HTTP/1.1 202 \r\ncontent-length: 5\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
                Delimited::AsIs,
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                Delimited::Chunked,
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Delimited::Chunked, false),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
                Delimited::AsIs,
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\n",
                Delimited::AsIs,
                true,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", Delimited::AsIs, true),
            (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                Delimited::AsIs,
                true,
            ),
        ] {
            let (reply, how) = read_all(head.as_bytes(), ASKED).unwrap().unwrap();
            assert_eq!(
                (how, reply.keep_alive, reply.len),
                (delimited, keep_alive, head.len()),
                "{head}"
            );
            for cut in 0..head.len() {
                assert!(
                    read_all(&head.as_bytes()[..cut], ASKED).unwrap().is_none(),
                    "{head} {cut}"
                );
            }
        }
        let to_head = Asked { head: true, ..ASKED };
        let (reply, _) = read_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", to_head)
            .unwrap()
            .unwrap();
        assert!(matches!(reply.body, Body::Ended));
        let old = Asked {
            http10: true,
            ..ASKED
        };
        let (_, how) = read_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", old)
            .unwrap()
            .unwrap();
        assert_eq!(how, Delimited::Close);
    }

    #[test]
    fn which_lines_an_answer_without_body_keeps() {
        for (head, drop_length, keep_alive) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", true, true),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", true, true),
            // What it promises may follow.
            (
                "HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\n",
                true,
                false,
            ),
            (
                "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
                true,
                false,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 1\r\n\r\n",
                false,
                true,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                true,
                true,
            ),
        ] {
            let mut seen = Lines::default();
            let (reply, how) = read(head.as_bytes(), ASKED, |_, lines, _| seen = lines)
                .unwrap()
                .unwrap();
            assert!(
                matches!(reply.body, Body::Ended) && how == Delimited::AsIs,
                "{head}"
            );
            assert_eq!(
                (seen.drop_length, reply.keep_alive),
                (drop_length, keep_alive),
                "{head}"
            );
        }
        let mut seen = Lines::default();
        let listed = b"HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: x-a\r\nContent-Length: 1\r\n\r\n";
        read(listed, ASKED, |_, lines, _| seen = lines).unwrap().unwrap();
        assert!(seen.lists_headers && !seen.drop_length);
    }

    #[test]
    fn answers_that_could_end_in_two_places_are_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
        ] {
            assert!(read_all(head.as_bytes(), ASKED).is_err(), "{head}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
        assert!(read_all(many.as_bytes(), ASKED).is_err());
    }
}
