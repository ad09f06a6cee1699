//! Tests of the list of classifiers: filters as the kernel lists them, and such as nobody can read.

use netlink_packet_core::{DefaultNla, Emitable, NetlinkHeader};

use super::super::netlink::{Protocol, encoded, recorded};
use super::super::verdict::{Attachment, Judged, Reached, Returns, forecast};
use super::*;

const NOBODY: &dyn Fn(u32, &str) -> bool = &|_, _| false;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// What the exchange makes of these bytes.
fn taken(payload: &[u8]) -> Read<RouteNetlinkMessage> {
    let kind = libc::RTM_NEWTFILTER;
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::read(&header, payload).map_err(|error| Unread {
        kind,
        payload: payload.to_vec(),
        why: error.to_string(),
    })
}

/// A filter with `ETH_P_ALL` on ingress of interface 7, chain 0.
fn payload(handle: u32, priority: u32, kind: &str, options: &[Vec<u8>]) -> Vec<u8> {
    let info = priority << 16 | u32::from(3_u16.to_be());
    let header = message(7, handle, INGRESS, info).header;
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut bytes);
    bytes.extend(attribute(1, &[kind.as_bytes(), &[0]].concat()));
    bytes.extend(attribute(11, &[0; 4]));
    bytes.extend(attribute(2, &options.concat()));
    bytes
}

fn filter(handle: u32, priority: u32, kind: &str, options: &[Vec<u8>]) -> Read<RouteNetlinkMessage> {
    taken(&payload(handle, priority, kind, options))
}

/// Recorded: what was sent before the messages were built by a library.
#[test]
fn requests_are_laid_out_as_the_kernel_wants_them() {
    for (parent, bytes) in [
        (
            INGRESS,
            "240000002e0001030700000000000000000000000900000000000000f2ffffff00000000",
        ),
        (
            EGRESS,
            "240000002e0001030700000000000000000000000900000000000000f3ffffff00000000",
        ),
    ] {
        let request = RouteNetlinkMessage::GetTrafficFilter(message(9, 0, parent, 0));
        assert_eq!(encoded(request, 0x300, 7), bytes);
    }
}

#[test]
fn a_bpf_filter_is_read() {
    let options = [
        attribute(7, b"cil_from_container-lxc1\0"),
        attribute(8, &1_u32.to_ne_bytes()),
        // TCA_BPF_FLAGS_GEN, which is not read.
        attribute(9, &8_u32.to_ne_bytes()),
        attribute(11, &42_u32.to_ne_bytes()),
        attribute(10, &[0xde, 0xad, 0xbe, 0xef, 0, 1, 2, 3]),
    ];
    let answer = filter(0x1, 1, "bpf", &options);
    let entry = read(&answer, &|id, tag| id == 42 && tag == "deadbeef00010203").unwrap();
    assert_eq!(
        entry,
        Entry {
            place: Place::Classic {
                priority: 1,
                handle: 1,
                protocol: 3,
                chain: 0
            },
            kind: "bpf".into(),
            program: Some(Program {
                id: 42,
                name: "cil_from_container-lxc1".into(),
                tag: "deadbeef00010203".into()
            }),
            direct_action: true,
            owner: Owner::Cilium,
            ours: true,
        }
    );
    assert_eq!(
        entry.to_string(),
        "program 42 `cil_from_container-lxc1` (Cilium) at priority 1, handle 0x1"
    );
}

#[test]
fn other_kinds_are_kept_and_tables_left_out() {
    // Options of a kind that we do not read may look like anything.
    let flower = read(&filter(1, 20, "flower", &[vec![9, 1, 2, 3]]), NOBODY);
    assert_eq!(
        flower.unwrap().to_string(),
        "a `flower` classifier at priority 20, handle 0x1"
    );
    assert_eq!(read(&filter(0x8000_0000, 3, "u32", &[]), NOBODY), None);
    assert!(read(&filter(0x8000_0800, 3, "u32", &[]), NOBODY).is_some());
    assert_eq!(read(&filter(0, 3, "bpf", &[]), NOBODY), None, "an announcement");
    let classic = read(&filter(1, 3, "bpf", &[]), NOBODY).unwrap();
    assert_eq!((classic.program, classic.direct_action), (None, false));
}

/// Recorded from Linux 6.18 (little endian): what one u32 filter looks like in a list, three messages.
#[cfg(target_endian = "little")]
#[test]
fn a_recorded_list_is_read() {
    let answers = recorded(
        "340000002c00020001000000a2440000000000000300000000000000f2ffffff08000300080001007533320008000b0000000000\
         400000002c00020001000000a2440000000000000300000000000080f2ffffff08000300080001007533320008000b0000000000\
         0c0002000800040001000000\
         740000002c00020001000000a2440000000000000300000000080080f2ffffff08000300080001007533320008000b0000000000\
         4000020024000500010001000000000000000000000000000000000000000000000000000000000008000200000000800800010001\
         00010008000b0008000000",
    );
    assert!(answers.iter().all(Result::is_ok));
    let found: Vec<Entry> = answers
        .iter()
        .filter_map(|answer| read(answer, &|_, _| true))
        .collect();
    assert_eq!(found.len(), 1);
    let expected = Place::Classic {
        priority: 3,
        handle: 0x8000_0800,
        protocol: 0x0800,
        chain: 0,
    };
    assert_eq!((found[0].place, found[0].ours), (expected, false));
    assert_eq!(found[0].kind, "u32");
}

/// A filter that cannot be read stands in the list, at its place, as nobody's, and the forecast says that it does not know.
#[test]
fn what_cannot_be_read_is_an_unknown() {
    let whole = payload(0xdd01, 4, "bpf", &[attribute(7, b"agent-fips-proxy\0")]);
    let unreadable = [
        filter(0xdd01, 4, "bpf", &[attribute(11, &[1])]),
        filter(0xdd01, 4, "bpf", &[attribute(7, &[0xff, 0xfe, 0])]),
        filter(0xdd01, 4, "bpf", &[attribute(10, &[1, 2, 3])]),
        // Cut within an attribute, and behind the header: no kind.
        taken(&whole[..23]),
        taken(&whole[..20]),
    ];
    for answer in unreadable {
        let entry = read(&answer, &|_, _| true).unwrap();
        let place = Place::Classic {
            priority: 4,
            handle: 0xdd01,
            protocol: 3,
            chain: 0,
        };
        assert_eq!((entry.kind.as_str(), entry.place), ("?", place));
        assert!(!entry.ours && !entry.direct_action && entry.program.is_none());
        assert!(!super::super::filter::is_own_filter(&entry));
        let judged = Judged {
            entry,
            returns: Returns::Unknown,
        };
        let ours = Attachment::Classic {
            priority: 10,
            prepend: false,
        };
        let forecast = forecast(&[judged], ours);
        assert!(
            matches!(forecast.reached, Reached::Unknown { .. }),
            "{forecast:?}"
        );
    }
    // Not even a header: it may stand anywhere.
    let entry = read(&taken(&whole[..19]), NOBODY).unwrap();
    assert_eq!(entry.to_string(), "a `?` classifier at priority 0, handle 0x0");
    // An announcement stays one.
    let mut announced = payload(0, 4, "bpf", &[]);
    announced.truncate(23);
    assert_eq!(read(&taken(&announced), NOBODY), None);
}
