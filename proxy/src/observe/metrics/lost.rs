//! Log lines that were dropped, by process and kind.

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Encoded, encode_counter};
use crate::observe::logging::Lost;

/// Writes them, also those that are zero: an alarm needs something to start from.
pub(super) fn encode(worker: Lost, master: Lost, e: &mut DescriptorEncoder) -> Encoded {
    let mut family = e.encode_descriptor(
        "log_lines_lost",
        "Log lines that were dropped because standard error was not read as fast as they came, or could not be written",
        None,
        MetricType::Counter,
    )?;
    for (process, lost) in [("worker", worker), ("master", master)] {
        for (kind, n) in lost.kinds() {
            encode_counter(&mut family, &[("process", process), ("kind", kind)], n)?;
        }
    }
    Ok(())
}
