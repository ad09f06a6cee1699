//! The readers against real handshakes and against bytes that nobody should send. What all of them use is here.

mod bytes;
mod client;
mod live;
mod recorded;
mod server;

use bytes::in_pieces;

use super::*;

/// Feeds the pieces one after the other, until there is an answer.
fn read_hello<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<ClientHello>, Malformed> {
    let mut reader = HelloReader::default();
    for piece in pieces {
        if let Some(hello) = reader.feed(piece)? {
            assert_eq!(reader.feed(b"more"), Ok(None), "it wants no more");
            return Ok(Some(hello));
        }
    }
    Ok(None)
}

/// As [`read_hello`], of the server's bytes.
fn observe<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Progress {
    let mut observer = Observer::default();
    for piece in pieces {
        let progress = observer.server(piece);
        if progress != Progress::More {
            assert_eq!(observer.server(b"more"), progress, "the last answer is repeated");
            return progress;
        }
    }
    Progress::More
}

/// The same answer for the whole, byte by byte, and in pieces of some sizes.
fn read_hello_in_every_way(bytes: &[u8]) -> Result<Option<ClientHello>, Malformed> {
    let answer = read_hello([bytes]);
    for size in [1, 2, 5, 7, 1460] {
        assert_eq!(read_hello(in_pieces(bytes, &[size])), answer, "pieces of {size}");
    }
    answer
}

/// As [`read_hello_in_every_way`], of the server's bytes.
fn observe_in_every_way(bytes: &[u8]) -> Progress {
    let answer = observe([bytes]);
    for size in [1, 2, 5, 7, 1460] {
        assert_eq!(observe(in_pieces(bytes, &[size])), answer, "pieces of {size}");
    }
    answer
}

/// A session in a line: version, suite, group, what else is to be said.
fn brief(session: &AgentSession) -> String {
    let mut words = vec![session.version.as_str(), session.suite.as_str()];
    words.push(session.group.as_deref().unwrap_or("-"));
    words.extend(session.ems.map(|ems| if ems { "ems" } else { "no-ems" }));
    words.extend(session.resumed.then_some("resumed"));
    words.extend(session.retried.then_some("retried"));
    words.join(" ")
}

fn known(progress: Progress) -> AgentSession {
    match progress {
        Progress::Known(session) => session,
        other => panic!("no session: {other:?}"),
    }
}
