//! A proxy on its own thread, an upstream that checks what it gets, and a client that sees raw bytes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use agent_fips_proxy::catalog::{Catalog, Product};
use agent_fips_proxy::config::{
    Config, Explicit, Limits, ListenAddress, Log, LogFormat, Status, Upstream as UpstreamConfig, Worker,
};
use agent_fips_proxy::relay::network::{MakingSocket, NetworkId, Sockets, Taken};
use agent_fips_proxy::relay::outcome::{
    ClientTls, ConnectionRecord, Process, RequestRecord, Said, TlsClient, Via,
};
use agent_fips_proxy::relay::upstream::Socket;
use agent_fips_proxy::relay::upstream::connect::{Handshake, HandshakeFailure};
use agent_fips_proxy::relay::upstream::outbound::Outbound;
use agent_fips_proxy::relay::upstream::resolve::{Resolver, Sources};
use agent_fips_proxy::relay::{
    Change, Door, HttpsHandling, Listener, Recorder, Role, Shared, Slots, UpstreamPlace, serve,
};
use agent_fips_proxy::secret::Secrets;
use agent_fips_proxy::tls::{self, Negotiated};
use socket2::{Domain, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

/// What HTTP runs on.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// A `Handshake` that does nothing unless it was given a real client, says which protocol ALPN chose, and remembers the
/// names.
#[derive(Clone, Default)]
pub struct Plain {
    pub real: Option<tls::Client>,
    pub http2: bool,
    pub fail: bool,
    pub names: Arc<Mutex<Vec<String>>>,
    /// What servers are judged by, as a number.
    pub generation: Arc<AtomicU64>,
}

impl Handshake for Plain {
    type Stream = Box<dyn Io>;

    async fn connect(
        &self,
        name: &str,
        socket: Socket,
    ) -> Result<(Box<dyn Io>, Negotiated), HandshakeFailure> {
        self.names.lock().unwrap().push(name.to_owned());
        if let Some(client) = &self.real {
            let (stream, negotiated) = Handshake::connect(client, name, socket).await?;
            return Ok((Box::new(stream), negotiated));
        }
        if self.fail {
            return Err(HandshakeFailure {
                reason: "certificate_expired",
                message: "expired".to_owned(),
            });
        }
        let negotiated = Negotiated {
            version: "TLSv1.3".to_owned(),
            suite: "TLS13_AES_256_GCM_SHA384".to_owned(),
            group: None,
            http2: self.http2,
            peer: name.to_owned(),
            ..Negotiated::default()
        };
        Ok((Box::new(socket), negotiated))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub struct Records {
    pub requests: Mutex<Vec<RequestRecord>>,
    pub connections: Mutex<Vec<ConnectionRecord>>,
    pub opened: AtomicUsize,
    pub sessions: Mutex<Vec<Negotiated>>,
    /// Addresses that took no connection: which, whose, why, and for how long they are asked last.
    pub failed: Mutex<Vec<(SocketAddr, Product, String, Duration)>>,
    pub client_sessions: Mutex<Vec<(TlsClient, ClientTls)>>,
    /// Of handshakes with clients.
    pub failures: Mutex<Vec<&'static str>>,
    pub distrusting: Mutex<Vec<(TlsClient, Said)>>,
    pub trusting: Mutex<Vec<TlsClient>>,
}

impl Recorder for Records {
    fn request(&self, record: &RequestRecord) {
        self.requests.lock().unwrap().push(record.clone());
    }

    fn connection(&self, record: &ConnectionRecord) {
        self.connections.lock().unwrap().push(record.clone());
    }

    fn connection_opened(&self, _via: Via) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn upstream_connected(&self, _place: &UpstreamPlace<'_>, tls: &Negotiated) {
        self.sessions.lock().unwrap().push(tls.clone());
    }

    fn upstream_failed(&self, place: &UpstreamPlace<'_>, why: &dyn std::fmt::Display, pause: Duration) {
        let failed = (place.address, place.product, why.to_string(), pause);
        self.failed.lock().unwrap().push(failed);
    }

    fn client_tls(&self, client: &TlsClient, tls: &ClientTls) {
        self.client_sessions
            .lock()
            .unwrap()
            .push((client.clone(), tls.clone()));
    }

    fn client_tls_failed(&self, reason: &'static str) {
        self.failures.lock().unwrap().push(reason);
    }

    fn client_trusts(&self, client: &TlsClient) {
        self.trusting.lock().unwrap().push(client.clone());
    }

    fn client_distrusts(&self, client: &TlsClient, said: &Said) {
        self.distrusting
            .lock()
            .unwrap()
            .push((client.clone(), said.clone()));
    }
}

/// Hands out sockets, and remembers who asked for which. There is one namespace here: what a network is gets its number
/// from the test alone.
#[derive(Default)]
pub struct Made {
    pub asked: Mutex<Vec<(NetworkId, bool)>>,
    /// Networks that have no socket to give.
    pub gone: Mutex<Vec<NetworkId>>,
}

impl Made {
    pub fn asked(&self) -> Vec<(NetworkId, bool)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Sockets for Made {
    fn socket(&self, network: NetworkId, ipv6: bool) -> MakingSocket<'_> {
        self.asked.lock().unwrap().push((network, ipv6));
        let gone = self.gone.lock().unwrap().contains(&network);
        Box::pin(async move {
            if gone {
                return Err(agent_fips_proxy::relay::network::gone(network));
            }
            let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
            Ok(socket2::Socket::new(domain, Type::STREAM, None)?.into())
        })
    }
}

/// What a test may change before the proxy starts.
pub struct Setup {
    pub config: Config,
    pub tls: Plain,
    pub hosts: String,
    /// What intercepted connections were meant for.
    pub original: SocketAddr,
    pub product: Product,
    /// Where the explicit listener is.
    pub explicit: SocketAddr,
    /// What the intercept listener is.
    pub role: Role,
    pub sockets: Arc<Made>,
    pub https: HttpsHandling,
    /// Where intercepted connections come from.
    pub process: Option<Process>,
    pub door: Option<Arc<dyn Door>>,
}

pub struct Proxy {
    pub explicit: SocketAddr,
    pub intercept: SocketAddr,
    pub records: Arc<Records>,
    pub tls: Plain,
    pub sockets: Arc<Made>,
    changes: mpsc::UnboundedSender<Change>,
    drain: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Proxy {
    /// A proxy whose intake names all lead to `upstream`.
    pub fn start(upstream: SocketAddr) -> Self {
        Self::with(upstream, |_| {})
    }

    pub fn with(upstream: SocketAddr, change: impl FnOnce(&mut Setup)) -> Self {
        let explicit = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut setup = Setup {
            config: config(upstream.port()),
            tls: Plain::default(),
            hosts: hosts(&[upstream.ip()]),
            original: upstream,
            product: Product::Metrics,
            explicit: explicit.local_addr().unwrap(),
            role: Role::Intercept {
                network: NetworkId::HOST,
                taken: Taken::Cgroup,
            },
            sockets: Arc::default(),
            https: HttpsHandling::Passthrough,
            process: None,
            door: None,
        };
        change(&mut setup);
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources {
            hosts: dir.path().join("hosts"),
            resolv_conf: dir.path().join("resolv.conf"),
        };
        std::fs::write(&sources.hosts, &setup.hosts).unwrap();
        let intercept = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = (explicit.local_addr().unwrap(), intercept.local_addr().unwrap());
        let records = Arc::new(Records::default());
        let recorder: Arc<dyn Recorder> = Arc::<Records>::clone(&records);
        let (drain, drained) = watch::channel(false);
        let tls = setup.tls.clone();
        let sockets = Arc::clone(&setup.sockets);
        let (changes, changing) = mpsc::unbounded_channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let shared = Arc::new(Shared {
                catalog: Arc::new(Catalog::new(&setup.config.site)),
                slots: Arc::new(Slots::new(&setup.config.limits)),
                outbound: Outbound::new(&setup.config.upstream, &Secrets::default())
                    .unwrap()
                    .map(Arc::new),
                config: Arc::new(setup.config),
                tls: setup.tls,
                resolver: Arc::new(Resolver::new(sources, runtime.handle().clone())),
                recorder,
                door: setup.door,
                origin: Arc::new(move |_, _| Ok(setup.original)),
                peer: Arc::new(move |_| setup.process.clone()),
                sockets: setup.sockets,
                https: setup.https,
            });
            let listeners = vec![
                Listener {
                    role: Role::Explicit(setup.product),
                    socket: explicit,
                },
                Listener {
                    role: setup.role,
                    socket: intercept,
                },
            ];
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, serve(listeners, changing, shared, drained));
        });
        Self {
            explicit: addresses.0,
            intercept: addresses.1,
            records,
            tls,
            sockets,
            changes,
            drain,
            thread: Some(thread),
            _dir: dir,
        }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.explicit)
    }

    pub fn change(&self, change: Change) {
        self.changes.send(change).unwrap();
    }

    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Waits until `serve` returned; gives how long that took.
    pub fn join(&mut self) -> Duration {
        let since = Instant::now();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        since.elapsed()
    }

    /// The requests recorded so far, once there are `count`.
    pub fn requests(&self, count: usize) -> Vec<RequestRecord> {
        eventually(|| {
            let requests = self.records.requests.lock().unwrap();
            (requests.len() >= count).then(|| requests.clone())
        })
    }

    pub fn connections(&self, count: usize) -> Vec<ConnectionRecord> {
        eventually(|| {
            let connections = self.records.connections.lock().unwrap();
            (connections.len() >= count).then(|| connections.clone())
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.drain();
        if !thread::panicking() {
            self.join();
        }
    }
}

/// Polls for something that another thread does.
pub fn eventually<T>(mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen within 10 s");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn hosts(ips: &[IpAddr]) -> String {
    let names = Catalog::new(&"ddog-gov.com".parse().unwrap()).names().join(" ");
    ips.iter().map(|ip| format!("{ip} {names}\n")).collect()
}

pub fn config(upstream_port: u16) -> Config {
    Config {
        site: "ddog-gov.com".parse().unwrap(),
        log: Log {
            level: "info".to_owned(),
            format: LogFormat::Text,
            access: false,
        },
        explicit: Explicit {
            enabled: true,
            local_address: ListenAddress::Localhost,
            port_range_start: 9803,
            allowed_users: Vec::new(),
            allowed_cgroups: Vec::new(),
        },
        intercept: Config::default().intercept,
        ca: Config::default().ca,
        upstream: UpstreamConfig {
            port: upstream_port,
            allow_private: vec!["127.0.0.0/8".parse().unwrap()],
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            pool_idle_timeout: Duration::from_secs(30),
            ..Config::default().upstream
        },
        limits: Limits {
            max_connections: 512,
            max_connections_per_agent: 512,
            min_body_rate: 0,
            idle_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(5),
            max_header_bytes: 16 * 1024,
            drain_timeout: Duration::from_secs(5),
        },
        status: Status {
            address: ListenAddress::Localhost,
            port: 0,
            socket: "/nonexistent".into(),
        },
        worker: Worker {
            user: "nobody".to_owned(),
            threads: 1,
            sandbox: true,
        },
    }
}

/// A message as it was on the wire, its body decoded.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub head: String,
    pub body: Vec<u8>,
    /// Which connection it came on.
    pub connection: usize,
}

impl Message {
    pub fn status(&self) -> u16 {
        self.head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim()))
    }
}

