//! The benchmarks themselves: arithmetic and verdicts, the two ends, and that they still run. No case looks at a time.

#[path = "bench/arithmetic.rs"]
mod arithmetic;
#[path = "bench/ends.rs"]
mod ends;
#[path = "bench/verdicts.rs"]
mod verdicts;
#[path = "bench/whole.rs"]
mod whole;

use std::process::ExitCode;

use harness::suite::{Need, case, run};

fn main() -> ExitCode {
    run(vec![
        case("histogram", &[], arithmetic::histogram),
        case("medians_and_ratios", &[], arithmetic::medians_and_ratios),
        case("files_of_proc", &[], arithmetic::files_of_proc),
        case("clocks_of_processes", &[], arithmetic::clocks_of_processes),
        case("command_lines", &[], arithmetic::command_lines),
        case("goals_met", &[], verdicts::goals_met),
        case("each_goal_can_be_missed", &[], verdicts::each_goal_can_be_missed),
        case(
            "a_missing_figure_is_missed",
            &[],
            verdicts::a_missing_figure_is_missed,
        ),
        case("wrong_answers_are_errors", &[], ends::wrong_answers_are_errors),
        case("wrong_requests_are_faults", &[], ends::wrong_requests_are_faults),
        case("a_stall_is_not_hidden", &[], ends::a_stall_is_not_hidden),
        case("relays", &[Need::Root], whole::relays),
        case("interception", &[Need::Bpf, Need::Cni], whole::interception),
        case("datapath", &[Need::Bpf], whole::datapath),
        case(
            "an_interruption_leaves_nothing",
            &[Need::Root],
            whole::an_interruption_leaves_nothing,
        ),
    ])
}
