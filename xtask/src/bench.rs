//! `cargo xtask bench`: measurements against peers in the same run, as ratios, and of growth. They decide no test; `--gate`
//! decides for itself.

mod relay;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{build, sh};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    relay: relay::RelayOptions,
}

/// What to measure in place of the whole relay.
#[derive(clap::Subcommand)]
enum What {
    /// Cost of the kernel programs per packet and per connection, against none (root)
    Datapath,
    /// How cost grows with connections, Agents, pods, cgroups, networks and names (root, some ten minutes)
    Scaling,
}

/// Builds the measuring program and runs it.
pub fn run(options: &Options) -> Result<()> {
    let name = match options.what {
        None => return relay::run(&options.relay),
        Some(What::Datapath) => "bench-datapath",
        Some(What::Scaling) => {
            // It starts the proxy itself.
            build_measured("agent-fips-proxy", "agent-fips-proxy")?;
            "bench-scaling"
        }
    };
    sh::run(&mut Command::new(program(name)?))
}

/// Builds a measuring program of the tests' package, optimised; where it is.
fn program(name: &str) -> Result<PathBuf> {
    build_measured("agent-fips-proxy-tests", name)?;
    Ok(build::target().join("measure").join(name))
}

fn build_measured(package: &str, name: &str) -> Result<()> {
    sh::run(sh::cargo().args([
        "build",
        "--locked",
        "--profile",
        "measure",
        "--package",
        package,
        "--bin",
        name,
    ]))
}
