//! One thread's connections to intakes. Those that were in use a moment ago take turns, so that the work is spread over the
//! servers that they lead to; of the others the last one in is the first one out, so that what is too many can go.
//!
//! An idle HTTP/1.1 connection is handed out only after a look at it: closed, or with bytes waiting that nobody asked for, it
//! is dropped. An HTTP/2 connection stays in the pool while it is used by many requests at once.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::connect::HandshakeFailure;
use super::socket::Watch;
use crate::relay::buffers::Buffers;
use crate::relay::http::body::UploadBody;
use crate::relay::network::NetworkId;
use crate::relay::origin::UpstreamAddr;
use crate::tls::Negotiated;

/// Idle connections per key and thread: what two clients with all streams of HTTP/2 that we allow have in use at once, and each
/// may leave. With fewer, every ebb closes what the next flow has to make anew.
const MAX_IDLE_PER_KEY: usize = 256;
/// Requests at once on one HTTP/2 connection; the usual limit of servers.
pub(super) const MAX_STREAMS: usize = 100;
/// Connections that were in use so recently take turns: nothing is wrong with any of them, and none is kept open by its turn
/// for longer than this. Always taking the last one leaves some servers idle while others have a queue: the p99 of
/// requests was half as long again (`docs/PERFORMANCE.md`).
const WARM: Duration = Duration::from_secs(1);
/// How often idle connections are looked over, at least.
const SWEEP: Duration = Duration::from_secs(15);

/// Connections with the same key are interchangeable: verified for the same name, reached the same way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::relay) struct Key {
    /// Where the client is: its connections may be made there, and keep that namespace alive.
    pub(in crate::relay) network: NetworkId,
    pub(in crate::relay) name: Arc<str>,
    /// The original destination of intercepted connections: each goes where its client meant to go. Absent where that is
    /// not what is dialled.
    pub(in crate::relay) original: Option<SocketAddr>,
    /// What servers were judged by when it was made: a connection outlives no change of that by another request.
    pub(in crate::relay) trust: u64,
}

/// The idle connections of one thread.
pub(in crate::relay) struct Pool {
    shelves: RefCell<HashMap<Key, Rc<Shelf>>>,
    /// Whose connections are kept.
    networks: RefCell<HashSet<NetworkId>>,
    idle_timeout: Duration,
}

/// The idle connections of one key. Held by whoever is likely to ask again, so that it is looked for once.
pub(in crate::relay) struct Shelf {
    /// The longest idle first. Not strictly: one of HTTP/2 keeps its place while it is used.
    lines: RefCell<VecDeque<Line>>,
    /// False once its network is gone: nothing is kept any more.
    open: Cell<bool>,
    idle_timeout: Duration,
}

/// The encrypted stream of a connection, whatever TLS it is.
pub(in crate::relay) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// How many bytes the peer's kernel has confirmed so far, and how many ours took, counted alike. `None` when ours does
    /// not tell.
    fn sent(&self) -> Option<(u64, u64)>;
}

/// Which client a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum For {
    /// One that speaks HTTP/1.
    Http1,
    /// One that speaks HTTP/2.
    Http2,
}

/// A connection to an intake.
pub(in crate::relay) struct Line {
    pub(in crate::relay) sender: Sender,
    pub(super) watch: Rc<Watch>,
    pub(in crate::relay) addr: UpstreamAddr,
    pub(in crate::relay) tls: Arc<Negotiated>,
    /// It carried a request before.
    pub(in crate::relay) reused: bool,
    idle_since: Instant,
}

/// What speaks on it.
pub(in crate::relay) enum Sender {
    /// HTTP/1.1, spoken by `http::server1`.
    Wire(Box<dyn Wire>),
    /// HTTP/1.1, spoken by hyper: for requests that came by HTTP/2.
    Http1(http1::SendRequest<UploadBody>),
    Http2 {
        sender: http2::SendRequest<UploadBody>,
        streams: Rc<Cell<usize>>,
    },
}

impl Line {
    pub(super) fn new(sender: Sender, watch: Rc<Watch>, addr: UpstreamAddr, tls: Arc<Negotiated>) -> Self {
        Self {
            sender,
            watch,
            addr,
            tls,
            reused: false,
            idle_since: Instant::now(),
        }
    }

    /// A request is about to be sent on it.
    pub(in crate::relay) fn mark(&self) {
        self.watch.mark();
    }

    /// True when the request since [`Line::mark`], which failed, cannot have been processed: see `Watch`.
    pub(in crate::relay) async fn has_not_processed(&self) -> bool {
        self.watch.has_not_processed().await
    }

    /// Why the intake ended the session, when it said so.
    pub(in crate::relay) fn alert(&self) -> Option<HandshakeFailure> {
        self.watch.alert()
    }

    fn suits(&self, client: For) -> bool {
        match &self.sender {
            Sender::Wire(_) => client == For::Http1,
            Sender::Http1(_) => client == For::Http2,
            Sender::Http2 { .. } => true,
        }
    }

