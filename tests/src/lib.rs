//! Harness of the suites in `tests/suites/`: everything around the real binary, made for one test and gone after it.
//!
//! - [`netns`]: a host and an outside world in network namespaces of their own, with a hosts file.
//! - [`cni`]: pods by the real CNI plug-ins, in cgroups as kubelet names them.
//! - [`kubernetes`]: a real one-node Kubernetes on such a host.
//! - [`cgroup`]: child cgroups of the unified hierarchy.
//! - [`ca`]: a certificate authority with good and bad leaves.
//! - [`clock`]: the wall clock of one process, moved.
//! - [`local_ca`]: the proxy's local authority, made as an operator makes it.
//! - [`intake`]: a strict TLS intake that records what it saw, and a plain listener that catches leaks.
//! - [`hostile`]: an intake that breaks on purpose, by a script of steps.
//! - [`dice`]: numbers that nobody can foresee.
//! - [`dns`]: a name server that knows no name.
//! - [`forward`]: a site's outbound proxy, strict about what it is asked.
//! - [`proxy`]: the binary under test: start, wait until ready, read its logs and metrics, stop.
//! - [`manager`]: a service manager that keeps descriptors, as systemd does.
//! - [`systemd`]: systemd itself, with the shipped unit, in namespaces.
//! - [`agent`]: clients: curl and our load client.
//! - [`steady`]: a load that runs throughout a case, and the account of what reached the intake.
//! - [`bpf`]: which kernel objects are ours, what is in their maps, and whether they are gone.
//! - [`held`]: memory, descriptors, threads and connections of processes.
//! - [`vendor`]: other people's classifiers, attached as they do it.
//! - [`wire`]: every packet that leaves a host, and whether it was TLS.
//! - [`bench`]: the relay benchmark: load, backend, peers, arithmetic and goals.
//! - [`suite`]: cases with needs; a missing need is a skip with its reason, and a failure when `CI=true`, unless it is another
//!   kernel.
//!
//! Nothing outside the namespaces is ever contacted. Namespaces live as long as a child process whose standard input
//! is a pipe from us: when a test dies, however it dies, the pipe closes and the kernel takes everything down.

pub mod agent;
pub mod bench;
pub mod bpf;
pub mod ca;
pub mod cgroup;
pub mod clock;
pub mod cni;
pub mod dice;
pub mod dns;
pub mod forward;
pub mod held;
pub mod hostile;
pub mod inject;
pub mod intake;
pub mod kubernetes;
pub mod local_ca;
pub mod manager;
pub mod netns;
pub mod plain;
pub mod proxy;
pub mod steady;
pub mod suite;
pub mod systemd;
pub mod vendor;
pub mod wire;
pub mod world;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A program that cargo built beside us: `agent-load`, or the proxy itself in the same profile.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find our own executable")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("{name} is not built; `cargo xtask test` builds it"))
}

/// Runs a command to its end with both outputs captured; fails when it cannot be started.
pub fn capture(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}

/// Runs a command and returns standard output; fails with both outputs when the command fails.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = capture(command)?;
    if !output.status.success() {
        bail!(
            "{} {:?} failed: {}\n{}{}",
            command.get_program().to_string_lossy(),
            command.get_args().collect::<Vec<_>>(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// This long, or its multiple: `AGENT_FIPS_PROXY_TEST_PATIENCE` says by how much an emulated machine is slower.
pub fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("AGENT_FIPS_PROXY_TEST_PATIENCE").ok();
    limit * factor.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Asks again every 20 ms until `probe` answers, for at most `limit` ([`patient`]); `what` names the thing in the error.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let limit = patient(limit);
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > limit {
            return Err(last.unwrap_or_else(|| anyhow::anyhow!("the condition never held")))
                .with_context(|| format!("{what}: not within {limit:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The running kernel's version, major and minor.
pub fn kernel() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("not a kernel release: {release}"),
    }
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
