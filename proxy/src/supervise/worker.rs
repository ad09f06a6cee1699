//! What the child does: gives up its privileges, proves the module, then serves. Also the whole program under socket
//! activation, where the service manager plays the master.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use super::authority::{self, Passing};
use super::broker::Broker;
use super::channel::Channel;
use super::door::Door;
use super::privileges;
use super::protocol::{FromWorker, MasterStatus, Passed, Purpose, Setup};
use super::sandbox;
use crate::catalog::Catalog;
use crate::cli::Exit;
use crate::cli::output::complain;
use crate::config::{Config, HttpsException, HttpsPolicy};
use crate::kubernetes;
use crate::observe::http;
use crate::observe::logging;
use crate::observe::metrics::Metrics;
use crate::observe::view::Facts;
use crate::process;
use crate::relay::network::Sockets;
use crate::relay::upstream::outbound::Outbound;
use crate::relay::upstream::resolve::{Intake, Resolver, Sources};
use crate::relay::{self, HttpsHandling, Shared, Slots};
use crate::secret::Secrets;
use crate::tls;

mod beats;
mod converse;
mod data;
mod heap;
mod trust;

use data::{Data, sort};

/// A worker of a master: standard input is the channel.
pub fn run_for_master() -> Exit {
    // A copy of descriptor 0 that belongs to us; 0 itself stays where it is.
    let mut channel = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => Channel::new(UnixStream::from(fd)),
        Err(error) => return fail_early(&format!("standard input is not the master's channel: {error}")),
    };
    let (setup, mut descriptors) = match channel.receive::<Setup>() {
        Ok((setup, descriptors))
            if setup.listeners.len() + setup.authority.descriptors() == descriptors.len() =>
        {
            (setup, descriptors)
        }
        Ok((setup, descriptors)) => {
            return fail_early(&format!(
                "the master's set-up names {} listeners and {} files, and came with {} descriptors",
                setup.listeners.len(),
                setup.authority.descriptors(),
                descriptors.len()
            ));
        }
        Err(error) => return fail_early(&format!("no set-up from the master: {error}")),
    };
    logging::start(&setup.config.log);
    let secrets = Secrets::open(setup.config.upstream.secret_files().into_iter().flatten());
    if let Err(error) = privileges::give_up(&setup.config.worker.user) {
        return refuse(channel, Exit::NoPermission, &error.to_string());
    }
    if let Err(error) = privileges::follow_the_master() {
        return refuse(
            channel,
            Exit::Internal,
            &format!("cannot ask to be told of the master's death: {error}"),
        );
    }
    let files = descriptors.split_off(setup.listeners.len());
    let listeners = descriptors.into_iter().zip(setup.listeners).collect();
    let authority = (setup.authority, files);
    match Worker::start(setup.config, listeners, authority, setup.master, &secrets) {
        Ok(worker) => worker.run(Some(channel)),
        Err((exit, message)) => refuse(channel, exit, &message),
    }
}

/// A worker of the service manager's: the listeners come by socket activation, nothing is intercepted.
pub fn run_activated(config: Config, descriptors: Vec<OwnedFd>) -> Exit {
    let mut listeners = Vec::new();
    for descriptor in descriptors {
        match activated_purpose(&config, &descriptor) {
            Ok(purpose) => listeners.push((descriptor, Passed::new(purpose, 0))),
            Err(message) => {
                tracing::error!("{message}");
                return Exit::Config;
            }
        }
    }
    if config.explicit.is_limited() {
        tracing::error!(
            "explicit.allowed_users and explicit.allowed_cgroups need a master, which sees who connects: start `agent-fips-proxy run`, \
             or leave them out"
        );
        return Exit::Config;
    }
    let secrets = Secrets::open(config.upstream.secret_files().into_iter().flatten());
    if let Err(error) = privileges::give_up(&config.worker.user) {
        tracing::error!(%error, "cannot give up privileges");
        return Exit::NoPermission;
    }
    // One descriptor for each address: one thread serves them. Nothing is intercepted, whatever the settings say.
    let config = Config {
        intercept: crate::config::Intercept {
            enabled: false,
            https: HttpsPolicy::Passthrough,
            ..config.intercept.clone()
        },
        worker: crate::config::Worker {
            threads: 1,
            ..config.worker.clone()
        },
        ..config
    };
    // So no Agent's session is ever ended here.
    let authority = (Passing::default(), Vec::new());
    match Worker::start(config, listeners, authority, MasterStatus::default(), &secrets) {
        Ok(worker) => {
            super::notify::ready("explicit ports only: started by socket activation");
            worker.run(None)
        }
        Err((exit, message)) => {
            tracing::error!("{message}");
            exit
        }
    }
}

