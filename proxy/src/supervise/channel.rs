//! The socket between master and worker: one JSON message a line, with the descriptors that belong to it beside it.
//!
//! Descriptors travel as SCM_RIGHTS and not by inheritance: no code runs between fork and exec, and a running worker can
//! be given more of them later (docs/adr/0002-process-model.md). They are attached to the first bytes of their message. A
//! stream keeps them in order and never hands one out after the byte that it was attached to (unix(7)), and every line
//! says how many are its own: so the receiver gives each message exactly what was sent with it, however it was cut up.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

/// Descriptors beside one piece of a message: the kernel's own limit (SCM_MAX_FD, `include/net/scm.h`).
const BATCH: usize = 253;
/// Bytes of one message. The set-up of a worker with two data threads and a thousand pods has some 300 KiB, the largest
/// that there can be two thirds of this; a larger one means that the other side is not ours.
const MAX_MESSAGE: usize = 16 << 20;
/// Descriptors of one message: one for each data thread (`worker.threads`, 64 at most) and family of each network that the
/// kernel's tables have room for, and for the addresses of the host's own listeners. Fewer may be open: LimitNOFILE.
const MAX_DESCRIPTORS: usize = (2 * proxy_ebpf::MAX_NETWORKS as usize + 128) * 64;
/// How much is read at once, in bytes.
const READ: usize = 64 * 1024;

/// What a line holds.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    /// How many descriptors belong to it.
    descriptors: usize,
    message: T,
}

/// A message on its way out.
#[derive(Debug)]
pub struct Frame {
    line: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Bytes that are sent.
    sent: usize,
    /// Descriptors that are sent.
    given: usize,
}

impl Frame {
    /// `message`, and the descriptors that belong to it.
    ///
    /// # Errors
    /// `InvalidInput` for more than a receiver takes.
    pub fn new<T: Serialize>(message: &T, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut line = serde_json::to_vec(&Envelope {
            descriptors: descriptors.len(),
            message,
        })?;
        line.push(b'\n');
        // Every batch needs a byte that it is attached to; an envelope has more bytes than there can be batches.
        if line.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a message of {} bytes and {} descriptors is too large for the channel",
                    line.len(),
                    descriptors.len()
                ),
            ));
        }
        Ok(Self {
            line,
            descriptors,
            sent: 0,
            given: 0,
        })
    }

    /// Sends as much as the socket takes; true when all of it is sent.
    fn send_some(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let batch: Vec<RawFd> = self
            .descriptors
            .iter()
            .skip(self.given)
            .take(BATCH)
            .map(AsRawFd::as_raw_fd)
            .collect();
        let more = self.descriptors.len() - self.given > batch.len();
        let left = self.line.get(self.sent..).unwrap_or_default();
        // While batches follow, each goes with one byte, so that the last one has its byte too.
        let piece = if more { left.get(..1).unwrap_or(left) } else { left };
        let rights = [ControlMessage::ScmRights(&batch)];
        let control = if batch.is_empty() {
            &rights[..0]
        } else {
            &rights[..]
        };
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(piece)],
            control,
            // A peer that is gone is an error here, not a signal.
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        // What goes with a piece goes with its first byte: once a byte is taken, so are the descriptors.
        if sent > 0 {
            self.given += batch.len();
        }
        self.sent += sent;
        Ok(self.sent >= self.line.len())
    }
}

