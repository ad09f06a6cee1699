//! What leaves a host, packet by packet: an ear of our own on one of its devices, which the kernel tells every packet of, whoever sent
//! it (packet(7)).
//!
//! `tap` is the socket, `packet` reads IP and TCP, `connection` follows the bytes of a connection and says whether each of them
//! stands in a TLS record.
//!
//! A witness beside the intake: it does not matter here who listens at the other end, or whether anybody does.

mod connection;
mod packet;
mod tap;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::netns::Host;
use crate::{check_eq, eventually};
use connection::contains;
use packet::Segment;

pub use connection::Connection;
pub use tap::Tap;

/// An ear at work; ends with [`Capture::finish`] or when dropped.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Captured>>>,
}

/// What was heard.
#[derive(Debug, Default)]
pub struct Captured {
    /// How many packets, of every protocol.
    pub packets: u64,
    /// How many the kernel had no room to tell us of: with one of them nothing is proven.
    pub dropped: u64,
    /// Every TCP connection, from the side that opened it, in the order in which they began.
    pub connections: Vec<Connection>,
    /// What carried the secret in the clear outside of these connections.
    pub loose: Vec<String>,
    /// Of the ends of a connection, which one it is now: ports come again.
    open: HashMap<(SocketAddr, SocketAddr), usize>,
}

impl Capture {
    /// Listens on a device of `host`; `secret` must be nowhere in the clear.
    pub fn start(host: &Host, device: &str, secret: &str) -> Result<Self> {
        // More than any case sends while this thread does not get a processor.
        const ROOM: usize = 64 << 20;
        Self::watch(Tap::open(host, device, ROOM)?, secret)
    }

    /// The same with a socket that listens already.
    pub fn watch(tap: Tap, secret: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, secret) = (Arc::clone(&stop), secret.as_bytes().to_vec());
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || listen(&tap, &secret, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Reads what came until now, and tells.
    pub fn finish(mut self) -> Result<Captured> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("it was finished before")?;
        thread
            .join()
            .map_err(|_| anyhow!("the thread of the capture panicked"))?
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Captured {
    /// One more packet.
    fn hear(&mut self, packet: &[u8], secret: &[u8]) {
        self.packets += 1;
        match Segment::parse(packet) {
            Some(segment) => self.follow(&segment, secret),
            None if contains(packet, secret) => self
                .loose
                .push("a packet without TCP carries the secret".to_owned()),
            None => {}
        }
    }

    fn follow(&mut self, segment: &Segment<'_>, secret: &[u8]) {
        let ends = (segment.from, segment.to);
        let known = self.open.get(&ends).copied();
        let began = |connections: &[Connection], index: usize| connections[index].first == segment.sequence;
        let index = match known {
            // Ports come again; the same number again is the same SYN again.
            Some(index) if !segment.opens() || began(&self.connections, index) => index,
            _ if segment.opens() => self.add(ends, Connection::new(segment)),
            // The other side's: it is not followed, the secret is looked for all the same.
            _ if self.open.contains_key(&(segment.to, segment.from)) || segment.payload.is_empty() => {
                if contains(segment.payload, secret) {
                    self.loose
                        .push(format!("{} answers {} with the secret", segment.from, segment.to));
                }
                return;
            }
            _ => self.add(ends, Connection::from_the_middle(segment)),
        };
        self.connections[index].segment(segment, secret);
    }

    fn add(&mut self, ends: (SocketAddr, SocketAddr), connection: Connection) -> usize {
        self.connections.push(connection);
        let index = self.connections.len() - 1;
        self.open.insert(ends, index);
        index
    }
}

fn listen(tap: &Tap, secret: &[u8], stopped: &AtomicBool) -> Result<Captured> {
    let mut captured = Captured::default();
    let mut bytes = vec![0; tap::LONGEST];
    while !stopped.load(Ordering::Acquire) {
        if let Some(length) = tap.next(&mut bytes)? {
            captured.hear(&bytes[..length], secret);
        }
    }
    tap.close()?;
    let mut told = 0;
    // A processor may still be at work on what came before the tap was closed.
    eventually("the last packet", Duration::from_secs(5), || {
        while let Some(length) = tap.next(&mut bytes)? {
            captured.hear(&bytes[..length], secret);
        }
        let (more, dropped) = tap.statistics()?;
        told += more;
        captured.dropped += dropped;
        // The kernel counts what it dropped as told.
        check_eq!(
            captured.packets + captured.dropped,
            told,
            "packets read and dropped"
        );
        Ok(Some(()))
    })?;
    Ok(captured)
}
