//! A new configuration on SIGHUP, and the run-time switch of interception.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::Master;
use crate::config::{Agents, Config, Intercept};
use crate::intercept::InterceptError;
use crate::observe::logging;
use crate::supervise::admission::Admission;
use crate::supervise::protocol::ToWorker;
use crate::supervise::{authority, listeners, notify};

impl Master {
    pub(super) async fn reload(&mut self) {
        notify::reloading();
        match self.reloader.reload() {
            Ok(loaded) => match Admission::new(&loaded.config.explicit) {
                Ok(admission) => {
                    self.admission = admission;
                    for warning in &loaded.warnings {
                        tracing::warn!("{warning}");
                    }
                    self.apply(loaded.config).await;
                }
                Err(error) => {
                    tracing::error!("the new configuration is not used, the old one stays in force: {error}");
                }
            },
            Err(errors) => {
                tracing::error!("the new configuration is not used, the old one stays in force:\n{errors}");
            }
        }
        notify::ready(&self.summary());
    }

    async fn apply(&mut self, mut new: Config) {
        if new.worker.threads != self.config.worker.threads
            || new.status.socket != self.config.status.socket
            || new.log.format != self.config.log.format
        {
            tracing::warn!("worker.threads, status.socket and log.format change at the next restart");
            new.worker.threads = self.config.worker.threads;
            new.status.socket = self.config.status.socket.clone();
            new.log.format = self.config.log.format;
        }
        if new.log.level != self.config.log.level {
            logging::set_level(&new.log.level);
        }
        let before = self.listeners.status();
        self.listeners.reconcile(&listeners::wanted(&new));
        self.keep_listeners();
        let files = stamps(&new);
        let authority = authority::identity(&new.ca);
        let mut replace = worker_view(&new) != worker_view(&self.config)
            || files != self.files
            || authority != self.authority
            || before != self.listeners.status();
        self.files = files;
        let level = (new.log.level != self.config.log.level).then(|| new.log.level.clone());
        self.config = new;
        match self.interception.reconfigure(self.config.intercept.clone()) {
            Ok(changes) => self.follow(changes).await,
            Err(error) => tracing::error!(%error, "interception does not follow the new configuration"),
        }
        let generation = self.next_worker;
        if let Err(error) = self.apply_interception().await {
            tracing::error!(%error, "interception does not follow the new configuration");
        }
        replace &= generation == self.next_worker;
        if replace {
            self.replace_worker();
        } else if let Some(level) = level {
            for worker in &mut self.workers {
                worker.send(&ToWorker::LogLevel(level.clone())).await;
            }
        }
        self.push_state().await;
        tracing::info!(
            interception = self.interception.attached(),
            "configuration reloaded"
        );
    }

    /// Makes the kernel follow what is wanted.
    pub(super) async fn apply_interception(&mut self) -> Result<(), InterceptError> {
        if !self.interception.enabled() {
            let mut changes = self.interception.disengage(self.config.limits.drain_timeout);
            let failed = std::mem::take(&mut changes.failed);
            self.follow(changes).await;
            return match failed.is_empty() {
                true => Ok(()),
                false => Err(InterceptError::Unsupported(failed.join("; "))),
            };
        }
        let prepared = self.interception.prepare(&mut self.listeners)?;
        let changes = self.interception.engage(&self.listeners)?;
        self.prober.hurry();
        self.follow(changes).await;
        if prepared {
            // The worker that runs has no intercept listener and lives in another cgroup.
            self.replace_worker();
        }
        Ok(())
    }
}

/// The part of the configuration that a worker acts on: a change of it needs a new worker.
fn worker_view(config: &Config) -> Config {
    let mut view = config.clone();
    view.log.level.clear();
    // Of interception the worker knows what to do with TLS, and whom to ask for pods.
    view.intercept = Intercept {
        https: config.intercept.https,
        https_passthrough_names: config.intercept.https_passthrough_names.clone(),
        https_below_policy: config.intercept.https_below_policy,
        agents: Agents {
            pods: config.intercept.agents.pods.clone(),
            ..Config::default().intercept.agents
        },
        ..Config::default().intercept
    };
    view
}

/// Path, inode, modification time, length.
pub(super) type Stamp = (PathBuf, u64, i64, i64, u64);

/// The files that a worker reads when it starts, as they are now: a change of one needs a new worker, too.
pub(super) fn stamps(config: &Config) -> Vec<Option<Stamp>> {
    config
        .upstream
        .files()
        .map(|path| {
            let file = std::fs::metadata(path).ok()?;
            Some((
                path.clone(),
                file.ino(),
                file.mtime(),
                file.mtime_nsec(),
                file.len(),
            ))
        })
        .collect()
}
