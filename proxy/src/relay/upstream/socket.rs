//! The TCP socket below an upstream connection: read and written by one task, looked at by the pool and by retries.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connect::HandshakeFailure;
use super::pool::Wire;
use crate::tls::{ClientStream, HandshakeError};

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
    /// What the kernel counted as confirmed before we wrote anything: it counts the SYN. `None` when it does not tell.
    base: Option<u64>,
    /// Bytes that the kernel took from us.
    written: Cell<u64>,
    /// `written` at [`Watch::mark`].
    marked: Cell<u64>,
    /// The peer is an outbound proxy, which hands bytes on: that it resets says nothing about who got them.
    relayed: Cell<bool>,
    /// The TLS alert with which the peer ended the session after its handshake.
    alert: RefCell<Option<HandshakeFailure>>,
}

impl Watch {
    /// Why the peer ended the session, when it said so by an alert.
    pub(super) fn alert(&self) -> Option<HandshakeFailure> {
        self.alert.borrow().clone()
    }

    /// True for an idle HTTP/1 connection on which nothing happened: open, and no byte waiting.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.peek(), Err(Errno::EAGAIN))
    }

    /// True unless the peer closed or reset. HTTP/2 peers may send at any time.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.peek(), Ok(0)) && !matches!(self.peek(), Err(errno) if errno != Errno::EAGAIN)
    }

    /// A request is about to be sent; all that was written before has left us.
    pub(super) fn mark(&self) {
        self.answered.set(false);
        self.marked.set(self.written.get());
    }

    /// True when the peer cannot have acted on what was sent since [`Watch::mark`]: it answered nothing, and either
    /// reset the connection (the kernel does so when it discards what nobody read) or confirmed no byte of it. Behind an
    /// outbound proxy only the latter counts.
    pub(super) fn cannot_have_processed(&self) -> bool {
        if self.answered.get() {
            return false;
        }
        if self.reset.get() && !self.relayed.get() {
            return true;
        }
        match (self.base, bytes_confirmed(&self.stream.borrow())) {
            (Some(base), Some(confirmed)) => confirmed <= base + self.marked.get(),
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

    /// How many bytes the peer has confirmed so far, and how many the kernel took from us, counted alike. `None` when it does
    /// not tell.
    pub(super) fn sent(&self) -> Option<(u64, u64)> {
        let confirmed = bytes_confirmed(&self.stream.borrow())?;
        Some((confirmed, self.written()?))
    }

    /// The second of these, without asking the kernel.
    pub(super) fn written(&self) -> Option<u64> {
        self.base.map(|base| base + self.written.get())
    }

    /// From now on the peer hands on what it gets.
    pub(super) fn set_relayed(&self) {
        self.relayed.set(true);
    }

    fn peek(&self) -> Result<usize, Errno> {
        let stream = self.stream.borrow();
        recv(
            stream.as_raw_fd(),
            &mut [0_u8; 1],
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        )
    }

    fn note_written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &result {
            self.written.set(self.written.get() + *written as u64);
        }
        self.note(result)
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && is_end(error)
        {
            self.reset.set(true);
        }
        result
    }
}

/// The socket as TLS with the intake sees it.
#[derive(Debug)]
pub struct Socket(Way);

enum Way {
    /// TCP, to the intake or to an outbound proxy.
    Tcp(Rc<Watch>),
    /// A TLS session with an outbound proxy, on such a socket.
    Sealed(Box<ClientStream<Socket>>),
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> (Self, Rc<Watch>) {
        let watch = Rc::new(Watch {
            base: bytes_confirmed(&stream),
            written: Cell::new(0),
            marked: Cell::new(0),
            stream: RefCell::new(stream),
            reset: Cell::new(false),
            answered: Cell::new(false),
            ended: Cell::new(false),
            relayed: Cell::new(false),
            alert: RefCell::default(),
        });
        (Self(Way::Tcp(Rc::clone(&watch))), watch)
    }