/// The port says what an activated socket is for.
fn activated_purpose(config: &Config, descriptor: &OwnedFd) -> Result<Purpose, String> {
    let socket = descriptor
        .try_clone()
        .map(TcpListener::from)
        .and_then(|socket| socket.local_addr());
    let port = socket
        .map_err(|error| format!("a socket from the service manager is no TCP listener: {error}"))?
        .port();
    if port == config.status.port {
        return Ok(Purpose::Status);
    }
    let offset = port.checked_sub(config.explicit.port_range_start);
    crate::catalog::TABLE
        .iter()
        .find(|entry| entry.offset.is_some() && entry.offset == offset)
        .map(|entry| Purpose::Explicit(entry.product))
        .ok_or_else(|| {
            format!(
                "the service manager passed a socket on port {port}, which is no port of ours: explicit.port_range_start is {}",
                config.explicit.port_range_start
            )
        })
}

type Failure = (Exit, String);

struct Worker {
    runtime: Runtime,
    config: Arc<Config>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    facts: Arc<Facts>,
    /// Ends the TLS sessions of Agents; there when a local authority is.
    server: Option<tls::Server>,
    status_listeners: Vec<TcpListener>,
    drain: watch::Sender<bool>,
    data: Data,
    broker: Arc<Broker>,
    /// There when not everybody may use the explicit ports.
    door: Option<Arc<Door>>,
    /// What others want the master to know.
    tell: mpsc::UnboundedSender<FromWorker>,
    told: Option<mpsc::UnboundedReceiver<FromWorker>>,
}

