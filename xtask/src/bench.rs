//! `cargo xtask bench`: measurements against a peer in the same run, as ratios, and of growth. They never decide a test.

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
    /// How cost grows with connections, Agents, pods, cgroups, networks and names (root, some ten minutes)
    Scaling,
}

/// Builds the measuring program and runs it.
pub fn run(options: &Options) -> Result<()> {
    let program = match options.what {
        What::Datapath => "bench-datapath",
        What::Scaling => "bench-scaling",
    };
    // The proxy itself, too: `scaling` starts it.
    sh::run(sh::cargo().args([
        "build",
        "--locked",
        "--profile",
        "measure",
        "--package",
        "agent-fips-proxy",
        "--package",
        "agent-fips-proxy-tests",
        "--bin",
        "agent-fips-proxy",
        "--bin",
        program,
    ]))?;
    sh::run(&mut std::process::Command::new(
        sh::root().join("target/measure").join(program),
    ))
}
