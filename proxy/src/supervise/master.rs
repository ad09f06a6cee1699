//! The master's event loop. `workers` starts, hears and replaces workers; `reload` follows the configuration.

mod probing;
mod reload;
mod workers;

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::admin::{AdminSocket, Answer, Pending, Request};
use super::interception::Interception;
use super::listeners::{self, Listeners};
use super::notify;
use super::privileges;
use super::prober::Prober;
use super::process::{WorkerEvent, WorkerId, WorkerProcess};
use super::protocol::{FromWorker, MasterStatus, ToWorker, WorkerStatus};
use crate::cli::Exit;
use crate::config::{Config, Loaded, Reloader};
use crate::intercept::{Changes, InterceptError};
use crate::observe::logging;
use crate::relay::network::NetworkId;

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

/// Runs the proxy until it is told to stop.
pub fn run(loaded: Loaded, reloader: Reloader) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the event loop");
            return Exit::Internal;
        }
    };
    runtime.block_on(async {
        match Master::start(loaded, reloader).await {
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
    listeners: Listeners,
    interception: Interception,
    workers: Vec<WorkerProcess>,
    prober: Prober,
    events: mpsc::Receiver<(WorkerId, WorkerEvent)>,
    events_tx: mpsc::Sender<(WorkerId, WorkerEvent)>,
    requests: mpsc::Receiver<Pending>,
    signals: Signals,
    next_worker: WorkerId,
    restarts: u64,
    early_deaths: u32,
    restart_at: Option<tokio::time::Instant>,
    /// A worker was ready once: from then on a worker that fails is replaced, before it ends the program.
    served: bool,
    /// READY was said.
    up: bool,
    waiting_for_status: Vec<oneshot::Sender<Answer>>,
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
}

enum Event {
    Worker(WorkerId, WorkerEvent),
    Request(Pending),
    Agents,
    SelfTest,
    Restart,
    Tick,
    Reload,
    Stop,
}

impl Master {
    async fn start(loaded: Loaded, reloader: Reloader) -> Result<Self, Exit> {
        let config = loaded.config;
        let internal = |error: std::io::Error| {
            tracing::error!(%error, "cannot listen for signals");
            Exit::Internal
        };
        let signals = Signals {
            term: signal(SignalKind::terminate()).map_err(internal)?,
            int: signal(SignalKind::interrupt()).map_err(internal)?,
            hup: signal(SignalKind::hangup()).map_err(internal)?,
        };
        if let Err(error) = privileges::raise_open_files() {
            tracing::debug!(%error, "cannot raise the limit of open files");
        }
        let (requests_tx, requests) = mpsc::channel(8);
        bind_admin(&config, requests_tx).await?;

        let mut listeners = Listeners::new(config.worker.threads);
        let mut interception = Interception::new(config.intercept.clone(), config.worker.threads);
        interception.clear();
        // The cgroup first: every listener must be made inside it.
        start_interception(&config, interception.prepare(&mut listeners))?;
        listeners.reconcile(&listeners::wanted(&config));
        if !listeners.any_bound() {
            tracing::error!(
                "no listener could be bound: see the lines above; explicit.port_range_start, explicit.local_address and \
                 status.port say where"
            );
            return Err(Exit::Unavailable);
        }
        for opened in start_interception(&config, interception.engage(&listeners))?
            .unwrap_or_default()
            .opened
        {
            listeners.add_network(NetworkId(opened.network), opened.taken, opened.v4, opened.v6);
        }

        let (events_tx, events) = mpsc::channel(64);
        let mut master = Self {
            files: reload::stamps(&config),
            config,
            reloader,
            listeners,
            interception,
            workers: Vec::new(),
            prober: Prober::default(),
            events,
            events_tx,
            requests,
            signals,
            next_worker: 1,
            restarts: 0,
            early_deaths: 0,
            restart_at: None,
            served: false,
            up: false,
            waiting_for_status: Vec::new(),
            authority: String::new(),
            ticks: 0,
            last_watchdog: Instant::now(),
            last_summary: String::new(),
            told: None,
        };
        if let Err(error) = master.start_worker() {
            tracing::error!(%error, "cannot start the worker");
            master.interception.leave();
            return Err(Exit::Internal);
        }
        Ok(master)
    }

    async fn run(mut self) -> Exit {
        let mut tick = tokio::time::interval(TICK);
        loop {
            let restart_at = self.restart_at;
            let event = tokio::select! {
                Some((id, event)) = self.events.recv() => Event::Worker(id, event),
                Some(pending) = self.requests.recv() => Event::Request(pending),
                () = self.interception.changed() => Event::Agents,
                _ = self.prober.answered() => Event::SelfTest,
                () = sleep_until(restart_at) => Event::Restart,
                _ = tick.tick() => Event::Tick,
                _ = self.signals.hup.recv() => Event::Reload,
                _ = self.signals.term.recv() => Event::Stop,
                _ = self.signals.int.recv() => Event::Stop,
            };
            match event {
                Event::Worker(id, event) => {
                    if let Some(exit) = self.on_worker(id, event).await {
                        self.interception.leave();
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
                Event::Stop => return self.stop().await,
            }
        }
    }

    async fn on_request(
        &mut self,
        Pending {
            request,
            caller,
            tell,
        }: Pending,
    ) {
        match request {
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
            self.listeners
                .add_network(network, opened.taken, opened.v4, opened.v6);
            self.announce_network(network).await;
        }
    }

    async fn stop(mut self) -> Exit {
        tracing::info!("stopping: requests in flight finish");
        notify::stopping();
        self.prober.end();
        self.interception.leave();
        // Nobody must wait in a backlog that is never served.
        self.listeners = Listeners::new(1);
        for worker in &mut self.workers {
            worker.drain().await;
        }
        let deadline = tokio::time::Instant::now() + self.config.limits.drain_timeout + DRAIN_SLACK;
        while !self.workers.is_empty() {
            tokio::select! {
                Some((id, event)) = self.events.recv() => {
                    if matches!(event, WorkerEvent::Ended(_)) {
                        self.workers.retain(|worker| worker.id != id);
                    } else if matches!(event, WorkerEvent::Said(FromWorker::SocketWanted { .. })) {
                        // A request in flight that needs a connection. Nothing else matters any more.
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
        let serves = self.workers.iter().any(|worker| worker.ready);
        if !self.up && serves && self.interception.settled() && self.prober.is_settled() {
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

/// Interception that is only the default and cannot be had is not an error: a container without privileges serves the
/// explicit ports, as the haproxy-based proxy does.
fn start_interception<T>(config: &Config, result: Result<T, InterceptError>) -> Result<Option<T>, Exit> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if config.intercept.requested => {
            tracing::error!("cannot intercept (intercept.enabled): {error}");
            Err(Exit::from_intercept(&error))
        }
        Err(error) => {
            tracing::warn!("serving the explicit ports only; interception is not possible here: {error}");
            Ok(None)
        }
    }
}

async fn bind_admin(config: &Config, requests: mpsc::Sender<Pending>) -> Result<(), Exit> {
    let path = &config.status.socket;
    match AdminSocket::bind(path).await {
        Ok(socket) => {
            tokio::spawn(socket.serve(requests));
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            tracing::error!(
                "another agent-fips-proxy is running: it answers at {} (status.socket)",
                path.display()
            );
            Err(Exit::Unavailable)
        }
        Err(error) => {
            // No writable file is a way of running, not a failure: `status` and `intercept` do without.
            tracing::warn!(
                "no admin socket at {} (status.socket): {error}; `status` and `intercept` cannot reach this process",
                path.display()
            );
            Ok(())
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
