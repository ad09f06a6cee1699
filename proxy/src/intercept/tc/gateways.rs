//! Which way a pod sends what is not on its own network, as its namespace shows it: on a bridge, only packets for an
//! address of this host come up to its IP layer, and the others are switched past it.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};

use super::links::{Link, links};
use super::netlink::Netlink;
use super::routes::{V4, V6, is_no_family};
use crate::intercept::error::InterceptError;

/// A default route, or one of the two halves of which VPNs make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// True for IPv6.
    pub ipv6: bool,
    /// The index of the interface that it leaves by; none for a route with several next hops.
    pub interface: Option<u32>,
    /// Its next hop; none where every address is taken to be on the link, and for a route with several.
    pub gateway: Option<IpAddr>,
}

/// What a pod's namespace shows of its network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Its default routes of both families, of every table.
    pub defaults: Vec<DefaultRoute>,
}

impl Inside {
    /// Of the namespace in which `netlink` was opened.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn look(netlink: &mut Netlink) -> Result<Self, InterceptError> {
        let mut defaults = Vec::new();
        for family in [V4, V6] {
            let answers = match netlink.dump("list the routes", &get_routes(family)) {
                // A kernel without IPv6.
                Err(error) if family == V6 && is_no_family(&error) => continue,
                other => other?,
            };
            for answer in answers {
                if let Ok(RouteNetlinkMessage::NewRoute(message)) = answer
                    // Without IPv6 the kernel answers with every other family's.
                    && u8::from(message.header.address_family) == family
                {
                    defaults.extend(read(&message));
                }
            }
        }
        Ok(Self {
            links: links(netlink)?,
            defaults,
        })
    }
}

fn get_routes(family: u8) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family.into();
    RouteNetlinkMessage::GetRoute(message)
}

pub(super) fn read(message: &RouteMessage) -> Option<DefaultRoute> {
    let header = &message.header;
    if header.destination_prefix_length > 1 || header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = DefaultRoute {
        ipv6: u8::from(header.address_family) == V6,
        interface: None,
        gateway: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => route.gateway = Some((*address).into()),
            // An IPv4 route by an IPv6 neighbour (Linux 5.2).
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
            _ => {}
        }
    }
    Some(route)
}

