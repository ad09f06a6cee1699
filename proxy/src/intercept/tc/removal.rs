//! Takes away what is ours: of this process, and of an earlier one that left it.

use std::collections::BTreeSet;
use std::path::Path;

use super::attach::{detach, pinned_interfaces};
use super::chain::{INGRESS, classic};
use super::filter::is_own_filter;
use super::links::links;
use super::netlink::Netlink;
use super::routes;
use super::state::Removed;
use crate::intercept::error::InterceptError;

/// Takes away everything that is ours in the calling thread's network namespace, without a program: TCX links by their
/// pins, classic filters by handle and name, rules and routes by protocol. `own_qdiscs` are the interfaces whose clsact
/// qdisc the table says we made.
///
/// # Errors
/// The first thing that could not be removed; the rest is removed all the same.
pub fn uninstall(pins: &Path, own_qdiscs: &BTreeSet<u32>) -> Result<Removed, InterceptError> {
    remove(&mut Netlink::open()?, pins, own_qdiscs)
}

pub(super) fn remove(
    netlink: &mut Netlink,
    pins: &Path,
    own_qdiscs: &BTreeSet<u32>,
) -> Result<Removed, InterceptError> {
    let mut removed = Removed::default();
    let mut indexes: BTreeSet<u32> = pinned_interfaces(pins)?.into_iter().collect();
    for link in links(netlink)? {
        if own_qdiscs.contains(&link.index)
            || classic(netlink, link.index, INGRESS, &|_, _| false)?
                .iter()
                .any(is_own_filter)
        {
            indexes.insert(link.index);
        }
    }
    let mut failure = None;
    for index in indexes {
        match detach(netlink, index, pins, own_qdiscs.contains(&index)) {
            Ok(detached) => removed.count(detached),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match routes::remove_all(netlink) {
        Ok(count) => removed.routes = count,
        Err(error) => failure = failure.or(Some(error)),
    }
    failure.map_or(Ok(removed), Err)
}
