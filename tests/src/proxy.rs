//! The binary under test: start it on a host, wait until it is ready, read what it says, stop it.

mod life;
mod metrics;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::manager::Manager;
use crate::netns::Host;
use crate::{capture, eventually, patient, sibling};

pub use metrics::Metrics;

/// Where the status page is.
const STATUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9803);
/// How long a start may take; a debug build on a busy two-core machine needs most of it.
const START: Duration = Duration::from_secs(60);

/// The binary: `AGENT_FIPS_PROXY_BIN`, or the one that cargo built in our profile.
pub fn binary() -> Result<PathBuf> {
    let Some(path) = std::env::var_os("AGENT_FIPS_PROXY_BIN") else {
        return sibling("agent-fips-proxy");
    };
    // cargo runs a suite in its package's folder; whoever set the variable stood in the checkout.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no checkout")?;
    std::fs::canonicalize(root.join(&path))
        .with_context(|| format!("AGENT_FIPS_PROXY_BIN={}", path.display()))
}

/// How to start the proxy.
pub struct Launch<'a> {
    host: &'a Host,
    cgroup: Option<&'a Cgroup>,
    config: Option<PathBuf>,
    env: Vec<(String, String)>,
    words: Vec<String>,
    prefix: Vec<String>,
    unread: bool,
    program: Option<PathBuf>,
    manager: Option<&'a Manager>,
}

impl<'a> Launch<'a> {
    /// Starts on `host` with `run` and an otherwise empty environment.
    pub fn new(host: &'a Host) -> Self {
        Self {
            host,
            cgroup: None,
            config: None,
            env: Vec::new(),
            words: vec!["run".to_owned()],
            prefix: Vec::new(),
            unread: false,
            program: None,
            manager: None,
        }
    }

    /// Starts a copy of the binary in the host's folder, which can be replaced: [`Proxy::install`]. A copy that is there already is
    /// taken.
    pub fn installed(mut self) -> Result<Self> {
        let path = self.host.folder().join("installed/agent-fips-proxy");
        if !path.exists() {
            install(&path, Installed::Copy)?;
        }
        self.program = Some(path);
        Ok(self)
    }

    /// Starts it as a service of this manager, with what that keeps for it.
    pub fn manager(mut self, manager: &'a Manager) -> Self {
        self.manager = Some(manager);
        self.env("NOTIFY_SOCKET", &manager.path()).env("FDSTORE", "4096")
    }

    /// Writes this configuration (JSON is YAML) and passes `--config`.
    pub fn config(self, config: &Value) -> Result<Self> {
        self.config_text(&serde_json::to_string_pretty(config)?)
    }

