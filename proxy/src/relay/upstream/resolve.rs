//! Names to addresses, as this host would answer: its hosts file first, then the servers of its resolv.conf.
//!
//! Answers are kept for their TTL and beyond it when a refresh fails: an intake's addresses outlive a DNS outage. While nobody
//! answers, few questions are asked: for a request one for each name every [`RETRY_AFTER`], for the kernel's filter one name at a
//! time (see [`silent`]). When
//! resolv.conf is missing or names no server, the C library is asked (`getaddrinfo`, on a blocking thread), so that
//! unusual hosts still work; public resolvers are never used. `nsswitch.conf` is not read.
//!
//! All network work runs on the runtime that [`Resolver::new`] was given, not on the data threads.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::catalog::{Catalog, normalise};

mod servers;
mod silent;
mod watch;

use servers::Servers;

/// Assumed for answers that carry no TTL: the hosts file and `getaddrinfo`.
const DEFAULT_TTL: Duration = Duration::from_secs(60);
/// A TTL of nothing must not mean a question per request.
const MIN_TTL: Duration = Duration::from_secs(5);
/// After a failure a known answer is used this long before the servers are asked again; where none is known, the failure is
/// told again without a question at most so long. As long as resolv.conf lets one question take (5 s), which an asker would wait
/// anyway; an Agent tries again for longer than that.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The first time it is told again for so long only, then for twice as long each time: one lost packet is no outage.
const FIRST_RETRY_AFTER: Duration = Duration::from_millis(500);
/// How often the files are looked at for changes.
const FILE_CHECK: Duration = Duration::from_secs(1);
/// The watcher's rhythm; see [`Resolver::watch_intake`].
const WATCH_MIN: Duration = Duration::from_secs(30);
const WATCH_MAX: Duration = Duration::from_secs(300);
/// How often the watcher looks for a changed hosts file.
const WATCH_FILES: Duration = Duration::from_secs(5);
/// How long readiness waits for names that nobody answers for.
const FIRST_ROUND: Duration = Duration::from_secs(3);
/// Questions of the watcher at once.
const WATCH_CONCURRENCY: usize = 8;
/// Names that are remembered; patterns in the catalogue allow endless ones.
const MAX_NAMES: usize = 1024;

/// A name did not resolve.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// A server said that there is no such name, or no address of it.
    #[error("{0}")]
    Denied(String),
    /// No server said anything about the name.
    #[error("{0}")]
    Lookup(String),
    /// The runtime of the resolver is gone: the process ends.
    #[error("the resolver has stopped")]
    Stopped,
}

/// What [`Resolver::watch_intake`] has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intake {
    /// Addresses of intake names, each with the time it may be kept.
    Addresses(Vec<(IpAddr, Duration)>),
    /// Every name was asked for once, or [`FIRST_ROUND`] is over. Told once.
    Asked,
}

/// Where the host keeps its resolver configuration.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `/etc/hosts`
    pub hosts: PathBuf,
    /// `/etc/resolv.conf`
    pub resolv_conf: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// Resolves names for all data threads and for the kernel's filter.
#[derive(Debug)]
pub struct Resolver {
    inner: Arc<Inner>,
    runtime: Handle,
}

#[derive(Debug)]
struct Inner {
    sources: Sources,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    checked: Option<Instant>,
    hosts_stamp: Option<Stamp>,
    resolv_stamp: Option<Stamp>,
    hosts: HashMap<String, Vec<IpAddr>>,
    servers: Servers,
    names: HashMap<String, Arc<Name>>,
}

/// What is known of one name. The async lock makes many askers share one question.
#[derive(Debug, Default)]
struct Name {
    answer: Mutex<Option<Answer>>,
    failure: Mutex<Option<Failure>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Answer {
    ips: Vec<IpAddr>,
    ttl: Duration,
    fresh_until: Instant,
    /// When a server said so.
    learnt: Instant,
    /// When a server was asked last.
    asked: Instant,
    /// Why it was not learnt again when it was asked for again.
    problem: Option<ResolveError>,
}

impl Answer {
    /// No server said anything when it was asked for again.
    fn is_unheard(&self) -> bool {
        matches!(self.problem, Some(ResolveError::Lookup(_)))
    }
}

/// A name whose addresses are older than they should be: the last good ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    /// The name.
    pub name: String,
    /// Seconds since a server told the addresses.
    pub age_s: u64,
    /// What came of it when a server was asked again.
    pub problem: String,
}

