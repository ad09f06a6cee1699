//! Tests of the exchange: recorded and made-up datagrams, and the kernel itself.

use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::link::LinkMessage;
use proptest::prelude::*;

use super::*;

type Route = Exchange<RouteNetlinkMessage>;

/// A message as the kernel sends it.
fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; (HEADER + payload.len()).next_multiple_of(4)];
    let mut buffer = NetlinkBuffer::new(&mut bytes);
    buffer.set_length(u32::try_from(HEADER + payload.len()).unwrap());
    buffer.set_message_type(kind);
    buffer.set_flags(flags);
    buffer.set_sequence_number(sequence);
    bytes[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    bytes
}

/// An interface's name as an attribute behind its header.
fn link(index: u8, name: &str) -> Vec<u8> {
    let mut payload = vec![0; 16];
    payload[4] = index;
    let name = DefaultNla::new(3, [name.as_bytes(), &[0]].concat());
    payload.resize(16 + name.buffer_len(), 0);
    name.emit(&mut payload[16..]);
    payload
}

#[test]
fn a_list_ends_with_done_and_keeps_its_order() {
    let mut exchange = Route::new(7);
    let first = [
        message(16, 2, 7, &link(1, "lo")),
        message(16, 2, 6, &link(9, "late")),
        // Cut within an attribute, and of a type that nobody asked for: each is alone with it.
        message(16, 2, 7, &link(5, "veth5")[..23]),
        message(99, 2, 7, &[1, 2]),
        message(16, 2, 7, &link(2, "eth0")),
    ]
    .concat();
    assert!(!exchange.absorb(&first).unwrap());
    assert!(exchange.absorb(&message(NLMSG_DONE, 2, 7, &[0; 4])).unwrap());
    let order: Vec<Result<u32, u16>> = exchange
        .answers
        .iter()
        .map(|answer| match answer {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(link.header.index),
            Ok(other) => panic!("{other:?}"),
            Err(unread) => Err(unread.kind),
        })
        .collect();
    assert_eq!(
        order,
        [Ok(1), Err(16), Err(99), Ok(2)],
        "the late answer of another request is left out"
    );
    assert_eq!(exchange.answers[2].as_ref().unwrap_err().payload, [1, 2]);
    assert!(!exchange.interrupted);
}

#[test]
fn a_change_during_the_list_is_seen_wherever_the_kernel_says_it() {
    for flags in [[NLM_F_DUMP_INTR, 0], [0, NLM_F_DUMP_INTR]] {
        let mut exchange = Route::new(1);
        exchange.absorb(&message(16, flags[0], 1, &[0; 4])).unwrap();
        assert!(
            exchange
                .absorb(&message(NLMSG_DONE, flags[1], 1, &[0; 4]))
                .unwrap()
        );
        assert!(exchange.interrupted);
    }
}

/// The answer to a filter whose place is taken, with the kernel's words, with and without the request in full.
#[test]
fn the_kernels_words_are_kept() {
    let refused = (-libc::EEXIST).to_ne_bytes();
    let request = message(44, 0x605, 3, &[0; 20]);
    let words = DefaultNla::new(NLMSGERR_ATTR_MSG, b"Filter already exists\0".to_vec());
    let mut text = vec![0; words.buffer_len()];
    words.emit(&mut text);
    for (flags, repeated) in [
        (NLM_F_ACK_TLVS, request.len()),
        (NLM_F_ACK_TLVS | NLM_F_CAPPED, 16),
    ] {
        let payload = [&refused[..], &request[..repeated], &text].concat();
        let mut exchange = Route::new(3);
        let refusal = exchange
            .absorb(&message(NLMSG_ERROR, flags, 3, &payload))
            .unwrap_err();
        let error = refusal.into_error("add our filter to veth0");
        assert_eq!(error.errno(), Some(libc::EEXIST));
        let shown = error.to_string();
        assert!(
            shown.starts_with("cannot add our filter to veth0 by netlink")
                && shown.contains("(Filter already"),
            "{shown}"
        );
    }
}

