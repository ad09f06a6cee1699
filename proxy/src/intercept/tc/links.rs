//! Interfaces: what a namespace has, and which host interface is the other side of a pod's.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::DecodeError;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::libc;

use super::gateways::{Inside, elsewhere};
use super::netlink::{Netlink, Read, malformed, pass_over};
use crate::intercept::error::InterceptError;

/// `ARPHRD_LOOPBACK` (linux/if_arp.h).
const LOOPBACK: u16 = 772;

/// An interface as its namespace shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `bridge`, `netkit`, ...; none for a physical one.
    pub kind: Option<String>,
    /// `ARPHRD_*`
    pub hardware: u16,
    /// The index of the bridge or the like that it is a port of.
    pub master: Option<u32>,
    /// `IFLA_LINK`: the index of its other side or lower interface, in the namespace `peer_netns`.
    pub peer: Option<u32>,
    /// `IFLA_LINK_NETNSID`: the number that this namespace has for the peer's; none when it is the same.
    pub peer_netns: Option<i32>,
    /// `IFF_UP`
    pub up: bool,
    /// Packets received since it was made.
    pub rx_packets: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Every interface of the namespace in which `netlink` was opened, with its addresses, by index. One that cannot be read
/// is passed over.
///
/// # Errors
/// As [`Netlink::dump`].
pub fn links(netlink: &mut Netlink) -> Result<Vec<Link>, InterceptError> {
    let what = "list the interfaces";
    let mut found = Vec::new();
    for answer in netlink.dump(what, &get_links())? {
        if let Ok(RouteNetlinkMessage::NewLink(message)) = answer {
            match read_link(&message) {
                Ok(link) => found.push(link),
                Err(why) => pass_over(what, libc::RTM_NEWLINK, &why),
            }
        }
    }
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for answer in netlink.dump("list the addresses", &request)? {
        if let Ok(RouteNetlinkMessage::NewAddress(message)) = answer
            && let Some(address) = read_address(&message)
            && let Some(link) = found
                .iter_mut()
                .find(|link: &&mut Link| link.index == message.header.index)
        {
            link.addresses.push(address);
        }
    }
    found.sort_by_key(|link| link.index);
    Ok(found)
}

fn get_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// No answer at all is none; one of another type, or one that cannot be read, is an error.
fn absent<T>(what: &str, answer: Option<Read<RouteNetlinkMessage>>) -> Result<Option<T>, InterceptError> {
    match answer {
        None => Ok(None),
        Some(Ok(_)) => Err(malformed(what, &"it is of another type")),
        Some(Err(unread)) => Err(malformed(what, &unread.why)),
    }
}

/// The number that the namespace of `netlink` has for another one (`RTM_GETNSID`), as in [`Link::peer_netns`]. The kernel
/// gives a number when it first lists a link into that namespace: ask after [`links`]. None when it has none.
///
/// # Errors
/// As [`Netlink::request`]; a descriptor that is no network namespace; an answer that cannot be read.
pub fn netns_id(netlink: &mut Netlink, namespace: BorrowedFd<'_>) -> Result<Option<i32>, InterceptError> {
    let what = "read the number of a network namespace";
    let request = get_netns_id(namespace.as_raw_fd().cast_unsigned());
    match netlink.request(what, 0, request)?.into_iter().next() {
        Some(Ok(RouteNetlinkMessage::NewNsId(message))) => Ok(read_netns_id(&message)),
        other => absent(what, other),
    }
}

fn get_netns_id(descriptor: u32) -> RouteNetlinkMessage {
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Fd(descriptor)];
    RouteNetlinkMessage::GetNsId(message)
}

pub(super) fn read_netns_id(message: &NsidMessage) -> Option<i32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NsidAttribute::Id(number) => Some(*number),
            _ => None,
        })
        // NETNSA_NSID_NOT_ASSIGNED is -1.
        .filter(|number| *number >= 0)
}

