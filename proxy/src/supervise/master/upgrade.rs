//! An upgrade in place: the program that is installed now is tried, and then takes over in this process
//! (docs/adr/0010-hand-over.md).

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Master;
use crate::observe::logging;
use crate::supervise::admin::{self, Answer, Caller};
use crate::supervise::handover::candidate::{Candidate, Trial};
use crate::supervise::handover::{self, AdminRecord, Copies, FORMATS, State};
use crate::supervise::notify;
use crate::supervise::protocol::PROTOCOL;

/// How long the first worker of the new program may take to serve. Until then the old ones do, and longer if it never does.
const SETTLE: Duration = Duration::from_secs(60);
/// How often it is looked whether the last words of workers have been heard.
const LISTEN: Duration = Duration::from_millis(2);

/// Who asks for an upgrade.
pub(super) enum By {
    /// Whoever may send SIGUSR2.
    Signal,
    /// `upgrade`
    Command {
        /// Who that is.
        caller: Caller,
        /// Whereto a refusal goes.
        tell: oneshot::Sender<Answer>,
        /// Where the program that takes over answers.
        connection: Option<OwnedFd>,
    },
}

impl By {
    fn refuse(self, why: String) {
        tracing::error!("no upgrade: {why}");
        if let Self::Command { tell, .. } = self {
            // Whoever asked may have gone.
            let _ = tell.send(Answer::Error(why));
        }
    }
}

/// How far an upgrade is.
pub(super) enum Upgrade {
    /// There is none.
    None,
    /// The new program is tried.
    Trying {
        by: By,
        tried: oneshot::Receiver<Result<Candidate, String>>,
    },
    /// This is the new program, and its first worker does not serve yet.
    Settling {
        from: String,
        asker: Option<OwnedFd>,
        until: Instant,
    },
}

impl Upgrade {
    /// In the new program.
    pub(super) fn settling(from: String, asker: Option<OwnedFd>) -> Self {
        Self::Settling {
            from,
            asker,
            until: Instant::now() + SETTLE,
        }
    }

    /// The outcome of the trial. Waits for ever while nothing is tried. Cancel-safe.
    pub(super) async fn tried(&mut self) -> Result<Candidate, String> {
        match self {
            Self::Trying { tried, .. } => tried
                .await
                .unwrap_or_else(|_| Err("the trial of the new program broke off".to_owned())),
            Self::None | Self::Settling { .. } => std::future::pending().await,
        }
    }

    /// A worker of the new program serves, or none will.
    fn settle(&mut self, how: Result<(), String>) {
        let (from, asker) = match std::mem::replace(self, Self::None) {
            Self::Settling { from, asker, .. } => (from, asker),
            other => {
                *self = other;
                return;
            }
        };
        let to = env!("CARGO_PKG_VERSION");
        let answer = match how {
            Ok(()) => {
                tracing::info!(from, to, "upgraded: the new program serves");
                Answer::Ok(serde_json::json!({ "from": from, "to": to }))
            }
            Err(why) => {
                tracing::error!(
                    from,
                    to,
                    "the new program has taken over, and its worker does not serve: {why}; the old one serves on"
                );
                Answer::Error(format!(
                    "version {to} has taken over, and its worker does not serve: {why}; the worker of version {from} serves on"
                ))
            }
        };
        if let Some(Err(error)) = asker.map(|asker| admin::tell(asker, &answer)) {
            tracing::debug!(%error, "whoever asked for the upgrade has gone");
        }
    }

    fn is_overdue(&self) -> bool {
        matches!(self, Self::Settling { until, .. } if Instant::now() > *until)
    }
}

impl Master {
    /// A worker of this program serves, or none will: then those of the program before do.
    pub(super) fn settled(&mut self, how: Result<(), String>) {
        if how.is_err() {
            self.first_worker = 1;
        }
        self.upgrade.settle(how);
        self.announce();
    }

    /// To be called now and then: nobody waits for ever.
    pub(super) fn look_after_upgrade(&mut self) {
        if self.upgrade.is_overdue() {
            self.settled(Err(format!("not within {} s", SETTLE.as_secs())));
        }
    }