    /// The same with the text as it stands.
    pub fn config_text(mut self, text: &str) -> Result<Self> {
        let path = self.host.folder().join("config.yaml");
        std::fs::write(&path, text)?;
        self.words
            .extend(["--config".to_owned(), path.display().to_string()]);
        self.config = Some(path);
        Ok(self)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Appends to the command line.
    pub fn args(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Replaces the whole command line, `run` included.
    pub fn command_line(mut self, words: &[&str]) -> Self {
        self.words = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Puts a program in front, for example `setpriv` with its options.
    pub fn through(mut self, words: &[&str]) -> Self {
        self.prefix = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Leaves its standard error unread until [`Proxy::read`], behind as small a pipe as there is.
    pub fn unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// Starts it inside a cgroup.
    pub fn cgroup(mut self, cgroup: &'a Cgroup) -> Self {
        self.cgroup = Some(cgroup);
        self
    }

    /// The command, for one that ends by itself.
    pub fn command(&self) -> Result<Command> {
        // Dies with the test, even when that is killed.
        let mut inner = self.host.command("setpriv");
        inner.args(["--pdeathsig", "KILL", "--"]);
        inner.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        inner.args(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        let program = match &self.program {
            Some(program) => program.clone(),
            None => binary()?,
        };
        inner.args(&self.prefix).arg(program).args(&self.words);
        let command = self.cgroup.map(|cgroup| cgroup.wrap(&inner));
        Ok(command.unwrap_or(inner))
    }

    /// Runs it to its end, for a start that must fail.
    pub fn output(&self) -> Result<Output> {
        let mut child = self
            .command()?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let start = Instant::now();
        while child.try_wait()?.is_none() {
            if start.elapsed() > patient(START) {
                child.kill()?;
                let output = child.wait_with_output()?;
                bail!(
                    "still running after {START:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(child.wait_with_output()?)
    }

    /// Starts it and waits until `/readyz` says yes.
    pub fn start(self) -> Result<Proxy<'a>> {
        let mut proxy = self.spawn()?;
        proxy.wait_ready()?;
        Ok(proxy)
    }

    /// Starts it without waiting.
    pub fn spawn(mut self) -> Result<Proxy<'a>> {
        let passing = self.manager.map(Manager::pass).transpose()?;
        if let Some(passing) = &passing {
            self.prefix.splice(..0, passing.words.clone());
        }
        let mut child = self
            .command()?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at a terminal is for us; we stop the proxy.
            .process_group(0)
            .spawn()
            .context("cannot start the proxy")?;
        drop(passing);
        let log = Arc::new(Mutex::new(Vec::new()));
        if let Some(output) = child.stdout.take() {
            collect(output, Arc::clone(&log));
        }
        let mut unread = None;
        if let Some(errors) = child.stderr.take() {
            if self.unread {
                // A page, which the kernel rounds up to (F_SETPIPE_SZ, fcntl(2)).
                fcntl(&errors, FcntlArg::F_SETPIPE_SZ(1)).context("cannot make the pipe small")?;
                unread = Some(errors);
            } else {
                collect(errors, Arc::clone(&log));
            }
        }
        Ok(Proxy {
            unread,
            host: self.host,
            child,
            log,
            config: self.config,
            program: self.program,
        })
    }
}

/// What is put in the place of an installed binary.
#[derive(Clone, Copy)]
pub enum Installed<'a> {
    /// The binary once more, as another file.
    Copy,
    /// These bytes.
    Bytes(&'a [u8]),
}

/// In one step, as a package manager does.
fn install(path: &Path, what: Installed<'_>) -> Result<()> {
    let next = path.with_extension("next");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match what {
        Installed::Copy => drop(std::fs::copy(binary()?, &next)?),
        Installed::Bytes(bytes) => {
            std::fs::write(&next, bytes)?;
            std::fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
    }
    std::fs::rename(&next, path).with_context(|| format!("cannot put {} in place", path.display()))
}

/// A running proxy; stopped when dropped.
pub struct Proxy<'a> {
    host: &'a Host,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    unread: Option<ChildStderr>,
    config: Option<PathBuf>,
    program: Option<PathBuf>,
}

impl Proxy<'_> {
    /// The master's process id.
    pub fn pid(&self) -> Pid {
        // Process ids are below 2^22.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// The worker's process id.
    pub fn worker(&self) -> Result<Pid> {
        let status = self.status()?;
        let pid = status["worker"]["pid"]
            .as_i64()
            .with_context(|| format!("no worker in {status}"))?;
        Ok(Pid::from_raw(i32::try_from(pid)?))
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until every part is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the proxy ended: {status}\n{}", self.log());
            }
            let answer = self.get("/readyz");
            if answer.as_ref().is_ok_and(|(status, _)| *status == 200) {
                return Ok(());
            }
            if start.elapsed() > patient(START) {
                bail!("not ready within {START:?}: {answer:?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// GET from the status port.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let text = self.host.within(|| {
            let mut stream = TcpStream::connect_timeout(&STATUS, patient(Duration::from_secs(2)))?;
            stream.set_read_timeout(Some(patient(Duration::from_secs(5))))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let status = text
            .get(9..12)
            .and_then(|word| word.parse().ok())
            .context("not HTTP")?;
        let body = text
            .split_once("\r\n\r\n")
            .map(|(_, body)| body)
            .unwrap_or_default();
        Ok((status, body.to_owned()))
    }

    /// The metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.get("/metrics")?;
        if status != 200 {
            bail!("/metrics answered {status}");
        }
        Metrics::parse(&text)
    }

    /// `status --json`.
    pub fn status(&self) -> Result<Value> {
        let output = self.cli(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "status --json printed {:?} and {:?}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    /// Another invocation of the binary on the same host.
    pub fn cli(&self, words: &[&str]) -> Result<Output> {
        capture(self.host.command(binary()?).args(words))
    }

    /// The file that it was started from: [`Launch::installed`].
    pub fn program(&self) -> Result<&Path> {
        self.program
            .as_deref()
            .context("it was not started from an installed file")
    }

    /// Puts something in the place of its file.
    pub fn install(&self, what: Installed<'_>) -> Result<()> {
        install(self.program()?, what)
    }

    /// `upgrade`, by its own file as it is now or by the binary.
    pub fn upgrade(&self) -> Result<Output> {
        self.cli(&["upgrade"])
    }

    /// Begins to read the standard error of a proxy that was started [`Launch::unread`].
    pub fn read(&mut self) -> Result<()> {
        let errors = self.unread.take().context("it is read already")?;
        collect(errors, Arc::clone(&self.log));
        Ok(())
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// How many lines with this in them it printed so far.
    pub fn logged(&self, text: &str) -> usize {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().filter(|line| line.contains(text)).count()
    }

    /// The fields of every access line about a request.
    pub fn access(&self) -> Vec<Value> {
        self.access_lines("request")
    }

    fn access_lines(&self, about: &str) -> Vec<Value> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["target"] == "access" && line["fields"]["message"] == about)
            .map(|mut line| line["fields"].take())
            .collect()
    }

    /// Waits for the access line of a connection that was not terminated.
    pub fn connection_line(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually("an access line of a connection", Duration::from_secs(5), || {
            Ok(self
                .access_lines("connection")
                .into_iter()
                .find(|fields| wanted(fields)))
        })
        .with_context(|| self.log())
    }

    /// Waits for the access line that `wanted` accepts: it is written after the client has its answer.
    pub fn access_line(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually("an access line", Duration::from_secs(5), || {
            Ok(self.access().into_iter().find(|fields| wanted(fields)))
        })
        .with_context(|| self.log())
    }

    /// Replaces the configuration file, in one step: an empty one would be a configuration, too.
    pub fn rewrite(&self, config: &Value) -> Result<()> {
        let path = self
            .config
            .as_ref()
            .context("started without a configuration file")?;
        let next = path.with_extension("next");
        std::fs::write(&next, serde_json::to_string_pretty(config)?)
            .and_then(|()| std::fs::rename(&next, path))
            .context("cannot rewrite the configuration")
    }

    /// Sends a signal to the master.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to the master"))
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        eventually("the end of the proxy", limit, || Ok(child.try_wait()?)).with_context(|| self.log())
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(20))
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(Signal::SIGTERM);
            if self.wait(Duration::from_secs(5)).is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        if std::thread::panicking() || std::env::var_os("AFP_TEST_LOG").is_some() {
            eprintln!("{}", self.log());
        }
    }
}

fn collect(output: impl Read + Send + 'static, log: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    });
}
