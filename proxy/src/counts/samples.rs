//! Inputs as Agents and intakes send them, and what requests need to be recorded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::catalog::{Catalog, Product, Site};
use crate::observe::metrics::Metrics;
use crate::supervise::protocol::MasterStatus;
use crate::tls::Negotiated;
use crate::tls::module::{Environment, ModuleStatus, SelfTest};

/// A batch of metrics on the explicit port: headers of the Agent's forwarder, in the order of Go's client.
pub(crate) const METRICS: &[u8] = b"POST /api/v2/series HTTP/1.1\r\n\
    Host: localhost:9804\r\n\
    User-Agent: datadog-agent/7.81.0\r\n\
    Content-Length: 1024\r\n\
    Content-Encoding: zstd\r\n\
    Content-Type: application/x-protobuf\r\n\
    Dd-Agent-Version: 7.81.0\r\n\
    Dd-Api-Key: 0123456789abcdef0123456789abcdef\r\n\
    X-Dd-Agent-Attempts: 1\r\n\
    Accept-Encoding: gzip\r\n\
    \r\n";

/// Traces on their way to the intake itself, as an intercepted connection begins.
pub(crate) const TRACES: &[u8] = b"POST /api/v0.2/traces HTTP/1.1\r\n\
    Host: trace.agent.ddog-gov.com\r\n\
    User-Agent: Datadog Trace Agent/7.81.0/abc1234\r\n\
    Content-Length: 65536\r\n\
    Content-Encoding: gzip\r\n\
    Content-Type: application/x-protobuf\r\n\
    Dd-Api-Key: 0123456789abcdef0123456789abcdef\r\n\
    X-Datadog-Reported-Languages: go|java|python\r\n\
    Accept-Encoding: gzip\r\n\
    \r\n";

/// A flare: a body whose length nobody knows before.
pub(crate) const FLARE: &[u8] = b"POST /support/flare HTTP/1.1\r\n\
    Host: localhost:9804\r\n\
    User-Agent: datadog-agent/7.81.0\r\n\
    Transfer-Encoding: chunked\r\n\
    Content-Type: multipart/form-data; boundary=7d1f3c\r\n\
    Dd-Api-Key: 0123456789abcdef0123456789abcdef\r\n\
    Accept-Encoding: gzip\r\n\
    \r\n";

/// An intake's answer, with such headers as servers on the internet add.
pub(crate) const ANSWER: &[u8] = b"HTTP/1.1 202 Accepted\r\n\
    content-type: application/json\r\n\
    content-length: 13\r\n\
    date: Sun, 22 Nov 2026 17:15:34 GMT\r\n\
    strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n\
    x-content-type-options: nosniff\r\n\
    cross-origin-resource-policy: cross-origin\r\n\
    accept-encoding: deflate,gzip,zstd\r\n\
    \r\n";

/// The recorded handshake of this name (`tls/observe/tests/recorded.txt`): the ClientHello, and what the server sent in the clear.
pub(crate) fn handshake(name: &str) -> Result<[Vec<u8>; 2], String> {
    let of = |side: &str| {
        include_str!("../tls/observe/tests/recorded.txt")
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(side))
            .ok_or_else(|| format!("no recorded handshake {name}{side}"))
            .and_then(bytes)
    };
    Ok([of(" client ")?, of(" server ")?])
}

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2).unwrap_or_default(), 16))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// A body of `size` bytes in chunks of 4 KiB, the buffer of Go's client; with its end.
pub(crate) fn chunked(size: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in vec![b'x'; size].chunks(4096) {
        body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

/// The catalogue of a site.
pub(crate) fn catalog() -> Result<Catalog, String> {
    Ok(Catalog::new(&Site::from_str("ddog-gov.com")?))
}

/// The product whose port [`METRICS`] came to.
pub(crate) const PRODUCT: Product = Product::Metrics;

/// That port.
pub(crate) fn explicit() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9804))
}

/// Who sent it.
pub(crate) fn client() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 40404))
}

/// Where [`TRACES`] meant to go, and where a request is sent to.
pub(crate) fn intake() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 10], 80))
}

/// What TLS agreed on with the intake.
pub(crate) fn negotiated() -> Negotiated {
    Negotiated {
        version: "TLSv1.3".to_owned(),
        suite: "TLS_AES_256_GCM_SHA384".to_owned(),
        group: Some("SecP256r1MLKEM768".to_owned()),
        peer: "metrics.agent.ddog-gov.com".to_owned(),
        ..Negotiated::default()
    }
}

/// The figures of a worker with two data threads. What they say of the module matters to nobody here.
pub(crate) fn metrics(access: bool) -> Metrics {
    let module = ModuleStatus {
        module: String::new(),
        version: String::new(),
        linkage: String::new(),
        certificate: None,
        self_test: SelfTest {
            integrity: Duration::ZERO,
            known_answers: Duration::ZERO,
        },
        entropy: String::new(),
        kernel_fips_enabled: false,
        environment: Environment {
            os: String::new(),
            cpu: String::new(),
            tested: false,
        },
        crates: BTreeMap::new(),
        offer: None,
    };
    Metrics::new(module, MasterStatus::default(), 2, access)
}
