//! Readiness that cannot lie: connections of our own through the live datapath, over and over.
//!
//! A process of its own makes them (`child`), since a connection is taken by where it comes from: the hooks of the datapath `cgroup`
//! belong to the cgroup of the process that connects, and a classifier sees what leaves a pod's namespace. It lives in a cgroup beside
//! the Agents' that has the same hooks. What is asked for is [`self_test::NAME`], which the worker answers itself.

pub mod child;
mod demand;
mod tried;
pub mod verdict;

pub use tried::Tried;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::channel::{Channel, Frame, Receiver, Sender};
use super::protocol::SelfTest;
use crate::self_test;
use demand::Demand;

/// How long each step of a connection may take: far more than a busy host needs, far less than an Agent waits.
pub const LIMIT: Duration = Duration::from_secs(2);
/// How often ways are tried, and how many of them each time: a node may have hundreds of Agent pods.
const EVERY: Duration = Duration::from_secs(10);
const ROUND: usize = 16;
/// How soon after a first failure.
const AGAIN: Duration = Duration::from_secs(1);
/// A result that is older than its turn by this is none: the tests themselves hang.
const STALE: Duration = Duration::from_secs(35);
/// After so long without an answer its way is none that is known to work: both steps have ended after half of that.
const LATE: Duration = LIMIT.saturating_mul(4);
/// After so long the process hangs, and is replaced. As long as the master waits for a worker's sign of life.
const HUNG: Duration = Duration::from_secs(15);
/// The same of one that starts, as of a worker.
const START: Duration = Duration::from_secs(60);
/// Processes that hang one after the other are replaced at once, then after pauses that double up to this: one that even
/// SIGKILL does not end stays.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Where the process may live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The directory of a cgroup without hooks.
    pub bare: PathBuf,
    /// The directory of one with them.
    pub hooked: PathBuf,
}

/// One connection to make. The descriptor beside it is the network namespace, if it is not the host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Comes back with the answer.
    pub id: u64,
    /// From the cgroup with the hooks.
    pub hooked: bool,
    /// Whereto.
    pub address: SocketAddr,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of which one.
    pub id: u64,
    /// What came of it.
    pub tried: Tried,
}

/// A way in that is to be tried.
#[derive(Debug)]
pub struct Way {
    /// What it is called in status: `explicit`, `host (cgroup)`, `net:[4026532000] (tc)`.
    pub name: String,
    /// Whereto.
    pub address: SocketAddr,
    /// Where from.
    pub from: From,
}

/// Where a connection of our own comes from.
#[derive(Debug)]
pub enum From {
    /// From this process: explicit ports ask nobody where a connection comes from.
    Here,
    /// From the process that lives in a cgroup of its own.
    Cgroup {
        /// See [`Ask::hooked`].
        hooked: bool,
        /// The network namespace; `None`: the host's own.
        namespace: Option<OwnedFd>,
    },
}

/// The prober process and what was found.
pub struct Prober {
    running: Option<Running>,
    /// Why there is no process, although one is wanted.
    problem: Option<String>,
    waiting: VecDeque<Way>,
    /// What somebody waits for; it goes first.
    demand: Option<Demand>,
    asked: Option<Asked>,
    last: u64,
    /// Processes that hung, since the last answer.
    hung: u32,
    /// When the next process may be started.
    not_before: Option<Instant>,
    /// Processes that ended or hung.
    restarts: u64,
    found: BTreeMap<String, Found>,
    next: Option<Instant>,
    /// How many rounds every way needs to have its turn.
    rounds: u32,
    here: mpsc::UnboundedReceiver<FromHere>,
    from_here: mpsc::UnboundedSender<FromHere>,
}

/// A connection that this process made by itself.
struct FromHere {
    way: String,
    demanded: bool,
    tried: Tried,
}

impl Default for Prober {
    fn default() -> Self {
        let (from_here, here) = mpsc::unbounded_channel();
        Self {
            running: None,
            problem: None,
            waiting: VecDeque::new(),
            demand: None,
            asked: None,
            last: 0,
            hung: 0,
            not_before: None,
            restarts: 0,
            found: BTreeMap::new(),
            next: None,
            rounds: 1,
            here,
            from_here,
        }
    }
}

/// What the process was asked, and has not answered.
struct Asked {
    id: u64,
    way: String,
    /// Somebody waits for it.
    demanded: bool,
    at: Instant,
}

struct Running {
    child: Child,
    /// It has answered once.
    proven: bool,
    sender: Sender,
    receiver: Receiver,
}

/// The last result of a way.
#[derive(Clone, Debug)]
struct Found {
    at: Instant,
    /// The same in seconds since 1970; 0: it was not tried yet.
    at_epoch: u64,
    /// In a row.
    failures: u32,
    tried: Tried,
}

impl Found {
    fn never(now: Instant) -> Self {
        Self {
            at: now,
            at_epoch: 0,
            failures: 0,
            tried: Tried::default(),
        }
    }
}

