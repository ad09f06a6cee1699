//! The binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent_fips_proxy::cli::main().into()
}
