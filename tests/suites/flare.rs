//! `flare`, by the real binary: what is in the bundle, whom it asks, where it writes, what it sends and to whom, and that no secret
//! is in it. What it writes is read by Python's `zipfile`, what it sends by Python's reader of MIME.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "flare/bundle.rs"]
mod bundle;
#[path = "flare/canaries.rs"]
mod canaries;
#[path = "flare/sending.rs"]
mod sending;
#[path = "flare/stage.rs"]
mod stage;
#[path = "flare/writing.rs"]
mod writing;

const NEEDS: &[Need] = &[Need::Root, Need::Python3];

fn main() -> ExitCode {
    run(vec![
        case("a_running_proxy_is_in_it", NEEDS, bundle::running),
        case(
            "an_intercepting_proxy_is_in_it",
            &[Need::Bpf, Need::Python3],
            bundle::intercepting,
        ),
        case("without_a_proxy_and_without_root", NEEDS, bundle::without),
        case("it_asks", NEEDS, writing::asks),
        case("what_is_there_stays", NEEDS, writing::stays),
        case("a_full_disk_leaves_nothing", NEEDS, writing::full),
        case("what_is_sent_is_the_file", NEEDS, sending::sent),
        case("it_asks_again_before_it_sends", NEEDS, sending::asks),
        case("every_answer_of_an_intake", NEEDS, sending::answers),
        case("no_way_to_the_intake", NEEDS, sending::unreachable),
        case("by_the_outbound_proxy", NEEDS, sending::outbound),
        case("canaries_appear_nowhere", NEEDS, canaries::nowhere),
    ])
}