pub(super) fn read_link(message: &LinkMessage) -> Result<Link, DecodeError> {
    let mut link = Link {
        index: message.header.index,
        hardware: message.header.link_layer_type.into(),
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            // 0 stands for "none" in some drivers.
            LinkAttribute::Link(index) => link.peer = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(number) => link.peer_netns = Some(*number),
            LinkAttribute::Stats64(statistics) => link.rx_packets = statistics.rx_packets,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if link.name.is_empty() {
        return Err(DecodeError::from("an interface has no name"));
    }
    Ok(link)
}

/// On a point-to-point interface `IFA_ADDRESS` is the other side, `IFA_LOCAL` ours; IPv6 has the first only.
pub(super) fn read_address(message: &AddressMessage) -> Option<IpAddr> {
    let attributes = &message.attributes;
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// Where a classifier goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The host side.
    pub link: Link,
    /// What the IP layer sees a packet come in by, for `iif` of a rule: the bridge, else the link itself.
    pub rule_device: String,
}

/// Why a pod's interface has no place for a classifier on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsuitable {
    /// A netkit pair: packets are redirected within it.
    Netkit {
        /// The pod's interface.
        interface: String,
    },
    /// A kind without a host side that sees the pod's packets: macvlan, ipvlan, ...
    Kind {
        /// The pod's interface.
        interface: String,
        /// `IFLA_INFO_KIND`
        kind: String,
    },
    /// A physical or virtual function given to the pod.
    Hardware {
        /// The pod's interface.
        interface: String,
    },
    /// A veth whose other side is not in the host's namespace, or not provably the other side.
    NoHostSide {
        /// The pod's interface.
        interface: String,
    },
    /// The host side is a port of a bridge that only switches the pod's packets.
    Bridge {
        /// The host side.
        port: String,
        /// The bridge.
        bridge: String,
        /// What it lacks.
        reason: String,
    },
    /// The host side belongs to something that takes its packets before the IP layer (Open vSwitch, VRF, bond).
    Master {
        /// The host side.
        port: String,
        /// What it belongs to.
        master: String,
    },
    /// Nothing but loopback: a pod on the host's network, or one without any.
    NoInterface,
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netkit { interface } => write!(
                f,
                "the pod's interface {interface} is a netkit device: its packets are redirected before the host side \
                 sees them"
            ),
            Self::Kind { interface, kind } => write!(
                f,
                "the pod's interface {interface} is of kind {kind}: it has no host side that sees its packets"
            ),
            Self::Hardware { interface } => write!(
                f,
                "the pod's interface {interface} is a network card or a virtual function (SR-IOV): the host does not \
                 see its packets"
            ),
            Self::NoHostSide { interface } => write!(
                f,
                "the other side of the pod's interface {interface} is not in the host's network namespace"
            ),
            Self::Bridge { port, bridge, reason } => write!(
                f,
                "the pod's host side {port} is a port of the bridge {bridge}, which {reason}: the pod's packets are \
                 switched, and never reach the host's IP layer"
            ),
            Self::Master { port, master } => write!(
                f,
                "the pod's host side {port} belongs to {master}, which takes its packets before the host's IP layer"
            ),
            Self::NoInterface => write!(
                f,
                "the pod has no interface but loopback: a pod on the host's own network, or one without any"
            ),
        }?;
        f.write_str("; set intercept.datapath: cgroup")
    }
}

impl std::error::Error for Unsuitable {}

/// From what a pod's namespace shows and the links of the host, each listed inside its namespace: where classifiers go.
/// `pod_netns` is the host's number for the pod's namespace ([`netns_id`]). A pod with several veth pairs has several
/// places; what is beside them is [`overlooked`].
///
/// # Errors
/// Why there is no place at all.
pub fn host_side(pod: &Inside, host: &[Link], pod_netns: Option<i32>) -> Result<Vec<Spot>, Unsuitable> {
    let mut reason = None;
    let mut spots = Vec::new();
    for judged in pod
        .links
        .iter()
        .filter_map(|link| place(link, pod, host, pod_netns))
    {
        match judged {
            Ok(spot) => spots.push(spot),
            Err(unsuitable) => reason = reason.or(Some(unsuitable)),
        }
    }
    if spots.is_empty() {
        return Err(reason.unwrap_or(Unsuitable::NoInterface));
    }
    Ok(spots)
}

