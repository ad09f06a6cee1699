//! A name server. At first it knows no name, and answers at once what a working resolver answers for a name that does not exist:
//! what exists stands in the hosts file. Without it every unknown name would wait for a time-out, as on a host whose resolver is
//! dead; cases about that leave it out, or tell it to say something else ([`Says`]).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Host;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// No name exists (NXDOMAIN).
    Unknown,
    /// Nothing.
    Silence,
    /// SERVFAIL.
    Failure,
    /// Bytes that are no message of DNS.
    Garbage,
    /// Only this name exists.
    Addresses {
        /// Without a dot at the end.
        name: String,
        /// Of both families.
        ips: Vec<IpAddr>,
        /// Seconds.
        ttl: u32,
        /// Before each answer about it.
        delay: Duration,
    },
}

/// Listens on 127.0.0.1:53 of a host; stops when dropped.
pub struct NameServer {
    says: Arc<Mutex<Says>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts it.
    pub fn start(host: &Host) -> Result<Self> {
        let socket = host.within(|| UdpSocket::bind("127.0.0.1:53").context("cannot bind 127.0.0.1:53"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let says = Arc::new(Mutex::new(Says::Unknown));
        let (told, saying) = (Arc::clone(&stop), Arc::clone(&says));
        let thread = std::thread::spawn(move || {
            let mut query = [0; 512];
            while !told.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut query) else {
                    continue;
                };
                let says = saying.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some((answer, delay)) = answer(&query[..length], &says) {
                    send(&socket, answer, client, delay);
                }
            }
        });
        Ok(Self {
            says,
            stop,
            thread: Some(thread),
        })
    }

    /// From now on, it says this.
    pub fn says(&self, says: Says) {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = says;
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

/// One that waits keeps no other waiting.
fn send(socket: &UdpSocket, answer: Vec<u8>, client: SocketAddr, delay: Duration) {
    if delay.is_zero() {
        let _ = socket.send_to(&answer, client);
    } else if let Ok(socket) = socket.try_clone() {
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let _ = socket.send_to(&answer, client);
        });
    }
}

/// The answer (RFC 1035 section 4), and after how long it is sent.
fn answer(query: &[u8], says: &Says) -> Option<(Vec<u8>, Duration)> {
    // The header's fourth byte: recursion is available, and a code.
    const NO_ERROR: u8 = 0x80;
    const SERVFAIL: u8 = 0x82;
    const NXDOMAIN: u8 = 0x83;
    const AAAA: u16 = 28;
    if query.len() < 12 || *says == Says::Silence {
        return None;
    }
    if *says == Says::Garbage {
        return Some((query[..2].to_vec(), Duration::ZERO));
    }
    let (name, end) = question(query)?;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    // A response (QR) with the question and nothing else.
    let mut answer = query.get(..end + 4)?.to_vec();
    answer[2] |= 0x80;
    answer[6..12].fill(0);
    answer[3] = NXDOMAIN;
    match says {
        Says::Failure => answer[3] = SERVFAIL,
        Says::Addresses {
            name: known,
            ips,
            ttl,
            delay,
        } if name.eq_ignore_ascii_case(known) => {
            answer[3] = NO_ERROR;
            let fitting = ips.iter().filter(|ip| ip.is_ipv6() == (kind == AAAA));
            for ip in fitting {
                answer[7] += 1;
                // The name is the question's; class IN.
                answer.extend([0xc0, 12, 0, kind.to_be_bytes()[1], 0, 1]);
                answer.extend(ttl.to_be_bytes());
                match ip {
                    IpAddr::V4(ip) => answer.extend([&[0, 4], &ip.octets()[..]].concat()),
                    IpAddr::V6(ip) => answer.extend([&[0, 16], &ip.octets()[..]].concat()),
                }
            }
            return Some((answer, *delay));
        }
        _ => {}
    }
    Some((answer, Duration::ZERO))
}

/// The name that is asked for, and where its type stands.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        let label = query.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            return Some((name, at));
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label));
    }
}
