//! Which addresses may be dialled: public ones, and what the operator named.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// True when `ip` may be dialled: public, or named by `upstream.allow_private`.
pub fn may_dial(ip: IpAddr, allow_private: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    let one_host = !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST);
    is_public(ip) || (one_host && allow_private.iter().any(|net| net.contains(&ip)))
}

/// True when the outbound proxy may be dialled at `ip`. Its name comes from the operator and not from whoever asks for an
/// intake, and it usually lives in the site's own network: private addresses, unique local ones and the loopback are
/// fine. Link-local addresses and metadata services need `upstream.allow_private`, as anything else does.
pub fn may_be_proxy(ip: IpAddr, allow_private: &[IpNet]) -> bool {
    // Alibaba's and Amazon's metadata services stand in ranges that are otherwise a site's own.
    const METADATA: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    ];
    let ip = ip.to_canonical();
    let own = match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_loopback() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback(),
    };
    may_dial(ip, allow_private) || (own && !METADATA.contains(&ip))
}

/// True for addresses of the public Internet. The documentation ranges count as public: tests live there, nobody else.
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
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
        assert!(!may_dial("255.255.255.255".parse().unwrap(), &allowed));
    }

    #[test]
    fn the_proxy_may_live_in_the_sites_own_network_and_never_at_a_metadata_service() {
        for (ip, may) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("172.20.0.1", true),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("fd00:1::1", true),
            ("198.51.100.1", true),
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("100.100.100.200", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("0.0.0.0", false),
            ("::", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(may_be_proxy(ip.parse().unwrap(), &[]), may, "{ip}");
        }
        let link_local = ["169.254.0.0/16".parse().unwrap()];
        assert!(may_be_proxy("169.254.1.1".parse().unwrap(), &link_local));
    }
}