/// What was received and is not a whole message yet.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// Bytes that hold no end of line.
    scanned: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Receives once; the number of bytes, 0 at the end.
    fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let start = self.bytes.len();
        self.bytes.resize(start + READ, 0);
        let result = self.receive(socket, start);
        self.bytes
            .truncate(start + result.as_ref().copied().unwrap_or_default());
        result
    }

    fn receive(&mut self, socket: BorrowedFd<'_>, start: usize) -> io::Result<usize> {
        let mut space = nix::cmsg_space!([RawFd; BATCH]);
        let room = self.bytes.get_mut(start..).unwrap_or_default();
        let mut parts = [IoSliceMut::new(room)];
        let received = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let controls = received.cmsgs().map_err(|error| {
            io::Error::other(format!(
                "descriptors were lost ({error}): is the limit of open files (LimitNOFILE) too low?"
            ))
        })?;
        for control in controls {
            if let ControlMessageOwned::ScmRights(raw) = control {
                for descriptor in raw {
                    // SAFETY: the kernel has just installed this descriptor for us and nobody else knows its number. Needed
                    // because the only way to receive a descriptor is as a bare number.
                    self.descriptors
                        .push_back(unsafe { OwnedFd::from_raw_fd(descriptor) });
                }
            }
        }
        Ok(received.bytes)
    }

    /// The next whole message.
    fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let new = self.bytes.get(self.scanned..).unwrap_or_default();
        let Some(end) = new.iter().position(|byte| *byte == b'\n') else {
            self.scanned = self.bytes.len();
            if self.scanned > MAX_MESSAGE || self.descriptors.len() > MAX_DESCRIPTORS {
                return Err(invalid(format!(
                    "a message of more than {MAX_MESSAGE} bytes or {MAX_DESCRIPTORS} descriptors"
                )));
            }
            return Ok(None);
        };
        let end = self.scanned + end;
        let envelope: Result<Envelope<T>, _> = serde_json::from_slice(&self.bytes[..end]);
        self.bytes.drain(..=end);
        self.scanned = 0;
        let envelope = envelope.map_err(|error| invalid(format!("a malformed message: {error}")))?;
        if envelope.descriptors > self.descriptors.len() {
            return Err(invalid(format!(
                "a message that announces {} descriptors came with {}",
                envelope.descriptors,
                self.descriptors.len()
            )));
        }
        let own = self.descriptors.drain(..envelope.descriptors).collect();
        Ok(Some((envelope.message, own)))
    }

    /// The end: fine between two messages only.
    fn end(&self) -> io::Result<()> {
        if self.bytes.is_empty() && self.descriptors.is_empty() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the other side ended in the middle of a message",
        ))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One end, before there is an event loop.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    inbox: Inbox,
}

impl Channel {
    /// Around a connected stream socket.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            inbox: Inbox::default(),
        }
    }

    /// Goes on where another program of this process stopped, with what it had [`Receiver::received`].
    pub fn resume(socket: UnixStream, received: Vec<u8>) -> Self {
        Self {
            socket,
            inbox: Inbox {
                bytes: received,
                ..Inbox::default()
            },
        }
    }

    /// Waits for one message. The socket must be blocking.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side is gone, `InvalidData` for what is no message of ours.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        loop {
            if let Some(message) = self.inbox.take()? {
                return Ok(message);
            }
            match self.inbox.fill(self.socket.as_fd()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends one message without descriptors. The socket must be blocking.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        let mut frame = Frame::new(message, Vec::new())?;
        while !frame.send_some(self.socket.as_fd())? {}
        Ok(())
    }

    /// Turns it into two asynchronous halves. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn split(self) -> io::Result<(Sender, Receiver)> {
        self.socket.set_nonblocking(true)?;
        let socket = Arc::new(tokio::net::UnixStream::from_std(self.socket)?);
        Ok((Sender(Arc::clone(&socket)), Receiver(socket, self.inbox)))
    }
}

/// The sending half. The socket is closed when both halves are dropped.
#[derive(Debug)]
pub struct Sender(Arc<tokio::net::UnixStream>);

impl Sender {
    /// Sends one message without descriptors.
    ///
    /// # Errors
    /// What the kernel says. Part of the message may be sent then, or when the future is dropped: nothing more can be.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.send_frame(Frame::new(message, Vec::new())?).await
    }

    /// Sends one message with its descriptors; ours are closed then.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn send_frame(&mut self, mut frame: Frame) -> io::Result<()> {
        let socket = &self.0;
        while !socket
            .async_io(Interest::WRITABLE, || frame.send_some(socket.as_fd()))
            .await?
        {}
        Ok(())
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver(Arc<tokio::net::UnixStream>, Inbox);

impl Receiver {
    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What was received and is no whole message yet. Without descriptors: a worker sends none.
    pub fn received(&self) -> &[u8] {
        &self.1.bytes
    }

    /// The next message and its descriptors; `None` when the other side is gone. What is half received survives
    /// cancellation.
    ///
    /// # Errors
    /// `InvalidData` for what is no message of ours; `UnexpectedEof` for an end in the middle of one.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Self(socket, inbox) = self;
        loop {
            if let Some(message) = inbox.take()? {
                return Ok(Some(message));
            }
            let received = socket
                .async_io(Interest::READABLE, || inbox.fill(socket.as_fd()))
                .await?;
            if received == 0 {
                return inbox.end().map(|()| None);
            }
        }
    }
}

/// Copies of descriptors that stay ours, to send them.
///
/// # Errors
/// Too many open files.
pub fn copies(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    descriptors.iter().map(BorrowedFd::try_clone_to_owned).collect()
}

#[cfg(test)]
#[path = "channel/tests.rs"]
mod tests;
