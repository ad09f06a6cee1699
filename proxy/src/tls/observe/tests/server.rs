//! Answers of servers made by hand: order, shape and size, and what no recording has.

use proptest::prelude::*;

use super::bytes::{extension, in_pieces, long, message, record, records, server_hello, short};
use super::recorded;
use super::*;

const RANDOM: [u8; 32] = [7; 32];
/// RFC 8446 section 4.1.3, as it stands there.
const RETRY: [u8; 32] = *b"\xCF\x21\xAD\x74\xE5\x9A\x61\x11\xBE\x1D\x8C\x02\x1E\x65\xB8\x91\
    \xC2\xA2\x11\x16\x7A\xBB\x8C\x5E\x07\x9E\x09\xE2\xC8\xA8\x33\x9C";
const TLS12: u16 = 0x0303;
const ECDHE: u16 = 0xc02c;
const CCS: [u8; 6] = [20, 3, 3, 0, 1, 1];

fn tls13() -> Vec<u8> {
    extension(43, &[3, 4])
}

fn share(group: u16) -> Vec<u8> {
    extension(51, &[&group.to_be_bytes()[..], &long(&[4; 65])].concat())
}

fn ems() -> Vec<u8> {
    extension(23, &[])
}

/// A ServerKeyExchange with this curve type and these bytes after it.
fn curve(kind: u8, rest: &[u8]) -> Vec<u8> {
    message(
        12,
        &[&[kind], rest, &short(&[4; 65]), &[4, 3], &long(&[1; 70])].concat(),
    )
}

fn certificate() -> Vec<u8> {
    message(11, &[0; 900])
}

/// One record with these messages.
fn said(messages: &[Vec<u8>]) -> Vec<u8> {
    record(22, &messages.concat())
}

fn session_of(bytes: &[u8]) -> String {
    brief(&known(observe_in_every_way(bytes)))
}

