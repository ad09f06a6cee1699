//! The outbound proxy: who goes through it, what it is told, and everything that it may answer.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::config::{Endpoint, ProxyUrl};
use agent_fips_proxy::relay::Role;
use agent_fips_proxy::relay::network::{NetworkId, Taken};
use agent_fips_proxy::relay::outcome::Outcome;

use crate::harness::{Client, Message, Proxy, Setup, Upstream, hosts, read_message};

const INTAKE: &str = "metrics.agent.ddog-gov.com";
const NOBODY: [u8; 4] = [127, 0, 0, 77];

/// An outbound proxy that does what `answer` says with a CONNECT: bytes to answer with, and whether to go on to `to`.
struct Forward {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
}

impl Forward {
    fn to(to: SocketAddr) -> Self {
        Self::answering(b"HTTP/1.1 200 Connection established\r\n\r\n", Some(to))
    }

    fn answering(answer: &'static [u8], to: Option<SocketAddr>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        let upstream = Upstream::raw(move |stream, connection| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let Ok(Some(mut request)) = read_message(&mut reader, true) else {
                return;
            };
            request.connection = connection;
            all.lock().unwrap().push(request);
            assert!(reader.buffer().is_empty(), "it speaks before the tunnel is there");
            (&stream).write_all(answer).unwrap();
            match to {
                Some(to) => splice(stream, TcpStream::connect(to).unwrap()),
                // Until the client goes.
                None => while (&stream).read(&mut [0; 64]).is_ok_and(|len| len > 0) {},
            }
        });
        Self {
            address: upstream.address,
            seen,
            connections: upstream.connections,
        }
    }

    fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn url(&self) -> Option<ProxyUrl> {
        Some(format!("http://{}", self.address).parse().unwrap())
    }
}

fn splice(a: TcpStream, b: TcpStream) {
    let (mut a2, mut b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
    let there = std::thread::spawn(move || {
        let _ = std::io::copy(&mut a2, &mut b2);
        let _ = b2.shutdown(std::net::Shutdown::Write);
    });
    let (mut a, mut b) = (a, b);
    let _ = std::io::copy(&mut b, &mut a);
    let _ = a.shutdown(std::net::Shutdown::Write);
    there.join().unwrap();
}

/// Behind a proxy an intake's name need not resolve; here it leads to where nobody is.
fn behind(forward: &Forward, setup: &mut Setup) {
    setup.hosts = hosts(&[NOBODY.into()]);
    setup.config.upstream.proxy.url = forward.url();
}

#[test]
fn requests_go_through_the_tunnel_and_share_it() {
    let upstream = Upstream::start();
    let forward = Forward::to(upstream.address);
    let proxy = Proxy::with(upstream.address, |setup| {
        behind(&forward, setup);
        setup.config.upstream.port = 443;
        // Not even the resolver is asked.
        setup.hosts = String::new();
    });
    let mut client = proxy.client();
    for n in 0..10 {
        assert_eq!(client.post("/", &vec![b'x'; n * 1000]).status(), 200);
    }
    let seen = forward.seen();
    assert_eq!(seen.len(), 1, "one tunnel for ten requests");
    let lines: Vec<&str> = seen[0].head.lines().collect();
    assert_eq!(lines[0], format!("CONNECT {INTAKE}:443 HTTP/1.1"));
    assert_eq!(seen[0].header("host"), Some(&*format!("{INTAKE}:443")));
    assert_eq!(seen[0].header("proxy-authorization"), None);
    assert_eq!(lines.len(), 3, "nothing else is told: {lines:?}");
    assert_eq!(upstream.seen()[0].header("host"), Some(INTAKE));
    assert_eq!(*proxy.tls.names.lock().unwrap(), [INTAKE]);
    let record = &proxy.requests(10)[0];
    assert_eq!(record.upstream_addr, Some(forward.address));
    let tls = record.tls.as_ref().unwrap();
    assert_eq!(tls.proxy, Some(forward.address.to_string()));
    assert_eq!(
        proxy.records.sessions.lock().unwrap()[0].proxy,
        Some(forward.address.to_string())
    );
}

#[test]
fn an_intercepted_connection_goes_through_it_and_not_to_its_original_address() {
    let upstream = Upstream::start();
    let forward = Forward::to(upstream.address);
    let original = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        behind(&forward, setup);
        setup.original = original.address;
    });
    let mut client = Client::connect(proxy.intercept);
    client.send(format!("GET / HTTP/1.1\r\nHost: {INTAKE}\r\n\r\n"));
    assert_eq!(client.response().status(), 200);
    assert_eq!((original.connections(), upstream.connections()), (0, 1));
    assert_eq!(forward.connections(), 1);
}

