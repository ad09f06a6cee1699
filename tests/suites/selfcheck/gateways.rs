//! What stands between a site and the intake: it must see what it is there to see.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use harness::agent::curl;
use harness::ca::{Authority, Fault};
use harness::forward::{Forward, Rules};
use harness::intake::{Intake, Options, Peer};
use harness::world::{API_KEY, INTAKE4, VERSIONED, World};
use harness::{check, check_eq};

/// Every request that a strict proxy would stumble over is a fault, and what is no CONNECT is kept.
pub fn outbound_proxy_finds_faults() -> Result<()> {
    let world = World::new()?;
    let address = SocketAddr::new([10, 30, 0, 1].into(), 3128);
    world.net.ip(&format!("address add {}/32 dev lo", address.ip()))?;
    let forward = Forward::start(&world.net, address, SocketAddr::new(INTAKE4, 443), None)?;
    let say = |text: &str| -> Result<String> {
        let text = text.to_owned();
        world.host.within(move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(text.as_bytes())?;
            let mut answer = vec![0; 64];
            let length = stream.read(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        })
    };
    let good = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nUser-Agent: x\r\n\r\n";
    check!(say(good)?.starts_with("HTTP/1.1 200 "), "a good request");
    check_eq!(
        forward.take()[0].faults,
        Vec::<String>::new(),
        "faults of a good request"
    );
    for (bad, fault) in [
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n",
            "Host",
        ),
        ("CONNECT a.example:443 HTTP/1.1\r\n\r\n", "Host"),
        ("CONNECT a.example HTTP/1.1\r\nHost: a.example\r\n\r\n", "no port"),
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nDD-API-KEY: x\r\n\r\n",
            "DD-API-KEY",
        ),
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nContent-Length: 0\r\n\r\n",
            "Content-Length",
        ),
    ] {
        say(bad)?;
        let faults = forward.take().remove(0).faults;
        check!(
            faults.iter().any(|found| found.contains(fault)),
            "{fault} was not found in {bad}: {faults:?}"
        );
    }
    check_eq!(
        say("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")?,
        "",
        "no CONNECT"
    );
    check!(
        forward.strange()[0].starts_with(b"GET "),
        "what is no CONNECT is kept"
    );

    forward.set_rules(Rules {
        credentials: Some("Aladdin:open sesame".to_owned()),
        refuse: None,
    });
    check!(say(good)?.starts_with("HTTP/1.1 407 "), "without credentials");
    let right = "QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
    for (token, status) in [(right, "200"), ("QWxhZGRpbjpvcGVuIHNlc2FtZQ", "407")] {
        let request = good.replace("User-Agent: x", &format!("Proxy-Authorization: Basic {token}"));
        check!(
            say(&request)?.starts_with(&format!("HTTP/1.1 {status} ")),
            "{token}"
        );
    }
    Ok(())
}

/// curl with and without a certificate.
pub fn gateway_asks_who_comes() -> Result<()> {
    let world = World::new()?;
    let clients = Authority::new()?;
    let options = Options {
        addresses: vec![INTAKE4],
        port: 8443,
        leaf: world.authority.leaf(&[VERSIONED.to_owned()], Fault::None)?,
        peer: Peer::Modern,
        http2: false,
        api_key: None,
    };
    let gateway = Intake::gateway(Some(&world.net), options, Some(clients.der().clone()))?;
    let folder = world.host.folder();
    let ca = folder.join("ca.pem").display().to_string();
    let (url, key) = (
        format!("https://{VERSIONED}:8443/"),
        format!("DD-API-KEY: {API_KEY}"),
    );
    let ask = |more: &[&str]| {
        let mut words = vec!["-4", "--cacert", &ca, "-H", &key];
        words.extend_from_slice(more);
        words.push(&url);
        curl(&world.host, None, &words)
    };
    check_eq!(
        (ask(&[])?.status, gateway.count()),
        (0, 0),
        "without a certificate"
    );
    for (authority, status) in [(&clients, 202), (&Authority::new()?, 0)] {
        let (certificate, key) = authority.client()?;
        let pem = folder.join("us.pem");
        std::fs::write(&pem, certificate + &key)?;
        let answer = ask(&["--cert", &pem.display().to_string()])?;
        check_eq!(answer.status, status, "{answer:?}");
    }
    let seen = gateway.take();
    check!(
        seen.len() == 1 && seen[0].session.client_certificate,
        "the one with a certificate: {seen:?}"
    );
    Ok(())
}
