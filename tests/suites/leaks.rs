//! Leaks, by the real binary: intake connections of Agents that did not pass through the proxy are counted for the right
//! Agent and reason, whatever happens to the processes, and told by status, metrics and log. In `closed` mode there are none: by
//! what we count, by what the intake gets, and by every packet that leaves the host.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "leaks/closed.rs"]
mod closed;
#[path = "leaks/existing.rs"]
mod existing;
#[path = "leaks/kills.rs"]
mod kills;
#[path = "leaks/open.rs"]
mod open;
#[path = "leaks/pods.rs"]
mod pods;
#[path = "leaks/stage.rs"]
mod stage;

fn main() -> ExitCode {
    const PODS: &[Need] = &[Need::Bpf, Need::Cni];
    run(vec![
        case(
            "a_hundred_kills_leak_nothing",
            &[Need::Bpf],
            kills::a_hundred_kills_leak_nothing,
        ),
        case(
            "a_hundred_kills_are_counted",
            &[Need::Bpf],
            kills::a_hundred_kills_are_counted,
        ),
        case("kills_leak_nothing_by_tc", PODS, kills::kills_leak_nothing_by_tc),
        case("kills_are_counted_by_tc", PODS, kills::kills_are_counted_by_tc),
        case(
            "whoever_is_led_around_is_told_of",
            &[Need::Bpf],
            closed::whoever_is_led_around_is_told_of,
        ),
        case(
            "each_direct_connection_is_counted_and_told",
            &[Need::Bpf],
            open::each_direct_connection_is_counted_and_told,
        ),
        case(
            "counts_go_on_over_kills",
            &[Need::Bpf],
            open::counts_go_on_over_kills,
        ),
        case(
            "what_was_open_before_is_told_once",
            &[Need::Bpf],
            existing::what_was_open_before_is_told_once,
        ),
        case(
            "what_was_open_before_comes_back_through_us",
            &[Need::Bpf],
            existing::what_was_open_before_comes_back_through_us,
        ),
        case("pods_by_cgroup", PODS, pods::pods_by_cgroup),
        case("pods_by_tc", PODS, pods::pods_by_tc),
        case(
            "pods_that_were_there_before_by_tc",
            PODS,
            pods::there_before_by_tc,
        ),
        case(
            "pods_that_were_there_before_by_cgroup",
            PODS,
            pods::there_before_by_cgroup,
        ),
    ])
}
