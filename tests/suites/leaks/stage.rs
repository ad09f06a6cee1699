//! What the cases have in common: a far end that holds connections open, an Agent that does, and what the proxy says.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::{Curl, curl};
use harness::cgroup::Cgroup;
use harness::netns::Host;
use harness::proxy::Proxy;
use harness::world::{VERSIONED, World};
use harness::{check, check_eq, eventually};
use serde_json::{Value, json};

pub const LIMIT: Duration = Duration::from_secs(30);
/// An intake by its address alone: `intercept.cidrs` names it.
pub const HELD: &str = "203.0.113.77";
/// What one leaked connection is told with, and what the alarm begins with.
pub const LINE: &str = "an intake connection did not pass through the proxy";
const ALARM: &str = "LEAK: intake connections of an Agent did not pass through the proxy";

/// One request of an Agent on the host.
pub fn ask(world: &World, agent: &Cgroup, words: &[&str]) -> Result<Curl> {
    let url = format!("http://{VERSIONED}/ask");
    let key = format!("DD-API-KEY: {}", harness::world::API_KEY);
    let words: Vec<&str> = ["-4", "-H", &key, &url]
        .into_iter()
        .chain(words.iter().copied())
        .collect();
    curl(&world.host, Some(agent), &words)
}

/// The agent that a cgroup is, as leaks are told of it.
pub fn name(cgroup: &Cgroup) -> String {
    format!("cgroup {}", cgroup.inside())
}

/// Agent, reason and number of every leak that the status shows.
pub fn leaked(proxy: &Proxy<'_>) -> Result<Vec<(String, String, u64)>> {
    let status = proxy.status()?;
    let leaked = status["interception"]["leaked"]
        .as_array()
        .with_context(|| format!("no figures of leaks in {status}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(leaked
        .iter()
        .map(|leak| {
            let count = leak["connections"].as_u64().unwrap_or_default();
            (text(&leak["agent"]), text(&leak["reason"]), count)
        })
        .collect())
}

/// Exactly these leaks, in status, in metrics, in the text of `status`.
pub fn expect(proxy: &Proxy<'_>, expected: &[(String, &str, u64)]) -> Result<()> {
    let wanted: Vec<_> = expected
        .iter()
        .map(|(agent, reason, count)| (agent.clone(), (*reason).to_owned(), *count))
        .collect();
    eventually("the figures of leaks", LIMIT, || {
        let found = leaked(proxy)?;
        check_eq!(found, wanted, "leaks");
        Ok(Some(()))
    })
    .with_context(|| proxy.log())?;
    eventually("the metrics of leaks", LIMIT, || {
        let metrics = proxy.metrics()?;
        let of = |labels: &[(&str, &str)]| metrics.sum("agent_fips_proxy_leaked_connections_total", labels);
        for (agent, reason, count) in &wanted {
            let found = of(&[("agent", agent), ("reason", reason)]);
            check!((found - *count as f64).abs() < 0.5, "{agent} {reason}: {found}");
        }
        let all: u64 = wanted.iter().map(|(_, _, count)| count).sum();
        check!((of(&[]) - all as f64).abs() < 0.5, "all: {}", of(&[]));
        Ok(Some(()))
    })?;
    let text = String::from_utf8(proxy.cli(&["status"])?.stdout)?;
    for (agent, reason, count) in &wanted {
        let line = format!("{agent}: {count} connections ({reason}), the last to ");
        check!(
            text.contains("LEAKED") && text.contains(&line),
            "`{line}` is not in\n{text}"
        );
    }
    check_eq!(text.contains("LEAKED"), !wanted.is_empty(), "{text}");
    Ok(())
}

/// The fields of every log line whose message begins so.
pub fn lines(proxy: &Proxy<'_>, message: &str, level: &str) -> Vec<Value> {
    proxy
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["level"] == level)
        .map(|mut line| line["fields"].take())
        .filter(|fields| {
            fields["message"]
                .as_str()
                .is_some_and(|text| text.starts_with(message))
        })
        .collect()
}

/// Alarms were raised for these connections of this Agent, and for no more.
pub fn alarmed(proxy: &Proxy<'_>, agent: &str, reason: &str, at_least: u64) -> Result<()> {
    eventually("the alarm", LIMIT, || {
        let sum: u64 = lines(proxy, ALARM, "ERROR")
            .iter()
            .filter(|alarm| alarm["agent"] == agent && alarm["reason"] == reason)
            .filter_map(|alarm| alarm["connections"].as_u64())
            .sum();
        Ok((sum >= at_least).then_some(()))
    })
    .with_context(|| proxy.log())
}

/// Reads the configuration again, which is a reason to look at what is open, and has that done.
pub fn reload(proxy: &Proxy<'_>) -> Result<()> {
    proxy.reload()?;
    // Answered after a look.
    proxy.status().map(drop)
}

/// Accepts connections to [`HELD`] and keeps them.
pub fn keep(world: &World) -> Result<()> {
    world.net.ip(&format!("address add {HELD}/32 dev lo"))?;
    let address: SocketAddr = format!("{HELD}:443").parse()?;
    let listener = world.net.within(|| Ok(TcpListener::bind(address)?))?;
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if stream.write_all(b"kept\n").is_ok() {
                kept.push(stream);
            }
        }
    });
    Ok(())
}

/// The configuration with [`HELD`] among the intakes.
pub fn with_held(mut config: Value) -> Value {
    config["intercept"]["cidrs"] = json!([format!("{HELD}/32")]);
    config
}

/// A client that holds a connection to [`HELD`]; it is not a word of HTTP or TLS.
pub struct Held(Child);

impl Held {
    pub fn open(host: &Host, cgroup: Option<&Cgroup>) -> Result<Self> {
        let script = format!(
            "exec 3<>/dev/tcp/{HELD}/443 && echo held >&3 && read -r word <&3 && echo \"$word\" && exec cat <&3"
        );
        let mut command = host.command("bash");
        command.args(["-c", &script]);
        if let Some(cgroup) = cgroup {
            command = cgroup.wrap(&command);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.as_mut().context("stdout")?;
        BufReader::new(output).read_line(&mut line)?;
        let this = Self(child);
        check_eq!(line, "kept\n", "what the far end said");
        Ok(this)
    }

    /// The connection is open still.
    pub fn is_open(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// The connection ends, and not by the client.
    pub fn is_cut(&mut self) -> Result<()> {
        let child = &mut self.0;
        eventually("the end of a connection", LIMIT, || Ok(child.try_wait()?)).map(drop)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Our own child; gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
