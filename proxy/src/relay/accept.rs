//! Accepts connections, and takes each to its end with one record.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::buffers::Buffers;
use super::classify::Class;
use super::http::window::Window;
use super::http::{self, ClientIo, MAX_BUFFER, Session, answer};
use super::intercepted;
use super::network::{self, NetworkId};
use super::origin::{self, ClientAddr, Origin, canonical};
use super::outcome::{ConnectionRecord, Outcome, Said, TlsClient, Via};
use super::slots::{Full, Slot};
use super::upstream::connect::Handshake;
use super::upstream::destination::Destinations;
use super::upstream::health::Health;
use super::upstream::pool::Pool;
use super::{Listener, Recorder, Role, Shared, drained};

/// After an accept error that does not go away by itself (EMFILE, ENOMEM).
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Overload answers that are on their way at once, per listener; beyond them connections are closed unanswered.
const MAX_REJECTS: usize = 64;
/// How long a rejected client may take to read its answer.
const REJECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What the connections of one data thread share.
pub(super) struct Thread<H> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) pool: Rc<Pool>,
    pub(super) destinations: Destinations,
    pub(super) health: Health,
    pub(super) buffers: Rc<Buffers>,
    /// By port: a destination's port is hardly ever a listener's.
    own: RefCell<BTreeMap<u16, Vec<Own>>>,
}

/// One listener of this thread.
struct Own {
    /// Whose clients come to it.
    network: NetworkId,
    /// The namespace that its address is in.
    home: NetworkId,
    ip: IpAddr,
}

impl<H> Thread<H> {
    pub(super) fn new(shared: Arc<Shared<H>>) -> Self {
        let pool = Rc::new(Pool::new(shared.config.upstream.pool_idle_timeout));
        let buffers = Rc::new(Buffers::new(
            MAX_BUFFER.max(shared.config.limits.max_header_bytes),
        ));
        Self {
            shared,
            pool,
            destinations: Destinations::default(),
            health: Health::default(),
            buffers,
            own: RefCell::default(),
        }
    }

    /// A listener of ours is served from now on.
    pub(super) fn enter(&self, role: Role, address: Option<SocketAddr>) {
        let network = role.network();
        self.pool.enter(network);
        if let Some(address) = address.map(canonical) {
            let mut own = self.own.borrow_mut();
            own.entry(address.port()).or_default().push(Own {
                network,
                home: role.home(),
                ip: address.ip(),
            });
        }
    }

    /// A network is gone, and with it its listeners and idle connections.
    pub(super) fn leave(&self, network: NetworkId) {
        self.own.borrow_mut().retain(|_, own| {
            own.retain(|own| own.network != network);
            !own.is_empty()
        });
        self.destinations.leave(network);
        self.health.leave(network);
        self.pool.leave(network);
    }

    /// True for an address that one of our listeners answers: dialling it for a client of `network` would be a loop. A
    /// loopback address means another place in each namespace; any other one of the host's is reached from everywhere.
    pub(super) fn is_own(&self, network: NetworkId, address: SocketAddr) -> bool {
        let address = canonical(address);
        let own = self.own.borrow();
        let Some(own) = own.get(&address.port()) else {
            return false;
        };
        let from = network::dialled_from(&self.shared, network);
        let asked = address.ip();
        own.iter().any(|own| {
            let same_place = own.home == from;
            let same_ip =
                own.ip == asked && (same_place || !(own.ip.is_loopback() || own.ip.is_unspecified()));
            let here = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
            let met =
                (own.ip.is_unspecified() && here(asked)) || (asked.is_unspecified() && own.ip.is_loopback());
            same_ip || (same_place && met)
        })
    }
}

