//! TCP sockets of a network namespace, listed and destroyed by `sock_diag` (`NETLINK_SOCK_DIAG`, linux/inet_diag.h).
//!
//! The two messages are written here: the crate netlink-packet-sock-diag (0.5) does not know the attribute that matters,
//! the socket's cgroup, and reads much that does not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, parse_u64,
};
use nix::libc;

use crate::intercept::error::InterceptError;
use crate::intercept::tc::{Connection, Protocol, attributes};

/// `NETLINK_SOCK_DIAG` (linux/netlink.h).
const NETLINK_SOCK_DIAG: isize = 4;
/// `SOCK_DIAG_BY_FAMILY` (3.3) and `SOCK_DESTROY` (4.5, with CONFIG_INET_DIAG_DESTROY) of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and the socket's id.
const REQUEST: usize = 8 + ID;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// `struct inet_diag_msg`: four bytes, the id, five numbers.
const ANSWER: usize = 4 + ID + 20;
/// `INET_DIAG_CGROUP_ID` (5.8).
const CGROUP_ID: u16 = 21;

/// States of connections that carry data or may yet, as `TCP_*` of linux/tcp_states.h (include/net): ESTABLISHED,
/// FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING.
const OPEN: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// SYN_SENT
const OPENING: u8 = 2;

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    family: u8,
    /// Its id as the kernel wrote it, cookie included: with it the kernel finds this socket or none.
    id: [u8; ID],
    /// Its SYN was not answered yet.
    pub(super) opening: bool,
    /// Our end.
    pub(super) local: SocketAddr,
    /// The other end.
    pub(super) remote: SocketAddr,
    /// As of `SO_COOKIE`.
    pub(super) cookie: u64,
    /// The cgroup that it was made in; `None` before 5.8.
    pub(super) cgroup: Option<u64>,
    /// The user that made it, as the number that it has in our user namespace.
    pub(super) uid: u32,
    /// Of its file; 0 when no process has it open any more: then the kernel calls it root's.
    pub(super) inode: u32,
}

/// A question and its answers.
#[derive(Clone, Debug)]
enum Diag {
    Exactly { family: u8, id: [u8; ID] },
    List { family: u8, end: End, port: u16 },
    Destroy { family: u8, id: [u8; ID] },
    Socket(Box<Socket>),
}

/// Which end of a connection has the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Ours: it was accepted.
    Local,
    /// The other: it was opened to it.
    Remote,
}

/// Lists the connections of the calling thread's network namespace with one of these ports at this end, IPv4 and IPv6.
///
/// # Errors
/// The kernel cannot list TCP sockets (no CONFIG_INET_DIAG, or its module `tcp_diag` cannot be loaded), or see
/// [`Connection::dump`].
pub(super) fn connections(end: End, ports: &[u16]) -> Result<Vec<Socket>, InterceptError> {
    let mut kernel = Connection::<Diag>::open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for &port in ports {
            let list = Diag::List {
                family: family_byte(family),
                end,
                port,
            };
            for answer in kernel.dump("list the open TCP connections", &list)? {
                if let Ok(Diag::Socket(socket)) = answer {
                    found.push(*socket);
                }
            }
        }
    }
    Ok(found)
}

/// The socket with exactly these ends, of the calling thread's network namespace; `None` when there is none.
///
/// # Errors
/// As [`connections`].
pub(super) fn socket(local: SocketAddr, remote: SocketAddr) -> Result<Option<Socket>, InterceptError> {
    let mut id = [0; ID];
    id[..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    let mut put = |from: usize, address: IpAddr| match address {
        IpAddr::V4(v4) => id[from..from + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => id[from..from + 16].copy_from_slice(&v6.octets()),
    };
    put(4, local.ip());
    put(20, remote.ip());
    // INET_DIAG_NOCOOKIE: whichever it is.
    id[40..].fill(0xff);
    let family = family_byte(if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    });
    let mut kernel = Connection::<Diag>::open()?;
    match kernel.request("look for a TCP socket", 0, Diag::Exactly { family, id }) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            Ok(Diag::Socket(socket)) => Some(*socket),
            _ => None,
        })),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What became of a socket that was to be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destroyed {
    /// Both ends were told: ours fails with ECONNABORTED, the other gets a reset.
    Yes,
    /// It was gone before.
    Gone,
    /// This kernel destroys no sockets (CONFIG_INET_DIAG_DESTROY).
    Unsupported,
}