    /// Tries the program that is installed now; [`Master::on_tried`] goes on.
    pub(super) fn begin_upgrade(&mut self, by: By) {
        match &by {
            By::Signal => tracing::info!("upgrade asked for by SIGUSR2"),
            By::Command { caller, .. } => {
                tracing::info!(uid = caller.uid, pid = caller.pid, "upgrade asked for by command");
            }
        }
        if !matches!(self.upgrade, Upgrade::None) {
            return by.refuse("another upgrade is going on".to_owned());
        }
        if !self.served {
            return by.refuse("the proxy is starting".to_owned());
        }
        if self.interception.draining() {
            return by.refuse(
                "interception was switched off a moment ago, and its open connections end first: upgrade again after \
                 limits.drain_timeout"
                    .to_owned(),
            );
        }
        let (tell, tried) = oneshot::channel();
        let trial = Trial {
            path: self.program.clone(),
            flags: self.flags.clone(),
            variables: self.variables(),
        };
        tokio::spawn(async move {
            // The master is gone when this fails.
            let _ = tell.send(trial.run().await);
        });
        self.upgrade = Upgrade::Trying { by, tried };
    }

    /// The trial is over: hands over, or says why not.
    pub(super) async fn on_tried(&mut self, tried: Result<Candidate, String>) {
        let Upgrade::Trying { by, .. } = std::mem::replace(&mut self.upgrade, Upgrade::None) else {
            return;
        };
        let candidate = match tried {
            Ok(candidate) => candidate,
            Err(why) => return by.refuse(why),
        };
        match self.hand_over(&candidate, &by).await {
            Ok(never) => match never {},
            Err(error) => {
                for worker in &mut self.workers {
                    worker.wake(self.events_tx.clone());
                }
                notify::ready(&self.summary());
                by.refuse(format!(
                    "{} cannot take over: {error}; this program goes on",
                    candidate.path.display()
                ));
            }
        }
    }

    /// Comes back only when that failed.
    async fn hand_over(&mut self, candidate: &Candidate, by: &By) -> io::Result<Infallible> {
        self.hush_workers().await;
        candidate.unchanged().map_err(io::Error::other)?;
        let mut copies = Copies::default();
        let state = self.state(by, &mut copies)?;
        tracing::info!(
            from = env!("CARGO_PKG_VERSION"),
            to = candidate.version,
            program = %candidate.path.display(),
            workers = state.workers.len(),
            listeners = state.listeners.len(),
            "handing over"
        );
        notify::reloading();
        // It would end by itself, unless it hangs.
        self.prober.end();
        // The thread that writes the log ends with this program.
        logging::finish();
        handover::exec(&candidate.path, self.variables(), &state, copies)
    }

    /// Hears what workers have said, says what is left to say to them, and leaves their channels alone.
    async fn hush_workers(&mut self) {
        loop {
            let mut hushed = true;
            for worker in &mut self.workers {
                hushed &= worker.hush();
            }
            let event = match hushed {
                true => self.events.try_recv().ok(),
                false => tokio::select! {
                    event = self.events.recv() => event,
                    () = tokio::time::sleep(LISTEN) => continue,
                },
            };
            match event {
                // It ends the program only before a worker served.
                Some((id, event)) => drop(self.on_worker(id, event).await),
                None => break,
            }
        }
        for worker in &mut self.workers {
            worker.rest().await;
        }
    }

    fn state(&self, by: &By, copies: &mut Copies) -> io::Result<State> {
        let admin = self.admin.as_ref().map(|admin| {
            copies.add(admin.socket()).map(|socket| AdminRecord {
                path: admin.path().to_owned(),
                socket,
            })
        });
        let listeners = self
            .listeners
            .places()
            .into_iter()
            .map(|(place, socket)| Ok((place, copies.add(socket)?)))
            .collect::<io::Result<_>>()?;
        let mut workers = Vec::new();
        for worker in &self.workers {
            if let (record, Some(channel)) = worker.record() {
                workers.push((record, copies.add(channel)?));
            }
        }
        let asker = match by {
            By::Command {
                connection: Some(connection),
                ..
            } => Some(copies.add(connection.as_fd())?),
            By::Command { .. } | By::Signal => None,
        };
        Ok(State {
            format: FORMATS[FORMATS.len() - 1],
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            upgrades: self.upgrades + 1,
            restarts: self.restarts,
            next_worker: self.next_worker,
            admin: admin.transpose()?,
            listeners,
            workers,
            interception: self.interception.record(),
            stored: self.store.names().cloned().collect(),
            asker,
        })
    }

    /// What another program in this process is given: not what the service manager said to this one about descriptors.
    fn variables(&self) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
        let ours = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", handover::VARIABLE];
        let mut variables = self.reloader.variables();
        variables.retain(|(name, _)| !ours.iter().any(|our| name == our));
        variables
    }
}
