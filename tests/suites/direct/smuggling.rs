//! Malformed and ambiguous requests, raw: each is refused with the status that design section 6 names, the connection is
//! closed, and not a byte reaches the intake. Sources: RFC 9112 sections 2.2, 3.2, 5, 6 and 11.2; the request smuggling
//! classes CL.TE, TE.CL, TE.TE and CL.0 of the public literature.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::proxy::Launch;
use harness::world::World;
use harness::{check, check_eq};

/// What must come back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// 400 and close.
    Bad,
    /// 421 and close: well-formed, but for somebody else.
    Misdirected,
    /// Either: both refuse.
    Refused,
}

use Verdict::{Bad, Misdirected, Refused};

/// A second request that must never be seen, wherever it hides.
const TAIL: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost:9804\r\n\r\n";
const HEAD: &str = "POST /corpus HTTP/1.1\r\nHost: localhost:9804\r\n";

/// Name, bytes, verdict. `{H}` stands for [`HEAD`], `{T}` for [`TAIL`].
const CORPUS: &[(&str, &str, Verdict)] = &[
    (
        "cl_te",
        "{H}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_cl",
        "{H}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n{T}0\r\n\r\n",
        Bad,
    ),
    (
        "te_twice",
        "{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_list",
        "{H}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_identity",
        "{H}Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_xchunked",
        "{H}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_quoted",
        "{H}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_vertical_tab",
        "{H}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_space_before_colon",
        "{H}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_folded",
        "{H}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "te_in_http_1_0",
        "POST /corpus HTTP/1.0\r\nHost: localhost:9804\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{T}",
        Bad,
    ),
    (
        "cl_twice_differing",
        "{H}Content-Length: 0\r\nContent-Length: 56\r\n\r\n{T}",
        Bad,
    ),
    (
        "cl_twice_equal",
        "{H}Content-Length: 0\r\nContent-Length: 0\r\n\r\n{T}",
        Bad,
    ),
    ("cl_list", "{H}Content-Length: 0, 0\r\n\r\n{T}", Bad),
    ("cl_plus", "{H}Content-Length: +0\r\n\r\n{T}", Bad),
    ("cl_minus", "{H}Content-Length: -1\r\n\r\n{T}", Bad),
    ("cl_hex", "{H}Content-Length: 0x0\r\n\r\n{T}", Bad),
    (
        "cl_overflow",
        "{H}Content-Length: 18446744073709551616\r\n\r\n{T}",
        Bad,
    ),
    ("cl_empty", "{H}Content-Length: \r\n\r\n{T}", Bad),
    (
        "host_twice_differing",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nHost: evil.example.net\r\n\r\n",
        Bad,
    ),
    (
        "host_twice_equal",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nHost: localhost:9804\r\n\r\n",
        Bad,
    ),
    ("host_missing", "GET / HTTP/1.1\r\nAccept: */*\r\n\r\n", Bad),
    (
        "host_list",
        "GET / HTTP/1.1\r\nHost: localhost:9804, evil.example.net\r\n\r\n",
        Refused,
    ),
    (
        "host_user_info",
        "GET / HTTP/1.1\r\nHost: localhost@evil.example.net\r\n\r\n",
        Refused,
    ),
    (
        "host_path",
        "GET / HTTP/1.1\r\nHost: localhost:9804/evil\r\n\r\n",
        Refused,
    ),
    (
        "host_foreign",
        "GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
        Misdirected,
    ),
    (
        "host_other_product",
        "GET / HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n",
        Misdirected,
    ),
    (
        "host_ipv4_literal",
        "GET / HTTP/1.1\r\nHost: 203.0.113.99\r\n\r\n",
        Refused,
    ),
    (
        "host_metadata_address",
        "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        Refused,
    ),
    (
        "host_ipv6_literal",
        "GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n",
        Refused,
    ),
    (
        "host_look_alike",
        "GET / HTTP/1.1\r\nHost: metrics.agent.ddog-gov.com.evil.example.net\r\n\r\n",
        Misdirected,
    ),
    (
        "absolute_foreign",
        "GET http://evil.example.net/ HTTP/1.1\r\nHost: localhost:9804\r\n\r\n",
        Refused,
    ),
    (
        "absolute_user_info",
        "GET http://a@localhost:9804/ HTTP/1.1\r\nHost: localhost:9804\r\n\r\n",
        Refused,
    ),
    (
        "absolute_file",
        "GET file:///etc/passwd HTTP/1.1\r\nHost: localhost:9804\r\n\r\n",
        Refused,
    ),
    (
        "asterisk",
        "OPTIONS * HTTP/1.1\r\nHost: localhost:9804\r\n\r\n",
        Bad,
    ),
    (
        "connect",
        "CONNECT evil.example.net:443 HTTP/1.1\r\nHost: evil.example.net:443\r\n\r\n",
        Bad,
    ),
    (
        "upgrade",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        Bad,
    ),
    (
        "upgrade_h2c",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        Bad,
    ),
    (
        "obs_fold",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nX-A: b\r\n c\r\n\r\n",
        Bad,
    ),
    (
        "fold_before_first",
        "GET / HTTP/1.1\r\n Host: localhost:9804\r\n\r\n",
        Bad,
    ),
    ("bare_lf_lines", "GET / HTTP/1.1\nHost: localhost:9804\n\n", Bad),
    (
        "bare_lf_in_value",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nX-A: b\nTransfer-Encoding: chunked\r\n\r\n",
        Bad,
    ),
    (
        "bare_cr_in_value",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nX-A: b\rX-B: c\r\n\r\n",
        Bad,
    ),
    (
        "nul_in_value",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nX-A: b\0c\r\n\r\n",
        Bad,
    ),
    (
        "no_colon",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nX-A\r\n\r\n",
        Bad,
    ),
    (
        "empty_name",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\n: x\r\n\r\n",
        Bad,
    ),
    (
        "name_with_space",
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nX A: x\r\n\r\n",
        Bad,
    ),
    ("version_2", "GET / HTTP/2.0\r\nHost: localhost:9804\r\n\r\n", Bad),
    (
        "version_lower_case",
        "GET / http/1.1\r\nHost: localhost:9804\r\n\r\n",
        Bad,
    ),
    ("version_missing", "GET /\r\nHost: localhost:9804\r\n\r\n", Bad),
    (
        "two_spaces",
        "GET  / HTTP/1.1\r\nHost: localhost:9804\r\n\r\n",
        Bad,
    ),
    (
        "space_in_target",
        "GET /a b HTTP/1.1\r\nHost: localhost:9804\r\n\r\n",
        Bad,
    ),
    (
        "method_with_brackets",
        "GE(T / HTTP/1.1\r\nHost: localhost:9804\r\n\r\n",
        Bad,
    ),
    (
        "tls_to_the_clear_port",
        "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n",
        Bad,
    ),
];