#[test]
fn a_pods_tunnels_use_sockets_of_its_namespace() {
    let pod = NetworkId(7);
    let upstream = Upstream::start();
    let forward = Forward::to(upstream.address);
    let proxy = Proxy::with(upstream.address, |setup| {
        behind(&forward, setup);
        setup.role = Role::Intercept {
            network: pod,
            taken: Taken::Cgroup,
        };
    });
    let mut client = Client::connect(proxy.intercept);
    for _ in 0..2 {
        client.send(format!("GET / HTTP/1.1\r\nHost: {INTAKE}\r\n\r\n"));
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(proxy.sockets.asked(), [(pod, false)]);
    assert_eq!(forward.connections(), 1);
}

#[test]
fn who_is_exempt_goes_out_without_it() {
    type Change = fn(&mut Setup);
    let cases: [(&str, Change, bool); 9] = [
        ("nothing", |_| {}, true),
        ("its name", |setup| no_proxy(setup, INTAKE), false),
        ("a suffix", |setup| no_proxy(setup, ".ddog-gov.com"), false),
        ("a name above it", |setup| no_proxy(setup, "ddog-gov.com"), true),
        (
            "another port",
            |setup| no_proxy(setup, &format!("{INTAKE}:1")),
            true,
        ),
        ("everything", |setup| no_proxy(setup, "*"), false),
        (
            "its product is named",
            |setup| setup.config.upstream.proxy.products = vec![Product::Metrics],
            true,
        ),
        (
            "another product is named",
            |setup| setup.config.upstream.proxy.products = vec![Product::Logs],
            false,
        ),
        (
            "the network of its endpoint",
            |setup| {
                let endpoint = Endpoint {
                    host: "127.0.0.1".to_owned(),
                    port: None,
                };
                setup.config.upstream.endpoints.insert(Product::Metrics, endpoint);
                no_proxy(setup, "127.0.0.0/8");
            },
            false,
        ),
    ];
    for (what, change, through) in cases {
        let upstream = Upstream::start();
        let forward = Forward::to(upstream.address);
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.config.upstream.proxy.url = forward.url();
            change(setup);
        });
        assert_eq!(proxy.client().get("/").status(), 200, "{what}");
        assert_eq!(forward.connections(), usize::from(through), "{what}");
        assert_eq!(
            proxy.requests(1)[0].tls.as_ref().unwrap().proxy.is_some(),
            through,
            "{what}"
        );
    }
}

fn no_proxy(setup: &mut Setup, entry: &str) {
    setup.config.upstream.proxy.no_proxy.push(entry.parse().unwrap());
}

#[test]
fn an_intercepted_connection_to_an_exempt_network_goes_where_it_meant_to() {
    let upstream = Upstream::start();
    let forward = Forward::to(upstream.address);
    let proxy = Proxy::with(upstream.address, |setup| {
        behind(&forward, setup);
        no_proxy(setup, "127.0.0.0/8");
    });
    let mut client = Client::connect(proxy.intercept);
    client.send(format!("GET / HTTP/1.1\r\nHost: {INTAKE}\r\n\r\n"));
    assert_eq!(client.response().status(), 200);
    assert_eq!((forward.connections(), upstream.connections()), (0, 1));
    // On an explicit port there is no original address, and the name is the proxy's to resolve.
    assert_eq!(proxy.client().get("/").status(), 200);
    assert_eq!(forward.connections(), 1);
}

