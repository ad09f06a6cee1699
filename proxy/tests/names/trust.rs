//! Clients under terminate that do not trust the authority, and the names and processes whose sessions pass through instead.

use std::io::{Read, Write};
use std::time::Duration;

use agent_fips_proxy::relay::HttpsHandling;
use agent_fips_proxy::relay::network::NetworkId;
use agent_fips_proxy::relay::outcome::{ConnectionRecord, Outcome, Process, Said, TlsClient};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::{TLS12, TLS13};

use crate::authority::{Authority, goodbye, session};
use crate::harness::Client;
use crate::hello::hello;
use crate::peers::{NAME, Server, Versions, hello_of};
use crate::world::{Case, REPLY, World};

const ONLY13: Versions = &[&TLS13];
const ONLY12: Versions = &[&TLS12];

/// `intercept.https_passthrough_names`, the name that is asked for, by whom, and whether its session passes.
const EXCEPTIONS: &[(&str, &str, &str, bool)] = &[
    ("config.ddog-gov.com", "config.ddog-gov.com", "agent", true),
    ("config.ddog-gov.com", "CONFIG.ddog-gov.com.", "agent", true),
    ("config.ddog-gov.com", "config.mrf.ddog-gov.com", "agent", false),
    ("config.ddog-gov.com", NAME, "agent", false),
    (
        "*-app.agent.ddog-gov.com",
        "7-81-0-app.agent.ddog-gov.com",
        "agent",
        true,
    ),
    (
        "*-app.agent.ddog-gov.com",
        "7-81-0-flare.agent.ddog-gov.com",
        "agent",
        false,
    ),
    (
        "*.agent.ddog-gov.com",
        "trace.agent.mrf.ddog-gov.com",
        "agent",
        false,
    ),
    ("process:node", NAME, "node", true),
    ("process:node", NAME, "nodes", false),
    ("process:node", NAME, "", false),
];

fn case(line: &'static str, asked: &str, decision: &'static str, outcome: Outcome) -> Case {
    Case {
        line,
        asked: asked.to_owned(),
        decision,
        outcome,
        request: None,
    }
}

fn distrust() -> Case {
    case(
        "tls-distrust",
        "a client with roots of its own",
        "terminate",
        Outcome::ClientDistrust,
    )
}

fn passed(exception: &str) -> Case {
    case("tls-exception", exception, "passthrough", Outcome::Ok)
}

pub fn cases() -> Vec<Case> {
    let passing = EXCEPTIONS.iter().filter(|(.., passes)| *passes);
    passing
        .map(|(exception, ..)| passed(exception))
        .chain([distrust()])
        .collect()
}

fn process(name: &str) -> Option<Process> {
    (!name.is_empty()).then(|| Process {
        pid: 4711,
        name: Some(name.to_owned()),
    })
}

fn world(https: HttpsHandling, exceptions: &[&str], from: &str) -> World {
    World::with(https, |setup| {
        setup.config.intercept.https_passthrough_names =
            exceptions.iter().map(|text| text.parse().unwrap()).collect();
        setup.config.limits.header_timeout = Duration::from_millis(500);
        setup.process = process(from);
    })
}

#[test]
fn names_patterns_and_processes_pass_under_every_policy() {
    let authority = Authority::new();
    for (exception, name, from, passes) in EXCEPTIONS {
        let bytes = hello(Some(name.as_bytes()));
        for (https, otherwise) in [
            (authority.terminate(), "terminate"),
            (HttpsHandling::Passthrough, "passthrough"),
            (HttpsHandling::Refuse, "refuse"),
        ] {
            let world = world(https, &[exception, "profile.example.org"], from);
            let (said, seen) = world.row(|proxy| {
                let mut client = Client::connect(proxy.intercept);
                client.send(&bytes);
                let mut said = [0; 7];
                client.stream.read_exact(&mut said).unwrap();
                said
            });
            let expected = if *passes { "passthrough" } else { otherwise };
            assert_eq!(seen.connection.decision, expected, "{exception} {name} {from}");
            assert_eq!(seen.connection.process, process(from));
            let case = passed(exception);
            if expected == "passthrough" {
                assert_eq!(said, REPLY);
                seen.is_counted(&case);
                seen.went_untouched(&bytes, &case);
            } else {
                seen.reached_nobody(&case);
            }
        }
    }
}

/// What is known of the only connection, which reached nobody.
fn record(world: &World) -> ConnectionRecord {
    let record = world.proxy.connections(1).remove(0);
    assert_eq!(record.decision, "terminate");
    assert_eq!(record.name.as_deref(), Some(NAME));
    assert_eq!((world.intake.fake.taken(), world.original.fake.taken()), (0, 0));
    record
}

fn distrusting(world: &World) -> Vec<(TlsClient, Said)> {
    world.proxy.records.distrusting.lock().unwrap().clone()
}

fn asker() -> TlsClient {
    TlsClient {
        name: NAME.to_owned(),
        process: process("agent"),
        network: NetworkId::HOST,
    }
}

