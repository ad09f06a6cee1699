//! Says when interfaces, classic filters, qdiscs or rules changed. TCX sends no notification: it is looked at every few
//! seconds by whoever calls `Tc::sync`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::intercept::error::InterceptError;
use crate::intercept::sys::{self, OwnsDescriptor};

/// What is listened to (linux/rtnetlink.h): RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE. Not routes: a
/// router changes them thousands of times a second.
const GROUPS: [u32; 4] = [1, 4, 8, 19];
/// A CNI plugin changes a dozen things in a row: one look after the last of them is enough.
const SETTLE: Duration = Duration::from_millis(50);
/// But a host where something changes all the time is looked at as often as this.
const PATIENCE: u32 = 10;

/// Listens in the network namespace in which it was made.
pub struct TcWatcher {
    socket: AsyncFd<Listening>,
    /// Something happened that nobody was told of yet. Survives a cancelled call with its times: a caller that is called
    /// away again and again is told all the same.
    pending: Option<Pending>,
}

/// When the first and the last notification came that nobody was told of.
#[derive(Clone, Copy)]
struct Pending {
    first: Instant,
    last: Instant,
}

/// tokio wants a type that owns its descriptor.
struct Listening(Socket);

impl AsRawFd for Listening {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl OwnsDescriptor for Listening {}

impl TcWatcher {
    /// Begins to listen. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// No netlink socket can be made.
    pub fn new() -> Result<Self, InterceptError> {
        let failed = |call| move |source| InterceptError::Call { call, source };
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(failed("listening to interfaces and filters by netlink"))?;
        let socket =
            sys::register(Listening(socket)).map_err(failed("registering netlink with the runtime"))?;
        Ok(Self {
            socket,
            pending: None,
        })
    }

    /// Waits until something changed, and then until it is quiet for a twentieth of a second, at most half a second.
    /// Says "changed" too when the kernel had to drop notifications (`ENOBUFS`). Cancel-safe.
    ///
    /// # Errors
    /// The socket failed for good.
    pub async fn changed(&mut self) -> Result<(), InterceptError> {
        loop {
            let Some(Pending { first, last }) = self.pending else {
                self.wait().await?;
                continue;
            };
            let until = (last + SETTLE).min(first + SETTLE * PATIENCE);
            if Instant::now() >= until {
                break;
            }
            match tokio::time::timeout_at(until, self.wait()).await {
                Err(_quiet) => break,
                Ok(result) => result?,
            }
        }
        self.pending = None;
        Ok(())
    }

    /// Waits for notifications and takes all that are there.
    async fn wait(&mut self) -> Result<(), InterceptError> {
        let failed = |source| InterceptError::Call {
            call: "waiting for netlink notifications",
            source,
        };
        let mut ready = self.socket.readable().await.map_err(failed)?;
        let mut buffer = Vec::with_capacity(8192);
        loop {
            buffer.clear();
            // What happened does not matter, a fresh look says what is.
            match ready.get_inner().0.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => note(&mut self.pending),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => note(&mut self.pending),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// Notes a notification.
fn note(pending: &mut Option<Pending>) {
    let last = Instant::now();
    let first = pending.map_or(last, |pending| pending.first);
    *pending = Some(Pending { first, last });
}
