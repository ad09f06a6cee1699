//! Tests of the links: recorded answers, and which host side is whose.

use std::net::Ipv6Addr;

use netlink_packet_core::{DefaultNla, Emitable, NetlinkHeader};

use super::super::gateways::DefaultRoute;
use super::super::netlink::{Protocol, encoded};
use super::*;

fn veth(index: u32, name: &str, peer: u32, netns: i32) -> Link {
    Link {
        index,
        name: name.into(),
        kind: Some("veth".into()),
        hardware: 1,
        peer: Some(peer),
        peer_netns: Some(netns),
        up: true,
        ..Link::default()
    }
}

/// A pod without routes.
fn inside(links: impl Into<Vec<Link>>) -> Inside {
    Inside {
        links: links.into(),
        defaults: Vec::new(),
    }
}

fn of_kind(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.into(),
        kind: kind.map(str::to_owned),
        hardware: 1,
        up: true,
        ..Link::default()
    }
}

fn loopback() -> Link {
    Link {
        index: 1,
        name: "lo".into(),
        hardware: LOOPBACK,
        up: true,
        ..Link::default()
    }
}

/// What the exchange makes of a message with this header and these attributes.
fn read(kind: u16, header: &[u8], attributes: &[(u16, Vec<u8>)]) -> Result<RouteNetlinkMessage, DecodeError> {
    let mut payload = header.to_vec();
    for (kind, value) in attributes {
        let attribute = DefaultNla::new(*kind, value.clone());
        let from = payload.len();
        payload.resize(from + attribute.buffer_len(), 0);
        attribute.emit(&mut payload[from..]);
    }
    read_bytes(kind, &payload)
}

fn read_bytes(kind: u16, payload: &[u8]) -> Result<RouteNetlinkMessage, DecodeError> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::read(&header, payload)
}

fn one_link(message: RouteNetlinkMessage) -> LinkMessage {
    match message {
        RouteNetlinkMessage::NewLink(message) => message,
        other => panic!("{other:?}"),
    }
}

/// Recorded: what was sent before the messages were built by a library, and worked on every kernel that was tried.
#[test]
fn requests_are_laid_out_as_the_kernel_wants_them() {
    for (request, flags, bytes) in [
        (
            get_links(),
            0x300,
            "2000000012000103070000000000000000000000000000000000000000000000",
        ),
        (
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            0x300,
            "180000001600010307000000000000000000000000000000",
        ),
        (
            get_netns_id(5),
            4,
            "1c0000005a0005000700000000000000000000000800030005000000",
        ),
    ] {
        assert_eq!(encoded(request, flags, 7), bytes);
    }
}

/// The attributes of the host side of a veth pair that we read, laid out as the kernel does.
#[test]
fn a_link_is_read() {
    let mut header = [0_u8; 16];
    header[2..4].copy_from_slice(&1_u16.to_ne_bytes());
    header[4..8].copy_from_slice(&7_u32.to_ne_bytes());
    header[8..12].copy_from_slice(&0x11043_u32.to_ne_bytes());
    let mut statistics = vec![0_u8; 200];
    statistics[..8].copy_from_slice(&4711_u64.to_ne_bytes());
    let word = |value: u32| value.to_ne_bytes().to_vec();
    let full = [
        (3, b"veth1a2b\0".to_vec()),
        (5, word(2)),
        (10, word(3)),
        (23, statistics),
        (37, word(0)),
        (18 | 0x8000, [&[9, 0, 1, 0][..], b"veth\0\0\0\0"].concat()),
    ];
    let expected = Link {
        master: Some(3),
        rx_packets: 4711,
        ..veth(7, "veth1a2b", 2, 0)
    };
    let link = read_link(&one_link(read(libc::RTM_NEWLINK, &header, &full).unwrap()));
    assert_eq!(link.unwrap(), expected);
    // The statistics of a kernel before 3.17 are shorter; a later one's may be longer.
    for length in [184, 208] {
        let mut other = full.clone();
        other[3].1.resize(length, 0);
        let link = read_link(&one_link(read(libc::RTM_NEWLINK, &header, &other).unwrap()));
        assert_eq!(link.unwrap(), expected, "{length}");
    }
    let nameless = read(libc::RTM_NEWLINK, &header, &full[1..]).unwrap();
    assert!(read_link(&one_link(nameless)).is_err());
    let wrong = [full[0].clone(), (5, vec![1])];
    assert!(
        read(libc::RTM_NEWLINK, &header, &wrong).is_err(),
        "a number of one byte"
    );
}

