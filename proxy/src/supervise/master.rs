//! The master's event loop. `start` makes everything, or goes on with what another program left; `workers` starts, hears and
//! replaces workers; `reload` follows the configuration; `upgrade` hands everything to another program.

mod probing;
mod reload;
mod start;
mod upgrade;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};

use super::admin::{AdminSocket, Answer, Pending, Request};
use super::admission::Admission;
use super::handover::Inherited;
use super::handover::candidate::Candidate;
use super::interception::{End, Interception};
use super::listeners::Listeners;
use super::notify;
use super::prober::Prober;
use super::process::{WorkerEvent, WorkerId, WorkerProcess};
use super::protocol::{MasterStatus, ToWorker, WorkerStatus};
use super::store::Store;
use crate::cli::Exit;
use crate::config::{Config, Loaded, Reloader};
use crate::intercept::Changes;
use crate::observe::logging;
use crate::relay::network::NetworkId;
use probing::SelfTesting;
use upgrade::{By, Upgrade};

/// How often state is pushed to the worker and the small chores are done.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two tries to bind what was busy, and between two full looks for Agents.
const CHORES: u64 = 5;
/// Ticks between two counts of flows, which are many; what else is held is counted with the chores.
const COUNT: u64 = 60;
/// A worker that has not shown for so long that its event loops turn is ended and replaced. None of them does anything
/// that takes longer than milliseconds.
const HUNG: Duration = Duration::from_secs(15);
/// The same of one that starts: the module's self-tests and reading the roots take about a second.
const START: Duration = Duration::from_secs(60);
/// What a draining worker may take beyond `limits.drain_timeout` before it is ended.
const DRAIN_SLACK: Duration = Duration::from_secs(2);

/// What a master is started with.
pub struct Start {
    /// The configuration.
    pub loaded: Loaded,
    /// Where it comes from.
    pub reloader: Reloader,
    /// The same as flags of the command line.
    pub flags: Vec<OsString>,
    /// What the program before left, when this one replaces it.
    pub inherited: Option<Inherited>,
}

/// Runs the proxy until it is told to stop.
pub fn run(start: Start) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the event loop");
            return Exit::Internal;
        }
    };
    runtime.block_on(async {
        match Box::pin(Master::start(start)).await {
            // Boxed: everything that the loop awaits lies in it.
            Ok(master) => Box::pin(master.run()).await,
            Err(exit) => exit,
        }
    })
}

struct Master {
    config: Config,
    /// What the running workers read, as it was then.
    files: Vec<Option<reload::Stamp>>,
    reloader: Reloader,
    flags: Vec<OsString>,
    /// The file of this program; what is there at an upgrade takes over.
    program: PathBuf,
    admin: Option<Arc<AdminSocket>>,
    listeners: Listeners,
    store: Store,
    interception: Interception,
    workers: Vec<WorkerProcess>,
    prober: Prober,
    /// Who may use the explicit ports; `None`: everybody.
    admission: Option<Admission>,
    events: mpsc::Receiver<(WorkerId, WorkerEvent)>,
    events_tx: mpsc::Sender<(WorkerId, WorkerEvent)>,
    requests: mpsc::Receiver<Pending>,
    signals: Signals,
    next_worker: WorkerId,
    /// The first one that this program started.
    first_worker: WorkerId,
    restarts: u64,
    upgrades: u64,
    upgrade: Upgrade,
    early_deaths: u32,
    restart_at: Option<tokio::time::Instant>,
    /// A worker was ready once: from then on a worker that fails is replaced, before it ends the program.
    served: bool,
    /// READY was said.
    up: bool,
    waiting_for_status: Vec<oneshot::Sender<Answer>>,
    /// A self-test that somebody waits for.
    self_testing: Option<SelfTesting>,
    /// Which files of a local authority the newest worker was given.
    authority: String,
    ticks: u64,
    last_watchdog: Instant,
    last_summary: String,
    /// What every worker knows of us; `None`: one may not.
    told: Option<MasterStatus>,
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr2: Signal,
}

enum Event {
    Worker(WorkerId, WorkerEvent),
    Request(Pending),
    Agents,
    SelfTest,
    Restart,
    Tick,
    Reload,
    Upgrade,
    Tried(Result<Candidate, String>),
    Stop,
}

