//! Where a request goes: the name that is verified, and which addresses may be dialled for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use http::HeaderValue;
use http::uri::Authority;
use ipnet::IpNet;

use crate::catalog::{Catalog, Product};
use crate::relay::decide::Route;

/// Different names that are remembered per thread. Patterns such as `*-intake` allow endless ones.
const MAX_TARGETS: usize = 512;

/// An intake, with everything made once that every request to it needs.
#[derive(Debug)]
pub(in crate::relay) struct Target {
    pub(in crate::relay) product: Product,
    /// The name: in SNI, in Host, and what the certificate is verified for.
    pub(in crate::relay) name: Rc<str>,
    pub(super) host: HeaderValue,
    pub(super) authority: Option<Authority>,
}

impl Target {
    fn new(product: Product, name: &str) -> Self {
        Self {
            product,
            // Catalogue names are DNS names, which both types accept.
            host: HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("")),
            authority: name.parse().ok(),
            name: name.into(),
        }
    }
}

/// One thread's targets.
#[derive(Debug, Default)]
pub(in crate::relay) struct Targets {
    own: RefCell<HashMap<Product, Rc<Target>>>,
    named: RefCell<HashMap<(Product, String), Rc<Target>>>,
}

impl Targets {
    /// The target of a decided route.
    pub(in crate::relay) fn get(&self, route: Route, catalog: &Catalog) -> Rc<Target> {
        let Route { product, name } = route;
        let Some(name) = name else {
            let mut own = self.own.borrow_mut();
            let target = own
                .entry(product)
                .or_insert_with(|| Rc::new(Target::new(product, &catalog.host(product))));
            return Rc::clone(target);
        };
        let key = (product, name);
        let mut named = self.named.borrow_mut();
        if let Some(target) = named.get(&key) {
            return Rc::clone(target);
        }
        if named.len() >= MAX_TARGETS {
            named.clear();
        }
        let target = Rc::new(Target::new(product, &key.1));
        named.insert(key, Rc::clone(&target));
        target
    }
}

/// True when `ip` may be dialled: public, or named by `upstream.allow_private`.
pub(super) fn may_dial(ip: IpAddr, allow_private: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    is_public(ip)
        || (!ip.is_unspecified() && !ip.is_multicast() && allow_private.iter().any(|net| net.contains(&ip)))
}

/// True for addresses of the public Internet. The documentation ranges count as public: tests live there, nobody else.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

/// IANA's special-purpose registry (RFC 6890 and its updates).
fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b)) // shared address space, RFC 6598; also Alibaba's metadata service
        || (a == 169 && b == 254) // link-local, and every cloud's metadata service
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || a >= 224)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    // NAT64 (RFC 6052): what counts is the IPv4 address inside. IPv6-only clusters reach the intake this way.
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [.., a, b, c, d] = ip.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // Global unicast is 2000::/3 (RFC 4291); inside it Teredo and 6to4 hide an IPv4 address.
    segments[0] & 0xe000 == 0x2000 && segments[0] != 0x2002 && segments[..2] != [0x2001, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_dialled() {
        for (ip, public) in [
            ("8.8.8.8", true),
            ("192.0.2.1", true),
            ("198.51.100.1", true),
            ("203.0.113.1", true),
            ("2001:db8::1", true),
            ("2600:1f18::1", true),
            ("64:ff9b::808:808", true),
            ("64:ff9b::a9fe:a9fe", false),
            ("64:ff9b:1::808:808", false),
            ("::ffff:8.8.8.8", true),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::127.0.0.1", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.100.100.200", false),
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("ff02::1", false),
            ("2002:7f00:1::", false),
            ("2001:0:4136::1", false),
        ] {
            assert_eq!(may_dial(ip.parse().unwrap(), &[]), public, "{ip}");
        }
    }

    #[test]
    fn allow_private_opens_exactly_its_networks() {
        let allowed = [
            "10.1.0.0/16".parse().unwrap(),
            "fd00:1::/32".parse().unwrap(),
            "0.0.0.0/0".parse().unwrap(),
        ];
        assert!(may_dial("10.1.2.3".parse().unwrap(), &allowed[..2]));
        assert!(may_dial("::ffff:10.1.2.3".parse().unwrap(), &allowed[..2]));
        assert!(may_dial("fd00:1::5".parse().unwrap(), &allowed[..2]));
        assert!(!may_dial("10.2.2.3".parse().unwrap(), &allowed[..2]));
        // Never a destination, whatever is allowed.
        assert!(!may_dial("0.0.0.0".parse().unwrap(), &allowed));
        assert!(!may_dial("224.0.0.1".parse().unwrap(), &allowed));
    }
}