#[test]
fn addresses_are_ours_not_the_other_sides() {
    let mut header = [0_u8; 8];
    header[4..8].copy_from_slice(&5_u32.to_ne_bytes());
    let read = |attributes: &[(u16, Vec<u8>)]| match read(libc::RTM_NEWADDR, &header, attributes) {
        Ok(RouteNetlinkMessage::NewAddress(message)) => Ok((message.header.index, read_address(&message))),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    assert_eq!(
        read(&[(1, vec![198, 51, 100, 9]), (2, vec![198, 51, 100, 1])]).unwrap(),
        (5, Some(IpAddr::from([198, 51, 100, 1])))
    );
    let six: Ipv6Addr = "2001:db8::1".parse().unwrap();
    assert_eq!(
        read(&[(1, six.octets().to_vec())]).unwrap(),
        (5, Some(six.into()))
    );
    assert!(read(&[(1, vec![1, 2, 3])]).is_err());
}

/// A namespace with a number, and one without, as the kernel answers.
#[test]
fn a_namespaces_number_is_read() {
    for (number, expected) in [(99, Some(99)), (-1, None)] {
        let payload = [&[0, 0, 0, 0, 8, 0, 1, 0][..], &i32::to_ne_bytes(number)].concat();
        let Ok(RouteNetlinkMessage::NewNsId(message)) = read_bytes(libc::RTM_NEWNSID, &payload) else {
            panic!("not read");
        };
        assert_eq!(read_netns_id(&message), expected);
    }
}

#[test]
fn this_hosts_links_are_listed() {
    let mut netlink = Netlink::open().unwrap();
    let found = links(&mut netlink).unwrap();
    let lo = found.iter().find(|link| link.name == "lo").unwrap();
    assert_eq!((lo.index, lo.hardware), (1, LOOPBACK));
}

#[test]
fn the_other_side_is_proved_in_both_directions() {
    let pod = inside([loopback(), veth(2, "eth0", 7, 0)]);
    let right = veth(7, "veth7", 2, 4);
    assert_eq!(
        host_side(&pod, &[loopback(), right.clone()], Some(4)).unwrap(),
        [Spot {
            link: right.clone(),
            rule_device: "veth7".into()
        }]
    );
    let none = Err(Unsuitable::NoHostSide {
        interface: "eth0".into(),
    });
    for (wrong, id) in [
        (veth(7, "veth7", 2, 5), Some(4)),
        (veth(7, "veth7", 3, 4), Some(4)),
        (veth(8, "veth8", 2, 4), Some(4)),
        (right.clone(), None),
        (
            Link {
                peer_netns: None,
                ..right.clone()
            },
            None,
        ),
        (
            Link {
                kind: Some("vlan".into()),
                ..right
            },
            Some(4),
        ),
    ] {
        assert_eq!(
            host_side(&pod, std::slice::from_ref(&wrong), id),
            none,
            "{wrong:?}"
        );
    }
}

#[test]
fn several_pairs_several_places() {
    let pod = inside([
        veth(2, "eth0", 7, 0),
        veth(3, "net1", 8, 0),
        of_kind(4, "net2", Some("macvlan")),
    ]);
    let host = [veth(7, "veth7", 2, 4), veth(8, "veth8", 3, 4)];
    let spots = host_side(&pod, &host, Some(4)).unwrap();
    assert_eq!(spots.len(), 2);
    assert_eq!(
        overlooked(&pod, &host, Some(4)),
        [Unsuitable::Kind {
            interface: "net2".into(),
            kind: "macvlan".into()
        }]
    );
}

#[test]
fn a_bridge_must_route() {
    let mut pod = inside([veth(2, "eth0", 7, 0)]);
    let port = Link {
        master: Some(9),
        ..veth(7, "veth7", 2, 4)
    };
    let bridge = of_kind(9, "cni0", Some("bridge"));
    let addressed = |address: &str| Link {
        addresses: vec![address.parse().unwrap()],
        ..bridge.clone()
    };
    let side = |pod: &Inside, master: Link| host_side(pod, &[port.clone(), master], Some(4));
    assert_eq!(
        side(&pod, addressed("198.51.100.1")).unwrap()[0].rule_device,
        "cni0"
    );
    assert_eq!(
        side(&pod, addressed("2001:db8::1")).unwrap()[0].rule_device,
        "cni0"
    );
    for (master, reason) in [
        (bridge.clone(), "has no IP address"),
        (addressed("fe80::1"), "has no IP address"),
        (
            Link {
                up: false,
                ..addressed("198.51.100.1")
            },
            "is down",
        ),
    ] {
        let text = side(&pod, master).unwrap_err().to_string();
        assert!(
            text.contains(reason) && text.contains("intercept.datapath: cgroup"),
            "{text}"
        );
    }
    let text = side(&pod, of_kind(9, "ovs-system", Some("openvswitch")))
        .unwrap_err()
        .to_string();
    assert!(text.contains("ovs-system (openvswitch)"), "{text}");
    // One family by this host, the other by somebody else.
    for (gateway, good) in [("198.51.100.1", true), ("2001:db8::fe", false)] {
        let gateway: IpAddr = gateway.parse().unwrap();
        pod.defaults.push(DefaultRoute {
            ipv6: gateway.is_ipv6(),
            interface: Some(2),
            gateway: Some(gateway),
        });
        match side(&pod, addressed("198.51.100.1")) {
            Ok(_) => assert!(good, "{gateway}"),
            Err(why) => {
                let text = why.to_string();
                assert!(!good && text.contains("IPv6 gateway (2001:db8::fe"), "{text}");
            }
        }
    }
}

#[test]
fn kinds_without_a_host_side_are_named() {
    for (link, part) in [
        (of_kind(2, "eth0", Some("netkit")), "netkit device"),
        (of_kind(2, "eth0", Some("macvlan")), "kind macvlan"),
        (of_kind(2, "eth0", Some("ipvlan")), "kind ipvlan"),
        (of_kind(2, "eth0", None), "SR-IOV"),
    ] {
        let text = host_side(&inside([loopback(), link]), &[], Some(4))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains(part) && text.contains("intercept.datapath: cgroup"),
            "{text}"
        );
    }
    assert_eq!(
        host_side(&inside([loopback()]), &[], Some(4)),
        Err(Unsuitable::NoInterface)
    );
    let fallback = inside([loopback(), of_kind(2, "sit0", Some("sit"))]);
    assert_eq!(host_side(&fallback, &[], Some(4)), Err(Unsuitable::NoInterface));
}