/// Refused inside the body: the head is good and the request may have begun, but the intake must never see it complete.
const BROKEN_BODIES: &[(&str, &str)] = &[
    ("chunk_size_sign", "-1\r\nx\r\n0\r\n\r\n"),
    ("chunk_size_prefix", "0x1\r\nx\r\n0\r\n\r\n"),
    ("chunk_size_overflow", "fffffffffffffffff\r\nx\r\n0\r\n\r\n"),
    ("chunk_longer_than_said", "1\r\nxyz\r\n0\r\n\r\n"),
    ("chunk_bare_lf", "1\nx\n0\n\n"),
    ("chunk_size_empty", "\r\nx\r\n0\r\n\r\n"),
];

/// Acceptance 9.
pub(crate) fn corpus_is_refused() -> Result<()> {
    let world = World::new()?;
    let proxy = Launch::new(&world.host).config(&world.config())?.start()?;
    let huge = format!(
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\nX-A: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: localhost:9804\r\n{}\r\n",
        "X-A: b\r\n".repeat(20_000)
    );
    let corpus = CORPUS
        .iter()
        .map(|(name, text, verdict)| (*name, text.replace("{H}", HEAD).replace("{T}", TAIL), *verdict))
        .chain([("huge_header", huge, Bad), ("many_headers", many, Bad)]);
    let mut wrong = Vec::new();
    for (name, bytes, verdict) in corpus {
        match exchange(&world, bytes.as_bytes()) {
            Ok((status, closed)) => {
                let good = match verdict {
                    // A head that is too long has a status of its own (RFC 6585).
                    Bad => status == 400 || (status == 431 && bytes.len() > 65_536),
                    Misdirected => status == 421,
                    Refused => status == 400 || status == 421,
                };
                if !good || !closed {
                    wrong.push(format!("{name}: status {status}, closed {closed}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    check!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let seen = world.intake.seen();
    check!(
        seen.is_empty(),
        "forwarded: {:?}",
        seen.iter().map(|s| &s.target).collect::<Vec<_>>()
    );

    for (name, body) in BROKEN_BODIES {
        let head = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n");
        let (status, closed) = exchange(&world, format!("{head}{body}").as_bytes()).context(*name)?;
        check!(
            closed && matches!(status, 0 | 400 | 502),
            "{name}: status {status}, closed {closed}"
        );
    }
    check_eq!(
        world.intake.count(),
        0,
        "requests with a broken body that the intake took for complete"
    );

    // The same connection handling still serves a good request, or all of the above would prove nothing.
    let key = format!(
        "{HEAD}DD-API-KEY: {}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        harness::world::API_KEY
    );
    check_eq!(
        exchange(&world, key.as_bytes())?.0,
        202,
        "a good request\n{}",
        proxy.log()
    );
    check_eq!(world.intake.count(), 1, "good requests");
    let metrics = proxy.metrics()?;
    // A head that is no request ends its connection; a well-formed one for somebody else is a refused request.
    let refused: f64 = [
        "agent_fips_proxy_connections_total",
        "agent_fips_proxy_requests_total",
    ]
    .into_iter()
    .flat_map(|name| ["bad_request", "misdirected"].map(|outcome| metrics.sum(name, &[("outcome", outcome)])))
    .sum();
    check!(refused >= 50.0, "refusals are counted: {refused} of {metrics:?}");
    Ok(())
}

/// Sends raw bytes to the metrics port; the status (0 for none) and whether the proxy closed.
fn exchange(world: &World, bytes: &[u8]) -> Result<(u16, bool)> {
    world.host.within(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9804")?;
        stream.set_read_timeout(Some(Duration::from_secs(4)))?;
        // A refusal may come, and close, before all was written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        let closed = loop {
            match stream.read(&mut piece) {
                Ok(0) => break true,
                Ok(length) => answer.extend_from_slice(&piece[..length]),
                Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        };
        let text = String::from_utf8_lossy(&answer);
        let status = text.get(9..12).and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok((status, closed))
    })
}
