//! Workers over the life of the master: started, heard, replaced when they die.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::Master;
use crate::cli::Exit;
use crate::relay::network::NetworkId;
use crate::supervise::authority;
use crate::supervise::interception::End;
use crate::supervise::process::{WorkerEvent, WorkerId, WorkerProcess};
use crate::supervise::protocol::{FromWorker, ToWorker};

/// A worker that dies earlier than this died of its start; the next one is delayed, longer each time, up to
/// [`RESTART_DELAY_MAX`].
const EARLY: Duration = Duration::from_secs(5);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);

impl Master {
    /// `Some` when the program must end.
    pub(super) async fn on_worker(&mut self, id: WorkerId, event: WorkerEvent) -> Option<(End, Exit)> {
        let at = self.workers.iter().position(|worker| worker.id == id)?;
        match event {
            WorkerEvent::Said(FromWorker::Ready) => {
                let worker = &mut self.workers[at];
                worker.ready = true;
                self.served = true;
                worker.last_alive = Instant::now();
                tracing::info!(pid = worker.pid, "worker ready");
                for older in self
                    .workers
                    .iter_mut()
                    .filter(|older| older.id < id && !older.draining)
                {
                    older.drain().await;
                }
                self.prober.hurry();
                self.probe().await;
                if id >= self.first_worker {
                    self.settled(Ok(()));
                }
            }
            WorkerEvent::Said(FromWorker::Failed { exit, message }) => {
                if !self.served {
                    // The worker has written its own line to the same log.
                    tracing::debug!(exit, message, "the worker cannot start");
                    return Some((End::Stop { stored: false }, Exit::from_code(exit)));
                }
                tracing::error!("the new worker cannot start: {message}");
                if id >= self.first_worker {
                    self.settled(Err(message));
                }
            }
            WorkerEvent::Said(FromWorker::Alive) => self.workers[at].last_alive = Instant::now(),
            WorkerEvent::Said(FromWorker::Addresses(addresses)) => {
                if let Err(error) = self.interception.add_addresses(addresses) {
                    tracing::error!(%error, "cannot tell the kernel the addresses of the intake names");
                }
            }
            WorkerEvent::Said(FromWorker::AddressesAsked) => {
                self.interception.addresses_asked();
                self.announce();
                self.push_state().await;
            }
            WorkerEvent::Said(FromWorker::Status(status)) => self.answer_status(Some(*status)),
            WorkerEvent::Said(FromWorker::SelfTested(result)) => {
                if let Some(testing) = &mut self.self_testing {
                    testing.module = Some(result);
                }
                self.finish_self_test();
            }
            WorkerEvent::Said(FromWorker::SocketWanted {
                request,
                network,
                ipv6,
            }) => {
                let made = self.interception.upstream_socket(network, ipv6);
                self.workers[at].answer_socket(request, made).await;
            }
            WorkerEvent::Said(FromWorker::Judge {
                request,
                client,
                ours,
            }) => {
                let refused = self
                    .admission
                    .as_mut()
                    .and_then(|admission| admission.judge(client, ours).err());
                self.workers[at]
                    .send(&ToWorker::Judged { request, refused })
                    .await;
            }
            WorkerEvent::Said(FromWorker::Pods(pods)) => {
                // A worker that drains sees no change any more.
                if !self.workers[at].draining {
                    self.interception.set_pods(pods);
                    self.follow_agents().await;
                }
            }
            WorkerEvent::Deaf => {
                let worker = &self.workers[at];
                tracing::error!(
                    pid = worker.pid,
                    "the worker does not read what it is told: ending it"
                );
                worker.kill();
            }
            WorkerEvent::Ended(status) => {
                let worker = self.workers.remove(at);
                return self.on_worker_end(&worker, status);
            }
        }
        None
    }

    fn on_worker_end(
        &mut self,
        worker: &WorkerProcess,
        status: std::io::Result<WaitStatus>,
    ) -> Option<(End, Exit)> {
        let signal = match status {
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(signal),
            _ => None,
        };
        let how = match status {
            Ok(WaitStatus::Exited(_, code)) => format!("exit status: {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("signal: {signal}"),
            Ok(status) => format!("{status:?}"),
            Err(error) => error.to_string(),
        };
        if !worker.ready && worker.id >= self.first_worker {
            self.settled(Err(format!("it ended ({how})")));
        }
        if worker.draining {
            tracing::info!(pid = worker.pid, how, "drained worker ended");
            return None;
        }
        tracing::error!(
            pid = worker.pid,
            how,
            "the worker died; its requests in flight are lost, its listeners are not"
        );
        if signal == Some(Signal::SIGSYS) {
            tracing::error!(
                pid = worker.pid,
                "it made a system call that nothing in it makes: somebody may have taken it over. The kernel's log names the call \
                 (type=1326, `syscall=`)"
            );
        }
        self.answer_status(None);
        if self.workers.iter().any(|other| !other.draining) {
            return None;
        }
        if !self.served {
            tracing::error!("the worker died before it was ready");
            return Some((End::Crash, Exit::Internal));
        }
        self.restarts += 1;
        if worker.started.elapsed() >= EARLY {
            self.early_deaths = 0;
        }
        if self.early_deaths == 0 {
            self.early_deaths = 1;
            self.replace_worker();
        } else {
            let delay = Duration::from_millis(100) * 2u32.saturating_pow(self.early_deaths);
            self.early_deaths = self.early_deaths.saturating_add(1).min(16);
            self.restart_at = Some(tokio::time::Instant::now() + delay.min(RESTART_DELAY_MAX));
        }
        None
    }

    /// Hands the listeners of a new network to every worker that accepts. One that is started later gets them anyway.
    pub(super) async fn announce_network(&mut self, network: NetworkId) {
        for worker in self.workers.iter_mut().filter(|worker| !worker.draining) {
            worker.add_listeners(&self.listeners, network).await;
        }
    }

    /// Makes every worker let go of a network. One that drains has closed its listeners, but may have idle connections
    /// and spare sockets there: it is told too.
    pub(super) async fn forget_network(&mut self, network: NetworkId) {
        for worker in &mut self.workers {
            worker.send(&ToWorker::RemoveNetwork(network)).await;
        }
    }

    pub(super) fn start_worker(&mut self) -> std::io::Result<()> {
        let id = self.next_worker;
        self.next_worker += 1;
        let provided = authority::provide(&self.config);
        self.authority = authority::identity(&self.config.ca);
        let worker = WorkerProcess::start(
            id,
            &self.config,
            &self.listeners,
            provided,
            self.status(),
            self.events_tx.clone(),
        )?;
        tracing::debug!(pid = worker.pid, "worker started");
        self.workers.push(worker);
        self.told = None;
        Ok(())
    }

    /// Starts another worker; the ones before it drain as soon as it is ready.
    pub(super) fn replace_worker(&mut self) {
        if let Err(error) = self.start_worker() {
            tracing::error!(%error, "cannot start a worker; trying again");
            self.restart_at = Some(tokio::time::Instant::now() + RESTART_DELAY_MAX);
        }
    }
}