impl Prober {
    /// Starts the process, where there is none. Must be called inside a tokio runtime.
    pub async fn start(&mut self, place: &Place) {
        if self.running.is_some() || self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        match Running::start(place).await {
            Ok(running) => {
                self.running = Some(running);
                self.problem = None;
            }
            Err(error) => self.fail(format!(
                "cannot start the process that makes connections of our own: {error}"
            )),
        }
    }

    /// Ends the process: nothing is taken any more.
    pub fn end(&mut self) {
        self.give_up_demand("interception is off");
        self.running = None;
        self.asked = None;
        self.problem = None;
        self.waiting.clear();
    }

    /// True when it is time for [`Prober::try_all`].
    pub fn is_due(&self) -> bool {
        self.next.is_none_or(|next| next <= Instant::now())
    }

    /// Something changed: the next try is due at once.
    pub fn hurry(&mut self) {
        self.next = None;
    }

    /// Tries these ways, one after the other; what is known of others is forgotten. Of many, those whose result is the oldest: the
    /// rest has its turn later.
    pub async fn try_all(&mut self, mut ways: Vec<Way>) {
        let now = Instant::now();
        self.next = Some(now + EVERY);
        self.found
            .retain(|name, _| ways.iter().any(|way| way.name == *name));
        for way in &ways {
            self.found
                .entry(way.name.clone())
                .or_insert_with(|| Found::never(now));
        }
        self.rounds = u32::try_from(ways.len().div_ceil(ROUND)).unwrap_or(u32::MAX);
        ways.sort_by_key(|way| self.found.get(&way.name).map(|found| (found.at_epoch, found.at)));
        ways.truncate(ROUND);
        // Those that wait from the last round are among them again.
        self.waiting.clear();
        for way in ways {
            match way.from {
                From::Here => self.ask_from_here(way, false),
                From::Cgroup { .. } => self.waiting.push_back(way),
            }
        }
        self.ask_next().await;
    }

    /// Waits for the next result. Cancel-safe.
    pub async fn answered(&mut self) {
        let heard = {
            let (here, running) = (&mut self.here, &mut self.running);
            tokio::select! {
                Some(FromHere { way, demanded, tried }) = here.recv() => return self.note(&way, demanded, tried),
                heard = async {
                    match running {
                        Some(running) => running.receiver.next::<Answer>().await,
                        None => std::future::pending().await,
                    }
                } => heard,
            }
        };
        match heard {
            Ok(Some((answer, _))) => {
                (self.hung, self.not_before) = (0, None);
                if let Some(running) = &mut self.running {
                    running.proven = true;
                }
                // Of an earlier round: its way may be gone.
                if let Some(asked) = self.asked.take_if(|asked| asked.id == answer.id) {
                    self.note(&asked.way, asked.demanded, answer.tried);
                }
                self.ask_next().await;
            }
            Ok(None) => self.lost("it ended"),
            Err(error) => self.lost(&error.to_string()),
        }
    }

    /// Ends a process that does not answer; the next round starts another. To be called every second or so.
    pub async fn look_after(&mut self) {
        if self.unanswered(HUNG).is_none() {
            return;
        }
        // We may have stood still ourselves: what was answered meanwhile counts.
        if tokio::time::timeout(Duration::ZERO, self.answered())
            .await
            .is_ok()
        {
            return;
        }
        let (Some(asked), Some(running)) = (self.asked.take(), self.running.take()) else {
            return;
        };
        let silent = asked.at.elapsed();
        tracing::error!(
            pid = running.child.id(), way = %asked.way, ?silent,
            "the process that makes connections of our own hangs: replacing it"
        );
        // Ends it, also when it is stopped.
        drop(running);
        self.waiting.clear();
        self.restarts += 1;
        self.hung = self.hung.saturating_add(1);
        let pause = pause(self.hung);
        self.not_before = Some(Instant::now() + pause);
        let mut error = hangs(silent);
        if !pause.is_zero() {
            error.push_str(&format!(
                "; {} in a row did, and the next one is started in {pause:?}",
                self.hung
            ));
        }
        self.give_up_demand(&error);
        self.note(&asked.way, asked.demanded, Tried::not(error));
        if let Some(found) = self.found.get_mut(&asked.way) {
            // So much time is more than a moment.
            found.failures = found.failures.max(2);
        }
    }

    /// Processes that ended or hung, and were replaced.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Every way with its last result, in the order of their names.
    pub fn status(&self) -> Vec<SelfTest> {
        let stale = STALE + EVERY * self.rounds;
        self.found
            .iter()
            .map(|(way, found)| SelfTest {
                way: way.clone(),
                at: found.at_epoch,
                failures: found.failures,
                took_us: found.tried.took_us,
                error: if self.unanswered(LATE).is_some_and(|asked| asked.way == *way) {
                    // Without the time: it would be news every second.
                    Some(hangs(LATE))
                } else if found.at.elapsed() > stale {
                    Some(match &self.problem {
                        Some(problem) => problem.clone(),
                        None => format!("no result for more than {stale:?}"),
                    })
                } else {
                    found.tried.error.clone()
                },
            })
            .collect()
    }

