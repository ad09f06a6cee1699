//! What only time shows: memory that does not come back after a burst, and whatever grows with every reload.

#[path = "soak/memory.rs"]
mod memory;
#[path = "soak/reloads.rs"]
mod reloads;
#[path = "soak/series.rs"]
mod series;

use std::process::ExitCode;

use harness::suite::{Need, case, run};

/// `AGENT_FIPS_PROXY_SOAK=full`: a burst of ten minutes and reloads for thirty, in place of some seconds each.
const FULL: &str = "AGENT_FIPS_PROXY_SOAK";

fn main() -> ExitCode {
    run(vec![
        case("growth_is_seen", &[], series::growth_is_seen),
        case("memory", &[Need::Bpf], memory::memory),
        case("reloads", &[Need::Bpf], reloads::reloads),
    ])
}