/// Interfaces of a pod that are up and have no place, beside those that have one: connections by them are not seen.
pub fn overlooked(pod: &Inside, host: &[Link], pod_netns: Option<i32>) -> Vec<Unsuitable> {
    pod.links
        .iter()
        .filter(|link| link.up)
        .filter_map(|link| place(link, pod, host, pod_netns)?.err())
        .collect()
}

/// The place for one of a pod's interfaces; none for those that do not count.
fn place(
    link: &Link,
    pod: &Inside,
    host: &[Link],
    pod_netns: Option<i32>,
) -> Option<Result<Spot, Unsuitable>> {
    if link.hardware == LOOPBACK {
        return None;
    }
    let interface = link.name.clone();
    match link.kind.as_deref() {
        Some("veth") => {}
        Some("netkit") => return Some(Err(Unsuitable::Netkit { interface })),
        // Fallback devices that the kernel puts into every namespace (`sit0`, `tunl0`, ...), and tunnels, whose packets
        // leave by another interface once more.
        Some(
            "sit" | "ipip" | "ip6tnl" | "gre" | "gretap" | "erspan" | "ip6gre" | "vti" | "vti6" | "dummy"
            | "ifb",
        ) => {
            return None;
        }
        Some(kind) => {
            return Some(Err(Unsuitable::Kind {
                interface,
                kind: kind.to_owned(),
            }));
        }
        None => return Some(Err(Unsuitable::Hardware { interface })),
    }
    // A pair within the pod.
    link.peer_netns?;
    // Both directions: an index alone names another interface in every namespace.
    let other = host.iter().find(|other| {
        Some(other.index) == link.peer
            && other.kind == link.kind
            && other.peer == Some(link.index)
            && other.peer_netns.is_some()
            && other.peer_netns == pod_netns
    });
    let Some(other) = other else {
        return Some(Err(Unsuitable::NoHostSide { interface }));
    };
    Some(rule_device(link, pod, other, host).map(|rule_device| Spot {
        link: other.clone(),
        rule_device,
    }))
}

/// What the IP layer sees the packets of a pod's interface come in by, whose host side is `other`.
fn rule_device(link: &Link, pod: &Inside, other: &Link, host: &[Link]) -> Result<String, Unsuitable> {
    let Some(index) = other.master else {
        return Ok(other.name.clone());
    };
    let port = other.name.clone();
    let master = host.iter().find(|other| other.index == index);
    match master {
        Some(bridge) if bridge.kind.as_deref() == Some("bridge") => {
            let routed = |address: &IpAddr| match address {
                IpAddr::V4(address) => !address.is_link_local(),
                IpAddr::V6(address) => !address.is_unicast_link_local(),
            };
            let reason = if !bridge.up {
                "is down".to_owned()
            } else if !bridge.addresses.iter().any(routed) {
                "has no IP address".to_owned()
            } else if let Some(reason) = elsewhere(&pod.defaults, link.index, bridge, host) {
                reason
            } else {
                return Ok(bridge.name.clone());
            };
            Err(Unsuitable::Bridge {
                port,
                bridge: bridge.name.clone(),
                reason,
            })
        }
        Some(other) => Err(Unsuitable::Master {
            port,
            master: format!("{} ({})", other.name, other.kind.as_deref().unwrap_or("hardware")),
        }),
        None => Err(Unsuitable::Master {
            port,
            master: format!("an interface of another namespace (index {index})"),
        }),
    }
}

#[cfg(test)]
mod tests;
