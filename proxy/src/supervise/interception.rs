//! The master's side of interception: wanted or not, possible or not, in place or not.

use std::net::IpAddr;
use std::time::Duration;

use super::listeners::Listeners;
use super::protocol::InterceptionStatus;
use crate::config::{self, OnFailure};
use crate::intercept::{
    self, AgentChanges, AgentWatcher, InterceptError, Interceptor, Listeners as KernelListeners, OwnCgroup,
};

/// Interception over the life of the master.
pub struct Interception {
    config: config::Intercept,
    /// Wanted now: by configuration, or by the last command.
    enabled: bool,
    /// Why it is not in place.
    detail: Option<String>,
    kernel: Option<Interceptor>,
    watcher: Option<AgentWatcher>,
    /// After `kernel`: leaving the cgroup comes last.
    own: Option<OwnCgroup>,
    /// Addresses learned before the programs were loaded.
    addresses: Vec<(IpAddr, Duration)>,
    /// Every intake name was asked for at least once.
    asked: bool,
}

impl Interception {
    /// Nothing is touched yet.
    pub fn new(config: config::Intercept) -> Self {
        Self {
            enabled: config.enabled,
            config,
            detail: None,
            kernel: None,
            watcher: None,
            own: None,
            addresses: Vec::new(),
            asked: false,
        }
    }

    /// Wanted now.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The hooks are in place.
    pub fn attached(&self) -> bool {
        self.kernel.as_ref().is_some_and(Interceptor::attached)
    }

    /// First half of switching on: moves this process to its own cgroup and binds the loopback listeners there (a
    /// socket belongs to the cgroup that made it). True when that was done now, so that a worker started before must be
    /// replaced by one that holds the listeners and lives in the cgroup.
    pub fn prepare(&mut self, listeners: &mut Listeners) -> Result<bool, InterceptError> {
        if !self.enabled || self.own.is_some() {
            return Ok(false);
        }
        self.own = Some(self.note(Interceptor::enter_own_cgroup())?);
        listeners.add_interception();
        Ok(true)
    }

    /// Second half: loads the programs where they are not, tells them the listeners, hooks every Agent.
    pub fn engage(&mut self, listeners: &Listeners) -> Result<(), InterceptError> {
        if !self.enabled {
            return Ok(());
        }
        let result = self.try_engage(listeners);
        self.note(result)?;
        self.detail = None;
        Ok(())
    }

    /// Takes the hooks away; the programs stay loaded for the next time.
    pub fn disengage(&mut self) -> Result<(), InterceptError> {
        if let Some(kernel) = &mut self.kernel {
            tell(&kernel.set_attached(false)?);
        }
        Ok(())
    }

    /// At start, switched off: takes away what an earlier process left in force.
    pub fn clear(&self) {
        if self.enabled {
            return;
        }
        match intercept::uninstall() {
            Ok(report) if !report.is_empty() => tracing::info!("interception is off; {report}"),
            Ok(_) => {}
            // Without the right to look there was no right to leave anything either.
            Err(error) => tracing::debug!(%error, "cannot look for an earlier process's hooks"),
        }
    }

    /// What the operator wants from now on. Follow with [`Interception::prepare`] and [`Interception::engage`], or
    /// [`Interception::disengage`].
    pub fn want(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.detail = None;
    }

    /// A new configuration: ports, destinations, selectors and the failure policy are exchanged in place.
    pub fn reconfigure(&mut self, config: config::Intercept) -> Result<(), InterceptError> {
        self.want(config.enabled);
        let globs_changed = self.config.agents.cgroups != config.agents.cgroups;
        self.config = config;
        if let Some(kernel) = &mut self.kernel {
            // The watcher before the look at what is there: what comes in between is seen twice, never missed.
            let watcher = globs_changed.then(|| AgentWatcher::new(&self.config.agents.cgroups));
            tell(&kernel.reconfigure(&self.config)?);
            if let Some(watcher) = watcher {
                self.watcher = Some(watcher?);
            }
        }
        Ok(())
    }

