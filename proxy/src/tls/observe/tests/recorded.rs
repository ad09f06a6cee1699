//! Handshakes of OpenSSL with itself, as `record.py` wrote them down, and what is to be read of each.

use std::sync::LazyLock;

use super::*;

/// A handshake that took place.
pub(super) struct Recorded {
    name: &'static str,
    /// The ClientHello.
    pub(super) client: Vec<u8>,
    /// What the server sent in the clear.
    pub(super) server: Vec<u8>,
}

/// All of `recorded.txt`.
pub(super) fn all() -> &'static [Recorded] {
    static ALL: LazyLock<Vec<Recorded>> = LazyLock::new(|| {
        let lines: Vec<Vec<&str>> = include_str!("recorded.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(' ').collect())
            .collect();
        lines
            .chunks(2)
            .map(|pair| {
                assert_eq!(pair[0][..2], [pair[1][0], "client"]);
                assert_eq!(pair[1][1], "server");
                Recorded {
                    name: pair[0][0],
                    client: bytes(pair[0][2]),
                    server: bytes(pair[1][2]),
                }
            })
            .collect()
    });
    &ALL
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

pub(super) fn named(name: &str) -> &'static Recorded {
    all().iter().find(|recorded| recorded.name == name).unwrap()
}

/// Case, session, label of [`judge()`] where it is below.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("tls13_p256", "TLSv1.3 TLS_AES_256_GCM_SHA384 secp256r1", ""),
    ("tls13_p521", "TLSv1.3 TLS_AES_256_GCM_SHA384 secp521r1", ""),
    ("tls13_x25519", "TLSv1.3 TLS_AES_256_GCM_SHA384 x25519", "group"),
    (
        "tls13_chacha20",
        "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256 secp256r1",
        "suite",
    ),
    (
        "tls13_retried",
        "TLSv1.3 TLS_AES_256_GCM_SHA384 secp256r1 retried",
        "",
    ),
    (
        "tls13_resumed",
        "TLSv1.3 TLS_AES_256_GCM_SHA384 secp256r1 resumed",
        "",
    ),
    (
        "tls13_psk_only",
        "TLSv1.3 TLS_AES_256_GCM_SHA384 - resumed",
        "no_key_exchange",
    ),
    (
        "tls12_p256",
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 secp256r1 ems",
        "",
    ),
    (
        "tls12_x25519",
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 x25519 ems",
        "group",
    ),
    (
        "tls12_no_ems",
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 secp256r1 no-ems",
        "ems",
    ),
    (
        "tls12_chacha20",
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 secp256r1 ems",
        "suite",
    ),
    (
        "tls12_cbc",
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA secp256r1 ems",
        "suite",
    ),
    (
        "tls12_rsa",
        "TLSv1.2 TLS_RSA_WITH_AES_256_GCM_SHA384 - ems",
        "suite",
    ),
    (
        "tls12_dhe",
        "TLSv1.2 TLS_DHE_RSA_WITH_AES_256_GCM_SHA384 - ems",
        "suite",
    ),
    (
        "tls12_resumed_by_ticket",
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 - ems resumed",
        "",
    ),
    (
        "tls12_resumed_by_id",
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 - ems resumed",
        "",
    ),
    (
        "tls11",
        "TLSv1.1 TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA secp256r1 ems",
        "version",
    ),
    (
        "tls10",
        "TLSv1.0 TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA secp256r1 ems",
        "version",
    ),
];

#[test]
fn sessions_of_openssl_are_read_and_judged() {
    for (name, session, label) in EXPECTED {
        let read = known(observe_in_every_way(&named(name).server));
        assert_eq!(brief(&read), *session, "{name}");
        let judged = judge(&read);
        assert_eq!(
            judged.as_ref().err().map_or("", |below| below.label),
            *label,
            "{name}: {judged:?}"
        );
    }
    assert_eq!(observe_in_every_way(&named("refused").server), Progress::Alerted);
    assert_eq!(
        all().len(),
        EXPECTED.len() + 1,
        "a recording that nobody looks at"
    );
}

