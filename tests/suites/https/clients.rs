//! Clients that nobody here wrote. Their environment is empty but for what `ca install` writes for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use harness::agent::{curl, go_client, python};
use harness::intake::{Answer, Seen};
use harness::world::{API_KEY, INTAKE4, INTAKE6, Setup, names};
use harness::{capture, check, check_eq, sha256};
use serde_json::json;

use super::Stage;

pub(super) const API: &str = "api.ddog-gov.com";

const DATADOG: &str = "
import os
from datadog import initialize, api
initialize(api_key=os.environ['KEY'], api_host='https://api.ddog-gov.com', mute=False)
print('ok', api.Metric.send(metric='a.b', points=1))
";

const API_CLIENT: &str = "
import os
from datadog_api_client import ApiClient, Configuration
from datadog_api_client.v1.api.authentication_api import AuthenticationApi
c = Configuration(enable_retry=False)
c.server_variables['site'] = 'ddog-gov.com'
c.api_key = {'apiKeyAuth': os.environ['KEY'], 'appKeyAuth': '0' * 40}
with ApiClient(c) as client:
    print('ok', AuthenticationApi(client).validate())
";

const NODE: &str = "
const body = require('fs').readFileSync(process.argv[1]);
const headers = {'DD-API-KEY': process.env.KEY, 'Content-Length': body.length};
const r = require('https').request('https://api.ddog-gov.com/api/v1/series', {method: 'POST', headers}, a => {
  a.resume(); a.on('end', () => console.log('ok', a.statusCode));
});
r.on('error', e => { console.log(e.code); process.exitCode = 1; });
r.end(body);
";

/// A client and how it is called.
pub(super) struct Client {
    pub(super) name: &'static str,
    words: Vec<String>,
    /// What it is called in `/proc/<pid>/comm`.
    pub(super) comm: &'static str,
    /// It speaks HTTP/2 with us.
    http2: bool,
    path: &'static str,
    /// It sends the file that it was given.
    sends: bool,
    /// It says by an alert that it does not trust; Node closes without a word after the handshake.
    pub(super) alerts: bool,
}

/// All of them; `file` is what they send.
pub(super) fn clients(file: &Path) -> Result<Vec<Client>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let file = file.display().to_string();
    let (data, key) = (format!("@{file}"), format!("DD-API-KEY: {API_KEY}"));
    let series = "/api/v1/series";
    let url = format!("https://{API}{series}");
    let curl = |version: &str| {
        let mut all = words(&["curl", "-sS", "--max-time", "60", version, "-H", &key]);
        all.extend(words(&[
            "--data-binary",
            &data,
            "-o",
            "/dev/null",
            "-w",
            "ok %{http_code}",
            &url,
        ]));
        all
    };
    let python = python()?.display().to_string();
    let go = go_client()?.display().to_string();
    let client = |name, words, comm, http2, sends, alerts| Client {
        name,
        words,
        comm,
        http2,
        path: series,
        sends,
        alerts,
    };
    Ok(vec![
        client("curl --http1.1", curl("--http1.1"), "curl", false, true, true),
        client("curl --http2", curl("--http2"), "curl", true, true, true),
        client(
            "Go",
            words(&[&go, "post", &url, &file]),
            "go-client",
            true,
            true,
            true,
        ),
        client(
            "datadog",
            words(&[&python, "-c", DATADOG]),
            "python",
            false,
            false,
            true,
        ),
        Client {
            path: "/api/v1/validate",
            ..client(
                "datadog-api-client",
                words(&[&python, "-c", API_CLIENT]),
                "python",
                false,
                false,
                true,
            )
        },
        client(
            "Node",
            words(&["node", "-e", NODE, &file]),
            "node",
            false,
            true,
            false,
        ),
    ])
}

/// Runs it in the Agent's cgroup, with this environment and no more. True when it got its answer.
pub(super) fn call(
    stage: &Stage,
    client: &Client,
    environment: &[(String, String)],
) -> Result<(bool, String)> {
    let path = std::env::var("PATH")?;
    let mut command: Command = stage.world.host.command("env");
    command
        .args([
            "-i",
            &format!("PATH={path}"),
            "HOME=/nonexistent",
            &format!("KEY={API_KEY}"),
        ])
        .args(environment.iter().map(|(name, value)| format!("{name}={value}")))
        .args(&client.words);
    let output = capture(&mut stage.agent.wrap(&command))?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output.status.success() && said.starts_with("ok"), said))
}

