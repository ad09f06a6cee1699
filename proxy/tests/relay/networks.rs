//! Connections of Agent pods: whose sockets they use, and listeners that come and go while the proxy serves.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use agent_fips_proxy::relay::network::{NetworkId, Taken};
use agent_fips_proxy::relay::outcome::{Outcome, Via};
use agent_fips_proxy::relay::{Change, Listener, Role};

use agent_fips_proxy::config::UpstreamNetwork;

use crate::harness::{Client, Proxy, Upstream, eventually};

const POD: NetworkId = NetworkId(7);
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n";

fn role(network: NetworkId) -> Role {
    Role::Intercept {
        network,
        taken: Taken::Cgroup,
    }
}

/// A listener that is added to a running proxy.
fn add(proxy: &Proxy, role: Role) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    proxy.change(Change::Add(vec![Listener { role, socket }]));
    address
}

#[test]
fn a_pods_upstream_connections_use_sockets_of_its_namespace() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| setup.role = role(POD));
    let mut client = Client::connect(proxy.intercept);
    assert_eq!(client.send(REQUEST).response().status(), 200);
    assert_eq!(proxy.sockets.asked(), [(POD, false)]);
    // The connection is kept and used again.
    assert_eq!(client.send(REQUEST).response().status(), 200);
    assert_eq!(proxy.sockets.asked().len(), 1);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn the_host_and_pods_with_upstream_network_host_need_no_such_socket() {
    let upstream = Upstream::start();
    for (network, from) in [
        (NetworkId::HOST, UpstreamNetwork::Pod),
        (POD, UpstreamNetwork::Host),
    ] {
        let proxy = Proxy::with(upstream.address, |setup| {
            setup.role = role(network);
            setup.config.upstream.network = from;
        });
        let mut client = Client::connect(proxy.intercept);
        assert_eq!(client.send(REQUEST).response().status(), 200);
        // Explicit ports are the host's.
        assert_eq!(proxy.client().get("/api/v1/series").status(), 200);
        assert!(proxy.sockets.asked().is_empty(), "{network} {from:?}");
    }
}

#[test]
fn one_agent_over_its_limit_leaves_room_for_the_others() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.role = role(POD);
        setup.config.limits.max_connections = 4;
        setup.config.limits.max_connections_per_agent = 2;
    });
    let other = add(&proxy, role(NetworkId(8)));
    let serves = |client: &mut Client| client.send(REQUEST).response().status() == 200;
    let mut pod = [Client::connect(proxy.intercept), Client::connect(proxy.intercept)];
    assert!(pod.iter_mut().all(serves));
    // Nobody knows what it would speak: it is closed.
    assert_eq!(Client::connect(proxy.intercept).rest(), b"");
    let refused = &proxy.connections(1)[0];
    assert_eq!(refused.outcome, Outcome::Overloaded);
    assert_eq!(
        refused.error.as_deref(),
        Some("limits.max_connections_per_agent reached")
    );
    let mut others = [Client::connect(other), Client::connect(other)];
    assert!(others.iter_mut().all(serves));
    // The host is within its own limit, but now all of them are held.
    let mut host = proxy.client();
    let answer = host.response();
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")));
    assert_eq!(
        proxy.connections(2)[1].error.as_deref(),
        Some("limits.max_connections reached")
    );
    drop(pod);
    proxy.connections(4);
    assert_eq!(proxy.client().get("/api/v1/series").status(), 200);
    assert!(serves(&mut Client::connect(proxy.intercept)));
}

#[test]
fn networks_share_no_connection() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| setup.role = role(POD));
    let other = add(&proxy, role(NetworkId(8)));
    for address in [proxy.intercept, other, proxy.intercept, other] {
        let mut client = Client::connect(address);
        assert_eq!(client.send(REQUEST).response().status(), 200);
    }
    // Same name, same original destination: one connection for each network, used twice.
    assert_eq!(proxy.sockets.asked(), [(POD, false), (NetworkId(8), false)]);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn tunnels_use_the_pods_sockets_too() {
    let server_first = Upstream::raw(|mut stream, _| {
        use std::io::Write;
        stream.write_all(b"220 ready\r\n").unwrap();
    });
    let proxy = Proxy::with(server_first.address, |setup| setup.role = role(POD));
    assert_eq!(Client::connect(proxy.intercept).rest(), b"220 ready\r\n");
    assert_eq!(proxy.sockets.asked(), [(POD, false)]);

    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| setup.role = role(POD));
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    assert_eq!(proxy.sockets.asked(), [(POD, false)]);
    drop(client);
    assert_eq!(proxy.connections(1)[0].decision, "tunnel");
}