/// Reads one message; `None` at a clean end. `head_only`: no body follows (HEAD, 204, 304).
pub fn read_message(reader: &mut impl BufRead, head_only: bool) -> io::Result<Option<Message>> {
    let mut message = Message::default();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return if message.head.is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        if line == b"\r\n" {
            break;
        }
        assert!(line.ends_with(b"\r\n"), "{line:?}");
        message.head.push_str(&String::from_utf8_lossy(&line));
    }
    let chunked = message.header("transfer-encoding") == Some("chunked");
    let length = message
        .header("content-length")
        .map(|length| length.parse::<usize>().unwrap());
    assert!(!(chunked && length.is_some()), "two framings: {}", message.head);
    let response = message.head.starts_with("HTTP/");
    if head_only || (response && matches!(message.status(), 100..=199 | 204 | 304)) {
        return Ok(Some(message));
    }
    if chunked {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim_end().split(';').next().unwrap(), 16)
                .map_err(|_| io::Error::other("bad chunk"))?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            assert!(chunk.ends_with(b"\r\n"));
            message.body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(Some(message));
            }
        }
    }
    match length {
        Some(length) => {
            // It may promise more than there is memory.
            reader.take(length as u64).read_to_end(&mut message.body)?;
            if message.body.len() < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        None if response => {
            reader.read_to_end(&mut message.body)?;
        }
        None => {}
    }
    Ok(Some(message))
}

