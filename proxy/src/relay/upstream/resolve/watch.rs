//! Every intake name, asked for again and again, for the kernel's filter.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::silent::Silent;
use super::{
    Answer, FIRST_ROUND, Intake, ResolveError, Resolver, WATCH_CONCURRENCY, WATCH_FILES, WATCH_MAX,
    WATCH_MIN, stamp,
};
use crate::catalog::Catalog;

impl Resolver {
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
                        Ok((name, Ok(answer))) => {
                            let ttl = answer.ttl.clamp(WATCH_MIN, WATCH_MAX);
                            if answer.is_unheard() {
                                silent.unheard_again(&name);
                            } else {
                                silent.answered(&name, now);
                            }
                            due.insert(name, now + ttl);
                            tell(Intake::Addresses(answer.ips.into_iter().map(|ip| (ip, ttl)).collect()));
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
}

/// Completes when `sleep` does; never without one.
async fn elapsed(sleep: Option<&mut Pin<Box<tokio::time::Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}
