//! The binary: everything is in the library.

use std::process::ExitCode;

// clippy looks at everything at once (xtask/src/lint.rs).
#[cfg(all(feature = "counts", not(clippy)))]
compile_error!("the feature `counts` is for the program `instructions` alone: it opens what is private");

fn main() -> ExitCode {
    agent_fips_proxy::cli::main().into()
}
