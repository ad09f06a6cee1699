//! Names of versions, suites and groups by their numbers, also of those that we would never use ourselves.

use rustls::ProtocolVersion;
use tls_parser::TlsCipherSuiteID;

use crate::tls::provider;

/// Numbers that clients throw in so that servers learn to ignore what they do not know (RFC 8701): both bytes alike, `?A`.
pub(super) fn is_grease(number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// As OpenSSL and Go write it.
pub(super) fn version(number: u16) -> String {
    match number {
        0x0300 => "SSLv3".to_owned(),
        0x0301 => "TLSv1.0".to_owned(),
        0x0302 => "TLSv1.1".to_owned(),
        0x0303 | 0x0304 => provider::version_name(ProtocolVersion::from(number)),
        other => unknown(other),
    }
}

/// IANA "TLS Cipher Suites", by the table of the parser, which is generated from the registry.
pub(super) fn suite(number: u16) -> String {
    TlsCipherSuiteID(number)
        .get_ciphersuite()
        .map_or_else(|| unknown(number), |suite| suite.name.to_owned())
}

/// IANA "TLS Supported Groups". rustls knows a third of them, the parser none of the hybrid ones.
pub(super) fn group(number: u16) -> String {
    GROUPS
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| unknown(number), |(_, name)| (*name).to_owned())
}

fn unknown(number: u16) -> String {
    format!("{number:#06x}")
}

/// The registry "TLS Supported Groups" (RFC 8447), without its reserved ranges.
const GROUPS: &[(u16, &str)] = &[
    (1, "sect163k1"),
    (2, "sect163r1"),
    (3, "sect163r2"),
    (4, "sect193r1"),
    (5, "sect193r2"),
    (6, "sect233k1"),
    (7, "sect233r1"),
    (8, "sect239k1"),
    (9, "sect283k1"),
    (10, "sect283r1"),
    (11, "sect409k1"),
    (12, "sect409r1"),
    (13, "sect571k1"),
    (14, "sect571r1"),
    (15, "secp160k1"),
    (16, "secp160r1"),
    (17, "secp160r2"),
    (18, "secp192k1"),
    (19, "secp192r1"),
    (20, "secp224k1"),
    (21, "secp224r1"),
    (22, "secp256k1"),
    (23, "secp256r1"),
    (24, "secp384r1"),
    (25, "secp521r1"),
    (26, "brainpoolP256r1"),
    (27, "brainpoolP384r1"),
    (28, "brainpoolP512r1"),
    (29, "x25519"),
    (30, "x448"),
    (31, "brainpoolP256r1tls13"),
    (32, "brainpoolP384r1tls13"),
    (33, "brainpoolP512r1tls13"),
    (34, "GC256A"),
    (35, "GC256B"),
    (36, "GC256C"),
    (37, "GC256D"),
    (38, "GC512A"),
    (39, "GC512B"),
    (40, "GC512C"),
    (41, "curveSM2"),
    (0x0100, "ffdhe2048"),
    (0x0101, "ffdhe3072"),
    (0x0102, "ffdhe4096"),
    (0x0103, "ffdhe6144"),
    (0x0104, "ffdhe8192"),
    (0x0200, "MLKEM512"),
    (0x0201, "MLKEM768"),
    (0x0202, "MLKEM1024"),
    (0x11eb, "SecP256r1MLKEM768"),
    (0x11ec, "X25519MLKEM768"),
    (0x11ed, "SecP384r1MLKEM1024"),
    (0x11ee, "curveSM2MLKEM768"),
    (0x6399, "X25519Kyber768Draft00"),
    (0x639a, "SecP256r1Kyber768Draft00"),
    (EXPLICIT_PRIME, "arbitrary_explicit_prime_curves"),
    (EXPLICIT_CHAR2, "arbitrary_explicit_char2_curves"),
];

/// A curve written out in the message and not named (RFC 4492 section 5.4, forbidden by RFC 8422).
pub(super) const EXPLICIT_PRIME: u16 = 0xff01;
/// As [`EXPLICIT_PRIME`], over a binary field.
pub(super) const EXPLICIT_CHAR2: u16 = 0xff02;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TlsPolicy;

    /// One name for one thing: what an Agent uses and what we use are compared by it.
    #[test]
    fn names_are_those_of_our_own_sessions() {
        let ours = provider::provider(TlsPolicy::Fips);
        for suite in &ours.cipher_suites {
            let number = u16::from(suite.suite());
            assert_eq!(super::suite(number), provider::suite_name(suite.suite()));
        }
        for group in &ours.kx_groups {
            let number = u16::from(group.name());
            assert_eq!(super::group(number), provider::group_name(group.name()));
        }
        assert_eq!(version(0x0304), "TLSv1.3");
        assert_eq!(version(0x0303), "TLSv1.2");
    }

    #[test]
    fn what_has_no_name_is_a_number() {
        assert_eq!(version(0x7f17), "0x7f17");
        assert_eq!(suite(0x1399), "0x1399");
        assert_eq!(group(0x00fe), "0x00fe");
        assert_eq!(suite(0x1303), "TLS_CHACHA20_POLY1305_SHA256");
        assert_eq!(group(29), "x25519");
    }

    #[test]
    fn the_table_of_groups_is_in_order_and_has_no_grease() {
        assert!(GROUPS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(GROUPS.iter().all(|(number, _)| !is_grease(*number)));
        assert!(is_grease(0x0a0a) && is_grease(0xfafa) && !is_grease(0x0a1a) && !is_grease(0x0b0b));
    }
}
