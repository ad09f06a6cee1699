//! Against hosts files and a tiny DNS server on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use hickory_resolver::Resolver as Hickory;
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use super::*;

pub(super) mod outage;

fn files(hosts: &str, resolv_conf: Option<&str>) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources {
        hosts: dir.path().join("hosts"),
        resolv_conf: dir.path().join("resolv.conf"),
    };
    std::fs::write(&sources.hosts, hosts).unwrap();
    if let Some(text) = resolv_conf {
        std::fs::write(&sources.resolv_conf, text).unwrap();
    }
    (dir, sources)
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_read_again_when_it_changes() {
    let (_dir, sources) = files(
        "# x\n203.0.113.1 App.ddog-gov.com. alias # tail\n2001:db8::1 app.ddog-gov.com\n",
        None,
    );
    let resolver = Resolver::new(sources.clone(), Handle::current());
    let both: Vec<IpAddr> = vec!["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    assert_eq!(resolver.lookup("app.ddog-gov.com.").await.unwrap(), both);
    assert_eq!(resolver.lookup("ALIAS").await.unwrap(), both[..1]);

    std::fs::write(&sources.hosts, "203.0.113.22 app.ddog-gov.com\n").unwrap();
    tokio::time::sleep(FILE_CHECK + Duration::from_millis(100)).await;
    assert_eq!(
        resolver.lookup("app.ddog-gov.com").await.unwrap(),
        ["203.0.113.22".parse::<IpAddr>().unwrap()]
    );
}

#[tokio::test]
async fn without_resolv_conf_the_c_library_answers() {
    let (_dir, sources) = files("", None);
    let resolver = Resolver::new(sources, Handle::current());
    assert!(
        resolver
            .lookup("localhost")
            .await
            .unwrap()
            .iter()
            .all(IpAddr::is_loopback)
    );
    // No default servers are asked: `.invalid` fails by itself (RFC 6761).
    assert!(resolver.lookup("app.invalid").await.is_err());
}

#[tokio::test]
async fn the_watcher_tells_of_catalogue_names_and_of_pinned_versioned_names() {
    let hosts = "203.0.113.1 trace.agent.ddog-gov.com\n203.0.113.2 7-81-0-app.agent.ddog-gov.com\n\
                 203.0.113.3 www.example.org\n";
    // A server that nobody listens on: everything else fails at once.
    let (_dir, sources) = files(
        hosts,
        Some("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
    );
    let resolver = Resolver::new(sources, Handle::current());
    let catalog = Catalog::new(&"ddog-gov.com".parse().unwrap());
    let told = Mutex::new(Vec::new());
    let watch = resolver.watch_intake(&catalog, |what| lock(&told).push(what));
    tokio::select! {
        () = watch => {}
        () = async {
            while lock(&told).last() != Some(&Intake::Asked) { tokio::time::sleep(Duration::from_millis(20)).await; }
        } => {}
    }
    let told = lock(&told).clone();
    let Intake::Addresses(mut seen) = told[0].clone() else {
        panic!("{told:?}")
    };
    assert_eq!(told.len(), 2, "what needs no question is told at once: {told:?}");
    seen.sort();
    let expected: Vec<(IpAddr, Duration)> = ["203.0.113.1", "203.0.113.2"]
        .iter()
        .map(|ip| (ip.parse().unwrap(), DEFAULT_TTL))
        .collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn many_askers_share_a_question_and_the_last_good_answer_survives_an_outage() {
    let server = Server::start().await;
    let mut options = hickory_resolver::config::ResolverOpts::default();
    options.attempts = 1;
    options.timeout = Duration::from_millis(300);
    options.cache_size = 0;
    let mut udp = hickory_resolver::config::ConnectionConfig::udp();
    udp.port = server.address.port();
    let name_server = hickory_resolver::config::NameServerConfig::new(server.address.ip(), true, vec![udp]);
    let config = hickory_resolver::config::ResolverConfig::from_parts(None, vec![], vec![name_server]);
    let servers = Hickory::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .unwrap();
    let (_dir, sources) = files("", None);
    let resolver = Arc::new(Resolver::new(sources, Handle::current()));
    resolver.inner.reload_if_changed();
    lock(&resolver.inner.state).servers = Servers::Dns(Arc::new(servers));

    let mut askers = JoinSet::new();
    for _ in 0..20 {
        let resolver = Arc::clone(&resolver);
        askers.spawn(async move { resolver.lookup("app.ddog-gov.com").await.unwrap() });
    }
    let expected = [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9))];
    while let Some(answer) = askers.join_next().await {
        assert_eq!(answer.unwrap(), expected);
    }
    let asked = server.questions.load(Ordering::Relaxed);
    assert!(
        (1..=2).contains(&asked),
        "one question for A, one for AAAA at most: {asked}"
    );

    server.broken.store(true, Ordering::Relaxed);
    let name = Arc::clone(&lock(&resolver.inner.state).names["app.ddog-gov.com"]);
    lock(&name.answer).as_mut().unwrap().fresh_until = Instant::now();
    assert_eq!(resolver.lookup("app.ddog-gov.com").await.unwrap(), expected);
    assert!(
        server.questions.load(Ordering::Relaxed) > asked,
        "it did ask again"
    );
}

/// Answers every A question with 203.0.113.9, TTL 60; with nothing while broken.
struct Server {
    address: SocketAddr,
    questions: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (questions, broken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, silent) = (Arc::clone(&questions), Arc::clone(&broken));
        tokio::spawn(async move {
            let mut packet = [0_u8; 512];
            while let Ok((len, peer)) = socket.recv_from(&mut packet).await {
                counter.fetch_add(1, Ordering::Relaxed);
                if silent.load(Ordering::Relaxed) {
                    continue;
                }
                let name_end = 12 + packet[12..len].iter().position(|&b| b == 0).unwrap() + 1;
                let question = &packet[12..name_end + 4];
                let is_a = question[question.len() - 3] == 1;
                let mut answer = packet[..2].to_vec();
                answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
                answer.extend_from_slice(question);
                if is_a {
                    answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 9]);
                }
                socket.send_to(&answer, peer).await.unwrap();
            }
        });
        Self {
            address,
            questions,
            broken,
        }
    }
}
