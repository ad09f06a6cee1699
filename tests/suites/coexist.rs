//! Beside other vendors' classifiers, with the real binary on a node whose pods come from a real CNI plug-in: what `doctor`
//! foresees is what happens, what others break is put right or named, and what is theirs stays as they left it.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "coexist/cycles.rs"]
mod cycles;
#[path = "coexist/open.rs"]
mod open;
#[path = "coexist/stage.rs"]
mod stage;
#[path = "coexist/table.rs"]
mod table;
#[path = "coexist/vandalism.rs"]
mod vandalism;

fn main() -> ExitCode {
    const NEEDS: &[Need] = &[Need::Bpf, Need::Cni];
    run(vec![
        case("classic_at_1_is_as_foreseen", NEEDS, table::classic_at_1),
        case("classic_at_4_is_as_foreseen", NEEDS, table::classic_at_4),
        case("classic_at_10_is_as_foreseen", NEEDS, table::classic_at_10),
        case("tcx_is_as_foreseen", NEEDS, table::tcx_first),
        case("cgroup_is_as_foreseen", NEEDS, table::cgroup),
        case("without_a_probe_doctor_says_so", NEEDS, table::without_a_probe),
        case(
            "doctor_believes_the_running_proxy",
            NEEDS,
            table::doctor_believes_the_running_proxy,
        ),
        case(
            "a_vendor_replaces_its_filter",
            NEEDS,
            vandalism::a_vendor_replaces_its_filter,
        ),
        case(
            "a_vendor_deletes_and_adds_its_filter",
            NEEDS,
            vandalism::a_vendor_deletes_and_adds_its_filter,
        ),
        case(
            "a_vendor_deletes_the_qdisc",
            NEEDS,
            vandalism::a_vendor_deletes_the_qdisc,
        ),
        case(
            "a_vendor_comes_first_on_tcx",
            NEEDS,
            vandalism::a_vendor_comes_first_on_tcx,
        ),
        case(
            "a_veth_of_the_same_name",
            NEEDS,
            vandalism::a_veth_of_the_same_name,
        ),
        case(
            "an_open_connection_goes_on",
            NEEDS,
            open::an_open_connection_goes_on,
        ),
        case(
            "switched_off_an_open_connection_goes_on",
            NEEDS,
            open::switched_off_an_open_connection_goes_on,
        ),
        case(
            "a_reload_moves_the_classifier_without_a_gap",
            NEEDS,
            open::a_reload_moves_the_classifier_without_a_gap,
        ),
        case("no_other_socket_gets_it", NEEDS, open::no_other_socket_gets_it),
        case("fifty_cycles", NEEDS, cycles::fifty_cycles),
    ])
}