/// A receive buffer that is small against what is sent, in bytes.
pub const NARROW: usize = 64 * 1024;
/// What [`read_slowly`] reads at a time, and how often.
const SIP: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_millis(20);

/// Reads for so long, a little at a time. Gives what was read.
pub fn read_slowly(reader: &mut impl Read, time: Duration) -> io::Result<Vec<u8>> {
    let since = Instant::now();
    let (mut all, mut sip) = (Vec::new(), vec![0; SIP]);
    while since.elapsed() < time {
        let read = reader.read(&mut sip)?;
        if read == 0 {
            break;
        }
        all.extend_from_slice(&sip[..read]);
        thread::sleep(PAUSE);
    }
    Ok(all)
}

/// A client that writes what it is told and reads what comes.
pub struct Client {
    pub stream: TcpStream,
    pub reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// One whose kernel takes next to nothing that it does not read itself.
    pub fn narrow(address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(NARROW).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    pub fn get(&mut self, path: &str) -> Message {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .response()
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> Message {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send([head.as_bytes(), body].concat()).response()
    }

    pub fn response(&mut self) -> Message {
        read_message(&mut self.reader, false)
            .unwrap()
            .expect("a response before the end")
    }

    pub fn head_response(&mut self) -> Message {
        read_message(&mut self.reader, true)
            .unwrap()
            .expect("a response before the end")
    }

    /// Everything until the end; a reset counts as the end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => rest,
            Err(error) => panic!("neither data nor end: {error}"),
        }
    }
}

