//! The `tc` datapath on the real kernel: who stands where on an interface, and that ours comes, stays and goes without
//! touching anybody else's. Every case has a network, a mount namespace with a bpffs, and a pod of its own.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "classifiers/attaching.rs"]
mod attaching;
#[path = "classifiers/chains.rs"]
mod chains;
#[path = "classifiers/routing.rs"]
mod routing;
#[path = "classifiers/syncing.rs"]
mod syncing;
#[path = "classifiers/world.rs"]
mod world;

const NEEDS: &[Need] = &[Need::Root, Need::Bpf];

fn main() -> ExitCode {
    run(vec![
        case(
            "host_side_of_a_routed_pod",
            NEEDS,
            chains::host_side_of_a_routed_pod,
        ),
        case(
            "host_side_of_a_bridged_pod",
            NEEDS,
            chains::host_side_of_a_bridged_pod,
        ),
        case(
            "pods_without_a_host_side",
            NEEDS,
            chains::pods_without_a_host_side,
        ),
        case(
            "chain_is_the_kernels_order",
            NEEDS,
            chains::chain_is_the_kernels_order,
        ),
        case(
            "forecast_is_what_happens",
            NEEDS,
            chains::forecast_is_what_happens,
        ),
        case("probe_tells_the_answer", NEEDS, chains::probe_tells_the_answer),
        case(
            "tcx_is_replaced_without_a_gap",
            NEEDS,
            attaching::tcx_is_replaced_without_a_gap,
        ),
        case(
            "classic_is_replaced_without_a_gap",
            NEEDS,
            attaching::classic_is_replaced_without_a_gap,
        ),
        case(
            "only_what_is_ours_is_taken_away",
            NEEDS,
            attaching::only_what_is_ours_is_taken_away,
        ),
        case(
            "the_qdisc_goes_only_when_ours",
            NEEDS,
            attaching::the_qdisc_goes_only_when_ours,
        ),
        case(
            "prepend_flips_without_a_gap",
            NEEDS,
            attaching::prepend_flips_without_a_gap,
        ),
        case(
            "a_vendor_may_do_what_it_likes",
            NEEDS,
            syncing::a_vendor_may_do_what_it_likes,
        ),
        case("routing_trouble_is_told", NEEDS, routing::routing_trouble_is_told),
        case("a_tcx_duel_is_bounded", NEEDS, syncing::a_tcx_duel_is_bounded),
        case("a_shadow_is_named", NEEDS, syncing::a_shadow_is_named),
        case(
            "a_shadow_on_tcx_is_named",
            &[Need::Root, Need::Bpf, Need::Linux(6, 6, "TCX")],
            syncing::a_shadow_on_tcx_is_named,
        ),
        case("prepend_comes_back", NEEDS, syncing::prepend_comes_back),
        case(
            "a_new_veth_is_a_new_interface",
            NEEDS,
            syncing::a_new_veth_is_a_new_interface,
        ),
        case("a_successor_takes_over", NEEDS, syncing::a_successor_takes_over),
        case(
            "uninstall_leaves_nothing",
            NEEDS,
            syncing::uninstall_leaves_nothing,
        ),
        case("rules_and_routes", NEEDS, routing::rules_and_routes),
        case("ipv6_may_be_off", NEEDS, routing::ipv6_may_be_off),
        case("changes_are_noticed", NEEDS, routing::changes_are_noticed),
    ])
}
