//! What the `tc` datapath is told, what it remembers of an interface, and what it reports.

use std::time::Instant;

use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramInfo, SchedClassifier};
use serde::{Deserialize, Serialize};

use super::attach::{Attached, Detached};
use super::chain::Entry;
use super::routes::RouteChanges;
use super::shadow::{Bounds, Window};
use crate::intercept::error::InterceptError;

/// The classifier's table of interfaces.
pub trait InterfaceTable {
    /// Enters an interface or changes its entry; `seen` of one that is there stays. `own_qdisc` is kept for a later process,
    /// `ipv6` says whether marked packets of that family get to our listeners.
    ///
    /// # Errors
    /// The map could not be written.
    fn put(
        &mut self,
        ifindex: u32,
        wanted: &Wanted,
        own_qdisc: bool,
        ipv6: bool,
    ) -> Result<(), InterceptError>;
    /// Removes an entry, if there is one.
    fn remove(&mut self, ifindex: u32);
    /// Every entry.
    fn entries(&self) -> Vec<(u32, Row)>;
}

/// What the table knows of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Packets that our classifier saw come in by it.
    pub seen: u64,
    /// True when its clsact qdisc was made by us.
    pub own_qdisc: bool,
}

/// An interface whose packets are to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// What the IP layer sees its packets come in by.
    pub rule_device: String,
    /// Our number for the pod's network.
    pub network: u32,
    /// The cookie of the pod's network namespace.
    pub netns_cookie: u64,
}

/// What is done with what is ours and not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// It goes.
    Remove,
    /// It stays: rules and routes, and on interfaces whatever an earlier process left.
    Keep,
}

/// What one [`Tc::sync`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces that our classifier was attached to.
    pub attached: Vec<String>,
    /// Interfaces that it was detached from, by index: the name may be gone.
    pub detached: Vec<u32>,
    /// Interfaces where it was put back or put first again.
    pub reasserted: Vec<String>,
    /// What failed, by interface.
    pub failed: Vec<String>,
    /// Rules and routes.
    pub routes: RouteChanges,
}

/// What [`Tc::remove_all`] and [`uninstall`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// TCX links.
    pub links: usize,
    /// Classic filters.
    pub filters: usize,
    /// Qdiscs that we had made.
    pub qdiscs: usize,
    /// Rules and routes.
    pub routes: usize,
}

impl Removed {
    pub(super) fn count(&mut self, detached: Detached) {
        self.links += usize::from(detached.link);
        self.filters += detached.filters;
        self.qdiscs += usize::from(detached.qdisc);
    }
}

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceState {
    /// Our classifier is attached, and nobody keeps packets from it.
    Active,
    /// It is attached, and another one keeps packets from it.
    Shadowed,
    /// It is not attached.
    Failed,
}

/// An interface, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// `tcx` or `netlink`; none while it failed.
    pub attached: Option<String>,
    /// Of a classic filter.
    pub priority: Option<u16>,
    /// Of a classic filter.
    pub handle: Option<u32>,
    /// How it is.
    pub state: InterfaceState,
    /// Why, and what to set; empty while active.
    pub detail: String,
    /// Packets that our classifier saw.
    pub seen: u64,
    /// Packets that did not reach it, as far as they were noticed.
    pub missed: u64,
    /// How often ours was put back or put first again.
    pub reassertions: u64,
}

/// What we know of an interface between two looks.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) attached: Option<Attached>,
    pub(super) state: InterfaceState,
    pub(super) detail: String,
    /// What the table was told last: [`InterfaceTable::put`].
    pub(super) put: Option<(Wanted, bool, bool)>,
    pub(super) window: Window,
    pub(super) bounds: Bounds,
    pub(super) seen: u64,
    pub(super) missed: u64,
    /// Programs on TCX at the last look, in order.
    pub(super) tcx: Vec<u32>,
    /// Other classifiers in front of ours at the last look.
    pub(super) front: Vec<Entry>,
    /// Until when it is looked at often.
    pub(super) restless: Option<Instant>,
}

impl Port {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            attached: None,
            state: InterfaceState::Active,
            detail: String::new(),
            put: None,
            window: Window::default(),
            bounds: Bounds::default(),
            seen: 0,
            missed: 0,
            tcx: Vec::new(),
            front: Vec::new(),
            restless: None,
        }
    }

    /// Somebody came, went or moved on its TCX, or a short time ago something moved.
    pub(super) fn stirs(&self, now: Instant) -> bool {
        self.restless.is_some_and(|until| now < until)
            // An interface that cannot be asked is gone: of that there is a notification.
            || SchedClassifier::query_tcx(&self.name, TcAttachType::Ingress)
                .is_ok_and(|(_, programs)| programs.iter().map(ProgramInfo::id).ne(self.tcx.iter().copied()))
    }

    /// A new state; said once, not at every look.
    pub(super) fn set(&mut self, state: InterfaceState, detail: String) {
        if self.state != state {
            let interface = &self.name;
            match state {
                InterfaceState::Active => tracing::info!(%interface, "the classifier sees packets again"),
                InterfaceState::Shadowed => {
                    tracing::warn!(%interface, %detail, "the classifier is shadowed");
                }
                InterfaceState::Failed => {
                    tracing::warn!(%interface, %detail, "the classifier is not attached");
                }
            }
        }
        self.state = state;
        self.detail = detail;
    }

    /// For `status`.
    pub(super) fn status(&self, index: u32) -> InterfaceStatus {
        let attached = self.attached.filter(|_| self.state != InterfaceState::Failed);
        let (attached, priority, handle) = match attached {
            Some(Attached::Tcx) => (Some("tcx"), None, None),
            Some(Attached::Classic { priority, handle, .. }) => {
                (Some("netlink"), Some(priority), Some(handle))
            }
            None => (None, None, None),
        };
        InterfaceStatus {
            name: self.name.clone(),
            index,
            attached: attached.map(str::to_owned),
            priority,
            handle,
            state: self.state,
            detail: self.detail.clone(),
            seen: self.seen,
            missed: self.missed,
            reassertions: self.bounds.total,
        }
    }
}
