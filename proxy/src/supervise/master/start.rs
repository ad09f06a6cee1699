//! The start: everything is made, or gone on with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::upgrade::Upgrade;
use super::{Master, Signals, Start, reload};
use crate::cli::Exit;
use crate::config::Config;
use crate::intercept::InterceptError;
use crate::supervise::admin::{AdminSocket, Pending};
use crate::supervise::admission::Admission;
use crate::supervise::handover::Inherited;
use crate::supervise::interception::{End, Interception};
use crate::supervise::listeners::{self, Listeners, Sockets};
use crate::supervise::privileges;
use crate::supervise::prober::Prober;
use crate::supervise::process::{self, WorkerProcess};
use crate::supervise::protocol::PROTOCOL;
use crate::supervise::store::{self, Store};

impl Master {
    pub(super) async fn start(start: Start) -> Result<Self, Exit> {
        let Start {
            loaded,
            reloader,
            flags,
            mut inherited,
        } = start;
        let config = loaded.config;
        let admission = Admission::new(&config.explicit).map_err(|error| {
            tracing::error!("{error}");
            Exit::Config
        })?;
        let signals = signals()?;
        if let Err(error) = privileges::raise_open_files() {
            tracing::debug!(%error, "cannot raise the limit of open files");
        }
        let (requests_tx, requests) = mpsc::channel(8);
        let admin = admin(&config, inherited.as_mut(), requests_tx).await?;

        let mut listeners = Listeners::new(config.worker.threads);
        let mut interception = Interception::new(config.intercept.clone(), config.worker.threads);
        let store = match &mut inherited {
            Some(before) => {
                let networks = inherit_listeners(&mut listeners, before);
                interception.inherit(before.state.interception.clone(), networks);
                Store::of_process(before.state.stored.iter().cloned())
            }
            None => adopt_stored(&mut listeners),
        };
        interception.clear();
        let failed = match (&inherited, config.intercept.requested) {
            (Some(_), _) => Failed::LeftAsItIs,
            (None, true) => Failed::End,
            (None, false) => Failed::ExplicitOnly,
        };
        // The cgroup first: every listener must be made inside it.
        start_interception(failed, interception.prepare(&mut listeners))?;
        listeners.reconcile(&listeners::wanted(&config));
        if listeners.uneven() {
            tracing::warn!(
                threads = config.worker.threads,
                "worker.threads is another than when the listeners were made, so connections are not divided equally; they are made \
                 anew at the next start after a stop"
            );
        }
        if !listeners.any_bound() {
            tracing::error!(
                "no listener could be bound: see the lines above; explicit.port_range_start, explicit.local_address and \
                 status.port say where"
            );
            return Err(Exit::Unavailable);
        }
        let engaged = start_interception(failed, interception.engage(&listeners))?.unwrap_or_default();

        let (events_tx, events) = mpsc::channel(64);
        let mut master = Self {
            files: reload::stamps(&config),
            config,
            reloader,
            flags,
            program: program(),
            admin,
            listeners,
            store,
            interception,
            workers: Vec::new(),
            prober: Prober::default(),
            admission,
            events,
            events_tx,
            requests,
            signals,
            next_worker: 1,
            first_worker: 1,
            restarts: 0,
            upgrades: 0,
            upgrade: Upgrade::None,
            early_deaths: 0,
            restart_at: None,
            served: false,
            up: false,
            waiting_for_status: Vec::new(),
            self_testing: None,
            authority: String::new(),
            ticks: 0,
            last_watchdog: Instant::now(),
            last_summary: String::new(),
            told: None,
        };
        if let Some(before) = &mut inherited {
            master.inherit(before);
        }
        // With workers that are there, so that they hear of networks that are gone.
        master.follow(engaged).await;
        if let Err(error) = master.start_worker() {
            tracing::error!(%error, "cannot start the worker");
            if master.workers.is_empty() {
                master.interception.leave(End::Stop { stored: false });
                return Err(Exit::Internal);
            }
            master.settled(Err(error.to_string()));
        }
        Ok(master)
    }

    /// Goes on with the workers of the program before, and with what it counted.
    fn inherit(&mut self, before: &mut Inherited) {
        let stranger = before.state.protocol != PROTOCOL;
        for (record, channel) in std::mem::take(&mut before.state.workers) {
            let (id, pid) = (record.id, record.pid);
            let worker = before.take(channel).and_then(|channel| {
                WorkerProcess::inherit(record, channel, stranger, self.events_tx.clone())
            });
            match worker {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    tracing::error!(id, pid, %error, "cannot go on with a worker of the program before");
                }
            }
        }
        let known = |pid: &u32| self.workers.iter().any(|worker| worker.pid == *pid);
        for pid in children().into_iter().filter(|pid| !known(pid)) {
            // It belonged to the program before, and ends with its channel or has ended: nobody else would wait for it.
            tokio::spawn(process::reap(pid));
        }
        self.restarts = before.state.restarts;
        self.upgrades = before.state.upgrades;
        self.next_worker = before.state.next_worker;
        self.first_worker = self.next_worker;
        self.served = true;
        let asker = before.state.asker.and_then(|asker| before.take(asker).ok());
        self.upgrade = Upgrade::settling(before.state.version.clone(), asker);
        tracing::info!(
            from = before.state.version,
            to = env!("CARGO_PKG_VERSION"),
            workers = self.workers.len(),
            "this program has taken over"
        );
    }
}

