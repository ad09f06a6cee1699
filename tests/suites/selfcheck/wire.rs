//! The witness on the wire: it must see what is not TLS, where it stands, and that it missed something.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};
use harness::agent::{Curl, ask};
use harness::wire::{Capture, Captured, Connection, Tap};
use harness::world::{API_KEY, ELSEWHERE, INTAKE4, INTAKES, VERSIONED, World};
use harness::{check, check_eq};

/// One request of a client on the host, straight to the intake.
fn request(world: &World, scheme: &str, family: &str) -> Result<Curl> {
    let authority = world.host.folder().join("ca.pem").display().to_string();
    let url = format!("{scheme}/wire");
    ask(&world.host, None, &[family, "--cacert", &authority, &url])
}

/// What was heard while `work` was done.
fn heard(world: &World, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
    let capture = Capture::start(&world.host, "eth0", API_KEY)?;
    work()?;
    let captured = capture.finish()?;
    check_eq!(captured.dropped, 0, "dropped");
    Ok(captured)
}

/// The only connection, and what is wrong with it.
fn only(captured: &Captured) -> Result<(&Connection, String)> {
    let [connection] = captured.connections.as_slice() else {
        anyhow::bail!("not one connection: {:?}", captured.connections);
    };
    Ok((connection, connection.violation().unwrap_or_default()))
}

/// Sends these pieces, each in a segment of its own.
fn send(world: &World, to: SocketAddr, pieces: &[&[u8]]) -> Result<()> {
    world.host.within(|| {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        pieces
            .iter()
            .try_for_each(|piece| stream.write_all(piece))
            .context("cannot send")
    })
}

/// TLS is no violation, each family counts, what answers counts as packets only.
pub fn tls_is_left_alone() -> Result<()> {
    let world = World::new()?;
    let captured = heard(&world, || {
        for family in ["-4", "-6"] {
            let answer = request(&world, &format!("https://{VERSIONED}"), family)?;
            check_eq!(answer.status, 202, "{}", answer.error);
        }
        Ok(())
    })?;
    check_eq!(captured.connections.len(), 2, "connections");
    for (connection, address) in captured.connections.iter().zip(INTAKES) {
        check_eq!(connection.server, SocketAddr::new(address, 443), "the server");
        check!(connection.established && connection.bytes > 500, "{connection:?}");
        check_eq!(connection.violation(), None, "a violation");
    }
    check!(captured.loose.is_empty(), "{:?}", captured.loose);
    check!(captured.packets > 20, "{} packets", captured.packets);
    check!(
        world
            .intake
            .sessions()
            .iter()
            .all(|session| !session.version.is_empty())
            && world.intake.sessions().len() == 2,
        "{:?}",
        world.intake.sessions()
    );
    Ok(())
}

/// A direct connection in the clear: to the port for it, and to that of TLS.
pub fn a_plain_request_is_found() -> Result<()> {
    let world = World::new()?;
    for (port, family) in [(80, "-4"), (80, "-6"), (443, "-4")] {
        let captured = heard(&world, || {
            request(&world, &format!("http://{VERSIONED}:{port}"), family).map(drop)
        })?;
        let (connection, why) = only(&captured)?;
        check_eq!(connection.server.port(), port, "the port");
        check!(
            connection.carries_the_secret() && why.ends_with("it carries the secret"),
            "{why}"
        );
    }
    Ok(())
}

/// A few bytes are enough: at the beginning, behind good records, in pieces; without a connection; with nobody there.
pub fn every_byte_counts() -> Result<()> {
    let world = World::new()?;
    // Takes everything and says nothing: an intake would hang up half way.
    let patient = SocketAddr::new(ELSEWHERE, 443);
    let _listener = world.net.within(|| Ok(TcpListener::bind(patient)?))?;
    let hello: &[u8] = b"\x16\x03\x01\x00\x05hello";
    let (front, back) = API_KEY.as_bytes().split_at(7);
    for (pieces, fault) in [
        (&[b"G".as_slice()][..], "byte 0 of it is no TLS"),
        // Application data before any handshake.
        (&[b"\x17\x03\x03\x00\x05hello"], "byte 0 of it is no TLS"),
        (&[b"\x16\x02"], "byte 1 of it is no TLS"),
        (&[hello, hello, b"GET "], "byte 20 of it is no TLS"),
        // Within a record, so that only the secret tells; in two segments.
        (&[b"\x16\x03\x01\x00\x30", front, back], "it carries the secret"),
        (
            &[hello, b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00\x10half"],
            "",
        ),
    ] {
        let captured = heard(&world, || send(&world, patient, pieces))?;
        let (connection, why) = only(&captured)?;
        let sent: usize = pieces.iter().map(|piece| piece.len()).sum();
        check_eq!(connection.bytes, sent as u64, "bytes of {pieces:?}");
        check!(
            why.contains(fault) && why.is_empty() == fault.is_empty(),
            "{pieces:?}: {why}"
        );
    }

    let captured = heard(&world, || {
        world.host.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(API_KEY.as_bytes(), (ELSEWHERE, 8125))?;
            Ok(())
        })
    })?;
    check!(!captured.loose.is_empty(), "a datagram with the secret");

    // Refused: it left all the same.
    let captured = heard(&world, || {
        check!(
            send(&world, SocketAddr::new(INTAKE4, 81), &[]).is_err(),
            "refused"
        );
        Ok(())
    })?;
    let (connection, why) = only(&captured)?;
    check!(
        !connection.established && connection.bytes == 0 && why.is_empty(),
        "{connection:?}"
    );
    Ok(())
}

/// What was open before cannot be judged, and is not passed over.
pub fn what_was_open_before_is_told() -> Result<()> {
    let world = World::new()?;
    let mut stream = world
        .host
        .within(|| Ok(TcpStream::connect(SocketAddr::new(INTAKE4, 443))?))?;
    let captured = heard(&world, || Ok(stream.write_all(b"\x16\x03\x01\x00\x05hello")?))?;
    let (_, why) = only(&captured)?;
    check!(why.ends_with("it was open before the capture"), "{why}");
    Ok(())
}

/// A socket that nobody reads has no room for everything: that is counted.
pub fn packets_without_room_are_counted() -> Result<()> {
    const SENT: u64 = 1_000;
    let world = World::new()?;
    let tap = Tap::open(&world.host, "eth0", 8_192)?;
    world.host.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..SENT {
            socket.send_to(&[0; 512], (ELSEWHERE, 8125))?;
        }
        Ok(())
    })?;
    let captured = Capture::watch(tap, API_KEY)?.finish()?;
    check!(
        captured.dropped > 0 && captured.packets + captured.dropped >= SENT,
        "{} packets, {} dropped",
        captured.packets,
        captured.dropped
    );
    Ok(())
}
