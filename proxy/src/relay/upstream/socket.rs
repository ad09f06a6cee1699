//! The TCP socket below an upstream connection: read and written by one task, looked at by the pool and by retries.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long a reset may come behind the peer's end, on the rare way of a reused connection that ended without an answer.
/// Both are sent at the same moment: this bounds reordering and a busy machine, not a round trip.
const RESET_WAIT: Duration = Duration::from_millis(100);
/// How often it is looked for meanwhile.
const RESET_POLL: Duration = Duration::from_millis(2);

/// What is known of a socket from outside the task that drives it.
#[derive(Debug)]
pub(super) struct Watch {
    stream: RefCell<TcpStream>,
    /// The peer reset the connection.
    reset: Cell<bool>,
    /// Decrypted bytes came since [`Watch::mark`].
    answered: Cell<bool>,
    /// The peer said that it is done: close_notify, or the end of TCP.
    ended: Cell<bool>,
    /// Bytes that the peer's kernel had confirmed at [`Watch::mark`]; `None` when that is not known.
    confirmed: Cell<Option<u64>>,
}

impl Watch {
    /// True for an idle HTTP/1 connection on which nothing happened: open, and no byte waiting.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.peek(), Err(Errno::EAGAIN))
    }

    /// True unless the peer closed or reset. HTTP/2 peers may send at any time.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.peek(), Ok(0)) && !matches!(self.peek(), Err(errno) if errno != Errno::EAGAIN)
    }

    /// A request is about to be sent.
    pub(super) fn mark(&self) {
        self.answered.set(false);
        self.confirmed.set(match bytes_confirmed(&self.stream.borrow()) {
            // Something older is still on its way: what is confirmed later proves nothing about the new request.
            Some(Confirmed { outstanding: 1.., .. }) | None => None,
            Some(Confirmed {
                bytes,
                outstanding: 0,
            }) => Some(bytes),
        });
    }

    /// True when the peer cannot have acted on what was sent since [`Watch::mark`]: it answered nothing, and either
    /// reset the connection (the kernel does so when it discards what nobody read) or confirmed no byte of it.
    pub(super) fn cannot_have_processed(&self) -> bool {
        if self.answered.get() {
            return false;
        }
        if self.reset.get() {
            return true;
        }
        match (self.confirmed.get(), bytes_confirmed(&self.stream.borrow())) {
            (Some(before), Some(now)) => before == now.bytes,
            _ => false,
        }
    }

    /// As [`Watch::cannot_have_processed`], and waits a moment for the proof: a peer whose idle time-out meets our request
    /// says close_notify first, and the reset with which its kernel discards what nobody read comes right behind. It can
    /// mean nothing else, since nothing is sent after the peer's end (see [`Noted`]).
    pub(super) async fn has_not_processed(&self) -> bool {
        let until = Instant::now() + RESET_WAIT;
        while !self.cannot_have_processed() {
            if self.answered.get() || Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(RESET_POLL).await;
            if let Ok(Some(_)) = self.stream.borrow().take_error() {
                self.reset.set(true);
            }
        }
        true
    }

    fn peek(&self) -> Result<usize, Errno> {
        let stream = self.stream.borrow();
        recv(
            stream.as_raw_fd(),
            &mut [0_u8; 1],
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        )
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            )
        {
            self.reset.set(true);
        }
        result
    }
}

/// The socket as TLS sees it.
#[derive(Debug)]
pub struct Socket(Rc<Watch>);

impl Socket {
    pub(super) fn new(stream: TcpStream) -> (Self, Rc<Watch>) {
        let watch = Rc::new(Watch {
            stream: RefCell::new(stream),
            reset: Cell::new(false),
            answered: Cell::new(false),
            ended: Cell::new(false),
            confirmed: Cell::new(None),
        });
        (Self(Rc::clone(&watch)), watch)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buf);
        self.0.note(result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.ended.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, bytes);
        self.0.note(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.0.ended.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, slices);
        self.0.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}

/// The decrypted stream as hyper sees it: notes when an answer begins, and sends nothing after the peer's end.
#[derive(Debug)]
pub(super) struct Noted<S> {
    stream: S,
    watch: Rc<Watch>,
}

impl<S> Noted<S> {
    pub(super) fn new(stream: S, watch: Rc<Watch>) -> Self {
        Self { stream, watch }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.watch.answered.set(true);
        } else if result.is_ready() && buf.remaining() > 0 {
            // The end, or an error: TCP that ended without close_notify is one.
            self.watch.ended.set(true);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.watch.ended.get() {
            // The peer is done and reads no more: a farewell of ours would only provoke a reset, and a reset is our proof
            // that a request was not read.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Confirmed {
    /// `tcpi_bytes_acked`
    bytes: u64,
    /// `tcpi_unacked`: segments on their way.
    outstanding: u32,
}

/// How many bytes the peer's kernel has acknowledged. `None` on kernels before 4.1, which do not tell.
fn bytes_confirmed(stream: &TcpStream) -> Option<Confirmed> {
    // `struct tcp_info` of include/uapi/linux/tcp.h, as 64 bit words up to tcpi_bytes_acked (offset 120): neither libc
    // nor nix knows the field.
    const BYTES_ACKED: usize = 120 / 8;
    const UNACKED: usize = 24 / 8;
    let mut info = [0_u64; BYTES_ACKED + 1];
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: needed because no crate wraps TCP_INFO with this field. The descriptor is open for the call (borrowed
    // from `stream`), the pointer is valid for `len` bytes, and the kernel writes at most `len` bytes of plain integers.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 || usize::try_from(len).ok()? < size_of_val(&info) {
        return None;
    }
    let [a, b, c, d, ..] = info[UNACKED].to_ne_bytes();
    Some(Confirmed {
        bytes: info[BYTES_ACKED],
        outstanding: u32::from_ne_bytes([a, b, c, d]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn pair() -> (TcpStream, Socket, Rc<Watch>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, watch) = Socket::new(stream);
        (listener.accept().await.unwrap().0, socket, watch)
    }

    #[tokio::test]
    async fn a_quiet_socket_is_told_from_a_closed_or_talking_one() {
        let (mut peer, _socket, watch) = pair().await;
        assert!(watch.is_quiet() && watch.is_open());
        peer.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!watch.is_quiet() && watch.is_open());

        let (peer, _socket, watch) = pair().await;
        drop(peer);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!watch.is_quiet() && !watch.is_open());
    }

    #[tokio::test]
    async fn confirmed_bytes_tell_whether_the_peer_got_anything() {
        let (mut peer, mut socket, watch) = pair().await;
        watch.mark();
        assert!(watch.cannot_have_processed(), "nothing was sent");
        socket.write_all(b"hello").await.unwrap();
        peer.read_exact(&mut [0; 5]).await.unwrap();
        peer.write_all(b"!").await.unwrap();
        socket.read_exact(&mut [0; 1]).await.unwrap();
        assert!(!watch.cannot_have_processed(), "the peer confirmed what it got");
    }

    /// The peer says goodbye in order, and only then does its kernel find the request that nobody read.
    #[tokio::test]
    async fn a_request_that_meets_the_peers_end_is_told_from_one_that_was_read() {
        for read in [false, true] {
            let (mut peer, mut socket, watch) = pair().await;
            watch.mark();
            socket.write_all(b"a request").await.unwrap();
            if read {
                peer.read_exact(&mut [0; 9]).await.unwrap();
            }
            peer.shutdown().await.unwrap();
            assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 0);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                drop(peer);
            });
            assert_eq!(watch.has_not_processed().await, !read, "read: {read}");
        }
    }
}
