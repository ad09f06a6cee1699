//! Terminates the client's HTTP: HTTP/1 by a relay of our own, HTTP/2 by hyper.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Role;
use super::accept::Thread;
use super::network::NetworkId;
use super::origin::{ClientAddr, Origin};
use super::outcome::{Outcome, TlsClient, Via};
use super::slots;
use super::timer::LazyTimer;
use super::upstream::bytes_confirmed;
use super::upstream::connect::Handshake;
use crate::tls::server::ServerStream;

pub(super) mod answer;
mod batch;
pub(super) mod body;
mod chunk;
#[cfg(feature = "counts")]
pub(super) mod counts;
pub(super) mod exchange;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub(super) mod head;
mod head2;
mod linger;
pub(super) mod outline;
pub(super) mod pace;
pub(super) mod record;
mod reply;
mod rewrite;
pub(super) mod server1;
mod server2;
mod stall;
mod violation;
pub(super) mod window;

use head::Violation;
use outline::Checked;
use window::Window;

/// What a message is read into. 80 to 96 KiB hold a head and a 64 KiB batch in one read; more only costs memory
/// (research: performance baseline, section 3).
pub(super) const MAX_BUFFER: usize = 96 * 1024;

/// What carries HTTP from a client: its socket, or a TLS session with it.
pub(super) trait ClientIo: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Something is to be said before the socket is closed: close_notify. Without it closing says all.
    const FAREWELL: bool;

    /// Makes every close from now on a reset, or an ordinary one again.
    fn set_abortive(&self, abortive: bool);

    /// How many bytes the client's kernel has confirmed so far. `None` when ours does not tell.
    fn confirmed(&self) -> Option<u64>;
}

impl ClientIo for TcpStream {
    const FAREWELL: bool = false;

    fn set_abortive(&self, abortive: bool) {
        let socket = SockRef::from(self);
        if let Err(error) = socket.set_linger(abortive.then_some(Duration::ZERO)) {
            tracing::debug!(%error, abortive, "cannot say how a client's connection is to be closed");
        }
    }

    fn confirmed(&self) -> Option<u64> {
        bytes_confirmed(self)
    }
}

impl ClientIo for ServerStream<TcpStream> {
    const FAREWELL: bool = true;

    /// That a session ends without close_notify says the same (RFC 8446 section 6.1), but not every client listens.
    fn set_abortive(&self, abortive: bool) {
        self.get_ref().0.get_ref().set_abortive(abortive);
    }

    fn confirmed(&self) -> Option<u64> {
        bytes_confirmed(self.get_ref().0.get_ref())
    }
}

/// What a client sent before it was known to speak HTTP, and the timer that was waited with.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) window: Window,
    pub(super) timer: Option<LazyTimer>,
    /// The length of the first head and what it says, when that was checked.
    pub(super) checked: Option<Checked>,
}

impl From<Window> for Begun {
    fn from(window: Window) -> Self {
        Self {
            window,
            timer: None,
            checked: None,
        }
    }
}

/// A client connection on which HTTP begins.
#[derive(Debug)]
pub(super) struct Session<IO> {
    io: IO,
    begun: Begun,
    /// Who asked for which name when it made the TLS session; none without TLS.
    asking: Option<TlsClient>,
    /// ALPN chose HTTP/2.
    http2: bool,
}

impl<IO> Session<IO> {
    /// HTTP/1 in the clear.
    pub(super) fn clear(io: IO, begun: Begun) -> Self {
        Self {
            io,
            begun,
            asking: None,
            http2: false,
        }
    }

    /// HTTP within TLS.
    pub(super) fn tls(io: IO, window: Window, asking: TlsClient, http2: bool) -> Self {
        Self {
            io,
            begun: window.into(),
            asking: Some(asking),
            http2,
        }
    }

    /// See [`Session::tls`].
    pub(super) fn asking(&self) -> Option<&TlsClient> {
        self.asking.as_ref()
    }
}

/// What the requests of one client connection share.
pub(super) struct Client<H: Handshake> {
    pub(super) thread: Rc<Thread<H>>,
    pub(super) via: Via,
    pub(super) network: NetworkId,
    pub(super) addr: ClientAddr,
    /// Where more requests at once of an HTTP/2 connection take theirs.
    slots: Arc<slots::Agent>,
    pub(super) origin: Origin,
    /// See [`Session`].
    pub(super) asking: Option<TlsClient>,
}

/// How a terminated connection ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) requests: u64,
    /// Nobody's request: our own self-test.
    pub(super) self_test: bool,
    pub(super) violation: Option<Violation>,
    /// The alert by which the client said, after the handshake, that it does not trust us.
    pub(super) distrust: Option<&'static str>,
}

/// A connection on which HTTP is served, to its end. Boxed, with nothing left outside: what an idle client costs is mostly its size.
pub(super) type Serve = Pin<Box<dyn Future<Output = Ended>>>;

/// Serves HTTP on `session` until either side is done or we drain.
pub(super) fn serve<H: Handshake, IO: ClientIo>(
    thread: Rc<Thread<H>>,
    role: Role,
    addr: ClientAddr,
    slots: Arc<slots::Agent>,
    origin: Origin,
    session: Session<IO>,
    drain: watch::Receiver<bool>,
) -> Serve {
    let Session {
        io,
        begun,
        asking,
        http2,
    } = session;
    let client = Rc::new(Client {
        thread,
        via: role.via(),
        network: role.network(),
        addr,
        slots,
        origin,
        asking,
    });
    if http2 {
        Box::pin(server2::serve(client, io, drain))
    } else {
        Box::pin(server1::serve(client, io, begun, drain))
    }
}

/// The one timer for all of a request's waits for the intake.
pub(super) type RequestTimer = Rc<RefCell<LazyTimer>>;

fn request_timer<H: Handshake>(client: &Client<H>) -> RequestTimer {
    let limit = client.thread.shared.config.upstream.response_timeout;
    Rc::new(RefCell::new(LazyTimer::new(Instant::now() + limit)))
}
