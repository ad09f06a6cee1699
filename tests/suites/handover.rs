//! Another program takes over: in place (`upgrade`), or after a restart with what the service manager kept. Nothing is lost and
//! nobody refused.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "handover/endurance.rs"]
mod endurance;
#[path = "handover/load.rs"]
mod load;
#[path = "handover/pod.rs"]
mod pod;
#[path = "handover/refused.rs"]
mod refused;
#[path = "handover/restart.rs"]
mod restart;
#[path = "handover/upgrade.rs"]
mod upgrade;

fn main() -> ExitCode {
    run(vec![
        case("explicit_ports", &[Need::Root], upgrade::explicit_ports),
        case("intercepted", &[Need::Bpf], upgrade::of_the_host),
        case(
            "a_pod_by_cgroup",
            &[Need::Bpf, Need::Cni],
            upgrade::a_pod_by_cgroup,
        ),
        case("a_pod_by_tc", &[Need::Bpf, Need::Cni], upgrade::a_pod_by_tc),
        case(
            "open_mode_lets_nothing_out",
            &[Need::Bpf],
            upgrade::open_mode_lets_nothing_out,
        ),
        case("switched_off", &[Need::Bpf], upgrade::switched_off),
        case(
            "a_changed_configuration_counts",
            &[Need::Root],
            upgrade::a_changed_configuration_counts,
        ),
        case("requests_in_flight", &[Need::Root], upgrade::requests_in_flight),
        case(
            "a_root_with_few_rights",
            &[Need::Bpf],
            upgrade::a_root_with_few_rights,
        ),
        case("without_any_right", &[Need::Root], upgrade::without_any_right),
        case(
            "what_does_not_finish_is_cut",
            &[Need::Root],
            upgrade::what_does_not_finish_is_cut,
        ),
        case("a_worker_that_hangs", &[Need::Root], upgrade::a_worker_that_hangs),
        case("broken_files", &[Need::Root], refused::broken_files),
        case("a_bad_configuration", &[Need::Root], refused::a_bad_configuration),
        case("two_at_once", &[Need::Root], refused::two_at_once),
        case("beside_a_reload", &[Need::Root], refused::beside_a_reload),
        case(
            "a_worker_that_cannot_start",
            &[Need::Root],
            refused::a_worker_that_cannot_start,
        ),
        case(
            "killed_connections_wait",
            &[Need::Root],
            restart::killed_connections_wait,
        ),
        case(
            "killed_intercepted_connections_wait",
            &[Need::Bpf],
            restart::killed_intercepted_connections_wait,
        ),
        case(
            "a_pod_is_served_after_a_restart_by_cgroup",
            &[Need::Bpf, Need::Cni],
            restart::a_pod_by_cgroup,
        ),
        case(
            "a_pod_is_served_after_a_restart_by_tc",
            &[Need::Bpf, Need::Cni],
            restart::a_pod_by_tc,
        ),
        case("restarts_under_load", &[Need::Bpf], restart::under_load),
        case(
            "without_its_programs_a_connection_is_closed",
            &[Need::Bpf],
            restart::without_its_programs,
        ),
        case("after_an_upgrade", &[Need::Bpf], restart::after_an_upgrade),
        case(
            "what_is_kept_follows",
            &[Need::Root],
            restart::what_is_kept_follows,
        ),
        case("endurance", &[Need::Bpf], endurance::endurance),
    ])
}
