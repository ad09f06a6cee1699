//! The leak detector: a clear-text listener on the intake's own address, which sees whatever went around the proxy.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Host;

/// One connection in the clear.
#[derive(Clone, Debug)]
pub struct Clear {
    /// The address that was dialled.
    pub local: SocketAddr,
    /// Where it came from.
    pub peer: SocketAddr,
    /// What came, at most 64 KiB.
    pub bytes: Vec<u8>,
}

impl Clear {
    /// True when the request names this host.
    pub fn names(&self, host: &str) -> bool {
        String::from_utf8_lossy(&self.bytes)
            .to_ascii_lowercase()
            .contains(&host.to_ascii_lowercase())
    }
}

/// A listener that answers every request `200 plain`; stops when dropped.
pub struct Plain {
    seen: Arc<Mutex<Vec<Clear>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Plain {
    /// Listens on each address of `host`.
    pub fn start(host: &Host, addresses: &[IpAddr], port: u16) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            let listener =
                host.within(|| TcpListener::bind(address).with_context(|| format!("cannot bind {address}")))?;
            listener.set_nonblocking(true)?;
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || accept(&listener, &seen, &stop)));
        }
        Ok(Self { seen, stop, threads })
    }

    /// Everything that came in the clear.
    pub fn seen(&self) -> Vec<Clear> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, seen: &Arc<Mutex<Vec<Clear>>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => {
                let seen = Arc::clone(seen);
                std::thread::spawn(move || serve(stream, peer, &seen));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Reads until the client pauses for 200 ms or the request looks complete, records, answers.
fn serve(mut stream: TcpStream, peer: SocketAddr, seen: &Mutex<Vec<Clear>>) {
    let (Ok(local), Ok(()), Ok(())) = (
        stream.local_addr(),
        stream.set_nonblocking(false),
        stream.set_read_timeout(Some(Duration::from_millis(200))),
    ) else {
        return;
    };
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() < 64 * 1024 {
        match stream.read(&mut piece) {
            Ok(length) if length > 0 => bytes.extend_from_slice(&piece[..length]),
            _ => break,
        }
        // A GET ends with its head; a body is awaited by the pause.
        if bytes.starts_with(b"GET ") && bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    seen.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Clear { local, peer, bytes });
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nplain");
}
