//! The two ends: the load generator notices answers that are not the backend's, the backend requests that are not an Agent's.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::bench::NAME;
use harness::ca::{Authority, Fault};
use harness::{check, check_eq, sibling};
use serde_json::{Value, json};

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}";

/// Answers every request with these bytes, after a pause before the first, for as long as the test runs.
fn server(answer: &'static str, close: bool, pause: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        let mut pause = Some(pause);
        for mut stream in listener.incoming().flatten() {
            let first = pause.take();
            std::thread::spawn(move || {
                std::thread::sleep(first.unwrap_or_default());
                let mut space = [0; 4096];
                // Requests of these cases have no body and come in one piece.
                while stream.read(&mut space).is_ok_and(|length| length > 0) {
                    if stream.write_all(answer.as_bytes()).is_err() || close {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// Runs the load generator for 200 ms without a warm-up; its report.
fn load(address: SocketAddr, mode: &str, more: &[&str]) -> Result<Value> {
    let mut child = Command::new(sibling("bench-relay")?)
        .args([
            "load",
            "--mode",
            mode,
            "--connect",
            &address.to_string(),
            "--body",
            "0",
        ])
        .args(["--connections", "1", "--warmup-ms", "0", "--window-ms", "200"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    check_eq!(lines.next().context("no word")??, "warm", "the first word");
    let mut input = child.stdin.take().context("no input")?;
    writeln!(input, "go")?;
    let line = lines.next().context("no report")??;
    drop(input);
    check!(child.wait()?.success(), "the load generator failed");
    Ok(serde_json::from_str(&line)?)
}

pub fn wrong_answers_are_errors() -> Result<()> {
    let report = load(server(GOOD, false, Duration::ZERO)?, "kept", &[])?;
    check!(report["requests"].as_u64() > Some(0), "{report}");
    check_eq!(report["errors"], json!({}), "{report}");
    check!(report["p50_ns"].as_u64() > Some(0), "{report}");
    let report = load(server(GOOD, true, Duration::ZERO)?, "new", &[])?;
    check!(report["requests"].as_u64() > Some(0), "{report}");
    check_eq!(report["errors"], json!({}), "{report}");
    for (answer, close, mode, kind) in [
        (
            "HTTP/1.1 503 No\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}",
            false,
            "kept",
            "status 503",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"no\"}",
            false,
            "kept",
            "not the backend's answer",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}HTTP/1.1 200 OK",
            false,
            "kept",
            "not the backend's answer",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"status\":\"ok\"} ",
            false,
            "kept",
            "not the backend's Content-Length",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"stat",
            true,
            "kept",
            "closed without an answer",
        ),
        ("SSH-2.0-x\r\n\r\n", false, "kept", "not HTTP"),
        (GOOD, false, "new", "not closed"),
    ] {
        for mode in [mode, if mode == "kept" { "paced" } else { mode }] {
            let report = load(server(answer, close, Duration::ZERO)?, mode, &[])?;
            check!(
                report["errors"][kind].as_u64() > Some(0),
                "{mode}: {answer:?} gave {report}, not `{kind}`"
            );
        }
    }
    Ok(())
}

/// Open loop: a server that answers late by 150 ms is late for the requests that were due meanwhile, too.
pub fn a_stall_is_not_hidden() -> Result<()> {
    let late = server(GOOD, false, Duration::from_millis(150))?;
    let report = load(late, "paced", &["--rate", "100"])?;
    check_eq!(
        report["requests"],
        json!(20),
        "one every 10 ms for 200 ms: {report}"
    );
    // Those due at 0, 10, 20, … 70 ms wait for 80 ms and longer. In a closed loop only the first would.
    check!(
        report["p50_ns"].as_u64() > Some(40_000_000),
        "half of them: {report}"
    );
    check!(
        report["max_ns"].as_u64() > Some(140_000_000),
        "the first: {report}"
    );
    Ok(())
}

/// The backend as a process, and what it counted.
struct Backend {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Backend {
    fn start(address: SocketAddr, pem: &std::path::Path) -> Result<Self> {
        let mut child = Command::new(sibling("bench-relay")?)
            .args(["backend", "--listen", &address.to_string(), "--pem"])
            .arg(pem)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        check_eq!(lines.next().context("no word")??, "ready", "the first word");
        Ok(Self { child, lines })
    }

    fn counters(&mut self) -> Result<Value> {
        writeln!(self.child.stdin.as_mut().context("no input")?, "counters")?;
        Ok(serde_json::from_str(&self.lines.next().context("no answer")??)?)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wrong_requests_are_faults() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let (pem, roots) = (folder.path().join("leaf.pem"), folder.path().join("ca.pem"));
    std::fs::write(&pem, authority.leaf(&[NAME.to_owned()], Fault::None)?.pem)?;
    std::fs::write(&roots, authority.pem())?;
    let roots = roots.display().to_string();
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut backend = Backend::start(free, &pem)?;
    for mode in ["kept", "new", "paced"] {
        let before = backend.counters()?;
        let body = if mode == "kept" { "3000000" } else { "70000" };
        let report = load(free, mode, &["--roots", &roots, "--body", body])?;
        let after = backend.counters()?;
        let grown = |name: &str| Some(after[name].as_u64()? - before[name].as_u64()?);
        check_eq!(report["errors"], json!({}), "{mode}: {report}");
        check!(grown("requests") > Some(0), "{mode}: {after}");
        check_eq!(grown("requests"), report["requests"].as_u64(), "{mode}: requests");
        let bytes = report["requests"]
            .as_u64()
            .map(|count| count * body.parse().unwrap_or(0));
        check_eq!(grown("bytes"), bytes, "{mode}: bytes of bodies");
        if mode == "new" {
            check_eq!(grown("connections"), report["requests"].as_u64(), "connections");
            check!(grown("resumed") > Some(0), "sessions are resumed: {after}");
        }
        check_eq!(after["faults"], json!({}), "{mode}: faults");
    }
    let suites = backend.counters()?["suites"].clone();
    let names: Vec<&String> = suites.as_object().context("no suites")?.keys().collect();
    check_eq!(names, [harness::bench::SUITE], "suites");
    let report = load(free, "kept", &["--roots", &roots, "--host", "localhost"])?;
    check!(
        report["errors"]
            .as_object()
            .is_some_and(|errors| !errors.is_empty()),
        "{report}"
    );
    let faults = backend.counters()?["faults"].clone();
    check!(
        faults["request: not the intake's Host"].as_u64() > Some(0),
        "another Host is a fault: {faults}"
    );
    // A client that trusts somebody else gets no further than the handshake.
    std::fs::write(folder.path().join("other.pem"), Authority::new()?.pem())?;
    let other = folder.path().join("other.pem").display().to_string();
    let report = load(free, "kept", &["--roots", &other])?;
    check_eq!(report["requests"], json!(0), "{report}");
    Ok(())
}
