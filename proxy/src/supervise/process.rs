//! Starting a worker and knowing when it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::authority::Passing;
use super::channel::{self, Channel, Frame, Receiver, Sender};
use super::listeners::Listeners;
use super::protocol::{FromWorker, MasterStatus, Setup, ToWorker};
use crate::config::Config;
use crate::relay::network::NetworkId;

/// Which worker an event belongs to: they are numbered from 1.
pub type WorkerId = u64;

/// What a worker did.
#[derive(Debug)]
pub enum WorkerEvent {
    /// It said something.
    Said(FromWorker),
    /// It does not read what it is told.
    Deaf,
    /// Its process ended.
    Ended(io::Result<ExitStatus>),
}

/// Messages that wait for a worker to read. A worker that starts reads none for a moment; state comes once a second.
const QUEUE: usize = 64;
/// How long the master waits for room in the queue, and how long one message may take to be read: then the worker hangs.
const ROOM_WAIT: Duration = Duration::from_millis(250);
const READ_WAIT: Duration = Duration::from_secs(10);

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
    /// It was told to drain, or was given up: another one serves.
    pub draining: bool,
    /// It was ended because it hung. Its end may be long in coming.
    pub given_up: bool,
    queue: mpsc::Sender<Frame>,
}

impl WorkerProcess {
    /// Starts this same program as a worker, hands it its set-up and listeners, and reports what it says and when it ends
    /// to `events`. Must be called inside a tokio runtime.
    pub fn start(
        id: WorkerId,
        config: &Config,
        listeners: &Listeners,
        authority: (Passing, Vec<OwnedFd>),
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
        let (authority, files) = authority;
        let mut copies = channel::copies(&descriptors)?;
        copies.extend(files);
        let setup = Setup {
            config: config.clone(),
            listeners: passed,
            authority,
            master,
        };
        let setup = Frame::new(&setup, copies)?;
        let (sender, receiver) = Channel::new(ours).split()?;
        let (queue, queued) = mpsc::channel(QUEUE);
        // The queue is new: there is room.
        queue.try_send(setup).map_err(io::Error::other)?;
        tokio::spawn(tell(id, sender, queued, events.clone()));
        tokio::spawn(follow(id, child, receiver, events));
        let now = Instant::now();
        Ok(Self {
            id,
            pid,
            started: now,
            last_alive: now,
            ready: false,
            draining: false,
            given_up: false,
            queue,
        })
    }

    /// Sends a message; a worker that is gone is noticed by its end, not here. Takes [`ROOM_WAIT`] at most: a worker that
    /// does not read by then is ended.
    pub async fn send(&mut self, message: &ToWorker) {
        self.send_with(message, Vec::new()).await;
    }

    /// Hands over more listeners, as [`Listeners::passed_of`] gives them.
    pub async fn add_listeners(&mut self, listeners: &Listeners, network: NetworkId) {
        let (passed, descriptors) = listeners.passed_of(network);
        match channel::copies(&descriptors) {
            Ok(copies) => self.send_with(&ToWorker::AddListeners(passed), copies).await,
            Err(error) => {
                tracing::error!(pid = self.pid, %network, %error, "cannot hand a network's listeners to the worker");
            }
        }
    }

    /// Answers a request for a socket.
    pub async fn answer_socket(&mut self, request: u64, made: io::Result<OwnedFd>) {
        let (error, descriptors) = match made {
            Ok(socket) => (None, vec![socket]),
            Err(error) => (Some(error.to_string()), Vec::new()),
        };
        self.send_with(&ToWorker::Socket { request, error }, descriptors)
            .await;
    }

    async fn send_with(&mut self, message: &ToWorker, descriptors: Vec<OwnedFd>) {
        let frame = match Frame::new(message, descriptors) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(pid = self.pid, %error, "a message for the worker cannot be sent");
                return;
            }
        };
        match self.queue.send_timeout(frame, ROOM_WAIT).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                tracing::error!(
                    pid = self.pid,
                    "the worker does not read what it is told: ending it"
                );
                // From now on nothing is said to it.
                self.queue = mpsc::channel(1).0;
                self.kill();
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                tracing::debug!(pid = self.pid, "cannot reach the worker");
            }
        }
    }

    /// Tells it to finish what is in flight and go.
    pub async fn drain(&mut self) {
        self.draining = true;
        self.send(&ToWorker::Drain).await;
    }

    /// Ends it, and expects nothing more of it: a process that the kernel cannot end, such as one that waits for a dead disk,
    /// must not keep another from taking its place.
    pub fn give_up(&mut self) {
        self.kill();
        self.draining = true;
        self.given_up = true;
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid.cast_signed());
        if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            tracing::debug!(pid = self.pid, %error, "cannot kill the worker");
        }
    }
}

/// Writes what is queued, in order.
async fn tell(
    id: WorkerId,
    mut sender: Sender,
    mut queued: mpsc::Receiver<Frame>,
    events: mpsc::Sender<(WorkerId, WorkerEvent)>,
) {
    while let Some(frame) = queued.recv().await {
        match tokio::time::timeout(READ_WAIT, sender.send_frame(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "the worker's channel is closed");
                return;
            }
            Err(_) => {
                // The master is gone when this fails, and nobody is left to tell.
                let _ = events.send((id, WorkerEvent::Deaf)).await;
                return;
            }
        }
    }
}

async fn follow(
    id: WorkerId,
    mut child: Child,
    mut receiver: Receiver,
    events: mpsc::Sender<(WorkerId, WorkerEvent)>,
) {
    loop {
        match receiver.next::<FromWorker>().await {
            Ok(Some((message, descriptors))) if descriptors.is_empty() => {
                if events.send((id, WorkerEvent::Said(message))).await.is_err() {
                    return;
                }
            }
            Ok(Some(_)) => {
                tracing::error!("the worker sent descriptors, which nobody asked for");
                break;
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
