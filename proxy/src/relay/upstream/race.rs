//! The addresses of a name, against each other: the next one begins when the one before has not connected within [`STAGGER`]
//! (Happy Eyeballs, RFC 8305), so that an address that swallows packets, or a whole family, costs a quarter of a second and not
//! `upstream.connect_timeout`. The first TCP connection goes on to TLS; nothing of a request is sent on the others.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Failure;
use super::connect::{self, Handshake, To};
use super::health::Place;
use super::pool::Line;
use crate::relay::accept::Thread;
use crate::relay::origin::UpstreamAddr;

/// RFC 8305 section 5 recommends so much.
const STAGGER: Duration = Duration::from_millis(250);

/// What a TCP connection came to, and until when TLS must be done.
struct Connected {
    address: SocketAddr,
    until: Instant,
    /// What was lost when it began.
    lost: Duration,
    stream: Result<TcpStream, Failure>,
}

/// The first connection to one of `addresses`. `None` when none was made: `last` is why.
///
/// # Errors
/// The outbound proxy's word, which counts for all of its addresses.
pub(super) async fn first<H: Handshake>(
    thread: &Thread<H>,
    to: To<'_>,
    addresses: Vec<SocketAddr>,
    last: &mut Option<Failure>,
) -> Result<Option<Line>, Failure> {
    let mut waiting = addresses.into_iter().peekable();
    let mut running = Vec::new();
    let mut next = Instant::now();
    // Spent on others' TLS, which an address that waited behind them is not to pay for.
    let mut lost = Duration::ZERO;
    loop {
        if running.is_empty() || next <= Instant::now() {
            match waiting.next() {
                Some(address) => running.push(Box::pin(tcp(thread, to, address, lost))),
                None if running.is_empty() => return Ok(None),
                None => {}
            }
            next = Instant::now() + STAGGER;
        }
        let connected = tokio::select! {
            connected = any(&mut running) => connected,
            () = sleep_until(next), if waiting.peek().is_some() => continue,
        };
        let address = connected.address;
        let since = Instant::now();
        let line = finish(thread, to, connected, lost).await;
        lost += since.elapsed();
        match line {
            Ok(line) => return Ok(Some(line)),
            Err(failure) if failure.is_the_proxys_word() => return Err(failure),
            Err(failure) => {
                tracing::debug!(name = %to.target.name, %address, error = %failure, "address failed");
                note(thread, to, address, &failure);
                *last = Some(failure);
            }
        }
        // Nobody is waited for: the next one at once.
        next = Instant::now();
    }
}

/// One address by itself.
///
/// # Errors
/// Why there is no connection.
pub(super) async fn one<H: Handshake>(
    thread: &Thread<H>,
    to: To<'_>,
    address: SocketAddr,
) -> Result<Line, Failure> {
    let connected = tcp(thread, to, address, Duration::ZERO).await;
    let line = finish(thread, to, connected, Duration::ZERO).await;
    if let Err(failure) = &line
        && !failure.is_the_proxys_word()
    {
        note(thread, to, address, failure);
    }
    line
}

/// An address took no connection.
fn note<H: Handshake>(thread: &Thread<H>, to: To<'_>, address: SocketAddr, failure: &Failure) {
    let pause = thread.health.fails(&place(to, address));
    thread
        .shared
        .recorder
        .upstream_failed(&to.told(address), failure, pause);
}

/// How the health of addresses knows this one.
pub(super) fn place(to: To<'_>, address: SocketAddr) -> Place {
    Place {
        road: to.road(),
        address,
    }
}

async fn tcp<H: Handshake>(thread: &Thread<H>, to: To<'_>, address: SocketAddr, lost: Duration) -> Connected {
    let addr = UpstreamAddr(address);
    let until = Instant::now() + thread.shared.config.upstream.connect_timeout;
    let stream = timeout_at(until, connect::tcp(&thread.shared, to, addr))
        .await
        .unwrap_or_else(|_| Err(connect::late(to.way, addr)));
    Connected {
        address,
        until,
        lost,
        stream,
    }
}

async fn finish<H: Handshake>(
    thread: &Thread<H>,
    to: To<'_>,
    connected: Connected,
    lost: Duration,
) -> Result<Line, Failure> {
    let Connected { address, stream, .. } = connected;
    let addr = UpstreamAddr(address);
    let until = connected.until + lost.saturating_sub(connected.lost);
    let line = timeout_at(until, connect::secure(&thread.shared, to, addr, stream?))
        .await
        .unwrap_or_else(|_| Err(connect::late(to.way, addr)))?;
    thread
        .shared
        .recorder
        .upstream_connected(&to.told(address), &line.tls);
    thread.health.works(&place(to, address));
    Ok(line)
}

/// The first of these that is done.
async fn any<F: Future>(running: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|cx| {
        for at in 0..running.len() {
            if let Poll::Ready(output) = running[at].as_mut().poll(cx) {
                drop(running.swap_remove(at));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}