/// What is known of a name, for whoever looks on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// How many addresses.
    pub addresses: usize,
    /// Seconds since a server told them; absent for those of the hosts file.
    pub age_s: Option<u64>,
    /// What came of it when a server was asked again; absent when nothing went wrong.
    pub problem: Option<String>,
}

/// Nobody knew an address, and none was known before.
#[derive(Clone, Debug)]
struct Failure {
    error: ResolveError,
    /// How long it is told without a question, and until when.
    pause: Duration,
    until: Instant,
}

/// A file's identity and state: changes when it is edited or replaced.
type Stamp = (u64, u64, SystemTime);

impl Resolver {
    /// A resolver that works on `runtime`.
    pub fn new(sources: Sources, runtime: Handle) -> Self {
        Self {
            inner: Arc::new(Inner {
                sources,
                state: Mutex::default(),
            }),
            runtime,
        }
    }

    /// The addresses of `name`, in the order of preference; never empty.
    ///
    /// # Errors
    /// Nobody knows an address, and none was known before.
    pub async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        self.answer(name).await.map(|answer| answer.ips)
    }

    /// None of the addresses of `name` takes a connection: perhaps it leads elsewhere by now. True when the servers are asked at
    /// the next look-up although the time of their answer is not over; at most every [`RETRY_AFTER`].
    pub fn doubt(&self, name: &str) -> bool {
        let name = normalise(name);
        let state = lock(&self.inner.state);
        let Some(known) = state
            .names
            .get(&name)
            .filter(|_| !state.hosts.contains_key(&name))
        else {
            return false;
        };
        let now = Instant::now();
        let mut answer = lock(&known.answer);
        let old = answer
            .as_mut()
            .filter(|answer| now.duration_since(answer.asked) >= RETRY_AFTER);
        old.is_some_and(|answer| {
            answer.fresh_until = now;
            true
        })
    }

    /// The names whose last good addresses are used because nobody told newer ones.
    pub fn stale(&self) -> Vec<Stale> {
        let state = lock(&self.inner.state);
        let mut stale: Vec<Stale> = state
            .names
            .iter()
            .filter_map(|(name, known)| {
                let answer = lock(&known.answer);
                let (answer, problem) = answer
                    .as_ref()
                    .and_then(|answer| Some((answer, answer.problem.as_ref()?)))?;
                Some(Stale {
                    name: name.clone(),
                    age_s: answer.learnt.elapsed().as_secs(),
                    problem: problem.to_string(),
                })
            })
            .collect();
        stale.sort_by(|one, other| one.name.cmp(&other.name));
        stale
    }

    /// What is known of `name` without asking anybody.
    pub fn known(&self, name: &str) -> Option<Known> {
        let name = normalise(name);
        let state = lock(&self.inner.state);
        if let Some(ips) = state.hosts.get(&name) {
            return Some(Known {
                addresses: ips.len(),
                age_s: None,
                problem: None,
            });
        }
        let known = state.names.get(&name)?;
        let answer = lock(&known.answer);
        answer.as_ref().map(|answer| Known {
            addresses: answer.ips.len(),
            age_s: Some(answer.learnt.elapsed().as_secs()),
            problem: answer.problem.as_ref().map(ToString::to_string),
        })
    }

    async fn answer(&self, name: &str) -> Result<Answer, ResolveError> {
        let name = normalise(name);
        self.inner.reload_if_changed();
        // The usual way: no task, no await.
        if let Some(answer) = self.inner.known(&name) {
            return Ok(answer);
        }
        let inner = Arc::clone(&self.inner);
        // On the other runtime, and to its end even if this asker gives up: the next one will want the answer.
        let asked = self.runtime.spawn(async move { inner.answer(&name).await });
        asked.await.unwrap_or(Err(ResolveError::Stopped))
    }
}

impl Inner {
    /// What can be said without asking anyone.
    fn known(&self, name: &str) -> Option<Answer> {
        self.last_known(name)
            .filter(|answer| answer.fresh_until > Instant::now())
    }

