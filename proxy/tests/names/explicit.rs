//! Requests on a port of the Agent's `fips.*` range: the port is the product, the Host may only agree.

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::relay::HttpsHandling;
use agent_fips_proxy::relay::outcome::Outcome;

use crate::harness::Client;
use crate::world::{Case, Want, World};

use Want::{Answered, Refused, Served};

const OWN: Want = Served("metrics.agent.ddog-gov.com", Product::Metrics);
const MISDIRECTED: Want = Answered(
    421,
    Outcome::Misdirected,
    "Host is not an intake name that this connection serves",
);
const ADDRESS: Want = Answered(400, Outcome::BadRequest, "Host is an IP address");
const MALFORMED: Want = Answered(400, Outcome::BadRequest, "malformed Host");
const PORT: Want = Answered(400, Outcome::BadRequest, "Host names a foreign port");
const FOREIGN: Want = Answered(400, Outcome::BadRequest, "absolute-form for a foreign host");

/// By Host, on the metrics port; `{port}` is that port.
const HOSTS: &[(&str, &str, Want)] = &[
    ("explicit-local", "localhost:{port}", OWN),
    ("explicit-local", "LOCALHOST", OWN),
    ("explicit-local", "localhost.:1", OWN),
    ("explicit-local", "127.0.0.1", OWN),
    ("explicit-local", "127.8.8.8:9", OWN),
    ("explicit-local", "[::1]:9804", OWN),
    ("explicit-local", "[::ffff:127.0.0.1]", OWN),
    ("explicit-own", "metrics.agent.ddog-gov.com", OWN),
    (
        "explicit-own",
        "App.ddog-gov.com.:443",
        Served("app.ddog-gov.com", Product::Metrics),
    ),
    (
        "explicit-own",
        "7-81-0-app.agent.ddog-gov.com:{port}",
        Served("7-81-0-app.agent.ddog-gov.com", Product::Metrics),
    ),
    ("explicit-other", "trace.agent.ddog-gov.com", MISDIRECTED),
    ("explicit-other", "api.ddog-gov.com", MISDIRECTED),
    ("explicit-other", "example.org", MISDIRECTED),
    ("explicit-other", "evilddog-gov.com", MISDIRECTED),
    (
        "explicit-other",
        "metrics.agent.ddog-gov.com.evil.org",
        MISDIRECTED,
    ),
    ("explicit-other", "metrics.agent.datadoghq.com", MISDIRECTED),
    ("explicit-other", "localhost.evil.org", MISDIRECTED),
    ("explicit-address", "203.0.113.9", ADDRESS),
    ("explicit-address", "169.254.169.254", ADDRESS),
    ("explicit-address", "[2001:db8::1]:443", ADDRESS),
    ("explicit-address", "0.0.0.0", ADDRESS),
    ("explicit-malformed", "127.1", MALFORMED),
    ("explicit-malformed", "0x7f000001", MALFORMED),
    ("explicit-malformed", "2130706433", MALFORMED),
    ("explicit-malformed", "localhost:", MALFORMED),
    ("explicit-malformed", "localhost:65536", MALFORMED),
    ("explicit-malformed", "metrics.agent.ddog-gov.com..", MALFORMED),
    (
        "explicit-malformed",
        "metrics.agent.ddog-gov.com, evil.org",
        MALFORMED,
    ),
    ("explicit-malformed", "lоcalhost", MALFORMED),
    (
        "explicit-malformed",
        "key@localhost",
        Answered(400, Outcome::BadRequest, "Host carries user-info"),
    ),
    ("explicit-port", "metrics.agent.ddog-gov.com:8080", PORT),
    ("explicit-port", "app.ddog-gov.com:0", PORT),
];

const HEADS: &[(&str, &str, &str, Want)] = &[
    (
        "explicit-local",
        "HTTP/1.0 without Host",
        "GET /x HTTP/1.0\r\n\r\n",
        OWN,
    ),
    (
        "explicit-own",
        "GET http://app.ddog-gov.com/",
        "GET http://app.ddog-gov.com/ HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        Served("app.ddog-gov.com", Product::Metrics),
    ),
    (
        "explicit-path",
        "/api/v1/validate",
        "GET /api/v1/validate HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Served("api.ddog-gov.com", Product::Api),
    ),
    (
        "explicit-path",
        "/support/flare",
        "GET /support/flare HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        Served("flare.ddog-gov.com", Product::Flare),
    ),
    (
        "explicit-absolute",
        "GET http://evil.org/",
        "GET http://evil.org/ HTTP/1.1\r\nHost: evil.org\r\n\r\n",
        FOREIGN,
    ),
    (
        "explicit-absolute",
        "GET http://evil.org/ and Host: localhost",
        "GET http://evil.org/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        Answered(
            400,
            Outcome::BadRequest,
            "the request target and Host name different hosts",
        ),
    ),
    (
        "explicit-absolute",
        "GET http://169.254.169.254/",
        "GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        ADDRESS,
    ),
    (
        "explicit-head",
        "CONNECT evil.org:443",
        "CONNECT evil.org:443 HTTP/1.1\r\nHost: evil.org:443\r\n\r\n",
        Refused("CONNECT is not served"),
    ),
    (
        "explicit-head",
        "two Hosts",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.org\r\n\r\n",
        Refused("more than one Host"),
    ),
    (
        "explicit-head",
        "no Host",
        "GET / HTTP/1.1\r\n\r\n",
        Refused("no Host"),
    ),
];

pub fn cases() -> Vec<Case> {
    HOSTS
        .iter()
        .map(|(line, host, want)| want.case(line, host))
        .chain(HEADS.iter().map(|(line, asked, _, want)| want.case(line, asked)))
        .collect()
}

#[test]
fn names_on_an_explicit_port() {
    // A versioned name stands in no list of names.
    let world = World::with(HttpsHandling::Passthrough, |setup| {
        setup.hosts.push_str("127.0.0.1 7-81-0-app.agent.ddog-gov.com\n");
    });
    let port = world.proxy.explicit.port().to_string();
    let hosts = HOSTS.iter().map(|(line, host, want)| {
        let head = format!(
            "GET /api/v2/series HTTP/1.1\r\nHost: {}\r\nDD-API-KEY: k\r\n\r\n",
            host.replace("{port}", &port)
        );
        (want.case(line, host), head, *want)
    });
    let heads = HEADS
        .iter()
        .map(|(line, asked, head, want)| (want.case(line, asked), (*head).to_owned(), *want));
    for (case, head, want) in hosts.chain(heads) {
        let (answer, seen) = world.row(|proxy| {
            let mut client = Client::connect(proxy.explicit);
            let answer = client.send(&head).response();
            if !matches!(want, Served(..)) {
                assert_eq!(client.rest(), b"", "{case:?}");
            }
            answer
        });
        seen.is_counted(&case);
        match want {
            Served(name, product) => seen.was_served(name, product, &case),
            Answered(status, outcome, reason) => {
                seen.was_answered(&answer, status, outcome, reason, &case);
            }
            Refused(reason) => seen.was_answered(&answer, 400, Outcome::BadRequest, reason, &case),
            Want::Tunnelled => unreachable!("nothing is tunnelled here"),
        }
    }
}