/// As soon as it can be known: not one byte less does, and in TLS 1.3 the ServerHello alone does.
#[test]
fn a_session_is_known_at_the_last_byte_that_tells_it() {
    for (name, ..) in EXPECTED {
        let bytes = &named(name).server;
        let known = (1..=bytes.len())
            .find(|length| observe([&bytes[..*length]]) != Progress::More)
            .unwrap();
        let told_by = match *name {
            // The ServerHello ends the first record, or after a HelloRetryRequest and ChangeCipherSpec the third.
            "tls13_retried" => end_of_record(bytes, 3),
            name if name.starts_with("tls13") => end_of_record(bytes, 1),
            // ServerHello, (ticket,) ChangeCipherSpec.
            name if name.contains("resumed") => bytes.len(),
            // ServerHello, Certificate, ServerHelloDone.
            "tls12_rsa" => end_of_record(bytes, 3),
            // ServerHello, Certificate, ServerKeyExchange.
            _ => end_of_record(bytes, 3),
        };
        assert_eq!(known, told_by, "{name}");
    }
}

fn end_of_record(bytes: &[u8], count: usize) -> usize {
    (0..count).fold(0, |end, _| {
        end + 5 + usize::from(u16::from_be_bytes([bytes[end + 3], bytes[end + 4]]))
    })
}

#[test]
fn hellos_of_openssl_are_read() {
    for recorded in all() {
        let hello = read_hello_in_every_way(&recorded.client).unwrap().unwrap();
        assert_eq!(
            hello.server_name.as_deref(),
            Some("trace.agent.ddog-gov.com"),
            "{}",
            recorded.name
        );
        assert!(hello.ems, "{}", recorded.name);
        assert!(hello.suites.iter().all(|suite| suite.starts_with("TLS_")));
    }
    let read = |name| read_hello([named(name).client.as_slice()]).unwrap().unwrap();
    let hello = read("tls12_p256");
    assert_eq!(hello.protocols, ["h2", "http/1.1"]);
    assert_eq!(hello.versions, ["TLSv1.2"]);
    assert_eq!(hello.groups, ["secp256r1"]);
    let hello = read("tls13_retried");
    assert_eq!(hello.groups, ["x25519", "secp256r1"]);
    // OpenSSL says it even of versions that its security level then refuses.
    assert_eq!(hello.versions, ["TLSv1.3", "TLSv1.2", "TLSv1.1", "TLSv1.0"]);
    assert_eq!(hello.suites[0], "TLS_AES_256_GCM_SHA384");
    assert_eq!(hello.suites.last().unwrap(), "TLS_EMPTY_RENEGOTIATION_INFO_SCSV");
    assert_eq!(read("tls10").versions, ["TLSv1.0"]);
}

#[test]
fn what_is_below_is_said_in_a_sentence() {
    let said = |name: &str| {
        let session = known(observe([named(name).server.as_slice()]));
        judge(&session).unwrap_err().to_string()
    };
    for (name, sentence) in [
        (
            "tls13_chacha20",
            "TLSv1.3 with TLS_CHACHA20_POLY1305_SHA256 is not an approved suite of policy `fips`, which takes \
             TLS_AES_256_GCM_SHA384 or TLS_AES_128_GCM_SHA256",
        ),
        (
            "tls13_x25519",
            "TLSv1.3 with TLS_AES_256_GCM_SHA384 takes its keys from x25519, which is not an approved group of policy `fips`; it \
             takes SecP256r1MLKEM768, X25519MLKEM768, secp256r1, secp384r1 or secp521r1",
        ),
        (
            "tls11",
            "TLSv1.1 is not a version of policy `fips`, which takes TLSv1.3 or TLSv1.2",
        ),
        (
            "tls13_psk_only",
            "TLSv1.3 with TLS_AES_256_GCM_SHA384 goes on from a pre-shared key alone, without an approved key exchange",
        ),
        (
            "tls12_no_ems",
            "TLSv1.2 with TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 has no extended master secret (RFC 7627), without which the \
             derivation of its keys is not approved",
        ),
    ] {
        assert_eq!(said(name), sentence);
    }
}