    /// What goes through a session with an outbound proxy.
    pub(super) fn sealed(session: ClientStream<Self>) -> Self {
        Self(Way::Sealed(Box::new(session)))
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(watch) => watch.fmt(f),
            Self::Sealed(_) => f.write_str("a session with the outbound proxy"),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Way::Tcp(watch) => {
                let result = Pin::new(&mut *watch.stream.borrow_mut()).poll_read(cx, buf);
                watch.note(result)
            }
            Way::Sealed(session) => Pin::new(session).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Way::Tcp(watch) if watch.ended.get() => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Way::Tcp(watch) => {
                let result = Pin::new(&mut *watch.stream.borrow_mut()).poll_write(cx, bytes);
                watch.note_written(result)
            }
            Way::Sealed(session) => Pin::new(session).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Way::Tcp(watch) if watch.ended.get() => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Way::Tcp(watch) => {
                let mut stream = watch.stream.borrow_mut();
                let stream = Pin::new(&mut *stream);
                // Mostly one TLS record, which the kernel takes for less than a list of one.
                let result = match slices {
                    [one] => stream.poll_write(cx, one),
                    several => stream.poll_write_vectored(cx, several),
                };
                watch.note_written(result)
            }
            Way::Sealed(session) => Pin::new(session).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Way::Tcp(_) => true,
            Way::Sealed(session) => session.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Way::Tcp(watch) => Pin::new(&mut *watch.stream.borrow_mut()).poll_flush(cx),
            Way::Sealed(session) => Pin::new(session).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Way::Tcp(watch) => Pin::new(&mut *watch.stream.borrow_mut()).poll_shutdown(cx),
            Way::Sealed(session) => Pin::new(session).poll_shutdown(cx),
        }
    }
}

/// The decrypted stream as HTTP sees it: notes when an answer begins, and sends nothing after the peer's end.
///
/// For hyper ([`Noted::read_before_error`]) a write that meets the peer's end is told only when what the peer said before is
/// read: hyper gives a connection up when a write fails, and the alert with which a server refuses our certificate would
/// stay unread.
#[derive(Debug)]
pub(super) struct Noted<S> {
    stream: S,
    watch: Rc<Watch>,
    /// Whom the session is with.
    name: Arc<str>,
    /// See there.
    read_before_error: bool,
    /// The write that failed, until everything is read.
    failed: Option<io::Error>,
}

impl<S> Noted<S> {
    pub(super) fn new(stream: S, watch: Rc<Watch>, name: Arc<str>) -> Self {
        Self {
            stream,
            watch,
            name,
            read_before_error: false,
            failed: None,
        }
    }

    /// For a user that reads nothing after a write has failed.
    pub(super) fn read_before_error(mut self) -> Self {
        self.read_before_error = true;
        self
    }
}

impl<S: AsyncRead + Unpin> Noted<S> {
    /// What becomes of a write, or of the failed one before it.
    fn after_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error))
                if self.read_before_error && !self.watch.ended.get() && is_end(&error) =>
            {
                self.failed = Some(error);
                self.read_rest(cx).map(Err)
            }
            result => result,
        }
    }

    /// Reads to the end. It cannot wait for long: the kernel has told that the peer is gone.
    fn read_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *self).poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(
            self.failed
                .take()
                .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
        )
    }
}

/// True for what the kernel says of a connection that the peer has ended.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &result
            && let Some(alert) = HandshakeError::late_alert(&self.name, error)
        {
            // Kept where the request finds it: HTTP/2 keeps only the words of an error.
            *self.watch.alert.borrow_mut() = Some(alert.into());
        }
        if buf.filled().len() > before {
            self.watch.answered.set(true);
        } else if result.is_ready() && buf.remaining() > 0 {
            // The end, or an error: TCP that ended without close_notify is one.
            self.watch.ended.set(true);
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire for Noted<S> {
    fn sent(&self) -> Option<(u64, u64)> {
        self.watch.sent()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return self.read_rest(cx).map(Err);
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.after_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return self.read_rest(cx).map(Err);
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.after_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed.is_some() {
            return self.read_rest(cx).map(Err);
        }
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.after_write(cx, result)
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

/// How many bytes the peer's kernel has acknowledged (`tcpi_bytes_acked`). `None` on kernels before 4.1, which do not tell.
pub(in crate::relay) fn bytes_confirmed(stream: &TcpStream) -> Option<u64> {
    // `struct tcp_info` of include/uapi/linux/tcp.h, as 64 bit words up to tcpi_bytes_acked (offset 120): neither libc
    // nor nix knows the field.
    const BYTES_ACKED: usize = 120 / 8;
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
    Some(info[BYTES_ACKED])
}

#[cfg(test)]
mod tests;