/// Recorded from Linux 6.18 (little endian): a bpf filter for every protocol where one for IPv4 is.
#[cfg(target_endian = "little")]
#[test]
fn a_recorded_refusal_is_read() {
    let bytes = decoded(
        "740000000200000208000000a2440000eaffffff240000002c0005060800000000000000000000000300000001000000f2ffffff\
         000303003900010050726f746f636f6c206d69736d6174636820666f722066696c746572207769746820737065636966696564207072\
         696f7269747900000000",
    );
    let error = Route::new(8)
        .absorb(&bytes)
        .unwrap_err()
        .into_error("add our filter");
    assert_eq!(error.errno(), Some(libc::EINVAL));
    let text = error.to_string();
    assert!(
        text.contains("(Protocol mismatch for filter with specified priority)"),
        "{text}"
    );
    for end in 1..bytes.len() {
        let mut cut = bytes[..end].to_vec();
        // A length that fits: the words are read as far as they go.
        if let Some(length) = cut.get_mut(..4) {
            length.copy_from_slice(&u32::try_from(end).unwrap().to_ne_bytes());
        }
        assert!(Route::new(8).absorb(&cut).is_err(), "cut at {end}");
    }
}

#[test]
fn overrun_truncation_and_nonsense_are_errors() {
    let overrun = Route::new(1)
        .absorb(&message(NLMSG_OVERRUN, 0, 1, &[]))
        .unwrap_err();
    assert_eq!(overrun.into_error("x").errno(), Some(libc::ENOBUFS));
    let empty = Route::new(1)
        .absorb(&message(NLMSG_ERROR, 0, 1, &[]))
        .unwrap_err();
    assert_eq!(empty.into_error("x").errno(), Some(libc::EPROTO));
    let cut = Route::new(1).absorb(&[0; 7]).unwrap_err();
    assert!(
        cut.into_error("list the links")
            .to_string()
            .contains("cannot be read")
    );
    let late = Refusal::Socket(io::Error::from_raw_os_error(libc::EAGAIN)).into_error("list the links");
    assert!(late.to_string().contains("did not answer within 5 s"), "{late}");
}

#[test]
fn a_request_that_the_library_could_not_write_is_refused() {
    use netlink_packet_route::link::LinkAttribute;
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName("x".repeat(65_532))];
    let refused = encode(RouteNetlinkMessage::GetLink(message), 0, 1).unwrap_err();
    assert!(refused.into_error("x").to_string().contains("longer than 4 KiB"));
}

proptest! {
    /// Any bytes, and any bytes behind a sound header of every type that is handled apart.
    #[test]
    fn any_datagram_is_taken_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        flags in any::<u16>(),
        kind in 0_u16..120,
    ) {
        let _ = Route::new(1).absorb(&bytes);
        let _ = Route::new(1).absorb(&message(kind, flags, 1, &bytes));
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let _ = Route::new(1).absorb(&message(kind, NLM_F_ACK_TLVS, 1, &bytes));
        }
    }
}

#[test]
fn the_kernel_answers_and_refuses() {
    let mut netlink = Netlink::open().unwrap();
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = netlink.dump("list the links", &request).unwrap();
    assert!(!links.is_empty());
    for link in links {
        assert!(link.unwrap().is_new_link());
    }
    let mut message = LinkMessage::default();
    message.header.index = i32::MAX.cast_unsigned();
    let error = netlink
        .request("read a link", 0, RouteNetlinkMessage::GetLink(message))
        .unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
    // A request that the kernel answers with something else than what is read.
    let tables = RouteNetlinkMessage::GetNeighbourTable(Default::default());
    let tables = netlink.dump("list the tables of neighbours", &tables).unwrap();
    assert!(!tables.is_empty() && tables.iter().all(Result::is_err));
}
