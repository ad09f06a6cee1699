//! Names to addresses, as this host would answer: its hosts file first, then the servers of its resolv.conf.
//!
//! Answers are kept for their TTL and beyond it when a refresh fails: an intake's addresses outlive a DNS outage. When
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
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver as Hickory, TokioResolver, system_conf};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::catalog::{Catalog, normalise};

mod silent;

use silent::Silent;

/// Assumed for answers that carry no TTL: the hosts file and `getaddrinfo`.
const DEFAULT_TTL: Duration = Duration::from_secs(60);
/// A TTL of nothing must not mean a question per request.
const MIN_TTL: Duration = Duration::from_secs(5);
/// After a failure a known answer is used this long before the servers are asked again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
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
    /// The servers said no, or nothing.
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
    /// `None`: no resolv.conf with a server in it.
    servers: Option<TokioResolver>,
    names: HashMap<String, Arc<Name>>,
}

/// What is known of one name. The async lock makes many askers share one question.
#[derive(Debug, Default)]
struct Name {
    answer: Mutex<Option<Answer>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Answer {
    ips: Vec<IpAddr>,
    ttl: Duration,
    fresh_until: Instant,
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
    /// without asking is told first, and each answer as it comes: a server that does not answer delays nobody else.
    pub async fn watch_intake(&self, catalog: &Catalog, tell: impl Fn(Intake)) {
        let mut due: HashMap<String, Instant> = HashMap::new();
        let mut hosts_stamp = None;
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
                    let stamp = stamp(&self.inner.sources.hosts);
                    if stamp != hosts_stamp {
                        hosts_stamp = stamp;
                        due.values_mut().for_each(|due| *due = now);
                    }
                    let mut at_once = Vec::new();
                    for (name, due) in due.iter_mut().filter(|(_, due)| **due <= now) {
                        if let Some(answer) = self.inner.known(name) {
                            let ttl = answer.ttl.clamp(WATCH_MIN, WATCH_MAX);
                            *due = now + ttl;
                            at_once.extend(answer.ips.into_iter().map(|ip| (ip, ttl)));
                        } else {
                            // Again at the latest then, should the answer be lost.
                            *due = now + WATCH_MAX;
                            waiting.push_back(name.clone());
                        }
                    }
                    if !at_once.is_empty() {
                        tell(Intake::Addresses(at_once));
                    }
                }
                Some(asked) = asking.join_next() => match asked {
                    Ok((name, Ok(Answer { ips, ttl, .. }))) => {
                        let ttl = ttl.clamp(WATCH_MIN, WATCH_MAX);
                        let now = Instant::now();
                        silent.answered(&name, now);
                        due.insert(name, now + ttl);
                        tell(Intake::Addresses(ips.into_iter().map(|ip| (ip, ttl)).collect()));
                    }
                    Ok((name, Err(error))) => {
                        tracing::debug!(%name, %error, "intake name does not resolve");
                        let now = Instant::now();
                        due.insert(name.clone(), now + silent.failed(name, now));
                    }
                    Err(error) => tracing::warn!(%error, "a lookup ended abnormally"),
                },
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
            if first_round.is_some() && asking.is_empty() && waiting.is_empty() {
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
        let state = lock(&self.state);
        if let Some(ips) = state.hosts.get(name) {
            return Some(Answer {
                ips: ips.clone(),
                ttl: DEFAULT_TTL,
                fresh_until: Instant::now(),
            });
        }
        let known = state.names.get(name)?;
        let answer = lock(&known.answer);
        answer
            .as_ref()
            .filter(|answer| answer.fresh_until > Instant::now())
            .cloned()
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
        let asked = match servers {
            Some(servers) => ask_servers(&servers, name).await,
            None => ask_libc(name).await,
        };
        let mut kept = lock(&entry.answer);
        match (asked, kept.as_mut()) {
            (Ok((ips, ttl)), _) => {
                let answer = Answer {
                    ips,
                    ttl,
                    fresh_until: Instant::now() + ttl.max(MIN_TTL),
                };
                *kept = Some(answer.clone());
                Ok(answer)
            }
            (Err(error), Some(last_good)) => {
                tracing::warn!(%name, %error, "name does not resolve now, its last addresses are used");
                last_good.fresh_until = Instant::now() + RETRY_AFTER;
                Ok(last_good.clone())
            }
            (Err(error), None) => Err(error),
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
            state.servers = read_servers(&self.sources.resolv_conf);
            // Other servers may know better; what was known stays as the last good answer.
            for name in state.names.values() {
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

async fn ask_servers(servers: &TokioResolver, name: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    // The trailing dot keeps search domains out: an intake name is always whole.
    let found = servers.lookup_ip([name, "."].concat()).await.map_err(|error| {
        ResolveError::Lookup(if error.is_nx_domain() {
            "the name does not exist (NXDOMAIN)".to_owned()
        } else if error.is_no_records_found() {
            "the name has no A or AAAA record".to_owned()
        } else {
            error.to_string()
        })
    })?;
    let ttl = found.valid_until().saturating_duration_since(Instant::now());
    non_empty(found.iter().collect(), ttl)
}

async fn ask_libc(name: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    let found = tokio::net::lookup_host((name, 0))
        .await
        .map_err(|e| ResolveError::Lookup(e.to_string()))?;
    non_empty(found.map(|address| address.ip()).collect(), DEFAULT_TTL)
}

fn non_empty(ips: Vec<IpAddr>, ttl: Duration) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    if ips.is_empty() {
        return Err(ResolveError::Lookup("the answer holds no address".to_owned()));
    }
    Ok((ips, ttl))
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

/// A client for the servers of resolv.conf; `None` when it is missing or names none.
fn read_servers(path: &Path) -> Option<TokioResolver> {
    let text = std::fs::read(path)
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "cannot read"))
        .ok()?;
    let (config, mut options) = system_conf::parse_resolv_conf(text)
        .inspect_err(
            |error| tracing::info!(path = %path.display(), %error, "asking the C library for names instead"),
        )
        .ok()?;
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.try_tcp_on_error = true;
    // Answers are kept here, with the last good one: a second cache would only hide TTLs.
    options.cache_size = 0;
    let builder = Hickory::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    builder
        .build()
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot use the DNS servers"))
        .ok()
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
