//! What is fuzzed of nf_tables. See [`crate::fuzz`].

use super::rules::Packet;
use super::{LOCAL_IN, nftables, within};
use crate::config::Mark;

/// Ours, as it is without a setting.
const MARK: Mark = Mark {
    value: 0x00d0_0000,
    mask: 0x00f0_0000,
};

/// See [`crate::fuzz::nftables`].
pub(crate) fn nftables(datagram: &[u8]) {
    for table in nftables::fuzz::tables(datagram) {
        for device in [None, Some("eth0")] {
            let packet = Packet { mark: MARK, device };
            for chain in table.chains.keys() {
                let stops = table.stops(chain, packet);
                assert!(stops || !table.is_closed(chain), "{chain:?} of {table:?}");
            }
            let obstacles = within(&table, MARK, &device.map(str::to_owned).into_iter().collect());
            let stopping = table.at(LOCAL_IN).filter(|chain| table.stops(chain, packet));
            let named: Vec<String> = stopping
                .map(|chain| format!("{} {chain}", table.name()))
                .collect();
            assert!(obstacles.iter().map(|obstacle| &obstacle.name).eq(&named));
        }
    }
}
