//! Brings the wanted destinations into the kernel's prefix maps, by difference.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData, MapError};
use ipnet::IpNet;

use super::error::InterceptError;
use super::load::Loaded;
use super::policy::Change;

/// Applies a change; `present` follows what the maps hold. Additions before removals: a network that is replaced by a part
/// of it is covered throughout.
///
/// # Errors
/// A map could not be written: `present` says how far it came.
pub(super) fn apply(
    loaded: &mut Loaded,
    present: &mut BTreeSet<IpNet>,
    change: Change,
) -> Result<(), InterceptError> {
    for net in change.add {
        let result = match net.addr() {
            IpAddr::V4(ip) => loaded.prefix4.insert(&key4(ip, net.prefix_len()), 1, 0),
            IpAddr::V6(ip) => loaded.prefix6.insert(&key6(ip, net.prefix_len()), 1, 0),
        };
        result.map_err(InterceptError::map("add a destination to", "PREFIX4/PREFIX6"))?;
        present.insert(net);
    }
    for net in change.remove {
        let result = match net.addr() {
            IpAddr::V4(ip) => loaded.prefix4.remove(&key4(ip, net.prefix_len())),
            IpAddr::V6(ip) => loaded.prefix6.remove(&key6(ip, net.prefix_len())),
        };
        match result {
            Err(error) if !is_absent(&error) => {
                return Err(InterceptError::map(
                    "remove a destination from",
                    "PREFIX4/PREFIX6",
                )(error));
            }
            _ => present.remove(&net),
        };
    }
    Ok(())
}

/// What the prefix maps hold.
pub(super) fn read(loaded: &Loaded) -> Result<BTreeSet<IpNet>, InterceptError> {
    let v4 = keys(&loaded.prefix4, "PREFIX4", net4)?;
    let v6 = keys(&loaded.prefix6, "PREFIX6", net6)?;
    Ok(v4.into_iter().chain(v6).collect())
}

fn keys<K: aya::Pod>(
    map: &LpmTrie<MapData, K, u32>,
    name: &'static str,
    read: impl Fn(&Key<K>) -> Option<IpNet>,
) -> Result<Vec<IpNet>, InterceptError> {
    let keys: Vec<Key<K>> = map
        .keys()
        .collect::<Result<_, _>>()
        .map_err(InterceptError::map("read", name))?;
    Ok(keys.iter().filter_map(read).collect())
}

/// A length that no address has is refused by `IpNet::new`.
fn length(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

/// What [`key4`] was made of.
pub(super) fn net4(key: &Key<u32>) -> Option<IpNet> {
    let address = Ipv4Addr::from(key.data().to_ne_bytes());
    IpNet::new(address.into(), length(key.prefix_len())).ok()
}

/// What [`key6`] was made of.
pub(super) fn net6(key: &Key<[u32; 4]>) -> Option<IpNet> {
    let octets: Vec<u8> = key.data().iter().flat_map(|word| word.to_ne_bytes()).collect();
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?);
    IpNet::new(address.into(), length(key.prefix_len())).ok()
}

pub(super) fn key4(address: Ipv4Addr, length: u8) -> Key<u32> {
    Key::new(length.into(), u32::from_ne_bytes(address.octets()))
}

pub(super) fn key6(address: Ipv6Addr, length: u8) -> Key<[u32; 4]> {
    // Segments of the address as words in network order, which is how the programs see them.
    let bits = address.to_bits();
    let word = |shift: u32| {
        let [.., a, b, c, d] = (bits >> shift).to_be_bytes();
        u32::from_ne_bytes([a, b, c, d])
    };
    Key::new(length.into(), [word(96), word(64), word(32), word(0)])
}

/// The entry was not there: nothing to remove.
pub(super) fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => matches!(
            error.io_error.raw_os_error(),
            // A SockMap answers EINVAL for an empty slot.
            Some(nix::libc::ENOENT | nix::libc::EINVAL)
        ),
        _ => false,
    }
}
