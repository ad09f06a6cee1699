//! An Agent's own TLS session, passed through and held to the policy: unchanged bytes, what is cut and with what alert, and
//! servers and clients that do something else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent_fips_proxy::config::BelowPolicy;
use agent_fips_proxy::relay::outcome::{ClientTls, ConnectionRecord, Outcome, Process};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, cipher_suite, default_provider, kx_group};
use rustls::version::{TLS12, TLS13};

use crate::harness::{Client, Proxy, Setup, eventually};
use crate::hello::hello;
use crate::peers::{NAME, Server, Versions, Wire, hello_of, records, talk};
use crate::world::{Case, Fake};

/// insufficient_security (RFC 8446 section 6.2), fatal, in the clear.
const CUT: [u8; 7] = [21, 3, 3, 0, 2, 2, 71];
const BOTH: Versions = &[&TLS13, &TLS12];
const ONLY12: Versions = &[&TLS12];

/// What makes a provider another one.
type Change = fn(&mut CryptoProvider);

/// What client and server insist on, and what comes of it.
struct Session {
    client: Change,
    server: Change,
    versions: Versions,
    version: &'static str,
    suite: &'static str,
    group: &'static str,
    /// The client has to send another hello.
    retried: bool,
}

const SAME: Change = |_| {};
const P256: Change = |p| p.kx_groups = vec![kx_group::SECP256R1];
const X25519: Change = |p| p.kx_groups = vec![kx_group::X25519];
/// Its first share is not what the server takes.
const X25519_FIRST: Change = |p| p.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
const P256_FIRST: Change = |p| p.kx_groups = vec![kx_group::SECP256R1, kx_group::X25519];
const CHACHA: Change = |p| {
    p.kx_groups = vec![kx_group::SECP256R1];
    p.cipher_suites = vec![
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
};

const AES: &str = "TLS_AES_256_GCM_SHA384";
const AES12: &str = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";

fn session(
    client: Change,
    server: Change,
    versions: Versions,
    (version, suite, group): (&'static str, &'static str, &'static str),
) -> Session {
    Session {
        client,
        server,
        versions,
        version,
        suite,
        group,
        retried: false,
    }
}

fn approved() -> Vec<Session> {
    vec![
        session(SAME, P256, BOTH, ("TLSv1.3", AES, "secp256r1")),
        session(
            |p| p.kx_groups = vec![kx_group::X25519MLKEM768],
            |p| p.kx_groups = vec![kx_group::X25519MLKEM768],
            BOTH,
            ("TLSv1.3", AES, "X25519MLKEM768"),
        ),
        session(SAME, P256, ONLY12, ("TLSv1.2", AES12, "secp256r1")),
        Session {
            retried: true,
            ..session(X25519_FIRST, P256, BOTH, ("TLSv1.3", AES, "secp256r1"))
        },
    ]
}

/// With the label of what is wrong.
fn below() -> Vec<(Session, &'static str)> {
    vec![
        (
            session(
                SAME,
                CHACHA,
                BOTH,
                ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256", "secp256r1"),
            ),
            "suite",
        ),
        (
            session(
                SAME,
                CHACHA,
                ONLY12,
                (
                    "TLSv1.2",
                    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
                    "secp256r1",
                ),
            ),
            "suite",
        ),
        (
            session(X25519, P256_FIRST, BOTH, ("TLSv1.3", AES, "x25519")),
            "group",
        ),
        (
            session(P256_FIRST, X25519, ONLY12, ("TLSv1.2", AES12, "x25519")),
            "group",
        ),
        (
            Session {
                retried: true,
                ..session(P256_FIRST, X25519, BOTH, ("TLSv1.3", AES, "x25519"))
            },
            "group",
        ),
    ]
}

pub fn cases() -> Vec<Case> {
    [
        "X25519 alone",
        "ChaCha20 alone",
        "early data",
        "an answer that is no TLS",
    ]
    .iter()
    .map(|asked| Case {
        line: "tls-below",
        asked: (*asked).to_owned(),
        decision: "passthrough",
        outcome: Outcome::BelowPolicy,
        request: None,
    })
    .collect()
}

fn provider(change: Change) -> CryptoProvider {
    let mut provider = default_provider();
    provider.cipher_suites = ALL_CIPHER_SUITES.to_vec();
    change(&mut provider);
    provider
}

fn asker() -> Process {
    Process {
        pid: 4711,
        name: Some("agent".to_owned()),
    }
}

/// A proxy that passes through to `original`.
fn proxy(original: SocketAddr, policy: BelowPolicy, change: impl FnOnce(&mut Setup)) -> Proxy {
    Proxy::with(original, |setup| {
        setup.config.intercept.https_below_policy = policy;
        setup.process = Some(asker());
        change(setup);
    })
}

fn start(row: &Session, piece: usize, policy: BelowPolicy) -> (Server, Proxy, Arc<rustls::ClientConfig>) {
    let server = Server::start(provider(row.server), row.versions, piece);
    let proxy = proxy(server.fake.address, policy, |_| {});
    let config = Arc::new(server.client(provider(row.client), row.versions));
    (server, proxy, config)
}

/// What the server's side saw of the only connection.
fn at_server(server: &Server) -> Wire {
    eventually(|| server.wires.lock().unwrap().first().cloned())
}

/// The connection's record, and that its session was told once, with the same words, and by whom.
fn told(proxy: &Proxy, row: &Session, label: Option<&str>) -> ConnectionRecord {
    let record = proxy.connections(1).remove(0);
    let expected = ClientTls {
        decision: "passthrough".to_owned(),
        version: row.version.to_owned(),
        suite: row.suite.to_owned(),
        group: Some(row.group.to_owned()),
        below: label.map(str::to_owned),
    };
    assert_eq!(record.tls.as_ref(), Some(&expected));
    let sessions = proxy.records.client_sessions.lock().unwrap();
    let [(client, tls)] = &sessions[..] else {
        panic!("{sessions:?}");
    };
    assert_eq!(tls, &expected);
    assert_eq!(
        (client.name.as_str(), client.process.as_ref()),
        (NAME, Some(&asker()))
    );
    assert_eq!(record.process, Some(asker()));
    assert_eq!((record.decision, record.class), ("passthrough", Some("tls")));
    assert_eq!(record.name.as_deref(), Some(NAME));
    record
}

#[test]
fn an_approved_session_passes_byte_for_byte() {
    for row in approved() {
        for piece in [usize::MAX, 100, 1] {
            let (server, proxy, config) = start(&row, piece, BelowPolicy::Refuse);
            let (said, client) = talk(&proxy, &config, piece);
            said.unwrap();
            let server = at_server(&server);
            assert_eq!(client.written, server.read, "up");
            assert_eq!(client.read, server.written, "down");
            let record = told(&proxy, &row, None);
            assert_eq!((record.outcome, record.error.as_deref()), (Outcome::Ok, None));
            assert_eq!(
                (record.bytes_up, record.bytes_down),
                (client.written.len() as u64, client.read.len() as u64)
            );
            let hellos = records(&client.written)
                .iter()
                .filter(|kind| **kind == 22)
                .count();
            assert_eq!(
                hellos > 1 && row.version == "TLSv1.3",
                row.retried,
                "{}",
                row.group
            );
        }
    }
}

#[test]
fn a_session_below_the_policy_is_cut_before_the_client_has_keys() {
    for (row, label) in below() {
        for piece in [usize::MAX, 100, 1] {
            let (server, proxy, config) = start(&row, piece, BelowPolicy::Refuse);
            let (said, client) = talk(&proxy, &config, piece);
            let said = said.unwrap_err().to_string();
            assert!(said.contains("InsufficientSecurity"), "{label}: {said}");
            // Nothing of the server's but a HelloRetryRequest, then the alert on a boundary of records, then nothing.
            assert!(client.read.ends_with(&CUT), "{label}: {:?}", client.read);
            let kinds = records(&client.read);
            if row.retried {
                assert!(kinds == [22, 20, 21] || kinds == [22, 21], "{label}: {kinds:?}");
            } else {
                assert_eq!(client.read, CUT, "{label}");
            }
            // The server got what the client said until then, which is no data of its own.
            assert_eq!(client.written, at_server(&server).read, "{label}");
            assert!(!records(&client.written).contains(&23), "{label}");
            let record = told(&proxy, &row, Some(label));
            assert_eq!(record.outcome, Outcome::BelowPolicy);
            assert_eq!(record.bytes_up, client.written.len() as u64);
            assert_eq!(record.bytes_down, (client.read.len() - CUT.len()) as u64);
            let error = record.error.unwrap();
            assert!(error.contains("intercept.https_below_policy"), "{error}");
        }
    }
}

#[test]
fn a_session_below_the_policy_passes_when_it_is_only_recorded() {
    for (row, label) in below() {
        for piece in [usize::MAX, 1] {
            let (server, proxy, config) = start(&row, piece, BelowPolicy::Record);
            let (said, client) = talk(&proxy, &config, piece);
            said.unwrap();
            let server = at_server(&server);
            assert_eq!(
                (client.written, client.read),
                (server.read, server.written),
                "{label}"
            );
            assert_eq!(told(&proxy, &row, Some(label)).outcome, Outcome::Ok);
        }
    }
}

/// The second session of a client resumes the first, and means to send data at once.
#[test]
fn early_data_is_below_the_policy_before_the_server_is_asked() {
    for policy in [BelowPolicy::Refuse, BelowPolicy::Record] {
        let server = Server::start(provider(P256), BOTH, usize::MAX);
        let proxy = proxy(server.fake.address, policy, |_| {});
        let mut config = server.client(provider(P256), BOTH);
        config.enable_early_data = true;
        let config = Arc::new(config);
        talk(&proxy, &config, usize::MAX).0.unwrap();
        let (said, client) = talk(&proxy, &config, usize::MAX);
        let record = proxy.connections(2).remove(1);
        let tls = record.tls.unwrap();
        assert_eq!(tls.below.as_deref(), Some("early_data"));
        assert_eq!(proxy.records.client_sessions.lock().unwrap()[1].1, tls);
        if policy == BelowPolicy::Record {
            said.unwrap();
            assert_eq!((record.outcome, tls.version.as_str()), (Outcome::Ok, "TLSv1.3"));
            continue;
        }
        assert!(said.is_err());
        assert_eq!(client.read, CUT);
        assert_eq!((record.outcome, record.bytes_up), (Outcome::BelowPolicy, 0));
        // Whatever was connected, no byte came.
        server.fake.taken();
        assert_eq!(server.wires.lock().unwrap().len(), 1);
    }
}

/// What a client without keys sees of a server that does something else: it sends a hello, and reads to the end.
fn meet(proxy: &Proxy) -> (Vec<u8>, ConnectionRecord) {
    let mut client = Client::connect(proxy.intercept);
    let bytes = client.send(hello(Some(NAME.as_bytes()))).rest();
    drop(client);
    (bytes, proxy.connections(1).remove(0))
}

/// A server that reads a hello, says this and closes.
fn says(bytes: &'static [u8]) -> Fake {
    Fake::on((Ipv4Addr::LOCALHOST, 0).into(), move |mut stream| {
        let mut hello = [0; 4096];
        if stream.read(&mut hello).unwrap_or(0) == 0 {
            return;
        }
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        while matches!(stream.read(&mut hello), Ok(1..)) {}
    })
}

#[test]
fn an_answer_that_is_no_tls_cannot_be_held_to_anything() {
    const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    for (policy, expected, outcome) in [
        (BelowPolicy::Refuse, &CUT[..], Outcome::BelowPolicy),
        (BelowPolicy::Record, ANSWER, Outcome::Ok),
    ] {
        let server = says(ANSWER);
        let proxy = proxy(server.address, policy, |_| {});
        let (bytes, record) = meet(&proxy);
        assert_eq!(bytes, expected);
        assert_eq!((record.decision, record.outcome), ("passthrough", outcome));
        let tls = record.tls.unwrap();
        assert_eq!(
            (tls.version.as_str(), tls.below.as_deref()),
            ("-", Some("unreadable"))
        );
        assert_eq!(proxy.records.client_sessions.lock().unwrap().len(), 1);
    }
}

/// An alert of the server's is the client's to read, and no session is told of; one that is cut short passes too.
#[test]
fn what_a_server_says_instead_of_a_session_passes() {
    for (answer, outcome) in [
        (&[21, 3, 3, 0, 2, 2, 40][..], Outcome::Ok),
        // The beginning of a ServerHello; and nothing at all.
        (&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3], Outcome::UpstreamProtocol),
        (&[], Outcome::UpstreamProtocol),
    ] {
        let server = says(answer);
        let proxy = proxy(server.address, BelowPolicy::Refuse, |_| {});
        let (bytes, record) = meet(&proxy);
        assert_eq!(bytes, answer);
        assert_eq!(
            (record.decision, record.outcome),
            ("passthrough", outcome),
            "{answer:?}"
        );
        assert_eq!(record.tls, None);
        assert_eq!(record.bytes_down, answer.len() as u64);
        assert!(proxy.records.client_sessions.lock().unwrap().is_empty());
    }
}

#[test]
fn a_server_that_says_nothing_is_waited_for_within_the_limit() {
    let server = Fake::on((Ipv4Addr::LOCALHOST, 0).into(), |mut stream| {
        while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
    });
    let proxy = proxy(server.address, BelowPolicy::Refuse, |setup| {
        setup.config.upstream.response_timeout = Duration::from_millis(200);
    });
    let (bytes, record) = meet(&proxy);
    assert_eq!(bytes, b"");
    assert_eq!(
        (record.decision, record.outcome),
        ("passthrough", Outcome::UpstreamTimeout)
    );
    assert!(record.error.unwrap().contains("upstream.response_timeout"));
}

#[test]
fn a_client_that_does_not_answer_a_retry_is_not_the_servers_fault() {
    let server = Server::start(provider(P256), BOTH, usize::MAX);
    let proxy = proxy(server.fake.address, BelowPolicy::Refuse, |setup| {
        setup.config.upstream.response_timeout = Duration::from_millis(300);
    });
    let hello = hello_of(server.client(provider(X25519_FIRST), BOTH));
    let mut client = Client::connect(proxy.intercept);
    let retry = client.send(hello).rest();
    assert_eq!(records(&retry).first(), Some(&22), "a HelloRetryRequest came");
    let record = proxy.connections(1).remove(0);
    assert_eq!(record.outcome, Outcome::ClientTimeout, "{record:?}");
}

#[test]
fn a_client_that_leaves_in_between_is_let_go() {
    let server = Fake::on((Ipv4Addr::LOCALHOST, 0).into(), |mut stream| {
        while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
    });
    let proxy = proxy(server.address, BelowPolicy::Refuse, |_| {});
    let bytes = hello(Some(NAME.as_bytes()));
    let mut client = Client::connect(proxy.intercept);
    client.send(&bytes);
    eventually(|| (server.taken() == 1).then_some(()));
    drop(client);
    let record = proxy.connections(1).remove(0);
    assert_eq!(
        (record.decision, record.outcome, record.tls),
        ("passthrough", Outcome::ClientAborted, None)
    );
    assert_eq!(record.bytes_up, bytes.len() as u64);
}

#[test]
fn a_destination_that_is_not_there_is_told() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let proxy = proxy(address, BelowPolicy::Refuse, |_| {});
    let (bytes, record) = meet(&proxy);
    assert_eq!(bytes, b"");
    assert_eq!(
        (record.decision, record.outcome),
        ("passthrough", Outcome::UpstreamConnect)
    );
}