    /// What has not been answered for so long; one that starts has more time.
    fn unanswered(&self, limit: Duration) -> Option<&Asked> {
        let proven = self.running.as_ref().is_some_and(|running| running.proven);
        let limit = if proven { limit } else { START };
        self.asked.as_ref().filter(|asked| asked.at.elapsed() > limit)
    }

    /// True when every way was tried at least once, with whatever result.
    pub fn is_settled(&self) -> bool {
        self.problem.is_some() || self.found.values().all(|found| found.at_epoch > 0)
    }

    fn note(&mut self, name: &str, demanded: bool, tried: Tried) {
        if let Some(demand) = self.demand.as_mut().filter(|_| demanded) {
            demand.note(name, &tried);
        }
        let Some(found) = self.found.get_mut(name) else {
            return;
        };
        let news = found.tried.error.is_some() != tried.error.is_some() || found.at_epoch == 0;
        match &tried.error {
            Some(error) if news => {
                tracing::error!(way = %name, "a connection of our own through the live datapath failed: {error}");
            }
            None if news => tracing::info!(way = %name, "a connection of our own passed the live datapath"),
            _ => {}
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        *found = Found {
            at: Instant::now(),
            at_epoch: now.map_or(1, |now| now.as_secs().max(1)),
            failures: match &tried.error {
                Some(_) => found.failures.saturating_add(1),
                None => 0,
            },
            tried,
        };
        if found.failures == 1 {
            // Once may be a moment: what it was shows at once.
            self.next = Some(Instant::now() + AGAIN);
        }
    }

    fn ask_from_here(&self, way: Way, demanded: bool) {
        let tell = self.from_here.clone();
        tokio::task::spawn_blocking(move || {
            let made = FromHere {
                tried: Tried::of(self_test::ask(way.address, LIMIT)),
                way: way.name,
                demanded,
            };
            // The master is about to end when nobody hears it.
            let _ = tell.send(made);
        });
    }

    async fn ask_next(&mut self) {
        let Some(running) = &mut self.running else { return };
        if self.asked.is_some() {
            return;
        }
        let first = self.demand.as_mut().and_then(Demand::next);
        let demanded = first.is_some();
        let Some(way) = first.or_else(|| self.waiting.pop_front()) else {
            return;
        };
        let From::Cgroup { hooked, namespace } = way.from else {
            return;
        };
        self.last += 1;
        let ask = Ask {
            id: self.last,
            hooked,
            address: way.address,
        };
        let sent = match Frame::new(&ask, namespace.into_iter().collect()) {
            // The process reads whenever it is asked for nothing: the socket has room.
            Ok(frame) => running.sender.send_frame(frame).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => {
                self.asked = Some(Asked {
                    id: ask.id,
                    way: way.name,
                    demanded,
                    at: Instant::now(),
                });
            }
            Err(error) => {
                self.lost(&error.to_string());
            }
        }
    }

    /// The process is gone; the next round starts another.
    fn lost(&mut self, why: &str) {
        let problem = format!("the process that makes connections of our own is gone: {why}");
        self.give_up_demand(&problem);
        self.running = None;
        self.asked = None;
        self.waiting.clear();
        self.restarts += 1;
        self.fail(problem);
    }

    /// Says, once, why nothing can be tried.
    pub fn fail(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::error!("{problem}");
        }
        self.problem = Some(problem);
    }
}

/// How long the next process waits when so many hung one after the other.
fn pause(hung: u32) -> Duration {
    match hung {
        0 | 1 => Duration::ZERO,
        more => EVERY.saturating_mul(1 << (more - 1).min(16)).min(LONGEST_PAUSE),
    }
}

fn hangs(silent: Duration) -> String {
    format!(
        "no answer for {} s from the process that makes connections of our own: it hangs",
        silent.as_secs()
    )
}

impl Running {
    async fn start(place: &Place) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = std::process::Command::new("/proc/self/exe");
        command
            .arg0("agent-fips-proxy")
            .args(["probe", "--channel"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .env_clear();
        let child = Command::from(command).kill_on_drop(true).spawn()?;
        let (mut sender, receiver) = Channel::new(ours).split()?;
        sender.send(place).await?;
        Ok(Self {
            child,
            proven: false,
            sender,
            receiver,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_hang_are_replaced_at_a_bounded_rate() {
        let pauses: Vec<u64> = (0..9).map(|hung| pause(hung).as_secs()).collect();
        assert_eq!(pauses, [0, 0, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
        assert!(
            LATE >= 2 * LIMIT + LIMIT && HUNG > LATE,
            "late, and only then hung"
        );
    }
}
