//! Starting a worker, handing it on to the program that replaces this one, and knowing when it ended.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::authority::Passing;
use super::channel::{self, Channel, Frame, Receiver, Sender};
use super::handover;
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
    Ended(io::Result<WaitStatus>),
}

/// Messages that wait for a worker to read. A worker that starts reads none for a moment; state comes once a second.
const QUEUE: usize = 64;
/// How long the master waits for room in the queue, and how long one message may take to be read: then the worker hangs.
const ROOM_WAIT: Duration = Duration::from_millis(250);
const READ_WAIT: Duration = Duration::from_secs(10);
/// How long a worker may take to read what is queued for it when the master hands it on.
const HAND_ON_WAIT: Duration = Duration::from_secs(2);
/// A process that ended is seen by SIGCHLD, and looked for this often besides.
const REAP: Duration = Duration::from_millis(200);

/// What the program that replaces this one must know of a worker; its channel travels beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its number.
    pub id: WorkerId,
    /// Its process id.
    pub pid: u32,
    /// Time since it was started.
    pub age: Duration,
    /// It said that it is ready.
    pub ready: bool,
    /// It was told to drain.
    pub draining: bool,
    /// What was received of a message that is not whole yet.
    pub received: Vec<u8>,
}

/// The two tasks that talk with a worker; each gives its half of the channel back when it is told to end.
struct Talk {
    tell: JoinHandle<Option<Sender>>,
    follow: JoinHandle<Option<Receiver>>,
    /// Dropped or used: `follow` ends.
    stop: Option<oneshot::Sender<()>>,
}

/// The channel of a worker that is about to be handed on.
#[derive(Default)]
struct Resting {
    sender: Option<Sender>,
    receiver: Option<Receiver>,
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
    /// It was told to drain, or was given up: another one serves.
    pub draining: bool,
    /// It was ended because it hung. Its end may be long in coming.
    pub given_up: bool,
    /// It is of a program that spoke otherwise: it is told to drain, and nothing else.
    stranger: bool,
    queue: mpsc::Sender<Frame>,
    talk: Option<Talk>,
    resting: Resting,
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
            .env_remove(handover::VARIABLE)
            .spawn()?;
        // Nothing is lost with the handle: the process is waited for by its number, as one that was handed on is.
        let pid = child.id();
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
        let mut worker = Self::new(&WorkerRecord {
            id,
            pid,
            age: Duration::ZERO,
            ready: false,
            draining: false,
            received: Vec::new(),
        });
        worker.talk(Channel::new(ours).split()?, events);
        // The queue is new: there is room.
        worker.queue.try_send(setup).map_err(io::Error::other)?;
        Ok(worker)
    }

    /// Goes on with a worker of the program that this one replaces. A `stranger` is of one that spoke otherwise.
    ///
    /// # Errors
    /// Its channel cannot be used.
    pub fn inherit(
        mut record: WorkerRecord,
        channel: OwnedFd,
        stranger: bool,
        events: mpsc::Sender<(WorkerId, WorkerEvent)>,
    ) -> io::Result<Self> {
        let received = std::mem::take(&mut record.received);
        let mut worker = Self::new(&record);
        worker.stranger = stranger;
        let channel = Channel::resume(UnixStream::from(channel), received);
        worker.talk(channel.split()?, events);
        Ok(worker)
    }

    fn new(record: &WorkerRecord) -> Self {
        let now = Instant::now();
        Self {
            id: record.id,
            pid: record.pid,
            started: now.checked_sub(record.age).unwrap_or(now),
            last_alive: now,
            ready: record.ready,
            draining: record.draining,
            given_up: false,
            stranger: false,
            queue: mpsc::channel(1).0,
            talk: None,
            resting: Resting::default(),
        }
    }

    /// Starts the tasks. Must be called inside a tokio runtime.
    fn talk(
        &mut self,
        (sender, receiver): (Sender, Receiver),
        events: mpsc::Sender<(WorkerId, WorkerEvent)>,
    ) {
        let (queue, queued) = mpsc::channel(QUEUE);
        let (stop, stopped) = oneshot::channel();
        self.queue = queue;
        let who = Who {
            id: self.id,
            pid: self.pid,
            stranger: self.stranger,
        };
        self.talk = Some(Talk {
            tell: tokio::spawn(tell(who, sender, queued, events.clone())),
            follow: tokio::spawn(follow(who, receiver, stopped, events)),
            stop: Some(stop),
        });
    }

    /// Stops listening to it, for a moment or for ever. True when that is done; until then its last words come as events.
    pub fn hush(&mut self) -> bool {
        let Some(talk) = &mut self.talk else { return true };
        drop(talk.stop.take());
        talk.follow.is_finished()
    }

    /// After [`WorkerProcess::hush`]: waits until it has what was said to it, [`HAND_ON_WAIT`] at most. One that does not read is
    /// ended.
    pub async fn rest(&mut self) {
        let Some(mut talk) = self.talk.take() else { return };
        // The task ends when the queue is empty and nobody can add to it.
        self.queue = mpsc::channel(1).0;
        let told = tokio::time::timeout(HAND_ON_WAIT, &mut talk.tell).await;
        if told.is_err() {
            talk.tell.abort();
            tracing::error!(
                pid = self.pid,
                "the worker does not read what it is told: ending it"
            );
            self.kill();
        }
        self.resting = Resting {
            sender: told.ok().and_then(Result::ok).flatten(),
            receiver: talk.follow.await.ok().flatten(),
        };
    }

    /// After [`WorkerProcess::rest`]: what the program that replaces this one must know, and the channel; `None` when nothing
    /// more can be said to it or heard of it.
    pub fn record(&self) -> (WorkerRecord, Option<BorrowedFd<'_>>) {
        let receiver = self.resting.receiver.as_ref();
        let record = WorkerRecord {
            id: self.id,
            pid: self.pid,
            age: self.started.elapsed(),
            ready: self.ready,
            draining: self.draining,
            received: receiver
                .map(|receiver| receiver.received().to_vec())
                .unwrap_or_default(),
        };
        (record, receiver.map(Receiver::socket))
    }

    /// After [`WorkerProcess::rest`], when it was not handed on after all.
    pub fn wake(&mut self, events: mpsc::Sender<(WorkerId, WorkerEvent)>) {
        let Resting { sender, receiver } = std::mem::take(&mut self.resting);
        match (sender, receiver) {
            (Some(sender), Some(receiver)) => self.talk((sender, receiver), events),
            _ => {
                // It is gone or was ended, and only waits to be known of.
                let (id, pid) = (self.id, self.pid);
                tokio::spawn(async move {
                    let ended = reap(pid).await;
                    // The master is gone when this fails, and nobody is left to tell.
                    let _ = events.send((id, WorkerEvent::Ended(ended))).await;
                });
            }
        }
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
        if self.stranger && !matches!(message, ToWorker::Drain) {
            return;
        }
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
        let pid = Pid::from_raw(self.pid.cast_signed());
        if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            tracing::debug!(pid = self.pid, %error, "cannot kill the worker");
        }
    }
}