/// Why what a pod sends by its interface `interface` is not for this host, although `bridge` connects them; none where it
/// is. A family without a default route is one that the pod does not use.
pub(super) fn elsewhere(
    defaults: &[DefaultRoute],
    interface: u32,
    bridge: &Link,
    host: &[Link],
) -> Option<String> {
    let own = |gateway: &IpAddr| match gateway {
        // The kernel answers ARP for an address of any of its interfaces.
        IpAddr::V4(_) => host.iter().any(|link| link.addresses.contains(gateway)),
        // Neighbour discovery is answered for those of the interface that was asked.
        IpAddr::V6(_) => bridge.addresses.contains(gateway),
    };
    defaults
        .iter()
        .filter(|route| route.interface.is_none_or(|index| index == interface))
        .find(|route| !route.gateway.as_ref().is_some_and(own))
        .map(|route| {
            let family = if route.ipv6 { "IPv6" } else { "IPv4" };
            match (route.gateway, route.interface) {
                (Some(gateway), _) => {
                    format!("is not the pod's {family} gateway ({gateway}, which is no address of this host there)")
                }
                (None, Some(_)) => format!("is not the pod's {family} gateway (its default route names none)"),
                (None, None) => {
                    format!("is not the pod's only {family} gateway (its default route has several next hops)")
                }
            }
        })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use nix::libc;

    use super::super::netlink::{Protocol, encoded};
    use super::*;

    /// The header of a route: family, length of the destination's prefix, type (unicast is 1).
    fn header(family: u8, length: u8, kind: u8) -> [u8; 12] {
        [family, length, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0]
    }

    fn taken(header: [u8; 12], attributes: &[&[u8]]) -> Option<DefaultRoute> {
        let mut netlink = NetlinkHeader::default();
        netlink.message_type = libc::RTM_NEWROUTE;
        let payload = [&header[..], &attributes.concat()].concat();
        match RouteNetlinkMessage::read(&netlink, &payload).unwrap() {
            RouteNetlinkMessage::NewRoute(message) => read(&message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn routes_are_asked_for_as_the_kernel_wants_it() {
        assert_eq!(
            encoded(get_routes(V6), 0x300, 7),
            "1c0000001a00010307000000000000000a0000000000000000000000"
        );
    }

    #[test]
    fn default_routes_are_read() {
        let interface = [8, 0, 4, 0, 2, 0, 0, 0];
        let gateway = [8, 0, 5, 0, 198, 51, 100, 1];
        let route = |interface, gateway: Option<&str>| {
            Some(DefaultRoute {
                ipv6: false,
                interface,
                gateway: gateway.map(|address| address.parse().unwrap()),
            })
        };
        let whole = route(Some(2), Some("198.51.100.1"));
        assert_eq!(taken(header(V4, 0, 1), &[&interface, &gateway]), whole);
        assert_eq!(taken(header(V4, 1, 1), &[&interface, &gateway]), whole, "a half");
        assert_eq!(
            taken(header(V4, 2, 1), &[&interface, &gateway]),
            None,
            "a network"
        );
        assert_eq!(taken(header(V4, 0, 7), &[&interface]), None, "unreachable");
        assert_eq!(taken(header(V4, 0, 1), &[&interface]), route(Some(2), None));
        // Several next hops: an attribute that is not read.
        let several = [8, 0, 9, 0, 0, 0, 0, 0];
        assert_eq!(taken(header(V4, 0, 1), &[&several]), route(None, None));
        let mut via = vec![22, 0, 18, 0, 10, 0];
        via.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(
            taken(header(V4, 0, 1), &[&interface, &via]),
            route(Some(2), Some("fe80::1"))
        );
        let mut six = vec![20, 0, 5, 0, 0xfe, 0x80];
        six.extend([0; 13]);
        six.push(1);
        let found = taken(header(V6, 0, 1), &[&interface, &six]).unwrap();
        assert_eq!(
            (found.ipv6, found.gateway),
            (true, Some("fe80::1".parse().unwrap()))
        );
    }

    #[test]
    fn only_this_host_may_be_the_gateway() {
        let link = |index, addresses: &[&str]| Link {
            index,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Link::default()
        };
        let bridge = link(9, &["198.51.100.1", "2001:db8::1", "fe80::1"]);
        let host = [link(3, &["203.0.113.1", "2001:db8:3::1"]), bridge.clone()];
        let route = |interface, gateway: Option<&str>| {
            let gateway: Option<IpAddr> = gateway.map(|address| address.parse().unwrap());
            DefaultRoute {
                ipv6: gateway.is_some_and(|address| address.is_ipv6()),
                interface,
                gateway,
            }
        };
        let judge = |routes: &[DefaultRoute]| elsewhere(routes, 2, &bridge, &host);
        assert_eq!(judge(&[]), None, "no way out at all");
        for gateway in ["198.51.100.1", "203.0.113.1", "2001:db8::1", "fe80::1"] {
            assert_eq!(judge(&[route(Some(2), Some(gateway))]), None, "{gateway}");
        }
        let good = route(Some(2), Some("198.51.100.1"));
        for (bad, words) in [
            (
                route(Some(2), Some("198.51.100.254")),
                "IPv4 gateway (198.51.100.254,",
            ),
            (route(Some(2), Some("fe80::2")), "IPv6 gateway (fe80::2,"),
            (
                route(Some(2), Some("2001:db8:3::1")),
                "IPv6 gateway (2001:db8:3::1,",
            ),
            (route(Some(2), None), "names none"),
            (route(None, None), "several next hops"),
        ] {
            let text = judge(&[good.clone(), bad]).unwrap();
            assert!(text.contains(words), "{text}");
        }
        assert_eq!(
            judge(&[route(Some(5), Some("192.0.2.1"))]),
            None,
            "another interface's"
        );
    }

    #[test]
    fn this_namespaces_routes_are_read() {
        let inside = Inside::look(&mut Netlink::open().unwrap()).unwrap();
        assert!(inside.links.iter().any(|link| link.name == "lo"));
    }
}
