//! Two fakes behind a relay: the intake, which speaks HTTP, and the original destination, which keeps every byte it gets. Both
//! count who connected, so that "nobody was asked" can be shown.

use std::collections::HashSet;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::relay::HttpsHandling;
use agent_fips_proxy::relay::outcome::{ConnectionRecord, Outcome, RequestRecord};

use crate::harness::{Message, Proxy, Setup, eventually, read_message};

/// What the original destination answers: a fatal alert, handshake_failure. Whatever speaks TLS takes it for an end.
pub const REPLY: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// A line of the page, and how what is asked for is counted: held against the page by `page`.
#[derive(Clone, Debug)]
pub struct Case {
    pub line: &'static str,
    /// As the page writes it in its example.
    pub asked: String,
    pub decision: &'static str,
    pub outcome: Outcome,
    pub request: Option<Outcome>,
}

/// What becomes of a request head.
#[derive(Clone, Copy, Debug)]
pub enum Want {
    /// The intake gets it under this name.
    Served(&'static str, Product),
    /// The original destination gets it, byte for byte.
    Tunnelled,
    /// 400, before it counts as a request; the reason.
    Refused(&'static str),
    /// An answer of ours to a request; the reason.
    Answered(u16, Outcome, &'static str),
}

impl Want {
    /// How it is counted.
    pub fn case(self, line: &'static str, asked: &str) -> Case {
        let (decision, outcome, request) = match self {
            Self::Served(..) => ("terminate", Outcome::Ok, Some(Outcome::Ok)),
            Self::Tunnelled => ("tunnel", Outcome::Ok, None),
            Self::Refused(_) => ("refuse", Outcome::BadRequest, None),
            Self::Answered(_, outcome, _) => ("terminate", Outcome::Ok, Some(outcome)),
        };
        Case {
            line,
            asked: asked.to_owned(),
            decision,
            outcome,
            request,
        }
    }
}

/// A server that knows everybody who ever connected.
pub struct Fake {
    pub address: SocketAddr,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    probes: Mutex<HashSet<SocketAddr>>,
}

impl Fake {
    pub fn on(address: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::of(TcpListener::bind(address).unwrap(), serve)
    }

    pub fn of(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let peers = Arc::new(Mutex::new(Vec::new()));
        let (all, serve) = (Arc::clone(&peers), Arc::new(serve));
        // Ends with the test process: `accept` cannot be woken without a connection.
        thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                // A listener for both families gives IPv4 as mapped.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                all.lock().unwrap().push(peer);
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
        Self {
            address,
            peers,
            probes: Mutex::default(),
        }
    }

    /// How many connected, but for ourselves. A connection of ours comes last, and is waited for: who came before it is counted.
    pub fn taken(&self) -> usize {
        let probe = TcpStream::connect(self.address).unwrap();
        let address = probe.local_addr().unwrap();
        let mut probes = self.probes.lock().unwrap();
        probes.insert(address);
        eventually(|| self.peers.lock().unwrap().contains(&address).then_some(()));
        let peers = self.peers.lock().unwrap();
        peers.iter().filter(|peer| !probes.contains(peer)).count()
    }
}

/// Keeps what it gets, and answers [`REPLY`] to the first of it.
pub struct Original {
    pub fake: Fake,
    got: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Original {
    pub fn start() -> Self {
        let got = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&got);
        let fake = Fake::on((Ipv4Addr::LOCALHOST, 0).into(), move |mut stream| {
            let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if bytes.is_empty() {
                    stream.write_all(&REPLY).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                }
                bytes.extend_from_slice(&buffer[..read]);
            }
            if !bytes.is_empty() {
                all.lock().unwrap().push(bytes);
            }
        });
        Self { fake, got }
    }

    /// What came on the connections so far, once there are `count`.
    pub fn got(&self, count: usize) -> Vec<Vec<u8>> {
        eventually(|| {
            let got = self.got.lock().unwrap();
            (got.len() >= count).then(|| got.clone())
        })
    }
}

/// Answers 200 to every request, and remembers them.
pub struct Intake {
    pub fake: Fake,
    seen: Arc<Mutex<Vec<Message>>>,
}

impl Intake {
    pub fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        let fake = Fake::on((Ipv4Addr::LOCALHOST, 0).into(), move |stream| {
            let mut writer = stream.try_clone().unwrap();
            let mut reader = BufReader::new(stream);
            while let Ok(Some(request)) = read_message(&mut reader, false) {
                all.lock().unwrap().push(request);
                writer
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nintake")
                    .unwrap();
            }
        });
        Self { fake, seen }
    }

    pub fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().clone()
    }
}

pub struct World {
    pub proxy: Proxy,
    pub intake: Intake,
    pub original: Original,
}

