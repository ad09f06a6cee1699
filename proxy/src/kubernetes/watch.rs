//! Follows the Agent pods of this node and tells the whole list each time that it changed, never once per event.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio::time::Instant;

use super::{MAX_PODS, Reach, client, pod_ref};
use crate::config::Config;
use crate::intercept::PodRef;
use crate::supervise::protocol::Pods;

/// Changes that come closer together are told together.
const SETTLE: Duration = Duration::from_millis(100);

/// Follows the pods that `config` asks for as long as it is polled; at once over when nobody is to be asked. Must run inside
/// a tokio runtime.
pub async fn follow(config: &Config, mut tell: impl FnMut(Pods)) {
    match Reach::find(config) {
        Ok(Some(reach)) => watch(&reach, tell).await,
        Ok(None) => {
            tracing::debug!("the Kubernetes API server is not asked for pods");
            // That there are none is known: what an earlier configuration or process knew of goes.
            tell(Pods {
                synced: true,
                ..Pods::default()
            });
        }
        Err(error) => {
            tracing::error!("{error}");
            tell(Pods {
                problem: Some(error.to_string()),
                ..Pods::default()
            });
        }
    }
}

/// Follows the pods of `reach`, for ever: what fails is told and tried again, after 0.8 s at first and 30 s at last.
pub async fn watch(reach: &Reach, mut tell: impl FnMut(Pods)) {
    let (client, mut successes) = client::new(reach);
    let api: Api<PartialObjectMeta<Pod>> = Api::all(client);
    let what = watcher::Config::default()
        .fields(&reach.field_selector())
        .labels(&reach.label_selector);
    let mut events = pin!(watcher::watcher(api, what).default_backoff());
    let mut state = State::default();
    let mut told = Pods::default();
    let mut settle: Option<Instant> = None;
    tracing::info!(server = reach.authority(), node = %reach.node, selector = %reach.label_selector, "watching the Agent pods of this node");
    loop {
        tokio::select! {
            biased;
            () = until(settle) => {
                settle = None;
                let pods = state.pods();
                if pods != told {
                    log(&told, &pods);
                    told = pods.clone();
                    tell(pods);
                }
                continue;
            }
            // A request succeeded; the channel lives as long as the client does.
            Ok(()) = successes.changed() => state.problem = None,
            Some(event) = events.next() => match event {
                Ok(event) => state.take(event),
                Err(error) => {
                    state.fail(reach, &error);
                    // A status of success before an answer that could not be read is none.
                    successes.mark_unchanged();
                }
            },
        }
        if settle.is_none() {
            settle = Some(Instant::now() + SETTLE);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn log(before: &Pods, after: &Pods) {
    match (&before.problem, &after.problem) {
        (None, Some(problem)) => tracing::warn!("{problem}; it is tried again"),
        (Some(old), Some(problem)) if old != problem => tracing::warn!("{problem}; it is tried again"),
        (Some(_), None) => tracing::info!("the Kubernetes API server answers again"),
        _ => {}
    }
    if before.found.len() != after.found.len() {
        tracing::debug!(pods = after.found.len(), "Agent pods of this node");
    }
}

/// What is known, by UID.
#[derive(Default)]
struct State {
    found: BTreeMap<String, PodRef>,
    /// A list that is not complete yet.
    coming: Option<BTreeMap<String, PodRef>>,
    synced: bool,
    problem: Option<String>,
    /// A pod was left out.
    full: bool,
}

impl State {
    fn take(&mut self, event: Event<PartialObjectMeta<Pod>>) {
        self.problem = None;
        match event {
            Event::Init => {
                self.coming = Some(BTreeMap::new());
                self.full = false;
            }
            Event::InitApply(pod) => {
                if let Some(pod) = pod_ref(pod.metadata) {
                    let coming = self.coming.get_or_insert_default();
                    self.full |= !keep(coming, pod);
                }
            }
            Event::InitDone => {
                self.found = self.coming.take().unwrap_or_default();
                self.synced = true;
            }
            Event::Apply(pod) => {
                if let Some(pod) = pod_ref(pod.metadata) {
                    self.full |= !keep(&mut self.found, pod);
                }
            }
            Event::Delete(pod) => {
                if let Some(pod) = pod_ref(pod.metadata) {
                    self.found.remove(&pod.uid);
                }
            }
        }
    }

    fn fail(&mut self, reach: &Reach, error: &watcher::Error) {
        self.problem = match error {
            // The server forgot what we saw last: the watcher asks for the list anew.
            watcher::Error::WatchError(status) if status.code == 410 => return,
            watcher::Error::WatchError(status) => {
                Some(client::explain_status(reach, status.code, &status.message))
            }
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => Some(client::explain(reach, error)),
            watcher::Error::NoResourceVersion => Some(client::explain_status(
                reach,
                200,
                "a list of pods without a resourceVersion",
            )),
        };
    }

    fn pods(&self) -> Pods {
        let full = || {
            format!(
                "more than {MAX_PODS} pods of this node match intercept.agents.pods.label_selector: the others are not \
                 intercepted"
            )
        };
        Pods {
            found: self.found.values().cloned().collect(),
            problem: self.problem.clone().or_else(|| self.full.then(full)),
            synced: self.synced,
        }
    }
}

/// False when there is no room.
fn keep(pods: &mut BTreeMap<String, PodRef>, pod: PodRef) -> bool {
    let room = pods.len() < MAX_PODS || pods.contains_key(&pod.uid);
    if room {
        pods.insert(pod.uid.clone(), pod);
    }
    room
}