/// Accepts on one listener until draining, then waits for its connections, at most `limits.drain_timeout`.
pub(super) async fn listen<H: Handshake>(
    listener: Listener,
    thread: Rc<Thread<H>>,
    mut drain: watch::Receiver<bool>,
) {
    let Listener { role, socket } = listener;
    let address = socket.local_addr();
    let bound = address.as_ref().ok().copied();
    // Accepted sockets inherit it (Linux copies the listener's TCP options): one system call less for each.
    if let Err(error) = SockRef::from(&socket).set_tcp_nodelay(true) {
        tracing::debug!(?role, %error, "cannot set TCP_NODELAY");
    }
    let listener = match socket
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(socket))
    {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(?role, ?address, %error, "cannot serve a listener");
            return;
        }
    };
    let agent = thread.shared.slots.of(role.network());
    let mut connections = JoinSet::new();
    let mut rejects = JoinSet::new();
    let mut backoff = BACKOFF_MIN;
    loop {
        tokio::select! {
            biased;
            () = drained(&mut drain) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            Some(_) = rejects.join_next(), if !rejects.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    backoff = BACKOFF_MIN;
                    let client = ClientAddr(canonical(client));
                    match agent.take() {
                        Ok(slot) => {
                            let incoming = Incoming { role, bound, stream, client, slot };
                            connections.spawn_local(connection(Rc::clone(&thread), incoming, drain.clone()));
                        }
                        Err(full) => overloaded(&thread, role, stream, client, full, &mut rejects),
                    }
                }
                // The client gave up between its SYN and our accept.
                Err(error) if is_clients_fault(&error) => {}
                Err(error) => {
                    tracing::error!(?role, %error, ?backoff, "cannot accept; is LimitNOFILE too low?");
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(thread.shared.config.limits.drain_timeout, finish)
        .await
        .is_err()
    {
        tracing::warn!(
            ?role,
            left = connections.len(),
            "limits.drain_timeout is over, connections are cut"
        );
        connections.shutdown().await;
    }
}

fn is_clients_fault(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ECONNABORTED | Errno::EPROTO | Errno::EPERM)
    )
}

/// A connection that was just accepted.
struct Incoming {
    role: Role,
    /// The listener's own address.
    bound: Option<SocketAddr>,
    stream: TcpStream,
    client: ClientAddr,
    /// Held until the record is told.
    slot: Slot,
}

/// A connection on its way: all that is known of it, and its record.
pub(super) struct Accepted<H> {
    pub(super) thread: Rc<Thread<H>>,
    pub(super) role: Role,
    pub(super) client: ClientAddr,
    pub(super) drain: watch::Receiver<bool>,
    pub(super) slot: Slot,
    pub(super) recording: Recording,
}

/// One connection, from accept to record.
async fn connection<H: Handshake>(thread: Rc<Thread<H>>, incoming: Incoming, drain: watch::Receiver<bool>) {
    let Incoming {
        role,
        bound,
        stream,
        client,
        slot,
    } = incoming;
    let via = role.via();
    thread.shared.recorder.connection_opened(via);
    let recording = Recording::new(Arc::clone(&thread.shared.recorder), via, client);
    let mut accepted = Accepted {
        thread,
        role,
        client,
        drain,
        slot,
        recording,
    };
    let origin = match origin::find(role, bound, &stream, &accepted.thread.shared.origin) {
        Ok(origin) => origin,
        Err(error) => return accepted.recording.end(Outcome::NoOrigin, Some(error.to_string())),
    };
    let origin = accepted.admitted(origin).await;
    tracing::trace!(client = %client.0, via = via.label(), original_dst = ?origin.original(), "accepted");
    let serving = match origin {
        Origin::Explicit { .. } => {
            accepted.recording.record.class = Some(Class::Http1.name());
            let window = Window::new(Rc::clone(&accepted.thread.buffers));
            let session = Session::clear(stream, window.into());
            Some(accepted.terminate(origin, session))
        }
        // Boxed, and gone before HTTP is served: an idle client is as large as what serves it.
        Origin::Intercepted(original) => Box::pin(intercepted::run(&mut accepted, original, stream)).await,
    };
    if let Some(serving) = serving {
        accepted.served(serving).await;
    }
}

/// HTTP that is being served on a connection.
pub(super) struct Serving {
    /// Who asked for which name when it made the TLS session; none without TLS.
    asking: Option<TlsClient>,
    http: http::Serve,
}

impl<H: Handshake> Accepted<H> {
    /// Whoever may not use an explicit port is a stranger from now on.
    async fn admitted(&self, origin: Origin) -> Origin {
        let (Some(door), Origin::Explicit { product, local, .. }) = (&self.thread.shared.door, origin) else {
            return origin;
        };
        let judged = door.admits(self.client.0, local).await;
        if let Err(why) = &judged {
            tracing::warn!(client = %self.client.0, port = local.port(), "not allowed: {why}");
        }
        Origin::Explicit {
            product,
            local,
            stranger: judged.is_err(),
        }
    }

