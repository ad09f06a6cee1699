//! Clients: curl, which nobody here wrote, the PyPI package `datadog`, and our load client `agent-load`.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::netns::Host;
use crate::world::API_KEY;
use crate::{capture, sibling, succeed};

/// The versions of the PyPI packages that the cases were written with.
const DATADOG: [&str; 2] = ["datadog==0.56.0", "datadog-api-client==2.62.0"];

/// What curl saw.
#[derive(Debug)]
pub struct Curl {
    /// 0 when no response came.
    pub status: u16,
    /// The peer as `getpeername` told it, `address port`.
    pub peer: String,
    /// The response body.
    pub body: String,
    /// curl's exit code: 7 refused, 52 empty reply, 56 reset.
    pub exit: i32,
    /// curl's message.
    pub error: String,
}

/// Runs curl on a host, in a cgroup if one is given; `words` are its options and the URL.
pub fn curl(host: &Host, cgroup: Option<&Cgroup>, words: &[&str]) -> Result<Curl> {
    const MARK: &str = "\n#curl# ";
    let mut command = host.command("curl");
    command
        .args(["-sS", "--noproxy", "*", "--max-time", "30", "-w"])
        .arg(format!("{MARK}%{{http_code}} %{{remote_ip}} %{{remote_port}}"))
        .args(words);
    let output = capture(&mut enter(cgroup, command))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let Some((body, facts)) = text.rsplit_once(MARK) else {
        bail!("curl did not run: {error}")
    };
    let (status, peer) = facts.split_once(' ').context("curl -w")?;
    Ok(Curl {
        status: status.parse()?,
        peer: peer.to_owned(),
        body: body.to_owned(),
        exit: output.status.code().unwrap_or(-1),
        error,
    })
}

/// The same with the key that the intake takes.
pub fn ask(host: &Host, cgroup: Option<&Cgroup>, words: &[&str]) -> Result<Curl> {
    let key = format!("DD-API-KEY: {API_KEY}");
    curl(host, cgroup, &[&["-H", &key], words].concat())
}

/// A load client at work.
pub struct Load {
    child: Child,
}

/// A try that was not answered 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The status, or how the connection failed: `502`, `closed_without_response`.
    pub why: String,
    /// The client's port; none when there was no connection.
    pub port: Option<u16>,
}

impl Failed {
    /// The connection ended without an answer.
    pub fn broke(&self) -> bool {
        self.port.is_some() && self.why.parse::<u16>().is_err()
    }
}

/// What a load client counted; see `src/bin/agent_load.rs`.
#[derive(Debug)]
pub struct Report(pub Value);

impl Load {
    /// Starts `agent-load` with these options.
    pub fn start(host: &Host, cgroup: Option<&Cgroup>, words: &[&str]) -> Result<Self> {
        let mut command = host.command(sibling("agent-load")?);
        command.args(words);
        let child = enter(cgroup, command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot start agent-load")?;
        Ok(Self { child })
    }

    /// So many clients with one request each, and the words that make it a special one.
    pub fn once(
        host: &Host,
        cgroup: Option<&Cgroup>,
        url: &str,
        clients: u32,
        more: &[&str],
    ) -> Result<Self> {
        let clients = clients.to_string();
        let words = [
            "--url",
            url,
            "--clients",
            &clients,
            "--requests",
            &clients,
            "--api-key",
            API_KEY,
        ];
        Self::start(host, cgroup, &[&words, more].concat())
    }

    /// Ends it if it runs until told, and takes its report.
    pub fn finish(mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        self.report()
    }

    /// Waits until it has done what it was told, and takes its report.
    pub fn wait(self) -> Result<Report> {
        self.report()
    }

    fn report(self) -> Result<Report> {
        let output = self.child.wait_with_output()?;
        if !output.status.success() {
            bail!("agent-load failed: {}", output.status);
        }
        Ok(Report(
            serde_json::from_slice(&output.stdout).context("agent-load printed no report")?,
        ))
    }
}

impl Report {
    /// A top-level count.
    pub fn count(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or(0)
    }

    /// Responses with this status.
    pub fn status(&self, status: u16) -> u64 {
        self.0["statuses"][status.to_string()].as_u64().unwrap_or(0)
    }

    /// The ids of requests that were sent again, each with what became of every try before the last.
    pub fn again(&self) -> BTreeMap<String, Vec<Failed>> {
        let requests = self.0["again"].as_object().into_iter().flatten();
        requests
            .map(|(id, tries)| {
                let tries = tries.as_array().into_iter().flatten();
                let tries = tries.map(|one| Failed {
                    why: one["why"].as_str().unwrap_or_default().to_owned(),
                    port: one["port"].as_u64().and_then(|port| u16::try_from(port).ok()),
                });
                (id.clone(), tries.collect())
            })
            .collect()
    }

    /// Failures of this kind.
    pub fn errors(&self, kind: &str) -> u64 {
        self.0["errors"][kind].as_u64().unwrap_or(0)
    }

    /// Every attempt was answered with this status, and there was one.
    pub fn all(&self, status: u16) -> bool {
        self.count("attempts") > 0 && self.status(status) == self.count("attempts")
    }
}

/// The Python of `target/venv` with the packages of [`DATADOG`], made on first use.
pub fn python() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no checkout")?;
    let venv = root.join("target/venv");
    let python = venv.join("bin/python");
    let there = || {
        capture(Command::new(&python).args(["-c", "import datadog, datadog_api_client"]))
            .is_ok_and(|o| o.status.success())
    };
    if !there() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        succeed(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(DATADOG),
        )?;
    }
    Ok(python)
}

/// The client of `tests/clients/go` in `target/clients`, built when it is older than its source. Standard library only.
pub fn go_client() -> Result<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = tests.join("clients/go/main.go");
    let folder = tests.parent().context("no checkout")?.join("target/clients");
    let program = folder.join("go-client");
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let fresh = matches!((changed(&program), changed(&source)), (Ok(built), Ok(source)) if built > source);
    if !fresh {
        std::fs::create_dir_all(&folder)?;
        succeed(
            Command::new("go")
                .args(["build", "-o"])
                .arg(&program)
                .arg(&source)
                .env("GO111MODULE", "off")
                .env("GOFLAGS", "")
                .env("GOCACHE", folder.join("go-cache")),
        )?;
    }
    Ok(program)
}

/// Runs a Python script on a host, in a cgroup if one is given; its standard output.
pub fn run_python(host: &Host, cgroup: Option<&Cgroup>, script: &str) -> Result<String> {
    let mut command = host.command(python()?);
    command.args(["-c", script]);
    succeed(&mut enter(cgroup, command))
}

fn enter(cgroup: Option<&Cgroup>, command: Command) -> Command {
    match cgroup {
        Some(cgroup) => cgroup.wrap(&command),
        None => command,
    }
}
