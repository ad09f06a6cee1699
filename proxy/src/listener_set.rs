//! Several listening sockets on one address and port, one for each data thread: a `SO_REUSEPORT` set. The kernel gives each
//! connection to one of them, by a hash of its addresses and ports, so that threads share nothing.
//!
//! The order of the steps is what keeps others out, and stands here once: the first socket is bound *without* the flag, so
//! that a port that is in use, even by another instance of ours, is seen as busy and never silently shared
//! (docs/adr/0002-process-model.md). All are bound before one listens: afterwards the kernel refuses a further socket that
//! has `SO_REUSEADDR` only.

use std::io;
use std::net::TcpListener;

use socket2::Socket;

/// The set that `first` begins, `sockets` in all and at least one, each with room for `backlog` connections that nobody
/// accepted yet. `first` is bound, without `SO_REUSEPORT`. `another` makes a socket with the same options, unbound.
///
/// # Errors
/// What the kernel says: no descriptors left, or somebody took the port in between.
pub(crate) fn listening(
    first: Socket,
    sockets: usize,
    backlog: i32,
    another: impl Fn() -> io::Result<Socket>,
) -> io::Result<Vec<TcpListener>> {
    let address = first.local_addr()?;
    let mut set = vec![first];
    if sockets > 1 {
        set[0].set_reuse_port(true)?;
    }
    for _ in 1..sockets {
        let next = another()?;
        next.set_reuse_port(true)?;
        next.bind(&address)?;
        set.push(next);
    }
    for socket in &set {
        socket.listen(backlog)?;
    }
    Ok(set.into_iter().map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

    use socket2::{Domain, Type};

    use super::*;

    fn socket(address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn set(address: SocketAddr, sockets: usize) -> io::Result<Vec<TcpListener>> {
        let first = socket(address)?;
        first.bind(&address.into())?;
        listening(first, sockets, 128, || socket(address))
    }

    fn loopbacks() -> [SocketAddr; 2] {
        [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()]
    }

    #[test]
    fn a_set_shares_one_port() {
        for address in loopbacks() {
            let sockets = set(address, 3).unwrap();
            let bound = sockets[0].local_addr().unwrap();
            assert_eq!(sockets.len(), 3);
            assert!(sockets.iter().all(|s| s.local_addr().unwrap() == bound));
        }
    }

    #[test]
    fn who_binds_as_we_do_cannot_join() {
        for address in loopbacks() {
            let sockets = set(address, 2).unwrap();
            let bound = sockets[0].local_addr().unwrap();
            assert_eq!(
                set(bound, 2).map(drop).unwrap_err().kind(),
                io::ErrorKind::AddrInUse
            );
        }
    }

    /// What the threat model says: the first socket without the flag keeps accidents out, not a process of our own user
    /// that wants to join.
    #[test]
    fn who_sets_the_flag_on_purpose_joins() {
        for address in loopbacks() {
            let sockets = set(address, 2).unwrap();
            let bound = sockets[0].local_addr().unwrap();
            let other = socket(bound).unwrap();
            other.set_reuse_port(true).unwrap();
            other.bind(&bound.into()).unwrap();
        }
    }

    /// A set of one needs no flag: nobody can ever join it.
    #[test]
    fn a_set_of_one_is_closed() {
        for address in loopbacks() {
            let sockets = set(address, 1).unwrap();
            let bound = sockets[0].local_addr().unwrap();
            let other = socket(bound).unwrap();
            other.set_reuse_port(true).unwrap();
            assert_eq!(
                other.bind(&bound.into()).unwrap_err().kind(),
                io::ErrorKind::AddrInUse
            );
        }
    }

    /// With 64 connections, two fair coins leave one socket without any once in 2^63 runs.
    #[test]
    fn every_connection_reaches_one_and_none_is_idle() {
        for address in loopbacks() {
            let sockets = set(address, 2).unwrap();
            let bound = sockets[0].local_addr().unwrap();
            let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(bound).unwrap()).collect();
            let accepted: Vec<usize> = sockets
                .iter()
                .map(|socket| std::iter::from_fn(|| socket.accept().ok()).count())
                .collect();
            assert_eq!(accepted.iter().sum::<usize>(), clients.len());
            assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
        }
    }
}
