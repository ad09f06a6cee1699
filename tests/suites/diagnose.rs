//! What the proxy finds out when it is asked: `self-test` through the live datapath, `diagnose` towards the intakes.

#[path = "diagnose/intakes.rs"]
mod intakes;
#[path = "diagnose/self_test.rs"]
mod self_test;

use std::process::ExitCode;

use harness::suite::{Need, case, run};

fn main() -> ExitCode {
    run(vec![
        case("all_is_well", &[Need::Root], intakes::all_is_well),
        case("names_lead_astray", &[Need::Root], intakes::names_lead_astray),
        case("nobody_listens", &[Need::Root], intakes::nobody_listens),
        case("tls_is_not_good", &[Need::Root], intakes::tls_is_not_good),
        case("http_is_not_good", &[Need::Root], intakes::http_is_not_good),
        case("another_way", &[Need::Root], intakes::another_way),
        case("wrong_commands", &[Need::Root], intakes::wrong_commands),
        case("beside_the_proxy", &[Need::Root], intakes::beside_the_proxy),
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