    /// True for an idle connection on which nothing happened, and nothing waits that the runtime knows of. What arrived a
    /// moment ago it may not know yet; that is what a request is sent again for.
    fn is_quiet(&mut self) -> bool {
        match &mut self.sender {
            Sender::Wire(wire) => {
                let mut byte = [0];
                let mut cx = Context::from_waker(Waker::noop());
                // Asks the kernel only when there is news. Tickets and key updates are read here, and mean nothing.
                Pin::new(wire)
                    .poll_read(&mut cx, &mut ReadBuf::new(&mut byte))
                    .is_pending()
            }
            Sender::Http1(_) => self.watch.is_quiet(),
            Sender::Http2 { .. } => self.watch.is_open(),
        }
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Wire(_) => false,
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2 { sender, .. } => sender.is_closed(),
        }
    }

    /// Another handle on the same HTTP/2 connection.
    fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::Wire(_) | Sender::Http1(_) => None,
            Sender::Http2 { sender, streams } => Some(Self {
                sender: Sender::Http2 {
                    sender: sender.clone(),
                    streams: Rc::clone(streams),
                },
                watch: Rc::clone(&self.watch),
                addr: self.addr,
                tls: Arc::clone(&self.tls),
                reused: true,
                idle_since: Instant::now(),
            }),
        }
    }

    fn is_in_use(&self) -> bool {
        matches!(&self.sender, Sender::Http2 { streams, .. } if streams.get() > 0)
    }
}

impl Pool {
    pub(in crate::relay) fn new(idle_timeout: Duration) -> Self {
        Self {
            shelves: RefCell::new(HashMap::new()),
            networks: RefCell::new(HashSet::new()),
            idle_timeout,
        }
    }

    /// Keeps connections of `network` from now on.
    pub(in crate::relay) fn enter(&self, network: NetworkId) {
        self.networks.borrow_mut().insert(network);
    }

    /// Closes the idle connections of `network`, and keeps none that is given back later.
    pub(in crate::relay) fn leave(&self, network: NetworkId) {
        self.networks.borrow_mut().remove(&network);
        self.shelves.borrow_mut().retain(|key, shelf| {
            let stays = key.network != network;
            if !stays {
                shelf.open.set(false);
                shelf.lines.borrow_mut().clear();
            }
            stays
        });
    }

    /// Where the connections of `key` are kept.
    pub(in crate::relay) fn shelf(&self, key: Key) -> Rc<Shelf> {
        let open = self.networks.borrow().contains(&key.network);
        let mut shelves = self.shelves.borrow_mut();
        let shelf = shelves.entry(key).or_insert_with(|| {
            Rc::new(Shelf {
                lines: RefCell::default(),
                open: Cell::new(open),
                idle_timeout: self.idle_timeout,
            })
        });
        Rc::clone(shelf)
    }

    fn sweep(&self) {
        self.shelves.borrow_mut().retain(|_, shelf| {
            shelf.sweep();
            // One that somebody holds stays: another of the same key would divide its connections.
            Rc::strong_count(shelf) > 1 || !shelf.lines.borrow().is_empty()
        });
    }
}

impl Shelf {
    /// A good connection for such a client: of those that are warm the one that was idle for longest, else the one that was
    /// idle for the shortest time. Bad ones that are met on the way are dropped.
    pub(in crate::relay) fn take(&self, client: For) -> Option<Line> {
        let mut lines = self.lines.borrow_mut();
        let now = Instant::now();
        let warm = lines.partition_point(|line| now - line.idle_since > WARM);
        let mut at = warm;
        while let Some(line) = lines.get_mut(at) {
            match self.fit(line, client, now) {
                Fit::Good => return hand_out(&mut lines, at, now),
                Fit::Busy => at += 1,
                Fit::Bad => drop(lines.remove(at)),
            }
        }
        for at in (0..warm).rev() {
            match self.fit(&mut lines[at], client, now) {
                Fit::Good => return hand_out(&mut lines, at, now),
                Fit::Busy => {}
                Fit::Bad => drop(lines.remove(at)),
            }
        }
        None
    }

    fn fit(&self, line: &mut Line, client: For, now: Instant) -> Fit {
        if line.is_closed() || (!line.is_in_use() && now - line.idle_since >= self.idle_timeout) {
            return Fit::Bad;
        }
        let ready = match &line.sender {
            // Not ready: its task has yet to see the end of the last response.
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2 { streams, .. } => streams.get() < MAX_STREAMS,
            Sender::Wire(_) => true,
        };
        if !ready || !line.suits(client) {
            return Fit::Busy;
        }
        if line.is_quiet() { Fit::Good } else { Fit::Bad }
    }

    /// Makes a new HTTP/2 connection available to others at once.
    pub(in crate::relay) fn publish(&self, line: &Line) {
        if let Some(shared) = line.share() {
            self.put(shared);
        }
    }

