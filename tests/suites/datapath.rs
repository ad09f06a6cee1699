//! The kernel side for real: programs, maps, cgroups and connections on the running kernel, without the rest of the
//! proxy. What the relay does is not tested here; who reaches whom, and what each side is told, is.
//!
//! Every scenario is a process of its own (this binary again) in its own network and mount namespace with its own
//! bpffs, so that scenarios run beside each other and leave nothing. Destinations are 203.0.113.0/24 and 2001:db8::/64,
//! local to that namespace. Without root the scenarios are skipped with the reason; with `CI=true` that is a failure.

#[path = "datapath/agent.rs"]
mod agent;
#[path = "datapath/scenarios.rs"]
mod scenarios;
#[path = "datapath/world.rs"]
mod world;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

/// Set for the processes of a scenario: what to be, and its arguments.
const ROLE: &str = "AFP_DATAPATH_ROLE";
/// A scenario that hangs is killed after so many seconds: the longest takes some.
const PATIENCE: u64 = 90;

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(ROLE) {
        return child(&role);
    }
    let arguments = Arguments::from_args();
    let obstacle = world::obstacle();
    let trials = scenarios::ALL
        .iter()
        .map(|(name, _)| trial(name, obstacle.clone()))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
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

fn trial(name: &'static str, obstacle: Option<String>) -> Trial {
    match obstacle {
        None => Trial::test(name, move || run_scenario(name)),
        // A test that cannot run says so; where everything must run it is a failure.
        Some(reason) if std::env::var("CI").as_deref() == Ok("true") => {
            Trial::test(name, move || Err(Failed::from(format!("cannot run: {reason}"))))
        }
        Some(reason) => Trial::test(format!("{name} (skipped: {reason})"), || Ok(())).with_ignored_flag(true),
    }
}

fn run_scenario(name: &str) -> Result<(), Failed> {
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
        Some(status) => Err(format!("{status}\n{output}").into()),
        None => Err(format!("killed after {patience:?}\n{output}").into()),
    }
}

fn patience() -> Duration {
    seconds(PATIENCE)
}

/// So many seconds, or their multiple.
fn seconds(number: u64) -> Duration {
    harness::patient(Duration::from_secs(number))
}