/// A file of 300,000 bytes that are not the same anywhere.
pub(super) fn body(stage: &Stage) -> Result<(PathBuf, Vec<u8>)> {
    let body: Vec<u8> = (0..300_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let file = stage.world.host.folder().join("body");
    std::fs::write(&file, &body)?;
    Ok((file, body))
}

pub(super) fn unchanged_with_an_http1_intake() -> Result<()> {
    unchanged(false)
}

pub(super) fn unchanged_with_an_http2_intake() -> Result<()> {
    unchanged(true)
}

/// Acceptance 1: each request arrives intact, once, with the right Host, over an approved suite, whatever HTTP the two sides
/// speak.
fn unchanged(http2: bool) -> Result<()> {
    let stage = Stage::new(Setup {
        http2,
        ..Setup::default()
    })?;
    let environment = stage.authority.environment()?;
    let names: Vec<&str> = environment.iter().map(|(name, _)| name.as_str()).collect();
    check_eq!(
        names,
        [
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "REQUESTS_CA_BUNDLE",
            "NODE_EXTRA_CA_CERTS"
        ],
        "variables for clients"
    );
    let proxy = stage.start(&json!({}))?;
    let validated = Answer::Status(200, r#"{"valid":true}"#.to_owned());
    stage.world.intake.answer("/api/v1/validate", validated);
    let (file, body) = body(&stage)?;
    for client in clients(&file)? {
        let (good, said) = call(&stage, &client, &environment)?;
        check!(good, "{}: {said}\n{}", client.name, proxy.log());
        let seen = stage.world.intake.take();
        check!(
            seen.len() == 1,
            "{}: {} requests: {seen:?}",
            client.name,
            seen.len()
        );
        arrived(&client, &seen[0], http2, &body)?;
        let http = if client.http2 { "2" } else { "1.1" };
        let line = proxy.access_line(|line| line["path"] == client.path && line["http"] == http)?;
        check_eq!(line["outcome"], json!("ok"), "{}: {line}", client.name);
        println!("{}: {}", client.name, told(&proxy)?);
    }
    check!(stage.world.leaks().is_empty(), "leaks: {:?}", stage.world.leaks());
    let status = proxy.status()?;
    check_eq!(status["https"]["handling"], json!("terminate"), "{status}");
    check_eq!(status["https"]["distrusting"], json!([]), "{status}");
    let sessions = status["https"]["sessions"].as_array().context("no sessions")?;
    check!(!sessions.is_empty(), "no session was counted: {status}");
    for session in sessions {
        let (suite, group) = (session["suite"].as_str(), session["group"].as_str());
        check!(
            suite.is_some_and(|suite| suite.contains("_GCM_")) && session["decision"] == "terminate",
            "{session}"
        );
        check!(
            group.is_some_and(|group| {
                ["secp256r1", "secp384r1", "X25519MLKEM768", "SecP256r1MLKEM768"].contains(&group)
            }),
            "{session}"
        );
    }
    // Agents' senders are Go: what the units' drop-ins hold is enough for them.
    let few: Vec<(String, String)> = environment.into_iter().take(2).collect();
    for client in clients(&file)?
        .iter()
        .filter(|client| ["Go", "curl --http2"].contains(&client.name))
    {
        let (good, said) = call(&stage, client, &few)?;
        check!(good, "{} with the Agents' variables: {said}", client.name);
    }
    Ok(())
}

fn arrived(client: &Client, seen: &Seen, http2: bool, body: &[u8]) -> Result<()> {
    let name = client.name;
    check_eq!(seen.path(), client.path, "{name}: path");
    check_eq!(seen.host, API, "{name}: Host");
    check_eq!(seen.session.sni.as_deref(), Some(API), "{name}: SNI");
    check_eq!(
        seen.http,
        if http2 { "2" } else { "1.1" },
        "{name}: HTTP to the intake"
    );
    check_eq!(seen.faults, Vec::<String>::new(), "{name}: faults");
    check_eq!(seen.header("dd-api-key"), Some(API_KEY), "{name}: key");
    check!(seen.session.suite.contains("_GCM_"), "{name}: {:?}", seen.session);
    if client.sends {
        check_eq!(seen.body_len, body.len() as u64, "{name}: length");
        check_eq!(seen.body_sha256, sha256(body), "{name}: digest");
    }
    Ok(())
}

/// What `status` says of sessions of Agents, for the record of the run.
fn told(proxy: &harness::proxy::Proxy<'_>) -> Result<String> {
    let sessions = &proxy.status()?["https"]["sessions"];
    Ok(sessions
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            format!(
                "{} {} {} x{}",
                one["version"], one["suite"], one["group"], one["sessions"]
            )
        })
        .collect::<Vec<_>>()
        .join("; ")
        .replace('"', ""))
}

/// Every name of the world, by both families, in both versions of HTTP.
pub(super) fn every_name() -> Result<()> {
    let stage = Stage::new(Setup::default())?;
    let proxy = stage.start(&json!({}))?;
    let ca = stage.authority.certificate()?.display().to_string();
    let key = format!("DD-API-KEY: {API_KEY}");
    for (family, address) in [("-4", INTAKE4), ("-6", INTAKE6)] {
        for (at, name) in names().iter().enumerate() {
            let version = ["--http1.1", "--http2"][at % 2];
            let words = [family, version, "--cacert", &ca, "-H", &key, "-d", "{}"];
            let url = format!("https://{name}/intake/");
            let answer = curl(
                &stage.world.host,
                Some(&stage.agent),
                &[&words[..], &[&url]].concat(),
            )?;
            check_eq!(answer.status, 202, "{name} {family}: {answer:?}\n{}", proxy.log());
            check_eq!(
                answer.peer,
                format!("{address} 443"),
                "{name}: the peer that the Agent sees"
            );
            let seen = stage.world.intake.take().remove(0);
            check_eq!(
                (seen.host.as_str(), seen.session.sni.as_deref(), seen.local.ip()),
                (name.as_str(), Some(name.as_str()), address),
                "{name}"
            );
        }
    }
    Ok(())
}
