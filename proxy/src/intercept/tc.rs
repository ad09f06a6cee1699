//! The `tc` datapath from user space: where a classifier goes, who else is there, attachment, routing rules, watching.
//!
//! [`Tc`] puts it together for the master. The classifier itself and its maps are others' business: it comes as an aya
//! `SchedClassifier`, the table of interfaces behind the trait [`InterfaceTable`].
//!
//! The one rule of this module: nothing is replaced, deleted or reordered that is not provably ours, by interface,
//! parent, priority, handle and name after a fresh list.

mod attach;
mod chain;
mod datapath;
mod filter;
#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;
mod gateways;
mod links;
mod narrow;
mod netlink;
mod owner;
mod probe;
mod removal;
mod routes;
mod shadow;
mod state;
mod verdict;
mod watch;

pub use attach::{Attached, Detached, attach, detach};
pub use chain::{Entry, Place, Program, chain, tcx_supported};
pub use datapath::Tc;
pub use filter::{FILTER_NAME, HANDLE, HANDLES, has_qdisc, prepend};
pub use gateways::{DefaultRoute, Inside};
pub use links::{Link, Spot, Unsuitable, host_side, links, netns_id, overlooked};
pub use netlink::{Connection, Netlink, Protocol, Read, Unread};
pub use owner::Owner;
pub use probe::{Probe, probe};
pub use removal::uninstall;
pub use routes::{PROTOCOL, RULE_PREFERENCE, RouteChanges, TABLE};
pub use state::{Changes, InterfaceState, InterfaceStatus, InterfaceTable, Removed, Row, Surplus, Wanted};
pub use verdict::{Attachment, Forecast, Judged, Reached, Returns, forecast};
pub use watch::TcWatcher;

pub(super) use attach::view;
pub(super) use narrow::attributes;
#[cfg(test)]
pub(super) use netlink::encoded;

/// Rules and routes of the datapath: see the module's own functions.
pub mod routing {
    pub use super::routes::{in_front, list_routes, list_rules, remove_all, sync};
}