    /// The same, however old.
    fn last_known(&self, name: &str) -> Option<Answer> {
        let state = lock(&self.state);
        if let Some(ips) = state.hosts.get(name) {
            return Some(Answer {
                ips: ips.clone(),
                ttl: DEFAULT_TTL,
                // The file is looked at before this.
                fresh_until: Instant::now() + FILE_CHECK,
                learnt: Instant::now(),
                asked: Instant::now(),
                problem: None,
            });
        }
        let known = state.names.get(name)?;
        lock(&known.answer).clone()
    }

    async fn answer(&self, name: &str) -> Result<Answer, ResolveError> {
        self.reload_if_changed();
        if let Some(answer) = self.known(name) {
            return Ok(answer);
        }
        let (entry, servers) = {
            let mut state = lock(&self.state);
            if state.names.len() >= MAX_NAMES {
                state.names.clear();
            }
            (
                Arc::clone(state.names.entry(name.to_owned()).or_default()),
                state.servers.clone(),
            )
        };
        let _asking = entry.asking.lock().await;
        if let Some(answer) = self.known(name) {
            return Ok(answer);
        }
        let before = lock(&entry.failure).clone();
        if let Some(failure) = before.as_ref().filter(|failure| failure.until > Instant::now()) {
            return Err(failure.error.clone());
        }
        let asked = servers.ask(name).await;
        let mut kept = lock(&entry.answer);
        match (asked, kept.as_mut()) {
            (Ok((ips, ttl)), _) => {
                let now = Instant::now();
                let answer = Answer {
                    ips,
                    ttl,
                    fresh_until: now + ttl.max(MIN_TTL),
                    learnt: now,
                    asked: now,
                    problem: None,
                };
                *kept = Some(answer.clone());
                *lock(&entry.failure) = None;
                Ok(answer)
            }
            (Err(error), Some(last_good)) => {
                tracing::warn!(%name, %error, "name does not resolve now, its last addresses are used");
                last_good.asked = Instant::now();
                last_good.fresh_until = last_good.asked + RETRY_AFTER;
                last_good.problem = Some(error);
                Ok(last_good.clone())
            }
            (Err(error), None) => {
                let pause = before
                    .map_or(FIRST_RETRY_AFTER, |before| before.pause * 2)
                    .min(RETRY_AFTER);
                *lock(&entry.failure) = Some(Failure {
                    error: error.clone(),
                    pause,
                    until: Instant::now() + pause,
                });
                Err(error)
            }
        }
    }

    /// Names of the hosts file that belong to the intake.
    fn hosts_names(&self, catalog: &Catalog) -> Vec<String> {
        self.reload_if_changed();
        lock(&self.state)
            .hosts
            .keys()
            .filter(|name| catalog.lookup(name).is_some())
            .cloned()
            .collect()
    }

    fn reload_if_changed(&self) {
        let mut state = lock(&self.state);
        if state
            .checked
            .is_some_and(|checked| checked.elapsed() < FILE_CHECK)
        {
            return;
        }
        let first = state.checked.is_none();
        state.checked = Some(Instant::now());
        let hosts = stamp(&self.sources.hosts);
        if first || hosts != state.hosts_stamp {
            state.hosts_stamp = hosts;
            state.hosts = read_hosts(&self.sources.hosts);
        }
        let resolv = stamp(&self.sources.resolv_conf);
        if first || resolv != state.resolv_stamp {
            state.resolv_stamp = resolv;
            state.servers = Servers::read(&self.sources.resolv_conf);
            // Other servers may know better; what was known stays as the last good answer.
            for name in state.names.values() {
                *lock(&name.failure) = None;
                if let Some(answer) = lock(&name.answer).as_mut() {
                    answer.fresh_until = Instant::now();
                }
            }
        }
    }
}

/// `address name...`, `#` begins a comment (hosts(5)).
fn read_hosts(path: &Path) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "cannot read the hosts file");
        }
        String::new()
    });
    for line in text.lines() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace();
        let Some(ip) = words.next().and_then(|ip| ip.parse().ok()) else {
            continue;
        };
        for name in words {
            let ips = hosts.entry(normalise(name)).or_default();
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    hosts
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}

/// A panic while a lock is held leaves plain data behind, still fit for use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