fn reasons(world: &World) -> Vec<&'static str> {
    world.proxy.records.failures.lock().unwrap().clone()
}

#[test]
fn a_client_that_says_it_does_not_trust_us_is_named() {
    let (authority, other) = (
        Authority::new(),
        Server::start(default_provider(), ONLY13, usize::MAX),
    );
    for versions in [ONLY13, ONLY12] {
        let world = world(authority.terminate(), &[], "agent");
        let config = other.client(default_provider(), versions);
        let mut session = session(world.proxy.intercept, config, NAME);
        let error = session.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
        assert!(error.to_string().contains("invalid peer certificate"), "{error}");
        drop(session);
        let record = record(&world);
        assert_eq!(record.outcome, distrust().outcome);
        let error = record.error.unwrap();
        assert!(
            error.contains("intercept.https_passthrough_names") && error.contains("ca install"),
            "{error}"
        );
        assert_eq!(
            distrusting(&world),
            [(asker(), Said::Alert("unknown_ca".to_owned()))]
        );
        assert_eq!(reasons(&world), ["untrusted"]);
        assert_eq!((record.tls, record.requests), (None, 0));
    }
}

#[test]
fn a_client_that_closes_when_it_sees_the_certificate_is_told_as_such() {
    let authority = Authority::new();
    let world = world(authority.terminate(), &[], "agent");
    let mut client = Client::connect(world.proxy.intercept);
    client.send(hello_of(authority.client("h2")));
    client.stream.read_exact(&mut [0; 100]).unwrap();
    drop(client);
    assert_eq!(record(&world).outcome, Outcome::ClientAborted);
    assert_eq!(distrusting(&world), [(asker(), Said::Nothing)]);
    assert_eq!(reasons(&world), ["closed"]);
}

/// Some clients look at the certificate only then.
#[test]
fn a_client_that_closes_after_the_handshake_without_a_request_is_told_as_such() {
    let authority = Authority::new();
    for (protocol, asks) in [("http/1.1", false), ("h2", false), ("http/1.1", true)] {
        let world = world(authority.terminate(), &[], "agent");
        let mut session = session(world.proxy.intercept, authority.client(protocol), NAME);
        session.conn.complete_io(&mut session.sock).unwrap();
        if asks {
            // Refused, and a request all the same: it took the certificate.
            session
                .write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
                .unwrap();
            session.read_exact(&mut [0; 12]).unwrap();
        }
        goodbye(session);
        let record = record(&world);
        assert!(record.tls.is_some());
        assert_eq!(reasons(&world), Vec::<&str>::new());
        let trusting = world.proxy.records.trusting.lock().unwrap().clone();
        if asks {
            assert_eq!((distrusting(&world), trusting), (Vec::new(), vec![asker()]));
        } else {
            assert_eq!(distrusting(&world), [(asker(), Said::Nothing)], "{protocol}");
            assert_eq!(trusting, []);
        }
    }
}

/// Neither is a sign of distrust.
#[test]
fn a_client_that_is_slow_or_speaks_no_tls_is_not_called_distrustful() {
    let authority = Authority::new();
    for (rest, outcome, reason) in [
        (&b""[..], Outcome::ClientTimeout, "timeout"),
        // A record that no key of the session's could have made.
        (
            &[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
            ],
            Outcome::ClientTls,
            "protocol",
        ),
    ] {
        let world = world(authority.terminate(), &[], "agent");
        let mut client = Client::connect(world.proxy.intercept);
        client.send(hello_of(authority.client("h2")));
        client.stream.read_exact(&mut [0; 100]).unwrap();
        // To the end that the proxy makes.
        client.send(rest).rest();
        drop(client);
        assert_eq!(record(&world).outcome, outcome);
        assert_eq!((distrusting(&world), reasons(&world)), (Vec::new(), vec![reason]));
    }
}

/// A client with nothing that we may agree on, and one that speaks another protocol within TLS.
#[test]
fn a_client_that_we_cannot_agree_with_is_told_why() {
    let authority = Authority::new();
    let only_x25519 = {
        let mut config = authority.client("http/1.1");
        let mut provider = default_provider();
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
        let protocols = std::mem::take(&mut config.alpn_protocols);
        let roots = rustls::RootCertStore::empty();
        let mut config = crate::authority::client(roots, &[], provider, ONLY13);
        config.alpn_protocols = protocols;
        config
    };
    // The second one's alert comes under the keys of the handshake.
    for (config, reason, first) in [
        (only_x25519, "no_common_suite", 21),
        (authority.client("dd-rc-v1"), "no_common_protocol", 22),
    ] {
        let world = world(authority.terminate(), &[], "agent");
        let mut client = Client::connect(world.proxy.intercept);
        let said = client.send(hello_of(config)).rest();
        assert_eq!(said.first(), Some(&first), "{reason}: {said:?}");
        drop(client);
        assert_eq!(record(&world).outcome, Outcome::ClientTls);
        assert_eq!((distrusting(&world), reasons(&world)), (Vec::new(), vec![reason]));
    }
}
