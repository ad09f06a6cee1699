//! `cargo xtask bench`: measurements against peers in the same run, as ratios, and of growth. They decide no test; `--gate`
//! decides for itself, and counts of instructions, which no load on the machine changes, decide in CI.

pub mod instructions;
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
    /// Cost of each kernel program per packet, connection and call, against none (root, some three minutes)
    Datapath(DatapathOptions),
    /// How cost grows with connections, Agents, pods, cgroups, networks and names (root, some ten minutes)
    Scaling,
    /// Instructions of each step of a request, against proxy/counts/record.json; fails above 5 % more or less
    Instructions(instructions::Options),
}

/// Options of `cargo xtask bench datapath`.
#[derive(clap::Args)]
struct DatapathOptions {
    /// How often programs are switched off and on
    #[arg(long, value_name = "N", default_value_t = 100)]
    rounds: u32,
    /// Where every round's raw figures go, in place of target/bench/datapath.json
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// Builds the measuring program and runs it.
pub fn run(options: &Options) -> Result<()> {
    match &options.what {
        None => relay::run(&options.relay),
        Some(What::Datapath(options)) => {
            let mut command = Command::new(program("bench-datapath")?);
            command.args(["--rounds", &options.rounds.to_string(), "--json"]);
            let json = options.json.clone();
            sh::run(command.arg(json.unwrap_or_else(|| build::target().join("bench/datapath.json"))))
        }
        Some(What::Scaling) => {
            // It starts the proxy itself.
            build_measured("agent-fips-proxy", "agent-fips-proxy")?;
            sh::run(&mut Command::new(program("bench-scaling")?))
        }
        Some(What::Instructions(options)) => instructions::run(options),
    }
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
