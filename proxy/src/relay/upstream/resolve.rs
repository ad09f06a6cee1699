//! Names to addresses, as this host would answer: its hosts file first, then the servers of its resolv.conf.
//!
//! Answers are kept for their TTL and beyond it when a refresh fails: an intake's addresses outlive a DNS outage. While nobody
//! answers, few questions are asked: for a request one for each name every [`RETRY_AFTER`], for the kernel's filter one name at a
//! time (see [`silent`]). When
//! resolv.conf is missing or names no server, the C library is asked (`getaddrinfo`, on a blocking thread), so that
//! unusual hosts still work; public resolvers are never used. `nsswitch.conf` is not read.
//!
//! All network work runs on the runtime that [`Resolver::new`] was given, not on the data threads.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::catalog::{Catalog, normalise};

mod servers;
mod silent;

use servers::Servers;
use silent::Silent;

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
    /// The servers did not answer when they were asked for it again.
    stale: bool,
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

    /// Keeps the kernel's filter informed: every intake name of the catalogue and of the hosts file is asked for now and
    /// again when its TTL is over (at least 30 s, at most 5 min; one that does not exist less and less often), the hosts file at once when it changes. What is known
    /// without asking is told first, and each answer as it comes: a server that does not answer delays nobody else. While no server
    /// answers for any name, only one is asked for, now and then, and what was known is told again.
    pub async fn watch_intake(&self, catalog: &Catalog, tell: impl Fn(Intake)) {
        let mut due: HashMap<String, Instant> = HashMap::new();
        let mut stamps = None;
        let mut silent = Silent::default();
        let mut waiting = VecDeque::new();
        let mut asking: JoinSet<(String, Result<Answer, ResolveError>)> = JoinSet::new();
        let mut look = tokio::time::interval(WATCH_FILES);
        let mut first_round = Some(Box::pin(tokio::time::sleep(FIRST_ROUND)));
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let now = Instant::now();
                    for name in catalog.names().into_iter().chain(self.inner.hosts_names(catalog)) {
                        due.entry(name).or_insert(now);
                    }
                    let sources = &self.inner.sources;
                    let found = Some((stamp(&sources.hosts), stamp(&sources.resolv_conf)));
                    if found != stamps {
                        stamps = found;
                        silent.other_servers();
                        due.values_mut().for_each(|due| *due = now);
                    }
                    let mut at_once = Vec::new();
                    for (name, due) in due.iter_mut().filter(|(_, due)| **due <= now) {
                        let known = match silent.outage() {
                            true => self.inner.last_known(name),
                            false => self.inner.known(name),
                        };
                        if let Some(answer) = known {
                            let ttl = answer.ttl.clamp(WATCH_MIN, WATCH_MAX);
                            *due = now + ttl;
                            at_once.extend(answer.ips.into_iter().map(|ip| (ip, ttl)));
                        } else if !silent.outage() {
                            // Again at the latest then, should the answer be lost.
                            *due = now + WATCH_MAX;
                            waiting.push_back(name.clone());
                        }
                    }
                    // Should nobody answer for some names, the others come first.
                    waiting.make_contiguous().sort_by_key(|name| silent.unheard(name));
                    if !at_once.is_empty() {
                        tell(Intake::Addresses(at_once));
                    }
                }
                Some(asked) = asking.join_next() => {
                    let now = Instant::now();
                    let was_outage = silent.outage();
                    match asked {
                        Ok((name, Ok(Answer { ips, ttl, stale, .. }))) => {
                            let ttl = ttl.clamp(WATCH_MIN, WATCH_MAX);
                            if stale {
                                silent.unheard_again(&name);
                            } else {
                                silent.answered(&name, now);
                            }
                            due.insert(name, now + ttl);
                            tell(Intake::Addresses(ips.into_iter().map(|ip| (ip, ttl)).collect()));
                        }
                        Ok((name, Err(error))) => {
                            tracing::debug!(%name, %error, "intake name does not resolve");
                            let pause = match error {
                                ResolveError::Denied(_) => silent.denied(&name, now),
                                _ => {
                                    silent.unheard_again(&name);
                                    WATCH_MIN
                                }
                            };
                            due.insert(name, now + pause);
                        }
                        Err(error) => tracing::warn!(%error, "a lookup ended abnormally"),
                    }
                    match (was_outage, silent.outage()) {
                        (false, true) => {
                            tracing::warn!("no name server answers: intake names are asked for one at a time until one does");
                            // What was known of the others is told at the next look.
                            due.extend(waiting.drain(..).map(|name| (name, now)));
                        }
                        (true, false) => {
                            tracing::info!("name servers answer again");
                            due.values_mut().for_each(|due| *due = now);
                            look.reset_immediately();
                        }
                        _ => {}
                    }
                }
                () = silent.pause(), if silent.outage() && asking.is_empty() => {
                    // What is known would be said without a question.
                    let unknown = due.keys().filter(|name| self.inner.known(name).is_none());
                    waiting.extend(silent.probe(unknown));
                }
                () = elapsed(first_round.as_mut()) => {
                    first_round = None;
                    tell(Intake::Asked);
                }
            }
            while asking.len() < WATCH_CONCURRENCY
                && let Some(name) = waiting.pop_front()
            {
                let inner = Arc::clone(&self.inner);
                asking.spawn_on(
                    async move {
                        let answer = inner.answer(&name).await;
                        (name, answer)
                    },
                    &self.runtime,
                );
            }
            if first_round.is_some() && asking.is_empty() && waiting.is_empty() && !silent.outage() {
                first_round = None;
                tell(Intake::Asked);
            }
        }
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
                stale: false,
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
                let answer = Answer {
                    ips,
                    ttl,
                    fresh_until: Instant::now() + ttl.max(MIN_TTL),
                    stale: false,
                };
                *kept = Some(answer.clone());
                *lock(&entry.failure) = None;
                Ok(answer)
            }
            (Err(error), Some(last_good)) => {
                tracing::warn!(%name, %error, "name does not resolve now, its last addresses are used");
                last_good.fresh_until = Instant::now() + RETRY_AFTER;
                last_good.stale = matches!(error, ResolveError::Lookup(_));
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

/// Completes when `sleep` does; never without one.
async fn elapsed(sleep: Option<&mut Pin<Box<tokio::time::Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
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
