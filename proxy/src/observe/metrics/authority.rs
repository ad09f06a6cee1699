//! Metrics of the local authority: when it ends, and whether somebody must see to it.

use std::sync::{PoisonError, RwLock};

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Encoded, encode_gauge, encode_lone_gauge};
use crate::tls::ca::{AuthoritiesStatus, WARN_DAYS, now};

/// Writes them; nothing where there is no authority.
pub(super) fn encode(status: &RwLock<Option<AuthoritiesStatus>>, e: &mut DescriptorEncoder) -> Encoded {
    let status = status.read().unwrap_or_else(PoisonError::into_inner);
    let Some(status) = status.as_ref() else {
        return Ok(());
    };
    let mut family = e.encode_descriptor(
        "local_authority_end_timestamp_seconds",
        "When the local authority ends, in seconds since 1970",
        None,
        MetricType::Gauge,
    )?;
    for (role, facts) in
        std::iter::once(("current", &status.current)).chain(status.next.as_ref().map(|next| ("next", next)))
    {
        let labels = [("role", role), ("id", facts.id())];
        encode_gauge(&mut family, &labels, u64::try_from(facts.not_after).unwrap_or(0))?;
    }
    // At this moment and not at the start: a worker lives for months.
    let soon = status.current.days_left(now()) < WARN_DAYS;
    encode_lone_gauge(
        e,
        "local_authority_ends_soon",
        "1 when the local authority ends within 30 days: rotate it",
        u64::from(soon),
    )
}