impl Master {
    async fn run(mut self) -> Exit {
        let mut tick = tokio::time::interval(TICK);
        loop {
            let restart_at = self.restart_at;
            let event = tokio::select! {
                Some((id, event)) = self.events.recv() => Event::Worker(id, event),
                Some(pending) = self.requests.recv() => Event::Request(pending),
                () = self.interception.changed() => Event::Agents,
                () = self.prober.answered() => Event::SelfTest,
                () = sleep_until(restart_at) => Event::Restart,
                _ = tick.tick() => Event::Tick,
                _ = self.signals.hup.recv() => Event::Reload,
                _ = self.signals.usr2.recv() => Event::Upgrade,
                tried = self.upgrade.tried() => Event::Tried(tried),
                _ = self.signals.term.recv() => Event::Stop,
                _ = self.signals.int.recv() => Event::Stop,
            };
            match event {
                Event::Worker(id, event) => {
                    if let Some((end, exit)) = self.on_worker(id, event).await {
                        self.interception.leave(end);
                        return exit;
                    }
                }
                Event::Request(pending) => self.on_request(pending).await,
                Event::Agents => self.follow_agents().await,
                Event::SelfTest => self.on_self_test().await,
                Event::Restart => {
                    self.restart_at = None;
                    self.replace_worker();
                }
                Event::Tick => self.on_tick().await,
                Event::Reload => self.reload().await,
                Event::Upgrade => self.begin_upgrade(By::Signal),
                Event::Tried(tried) => self.on_tried(tried).await,
                Event::Stop => return Box::pin(self.stop()).await,
            }
        }
    }

    async fn on_request(
        &mut self,
        Pending {
            request,
            caller,
            tell,
            connection,
        }: Pending,
    ) {
        match request {
            Request::Upgrade => self.begin_upgrade(By::Command {
                caller,
                tell,
                connection,
            }),
            Request::Status => {
                self.interception.account();
                self.interception.count(true);
                self.waiting_for_status.push(tell);
                match self
                    .workers
                    .iter_mut()
                    .rev()
                    .find(|worker| worker.ready && !worker.draining)
                {
                    Some(worker) => worker.send(&ToWorker::Status).await,
                    None => self.answer_status(None),
                }
            }
            Request::SelfTest => self.begin_self_test(tell).await,
            Request::InterceptOn | Request::InterceptOff => {
                let on = request == Request::InterceptOn;
                tracing::info!(
                    on,
                    uid = caller.uid,
                    pid = caller.pid,
                    "interception toggled by command"
                );
                self.interception.want(on);
                let answer = match self.apply_interception().await {
                    Ok(()) => {
                        Answer::Ok(serde_json::to_value(self.interception.status()).unwrap_or_default())
                    }
                    Err(error) => Answer::Error(error.to_string()),
                };
                self.push_state().await;
                // Whoever asked may have gone.
                let _ = tell.send(answer);
            }
        }
    }

    async fn on_tick(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(CHORES) {
            // Also without news: a worker that does not read is found out by what it is told.
            self.told = None;
            self.interception.count(self.ticks.is_multiple_of(COUNT));
            if self.listeners.retry() {
                self.replace_worker();
            }
            self.follow_agents().await;
        } else if self.interception.met_unknown_namespace() {
            // Somebody was refused because we did not know its namespace yet.
            self.follow_agents().await;
        }
        self.interception.account();
        if self.listeners.close_retired() {
            tracing::info!("listeners of the process before are closed: nobody waits there any more");
            for worker in &mut self.workers {
                worker.send(&ToWorker::Retire).await;
            }
            if !self.listeners.retiring() {
                self.interception.forget_earlier_cgroups();
            }
        }
        self.keep_listeners();
        self.look_after_upgrade();
        let limit = self.config.limits.drain_timeout + DRAIN_SLACK;
        let mut hung = false;
        for worker in self.workers.iter_mut().filter(|worker| !worker.given_up) {
            let silent = worker.last_alive.elapsed();
            let bound = if worker.ready { HUNG } else { START };
            if worker.draining && silent > limit + HUNG {
                tracing::warn!(pid = worker.pid, "a drained worker does not end: ending it");
                worker.give_up();
            } else if !worker.draining && silent > bound {
                tracing::error!(pid = worker.pid, ?silent, "the worker hangs: replacing it");
                worker.give_up();
                hung = true;
            }
        }
        if hung {
            self.restarts += 1;
            self.replace_worker();
        }
        self.probe().await;
        self.finish_self_test();
        self.push_state().await;
        if let Some(interval) = notify::watchdog_interval()
            && self.last_watchdog.elapsed() * 2 >= interval
        {
            self.last_watchdog = Instant::now();
            notify::watchdog();
        }
        let summary = self.summary();
        if self.up && summary != self.last_summary {
            notify::status(&summary);
            self.last_summary = summary;
        }
    }

