//! A name server that knows no name: answers at once what a working resolver answers for a name that does not exist.
//! What exists stands in the hosts file. Without it every unknown name would wait for a time-out, as on a host whose
//! resolver is dead; cases about that leave it out.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Host;

/// Listens on 127.0.0.1:53 of a host; stops when dropped.
pub struct NameServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts it.
    pub fn start(host: &Host) -> Result<Self> {
        let socket = host.within(|| UdpSocket::bind("127.0.0.1:53").context("cannot bind 127.0.0.1:53"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut query = [0; 512];
            while !told.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut query) else {
                    continue;
                };
                if length < 12 {
                    continue;
                }
                // RFC 1035 section 4.1.1: a response (QR), recursion available, NXDOMAIN; the question stays, nothing else.
                query[2] |= 0x80;
                query[3] = 0x83;
                query[6..12].fill(0);
                let question = query[12..length]
                    .iter()
                    .position(|byte| *byte == 0)
                    .map_or(length, |end| 12 + end + 5);
                let _ = socket.send_to(&query[..question.min(length)], client);
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