/// What a scripted upstream does with a request; `Close` ends the connection.
pub enum Then {
    Keep,
    Close,
}

/// A strict HTTP/1.1 server; remembers all requests.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Message>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Answers 200 with the body's length as body.
    pub fn start() -> Self {
        Self::with(|request, stream| {
            let body = request.body.len().to_string();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            Then::Keep
        })
    }

    /// `answer` is called per complete request.
    pub fn with(answer: impl Fn(&Message, &mut TcpStream) -> Then + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        let mut upstream = Self::raw(move |stream, connection| {
            let mut writer = stream.try_clone().unwrap();
            let mut reader = BufReader::new(stream);
            while let Ok(Some(mut request)) = read_message(&mut reader, false) {
                request.connection = connection;
                all.lock().unwrap().push(request.clone());
                if let Then::Close = answer(&request, &mut writer) {
                    return;
                }
            }
        });
        upstream.seen = seen;
        upstream
    }

    /// `serve` is called per connection, with its number from 0.
    pub fn raw(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        Self::on(Ipv4Addr::LOCALHOST, 0, serve)
    }

    pub fn on(ip: Ipv4Addr, port: u16, serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, port)).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let serve = Arc::new(serve);
        // Ends with the test process: `accept` cannot be woken without a connection.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream, number));
            }
        });
        Self {
            address,
            seen: Arc::default(),
            connections,
        }
    }

    pub fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