#[test]
fn an_endpoint_is_what_the_proxy_is_asked_for_and_the_name_stays() {
    let upstream = Upstream::start();
    let forward = Forward::to(upstream.address);
    let proxy = Proxy::with(upstream.address, |setup| {
        behind(&forward, setup);
        let endpoint = Endpoint {
            host: "vpce-1.example.net".to_owned(),
            port: Some(8443),
        };
        setup.config.upstream.endpoints.insert(Product::Metrics, endpoint);
    });
    assert_eq!(proxy.client().get("/").status(), 200);
    assert!(
        forward.seen()[0]
            .head
            .starts_with("CONNECT vpce-1.example.net:8443 HTTP/1.1\r\n")
    );
    assert_eq!(*proxy.tls.names.lock().unwrap(), [INTAKE]);
}

#[test]
fn credentials_are_told_to_the_proxy_and_to_nobody_else() {
    const PASSWORD: &str = "canary-31ad";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("agent:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let upstream = Upstream::start();
    let forward = Forward::to(upstream.address);
    let refusing = Forward::answering(b"HTTP/1.1 407 canary-31ad\r\nContent-Length: 0\r\n\r\n", None);
    for (forward, status) in [(&forward, 200), (&refusing, 502)] {
        let proxy = Proxy::with(upstream.address, |setup| {
            behind(forward, setup);
            setup.config.upstream.proxy.credentials_file = Some(file.path().to_owned());
        });
        let answer = proxy.client().get("/");
        assert_eq!(answer.status(), status);
        // base64 of agent:canary-31ad
        assert_eq!(
            forward.seen()[0].header("proxy-authorization"),
            Some("Basic YWdlbnQ6Y2FuYXJ5LTMxYWQ=")
        );
        let told = format!("{answer:?} {:?} {:?}", proxy.requests(1), upstream.seen());
        assert!(
            !told.contains(PASSWORD) && !told.contains("YWdlbnQ6Y2FuYXJ5"),
            "{told}"
        );
    }
}

#[test]
fn every_answer_of_the_proxy_has_its_reason_and_none_is_repeated() {
    let cases: [(&'static [u8], &str); 14] = [
        (
            b"HTTP/1.1 407 secret-words\r\nProxy-Authenticate: Basic realm=\"secret-words\"\r\n\r\n",
            "set upstream.proxy.credentials_file",
        ),
        (
            b"HTTP/1.1 403 secret-words\r\nContent-Length: 12\r\n\r\nsecret-words",
            "forbids this destination (403)",
        ),
        (
            b"HTTP/1.0 405 secret-words\r\n\r\n",
            "forbids this destination (405)",
        ),
        (
            b"HTTP/1.1 502 secret-words\r\n\r\n",
            "cannot reach this destination (502)",
        ),
        (
            b"HTTP/1.1 503 secret-words\r\n\r\n",
            "cannot reach this destination (503)",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://secret-words/\r\n\r\n",
            "answered CONNECT with 302",
        ),
        (b"HTTP/1.1 404 secret-words\r\n\r\n", "answered CONNECT with 404"),
        (
            b"HTTP/1.1 101 secret-words\r\n\r\nHTTP/1.1 204 x\r\n\r\nsecret-words",
            "bytes after the head",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nsecret-words", "bytes after the head"),
        (b"SSH-2.0-secret-words\r\n", "not HTTP"),
        (b"<html>secret-words</html>", "not HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nsecret words\r\n\r\n", "not HTTP"),
    ];
    for (answer, reason) in cases {
        let upstream = Upstream::start();
        let forward = Forward::answering(answer, None);
        let proxy = Proxy::with(upstream.address, |setup| behind(&forward, setup));
        let response = proxy.client().post("/", b"data");
        let body = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(
            (response.status(), response.header("x-agent-fips-proxy-error")),
            (502, Some("upstream_proxy")),
            "{reason}: {body}"
        );
        assert!(body.contains(reason), "{reason} not in {body}");
        assert!(body.contains("upstream.proxy") && body.contains(INTAKE), "{body}");
        assert!(!body.contains("secret-words"), "{body}");
        let record = &proxy.requests(1)[0];
        assert_eq!(record.outcome, Outcome::UpstreamProxy);
        assert_eq!(
            (forward.connections(), upstream.connections()),
            (1, 0),
            "{reason}"
        );
    }
}

#[test]
fn an_endless_a_cut_and_a_silent_answer_end() {
    let upstream = Upstream::start();
    let endless = Upstream::raw(|mut stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream
            .write_all(b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")
            .is_ok()
        {}
    });
    // One field that never ends: the count of fields must not be what stops it.
    let long = Upstream::raw(|mut stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ");
        while stream.write_all(&[b'a'; 4096]).is_ok() {}
    });
    let cut = Upstream::raw(|mut stream, _| {
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"HTTP/1.1 200 ");
    });
    let silent = Upstream::raw(|mut stream, _| while stream.read(&mut [0; 64]).is_ok_and(|len| len > 0) {});
    for (forward, status, outcome, reason) in [
        (&endless, 502, "upstream_proxy", "not HTTP"),
        (&long, 502, "upstream_proxy", "an endless head"),
        (&cut, 502, "upstream_proxy", "broke the connection"),
        (&silent, 504, "upstream_timeout", "upstream.connect_timeout"),
    ] {
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.config.upstream.proxy.url = Some(format!("http://{}", forward.address).parse().unwrap());
            setup.config.upstream.connect_timeout = Duration::from_millis(700);
        });
        let since = Instant::now();
        let response = proxy.client().get("/");
        let body = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(
            (response.status(), response.header("x-agent-fips-proxy-error")),
            (status, Some(outcome)),
            "{reason}: {body}"
        );
        assert!(body.contains(reason) && body.contains("proxy"), "{body}");
        assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    }
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let upstream = Upstream::start();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, status, reason) in [
        (
            format!("http://{closed}"),
            502,
            "cannot connect to the outbound proxy",
        ),
        (
            "http://proxy.invalid:3128".to_owned(),
            503,
            "cannot resolve proxy.invalid",
        ),
        (
            "http://169.254.169.254:3128".to_owned(),
            503,
            "no address for a proxy",
        ),
    ] {
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.config.upstream.proxy.url = Some(url.parse().unwrap());
        });
        let response = proxy.client().get("/");
        let body = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(response.status(), status, "{body}");
        assert!(body.contains(reason), "{body}");
        assert_eq!(upstream.connections(), 0);
    }
}