/// Destroys exactly this socket, of the calling thread's network namespace. Needs CAP_NET_ADMIN there.
///
/// # Errors
/// See [`Connection::request`].
pub(super) fn destroy(socket: &Socket) -> Result<Destroyed, InterceptError> {
    ask_to_destroy(socket.family, socket.id)
}

/// True when this kernel can destroy sockets: it is asked to destroy one that cannot be.
///
/// # Errors
/// See [`Connection::request`].
pub(super) fn can_destroy() -> Result<bool, InterceptError> {
    // No connection has the port 0 on both ends.
    ask_to_destroy(family_byte(libc::AF_INET), [0; ID]).map(|outcome| outcome != Destroyed::Unsupported)
}

fn ask_to_destroy(family: u8, id: [u8; ID]) -> Result<Destroyed, InterceptError> {
    let mut kernel = Connection::<Diag>::open()?;
    match kernel.request("reset a connection", 0, Diag::Destroy { family, id }) {
        Ok(_) => Ok(Destroyed::Yes),
        Err(error) => match error.errno() {
            // Another one by now has its addresses (ESTALE), or nobody has.
            Some(libc::ENOENT | libc::ESTALE) => Ok(Destroyed::Gone),
            Some(libc::EOPNOTSUPP) => Ok(Destroyed::Unsupported),
            _ => Err(error),
        },
    }
}

/// AF_INET is 2, AF_INET6 10.
fn family_byte(family: libc::c_int) -> u8 {
    u8::try_from(family).unwrap_or_default()
}

impl Socket {
    /// Reads a `struct inet_diag_msg` and its attributes.
    fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let short = || DecodeError::from("it is shorter than its header");
        let (header, rest) = payload.split_at_checked(ANSWER).ok_or_else(short)?;
        let [family, state, ..] = *header else {
            return Err(short());
        };
        let id: [u8; ID] = header
            .get(4..4 + ID)
            .and_then(|id| id.try_into().ok())
            .ok_or_else(short)?;
        let field = |from: usize, length: usize| id.get(from..from + length).unwrap_or_default();
        let port = |from: usize| {
            let bytes = field(from, 2).try_into().unwrap_or_default();
            u16::from_be_bytes(bytes)
        };
        let address = |from: usize| -> IpAddr {
            if i32::from(family) == libc::AF_INET {
                let bytes: [u8; 4] = field(from, 4).try_into().unwrap_or_default();
                Ipv4Addr::from(bytes).into()
            } else {
                let bytes: [u8; 16] = field(from, 16).try_into().unwrap_or_default();
                // An IPv6 socket that talks IPv4 is taken as what it is.
                IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
            }
        };
        let cgroup = attributes(rest)?
            .into_iter()
            .find(|(kind, _)| *kind == CGROUP_ID)
            .and_then(|(_, value)| parse_u64(value).ok());
        // The last two of the numbers behind the id.
        let number = |back: usize| {
            let bytes = header.get(ANSWER - back..ANSWER - back + 4).unwrap_or_default();
            u32::from_ne_bytes(bytes.try_into().unwrap_or_default())
        };
        // Two halves, the lower one first (`sock_diag_save_cookie`).
        let half = |from: usize| u32::from_ne_bytes(field(from, 4).try_into().unwrap_or_default());
        Ok(Self {
            family,
            opening: state == OPENING,
            local: SocketAddr::new(address(4), port(0)),
            remote: SocketAddr::new(address(20), port(2)),
            cookie: u64::from(half(40)) | u64::from(half(44)) << 32,
            cgroup,
            uid: number(8),
            inode: number(4),
            id,
        })
    }
}

impl NetlinkSerializable for Diag {
    fn message_type(&self) -> u16 {
        match self {
            Self::Destroy { .. } => DESTROY,
            Self::Exactly { .. } | Self::List { .. } | Self::Socket(_) => BY_FAMILY,
        }
    }

