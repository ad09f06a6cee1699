//! Networks that another program of this process served: they are gone on with, under their numbers and with their listeners.

use std::net::TcpListener;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Key, Network, NetworkListeners, Networks, port};
use crate::intercept::netns::Namespace;

/// What the program that replaces this one must know of a network to go on with it; its listeners travel beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its number: workers know it by that.
    pub id: u32,
    pub(super) slot: u32,
    pub(super) cookie: u64,
    key: Key,
}

/// A network of the program that this one replaces.
#[derive(Debug)]
pub struct InheritedNetwork {
    /// Which one.
    pub record: NetworkRecord,
    /// On 127.0.0.1.
    pub v4: Vec<TcpListener>,
    /// On ::1.
    pub v6: Vec<TcpListener>,
}

impl Networks {
    /// For the program that replaces this one: the last number given out, and every network.
    pub(in crate::intercept) fn records(&self) -> (u32, Vec<NetworkRecord>) {
        let records = self.served.iter().map(|(key, network)| NetworkRecord {
            id: network.id,
            slot: network.slot,
            cookie: network.cookie,
            key: *key,
        });
        (self.last, records.collect())
    }

    /// Takes over what [`Networks::records`] of the program before said. Each is served under its number again, with the
    /// listeners that it has, when it is opened.
    pub(in crate::intercept) fn inherit(&mut self, last: u32, networks: Vec<InheritedNetwork>) {
        self.last = last;
        self.inherited = networks
            .into_iter()
            .map(|network| (network.record.key, network))
            .collect();
    }

    /// Lets go of inherited networks that nobody opened; their numbers.
    pub(in crate::intercept) fn forget_inherited(&mut self) -> Vec<u32> {
        let left = std::mem::take(&mut self.inherited);
        left.into_values().map(|network| network.record.id).collect()
    }

    pub(super) fn go_on(
        &mut self,
        key: Key,
        namespace: Option<&Arc<Namespace>>,
        inherited: InheritedNetwork,
    ) -> NetworkListeners {
        let InheritedNetwork { record, v4, v6 } = inherited;
        let network = Network {
            id: record.id,
            slot: record.slot,
            cookie: record.cookie,
            namespace: namespace.cloned(),
            ports: [port(&v4), port(&v6)],
        };
        self.served.insert(key, network);
        NetworkListeners {
            network: record.id,
            slot: record.slot,
            cookie: record.cookie,
            taken: key.taken(),
            v4,
            v6,
        }
    }
}