/// Whom a task talks with.
#[derive(Clone, Copy)]
struct Who {
    id: WorkerId,
    pid: u32,
    stranger: bool,
}

/// Writes what is queued, in order. Ends with its half when nobody can queue any more.
async fn tell(
    who: Who,
    mut sender: Sender,
    mut queued: mpsc::Receiver<Frame>,
    events: mpsc::Sender<(WorkerId, WorkerEvent)>,
) -> Option<Sender> {
    while let Some(frame) = queued.recv().await {
        match tokio::time::timeout(READ_WAIT, sender.send_frame(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "the worker's channel is closed");
                return None;
            }
            Err(_) => {
                // The master is gone when this fails, and nobody is left to tell.
                let _ = events.send((who.id, WorkerEvent::Deaf)).await;
                return None;
            }
        }
    }
    Some(sender)
}

/// Reports what it says, then its end. Ends with its half when told to.
async fn follow(
    who: Who,
    mut receiver: Receiver,
    mut stopped: oneshot::Receiver<()>,
    events: mpsc::Sender<(WorkerId, WorkerEvent)>,
) -> Option<Receiver> {
    loop {
        let said = tokio::select! {
            _ = &mut stopped => return Some(receiver),
            said = hear(who, &mut receiver) => said,
        };
        match said {
            Ok(Some(event)) => {
                if events.send((who.id, event)).await.is_err() {
                    return None;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "the worker's channel broke");
                break;
            }
        }
    }
    let ended = tokio::select! {
        _ = &mut stopped => return Some(receiver),
        ended = reap(who.pid) => ended,
    };
    // The master is gone when this fails, and nobody is left to tell.
    let _ = events.send((who.id, WorkerEvent::Ended(ended))).await;
    None
}

/// Its next message; `None` when there will be none. Cancel-safe.
async fn hear(who: Who, receiver: &mut Receiver) -> io::Result<Option<WorkerEvent>> {
    if who.stranger {
        // That it says something shows that it is alive; what, we may not understand.
        let heard = receiver.next::<serde::de::IgnoredAny>().await?;
        return Ok(heard.map(|_| WorkerEvent::Said(FromWorker::Alive)));
    }
    match receiver.next::<FromWorker>().await? {
        Some((message, descriptors)) if descriptors.is_empty() => Ok(Some(WorkerEvent::Said(message))),
        Some(_) => Err(io::Error::other("it sent descriptors, which nobody asked for")),
        None => Ok(None),
    }
}

/// Waits for the end of a child that was started by this process, whichever program it ran then. Cancel-safe.
pub async fn reap(pid: u32) -> io::Result<WaitStatus> {
    let mut children = signal(SignalKind::child())?;
    loop {
        match waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(ended) => return Ok(ended),
            Err(error) => return Err(error.into()),
        }
        // Signals of several children may come as one.
        let _ = tokio::time::timeout(REAP, children.recv()).await;
    }
}

#[cfg(test)]
#[path = "process/tests.rs"]
mod tests;