    fn buffer_len(&self) -> usize {
        REQUEST
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (family, states, id) = match self {
            Self::List { family, end, port } => {
                // The kernel compares the ports that are not 0: ours stands first.
                let mut id = [0; ID];
                let at = match end {
                    End::Local => 0,
                    End::Remote => 2,
                };
                id[at..at + 2].copy_from_slice(&port.to_be_bytes());
                (*family, OPEN | 1 << OPENING, id)
            }
            Self::Exactly { family, id } | Self::Destroy { family, id } => (*family, u32::MAX, *id),
            Self::Socket(socket) => (socket.family, 0, socket.id),
        };
        let head = [family, family_byte(libc::IPPROTO_TCP), 0, 0];
        let request = [&head[..], &states.to_ne_bytes(), &id].concat();
        buffer.copy_from_slice(&request);
    }
}

impl NetlinkDeserializable for Diag {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Socket::parse(payload).map(|socket| Self::Socket(Box::new(socket)))
    }
}

impl Protocol for Diag {
    const NUMBER: isize = NETLINK_SOCK_DIAG;

    fn read(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Self::deserialize(header, payload)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::intercept::sys;

    fn found(ports: &[u16], client: &TcpStream) -> Option<Socket> {
        let local = client.local_addr().unwrap();
        let mut all = connections(End::Remote, ports).unwrap();
        all.retain(|socket| socket.local.port() == local.port());
        assert!(all.len() < 2, "{all:?}");
        all.pop()
    }

    /// Against the running kernel: listing needs no right.
    #[test]
    fn a_connection_is_listed_with_its_ends_and_its_cookie() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(address).unwrap();
            let port = server.local_addr().unwrap().port();
            let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let socket = found(&[port], &client).unwrap();
            assert_eq!(socket.local, client.local_addr().unwrap());
            assert_eq!(socket.remote, server.local_addr().unwrap());
            assert_eq!(socket.cookie, sys::socket_cookie(client.as_fd()).unwrap());
            assert!(!socket.opening);
            assert_eq!(found(&[port.wrapping_add(1)], &client), None, "another port");
            let (accepted, _) = server.accept().unwrap();
            let other = connections(End::Local, &[port]).unwrap();
            assert_eq!(other.len(), 1, "{other:?}");
            assert_eq!(other[0].cookie, sys::socket_cookie(accepted.as_fd()).unwrap());
            assert_eq!(other[0].remote, client.local_addr().unwrap());
        }
    }

    #[test]
    fn an_ipv4_connection_of_an_ipv6_socket_is_ipv4() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
        let client = TcpStream::connect(mapped).unwrap();
        let socket = found(&[port], &client).unwrap();
        assert_eq!(socket.remote, server.local_addr().unwrap());
        assert_eq!(i32::from(socket.family), libc::AF_INET6);
    }

    /// Needs CAP_NET_ADMIN; without, the kernel says so.
    #[test]
    fn exactly_the_socket_is_destroyed() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let [first, second] = [(); 2].map(|()| {
            let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            (client, server.accept().unwrap().0)
        });
        let victim = found(&[port], &first.0).unwrap();
        match destroy(&victim) {
            Err(error) => assert_eq!(error.errno(), Some(libc::EPERM), "{error}"),
            Ok(Destroyed::Unsupported) => assert!(!can_destroy().unwrap()),
            Ok(outcome) => {
                assert_eq!(outcome, Destroyed::Yes);
                let error = (&first.0).read(&mut [0]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
                assert_eq!(destroy(&victim).unwrap(), Destroyed::Gone);
                assert!(found(&[port], &first.0).is_none());
                assert!(found(&[port], &second.0).is_some(), "another one is untouched");
            }
        }
    }

    #[test]
    fn bad_answers_are_errors() {
        for length in [0, 3, ANSWER - 1] {
            assert!(Socket::parse(&vec![0; length]).is_err(), "{length}");
        }
        // An attribute that leaves the message.
        let mut payload = vec![0; ANSWER];
        payload.extend([200, 0, 21, 0]);
        assert!(Socket::parse(&payload).is_err());
    }
}
