//! The same over real TLS: session tickets, close_notify and cut connections must not upset pool and retries.

#![expect(
    clippy::disallowed_methods,
    reason = "the server of a test is not one of ours"
)]

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_fips_proxy::relay::outcome::Outcome;
use agent_fips_proxy::tls::Client;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;

use crate::harness::{Message, Proxy, Upstream, config, read_message};

const NAME: &str = "metrics.agent.ddog-gov.com";

type Session = StreamOwned<ServerConnection, TcpStream>;

/// A TLS upstream; `serve` is called per request and says whether to go on.
struct Secure {
    upstream: Upstream,
    seen: Arc<Mutex<Vec<Message>>>,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Secure {
    fn start(serve: impl Fn(&Message, &mut Session) -> bool + Send + Sync + 'static) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![NAME.to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, authority.pem()).unwrap();

        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key);
        let server = Arc::new(server.unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        let upstream = Upstream::raw(move |stream, connection| {
            let session = ServerConnection::new(Arc::clone(&server)).unwrap();
            let mut reader = BufReader::new(StreamOwned::new(session, stream));
            while let Ok(Some(mut request)) = read_message(&mut reader, false) {
                request.connection = connection;
                all.lock().unwrap().push(request.clone());
                if !serve(&request, reader.get_mut()) {
                    return;
                }
            }
        });
        let mut settings = config(upstream.address.port()).upstream;
        settings.ca_file = Some(ca_file);
        Self {
            upstream,
            seen,
            client: Client::new(&settings).unwrap(),
            _dir: dir,
        }
    }

    fn proxy(&self) -> Proxy {
        Proxy::with(self.upstream.address, |setup| {
            setup.tls.real = Some(self.client.clone());
        })
    }
}

fn answer(session: &mut Session, body: &[u8]) {
    write!(
        session,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    session.write_all(body).unwrap();
}

fn say_goodbye(session: &mut Session) {
    session.conn.send_close_notify();
    session.flush().unwrap();
}

#[test]
fn one_session_serves_many_requests_and_is_evidence() {
    let secure = Secure::start(|request, session| {
        answer(session, &request.body);
        true
    });
    let proxy = secure.proxy();
    let body: Vec<u8> = (0..3_500_000_u32)
        .map(|n| (n % 251).try_into().unwrap())
        .collect();
    for _ in 0..3 {
        assert!(proxy.client().post("/", &body).body == body);
    }
    for n in 0..20 {
        assert_eq!(proxy.client().post("/", &[b'x'; 100][..n]).body.len(), n);
    }
    assert_eq!(secure.upstream.connections(), 1);
    let records = proxy.requests(23);
    let tls = records[0].tls.as_ref().unwrap();
    assert_eq!((tls.version.as_str(), tls.peer.as_str()), ("TLSv1.3", NAME));
}

#[test]
fn a_session_that_ends_after_each_answer_is_never_the_clients_problem() {
    for goodbye in [true, false] {
        let secure = Secure::start(move |_, session| {
            answer(session, b"ok");
            if goodbye {
                say_goodbye(session);
            }
            false
        });
        let proxy = secure.proxy();
        let mut client = proxy.client();
        for n in 0..30 {
            assert_eq!(
                client.post("/", b"payload").status(),
                200,
                "request {n}, close_notify {goodbye}"
            );
            if n % 3 == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        assert_eq!(secure.seen.lock().unwrap().len(), 30, "each exactly once");
    }
}

#[test]
fn an_answer_and_the_end_of_its_session_may_come_in_one_piece() {
    let secure = Secure::start(|_, session| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        session.conn.writer().write_all(head).unwrap();
        session.conn.send_close_notify();
        session.flush().unwrap();
        // The socket stays: only the session says that it is over.
        true
    });
    let proxy = secure.proxy();
    let mut client = proxy.client();
    for n in 0..20 {
        let answer = client.post("/", b"payload");
        assert_eq!(
            (answer.status(), answer.body.as_slice()),
            (200, b"ok".as_slice()),
            "request {n}"
        );
    }
    assert_eq!(secure.seen.lock().unwrap().len(), 20, "each exactly once");
    assert_eq!(secure.upstream.connections(), 20);
}

#[test]
fn an_answer_until_the_end_is_whole_with_a_close_notify_only() {
    for goodbye in [true, false] {
        let secure = Secure::start(move |_, session| {
            session
                .write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
                .unwrap();
            if goodbye {
                say_goodbye(session);
            }
            false
        });
        let proxy = secure.proxy();
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = read_message(&mut client.reader, false);
        if goodbye {
            assert_eq!(answer.unwrap().unwrap().body, b"until the end");
        } else {
            assert!(answer.is_err(), "it seems whole: {answer:?}");
        }
        let outcome = if goodbye {
            Outcome::Ok
        } else {
            Outcome::UpstreamProtocol
        };
        assert_eq!(proxy.requests(1)[0].outcome, outcome);
    }
}

#[test]
fn a_session_that_ends_instead_of_an_answer_is_502_and_not_repeated() {
    for goodbye in [true, false] {
        let count = AtomicUsize::new(0);
        let secure = Secure::start(move |_, session| {
            if count.fetch_add(1, Ordering::SeqCst) == 1 {
                // Long enough for the kernel to confirm what was read.
                std::thread::sleep(Duration::from_millis(100));
                if goodbye {
                    say_goodbye(session);
                }
                return false;
            }
            answer(session, b"ok");
            true
        });
        let proxy = secure.proxy();
        let mut client = proxy.client();
        assert_eq!(client.post("/1", b"a").status(), 200);
        assert_eq!(client.post("/2", b"b").status(), 502);
        assert_eq!(client.post("/3", b"c").status(), 200);
        let seen = secure.seen.lock().unwrap();
        let paths: Vec<&str> = seen
            .iter()
            .map(|request| request.head.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!(paths, ["/1", "/2", "/3"], "close_notify {goodbye}");
    }
}

#[test]
fn a_foreign_authority_gets_no_byte_of_the_request() {
    let secure = Secure::start(|_, _| true);
    let other = Secure::start(|_, _| true);
    let proxy = Proxy::with(secure.upstream.address, |setup| {
        setup.tls.real = Some(other.client.clone());
    });
    let response = proxy.client().post("/", b"secret");
    assert_eq!(
        (response.status(), response.header("x-agent-fips-proxy-error")),
        (502, Some("upstream_tls"))
    );
    assert!(secure.seen.lock().unwrap().is_empty());
    let record = &proxy.requests(1)[0];
    assert_eq!(record.outcome, Outcome::UpstreamTls);
    assert!(
        record.error.as_deref().unwrap().contains("bad_certificate"),
        "{:?}",
        record.error
    );
}
