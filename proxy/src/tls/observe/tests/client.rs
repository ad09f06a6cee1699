//! ClientHellos made by hand: what is read of them, and what is refused.

use proptest::prelude::*;

use super::bytes::{client_hello, extension, in_pieces, long, message, record, records, server_name, short};
use super::recorded;
use super::*;

const NAME: &[u8] = b"trace.agent.ddog-gov.com";

fn read(extensions: &[Vec<u8>]) -> Result<ClientHello, &'static str> {
    read_hello_in_every_way(&record(22, &client_hello(extensions)))
        .map(|hello| hello.expect("all of it was fed"))
        .map_err(|malformed| malformed.reason)
}

#[test]
fn a_hello_of_an_old_client_needs_no_extension() {
    let hello = read(&[]).unwrap();
    assert_eq!(
        hello,
        ClientHello {
            server_name: None,
            protocols: vec![],
            versions: vec!["TLSv1.2".to_owned()],
            suites: vec![
                "TLS_AES_256_GCM_SHA384".to_owned(),
                "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384".to_owned()
            ],
            groups: vec![],
            ems: false,
            early_data: false,
        }
    );
}

#[test]
fn early_data_is_told() {
    assert!(read(&[extension(42, &[])]).unwrap().early_data);
}

#[test]
fn numbers_that_mean_nothing_are_left_out_and_unknown_ones_are_shown() {
    let hello = read(&[
        extension(0x0a0a, &[]),
        extension(0xfe0d, &[1, 2, 3]),
        extension(0x1234, b"unknown"),
        server_name(&[(0, NAME)]),
        extension(10, &long(&[0x2a, 0x2a, 0x11, 0xec, 0x00, 0x1d, 0x0e, 0xee])),
        extension(
            16,
            &long(&[short(&[0x4a, 0x4a]), short(b"h2"), short(b"a\nb")].concat()),
        ),
        extension(23, &[]),
        extension(43, &short(&[0xfa, 0xfa, 3, 4, 3, 3, 0x7f, 0x1c])),
        extension(0xdada, &[0]),
    ])
    .unwrap();
    assert_eq!(hello.server_name.as_deref(), Some("trace.agent.ddog-gov.com"));
    assert_eq!(hello.protocols, ["h2", "a\\nb"]);
    assert_eq!(hello.versions, ["TLSv1.3", "TLSv1.2", "0x7f1c"]);
    assert_eq!(hello.groups, ["X25519MLKEM768", "x25519", "0x0eee"]);
    assert!(hello.ems);
}

#[test]
fn a_name_is_taken_as_it_was_sent_when_it_is_one() {
    let longest = [&[b'a'; 63][..], &[b'b'; 63], &[b'c'; 63], &[b'd'; 61]].join(&b'.');
    for name in [
        NAME,
        b"TRACE.Agent.ddog-gov.com",
        b"trace.agent.ddog-gov.com.",
        b"under_score.example",
        b"xn--bcher-kva.example",
        b"localhost",
        &longest,
    ] {
        let read = read(&[server_name(&[(0, name)])]).unwrap().server_name;
        assert_eq!(read.as_deref().map(str::as_bytes), Some(name));
    }
    for none in [
        &b"192.0.2.1"[..],
        b"2001:db8::1",
        b"[2001:db8::1]",
        b"127.1",
        b".",
        b"a..example",
        b".example",
        b"-a.example",
        b"a b.example",
        b"*.example",
        b"user@a.example",
        b"a.example:443",
        b"a.example\0.evil.example",
        "bücher.example".as_bytes(),
        b"\xff\xfe",
        &[longest.as_slice(), b"e"].concat(),
    ] {
        assert_eq!(
            read(&[server_name(&[(0, none)])]).unwrap().server_name,
            None,
            "{none:?}"
        );
    }
    // A name of a type that nobody has defined.
    assert_eq!(read(&[server_name(&[(1, NAME)])]).unwrap().server_name, None);
}

