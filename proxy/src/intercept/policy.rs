//! Which destinations are taken: addresses that the intake names resolved to, and static networks. Pure bookkeeping;
//! `Interceptor` brings the difference into the kernel's prefix maps.
//!
//! Names rotate through their addresses, and an Agent may use an answer that is older than ours. So addresses are only
//! added, and kept for at least an hour. A superset does no harm: the verdict is by name, in user space.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// How long an address is kept at least, whatever its TTL.
pub const MIN_KEEP: Duration = Duration::from_secs(3600);
/// How many learnt addresses are kept. All intake names of a site have some hundred; far beyond that a resolver is
/// misbehaving.
pub const MAX_LEARNT: usize = 4096;

/// The destinations that are wanted.
#[derive(Debug, Default)]
pub struct Destinations {
    /// Learnt addresses and when they are forgotten.
    learnt: BTreeMap<IpAddr, Instant>,
    cidrs: BTreeSet<IpNet>,
}

/// What to change in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// To insert.
    pub add: BTreeSet<IpNet>,
    /// To remove.
    pub remove: BTreeSet<IpNet>,
}

impl Destinations {
    /// Replaces the static networks. IPv4-mapped ones become IPv4, host bits are cleared.
    pub fn set_static(&mut self, cidrs: impl IntoIterator<Item = IpNet>) {
        self.cidrs = cidrs.into_iter().map(canonical).collect();
    }

    /// Adds addresses with the TTL of their answer. When there are too many, those that would be forgotten first make
    /// room; returns how many did.
    pub fn learn(&mut self, addresses: &[(IpAddr, Duration)], now: Instant) -> usize {
        for (address, ttl) in addresses {
            let until = now + (*ttl).max(MIN_KEEP);
            let kept = self.learnt.entry(address.to_canonical()).or_insert(until);
            *kept = (*kept).max(until);
        }
        let excess = self.learnt.len().saturating_sub(MAX_LEARNT);
        if excess > 0 {
            let mut oldest: Vec<(Instant, IpAddr)> =
                self.learnt.iter().map(|(ip, until)| (*until, *ip)).collect();
            oldest.sort_unstable();
            for (_, address) in oldest.into_iter().take(excess) {
                self.learnt.remove(&address);
            }
        }
        excess
    }

    /// Takes over what an earlier process left in the maps: single addresses as if just learnt, so that a restart does
    /// not open a hole until the names are resolved again. Networks come from the configuration only.
    pub fn inherit(&mut self, present: &BTreeSet<IpNet>, now: Instant) {
        let hosts: Vec<(IpAddr, Duration)> = present
            .iter()
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(|net| (net.addr(), MIN_KEEP))
            .collect();
        self.learn(&hosts, now);
    }

    /// Forgets addresses whose time is over.
    pub fn expire(&mut self, now: Instant) {
        self.learnt.retain(|_, until| *until > now);
    }

    /// Everything that is taken.
    pub fn wanted(&self) -> BTreeSet<IpNet> {
        self.learnt
            .keys()
            .map(|ip| IpNet::from(*ip))
            .chain(self.cidrs.iter().copied())
            .collect()
    }

    /// From what is in the kernel to what is wanted.
    pub fn change(&self, present: &BTreeSet<IpNet>) -> Change {
        let wanted = self.wanted();
        Change {
            add: wanted.difference(present).copied().collect(),
            remove: present.difference(&wanted).copied().collect(),
        }
    }
}

/// Host bits cleared; a network inside `::ffff:0:0/96` as the IPv4 network that it is.
fn canonical(net: IpNet) -> IpNet {
    let net = net.trunc();
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(v4), Some(length)) if net.addr().is_ipv6() => {
            IpNet::new(IpAddr::V4(v4), length).unwrap_or(net)
        }
        _ => net,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn kept_for_an_hour_or_the_ttl_and_never_shortened() {
        let start = Instant::now();
        let mut destinations = Destinations::default();
        destinations.learn(
            &[
                (ip("203.0.113.1"), Duration::from_secs(5)),
                (ip("203.0.113.2"), MIN_KEEP * 3),
            ],
            start,
        );
        destinations.learn(&[(ip("203.0.113.2"), Duration::ZERO)], start);
        destinations.expire(start + MIN_KEEP - Duration::from_secs(1));
        assert_eq!(destinations.wanted().len(), 2);
        destinations.expire(start + MIN_KEEP);
        assert_eq!(destinations.wanted(), [net("203.0.113.2/32")].into());
        destinations.expire(start + MIN_KEEP * 3);
        assert!(destinations.wanted().is_empty());
    }

    #[test]
    fn bounded_and_the_oldest_make_room() {
        let start = Instant::now();
        let mut destinations = Destinations::default();
        let address = |n: usize| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).unwrap()));
        let first: Vec<_> = (0..MAX_LEARNT).map(|n| (address(n), MIN_KEEP)).collect();
        assert_eq!(destinations.learn(&first, start), 0);
        let more = [(address(MAX_LEARNT), MIN_KEEP)];
        assert_eq!(destinations.learn(&more, start + Duration::from_secs(1)), 1);
        let wanted = destinations.wanted();
        assert_eq!(wanted.len(), MAX_LEARNT);
        assert!(
            wanted.contains(&IpNet::from(address(MAX_LEARNT))),
            "the newest stays"
        );
    }

    #[test]
    fn static_networks_are_canonical_and_replaced() {
        let mut destinations = Destinations::default();
        destinations.set_static([
            net("10.1.2.3/8"),
            net("::ffff:198.51.100.7/120"),
            net("2001:db8::7/64"),
        ]);
        assert_eq!(
            destinations.wanted(),
            [net("10.0.0.0/8"), net("198.51.100.0/24"), net("2001:db8::/64")].into()
        );
        destinations.set_static([]);
        assert!(destinations.wanted().is_empty());
    }

    #[test]
    fn a_restart_inherits_addresses_but_not_networks() {
        let mut destinations = Destinations::default();
        let present = [net("203.0.113.1/32"), net("2001:db8::1/128"), net("10.0.0.0/8")].into();
        destinations.inherit(&present, Instant::now());
        let change = destinations.change(&present);
        assert!(change.add.is_empty());
        assert_eq!(change.remove, [net("10.0.0.0/8")].into());
    }

    proptest! {
        /// Applying the change to what is present gives what is wanted, and touches nothing that stays.
        #[test]
        fn change_leads_to_wanted(learnt in proptest::collection::vec(0_u8..16, 0..12), present in proptest::collection::btree_set(0_u8..16, 0..12)) {
            let host = |n: u8| IpAddr::V4(Ipv4Addr::new(203, 0, 113, n));
            let mut destinations = Destinations::default();
            destinations.learn(&learnt.iter().map(|n| (host(*n), MIN_KEEP)).collect::<Vec<_>>(), Instant::now());
            let mut map: BTreeSet<IpNet> = present.iter().map(|n| IpNet::from(host(*n))).collect();
            let change = destinations.change(&map);
            prop_assert!(change.add.is_disjoint(&map));
            prop_assert!(change.remove.is_subset(&map));
            map.retain(|net| !change.remove.contains(net));
            map.extend(&change.add);
            prop_assert_eq!(map, destinations.wanted());
        }
    }
}
