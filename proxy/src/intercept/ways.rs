//! The ways that connections are taken at this moment, for whoever tries them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Interceptor;
use super::choose::Taken;
use super::error::InterceptError;
use super::networks::Key;
use super::probe_cgroup::ProbeCgroup;
use crate::config::Datapath;

/// One way that connections are taken.
#[derive(Debug)]
pub struct Way {
    /// For people: `host (cgroup)`, `net:[4026532000] (tc)`.
    pub name: String,
    /// By the hooks of the cgroup that connects, or by its packets.
    pub taken: Taken,
    /// The namespace; `None`: the host's own.
    pub namespace: Option<OwnedFd>,
}

impl Interceptor {
    /// The directories of the cgroups for connections of our own, without hooks and with them. Made where they are not there; the
    /// next look hooks the second.
    ///
    /// # Errors
    /// No right to make cgroups: no root, and the service manager delegates none (`Delegate=`, `ReadWritePaths=`).
    pub fn probe_cgroups(&mut self) -> Result<[PathBuf; 2], InterceptError> {
        let probe = self
            .probe
            .get_or_insert_with(|| ProbeCgroup::new(&self.cgroups, &self.cgroups_parent));
        probe.make()?;
        Ok([probe.bare_directory(), probe.hooked_directory()])
    }

    /// True when what [`Interceptor::probe_cgroups`] made is ready for use; else look with [`Interceptor::sync`] first.
    pub fn probe_is_ready(&self) -> bool {
        self.config.datapath == Datapath::Tc
            || self
                .probe_hooks()
                .is_some_and(|(id, _)| self.hooked.contains_key(&id))
    }

    /// Every way that is open now.
    ///
    /// # Errors
    /// Too many open files.
    pub fn ways(&self) -> io::Result<Vec<Way>> {
        let mut ways = Vec::new();
        if !self.attached {
            return Ok(ways);
        }
        if self.config.datapath != Datapath::Tc {
            ways.push(Way {
                name: "host (cgroup)".to_owned(),
                taken: Taken::Cgroup,
                namespace: None,
            });
        }
        for (key, network) in self.networks.served() {
            // Behind interfaces of unknown pods there is nobody that we could be.
            let (Key::Namespace(id, taken), Some(namespace)) = (key, &network.namespace) else {
                continue;
            };
            ways.push(Way {
                name: format!("{id} ({})", taken.name()),
                taken: *taken,
                namespace: Some(namespace.file().try_clone()?.into()),
            });
        }
        Ok(ways)
    }

    /// Our own cgroups, which nobody can select as an Agent's.
    pub(super) fn own_cgroups(&self) -> Vec<u64> {
        let probe = self.probe.as_ref().and_then(|probe| probe.ids().ok());
        probe.into_iter().flatten().chain([self.own_id]).collect()
    }

    /// What is hooked besides the Agents.
    pub(super) fn probe_hooks(&self) -> Option<(u64, PathBuf)> {
        let probe = self
            .probe
            .as_ref()
            .filter(|_| self.config.datapath != Datapath::Tc)?;
        let [_, hooked] = probe.ids().ok()?;
        Some((hooked, probe.hooked()))
    }
}
