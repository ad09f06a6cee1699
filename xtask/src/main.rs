//! `cargo xtask`: every developer and CI action as one typed verb. Run `cargo xtask help` for the list.

mod setup;
mod sh;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and check agent-fips-proxy")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// The verbs; the doc comments are the help.
#[derive(Subcommand)]
enum Verb {
    /// Install what is missing to build and test: C tools for the FIPS module, the eBPF compiler pair, bpf-linker
    Setup(setup::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Setup(options) => setup::run(&options),
    }
}
