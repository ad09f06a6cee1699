//! Leaves a connection alone: bytes go both ways as they are, half-closes included, until both sides are done.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::decide;
use super::network::{self, NetworkId};
use super::origin::OriginalDst;

/// A tunnel without a byte for this many times `limits.idle_timeout` is closed: whatever runs inside has time-outs of
/// its own, and cutting a long poll would break what we promised to leave alone.
const IDLE_FACTOR: u32 = 10;
/// Copy buffer for one direction.
const BUFFER: usize = 16 * 1024;

/// What a tunnel carried.
#[derive(Debug)]
pub(super) struct Copied {
    /// Bytes from the client.
    pub(super) up: u64,
    /// Bytes to the client.
    pub(super) down: u64,
    /// Why it ended, when not by both sides' will.
    pub(super) error: Option<io::Error>,
}

/// Who spoke first on a connection whose client was silent.
#[derive(Debug)]
pub(super) enum FirstWord {
    /// The client, after all. The connection to its destination may be there already.
    Client(Option<TcpStream>),
    /// The server.
    Server(TcpStream),
    /// Nobody, for the whole idle time-out.
    Nobody,
}

/// Connects to where the client of `network` meant to go. Private addresses are fine here: the client would have reached
/// them. Takes `upstream.connect_timeout` at most.
///
/// # Errors
/// What the kernel says, or `TimedOut`.
pub(super) async fn dial<H>(
    shared: &Shared<H>,
    network: NetworkId,
    original: OriginalDst,
) -> io::Result<TcpStream> {
    let limit = shared.config.upstream.connect_timeout;
    timeout(limit, network::dial(shared, network, original.0))
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "connecting to the original destination took longer than upstream.connect_timeout",
            )
        })?
}

/// The client is silent: where a server may speak first ([`decide::server_may_speak_first`]), dials its destination and waits for
/// the first word of either side; elsewhere waits for the client alone. A server that speaks first shows a protocol that is none
/// of ours; a client that speaks first is classified as ever, so that a slow client's request never leaves in the clear.
/// Takes `limits.idle_timeout` at most.
pub(super) async fn first_word<H>(
    shared: &Shared<H>,
    network: NetworkId,
    client: &TcpStream,
    original: OriginalDst,
) -> FirstWord {
    let first = async {
        if !decide::server_may_speak_first(original.0.port()) {
            spoke(client).await;
            return FirstWord::Client(None);
        }
        let server = tokio::select! {
            biased;
            () = spoke(client) => return FirstWord::Client(None),
            server = network::dial(shared, network, original.0) => server,
        };
        let Ok(server) = server else {
            // Its destination is not there; what the client says may still be for an intake that we reach by name.
            spoke(client).await;
            return FirstWord::Client(None);
        };
        tokio::select! {
            biased;
            () = spoke(client) => FirstWord::Client(Some(server)),
            () = spoke(&server) => FirstWord::Server(server),
        }
    };
    timeout(shared.config.limits.idle_timeout, first)
        .await
        .unwrap_or(FirstWord::Nobody)
}

/// Completes when there is something to read: bytes, the end, or an error that the next read will show. `readable` alone
/// would do, were it not allowed to be wrong.
pub(super) async fn spoke(stream: &TcpStream) {
    drop(stream.peek(&mut [0]).await);
}

/// Copies both ways; `prefix` was read from the client before.
pub(super) async fn run(
    client: TcpStream,
    server: TcpStream,
    prefix: &[u8],
    idle_timeout: Duration,
) -> Copied {
    let active = Rc::new(Cell::new(Instant::now()));
    let mut client = Counted::new(client, Rc::clone(&active));
    let mut server = Counted::new(server, Rc::clone(&active));
    let idle_limit = idle_timeout * IDLE_FACTOR;
    let idle = async {
        loop {
            let deadline = active.get() + idle_limit;
            sleep_until(deadline).await;
            if active.get() + idle_limit <= Instant::now() {
                return;
            }
        }
    };
    let copy = async {
        server.write_all(prefix).await?;
        copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await
    };
    let error = tokio::select! {
        result = copy => result.err(),
        () = idle => Some(io::Error::new(io::ErrorKind::TimedOut, "the tunnel was idle for too long")),
    };
    Copied {
        up: server.written,
        down: client.written,
        error,
    }
}

/// Counts what is written, and notes when anything moves.
#[derive(Debug)]
struct Counted {
    stream: TcpStream,
    written: u64,
    active: Rc<Cell<Instant>>,
}

impl Counted {
    fn new(stream: TcpStream, active: Rc<Cell<Instant>>) -> Self {
        Self {
            stream,
            written: 0,
            active,
        }
    }

    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(len)) = written {
            self.written += len as u64;
            self.active.set(Instant::now());
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