/// The processes that the program before started. A kernel that does not tell (CONFIG_PROC_CHILDREN) leaves them as zombies until
/// we end.
fn children() -> Vec<u32> {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The file of this program. After a package was installed the kernel names it as deleted.
fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_default();
    let text = path.to_string_lossy();
    match text.strip_suffix(" (deleted)") {
        Some(path) => path.into(),
        None => path,
    }
}

fn signals() -> Result<Signals, Exit> {
    let listen = |kind| {
        signal(kind).map_err(|error| {
            tracing::error!(%error, "cannot listen for signals");
            Exit::Internal
        })
    };
    let signals = Signals {
        term: listen(SignalKind::terminate())?,
        int: listen(SignalKind::interrupt())?,
        hup: listen(SignalKind::hangup())?,
        usr2: listen(SignalKind::user_defined2())?,
    };
    // Those that came while the program before handed over.
    crate::signals::take().map_err(|error| {
        tracing::error!(%error, "cannot take signals");
        Exit::Internal
    })?;
    Ok(signals)
}

fn inherit_listeners(listeners: &mut Listeners, before: &mut Inherited) -> BTreeMap<u32, Sockets> {
    let places = std::mem::take(&mut before.state.listeners);
    let places = places.into_iter().filter_map(|(place, number)| {
        before
            .take(number)
            .map(|socket| (place, socket))
            .inspect_err(
                |error| tracing::error!(?place, %error, "cannot go on with a listener of the program before"),
            )
            .ok()
    });
    let places = places.collect();
    listeners.inherit(places)
}

/// Goes on with what the service manager kept.
fn adopt_stored(listeners: &mut Listeners) -> Store {
    let kept = store::kept();
    let store = Store::of_process(kept.iter().map(|(name, _)| name.clone()));
    if kept.is_empty() {
        return store;
    }
    let count = kept.len();
    let strangers = listeners.adopt(kept);
    tracing::info!(
        listeners = count - strangers.len(),
        "the service manager kept listeners for us"
    );
    if !strangers.is_empty() {
        tracing::warn!(names = ?strangers, "the service manager passed what is no listener of ours; it is closed");
    }
    store
}

/// What it means that interception cannot be had.
#[derive(Clone, Copy)]
enum Failed {
    /// The operator asked for it: the start fails.
    End,
    /// It is only the default: a container without privileges serves the explicit ports, as the haproxy-based proxy does.
    ExplicitOnly,
    /// What the program before left in the kernel is in force, and its workers serve.
    LeftAsItIs,
}

fn start_interception<T>(failed: Failed, result: Result<T, InterceptError>) -> Result<Option<T>, Exit> {
    let error = match result {
        Ok(done) => return Ok(Some(done)),
        Err(error) => error,
    };
    match failed {
        Failed::End => {
            tracing::error!("cannot intercept (intercept.enabled): {error}");
            Err(Exit::from_intercept(&error))
        }
        Failed::ExplicitOnly => {
            tracing::warn!("serving the explicit ports only; interception is not possible here: {error}");
            Ok(None)
        }
        Failed::LeftAsItIs => {
            tracing::error!(
                "interception stays as the program before left it, for this one cannot take it over: {error}"
            );
            Ok(None)
        }
    }
}

async fn admin(
    config: &Config,
    inherited: Option<&mut Inherited>,
    requests: mpsc::Sender<Pending>,
) -> Result<Option<Arc<AdminSocket>>, Exit> {
    let path = &config.status.socket;
    if let Some(before) = inherited
        && let Some(record) = before.state.admin.take()
    {
        let socket = before
            .take(record.socket)
            .and_then(|socket| AdminSocket::inherit(record.path, socket));
        match socket {
            Ok(socket) if socket.path() == path => return Ok(Some(serve(socket, requests))),
            // It goes with its file, and another is made.
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot go on with the admin socket"),
        }
    }
    match AdminSocket::bind(path).await {
        Ok(socket) => Ok(Some(serve(socket, requests))),
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
            Ok(None)
        }
    }
}

fn serve(socket: AdminSocket, requests: mpsc::Sender<Pending>) -> Arc<AdminSocket> {
    let socket = Arc::new(socket);
    tokio::spawn(Arc::clone(&socket).serve(requests));
    socket
}
