//! What is fuzzed of the kernel side. See [`crate::fuzz`].
#![expect(clippy::panic, reason = "that is how a finding is reported")]

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_ebpf::Address;

use super::policy::Destinations;
use super::prefixes::{key4, key6, net4, net6};

pub(crate) use super::firewall::fuzz::nftables;
pub(crate) use super::tc::fuzz::netlink;

/// See [`crate::fuzz::lpm_key`]. `canonical` is an address, `seen` the same as the programs see it.
pub(crate) fn lpm_key(network: IpAddr, length: u8, canonical: IpAddr, seen: &Address) {
    let written = IpNet::new(network, length);
    // The key as it lies in memory: the length, then the address; and what the programs ask with.
    let (key, asked, back) = match network {
        IpAddr::V4(ip) => {
            let key = key4(ip, length);
            let bytes = key.data().to_ne_bytes().to_vec();
            let asked = seen.v4().map(|word| bytes_of(&Address::prefix4(word)));
            ((key.prefix_len(), bytes), asked, net4(&key))
        }
        IpAddr::V6(ip) => {
            let key = key6(ip, length);
            let bytes = key.data().iter().flat_map(|word| word.to_ne_bytes()).collect();
            let asked = seen.v4().is_none().then(|| bytes_of(&seen.prefix6()));
            ((key.prefix_len(), bytes), asked, net6(&key))
        }
    };
    assert_eq!(back, written.ok(), "a length that no address has is no network");
    let Some(network) = back else { return };
    let Some(asked) = asked else {
        assert!(!network.contains(&canonical));
        return;
    };
    let (bits, data) = key;
    let (full, address) = asked.split_at(4);
    assert_eq!(full, u32::from(network.max_prefix_len()).to_ne_bytes());
    assert_eq!(begins_alike(&data, address, bits), network.contains(&canonical));

    // A network as the operator may write it: what is selected stays selected.
    let mut destinations = Destinations::default();
    destinations.set_static([network]);
    let wanted = destinations.wanted();
    let [wanted] = Vec::from_iter(wanted)[..] else {
        panic!("one network became {:?}", destinations.wanted());
    };
    assert_eq!(wanted.trunc(), wanted);
    assert_eq!(wanted.contains(&canonical), network.contains(&canonical));
}

/// How the kernel compares (`longest_prefix_match`, kernel/bpf/lpm_trie.c): bit by bit from the first one on.
fn begins_alike(key: &[u8], address: &[u8], bits: u32) -> bool {
    let bit = |bytes: &[u8], at: u32| bytes[at as usize / 8] >> (7 - at % 8) & 1;
    (0..bits).all(|at| bit(key, at) == bit(address, at))
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
