//! Who is at the other end of a local TCP connection, as the kernel knows it: the user and the cgroup that made the socket.

use std::net::SocketAddr;

use super::diag;
use super::error::InterceptError;

/// Whoever made a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user, by the number that it has in our user namespace.
    pub uid: u32,
    /// The cgroup2 cgroup; `None` before Linux 5.8.
    pub cgroup: Option<u64>,
}

/// Who made the socket at `client` that is connected to `ours`, a socket of this host and of the calling thread's network
/// namespace. `None`: a socket that no process has open any more, of which the kernel says that it is root's, or none of this host.
///
/// # Errors
/// The kernel cannot list TCP sockets (no CONFIG_INET_DIAG, or its module `tcp_diag` cannot be loaded).
pub fn peer(client: SocketAddr, ours: SocketAddr) -> Result<Option<Peer>, InterceptError> {
    let socket = diag::socket(client, ours)?.filter(|socket| socket.inode != 0);
    Ok(socket.map(|socket| Peer {
        uid: socket.uid,
        cgroup: socket.cgroup,
    }))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_peer_is_who_it_is_until_it_closes() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(address).unwrap();
            let ours = server.local_addr().unwrap();
            let stream = TcpStream::connect(ours).unwrap();
            let client = stream.local_addr().unwrap();
            let found = peer(client, ours).unwrap().unwrap();
            assert_eq!(found.uid, nix::unistd::geteuid().as_raw());
            let (accepted, _) = server.accept().unwrap();
            // The other direction is ourselves, too.
            assert_eq!(peer(ours, client).unwrap().unwrap(), found);
            drop(stream);
            assert_eq!(
                peer(client, ours).unwrap(),
                None,
                "closed, and still in the kernel"
            );
            drop(accepted);
            assert_eq!(peer(client, ours).unwrap(), None);
        }
    }
}