#[test]
fn the_shape_of_extensions_is_strict() {
    let name = || server_name(&[(0, NAME)]);
    for (extensions, reason) in [
        (vec![name(), name()], "an extension that occurs twice"),
        (
            vec![extension(0x1234, &[]), extension(0x1234, &[])],
            "an extension that occurs twice",
        ),
        (
            vec![extension(0x0a0a, &[]), extension(0x0a0a, &[0])],
            "an extension that occurs twice",
        ),
        (vec![server_name(&[])], "no name in server_name"),
        (vec![server_name(&[(0, b"")])], "an empty name in server_name"),
        (
            vec![server_name(&[(0, NAME), (0, b"b.example")])],
            "more than one name in server_name",
        ),
        (
            vec![server_name(&[(1, b"x"), (0, NAME)])],
            "more than one name in server_name",
        ),
        (vec![extension(0, &[])], "wrong length in server_name"),
        (
            vec![extension(0, &[0, 9, 0, 0, 1, b'a'])],
            "wrong length in server_name",
        ),
        (
            vec![extension(0, &[0, 4, 0, 0, 1, b'a', b'b'])],
            "wrong length in server_name",
        ),
        (
            vec![extension(0, &[0, 4, 0, 0, 2, b'a'])],
            "wrong length in server_name",
        ),
        (vec![extension(10, &[])], "wrong length in supported_groups"),
        (
            vec![extension(10, &long(&[]))],
            "wrong length in supported_groups",
        ),
        (
            vec![extension(10, &long(&[0, 23, 0]))],
            "wrong length in supported_groups",
        ),
        (
            vec![extension(10, &[0, 2, 0, 23, 0])],
            "wrong length in supported_groups",
        ),
        (
            vec![extension(16, &long(&[]))],
            "wrong length in the list of protocols",
        ),
        (
            vec![extension(16, &long(&short(b"")))],
            "wrong length in the list of protocols",
        ),
        (
            vec![extension(16, &long(&[3, b'h', b'2']))],
            "wrong length in the list of protocols",
        ),
        (
            vec![extension(16, &[0, 3, 2, b'h', b'2', 0])],
            "wrong length in the list of protocols",
        ),
        (
            vec![extension(23, &[0])],
            "wrong length in extended_master_secret",
        ),
        (
            vec![extension(43, &short(&[]))],
            "wrong length in supported_versions",
        ),
        (vec![extension(43, &[3, 4])], "wrong length in supported_versions"),
        (
            vec![extension(43, &short(&[3, 4, 3]))],
            "wrong length in supported_versions",
        ),
        (vec![vec![0, 0]], "wrong length of an extension"),
        (vec![vec![0x12, 0x34, 0, 5, 1]], "wrong length of an extension"),
    ] {
        assert_eq!(read(&extensions).map(|_| ()), Err(reason), "{extensions:?}");
    }
}

#[test]
fn the_shape_of_the_message_is_strict() {
    let hello = client_hello(&[]);
    let body = &hello[4..];
    let wrong = "wrong length of one of its fields";
    let replaced = |at: usize, byte: u8| {
        let mut body = body.to_vec();
        body[at] = byte;
        body
    };
    for (body, reason) in [
        (vec![], wrong),
        (body[..body.len() - 1].to_vec(), wrong),
        // The session id: at most 32 bytes.
        (replaced(34, 33), wrong),
        // The suites: none, half a one.
        (
            [&body[..67], &[0, 0, 1, 0]].concat(),
            "no suites or no compression methods",
        ),
        ([&body[..67], &[0, 1, 1, 1, 0]].concat(), wrong),
        (
            [&body[..73], &[0]].concat(),
            "no suites or no compression methods",
        ),
        // A byte after all, half a length, a length without extensions.
        ([body, &[0]].concat(), "bytes that belong to no field"),
        ([body, &[0, 1]].concat(), "bytes that belong to no field"),
        ([body, &[0, 0, 0]].concat(), "bytes that belong to no field"),
        (
            [body, &[0, 3, 0x12, 0x34, 0]].concat(),
            "wrong length of an extension",
        ),
    ] {
        let bytes = record(22, &message(1, &body));
        assert_eq!(
            read_hello_in_every_way(&bytes),
            Err(Malformed { reason }),
            "{body:?}"
        );
    }
    // A field of extensions with nothing in it.
    let empty = record(22, &message(1, &[body, &[0, 0]].concat()));
    assert!(read_hello_in_every_way(&empty).unwrap().is_some());
}

