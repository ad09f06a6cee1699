//! Agents in pods: real CNI plug-ins, both datapaths, and hosts whose settings are in the way.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "pods/churn.rs"]
mod churn;
#[path = "pods/hosts.rs"]
mod hosts;
#[path = "pods/intercepted.rs"]
mod intercepted;
#[path = "pods/renamed.rs"]
mod renamed;
#[path = "pods/stage.rs"]
mod stage;
#[path = "pods/threads.rs"]
mod threads;

fn main() -> ExitCode {
    const NEEDS: &[Need] = &[Need::Bpf, Need::Cni];
    run(vec![
        case("ptp_by_cgroup", NEEDS, intercepted::ptp_by_cgroup),
        case("bridge_by_cgroup", NEEDS, intercepted::bridge_by_cgroup),
        case("ptp_by_tc", NEEDS, intercepted::ptp_by_tc),
        case("bridge_by_tc", NEEDS, intercepted::bridge_by_tc),
        case("ptp_by_classic_filter", NEEDS, intercepted::ptp_by_classic_filter),
        case("every_thread_by_cgroup", NEEDS, threads::every_thread_by_cgroup),
        case("every_thread_by_tc", NEEDS, threads::every_thread_by_tc),
        case("renamed_while_closed", NEEDS, renamed::while_closed),
        case("renamed_while_open", NEEDS, renamed::while_open),
        case("firewalls", NEEDS, hosts::firewalls),
        case("sysctls", NEEDS, hosts::sysctls),
        case(
            "a_bridge_that_is_no_gateway",
            NEEDS,
            hosts::a_bridge_that_is_no_gateway,
        ),
        case(
            "an_interface_beside_the_veth",
            NEEDS,
            hosts::an_interface_beside_the_veth,
        ),
        case("two_hundred_by_cgroup", NEEDS, churn::two_hundred_by_cgroup),
        case("two_hundred_by_tc", NEEDS, churn::two_hundred_by_tc),
    ])
}
