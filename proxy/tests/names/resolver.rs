//! Where a name leads: a resolver that answers addresses at which no intake can be, and connections that were meant for such.

use std::io::{BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};

use agent_fips_proxy::relay::network::{NetworkId, Taken};
use agent_fips_proxy::relay::outcome::Outcome;
use agent_fips_proxy::relay::{HttpsHandling, Role};
use ipnet::IpNet;

use crate::authority::{Authority, goodbye, session};
use crate::harness::{Client, Message, Proxy, Setup, hosts, read_message};
use crate::hello::hello;
use crate::world::{Case, Fake, Want};

const NAME: &str = "trace.agent.ddog-gov.com";
/// Of an Agent's pod: its sockets are asked for one by one, so that a test sees each attempt to connect.
const POD: NetworkId = NetworkId(7);

/// What a hostile resolver answers; whether `upstream.allow_private` can allow it.
const ADDRESSES: &[(&str, bool)] = &[
    ("127.0.0.1", true),
    ("127.8.8.8", true),
    ("::1", true),
    ("169.254.169.254", true),
    ("fe80::1", true),
    ("10.0.0.1", true),
    ("172.16.0.1", true),
    ("192.168.0.1", true),
    ("100.64.0.1", true),
    ("198.18.0.1", true),
    ("0.0.0.0", false),
    ("0.1.2.3", true),
    ("224.0.0.1", false),
    ("255.255.255.255", false),
    ("::", false),
    ("ff02::1", false),
    ("::ffff:127.0.0.1", true),
    ("::ffff:10.0.0.1", true),
    ("::ffff:169.254.169.254", true),
    // NAT64 of the loopback and of the metadata service, IPv4-compatible, 6to4.
    ("64:ff9b::7f00:1", true),
    ("64:ff9b::a9fe:a9fe", true),
    ("::127.0.0.1", true),
    ("2002:7f00:1::", true),
    ("fd00::1", true),
    ("fd00:ec2::254", true),
];

fn no_address(line: &'static str, ip: &str) -> Case {
    Want::Answered(503, Outcome::NoAddress, "").case(line, ip)
}

pub fn cases() -> Vec<Case> {
    let all = ADDRESSES.iter();
    let never = ADDRESSES.iter().filter(|(_, allowed)| !allowed);
    // The kernel gives no connection of an Agent such an original destination.
    let meant = ADDRESSES.iter().filter(|(ip, _)| !["0.0.0.0", "::"].contains(ip));
    all.map(|(ip, _)| no_address("leads-private", ip))
        .chain(never.map(|(ip, _)| no_address("leads-nowhere", ip)))
        .chain(meant.map(|(ip, _)| no_address("meant-private", ip)))
        .collect()
}

fn canonical(ip: &str) -> IpAddr {
    ip.parse::<IpAddr>().unwrap().to_canonical()
}

/// Every address of this host, both families, on one port: whoever connects here at all is seen.
fn anywhere() -> Fake {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    let any: SocketAddr = "[::]:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(64).unwrap();
    let listener: TcpListener = socket.into();
    let port = listener.local_addr().unwrap().port();
    let mut fake = Fake::of(listener, |stream| {
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        while let Ok(Some(_)) = read_message(&mut reader, false) {
            writer
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
        }
    });
    fake.address = SocketAddr::new([127, 0, 0, 1].into(), port);
    fake
}

/// Nothing private is allowed; every name leads to `ip`, and intercepted connections come from a pod.
fn hostile<'a>(ip: &'a str, port: u16, original: &str) -> impl FnOnce(&mut Setup) + use<'a> {
    let original = original.parse::<IpAddr>().unwrap();
    move |setup| {
        setup.config.upstream.allow_private.clear();
        setup.config.upstream.port = port;
        setup.hosts = hosts(&[ip.parse().unwrap()]);
        setup.original = SocketAddr::new(original, 443);
        setup.role = Role::Intercept {
            network: POD,
            taken: Taken::Cgroup,
        };
    }
}

