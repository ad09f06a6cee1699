//! `cargo xtask bench`: measurements against a peer in the same run, as ratios. They never decide a test.

use anyhow::Result;

use crate::sh;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    /// What to measure
    #[arg(value_enum)]
    what: What,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Cost of the kernel programs per packet and per connection, against none (root)
    Datapath,
}

/// Builds the measuring program and runs it.
pub fn run(options: &Options) -> Result<()> {
    let What::Datapath = options.what;
    let program = "bench-datapath";
    sh::run(sh::cargo().args([
        "build",
        "--locked",
        "--profile",
        "measure",
        "--package",
        "agent-fips-proxy-tests",
        "--bin",
        program,
    ]))?;
    sh::run(&mut std::process::Command::new(
        sh::root().join("target/measure").join(program),
    ))
}
