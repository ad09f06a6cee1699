//! Writing to the terminal. `println!` panics when the reader has gone, as in `agent-fips-proxy status | head -1`.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::Exit;

/// As `println!`, but a reader that has gone ends the program quietly.
macro_rules! say {
    ($($argument:tt)*) => { $crate::cli::output::stdout(format_args!($($argument)*)) };
}

/// As `eprintln!`, but never a panic.
macro_rules! complain {
    ($($argument:tt)*) => { $crate::cli::output::stderr(format_args!($($argument)*)) };
}

pub(crate) use {complain, say};

/// One line to standard output.
pub(crate) fn stdout(text: fmt::Arguments<'_>) {
    if writeln!(io::stdout().lock(), "{text}").is_err() {
        // Whoever wanted to know has heard enough.
        std::process::exit(Exit::Ok as i32);
    }
}

/// A report as indented JSON, to standard output.
pub(crate) fn json(report: &impl Serialize) -> Exit {
    match serde_json::to_string_pretty(report) {
        Ok(text) => {
            say!("{text}");
            Exit::Ok
        }
        Err(error) => {
            complain!("agent-fips-proxy: {error}");
            Exit::Internal
        }
    }
}

/// One line to standard error.
pub(crate) fn stderr(text: fmt::Arguments<'_>) {
    // There is nowhere left to complain about this.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// `1.2 ms`, of microseconds.
pub(crate) fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}
