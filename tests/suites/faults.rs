//! Faults as data: each row of the table is injected under load, by its name, and says what must hold.
//!
//! The rows are in `intake`, `tls`, `network`, `host` and `overload`; what a row is made of in `table`; `stage` makes the faults, `judge`
//! holds what happened against the row. `docs/RESILIENCE.md` shows the table.

#[path = "faults/client.rs"]
mod client;
#[path = "faults/host.rs"]
mod host;
#[path = "faults/intake.rs"]
mod intake;
#[path = "faults/judge.rs"]
mod judge;
#[path = "faults/network.rs"]
mod network;
#[path = "faults/overload.rs"]
mod overload;
#[path = "faults/page.rs"]
mod page;
#[path = "faults/stage.rs"]
mod stage;
#[path = "faults/table.rs"]
mod table;
#[path = "faults/tls.rs"]
mod tls;

use std::process::ExitCode;

use harness::suite::{case, row, run_at_once};

use table::Row;

/// The table, by area.
const AREAS: &[(&str, &[Row])] = &[
    ("Intake", intake::ROWS),
    ("TLS", tls::ROWS),
    ("Network", network::ROWS),
    ("Host", host::ROWS),
    ("Overload", overload::ROWS),
];

/// Rows that run at the same time: each has a world of its own, and mostly waits.
const AT_ONCE: usize = 3;

fn main() -> ExitCode {
    // For `cargo xtask docs`.
    if std::env::args().nth(1).as_deref() == Some("--page") {
        return match page::text() {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(_) => ExitCode::FAILURE,
        };
    }
    let rows = AREAS.iter().flat_map(|(_, rows)| rows.iter());
    let mut cases: Vec<_> = rows
        .map(|fault| row(fault.name, fault.needs, move || judge::play(fault)))
        .collect();
    cases.push(case("the_table_is_whole", &[], page::the_table_is_whole));
    run_at_once(cases, AT_ONCE)
}