#[test]
fn a_network_that_is_gone_fails_the_dial_with_a_reason() {
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| setup.role = role(POD));
    proxy.sockets.gone.lock().unwrap().push(POD);
    let mut client = Client::connect(proxy.intercept);
    assert_eq!(client.send(REQUEST).response().status(), 502);
    let record = &proxy.requests(1)[0];
    assert_eq!(record.outcome, Outcome::UpstreamConnect);
    let error = record.error.clone().unwrap();
    assert!(error.contains("network 7 is gone"), "{error}");
    assert_eq!(upstream.connections(), 0, "never from somewhere else");
    drop(client);
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(client.rest(), b"");
    let record = proxy.connections(2)[1].clone();
    assert_eq!(
        (record.decision, record.outcome),
        ("tunnel", Outcome::UpstreamConnect)
    );
}

#[test]
fn what_the_classifier_brought_goes_to_the_accepted_sockets_own_address() {
    let upstream = Upstream::start();
    // The listener is its own original destination here: nobody brought this connection.
    let tc = Role::Intercept {
        network: POD,
        taken: Taken::Tc,
    };
    let proxy = Proxy::with(upstream.address, |setup| setup.role = tc);
    let mut client = Client::connect(proxy.intercept);
    client.send(REQUEST);
    assert_eq!(client.rest(), b"");
    let record = &proxy.connections(1)[0];
    assert_eq!((record.outcome, record.via), (Outcome::NoOrigin, Via::Tc));
    assert_eq!(record.via.label(), "tc");
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_removed_network_is_not_accepted_from_and_its_request_in_flight_finishes() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::with(move |request, stream| {
        use std::io::Write;
        if request.head.starts_with("GET /slow") {
            wait.lock().unwrap().recv().unwrap();
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        crate::harness::Then::Keep
    });
    let proxy = Proxy::start(upstream.address);
    let address = add(&proxy, role(POD));
    // Leaves an idle connection in the pool.
    let mut idle = Client::connect(address);
    assert_eq!(idle.send(REQUEST).response().status(), 200);
    let mut busy = Client::connect(address);
    busy.send("GET /slow HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n");
    eventually(|| (upstream.seen().len() == 2).then_some(()));

    proxy.change(Change::Remove(POD));
    // The listener is closed: nobody is left who could accept.
    eventually(|| {
        TcpStream::connect_timeout(&address, Duration::from_secs(1))
            .err()
            .filter(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    // An idle client is told, not left waiting.
    assert_eq!(idle.rest(), b"");
    go.send(()).unwrap();
    let answer = busy.response();
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(busy.rest(), b"");
    // Others go on.
    let mut host = Client::connect(proxy.intercept);
    assert_eq!(host.send(REQUEST).response().status(), 200);
    assert_eq!(proxy.client().get("/api/v1/series").status(), 200);
}

#[test]
fn a_removed_networks_idle_upstream_connections_are_closed() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let upstream = Upstream::raw(move |mut stream, _| {
        use std::io::{Read, Write};
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        // The end, when the proxy closes.
        let end = stream.read(&mut buffer).unwrap();
        tell.lock().unwrap().send(end).unwrap();
    });
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.config.upstream.pool_idle_timeout = Duration::from_secs(600);
    });
    let address = add(&proxy, role(POD));
    let mut client = Client::connect(address);
    assert_eq!(client.send(REQUEST).response().status(), 200);
    drop(client);
    assert!(
        told.recv_timeout(Duration::from_millis(300)).is_err(),
        "it is kept"
    );
    proxy.change(Change::Remove(NetworkId(8)));
    proxy.change(Change::Remove(NetworkId::HOST));
    assert!(
        told.recv_timeout(Duration::from_millis(300)).is_err(),
        "not this one"
    );
    proxy.change(Change::Remove(POD));
    assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), 0);
    // The host never goes.
    let mut host = Client::connect(proxy.intercept);
    assert_eq!(host.send(REQUEST).response().status(), 200);
}

#[test]
fn the_same_loopback_address_is_another_place_in_another_network() {
    // In a pod, 127.0.0.1 and the port of a listener of the host's is whatever the pod has there.
    let upstream = Upstream::start();
    let proxy = Proxy::with(upstream.address, |setup| {
        setup.original = setup.explicit;
        setup.config.upstream.port = setup.explicit.port();
    });
    let pod = add(&proxy, role(POD));
    // For the host it is a loop.
    let mut client = Client::connect(proxy.intercept);
    client.send("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(client.rest(), b"");
    assert_eq!(proxy.connections(1)[0].outcome, Outcome::NoOrigin);
    // For the pod it is dialled, in the pod.
    let mut client = Client::connect(pod);
    client.send("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
    client.head_response();
    assert_eq!(proxy.sockets.asked(), [(POD, false)]);
}

#[test]
fn draining_ends_added_listeners_too() {
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(upstream.address);
    let address = add(&proxy, role(POD));
    let mut client = Client::connect(address);
    assert_eq!(client.send(REQUEST).response().status(), 200);
    proxy.drain();
    assert_eq!(client.rest(), b"");
    assert!(proxy.join() < Duration::from_secs(3));
    assert!(TcpStream::connect(address).is_err());
}
