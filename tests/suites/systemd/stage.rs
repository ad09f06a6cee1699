//! What the cases share: the world with the shipped unit on its host, and an Agent that talks.

use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use harness::agent::Report;
use harness::systemd::{AGENT, Systemd};
use harness::world::{API_KEY, VERSIONED, World};
use harness::{capture, sibling};
use serde_json::{Value, json};

/// The defaults, but for what the world needs: selectors, users and places are the shipped ones.
pub fn config() -> Value {
    json!({
        "site": harness::world::SITE,
        "log": {"level": "info", "format": "json", "access": true},
        "intercept": {"enabled": true, "agents": {"pods": {"api": "off"}}},
        "upstream": {"ca_file": "/etc/agent-fips-proxy/ca.pem"},
    })
}

/// A call that `SystemCallFilter=` does not allow ends its process, where the unit lets it fail.
pub const KILL: &str = "[Service]\nSystemCallErrorNumber=kill\n";

/// Where an Agent sends what is intercepted.
pub fn url() -> String {
    format!("http://{VERSIONED}/api/v2/series")
}

/// One request of a process in the Agent's unit: the status that curl saw, 0 for none, and what the answer said.
pub fn ask(machine: &Systemd<'_>) -> Result<(u16, String)> {
    ask_from(machine, AGENT, &[])
}

/// The same in another unit, through a program in front of curl.
pub fn ask_from(machine: &Systemd<'_>, unit: &str, through: &[&str]) -> Result<(u16, String)> {
    let (key, url) = (format!("DD-API-KEY: {API_KEY}"), url());
    let mut words = through.to_vec();
    words.extend([
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--max-time",
        "30",
        "-w",
        "\n%{http_code}",
        "-H",
        &key,
        &url,
    ]);
    let output = capture(&mut machine.within(unit, &words))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').context("curl did not run")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((status.parse()?, format!("{body}{errors}")))
}

/// The load client in the Agent's unit, until it is told to end.
pub struct Load(Child);

impl Load {
    /// New connections all the time, or connections that are kept.
    pub fn start(machine: &Systemd<'_>, kept: bool) -> Result<Self> {
        let (program, url) = (sibling("agent-load")?.display().to_string(), url());
        let (name, each) = if kept { ("kept", "1000000") } else { ("new", "1") };
        let words = [
            &program,
            "--url",
            &url,
            "--name",
            name,
            "--clients",
            "4",
            "--per-connection",
            each,
            "--body",
            "700",
            "--interval-ms",
            "3",
            "--retries",
            "5",
            "--api-key",
            API_KEY,
        ];
        let child = machine
            .within(AGENT, &words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start agent-load")?;
        Ok(Self(child))
    }

    /// Its report.
    pub fn finish(mut self) -> Result<Report> {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output()?;
        Ok(Report(
            serde_json::from_slice(&output.stdout).context("agent-load printed no report")?,
        ))
    }
}

/// Nothing that an Agent sent went around the proxy.
pub fn nothing_leaked(world: &World) -> Result<()> {
    harness::check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    Ok(())
}