    /// Keeps an idle connection for whoever asks next.
    pub(super) fn put(&self, mut line: Line) {
        // A peer may say goodbye together with its answer.
        let left = matches!(line.sender, Sender::Wire(_)) && !line.is_quiet();
        if left || line.is_closed() || !self.open.get() {
            return;
        }
        line.reused = true;
        line.idle_since = Instant::now();
        let mut lines = self.lines.borrow_mut();
        if lines.len() >= MAX_IDLE_PER_KEY {
            // The coldest goes.
            drop(lines.pop_front());
        }
        lines.push_back(line);
    }

    fn sweep(&self) {
        let now = Instant::now();
        self.lines.borrow_mut().retain_mut(|line| {
            let in_time = line.is_in_use() || now - line.idle_since < self.idle_timeout;
            // Nobody drives an idle connection of ours: that its peer has closed it is found here.
            let open = !matches!(line.sender, Sender::Wire(_)) || line.is_quiet();
            in_time && open && !line.is_closed()
        });
    }
}

/// Whether an idle connection can be used now.
enum Fit {
    Good,
    /// By another request, or for another protocol.
    Busy,
    Bad,
}

/// One of HTTP/2 stays for others.
fn hand_out(lines: &mut VecDeque<Line>, at: usize, now: Instant) -> Option<Line> {
    let line = lines.get_mut(at)?;
    if matches!(line.sender, Sender::Http2 { .. }) {
        line.idle_since = now;
        return line.share();
    }
    lines.remove(at)
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("keys", &self.shelves.borrow().len())
            .finish_non_exhaustive()
    }
}

/// Closes idle connections and lets buffers go in time; runs as long as the thread serves.
pub(in crate::relay) async fn sweep(pool: Rc<Pool>, buffers: Rc<Buffers>) {
    let mut tick = tokio::time::interval(SWEEP.min(pool.idle_timeout.max(Duration::from_secs(1)) / 2));
    loop {
        tick.tick().await;
        pool.sweep();
        buffers.trim();
    }
}

/// A connection while a request uses it. Dropped without [`Lease::give_back`], an HTTP/1.1 connection is closed.
pub(in crate::relay) struct Lease {
    shelf: Rc<Shelf>,
    line: Option<Line>,
}

impl Lease {
    pub(in crate::relay) fn new(shelf: Rc<Shelf>, line: Line) -> Self {
        if let Sender::Http2 { streams, .. } = &line.sender {
            streams.set(streams.get() + 1);
        }
        Self {
            shelf,
            line: Some(line),
        }
    }

    pub(in crate::relay) fn line(&mut self) -> Option<&mut Line> {
        self.line.as_mut()
    }

    /// The response is complete: the connection may serve the next request.
    pub(in crate::relay) fn give_back(&mut self) {
        let Some(line) = self.release() else { return };
        if matches!(line.sender, Sender::Wire(_) | Sender::Http1(_)) {
            self.shelf.put(line);
        }
    }

    fn release(&mut self) -> Option<Line> {
        let line = self.line.take()?;
        if let Sender::Http2 { streams, .. } = &line.sender {
            streams.set(streams.get().saturating_sub(1));
        }
        Some(line)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.release());
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf")
            .field("lines", &self.lines.borrow().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::task::Poll;

    use tokio::net::TcpStream;

    use super::super::socket::Socket;
    use super::*;

    /// An idle connection: nothing comes.
    struct Quiet;

    impl AsyncRead for Quiet {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Quiet {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Wire for Quiet {
        fn sent(&self) -> Option<(u64, u64)> {
            None
        }
    }

    /// Known by its port.
    fn line(port: u16) -> Line {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (_, watch) = Socket::new(TcpStream::from_std(stream).unwrap());
        Line::new(
            Sender::Wire(Box::new(Quiet)),
            watch,
            UpstreamAddr(SocketAddr::from(([203, 0, 113, 1], port))),
            Arc::default(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn warm_connections_take_turns_and_of_cold_ones_the_last_goes_first() {
        let idle_timeout = Duration::from_secs(60);
        let pool = Pool::new(idle_timeout);
        pool.enter(NetworkId::HOST);
        let shelf = pool.shelf(Key {
            network: NetworkId::HOST,
            name: Arc::from("trace.agent.ddog-gov.com"),
            original: None,
            trust: 0,
        });
        let take = || shelf.take(For::Http1);
        let port = |line: &Line| line.addr.0.port();
        for n in 1..=3 {
            shelf.put(line(n));
        }
        for n in [1, 2, 3, 1, 2, 3] {
            let line = take().unwrap();
            assert_eq!(port(&line), n);
            shelf.put(line);
        }

        tokio::time::advance(WARM * 2).await;
        for _ in 0..3 {
            let line = take().unwrap();
            assert_eq!(port(&line), 3, "used again and again, so that the others can go");
            shelf.put(line);
        }
        let busy = take().unwrap();
        assert_eq!((port(&busy), port(&take().unwrap())), (3, 2));
        shelf.put(busy);

        tokio::time::advance(idle_timeout - WARM * 2).await;
        assert_eq!(port(&take().unwrap()), 3);
        assert!(take().is_none(), "the first was idle for too long");
    }
}
