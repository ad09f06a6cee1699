//! The kernel side for real: programs, maps, cgroups and connections on the running kernel, without the rest of the
//! proxy. What the relay does is not tested here; who reaches whom, and what each side is told, is.
//!
//! Every scenario is a process of its own (this binary again) in its own network and mount namespace with its own
//! bpffs, so that scenarios run beside each other and leave nothing. Destinations are 203.0.113.0/24 and 2001:db8::/64,
//! local to that namespace. Without root the scenarios are skipped with the reason; with `CI=true` that is a failure. What a
//! kernel does not have is said in any case.

#[path = "datapath/agent.rs"]
mod agent;
#[path = "datapath/scenarios.rs"]
mod scenarios;
#[path = "datapath/world.rs"]
mod world;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use harness::suite::row;
use libtest_mimic::Arguments;

/// Set for the processes of a scenario: what to be, and its arguments.
const ROLE: &str = "AFP_DATAPATH_ROLE";
/// A scenario that hangs is killed after so many seconds: the longest takes some.
const PATIENCE: u64 = 90;

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(ROLE) {
        return child(&role);
    }
    let trials = scenarios::ALL
        .iter()
        .map(|(name, _)| row(name, scenarios::needs(name), || run_scenario(name)))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// One of the processes of a scenario.
fn child(role: &str) -> ExitCode {
    let (kind, rest) = role.split_once(' ').unwrap_or((role, ""));
    let result = match kind {
        "agent" => agent::run(rest),
        "loader" => scenarios::loader(rest),
        "acceptor" => scenarios::acceptor(rest),
        "asker" => scenarios::asker(rest),
        "heir" => agent::heir(rest),
        _ => scenarios::run(rest),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_scenario(name: &str) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(ROLE, format!("scenario {name}"))
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    // Read while it runs: a full pipe would stop it.
    let stderr = child
        .stderr
        .take()
        .map(|pipe| std::thread::spawn(move || std::io::read_to_string(pipe)));
    let patience = patience();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    world::clean_up(child.id());
    let output = stderr
        .and_then(|reader| reader.join().ok())
        .and_then(Result::ok)
        .unwrap_or_default();
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{status}\n{output}"),
        None => bail!("killed after {patience:?}\n{output}"),
    }
}

fn patience() -> Duration {
    seconds(PATIENCE)
}

/// So many seconds, or their multiple.
fn seconds(number: u64) -> Duration {
    harness::patient(Duration::from_secs(number))
}