impl Worker {
    /// Proves the module, builds everything, starts the data threads.
    fn start(
        config: Config,
        listeners: Vec<(OwnedFd, Passed)>,
        (passing, files): (Passing, Vec<OwnedFd>),
        master: MasterStatus,
        secrets: &Secrets,
    ) -> Result<Self, Failure> {
        let module = tls::module::start()
            .map_err(|e| (Exit::Internal, format!("the crypto module is not usable: {e}")))?;
        let module = module.with_policy(config.upstream.tls_policy);
        tracing::info!(
            module = %module.version,
            certificate = module.certificate.as_deref().unwrap_or("none"),
            tested_environment = module.environment.tested,
            "the crypto module passed its integrity and known-answer tests"
        );
        let client = tls::Client::with_secrets(&config.upstream, secrets)
            .map_err(|e| (Exit::Config, e.to_string()))?;
        let roots = client.roots().clone();
        let (server, authority_problem) = authority::server(&config, &passing, files);
        let https = https_handling(&config, server.as_ref(), authority_problem.as_deref())?;
        let outbound = Outbound::new(&config.upstream, secrets).map_err(|e| (Exit::Config, e.to_string()))?;
        raise_open_files(&config, listeners.len());
        if names_processes(&config) && process::names_are_hidden() {
            tracing::warn!(
                "/proc shows this process no other user's: entries `process:` of intercept.https_passthrough_names match nobody; with \
                 systemd, a drop-in with ProtectProc=default lets it see their names"
            );
        }
        // What is read once has been read, and nothing has come from the network. Until here there is one thread: what it gave up, and
        // what it is refused, holds for those that it starts.
        let sandbox = sandbox::enter(&config).map_err(|e| (Exit::Internal, e.to_string()))?;
        logging::detach();
        tracing::info!(%sandbox, "confined");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| (Exit::Internal, e.to_string()))?;
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new(
            module,
            master,
            config.worker.threads,
            config.log.access,
        ));
        let (tell, told) = mpsc::unbounded_channel();
        metrics.set_authority(server.as_ref().map(tls::Server::authorities));
        let broker = Arc::new(Broker::new(tell.clone(), config.upstream.connect_timeout));
        let door = config
            .explicit
            .is_limited()
            .then(|| Arc::new(Door::new(tell.clone())));
        metrics.set_trust(client.trust());
        let shared = Arc::new(Shared {
            config: Arc::clone(&config),
            catalog: Arc::new(Catalog::new(&config.site)),
            tls: client,
            outbound: outbound.map(Arc::new),
            resolver: Arc::new(Resolver::new(Sources::default(), runtime.handle().clone())),
            recorder: Arc::clone(&metrics) as Arc<dyn relay::Recorder>,
            door: door.clone().map(|door| door as Arc<dyn relay::Door>),
            slots: Arc::new(Slots::new(&config.limits)),
            origin: Arc::new(relay::kernel_original_dst),
            peer: Arc::new(relay::kernel_peer),
            sockets: Arc::clone(&broker) as Arc<dyn Sockets>,
            https,
        });
        let (drain, draining) = watch::channel(false);
        let (retiring, listeners) = listeners.into_iter().partition(|(_, passed)| passed.retiring);
        let (data, status_listeners) = sort(listeners, config.worker.threads);
        let (retiring, _) = sort(retiring, config.worker.threads);
        let data = Data::start(data, retiring, &shared, &draining)
            .map_err(|e| (Exit::Internal, format!("cannot start a thread: {e}")))?;
        let facts = Arc::new(Facts {
            config: Arc::clone(&config),
            metrics: Arc::clone(&metrics),
            resolver: Arc::clone(&shared.resolver),
            sandbox,
            roots,
            server: server.clone(),
            authority_problem,
            https: shared.https.name(),
            started: Instant::now(),
        });
        Ok(Self {
            runtime,
            config,
            shared,
            metrics,
            facts,
            server,
            status_listeners,
            drain,
            data,
            broker,
            door,
            tell,
            told: Some(told),
        })
    }

    /// Serves until told to drain, by the master, by its death or by SIGTERM.
    fn run(mut self, channel: Option<Channel>) -> Exit {
        let facts = Arc::clone(&self.facts);
        let status_listeners = std::mem::take(&mut self.status_listeners);
        let threads = self.data.take_threads();
        let told = self.told.take();
        let local = LocalSet::new();
        let result: std::io::Result<()> = local.block_on(&self.runtime, async {
            tokio::task::spawn_local(trust::watch(self.shared.tls.clone(), Arc::clone(&self.metrics)));
            tokio::task::spawn_local(http::serve(status_listeners, facts, self.drain.subscribe()));
            tokio::task::spawn_local(authority::watch(self.server.clone()));
            tokio::task::spawn_local(heap::give_back());
            let sampled = Arc::clone(&self.metrics);
            tokio::task::spawn_local(async move { sampled.sample().await });
            let mut joined =
                tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
            // While requests in flight finish this runtime turns: they may still ask for an address or a socket.
            let talk = async {
                match (channel, told) {
                    (Some(channel), Some(told)) => {
                        let (sender, receiver) = channel.split()?;
                        self.watch_intake();
                        self.watch_pods();
                        self.converse(sender, receiver, told).await;
                    }
                    _ => terminated().await,
                }
                self.broker.close();
                if let Some(door) = &self.door {
                    door.close();
                }
                self.drain.send_replace(true);
                std::io::Result::Ok(())
            };
            let ended = tokio::select! {
                talked = talk => {
                    talked?;
                    joined.await
                }
                ended = &mut joined => ended,
            };
            if !ended.unwrap_or_default() {
                tracing::error!("a data thread ended by a panic");
            }
            Ok(())
        });
        if let Err(error) = result {
            tracing::error!(%error, "the worker's channel cannot be used");
        }
        tracing::info!("drained");
        Exit::Ok
    }

    /// Starts asking for the intake's addresses; what is found is the master's, for the kernel.
    fn watch_intake(&self) {
        let tell = self.tell.clone();
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_local(async move {
            let resolver = Arc::clone(&shared.resolver);
            let told = resolver.watch_intake(&shared.catalog, |what| {
                let message = match what {
                    Intake::Addresses(found) => FromWorker::Addresses(found),
                    Intake::Asked => FromWorker::AddressesAsked,
                };
                // The receiver goes with the channel to the master: then nobody wants to know.
                let _ = tell.send(message);
            });
            told.await;
        });
    }

    /// Starts following the Agent pods of this node, for the master.
    fn watch_pods(&self) {
        let tell = self.tell.clone();
        let config = Arc::clone(&self.config);
        tokio::task::spawn_local(async move {
            kubernetes::watch::follow(&config, |pods| {
                // As for addresses.
                let _ = tell.send(FromWorker::Pods(pods));
            })
            .await;
        });
    }
}

