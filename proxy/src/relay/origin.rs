//! Who connected and where it meant to go.
//!
//! The newtypes keep the addresses of one connection from being swapped: what the client is, what it asked for, what we
//! dialled.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

use nix::sys::socket::{SockaddrIn6, getsockopt, sockopt};
use nix::{getsockopt_impl, libc};
use proxy_ebpf::{ASK_LEVEL, ASK_ORIGINAL};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::network::Taken;
use super::outcome::Process;
use super::{OriginLookup, Role};
use crate::catalog::Product;
use crate::process;

/// The peer of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientAddr(pub(super) SocketAddr);

/// Where the client meant to go before it was brought here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OriginalDst(pub(super) SocketAddr);

/// The address that was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct UpstreamAddr(pub(super) SocketAddr);

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a connection before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Came to the product's port, listening on this local address; a stranger may not.
    Explicit {
        product: Product,
        local: SocketAddr,
        stranger: bool,
    },
    /// Was taken on its way to this address.
    Intercepted(OriginalDst),
}

impl Origin {
    /// The original destination, when there was one.
    pub(super) fn original(&self) -> Option<OriginalDst> {
        match self {
            Self::Explicit { .. } => None,
            Self::Intercepted(original) => Some(*original),
        }
    }
}

/// Finds the origin; `bound` is the listener's own address. `Err`: no program of ours brought this connection here, it must
/// be closed without a byte.
pub(super) fn find(
    role: Role,
    bound: Option<SocketAddr>,
    stream: &TcpStream,
    lookup: &OriginLookup,
) -> io::Result<Origin> {
    let socket = match bound {
        // One system call less: who comes to a listener with an address of its own is answered at that.
        Some(bound) if !bound.ip().is_unspecified() && !role.is_transparent() => bound,
        _ => stream.local_addr()?,
    };
    let local = canonical(socket);
    let (original, dialled_us) = match role {
        Role::Explicit(product) => {
            return Ok(Origin::Explicit {
                product,
                local,
                stranger: false,
            });
        }
        Role::Intercept {
            taken: Taken::Cgroup, ..
        } => {
            let original = canonical(lookup(stream, socket)?);
            // Without an entry a plain netfilter answer may be the socket's own address: a local process that
            // connected to the listener itself. Following it would be a loop.
            (original, original == local)
        }
        // A transparent listener: the kernel answers at the address that the client meant. Who dialled the listener
        // itself is answered at the listener's own address, and was brought here by nobody.
        Role::Intercept { taken: Taken::Tc, .. } => {
            let bound = bound.map(canonical).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "the listener's own address is not known")
            })?;
            let dialled_us = local == bound || (bound.ip().is_unspecified() && local.port() == bound.port());
            (local, dialled_us)
        }
    };
    if dialled_us || original.port() == 0 || original.ip().is_unspecified() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the connection has no original destination of its own",
        ));
    }
    Ok(Origin::Intercepted(OriginalDst(original)))
}

/// The question that our `cgroup/getsockopt` program answers: see [`ASK_LEVEL`].
#[derive(Clone, Copy)]
struct AskOriginal;

getsockopt_impl!(
    AskOriginal,
    ASK_LEVEL,
    ASK_ORIGINAL,
    libc::sockaddr_in6,
    sockopt::GetStruct<libc::sockaddr_in6>
);

/// Asks our `cgroup/getsockopt` program, and nobody else. IPv4 comes mapped.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOPROTOOPT` when it has nothing to say.
pub fn noted_original_dst<S: AsFd>(stream: &S) -> io::Result<SocketAddr> {
    let original = getsockopt(stream, AskOriginal)?;
    Ok(SocketAddrV6::from(SockaddrIn6::from(original)).into())
}