    /// Addresses of intake names that the worker resolved.
    pub fn add_addresses(&mut self, addresses: Vec<(IpAddr, Duration)>) -> Result<(), InterceptError> {
        match &mut self.kernel {
            Some(kernel) => kernel.add_destinations(&addresses),
            None => {
                self.addresses.extend(addresses);
                Ok(())
            }
        }
    }

    /// Every intake name was asked for.
    pub fn addresses_asked(&mut self) {
        self.asked = true;
    }

    /// Nothing that could be selected now is still unknown; also while switched off, when nothing is to be selected.
    pub fn settled(&self) -> bool {
        self.asked || !self.attached()
    }

    /// Returns when Agents may have come or gone: then call [`Interception::sync`]. Never returns while there is nothing
    /// to watch.
    pub async fn agents_changed(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return std::future::pending().await;
        };
        if let Err(error) = watcher.changed().await {
            tracing::error!(%error, "cannot watch for new Agents any more; they are still found every few seconds");
            self.watcher = None;
        }
    }

    /// Hooks Agents that are new and forgets those that are gone.
    pub fn sync(&mut self) -> Result<(), InterceptError> {
        if let Some(kernel) = &mut self.kernel {
            tell(&kernel.sync_agents()?);
        }
        Ok(())
    }

    /// For status.
    pub fn status(&self) -> InterceptionStatus {
        InterceptionStatus {
            enabled: self.enabled,
            requested: self.config.requested,
            attached: self.attached(),
            detail: self.detail.clone(),
            addresses_asked: self.asked,
            kernel: self.kernel.as_ref().map(Interceptor::status),
        }
    }

    /// The end of the master. `closed`: the policy stays in the kernel, so that nothing leaves while we are away. Our own
    /// cgroup goes when this is dropped, which is after the last worker.
    pub fn leave(&mut self) {
        let Some(kernel) = self.kernel.take() else { return };
        let keep = self.enabled && self.config.on_failure == OnFailure::Closed && kernel.attached();
        if keep {
            tracing::warn!(
                "interception stays in force (intercept.on_failure: closed): Agents' intake connections fail until the \
                 proxy runs again; `agent-fips-proxy uninstall` removes it"
            );
        }
        if let Err(error) = kernel.leave(keep) {
            tracing::error!(%error, "cannot leave the kernel as it was; `agent-fips-proxy uninstall` removes what is left");
        }
    }

    fn try_engage(&mut self, listeners: &Listeners) -> Result<(), InterceptError> {
        let Some(own) = &self.own else { return Ok(()) };
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => {
                let mut kernel = Interceptor::load(&self.config, own)?;
                if let Some(log) = kernel.take_kernel_log() {
                    tokio::spawn(async move {
                        if let Err(error) = log.forward().await {
                            tracing::warn!(%error, "no more log lines from the kernel programs");
                        }
                    });
                }
                none.insert(kernel)
            }
        };
        kernel.set_listeners(KernelListeners {
            v4: listeners.interception(false),
            v6: listeners.interception(true),
        })?;
        if !self.addresses.is_empty() {
            kernel.add_destinations(&std::mem::take(&mut self.addresses))?;
        }
        let watcher = self
            .watcher
            .is_none()
            .then(|| AgentWatcher::new(&self.config.agents.cgroups));
        tell(&kernel.set_attached(true)?);
        if let Some(watcher) = watcher {
            self.watcher = Some(watcher?);
        }
        Ok(())
    }

    fn note<T>(&mut self, result: Result<T, InterceptError>) -> Result<T, InterceptError> {
        if let Err(error) = &result {
            self.detail = Some(error.to_string());
        }
        result
    }
}

/// Logs which Agents came and went.
fn tell(changes: &AgentChanges) {
    for path in &changes.attached {
        tracing::info!(cgroup = %path.display(), "intercepting an Agent");
    }
    for path in &changes.detached {
        tracing::info!(cgroup = %path.display(), "an Agent is no longer intercepted: its cgroup is gone or not selected any more, or interception is off");
    }
}