fn unreadable(bytes: &[u8]) -> &'static str {
    match observe_in_every_way(bytes) {
        Progress::Unreadable(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn several_messages_may_stand_in_one_record() {
    let flight = [
        server_hello(TLS12, RANDOM, ECDHE, &[ems()]),
        certificate(),
        message(22, &[1, 0, 0, 0]),
        curve(3, &[0, 24]),
        message(13, &[1, 1, 0, 0, 0, 0]),
        message(14, &[]),
    ];
    let session = "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 secp384r1 ems";
    assert_eq!(session_of(&said(&flight)), session);
    for size in [1, 3, 100, 1 << 14] {
        assert_eq!(session_of(&records(&flight.concat(), size)), session);
    }
}

#[test]
fn a_resumption_before_tls13_is_told_by_its_change_of_keys() {
    let hello = || server_hello(TLS12, RANDOM, ECDHE, &[ems()]);
    let resumed = "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 - ems resumed";
    assert_eq!(session_of(&[said(&[hello()]), CCS.to_vec()].concat()), resumed);
    let ticket = message(4, &[0, 0, 0, 9, 0, 3, 1, 2, 3]);
    assert_eq!(
        session_of(&[said(&[hello(), ticket]), CCS.to_vec()].concat()),
        resumed
    );
    // A request to begin anew means nothing here.
    let again = message(0, &[]);
    let bytes = [said(&[again.clone(), hello(), again]), CCS.to_vec()].concat();
    assert_eq!(session_of(&bytes), resumed);
}

#[test]
fn a_handshake_without_a_group_has_none() {
    let rsa = [
        server_hello(TLS12, RANDOM, 0x009d, &[]),
        certificate(),
        message(14, &[]),
    ];
    assert_eq!(
        session_of(&said(&rsa)),
        "TLSv1.2 TLS_RSA_WITH_AES_256_GCM_SHA384 - no-ems"
    );
    // A hint stands where another suite has its curve.
    let psk = [server_hello(TLS12, RANDOM, 0xc036, &[ems()]), curve(3, &[0, 23])];
    assert_eq!(
        session_of(&said(&psk)),
        "TLSv1.2 TLS_ECDHE_PSK_WITH_AES_256_CBC_SHA - ems"
    );
    // Its suite has one, and it does not come.
    let none = [
        server_hello(TLS12, RANDOM, ECDHE, &[ems()]),
        certificate(),
        message(14, &[]),
    ];
    let session = known(observe_in_every_way(&said(&none)));
    assert_eq!(
        brief(&session),
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 - ems"
    );
    let below = judge(&session).unwrap_err();
    assert_eq!(below.label, "no_key_exchange");
    assert_eq!(
        below.message,
        "TLSv1.2 with TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 begins without an approved key exchange: the server named no group"
    );
}

#[test]
fn every_kind_of_curve_is_named() {
    for (kind, rest, group) in [
        (3, &[0, 29][..], "x25519"),
        (3, &[0, 25], "secp521r1"),
        (3, &[0, 26], "brainpoolP256r1"),
        (3, &[0x0e, 0xee], "0x0eee"),
        (1, &[], "arbitrary_explicit_prime_curves"),
        (2, &[], "arbitrary_explicit_char2_curves"),
    ] {
        let hello = server_hello(0x0302, RANDOM, 0xc014, &[]);
        let session = session_of(&said(&[hello, curve(kind, rest)]));
        assert_eq!(
            session,
            format!("TLSv1.1 TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA {group} no-ems")
        );
    }
    let anonymous = server_hello(TLS12, RANDOM, 0xc019, &[ems()]);
    let session = session_of(&said(&[anonymous, curve(3, &[0, 23])]));
    assert_eq!(
        session,
        "TLSv1.2 TLS_ECDH_anon_WITH_AES_256_CBC_SHA secp256r1 ems"
    );
}

#[test]
fn tls13_is_told_by_one_message() {
    let after = |messages: &[Vec<u8>]| session_of(&said(messages));
    let hello = |extensions: &[Vec<u8>]| server_hello(TLS12, RANDOM, 0x1302, extensions);
    let session = "TLSv1.3 TLS_AES_256_GCM_SHA384";
    assert_eq!(
        after(&[hello(&[share(0x11ed), tls13()])]),
        format!("{session} SecP384r1MLKEM1024")
    );
    let psk = extension(41, &[0, 0]);
    assert_eq!(
        after(&[hello(&[tls13(), psk.clone(), share(23)])]),
        format!("{session} secp256r1 resumed")
    );
    assert_eq!(after(&[hello(&[tls13(), psk])]), format!("{session} - resumed"));
    // A later version is read as far as it is alike.
    let draft = hello(&[extension(43, &[0x7f, 0x1c]), share(23)]);
    assert_eq!(after(&[draft]), "0x7f1c TLS_AES_256_GCM_SHA384 secp256r1");
}

#[test]
fn the_answer_after_a_retry_counts() {
    let retry = || {
        said(&[server_hello(
            TLS12,
            RETRY,
            0x1302,
            &[tls13(), extension(51, &[0, 23])],
        )])
    };
    let hello = || said(&[server_hello(TLS12, RANDOM, 0x1302, &[tls13(), share(23)])]);
    let session = "TLSv1.3 TLS_AES_256_GCM_SHA384 secp256r1 retried";
    assert_eq!(observe_in_every_way(&retry()), Progress::More);
    assert_eq!(session_of(&[retry(), hello()].concat()), session);
    assert_eq!(session_of(&[retry(), CCS.to_vec(), hello()].concat()), session);
    let older = said(&[server_hello(TLS12, RANDOM, ECDHE, &[])]);
    for (bytes, reason) in [
        ([retry(), retry()].concat(), "a second HelloRetryRequest"),
        ([retry(), older].concat(), "a HelloRetryRequest without TLS 1.3"),
        (
            said(&[server_hello(TLS12, RETRY, ECDHE, &[])]),
            "a HelloRetryRequest without TLS 1.3",
        ),
        (
            [CCS.to_vec(), hello()].concat(),
            "a ChangeCipherSpec before the ServerHello",
        ),
    ] {
        assert_eq!(unreadable(&bytes), reason);
    }
}

#[test]
fn what_is_no_handshake_is_not_followed() {
    let hello = |extensions: &[Vec<u8>]| server_hello(TLS12, RANDOM, ECDHE, extensions);
    let begun = || said(&[hello(&[])]);
    let half = || record(22, &hello(&[])[..9]);
    let wrong = "a ServerHello of the wrong length or version";
    for (bytes, reason) in [
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), "no TLS record"),
        (record(23, b"data"), "a record that is no part of a handshake"),
        (record(24, b"\x01"), "a record that is no part of a handshake"),
        (record(22, &[]), "an empty record"),
        (
            said(&[message(1, &[0; 40])]),
            "the first message is no ServerHello",
        ),
        (said(&[certificate()]), "the first message is no ServerHello"),
        (said(&[message(2, &[])]), wrong),
        (said(&[message(2, &hello(&[])[4..70])]), wrong),
        (said(&[server_hello(0x0304, RANDOM, ECDHE, &[])]), wrong),
        (said(&[server_hello(0xfefd, RANDOM, ECDHE, &[])]), wrong),
        (
            said(&[message(2, &[&hello(&[])[4..], &[0]].concat())]),
            "bytes in the ServerHello that belong to no field",
        ),
        (said(&[hello(&[vec![0, 23, 0]])]), "wrong length of an extension"),
        (said(&[hello(&[ems(), ems()])]), "an extension that occurs twice"),
        (
            said(&[hello(&[extension(23, &[0])])]),
            "wrong length in extended_master_secret",
        ),
        (
            said(&[hello(&[extension(43, &[3])])]),
            "wrong length in supported_versions",
        ),
        (
            said(&[hello(&[extension(43, &[3, 3])])]),
            "supported_versions with a version before TLS 1.3",
        ),
        (said(&[hello(&[tls13()])]), "neither key_share nor pre_shared_key"),
        (
            said(&[hello(&[tls13(), extension(51, &[0, 23])])]),
            "wrong length in key_share",
        ),
        (
            said(&[hello(&[tls13(), extension(51, &[0, 23, 0, 1, 4, 4])])]),
            "wrong length in key_share",
        ),
        ([begun(), begun()].concat(), "a second ServerHello"),
        (
            [begun(), said(&[certificate()]), CCS.to_vec()].concat(),
            "a ChangeCipherSpec before the server has finished",
        ),
        (
            [begun(), record(20, &[2])].concat(),
            "a ChangeCipherSpec that is not one byte",
        ),
        (
            [begun(), record(20, &[1, 1])].concat(),
            "a ChangeCipherSpec that is not one byte",
        ),
        (
            [half(), CCS.to_vec()].concat(),
            "a ChangeCipherSpec inside a message",
        ),
        (
            [begun(), said(&[message(12, &[3, 0])])].concat(),
            "a ServerKeyExchange without a curve",
        ),
        (
            [begun(), said(&[message(12, &[])])].concat(),
            "a ServerKeyExchange without a curve",
        ),
        (
            [begun(), said(&[curve(9, &[0, 23])])].concat(),
            "a ServerKeyExchange without a curve",
        ),
    ] {
        assert_eq!(unreadable(&bytes), reason, "{bytes:?}");
    }
}