/// What a row of a table changed.
#[derive(Debug)]
pub struct Seen {
    pub connection: ConnectionRecord,
    pub requests: Vec<RequestRecord>,
    /// Connections at the intake; and what it was asked.
    pub intake: usize,
    pub asked: Vec<Message>,
    /// What came on each new connection at the original destination.
    pub original: Vec<Vec<u8>>,
}

impl World {
    pub fn new(https: HttpsHandling) -> Self {
        Self::with(https, |_| {})
    }

    pub fn with(https: HttpsHandling, change: impl FnOnce(&mut Setup)) -> Self {
        let (intake, original) = (Intake::start(), Original::start());
        let proxy = Proxy::with(intake.fake.address, |setup| {
            setup.original = original.fake.address;
            setup.https = https;
            change(setup);
        });
        Self {
            proxy,
            intake,
            original,
        }
    }

    /// Runs `row`, which makes one connection and ends it, and tells what came of that.
    pub fn row<T>(&self, row: impl FnOnce(&Proxy) -> T) -> (T, Seen) {
        let records = &self.proxy.records;
        let connections = records.connections.lock().unwrap().len();
        let requests = records.requests.lock().unwrap().len();
        let (at_intake, asked) = (self.intake.fake.taken(), self.intake.seen().len());
        let (at_original, got) = (self.original.fake.taken(), self.original.got(0).len());
        let said = row(&self.proxy);
        let connection = self.proxy.connections(connections + 1)[connections..].to_vec();
        assert_eq!(connection.len(), 1, "{connection:?}");
        let now_at_original = self.original.fake.taken() - at_original;
        let seen = Seen {
            connection: connection[0].clone(),
            requests: records.requests.lock().unwrap()[requests..].to_vec(),
            intake: self.intake.fake.taken() - at_intake,
            asked: self.intake.seen()[asked..].to_vec(),
            original: self.original.got(got + now_at_original)[got..].to_vec(),
        };
        (said, seen)
    }
}

impl Seen {
    /// It is counted as the page says.
    pub fn is_counted(&self, case: &Case) {
        assert_eq!(
            (self.connection.decision, self.connection.outcome),
            (case.decision, case.outcome),
            "{case:?}: {self:#?}"
        );
        let outcomes: Vec<Outcome> = self.requests.iter().map(|request| request.outcome).collect();
        assert_eq!(outcomes, Vec::from_iter(case.request), "{case:?}: {self:#?}");
    }

    /// Neither the intake nor the original destination heard of it.
    pub fn reached_nobody(&self, case: &Case) {
        assert!(
            self.intake == 0 && self.asked.is_empty() && self.original.is_empty(),
            "{case:?}: {self:#?}"
        );
    }

    /// The original destination got exactly these bytes, and the intake nothing.
    pub fn went_untouched(&self, bytes: &[u8], case: &Case) {
        assert_eq!(self.original, [bytes.to_vec()], "{case:?}");
        assert!(self.intake == 0 && self.asked.is_empty(), "{case:?}: {self:#?}");
        assert_eq!(
            (self.connection.bytes_up, self.connection.bytes_down),
            (bytes.len() as u64, REPLY.len() as u64),
            "{case:?}"
        );
    }

    /// The intake got one request, under this name, and the original destination nothing.
    pub fn was_served(&self, name: &str, product: Product, case: &Case) {
        assert_eq!(self.asked.len(), 1, "{case:?}: {self:#?}");
        assert_eq!(self.asked[0].header("host"), Some(name), "{case:?}");
        assert!(self.asked[0].head.starts_with("GET /"), "{case:?}: {self:#?}");
        assert!(
            self.intake <= 1 && self.original.is_empty(),
            "{case:?}: {self:#?}"
        );
        let request = &self.requests[0];
        assert_eq!(
            (request.product, request.upstream_name.as_deref(), request.status),
            (Some(product), Some(name), 200),
            "{case:?}"
        );
    }

    /// One request was answered by us, with this reason, and reached nobody.
    pub fn was_answered(&self, answer: &Message, status: u16, outcome: Outcome, reason: &str, case: &Case) {
        assert_eq!(answer.status(), status, "{case:?}: {answer:?}");
        assert_eq!(
            answer.header("x-agent-fips-proxy-error"),
            Some(outcome.label()),
            "{case:?}"
        );
        let body = String::from_utf8_lossy(&answer.body);
        assert_eq!(body.trim_end(), reason, "{case:?}");
        if let Some(request) = self.requests.first() {
            assert_eq!(
                (request.error.as_deref(), request.status, request.upstream_addr),
                (Some(reason), status, None),
                "{case:?}"
            );
        }
        self.reached_nobody(case);
    }
}