    /// Looks for Agents, and takes up what changed.
    async fn follow_agents(&mut self) {
        let changes = self.interception.sync();
        self.follow(changes).await;
        self.push_state().await;
    }

    /// Hands new networks to the workers and takes away those that are gone.
    async fn follow(&mut self, changes: Changes) {
        for network in changes.closed {
            let network = NetworkId(network);
            self.listeners.remove_network(network);
            self.forget_network(network).await;
        }
        if !changes.opened.is_empty() {
            self.prober.hurry();
        }
        for opened in changes.opened {
            let network = NetworkId(opened.network);
            self.listeners.add_network(opened);
            self.announce_network(network).await;
        }
        self.keep_listeners();
    }

    /// What the service manager keeps for us follows what there is.
    fn keep_listeners(&mut self) {
        if self.listeners.changed() {
            self.store.sync(&self.listeners);
        }
    }

    async fn stop(mut self) -> Exit {
        tracing::info!("stopping: requests in flight finish");
        notify::stopping();
        self.prober.end();
        let stored = self.store.in_use();
        self.interception.leave(End::Stop { stored });
        if !stored {
            // Nobody must wait in a backlog that is never served. What is stored is, by the next process.
            self.listeners = Listeners::new(1);
        }
        for worker in &mut self.workers {
            worker.drain().await;
        }
        let deadline = tokio::time::Instant::now() + self.config.limits.drain_timeout + DRAIN_SLACK;
        while !self.workers.is_empty() {
            tokio::select! {
                Some((id, event)) = self.events.recv() => {
                    if matches!(event, WorkerEvent::Ended(_)) {
                        self.workers.retain(|worker| worker.id != id);
                    } else if matches!(&event, WorkerEvent::Said(said) if said.asks()) {
                        // A request in flight that waits for the answer. Nothing else matters any more.
                        self.on_worker(id, event).await;
                    }
                }
                () = tokio::time::sleep_until(deadline) => break,
                _ = self.signals.term.recv() => break,
                _ = self.signals.int.recv() => break,
            }
        }
        for worker in &self.workers {
            tracing::warn!(pid = worker.pid, "requests still in flight are cut");
            worker.kill();
        }
        Exit::Ok
    }

    /// Tells the workers how things are, when that is news to them.
    async fn push_state(&mut self) {
        let status = self.status();
        if self.told.as_ref() == Some(&status) {
            return;
        }
        for worker in self.workers.iter_mut().filter(|worker| !worker.draining) {
            worker.send(&ToWorker::Master(Box::new(status.clone()))).await;
        }
        self.told = Some(status);
    }

    fn status(&self) -> MasterStatus {
        MasterStatus {
            pid: std::process::id(),
            listeners: self.listeners.status(),
            interception: self.interception.status(),
            self_tests: Some(self.prober.status()),
            worker_restarts: self.restarts,
            prober_restarts: self.prober.restarts(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            upgrades: self.upgrades,
            log_lost: logging::lost(),
        }
    }

    /// Answers everybody who asked for status.
    fn answer_status(&mut self, worker: Option<WorkerStatus>) {
        if self.waiting_for_status.is_empty() {
            return;
        }
        let body = crate::cli::status::Report::new(&self.config, self.status(), worker);
        let body = serde_json::to_value(body).unwrap_or_default();
        for tell in self.waiting_for_status.drain(..) {
            // Whoever asked may have gone.
            let _ = tell.send(Answer::Ok(body.clone()));
        }
    }

    /// Says READY, once: a worker serves, the kernel selects what it can know, and connections of our own were tried. Units that wait
    /// for us, the Agent's among them, start only then.
    fn announce(&mut self) {
        let serves = |worker: &WorkerProcess| worker.ready && worker.id >= self.first_worker;
        let settled = self.interception.settled() && self.prober.is_settled();
        if !self.up && settled && self.workers.iter().any(serves) {
            self.up = true;
            tracing::info!("up: {}", self.summary());
            notify::ready(&self.summary());
        }
    }

    /// One line for the service manager.
    fn summary(&self) -> String {
        // Not from the whole status: this is asked for every second.
        let listeners = self.listeners.status();
        let bound = listeners.iter().filter(|l| l.bound).count();
        let interception = self.interception.summary();
        format!(
            "site {}; {bound} of {} listeners; interception {interception}",
            self.config.site,
            listeners.len()
        )
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
