//! What the proxy finds out when it is asked: `self-test` through the live datapath, `diagnose` towards the intakes.

#[path = "diagnose/self_test.rs"]
mod self_test;

use std::process::ExitCode;

use harness::suite::{Need, case, run};

fn main() -> ExitCode {
    run(vec![
        case(
            "self_test_of_explicit_ports",
            &[Need::Root],
            self_test::of_explicit_ports,
        ),
        case("self_test_by_the_hooks", &[Need::Bpf], self_test::by_the_hooks),
        case("self_test_of_pods", &[Need::Bpf, Need::Cni], self_test::of_pods),
        case(
            "self_test_of_a_stopped_worker",
            &[Need::Root],
            self_test::of_a_stopped_worker,
        ),
    ])
}