fn head(host: &str) -> String {
    format!("GET /api/v2/series HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// The answer to a request, in the clear or within TLS.
fn ask(proxy: &Proxy, tls: Option<&Authority>) -> Message {
    let Some(authority) = tls else {
        return Client::connect(proxy.intercept).send(head(NAME)).response();
    };
    let mut session = session(proxy.intercept, authority.client("http/1.1"), NAME);
    session.write_all(head(NAME).as_bytes()).unwrap();
    let answer = read_message(&mut BufReader::new(&mut session), false)
        .unwrap()
        .unwrap();
    goodbye(session);
    answer
}

/// 503, with the address and the key that would allow it.
fn names_the_key(proxy: &Proxy, answer: &Message, ip: &str, case: &Case) {
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(
        (answer.status(), answer.header("x-agent-fips-proxy-error")),
        (503, Some("no_address")),
        "{case:?}: {body}"
    );
    assert!(
        body.contains(&format!(" {}, ", canonical(ip))) && body.contains("upstream.allow_private"),
        "{case:?}: {body}"
    );
    let record = proxy.requests(1).remove(0);
    assert_eq!(
        (record.outcome, record.upstream_addr, record.error.as_deref()),
        (Outcome::NoAddress, None, Some(body.trim_end())),
        "{case:?}"
    );
    let connection = proxy.connections(1).remove(0);
    assert_eq!(
        (connection.decision, connection.outcome),
        (case.decision, case.outcome),
        "{case:?}"
    );
}

#[test]
fn a_name_that_leads_to_a_private_address_causes_no_connection() {
    let everywhere = anywhere();
    let authority = Authority::new();
    for (ip, _) in ADDRESSES {
        let case = no_address("leads-private", ip);
        // An explicit port.
        let proxy = Proxy::with(
            everywhere.address,
            hostile(ip, everywhere.address.port(), "203.0.113.1"),
        );
        let answer = Client::connect(proxy.explicit)
            .send("GET /api/v2/series HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .response();
        names_the_key(&proxy, &answer, ip, &case);
        assert!(proxy.tls.names.lock().unwrap().is_empty(), "{case:?}");
        drop(proxy);

        // Intercepted, in the clear and within TLS: the original destination fails, which is the only attempt.
        for tls in [None, Some(&authority)] {
            let proxy = Proxy::with(everywhere.address, |setup| {
                hostile(ip, everywhere.address.port(), "203.0.113.1")(setup);
                setup.sockets.gone.lock().unwrap().push(POD);
                setup.https = tls.map_or(HttpsHandling::Passthrough, Authority::terminate);
            });
            let answer = ask(&proxy, tls);
            assert_eq!(answer.status(), 502, "{case:?}");
            let error = proxy.requests(1).remove(0).error.unwrap();
            assert!(error.contains("203.0.113.1"), "{case:?}: {error}");
            assert_eq!(proxy.sockets.asked(), [(POD, false)], "{case:?}");
        }
    }
    assert_eq!(everywhere.taken(), 0, "connections");
}

#[test]
fn a_connection_that_was_meant_for_a_private_address_stays_here() {
    let everywhere = anywhere();
    let authority = Authority::new();
    for case in cases().iter().filter(|case| case.line == "meant-private") {
        let ip = case.asked.as_str();
        for tls in [None, Some(&authority)] {
            let proxy = Proxy::with(everywhere.address, |setup| {
                // Its name leads to a public address, which it was not meant for.
                hostile("203.0.113.1", everywhere.address.port(), ip)(setup);
                setup.https = tls.map_or(HttpsHandling::Passthrough, Authority::terminate);
            });
            let answer = ask(&proxy, tls);
            names_the_key(&proxy, &answer, ip, case);
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(body.contains("was meant for") && body.contains(NAME), "{body}");
            assert_eq!(proxy.sockets.asked(), [], "{case:?}");
        }
    }
    assert_eq!(everywhere.taken(), 0, "connections");
}

/// What is no intake's goes where it would have gone, private or not; and so does an intake's own TLS session.
#[test]
fn what_is_left_alone_or_passed_through_goes_to_a_private_address_too() {
    let everywhere = anywhere();
    for (bytes, decision) in [
        (head("example.org").into_bytes(), "tunnel"),
        (hello(Some(b"example.org")), "tunnel"),
        (hello(Some(NAME.as_bytes())), "passthrough"),
    ] {
        let before = everywhere.taken();
        let proxy = Proxy::with(everywhere.address, |setup| {
            hostile("203.0.113.1", everywhere.address.port(), "127.0.0.1")(setup);
            setup.original = everywhere.address;
        });
        let mut client = Client::connect(proxy.intercept);
        client.send(&bytes);
        crate::harness::eventually(|| (everywhere.taken() > before).then_some(()));
        drop(client);
        assert_eq!(proxy.connections(1)[0].decision, decision);
        assert_eq!(proxy.sockets.asked(), [(POD, false)]);
    }
}

#[test]
fn allow_private_opens_what_it_names_and_no_more() {
    let everywhere = anywhere();
    for (ip, allowed) in ADDRESSES {
        let net = IpNet::from(canonical(ip));
        let open = |setup: &mut Setup| {
            hostile(ip, everywhere.address.port(), ip)(setup);
            // Only what can be reached is dialled for real.
            if !canonical(ip).is_loopback() {
                setup.sockets.gone.lock().unwrap().push(POD);
            }
            // A neighbour is not enough, the network is.
            setup.config.upstream.allow_private = vec!["10.99.0.0/16".parse().unwrap(), net];
        };
        if ["0.0.0.0", "::"].contains(ip) {
            continue;
        }
        let proxy = Proxy::with(everywhere.address, open);
        let answer = Client::connect(proxy.intercept).send(head(NAME)).response();
        let asked = proxy.sockets.asked();
        match (allowed, canonical(ip).is_loopback()) {
            (true, true) => assert_eq!(answer.status(), 200, "{ip}"),
            // It was tried, and there was no socket to try it with.
            (true, false) => assert_eq!(answer.status(), 502, "{ip}"),
            (false, _) => assert_eq!(answer.status(), 503, "{ip}"),
        }
        let ipv6 = canonical(ip).is_ipv6();
        let tried = if *allowed { vec![(POD, ipv6)] } else { Vec::new() };
        assert_eq!(asked, tried, "{ip}: {answer:?}");
    }
    // The explicit port, where a name leads to: the same three loopback addresses can be reached.
    for (ip, _) in ADDRESSES.iter().filter(|(ip, _)| canonical(ip).is_loopback()) {
        let before = everywhere.taken();
        let proxy = Proxy::with(everywhere.address, |setup| {
            hostile(ip, everywhere.address.port(), "203.0.113.1")(setup);
            setup.config.upstream.allow_private = vec![IpNet::from(canonical(ip))];
        });
        let answer = Client::connect(proxy.explicit)
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .response();
        assert_eq!(answer.status(), 200, "{ip}");
        assert_eq!(everywhere.taken(), before + 1, "{ip}");
    }
}

#[test]
fn what_is_never_an_intake_stays_refused_whatever_is_allowed() {
    let everywhere = anywhere();
    for case in cases().iter().filter(|case| case.line == "leads-nowhere") {
        let proxy = Proxy::with(everywhere.address, |setup| {
            hostile(&case.asked, everywhere.address.port(), "203.0.113.1")(setup);
            setup.config.upstream.allow_private = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        });
        let answer = Client::connect(proxy.explicit)
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .response();
        names_the_key(&proxy, &answer, &case.asked, case);
    }
    assert_eq!(everywhere.taken(), 0);
}
