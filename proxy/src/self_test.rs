//! A connection of our own through the live datapath: the name that the proxy answers by itself, the addresses that stand for
//! it, and the client that asks.
//!
//! Whoever asks for [`NAME`] in the clear, at a port of ours or on an intercepted connection, and is answered, was accepted,
//! classified and served by the worker that serves everybody else. No intake is asked.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Nobody's name: `.invalid` is in no DNS (RFC 6761 section 6.4).
pub const NAME: &str = "self-test.agent-fips-proxy.invalid";

/// What stands for it on an intercepted connection: nobody's addresses, of the blocks for documentation (RFC 5737, RFC 3849). They
/// are selected like an intake's, so that a connection to them that is not taken leaves this host for nowhere.
pub const ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 217)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xa6f1, 0, 0, 0, 0, 0xd9)),
];

/// How the answer begins, and what must be in its head: nobody else says so.
const STATUS: &[u8] = b"HTTP/1.1 200 ";
const SIGN: &[u8] = b"x-agent-fips-proxy-error: ok\r\n";
/// Enough for our answer, in bytes.
const ANSWER: usize = 1024;

/// Where a self-test got stuck.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("no connection to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    /// Nothing was answered.
    #[error("connected to {0}, but not served: {1}")]
    Unserved(SocketAddr, io::Error),
    /// Somebody else answered.
    #[error("connected to {0}, and somebody else answered: the connection was not taken")]
    Foreign(SocketAddr),
}

/// The same without the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// There was no connection.
    Connect,
    /// The connection was not served.
    Serve,
    /// It went to somebody else.
    Take,
}

impl Failure {
    /// Where it got stuck.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Connect(..) => Stage::Connect,
            Self::Unserved(..) => Stage::Serve,
            Self::Foreign(_) => Stage::Take,
        }
    }
}

/// Connects to `address` and asks; returns how long it took. Connecting and being answered may take `limit` each.
///
/// # Errors
/// Where it got stuck.
pub fn ask(address: SocketAddr, limit: Duration) -> Result<Duration, Failure> {
    let started = Instant::now();
    let stream =
        TcpStream::connect_timeout(&address, limit).map_err(|error| Failure::Connect(address, error))?;
    let head = asked(stream, limit).map_err(|error| Failure::Unserved(address, error))?;
    if head.starts_with(STATUS) && contains(&head.to_ascii_lowercase(), SIGN) {
        return Ok(started.elapsed());
    }
    Err(Failure::Foreign(address))
}

/// The answer's head, as far as it came.
fn asked(mut stream: TcpStream, limit: Duration) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(limit))?;
    let until = Instant::now() + limit;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {NAME}\r\nUser-Agent: agent-fips-proxy\r\nConnection: close\r\n\r\n"
    );
    // As one segment, in the common case.
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::with_capacity(ANSWER);
    let mut part = [0; ANSWER];
    while head.len() < ANSWER && !contains(&head, b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) if head.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    /// It decides nothing but that the test ends.
    const LONG: Duration = Duration::from_secs(60);

    /// Whoever accepts says this and leaves; `None`: says nothing and stays.
    fn answered_with(says: Option<&'static str>) -> Result<Duration, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut asked, mut len) = ([0; 1000], 0);
            while !contains(&asked[..len], b"\r\n\r\n") {
                let more = stream.read(&mut asked[len..]).unwrap();
                assert_ne!(more, 0, "it left before it had asked");
                len += more;
            }
            assert!(contains(&asked[..len], NAME.as_bytes()));
            match says {
                Some(says) => stream.write_all(says.as_bytes()).unwrap(),
                // Until the client has left.
                None => drop(stream.read(&mut asked)),
            }
        });
        let result = ask(address, if says.is_some() { LONG } else { SHORT });
        server.join().unwrap();
        result
    }

    #[test]
    fn only_our_own_answer_is_one() {
        let ours = "HTTP/1.1 200 OK\r\nX-Agent-FIPS-Proxy-Error: ok\r\nContent-Length: 0\r\n\r\n";
        assert!(answered_with(Some(ours)).is_ok());
        for other in [
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 503 No\r\nX-Agent-FIPS-Proxy-Error: ok\r\n\r\n",
            "SSH-2.0\r\n",
        ] {
            assert!(
                matches!(answered_with(Some(other)), Err(Failure::Foreign(_))),
                "{other}"
            );
        }
        let silent = answered_with(None).unwrap_err();
        assert!(
            matches!(&silent, Failure::Unserved(_, error) if error.kind() == io::ErrorKind::TimedOut),
            "{silent}"
        );
        let gone = answered_with(Some("")).unwrap_err();
        assert!(
            matches!(&gone, Failure::Unserved(_, error) if error.kind() == io::ErrorKind::UnexpectedEof),
            "{gone}"
        );
        let nobody = ask("127.0.0.1:1".parse().unwrap(), SHORT).unwrap_err();
        assert!(matches!(nobody, Failure::Connect(..)), "{nobody}");
    }
}