#[test]
fn only_a_client_hello_begins_a_connection() {
    let hello = client_hello(&[]);
    let parts = [record(22, &hello[..20]), record(22, &hello[20..])];
    let with = |at: usize, byte: u8| {
        let mut bytes = parts.clone();
        bytes[1][at] = byte;
        bytes.concat()
    };
    for (bytes, reason) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "no TLS record"),
        // A ClientHello of SSL 2.
        (vec![0x80, 0x2e, 1, 3, 1, 0, 0x15], "no TLS record"),
        (
            record(22, &message(2, &hello[4..])),
            "the first message is another",
        ),
        (record(23, &hello), "a record that is no handshake"),
        (record(21, &[2, 0]), "a record that is no handshake"),
        (record(20, &[1]), "a record that is no handshake"),
        (record(22, &[]), "an empty record"),
        (
            [vec![22, 3, 1, 0x40, 1], hello.clone()].concat(),
            "a record longer than 16384 bytes",
        ),
        (with(0, 23), "a record that is no handshake"),
        (with(0, 20), "a record that is no handshake"),
        (with(0, 99), "no TLS record"),
        (with(1, 2), "no TLS record"),
        (
            [parts[0].clone(), record(22, &[]), parts[1].clone()].concat(),
            "an empty record",
        ),
        (
            record(22, &[&hello[..], &[0]].concat()),
            "something after the ClientHello in its record",
        ),
        (
            record(22, &[&hello[..], &hello].concat()),
            "something after the ClientHello in its record",
        ),
    ] {
        assert_eq!(
            read_hello_in_every_way(&bytes),
            Err(Malformed { reason }),
            "{bytes:?}"
        );
    }
    // The minor version of a record means nothing.
    assert!(read_hello_in_every_way(&with(2, 9)).unwrap().is_some());
    // An error is the end.
    let mut reader = HelloReader::default();
    let error = reader.feed(b"GET / HTTP/1.1").unwrap_err();
    assert_eq!(reader.feed(&record(22, &hello)), Err(error));
    assert_eq!(
        error.to_string(),
        "the client's first message is not a usable ClientHello: no TLS record"
    );
}

#[test]
fn a_hello_may_be_longer_than_a_record_and_have_bytes_after_it() {
    let hello = client_hello(&[extension(21, &vec![0; 40_000]), server_name(&[(0, NAME)])]);
    for size in [1 << 14, 16_000, 999] {
        let alone = records(&hello, size);
        let followed = [&alone[..], &record(20, &[1]), b"\x17\x03\x03 early data"].concat();
        for bytes in [alone, followed] {
            let read = read_hello_in_every_way(&bytes).unwrap().unwrap();
            assert_eq!(read.server_name.as_deref().map(str::as_bytes), Some(NAME));
        }
    }
}

#[test]
fn a_hello_ends_within_64_kib_with_its_records() {
    let message = |total: usize| client_hello(&[extension(21, &vec![0; total])]);
    let around = records(&message(60_000), 1 << 14).len() - 60_000;
    let fits = LONGEST_HELLO - around;
    let bytes = records(&message(fits), 1 << 14);
    assert_eq!(bytes.len(), LONGEST_HELLO);
    assert!(read_hello_in_every_way(&bytes).unwrap().is_some());
    let too_long = Malformed {
        reason: "longer than 64 KiB",
    };
    let bytes = records(&message(fits + 1), 1 << 14);
    assert_eq!(read_hello_in_every_way(&bytes), Err(too_long));
    // Records of a byte each: the headers count.
    let bytes = records(&message(20_000), 1);
    assert_eq!(read_hello_in_every_way(&bytes), Err(too_long));
    // What is announced counts at once.
    let announced = record(22, &[1, 0xff, 0xff, 0xff]);
    assert_eq!(read_hello_in_every_way(&announced), Err(too_long));
}

#[test]
fn no_beginning_of_a_hello_is_an_answer() {
    let bytes = record(22, &client_hello(&[server_name(&[(0, NAME)])]));
    for length in 0..bytes.len() {
        assert_eq!(read_hello([&bytes[..length]]), Ok(None), "{length}");
    }
}

proptest! {
    #[test]
    fn property_splits_change_nothing(
        which in 0..recorded::all().len(),
        sizes in prop::collection::vec(1_usize..400, 1..20),
        fragment in 1_usize..700,
    ) {
        let hello = &recorded::all()[which].client;
        let whole = read_hello([hello.as_slice()]);
        prop_assert!(matches!(whole, Ok(Some(_))));
        prop_assert_eq!(&read_hello(in_pieces(hello, &sizes)), &whole);
        // Other records around the same message.
        let cut = records(&hello[5..], fragment);
        prop_assert_eq!(&read_hello(in_pieces(&cut, &sizes)), &whole);
    }

    #[test]
    fn property_no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read_hello_in_every_way(&bytes);
        let _ = read_hello_in_every_way(&record(22, &[&[1, 0, 1, 0][..], &bytes].concat()));
        let _ = read_hello_in_every_way(&record(22, &message(1, &bytes)));
        let field = [&client_hello(&[])[4..], &long(&bytes)].concat();
        let _ = read_hello_in_every_way(&record(22, &message(1, &field)));
        for kind in [0, 10, 16, 23, 43] {
            let _ = read(&[extension(kind, &bytes)]);
        }
    }

    #[test]
    fn property_no_change_makes_it_panic(
        which in 0..recorded::all().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = recorded::all()[which].client.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read_hello_in_every_way(&bytes);
        let _ = read_hello_in_every_way(&bytes[..end.index(bytes.len())]);
    }
}