#[test]
fn the_next_address_of_the_proxy_is_tried() {
    let upstream = Upstream::start();
    let forward = Forward::to(upstream.address);
    let proxy = Proxy::with(upstream.address, |setup| {
        behind(&forward, setup);
        setup.hosts = "127.0.0.3 proxy.test\n127.0.0.1 proxy.test\n".to_owned();
        let url = format!("http://proxy.test:{}", forward.address.port());
        setup.config.upstream.proxy.url = Some(url.parse().unwrap());
        // The proxy's own address is the operator's word: it may be private.
        setup.config.upstream.allow_private.clear();
    });
    assert_eq!(proxy.client().get("/").status(), 200);
    let record = &proxy.requests(1)[0];
    assert_eq!(
        record.tls.as_ref().unwrap().proxy.as_deref(),
        Some(&*format!("proxy.test:{}", forward.address.port()))
    );
}

#[test]
fn a_reset_of_the_tunnel_is_no_proof_that_the_intake_has_nothing() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let upstream = Upstream::raw(move |stream, _| {
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        while let Ok(Some(_)) = read_message(&mut reader, false) {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                writer
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .unwrap();
            }
        }
    });
    let to = upstream.address;
    // Hands on the second request, then dies with a reset before it is answered.
    let forward = Upstream::raw(move |stream, connection| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let _ = read_message(&mut reader, true);
        (&stream).write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut intake = TcpStream::connect(to).unwrap();
        let mut bytes = [0; 4096];
        for request in 0..2 {
            let len = (&stream).read(&mut bytes).unwrap();
            intake.write_all(&bytes[..len]).unwrap();
            if request == 0 {
                let len = intake.read(&mut bytes).unwrap();
                (&stream).write_all(&bytes[..len]).unwrap();
            }
        }
        assert_eq!(connection, 0);
        std::thread::sleep(Duration::from_millis(50));
        let socket = socket2::SockRef::from(&stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    });
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.upstream.proxy.url = Some(format!("http://{}", forward.address).parse().unwrap());
    });
    let mut client = proxy.client();
    assert_eq!(client.post("/1", b"a").status(), 200);
    assert_eq!(client.post("/2", b"b").status(), 502);
    assert_eq!(
        (served.load(Ordering::SeqCst), forward.connections()),
        (2, 1),
        "it was sent twice"
    );
}
