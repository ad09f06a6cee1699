//! One connection of a hostile intake: what each [`Step`] does.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustls::ServerConnection;
use socket2::SockRef;

use super::record::{APPLICATION_DATA, Sealer};
use super::{HangUp, Kind, LOOK, Shared, Step, lock};
use crate::intake::session;

/// What a good intake answers.
const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}";
/// Of a response and of a request that have no body: END_STREAM.
const END_STREAM: u8 = 1;

/// A connection.
pub(super) struct Peer {
    tcp: TcpStream,
    tls: Tls,
    /// Decrypted, and not used yet.
    buffer: Vec<u8>,
    shared: Arc<Shared>,
    /// What was to be hung up when it began is none of its business.
    hang_ups: u64,
    /// The fault that it is a part of.
    faults: u64,
}

enum Tls {
    None,
    Session(Box<ServerConnection>),
    Sealed(Sealer),
}

/// Writes one byte at a time.
struct ByByte<'a>(&'a TcpStream);

impl Write for ByByte<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Peer {
    pub(super) fn new(tcp: TcpStream, shared: Arc<Shared>) -> Result<Self> {
        tcp.set_nonblocking(false)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(LOOK))?;
        tcp.set_write_timeout(Some(LOOK))?;
        Ok(Self {
            tcp,
            tls: Tls::None,
            buffer: Vec::new(),
            hang_ups: shared.hang_ups.load(Ordering::SeqCst),
            faults: shared.faults.load(Ordering::SeqCst),
            shared,
        })
    }

    /// Serves requests well until the peer leaves or everybody is hung up on.
    pub(super) fn behave(&mut self) -> Result<()> {
        self.shake(Kind::Best)?;
        while self.request()? {
            self.write(ACCEPTED)?;
        }
        Ok(())
    }

    pub(super) fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Hello => self.hello(),
            Step::Shake(kind) => self.shake(kind),
            Step::Head => self.head().map(drop),
            Step::Request => self.request().map(drop),
            Step::Body(length) => self.take(length),
            Step::Stream => self.stream(),
            Step::Send(bytes) => self.write(bytes),
            Step::ByByte(bytes) => bytes.iter().try_for_each(|byte| self.write(&[*byte])),
            Step::Repeat(bytes, times) => (0..times).try_for_each(|_| self.write(bytes)),
            Step::Clear(bytes) => self.wire(bytes),
            Step::Sealed(kind, bytes) => self.sealed(kind, bytes),
            Step::Pause(ms) => {
                let until = Instant::now() + Duration::from_millis(ms);
                while Instant::now() < until && !self.stopped() {
                    std::thread::sleep(LOOK / 4);
                }
                Ok(())
            }
            Step::Stall => self.stall(),
            Step::Notify => self.notify(),
            Step::Close => {
                self.tcp.shutdown(Shutdown::Write)?;
                self.stall()
            }
            Step::Reset => self.reset(),
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    /// True for a read or write that only waited; an error when nobody is to wait any more.
    fn waited(&self, error: io::Error) -> Result<()> {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted if !self.stopped() => Ok(()),
            _ => Err(error.into()),
        }
    }

    fn hello(&mut self) -> Result<()> {
        let mut record = Vec::new();
        let whole = |record: &[u8]| {
            record.len() >= 5 && record.len() >= 5 + usize::from(u16::from_be_bytes([record[3], record[4]]))
        };
        while !whole(&record) {
            let mut piece = [0; 4096];
            match self.tcp.read(&mut piece) {
                Ok(0) => bail!("the peer left"),
                Ok(length) => record.extend_from_slice(&piece[..length]),
                Err(error) => self.waited(error)?,
            }
        }
        Ok(())
    }

    fn shake(&mut self, kind: Kind) -> Result<()> {
        let mut tls = Box::new(ServerConnection::new(self.shared.config(kind))?);
        while tls.is_handshaking() || tls.wants_write() {
            if tls.wants_write() {
                let written = match kind {
                    Kind::ByByte => tls.write_tls(&mut ByByte(&self.tcp)),
                    _ => tls.write_tls(&mut self.tcp),
                };
                if let Err(error) = written {
                    self.waited(error)?;
                }
                continue;
            }
            match tls.read_tls(&mut self.tcp) {
                Ok(0) => bail!("the peer left"),
                Ok(_) => {
                    if let Err(error) = tls.process_new_packets() {
                        // The alert.
                        let _ = tls.write_tls(&mut self.tcp);
                        return Err(error.into());
                    }
                }
                Err(error) => self.waited(error)?,
            }
        }
        lock(&self.shared.sessions).push(session(&tls));
        self.tls = Tls::Session(tls);
        Ok(())
    }

    /// Reads more of what the peer says; false at its end.
    fn more(&mut self) -> Result<bool> {
        loop {
            if self.shared.hang_ups.load(Ordering::SeqCst) > self.hang_ups && self.buffer.is_empty() {
                let how = *lock(&self.shared.hang_up);
                match how {
                    HangUp::Gently => self.notify()?,
                    HangUp::Reset => self.reset()?,
                }
                bail!("hung up as told");
            }
            let Tls::Session(tls) = &mut self.tls else {
                bail!("nothing can be read");
            };
            let mut piece = [0; 16 * 1024];
            match tls.reader().read(&mut piece) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    self.shared.bytes.fetch_add(length as u64, Ordering::SeqCst);
                    self.buffer.extend_from_slice(&piece[..length]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            match tls.read_tls(&mut self.tcp) {
                Ok(0) => return Ok(false),
                Ok(_) => {
                    tls.process_new_packets()?;
                }
                Err(error) => self.waited(error)?,
            }
        }
    }

    /// The length of the body of the next request; none when the peer left before it.
    fn head(&mut self) -> Result<Option<usize>> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if !self.more()? {
                return Ok(None);
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        self.buffer.drain(..end + 4);
        let value = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
        };
        lock(&self.shared.heads).push(value("x-test-id:").unwrap_or_default());
        let length = value("content-length:").map_or(Ok(0), |length| length.parse());
        length.context("content-length").map(Some)
    }

    /// False when the peer left before it.
    fn request(&mut self) -> Result<bool> {
        let Some(length) = self.head()? else {
            return Ok(false);
        };
        self.take(length)?;
        Ok(true)
    }

    fn take(&mut self, mut length: usize) -> Result<()> {
        while length > 0 {
            if self.buffer.is_empty() && !self.more()? {
                bail!("the body broke off");
            }
            let here = self.buffer.len().min(length);
            self.buffer.drain(..here);
            length -= here;
        }
        Ok(())
    }

    /// Frames (RFC 9113 section 4.1), until HEADERS or DATA with END_STREAM.
    fn stream(&mut self) -> Result<()> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        loop {
            if self.buffer.starts_with(PREFACE) {
                self.buffer.drain(..PREFACE.len());
            }
            let partial_preface = PREFACE.starts_with(&self.buffer[..self.buffer.len().min(PREFACE.len())]);
            if self.buffer.len() >= 9 && !partial_preface {
                let length = usize::from(self.buffer[1]) << 8 | usize::from(self.buffer[2]);
                if self.buffer.len() >= 9 + length {
                    let (kind, flags) = (self.buffer[3], self.buffer[4]);
                    self.buffer.drain(..9 + length);
                    if kind <= 1 && flags & END_STREAM != 0 {
                        return Ok(());
                    }
                    continue;
                }
            }
            if !self.more()? {
                bail!("the peer left");
            }
        }
    }

    /// Within the session, if there is one.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.tls {
            Tls::None => self.wire(bytes),
            Tls::Sealed(_) => self.sealed(APPLICATION_DATA, bytes),
            Tls::Session(tls) => {
                // No more than its buffer takes at once.
                for part in bytes.chunks(16 * 1024) {
                    tls.writer().write_all(part)?;
                    flush(tls, &mut self.tcp, &self.shared)?;
                }
                Ok(())
            }
        }
    }

    fn sealed(&mut self, kind: u8, bytes: &[u8]) -> Result<()> {
        if let Tls::Session(tls) = &mut self.tls {
            let session = std::mem::replace(
                tls.as_mut(),
                ServerConnection::new(self.shared.config(Kind::Best))?,
            );
            self.tls = Tls::Sealed(Sealer::new(session).inspect_err(|error| self.mistaken(error))?);
        }
        let Tls::Sealed(sealer) = &mut self.tls else {
            bail!("no session");
        };
        let record = sealer.seal(kind, bytes);
        let record = record.inspect_err(|error| self.mistaken(error))?;
        self.wire(&record)
    }

    /// What must never happen: the script cannot be played.
    fn mistaken(&self, error: &anyhow::Error) {
        lock(&self.shared.mistakes).push(format!("{error:#}"));
    }

    fn wire(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.tcp.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) => self.waited(error)?,
            }
        }
        Ok(())
    }

    /// Until the fault is over; what the peer sends stays in the kernel.
    fn stall(&mut self) -> Result<()> {
        while !self.stopped() && self.shared.faults.load(Ordering::SeqCst) == self.faults {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn notify(&mut self) -> Result<()> {
        if let Tls::Session(tls) = &mut self.tls {
            tls.send_close_notify();
            flush(tls, &mut self.tcp, &self.shared)?;
        }
        Ok(self.tcp.shutdown(Shutdown::Write)?)
    }

    fn reset(&mut self) -> Result<()> {
        SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO))?;
        bail!("reset as told");
    }
}

fn flush(tls: &mut ServerConnection, tcp: &mut TcpStream, shared: &Shared) -> Result<()> {
    while tls.wants_write() {
        match tls.write_tls(tcp) {
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                    && !shared.stop.load(Ordering::SeqCst) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
