//! A real worker process, with the test as its master: listeners that come and go while it runs.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_fips_proxy::config::{Config, PodsApi};
use agent_fips_proxy::relay::network::{NetworkId, Taken};
use agent_fips_proxy::supervise::authority::Passing;
use agent_fips_proxy::supervise::channel::{Channel, Frame, Receiver, Sender};
use agent_fips_proxy::supervise::protocol::{FromWorker, MasterStatus, Passed, Purpose, Setup, ToWorker};
use socket2::{Domain, Socket, Type};

struct Worker {
    child: Child,
    tx: Sender,
    rx: Receiver,
}

impl Worker {
    async fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_agent-fips-proxy"))
            .args(["worker", "--channel"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let mut config = Config::default();
        config.intercept.agents.pods.api = PodsApi::Off;
        config.worker.user = "nobody".to_owned();
        config.worker.threads = 2;
        let (mut tx, rx) = Channel::new(ours).split().unwrap();
        let setup = Setup {
            config,
            listeners: Vec::new(),
            authority: Passing::default(),
            master: MasterStatus::default(),
        };
        tx.send(&setup).await.unwrap();
        let mut worker = Self { child, tx, rx };
        worker.hear(|message| matches!(message, FromWorker::Ready)).await;
        worker
    }

    /// Waits for a message.
    async fn hear(&mut self, wanted: impl Fn(&FromWorker) -> bool) -> FromWorker {
        let next = async {
            loop {
                let (message, descriptors) = self.rx.next::<FromWorker>().await.unwrap().unwrap();
                assert!(descriptors.is_empty());
                if wanted(&message) {
                    return message;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), next).await.unwrap()
    }

    async fn add(&mut self, passed: Vec<Passed>, sockets: Vec<OwnedFd>) {
        let frame = Frame::new(&ToWorker::AddListeners(passed), sockets).unwrap();
        self.tx.send_frame(frame).await.unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Also when the test failed; it has ended when it did not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn passed(network: u32) -> Passed {
    let purpose = Purpose::Intercept {
        network: NetworkId(network),
        datapath: Taken::Cgroup,
    };
    Passed::new(purpose, network as usize % 2)
}

/// A listener that only the worker will hold.
fn listener() -> (OwnedFd, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket.into(), address)
}

/// Accepted, and closed without a byte: nobody redirected this connection.
fn is_served(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    matches!(stream.read(&mut [0; 1]), Ok(0))
}

fn wait_until(mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < deadline, "it did not happen within 10 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn listeners_come_and_go_while_the_worker_runs() {
    let mut worker = Worker::start().await;
    let mut sockets = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..300 {
        let (socket, address) = listener();
        sockets.push(socket);
        addresses.push(address);
    }
    worker.add((1..=300).map(passed).collect(), sockets).await;
    for at in [0, 1, 150, 299] {
        assert!(is_served(addresses[at]), "listener {at}");
    }
    worker
        .tx
        .send(&ToWorker::RemoveNetwork(NetworkId(151)))
        .await
        .unwrap();
    // Refused: the last descriptor of that socket is closed, so nothing of the namespace is held any more.
    wait_until(|| {
        TcpStream::connect(addresses[150])
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    assert!(is_served(addresses[149]) && is_served(addresses[151]));

    // What is not as announced is not served, and ends nobody.
    let (socket, address) = listener();
    worker.add(vec![passed(400), passed(401)], vec![socket]).await;
    // A stray answer is nobody's.
    let stray = ToWorker::Socket {
        request: 99,
        error: None,
    };
    worker.tx.send(&stray).await.unwrap();
    worker.tx.send(&ToWorker::Status).await.unwrap();
    worker
        .hear(|message| matches!(message, FromWorker::Status(_)))
        .await;
    assert!(TcpStream::connect(address).is_err());

    worker.tx.send(&ToWorker::Drain).await.unwrap();
    wait_until(|| {
        worker
            .child
            .try_wait()
            .unwrap()
            .is_some_and(|status| status.success())
    });
    assert!(TcpStream::connect(addresses[0]).is_err());
}

/// One socket of a network for each data thread, on one port: each is served, and none is left when the network goes.
#[tokio::test]
async fn every_thread_serves_a_network_until_it_goes() {
    let mut worker = Worker::start().await;
    let on = |thread| Passed { thread, ..passed(7) };
    let first = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    first
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    first.set_reuse_port(true).unwrap();
    let address = first.local_addr().unwrap();
    let second = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    second.set_reuse_port(true).unwrap();
    second.bind(&address).unwrap();
    for socket in [&first, &second] {
        socket.listen(128).unwrap();
    }
    let address = address.as_socket().unwrap();
    worker
        .add(vec![on(0), on(1)], vec![first.into(), second.into()])
        .await;
    // The kernel divides them: were one socket nobody's, half of these would wait for ever.
    for number in 0..64 {
        assert!(is_served(address), "connection {number}");
    }
    worker
        .tx
        .send(&ToWorker::RemoveNetwork(NetworkId(7)))
        .await
        .unwrap();
    wait_until(|| {
        (0..16).all(|_| {
            TcpStream::connect(address)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        })
    });
}

#[tokio::test]
async fn a_worker_ends_when_its_master_talks_nonsense() {
    let mut worker = Worker::start().await;
    worker.tx.send(&"nonsense").await.unwrap();
    wait_until(|| worker.child.try_wait().unwrap().is_some());
}
