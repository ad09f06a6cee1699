//! What the worker and its master say to each other while it serves and while it drains.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Worker, sort, terminated};
use crate::observe::logging;
use crate::relay::Change;
use crate::relay::network::NetworkId;
use crate::supervise::channel::{Receiver, Sender};
use crate::supervise::protocol::{FromWorker, Passed, ToWorker};
use crate::tls::module;

/// How often the worker says that its event loops turn.
const HEARTBEAT: Duration = Duration::from_secs(1);

impl Worker {
    /// Talks until the channel is of no use any more. Told to drain, by the master or by SIGTERM, it goes on: requests in
    /// flight may still need sockets that the master makes.
    pub(super) async fn converse(
        &self,
        mut sender: Sender,
        mut receiver: Receiver,
        mut told: mpsc::UnboundedReceiver<FromWorker>,
    ) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut terminated = std::pin::pin!(terminated());
        let mut draining = false;
        let mut silent = false;
        let mut say = Some(FromWorker::Ready);
        loop {
            if let Some(message) = say.take()
                && let Err(error) = sender.send(&message).await
            {
                tracing::warn!(%error, "the master is gone: draining");
                return;
            }
            tokio::select! {
                // A draining worker's silence is what tells the master how long it drains.
                _ = heartbeat.tick(), if !draining => say = self.alive(&mut silent),
                Some(message) = told.recv() => {
                    if !draining || message.asks() {
                        say = Some(message);
                    }
                }
                () = &mut terminated, if !draining => draining = self.drain(),
                message = receiver.next::<ToWorker>() => match message {
                    Ok(Some((ToWorker::Drain, _))) => draining = self.drain(),
                    Ok(Some((message, descriptors))) => say = self.hear(message, descriptors),
                    Ok(None) => {
                        tracing::warn!("the master is gone: draining");
                        return;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the master's channel broke: draining");
                        return;
                    }
                },
            }
        }
    }

    /// The sign of life, while every data thread shows one. `silent`: it was said that one does not.
    fn alive(&self, silent: &mut bool) -> Option<FromWorker> {
        let hangs = self.data.beats.silent();
        if let Some(hangs) = hangs.filter(|_| !*silent) {
            tracing::error!(thread = %hangs, silence = ?hangs.silence, "a data thread hangs: the master is told nothing more");
        }
        *silent = hangs.is_some();
        (!*silent).then_some(FromWorker::Alive)
    }

    fn drain(&self) -> bool {
        self.drain.send_replace(true);
        true
    }

    /// One message of the master's, and what to answer.
    fn hear(&self, message: ToWorker, descriptors: Vec<OwnedFd>) -> Option<FromWorker> {
        match message {
            // The loop above does it.
            ToWorker::Drain => {}
            ToWorker::Master(status) => self.metrics.set_master(*status),
            ToWorker::LogLevel(level) => logging::set_level(&level),
            ToWorker::Status => return Some(FromWorker::Status(Box::new(self.facts.worker()))),
            ToWorker::SelfTest => {
                let tested = module::self_test();
                match &tested {
                    Ok(_) => tracing::info!("the crypto module passed its tests on demand"),
                    Err(error) => tracing::error!(%error, "the crypto module failed its tests on demand"),
                }
                return Some(FromWorker::SelfTested(tested.map_err(|error| error.to_string())));
            }
            ToWorker::AddListeners(passed) => self.add_listeners(passed, descriptors),
            ToWorker::RemoveNetwork(network) => self.remove_network(network),
            ToWorker::Retire => self.tell_threads(|| Change::Retire),
            ToWorker::Judged { request, refused } => {
                if let Some(door) = &self.door {
                    door.judged(request, refused);
                }
            }
            ToWorker::Socket { request, error } => {
                let made = match (error, descriptors.into_iter().next()) {
                    (None, Some(socket)) => Ok(socket),
                    (Some(error), _) => Err(io::Error::other(error)),
                    (None, None) => Err(io::Error::other("the master's answer came without a socket")),
                };
                self.broker.answer(request, made);
            }
        }
        None
    }

    fn add_listeners(&self, passed: Vec<Passed>, descriptors: Vec<OwnedFd>) {
        if passed.len() != descriptors.len() {
            tracing::error!(
                named = passed.len(),
                came = descriptors.len(),
                "the master's listeners are not what it said: not served"
            );
            return;
        }
        let (retiring, staying): (Vec<_>, Vec<_>) = descriptors
            .into_iter()
            .zip(passed)
            .partition(|(_, passed)| passed.retiring);
        for (listeners, change) in [
            (staying, Change::Add as fn(_) -> _),
            (retiring, Change::AddRetiring as fn(_) -> _),
        ] {
            let (data, status) = sort(listeners, self.data.changes.len());
            if !status.is_empty() {
                tracing::error!("a listener of the status page cannot be added while serving");
            }
            for (listeners, thread) in data.into_iter().zip(&self.data.changes) {
                if !listeners.is_empty() {
                    // A thread that is gone drains: it accepts nothing any more.
                    let _ = thread.send(change(listeners));
                }
            }
        }
    }

    fn remove_network(&self, network: NetworkId) {
        self.broker.forget(network);
        self.tell_threads(|| Change::Remove(network));
    }

    fn tell_threads(&self, change: impl Fn() -> Change) {
        for thread in &self.data.changes {
            // As above; then its listeners are closed already.
            let _ = thread.send(change());
        }
    }
}