/// What the settings and the authority that is there come to.
fn https_handling(
    config: &Config,
    server: Option<&tls::Server>,
    problem: Option<&str>,
) -> Result<HttpsHandling, Failure> {
    let terminate = server.cloned().map(HttpsHandling::Terminate);
    match config.intercept.https {
        HttpsPolicy::Refuse => Ok(HttpsHandling::Refuse),
        HttpsPolicy::Passthrough => Ok(HttpsHandling::Passthrough),
        HttpsPolicy::Auto => Ok(terminate.unwrap_or(HttpsHandling::Passthrough)),
        HttpsPolicy::Terminate => terminate.ok_or_else(|| {
            let why = problem.unwrap_or("there is none; `agent-fips-proxy ca init` makes one");
            let message = format!("intercept.https is terminate, and no local authority can sign: {why}");
            (Exit::Config, message)
        }),
    }
}

fn names_processes(config: &Config) -> bool {
    let mut exceptions = config.intercept.https_passthrough_names.iter();
    exceptions.any(|exception| matches!(exception, HttpsException::Process(_)))
}

/// Raises the limit of open files as far as it goes, and tells when that is too little: beyond it nobody could be answered.
fn raise_open_files(config: &Config, listeners: usize) {
    // A client's and one to its intake; runtimes, log, channel, status page and the like.
    let needed = 2 * config.limits.max_connections + listeners + 128;
    match privileges::raise_open_files() {
        Ok(limit) if limit < needed as u64 => tracing::warn!(
            "this process may have {limit} open files, and limits.max_connections ({}) needs {needed}: beyond it new connections \
             wait; raise the limit (systemd: LimitNOFILE={needed}, elsewhere ulimit -n), or lower limits.max_connections",
            config.limits.max_connections
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// SIGTERM ends the worker; SIGINT is the terminal's word to the whole group, and the master tells us what it means.
async fn terminated() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = int.recv() => {}
        }
    }
}

/// Tells the master why we cannot start.
fn refuse(channel: Channel, exit: Exit, message: &str) -> Exit {
    tracing::error!("{message}");
    let sent = Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| {
            runtime.block_on(async {
                let (mut sender, _receiver) = channel.split()?;
                sender
                    .send(&FromWorker::Failed {
                        exit: exit as u8,
                        message: message.to_owned(),
                    })
                    .await
            })
        });
    if let Err(error) = sent {
        tracing::debug!(%error, "cannot tell the master");
    }
    exit
}

fn fail_early(message: &str) -> Exit {
    complain!("agent-fips-proxy worker: {message}");
    Exit::Usage
}
