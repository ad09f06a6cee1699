//! HTTP/1.1 within TLS: held to the same rules as in the clear, and to the name of its session.

use std::io::{BufReader, Cursor, Read, Write};
use std::time::Duration;

use agent_fips_proxy::relay::outcome::Outcome;

use crate::harness::{Message, NARROW, Then, Upstream, read_message, read_slowly};
use crate::world::{NAME, World};

type Session = BufReader<rustls::StreamOwned<rustls::ClientConnection, std::net::TcpStream>>;

fn client(world: &World) -> Session {
    BufReader::new(world.session(NAME, b"http/1.1"))
}

fn ask(client: &mut Session, bytes: &[u8]) -> Message {
    client.get_mut().write_all(bytes).unwrap();
    read_message(client, false).unwrap().expect("an answer")
}

fn rest(client: &mut Session) -> Vec<u8> {
    let mut bytes = Vec::new();
    // With or without a farewell.
    let _ = client.read_to_end(&mut bytes);
    bytes
}

#[test]
fn a_session_serves_many_requests_for_its_own_name() {
    let upstream = Upstream::start();
    let world = World::new(upstream.address);
    let mut client = client(&world);
    for (host, status) in [
        (NAME, 200),
        ("TRACE.agent.ddog-gov.com.:443", 200),
        ("api.ddog-gov.com", 421),
    ] {
        let request = format!("POST /api HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(ask(&mut client, request.as_bytes()).status(), status, "{host}");
    }
    assert_eq!(rest(&mut client), b"");
    drop(client);
    let record = &world.connections(1)[0];
    assert_eq!(
        (record.requests, record.outcome, record.class),
        (3, Outcome::Ok, Some("tls"))
    );
    let outcomes: Vec<Outcome> = world.requests(3).iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Ok, Outcome::Misdirected]);
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused_here_too() {
    let upstream = Upstream::start();
    let world = World::new(upstream.address);
    let table: [(&str, String, u16, Outcome); 9] = [
        (
            "two framings",
            format!(
                "POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            400,
            Outcome::BadRequest,
        ),
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
            400,
            Outcome::BadRequest,
        ),
        (
            "two hosts",
            format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nHost: {NAME}\r\n\r\n"),
            400,
            Outcome::BadRequest,
        ),
        (
            "a bare LF",
            format!("GET / HTTP/1.1\nHost: {NAME}\n\n"),
            400,
            Outcome::BadRequest,
        ),
        (
            "a folded line",
            format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX: 1\r\n 2\r\n\r\n"),
            400,
            Outcome::BadRequest,
        ),
        (
            "a broken chunk",
            format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
            400,
            Outcome::BadRequest,
        ),
        (
            "CONNECT",
            format!("CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
            400,
            Outcome::BadRequest,
        ),
        (
            "HTTP/2 where HTTP/1.1 was agreed on",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            400,
            Outcome::BadRequest,
        ),
        (
            "WebSocket",
            format!(
                "GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ),
            400,
            Outcome::Unsupported,
        ),
    ];
    for (name, bytes, status, outcome) in table {
        let mut client = client(&world);
        let local = client.get_ref().sock.local_addr().unwrap();
        assert_eq!(ask(&mut client, bytes.as_bytes()).status(), status, "{name}");
        assert_eq!(rest(&mut client), b"", "{name}: it is closed");
        drop(client);
        assert_eq!(world.record_of(local).outcome, outcome, "{name}");
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
}

#[test]
fn a_client_that_reads_little_at_a_time_keeps_its_answer() {
    const LENGTH: usize = 12_000_000;
    let upstream = Upstream::with(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
        stream.write_all(&vec![7; LENGTH]).unwrap();
        Then::Keep
    });
    let limit = Duration::from_millis(500);
    let world = World::with(upstream.address, |setup| setup.config.limits.idle_timeout = limit);
    let mut client = client(&world);
    let socket = socket2::SockRef::from(&client.get_ref().sock);
    socket.set_recv_buffer_size(NARROW).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    client.get_mut().write_all(request.as_bytes()).unwrap();
    let first = read_slowly(&mut client, 6 * limit).unwrap();
    let answer = read_message(&mut BufReader::new(Cursor::new(first).chain(client)), false);
    assert_eq!(answer.unwrap().unwrap().body, vec![7; LENGTH]);
    assert_eq!(world.requests(1)[0].outcome, Outcome::Ok);
}

#[test]
fn an_answer_that_ends_with_its_connection_is_reset_when_it_is_cut() {
    // Many clients do not ask whether a session ended in order.
    for drained in [true, false] {
        let upstream = Upstream::with(move |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\npart").unwrap();
            // The proxy ends it, or we do within a body.
            std::thread::sleep(Duration::from_millis(if drained { 3000 } else { 100 }));
            socket2::SockRef::from(&*stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            Then::Close
        });
        let mut world = World::with(upstream.address, |setup| {
            setup.config.limits.drain_timeout = Duration::from_millis(200);
        });
        let mut client = client(&world);
        let request = format!("GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n");
        client.get_mut().write_all(request.as_bytes()).unwrap();
        if drained {
            let head = read_message(&mut client, true).unwrap().unwrap();
            assert_eq!(head.header("connection"), Some("close"));
            client.read_exact(&mut [0; 4]).unwrap();
            world.stop();
        }
        let end = client.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert_eq!(
            end,
            Err(std::io::ErrorKind::ConnectionReset),
            "drained: {drained}"
        );
    }
}
