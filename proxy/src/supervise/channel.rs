//! The socket between master and worker: a set-up message with descriptors beside it, then one JSON message a line.
//!
//! Descriptors travel as SCM_RIGHTS and not by inheritance: no code runs between fork and exec, and a running worker can
//! be given more of them later (docs/adr/0002-process-model.md).

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Descriptors in one message; the kernel takes at most 253 (SCM_MAX_FD).
const BATCH: usize = 64;
/// No message of ours comes near it; a larger one means that the other side is not ours.
const MAX_SETUP: u32 = 1 << 20;

/// Sends the set-up and its descriptors, blocking.
pub fn send_setup<T: Serialize>(
    socket: &UnixStream,
    setup: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(setup)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::other("the set-up is too large"))?;
    let mut stream = socket;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&body)?;
    for batch in descriptors.chunks(BATCH) {
        let raw: Vec<RawFd> = batch.iter().map(AsRawFd::as_raw_fd).collect();
        let payload = [IoSlice::new(b"F")];
        sendmsg::<()>(
            socket.as_raw_fd(),
            &payload,
            &[ControlMessage::ScmRights(&raw)],
            MsgFlags::empty(),
            None,
        )?;
    }
    Ok(())
}

/// Receives the set-up; `count` says how many descriptors it announces.
pub fn receive_setup<T: DeserializeOwned>(
    socket: &UnixStream,
    count: impl FnOnce(&T) -> usize,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut stream = socket;
    let mut length = [0u8; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_SETUP {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a set-up of {length} bytes"),
        ));
    }
    let mut body = vec![0u8; length as usize];
    stream.read_exact(&mut body)?;
    let setup: T = serde_json::from_slice(&body)?;
    let expected = count(&setup);
    let mut descriptors = Vec::with_capacity(expected);
    while descriptors.len() < expected {
        let before = descriptors.len();
        receive_batch(socket.as_fd(), &mut descriptors)?;
        if descriptors.len() == before {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the master sent fewer descriptors than announced",
            ));
        }
    }
    Ok((setup, descriptors))
}

fn receive_batch(socket: BorrowedFd<'_>, into: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut payload = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let mut space = nix::cmsg_space!([RawFd; BATCH]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for descriptor in raw {
                // SAFETY: the kernel has just installed this descriptor for us and nobody else knows its number. Needed
                // because the only way to receive a descriptor is as a bare number.
                into.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
    }
    Ok(())
}

/// The sending half after the set-up.
pub struct Sender(OwnedWriteHalf);

impl Sender {
    /// Sends one message.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.write_all(&line).await
    }
}

/// The receiving half after the set-up.
pub struct Receiver(BufReader<OwnedReadHalf>, Vec<u8>);

impl Receiver {
    /// The next message; `None` when the other side is gone. A half-read message survives cancellation.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        if self.0.read_until(b'\n', &mut self.1).await? == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.1);
        self.1.clear();
        Ok(Some(message?))
    }
}

/// Turns the socket into its two asynchronous halves. Must be called inside a tokio runtime.
pub fn split(socket: UnixStream) -> io::Result<(Sender, Receiver)> {
    socket.set_nonblocking(true)?;
    let (read, write) = tokio::net::UnixStream::from_std(socket)?.into_split();
    Ok((Sender(write), Receiver(BufReader::new(read), Vec::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_arrive_in_order_and_in_number() {
        let (a, b) = UnixStream::pair().unwrap();
        let files: Vec<_> = (0..150).map(|_| tempfile::tempfile().unwrap()).collect();
        for (index, file) in files.iter().enumerate() {
            let mut file = file;
            write!(file, "{index}").unwrap();
        }
        let sender = std::thread::spawn(move || {
            let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            send_setup(&a, &files.len(), &borrowed).unwrap();
        });
        let (count, descriptors) = receive_setup::<usize>(&b, |n| *n).unwrap();
        sender.join().unwrap();
        assert_eq!((count, descriptors.len()), (150, 150));
        for (index, descriptor) in descriptors.into_iter().enumerate() {
            let mut file = std::fs::File::from(descriptor);
            let mut text = String::new();
            io::Seek::rewind(&mut file).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, index.to_string());
        }
    }

    #[test]
    fn a_master_that_dies_half_way_is_an_error() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&5u32.to_be_bytes()).unwrap();
        a.write_all(b"12").unwrap();
        drop(a);
        assert!(receive_setup::<usize>(&b, |n| *n).is_err());
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(
            receive_setup::<usize>(&b, |n| *n).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[tokio::test]
    async fn messages_keep_their_boundaries() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut tx, _keep) = split(a).unwrap();
        let (_other, mut rx) = split(b).unwrap();
        tx.send(&vec!["one", "line\nbreak"]).await.unwrap();
        tx.send(&vec!["two"]).await.unwrap();
        drop((tx, _keep));
        assert_eq!(
            rx.next::<Vec<String>>().await.unwrap().unwrap(),
            ["one", "line\nbreak"]
        );
        assert_eq!(rx.next::<Vec<String>>().await.unwrap().unwrap(), ["two"]);
        assert!(rx.next::<Vec<String>>().await.unwrap().is_none());
    }
}
