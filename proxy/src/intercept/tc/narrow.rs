//! What of a routing message is read: of each only the attributes that we use reach the library.
//!
//! `netlink-packet-route` refuses a whole message when it cannot read one attribute of it, and the lists that we read hold
//! other people's filters, links and rules, of kinds and kernels that nobody foresaw. So a message is narrowed first, and
//! the library sees names and numbers only. Its many readers of tunnels, CAN timing, virtual functions and the like cut
//! slices by lengths that a message names. They check these (60,000 malformed messages, given whole, made version 0.34 not
//! panic), but never called they need not be trusted: a panic would end the process.

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NLA_HEADER_SIZE, NlaBuffer};
use nix::libc;

/// A message: the length of its family's header, and the attributes of it that are read.
struct Layout {
    header: usize,
    keep: &'static [Keep],
}

/// An attribute that is read.
#[derive(Clone, Copy)]
enum Keep {
    /// As it is.
    Whole(u16),
    /// Of the attributes in it these.
    Within(u16, &'static [u16]),
}

// The names are those of linux/if_link.h, if_addr.h, fib_rules.h, rtnetlink.h, pkt_cls.h and net_namespace.h.
const LINK: Layout = Layout {
    // `struct ifinfomsg`; IFLA_IFNAME, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO (IFLA_INFO_KIND), IFLA_STATS64,
    // IFLA_LINK_NETNSID
    header: 16,
    keep: &[
        Keep::Whole(3),
        Keep::Whole(5),
        Keep::Whole(10),
        Keep::Within(18, &[1]),
        Keep::Whole(23),
        Keep::Whole(37),
    ],
};
const ADDRESS: Layout = Layout {
    // `struct ifaddrmsg`; IFA_ADDRESS, IFA_LOCAL
    header: 8,
    keep: &[Keep::Whole(1), Keep::Whole(2)],
};
const RULE: Layout = Layout {
    // `struct fib_rule_hdr`; FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_OIFNAME, FRA_PROTOCOL
    header: 12,
    keep: &[
        Keep::Whole(3),
        Keep::Whole(6),
        Keep::Whole(10),
        Keep::Whole(15),
        Keep::Whole(16),
        Keep::Whole(17),
        Keep::Whole(21),
    ],
};
const ROUTE: Layout = Layout {
    // `struct rtmsg`; RTA_OIF, RTA_GATEWAY, RTA_VIA
    header: 12,
    keep: &[Keep::Whole(4), Keep::Whole(5), Keep::Whole(18)],
};
const QDISC: Layout = Layout {
    // `struct tcmsg`; TCA_KIND
    header: 20,
    keep: &[Keep::Whole(TCA_KIND)],
};
const FILTER: Layout = Layout {
    // Besides: TCA_CHAIN
    header: 20,
    keep: &[Keep::Whole(TCA_KIND), Keep::Whole(11)],
};
const BPF_FILTER: Layout = Layout {
    // Besides: TCA_OPTIONS (TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_TAG, TCA_BPF_ID)
    header: 20,
    keep: &[
        Keep::Whole(TCA_KIND),
        Keep::Within(2, &[7, 8, 10, 11]),
        Keep::Whole(11),
    ],
};
const NETNS_ID: Layout = Layout {
    // `struct rtgenmsg`, padded; NETNSA_NSID
    header: 4,
    keep: &[Keep::Whole(1)],
};
const TCA_KIND: u16 = 1;

/// The payload of a message of this type, with the attributes that are read.
///
/// # Errors
/// A type that is never asked for; a message shorter than its header; an attribute that leaves it.
pub(super) fn narrow(kind: u16, payload: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut layout = match kind {
        libc::RTM_NEWLINK => LINK,
        libc::RTM_NEWADDR => ADDRESS,
        libc::RTM_NEWRULE => RULE,
        libc::RTM_NEWROUTE => ROUTE,
        libc::RTM_NEWQDISC => QDISC,
        libc::RTM_NEWTFILTER => FILTER,
        libc::RTM_NEWNSID => NETNS_ID,
        _ => return Err(DecodeError::from("it is of a type that was not asked for")),
    };
    let (header, rest) = payload
        .split_at_checked(layout.header)
        .ok_or_else(|| DecodeError::from("it is shorter than its header"))?;
    let attributes = attributes(rest)?;
    // Every kind of filter has its own options; only those of this kind are ours to read.
    if kind == libc::RTM_NEWTFILTER && attributes.contains(&(TCA_KIND, b"bpf\0")) {
        layout = BPF_FILTER;
    }
    let mut narrowed = header.to_vec();
    for (kind, value) in attributes {
        for keep in layout.keep {
            match *keep {
                Keep::Whole(wanted) if wanted == kind => push(&mut narrowed, kind, value.to_vec()),
                Keep::Within(wanted, inner) if wanted == kind => {
                    let mut nest = Vec::new();
                    for (kind, value) in self::attributes(value)? {
                        if inner.contains(&kind) {
                            push(&mut nest, kind, value.to_vec());
                        }
                    }
                    // The library takes a nest without anything in it for an error.
                    if !nest.is_empty() {
                        push(&mut narrowed, kind, nest);
                    }
                }
                Keep::Whole(_) | Keep::Within(..) => {}
            }
        }
    }
    Ok(narrowed)
}

/// Types and values of the attributes in these bytes, in their order; without the flags in a type.
///
/// # Errors
/// An attribute that is shorter than its header or leaves the bytes.
pub(in crate::intercept) fn attributes(bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, DecodeError> {
    let mut found = Vec::new();
    let mut rest = bytes;
    // Fewer bytes than a header are padding (`nla_ok`); the library's own iterator takes them for an error.
    while rest.len() >= NLA_HEADER_SIZE {
        let attribute = NlaBuffer::new_checked(rest)?;
        let length = usize::from(attribute.length());
        // Checked above: neither shorter than the header nor longer than what is there.
        let value = rest.get(NLA_HEADER_SIZE..length).unwrap_or_default();
        found.push((attribute.kind(), value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// Appends an attribute that came out of a message, and so is no longer than one can be.
fn push(bytes: &mut Vec<u8>, kind: u16, value: Vec<u8>) {
    let attribute = DefaultNla::new(kind, value);
    let from = bytes.len();
    bytes.resize(from + attribute.buffer_len(), 0);
    attribute.emit(&mut bytes[from..]);
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
    use netlink_packet_route::RouteNetlinkMessage;
    use proptest::prelude::*;

    use super::*;

    const TYPES: [u16; 7] = [
        libc::RTM_NEWLINK,
        libc::RTM_NEWADDR,
        libc::RTM_NEWRULE,
        libc::RTM_NEWROUTE,
        libc::RTM_NEWQDISC,
        libc::RTM_NEWTFILTER,
        libc::RTM_NEWNSID,
    ];

    /// What the exchange does with a message.
    fn read(kind: u16, payload: &[u8]) -> Result<RouteNetlinkMessage, DecodeError> {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        RouteNetlinkMessage::deserialize(&header, &narrow(kind, payload)?)
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push(&mut bytes, kind, value.to_vec());
        bytes
    }

    #[test]
    fn only_what_is_read_is_left() {
        let kept = [attribute(3, b"eth0\0"), attribute(18, &attribute(1, b"veth\0"))];
        let full = [
            vec![0; 16],
            attribute(1, &[2; 6]),
            kept[0].clone(),
            // A nest with its flag, and in it what goes: XSTATS without a kind before it fails a whole message.
            attribute(
                0x8000 | 18,
                &[attribute(3, &[1, 2, 3]), attribute(1, b"veth\0")].concat(),
            ),
            attribute(26, &[1, 2, 3]),
            vec![0; 3],
        ]
        .concat();
        let narrowed = narrow(libc::RTM_NEWLINK, &full).unwrap();
        assert_eq!(narrowed, [vec![0; 16], kept.concat()].concat());
        assert!(read(libc::RTM_NEWLINK, &full).is_ok());
        // A port's nest may hold nothing that we read.
        let port = [vec![0; 16], attribute(18, &attribute(4, b"bond\0"))].concat();
        assert_eq!(narrow(libc::RTM_NEWLINK, &port).unwrap(), vec![0; 16]);
    }

    #[test]
    fn options_are_read_of_one_kind_of_filter_only() {
        let options = attribute(2, &attribute(11, &[1]));
        for (kind, length) in [
            (&b"bpf\0"[..], 20 + 8 + 12),
            (b"basic\0", 20 + 12),
            (b"u32\0", 20 + 8),
        ] {
            let full = [vec![0; 20], attribute(1, kind), options.clone()].concat();
            assert_eq!(narrow(libc::RTM_NEWTFILTER, &full).unwrap().len(), length);
        }
    }

    #[test]
    fn wrong_lengths_and_types_are_errors() {
        assert!(narrow(libc::RTM_NEWLINK, &[0; 15]).is_err());
        assert!(narrow(libc::RTM_NEWNEIGH, &[0; 64]).is_err());
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = attribute(3, &[0; 4]);
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert!(attributes(&bytes).is_err(), "attribute length {length}");
        }
        assert_eq!(attributes(&[0; 3]).unwrap(), []);
    }

    /// Attributes of the types that are read, and others, with values of every length, some holding attributes.
    fn garbage() -> impl Strategy<Value = Vec<u8>> {
        let value = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            Just(b"bpf\0".to_vec()),
            Just(b"veth\0".to_vec()),
            Just(b"can\0".to_vec()),
        ];
        let one = (0_u16..45, value).prop_map(|(kind, value)| attribute(kind, &value));
        let nest = (0_u16..45, proptest::collection::vec(one.clone(), 0..4))
            .prop_map(|(kind, inner)| attribute(kind, &inner.concat()));
        proptest::collection::vec(prop_oneof![one, nest], 0..8).prop_map(|all| all.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Any bytes: a message or an error, never a panic.
        #[test]
        fn any_bytes_are_read_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            for kind in TYPES {
                let _ = read(kind, &payload);
            }
        }

        /// Well-formed attributes with wrong values, whole and cut anywhere.
        #[test]
        fn any_attributes_are_read_or_refused(
            header in proptest::collection::vec(any::<u8>(), 20),
            attributes in garbage(),
            cut in any::<proptest::sample::Index>(),
        ) {
            for kind in TYPES {
                let length = match kind {
                    libc::RTM_NEWLINK => 16,
                    libc::RTM_NEWADDR => 8,
                    libc::RTM_NEWRULE | libc::RTM_NEWROUTE => 12,
                    libc::RTM_NEWNSID => 4,
                    _ => 20,
                };
                let whole = [&header[..length], &attributes].concat();
                let _ = read(kind, &whole);
                let _ = read(kind, &whole[..cut.index(whole.len() + 1)]);
            }
        }
    }
}