/// Asks our `cgroup/getsockopt` program, then netfilter (`SO_ORIGINAL_DST`) for an iptables REDIRECT.
/// `local` is the socket's own address, by whose family netfilter is asked.
///
/// # Errors
/// `ENOENT` or `ENOPROTOOPT` when nothing redirected this connection.
pub fn kernel_original_dst<S: AsFd>(stream: &S, local: SocketAddr) -> io::Result<SocketAddr> {
    if let Ok(original) = noted_original_dst(stream) {
        return Ok(original);
    }
    let socket = SockRef::from(stream);
    let address = match local.ip() {
        IpAddr::V4(_) => socket.original_dst_v4()?,
        // A dual-stack socket may carry IPv4: ask for IPv6 first, then for what netfilter keeps for IPv4.
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            socket.original_dst_v6().or_else(|_| socket.original_dst_v4())?
        }
        IpAddr::V6(_) => socket.original_dst_v6()?,
    };
    address.as_socket().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the original destination is not an IP address",
        )
    })
}

/// The process that connected an accepted stream, by its number in our own pid namespace: `getsockopt(SO_PEERCRED)`, to
/// which our `cgroup/getsockopt` program adds what the `cgroup` datapath noted at `connect()`.
///
/// `None` where nobody noted it (explicit ports, the datapath `tc`, an iptables REDIRECT), and where the kernel's number
/// says nothing to us because we do not live in the host's pid namespace (a pod without `hostPID`). The process may have
/// ended since, and its number may be another's: good for a report, no proof of who is there.
pub fn kernel_peer_process(stream: &TcpStream) -> Option<u32> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials).ok()?;
    // Of a TCP connection the kernel itself says 0.
    let pid = u32::try_from(credentials.pid()).ok().filter(|pid| *pid != 0)?;
    process::in_host_namespace().then_some(pid)
}

/// The same with its name, which it has at this moment.
pub fn kernel_peer(stream: &TcpStream) -> Option<Process> {
    let pid = kernel_peer_process(stream)?;
    Some(Process {
        pid,
        name: process::name(pid),
    })
}

/// The address as everyone else writes it: IPv4-mapped IPv6 becomes IPv4, scope and flow label are dropped.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::network::NetworkId;
    use std::sync::Arc;

    async fn accepted() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    const HOST: Role = Role::Intercept {
        network: NetworkId::HOST,
        taken: Taken::Cgroup,
    };

    #[tokio::test]
    async fn a_connection_nobody_redirected_has_no_origin() {
        let (server, _client) = accepted().await;
        let kernel: OriginLookup = Arc::new(kernel_original_dst);
        assert!(find(HOST, None, &server, &kernel).is_err());
    }

    #[tokio::test]
    async fn a_connection_nobody_redirected_tells_no_process() {
        let (server, client) = accepted().await;
        assert_eq!(kernel_peer_process(&server), None);
        assert_eq!(kernel_peer_process(&client), None);
    }

    #[tokio::test]
    async fn its_own_address_is_not_an_original_destination() {
        let (server, _client) = accepted().await;
        let own: OriginLookup = Arc::new(|stream, _| stream.local_addr());
        assert!(find(HOST, None, &server, &own).is_err());
    }

    #[tokio::test]
    async fn mapped_addresses_become_ipv4() {
        let (server, _client) = accepted().await;
        let mapped: OriginLookup = Arc::new(|_, _| Ok("[::ffff:203.0.113.7]:80".parse().unwrap()));
        assert_eq!(
            find(HOST, None, &server, &mapped).unwrap(),
            Origin::Intercepted(OriginalDst("203.0.113.7:80".parse().unwrap()))
        );
    }

    #[tokio::test]
    async fn what_the_classifier_brought_is_answered_where_it_meant_to_go() {
        let role = Role::Intercept {
            network: NetworkId(3),
            taken: Taken::Tc,
        };
        let never: OriginLookup = Arc::new(|_, _| Err(io::Error::other("nobody asks")));
        let (server, _client) = accepted().await;
        let local = server.local_addr().unwrap();
        // The listener is elsewhere: the local address is what the client meant.
        let elsewhere = SocketAddr::new([127, 0, 0, 9].into(), local.port());
        assert_eq!(
            find(role, Some(elsewhere), &server, &never).unwrap(),
            Origin::Intercepted(OriginalDst(local))
        );
        // It is the listener's: somebody dialled us.
        assert!(find(role, Some(local), &server, &never).is_err());
        let any = SocketAddr::new([0, 0, 0, 0].into(), local.port());
        assert!(find(role, Some(any), &server, &never).is_err());
        assert!(find(role, None, &server, &never).is_err());
    }
}
