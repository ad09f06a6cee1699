//! The benchmark from end to end with the binary under test, for moments: that figures are there and nothing failed, never how large they are.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::bench::SUITE;
use harness::proxy::binary;
use harness::{capture, check, check_eq, eventually, sibling};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn bench(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(sibling("bench-relay")?);
    command
        .env("AGENT_FIPS_PROXY_BIN", binary()?)
        .arg("run")
        .args(words);
    Ok(command)
}

/// Runs it; the table and the raw figures.
fn run(words: &[&str]) -> Result<(String, Value)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("raw.json");
    let mut command = bench(words)?;
    command
        .args(["--rounds", "1", "--seconds", "1", "--json"])
        .arg(&file);
    let output = capture(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check!(output.status.success(), "{}: {said}", output.status);
    let raw = std::fs::read(&file).context(said)?;
    Ok((text, serde_json::from_slice(&raw)?))
}

/// Every round has its figures, and nothing failed.
fn sound(raw: &Value, expected: &[(&str, &str)]) -> Result<()> {
    let rounds = raw["rounds"].as_array().context("no rounds")?;
    let mut seen: Vec<(&str, &str)> = rounds
        .iter()
        .filter_map(|round| Some((round["workload"].as_str()?, round["peer"].as_str()?)))
        .collect();
    seen.sort_unstable();
    // W7 has several rounds where the others have one.
    seen.dedup();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    check_eq!(seen, expected, "rounds");
    for round in rounds {
        check_eq!(round["errors"], json!({}), "{round:#}");
        for figure in [
            "requests",
            "elapsed_ns",
            "p50_ns",
            "p99_ns",
            "client_cpu_ns",
            "backend_cpu_ns",
        ] {
            check!(round[figure].as_u64() > Some(0), "{figure} in {round:#}");
        }
        let cpu = round["cpu_ns"].as_u64() > Some(0);
        check_eq!(
            cpu,
            round["peer"] != "direct",
            "CPU time of the peer in {round:#}"
        );
    }
    // A kept connection may serve several rounds, so not every one sees a handshake.
    check!(
        rounds.iter().any(|round| round["suites"] == SUITE),
        "no suite was seen"
    );
    Ok(())
}

pub fn relays() -> Result<()> {
    let (text, raw) = run(&["--peers", "ours,direct", "--workloads", "W1,W3,W4,W5"])?;
    let expected: Vec<(&str, &str)> = ["W1", "W3", "W4", "W5"]
        .into_iter()
        .flat_map(|workload| [(workload, "ours"), (workload, "direct")])
        .collect();
    sound(&raw, &expected)?;
    check!(text.contains("| ours |") && text.contains("### W4"), "{text}");
    // haproxy was left out: its ratios are missing, and the gate would say so.
    let goals = raw["goals"].as_array().context("no goals")?;
    let missing = goals
        .iter()
        .filter(|goal| goal["measured"].is_null() && goal["pass"] == false)
        .count();
    check!(missing > 0, "{goals:?}");
    let mut gate = bench(&["--peers", "ours", "--workloads", "W5", "--gate"])?;
    let status = gate
        .args(["--rounds", "1", "--seconds", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    check_eq!(status.code(), Some(1), "the gate without haproxy");
    Ok(())
}

pub fn interception() -> Result<()> {
    let (text, raw) = run(&["--peers", "ours", "--workloads", "W7,W8"])?;
    let variants = [
        "explicit",
        "cgroup",
        "explicit in a pod",
        "cgroup in a pod",
        "explicit from a pod",
        "tc from a pod, upstream.network host",
        "tc from a pod",
    ];
    let mut expected: Vec<(&str, &str)> = ["W7 kept", "W7 new"]
        .into_iter()
        .flat_map(|load| variants.map(|variant| (load, variant)))
        .collect();
    expected.push(("W8", "ours"));
    sound(&raw, &expected)?;
    check!(text.contains("| tc from a pod |"), "{text}");
    Ok(())
}

/// The benchmark of the kernel programs: every program that is attached to anything has a row in which it ran, and rows that no
/// program should meet met none.
pub fn datapath() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("raw.json");
    let mut command = Command::new(sibling("bench-datapath")?);
    command.args(["--rounds", "1", "--json"]).arg(&file);
    let output = capture(&mut command)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check!(output.status.success(), "{}: {said}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let raw: Value = serde_json::from_slice(&std::fs::read(&file).context(said)?)?;
    let parts = raw["parts"].as_array().context("no parts")?;
    check_eq!(parts.len(), 3, "parts");
    let mut ran = std::collections::BTreeSet::new();
    for part in parts {
        let times = part["times"].as_array().context("no times")?;
        let runs = part["runs"]
            .as_array()
            .with_context(|| format!("{}", part["runs"]))?;
        for row in times {
            for side in ["off_ns", "on_ns"] {
                check!(row[side][0].as_f64() > Some(0.0), "{side} in {row:#}");
            }
            let what = row["what"].as_str().context("a row without a name")?;
            check!(text.contains(what), "{what} is not in the table");
            let met = runs
                .iter()
                .any(|run| run["what"] == row["what"] && run["family"] == row["family"]);
            // Established connections of the hooks' datapath, those of the node itself, and processes that are nobody's.
            let nobodys = what.contains("outside of")
                || what.starts_with("round trip of an Agent")
                || what.ends_with("loopback, TCP");
            check_eq!(met, !nobodys, "whether a program ran: {row:#}");
        }
        ran.extend(runs.iter().filter_map(|run| run["program"].as_str()));
    }
    let expected = [
        "classify",
        "connect4",
        "connect6",
        "getpeername4",
        "getpeername6",
        "handover",
        "original_dst",
        "own_handover",
        "pick",
    ];
    check_eq!(Vec::from_iter(ran), expected, "programs that ran");
    Ok(())
}

/// Stopped in the middle, it takes its processes with it, and its files unless it was killed.
pub fn an_interruption_leaves_nothing() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        // Its files go here, so that those which a killed one cannot remove go with this folder. The worker is another user.
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()?;
        let mut child = bench(&["--peers", "ours,direct", "--workloads", "W1"])?
            .args(["--rounds", "1", "--seconds", "30"])
            .env("TMPDIR", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let root = child.id();
        let below = eventually("the run is under way", Duration::from_secs(60), || {
            let all = harness::bench::process::trees(&[root])?;
            let loads = all.iter().any(|pid| {
                let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.contains("--window-ms")
            });
            Ok(loads.then_some(all))
        })?;
        // Besides it and the client: the namespace's holder, the backend, master and worker.
        check!(below.len() >= 6, "{below:?}");
        kill(Pid::from_raw(i32::try_from(root)?), signal)?;
        let status = child.wait()?;
        check!(!status.success(), "{signal}: {status}");
        eventually("everything below it ended", Duration::from_secs(20), || {
            let alive = |pid: &i32| {
                let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                // A zombie waits for whoever inherited it.
                !text.is_empty() && !text.contains(") Z ")
            };
            let left: Vec<&i32> = below.iter().filter(|pid| alive(pid)).collect();
            check!(left.is_empty(), "{signal} left {left:?}");
            Ok(Some(()))
        })?;
        let files = folder.path().read_dir()?.count();
        check!(
            signal == Signal::SIGKILL || files == 0,
            "{signal} left {files} files"
        );
    }
    Ok(())
}
