//! Starting a worker and knowing when it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::channel::{self, Sender};
use super::listeners::Listeners;
use super::protocol::{FromWorker, MasterStatus, Setup, ToWorker};
use crate::config::Config;

/// Which worker an event belongs to: they are numbered from 1.
pub type WorkerId = u64;

/// What a worker did.
#[derive(Debug)]
pub enum WorkerEvent {
    /// It said something.
    Said(FromWorker),
    /// Its process ended.
    Ended(io::Result<ExitStatus>),
}

/// A worker process, seen from the master.
pub struct WorkerProcess {
    /// Its number.
    pub id: WorkerId,
    /// Its process id.
    pub pid: u32,
    /// When it was started.
    pub started: Instant,
    /// When it last showed that its event loop turns.
    pub last_alive: Instant,
    /// It said that it is ready.
    pub ready: bool,
    /// It was told to drain.
    pub draining: bool,
    sender: Sender,
}

impl WorkerProcess {
    /// Starts this same program as a worker, hands it its set-up and listeners, and reports what it says and when it ends
    /// to `events`. Must be called inside a tokio runtime.
    pub fn start(
        id: WorkerId,
        config: &Config,
        listeners: &Listeners,
        master: MasterStatus,
        events: mpsc::Sender<(WorkerId, WorkerEvent)>,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // The worker's standard input is its channel: nothing else is inherited, no code runs between fork and exec.
        let child = Command::new("/proc/self/exe")
            .arg0("agent-fips-proxy")
            .args(["worker", "--channel"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("LISTEN_FDS")
            .kill_on_drop(false)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let (passed, descriptors) = listeners.passed();
        let setup = Setup {
            config: config.clone(),
            listeners: passed,
            master,
        };
        channel::send_setup(&ours, &setup, &descriptors)?;
        let (sender, receiver) = channel::split(ours)?;
        tokio::spawn(follow(id, child, receiver, events));
        let now = Instant::now();
        Ok(Self {
            id,
            pid,
            started: now,
            last_alive: now,
            ready: false,
            draining: false,
            sender,
        })
    }

    /// Sends a message; a worker that is gone is noticed by its end, not here.
    pub async fn send(&mut self, message: &ToWorker) {
        if let Err(error) = self.sender.send(message).await {
            tracing::debug!(pid = self.pid, %error, "cannot reach the worker");
        }
    }

    /// Tells it to finish what is in flight and go.
    pub async fn drain(&mut self) {
        self.draining = true;
        self.send(&ToWorker::Drain).await;
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid.cast_signed());
        if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            tracing::debug!(pid = self.pid, %error, "cannot kill the worker");
        }
    }
}

async fn follow(
    id: WorkerId,
    mut child: Child,
    mut receiver: channel::Receiver,
    events: mpsc::Sender<(WorkerId, WorkerEvent)>,
) {
    loop {
        match receiver.next::<FromWorker>().await {
            Ok(Some(message)) => {
                if events.send((id, WorkerEvent::Said(message))).await.is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "the worker's channel broke");
                break;
            }
        }
    }
    let ended = child.wait().await;
    // The master is gone when this fails, and nobody is left to tell.
    let _ = events.send((id, WorkerEvent::Ended(ended))).await;
}