#[test]
fn alerts_end_it_unless_they_only_warn() {
    let hello = || said(&[server_hello(TLS12, RANDOM, ECDHE, &[])]);
    let alert = |level, description| record(21, &[level, description]);
    // handshake_failure, close_notify.
    for ends in [alert(2, 40), alert(1, 0), alert(2, 0)] {
        assert_eq!(observe_in_every_way(&ends), Progress::Alerted);
        assert_eq!(
            observe_in_every_way(&[hello(), ends.clone()].concat()),
            Progress::Alerted
        );
        let halves = [record(21, &ends[5..6]), record(21, &ends[6..])].concat();
        // An alert over two records is one that no peer sends (RFC 8446 section 5.1).
        assert_eq!(unreadable(&halves), "an alert that is not two bytes");
    }
    // unrecognized_name as a warning: servers of old say it and go on.
    let bytes = [alert(1, 112), hello(), CCS.to_vec()].concat();
    assert_eq!(
        session_of(&bytes),
        "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 - no-ems resumed"
    );
    assert_eq!(unreadable(&alert(3, 40)), "an alert of an unknown level");
    assert_eq!(
        unreadable(&record(21, &[2, 40, 0])),
        "an alert that is not two bytes"
    );
}

#[test]
fn the_session_is_known_within_64_kib() {
    let flight = |certificates: usize| {
        let messages = [
            server_hello(TLS12, RANDOM, ECDHE, &[ems()]),
            message(11, &vec![0; certificates]),
            curve(3, &[0, 23]),
        ];
        records(&messages.concat(), 1 << 14)
    };
    let around = flight(60_000).len() - 60_000;
    let fits = flight(LONGEST_FLIGHT - around);
    assert_eq!(fits.len(), LONGEST_FLIGHT);
    assert!(matches!(observe_in_every_way(&fits), Progress::Known(_)));
    // What comes after the answer does not count.
    let more = [fits, vec![0; 100_000]].concat();
    assert!(matches!(observe_in_every_way(&more), Progress::Known(_)));
    let too_long = flight(LONGEST_FLIGHT - around + 1);
    assert_eq!(unreadable(&too_long), "no session within 64 KiB");
    // Warnings without end.
    let warnings = record(21, &[1, 112]).repeat(10_000);
    assert_eq!(unreadable(&warnings), "no session within 64 KiB");
}

proptest! {
    #[test]
    fn property_splits_change_nothing(
        which in 0..recorded::all().len(),
        sizes in prop::collection::vec(1_usize..600, 1..20),
    ) {
        let bytes = &recorded::all()[which].server;
        let whole = observe([bytes.as_slice()]);
        prop_assert!(!matches!(whole, Progress::More | Progress::Unreadable(_)));
        prop_assert_eq!(observe(in_pieces(bytes, &sizes)), whole);
    }

    #[test]
    fn property_no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = observe_in_every_way(&bytes);
        let _ = observe_in_every_way(&said(&[message(2, &bytes)]));
        let fields = [&server_hello(TLS12, RANDOM, 0x1302, &[])[4..], &long(&bytes)].concat();
        let _ = observe_in_every_way(&said(&[message(2, &fields)]));
        let hello = server_hello(TLS12, RANDOM, ECDHE, &[]);
        let _ = observe_in_every_way(&[record(22, &hello), bytes.clone()].concat());
        let _ = observe_in_every_way(&said(&[hello, message(12, &bytes)]));
        for kind in [41, 43, 51] {
            let hello = server_hello(TLS12, RANDOM, 0x1302, &[extension(kind, &bytes)]);
            let _ = observe_in_every_way(&said(&[hello]));
        }
    }

    #[test]
    fn property_no_change_makes_it_panic(
        which in 0..recorded::all().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = recorded::all()[which].server.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = observe_in_every_way(&bytes);
        let _ = observe_in_every_way(&bytes[..end.index(bytes.len())]);
    }
}