    /// Begins to serve HTTP on it.
    pub(super) fn terminate<IO: ClientIo>(&mut self, origin: Origin, session: Session<IO>) -> Serving {
        self.recording.record.decision = "terminate";
        Serving {
            asking: session.asking().cloned(),
            http: http::serve(
                Rc::clone(&self.thread),
                self.role,
                self.client,
                self.slot.agent(),
                origin,
                session,
                self.drain.clone(),
            ),
        }
    }

    /// Serves it to its end.
    async fn served(&mut self, Serving { asking, http }: Serving) {
        let ended = http.await;
        let Self {
            thread,
            drain,
            recording,
            ..
        } = self;
        recording.record.requests = ended.requests;
        if ended.self_test {
            recording.record.decision = "self-test";
        }
        if ended.violation.is_some() && ended.requests == 0 {
            recording.record.decision = "refuse";
        }
        if let Some(asking) = asking.filter(|_| ended.requests == 0 && ended.violation.is_none()) {
            let prompt = thread.shared.config.limits.header_timeout;
            let left = matches!(ended.outcome, Outcome::Ok | Outcome::ClientAborted);
            let said = match ended.distrust {
                Some(alert) => Some(Said::Alert(alert.to_owned())),
                // Who stayed for long enough to ask for something was idle, and not shocked; when we drain it is our doing.
                None if left && recording.started.elapsed() < prompt && !*drain.borrow() => {
                    Some(Said::Nothing)
                }
                None => None,
            };
            if let Some(said) = said {
                thread.shared.recorder.client_distrusts(&asking, &said);
            }
        }
        let outcome = match ended.distrust {
            Some(_) => Outcome::ClientDistrust,
            None => ended.outcome,
        };
        recording.end(
            outcome,
            ended.violation.map(|violation| violation.reason().to_owned()),
        );
    }
}

/// No slot is free: an explicit client gets a 503, an intercepted one (whose protocol is unknown) a closed connection.
fn overloaded<H>(
    thread: &Thread<H>,
    role: Role,
    stream: TcpStream,
    client: ClientAddr,
    full: Full,
    rejects: &mut JoinSet<()>,
) {
    let mut recording = Recording::new(Arc::clone(&thread.shared.recorder), role.via(), client);
    recording.record.decision = "refuse";
    recording.end(Outcome::Overloaded, Some(full.reason().to_owned()));
    if matches!(role, Role::Explicit(_)) && rejects.len() < MAX_REJECTS {
        rejects.spawn_local(async move {
            reject(stream, &answer::raw(Outcome::Overloaded, full.reason())).await;
        });
    }
}

/// Writes an answer, then reads what the client still sends, for a moment: closing at once could destroy the answer.
pub(super) async fn reject(mut stream: TcpStream, answer: &[u8]) {
    let write = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        let mut sink = [0_u8; 4096];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(REJECT_TIMEOUT, write).await {
        tracing::debug!(%error, "a refused client did not take its answer");
    }
}

/// The record of a connection that is not over; told exactly once, also when the task is dropped.
pub(super) struct Recording {
    pub(super) record: ConnectionRecord,
    started: Instant,
    recorder: Arc<dyn Recorder>,
    told: bool,
}

impl Recording {
    fn new(recorder: Arc<dyn Recorder>, via: Via, client: ClientAddr) -> Self {
        let record = ConnectionRecord {
            via,
            client: client.0,
            original_dst: None,
            class: None,
            decision: "refuse",
            process: None,
            tls: None,
            name: None,
            outcome: Outcome::ClientAborted,
            requests: 0,
            bytes_up: 0,
            bytes_down: 0,
            duration: Duration::ZERO,
            error: None,
        };
        Self {
            record,
            started: Instant::now(),
            recorder,
            told: false,
        }
    }

    pub(super) fn end(&mut self, outcome: Outcome, error: Option<String>) {
        self.record.outcome = outcome;
        self.record.error = error;
        self.tell();
    }

    fn tell(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.record.duration = self.started.elapsed();
            self.recorder.connection(&self.record);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `listen` relies on when it sets the option once, on the listener.
    #[tokio::test]
    async fn accepted_sockets_inherit_nodelay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        assert!(accepted.unwrap().0.nodelay().unwrap());
        assert!(!client.unwrap().nodelay().unwrap());
    }
}
