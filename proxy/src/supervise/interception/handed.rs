//! What the program that replaces this one is told of interception, and goes on with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Interception;
use crate::intercept::{InheritedNetwork, Interceptor, OwnCgroup};
use crate::supervise::handover::InterceptionRecord;
use crate::supervise::listeners::Sockets;

/// What the program before had.
pub(super) struct Inherited {
    pub(super) previous_cgroup: Option<PathBuf>,
    pub(super) last_network: u32,
    pub(super) networks: Vec<InheritedNetwork>,
}

impl Interception {
    /// For the program that replaces this one.
    pub fn record(&self) -> InterceptionRecord {
        let (last_network, networks) = self.kernel.as_ref().map(Interceptor::records).unwrap_or_default();
        InterceptionRecord {
            command: (self.enabled != self.config.enabled).then_some(self.enabled),
            asked: self.asked,
            pods: self.pods.clone(),
            previous_cgroup: self
                .own
                .as_ref()
                .and_then(OwnCgroup::previous)
                .map(Path::to_owned),
            last_network,
            networks,
        }
    }

    /// In that program, before anything else: goes on with what the one before had. A number without listeners is a network
    /// that was about to go.
    pub fn inherit(&mut self, record: InterceptionRecord, mut sockets: BTreeMap<u32, Sockets>) {
        if let Some(enabled) = record.command {
            self.enabled = enabled;
        }
        self.asked = record.asked;
        self.pods = record.pods;
        let networks = record.networks.into_iter().filter_map(|record| {
            let (v4, v6) = sockets.remove(&record.id)?;
            Some(InheritedNetwork { record, v4, v6 })
        });
        self.inherited = Some(Inherited {
            previous_cgroup: record.previous_cgroup,
            last_network: record.last_network,
            networks: networks.collect(),
        });
    }

    /// True while packets of connections are led to us although interception is switched off.
    pub fn draining(&self) -> bool {
        self.kernel.as_ref().is_some_and(Interceptor::draining)
    }

    /// No socket that a process before us made is waited for any more.
    pub fn forget_earlier_cgroups(&self) {
        if let Some(Err(error)) = self.kernel.as_ref().map(Interceptor::forget_earlier_cgroups) {
            tracing::warn!(%error, "cannot take away what served listeners of an earlier process");
        }
    }
}
