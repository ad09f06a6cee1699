//! `diagnose`: the way to every intake, step by step, with the cure where it ends.

use std::cell::Cell;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use zeroize::Zeroizing;

use super::{Exit, InputArgs};
use crate::catalog::{Product, Protocol};
use crate::cli::output::{complain, say};
use crate::config::Config;
use crate::diagnose::advice::Level;
use crate::diagnose::{self, Finding, Options};
use crate::supervise::admin::{self, Answer, Request};
use crate::tls::ModuleStatus;

/// Version of what `--json` prints: another one when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// `diagnose`
#[derive(clap::Args)]
pub struct DiagnoseArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Only this product; may be repeated
    #[arg(long = "product", value_name = "NAME")]
    products: Vec<Product>,
    /// For each of DNS, connecting, TLS and the answer, in seconds [default: upstream.connect_timeout; 10 for DNS and the answer]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=120))]
    timeout: Option<u64>,
    /// Private addresses are expected for the names of AWS PrivateLink
    #[arg(long)]
    private_link: bool,
    /// The Agent's version, which is in its name for metrics
    #[arg(long, value_name = "VERSION", default_value = "7.81.0", value_parser = agent_version)]
    agent_version: String,
    /// Validate the API key in this environment variable
    #[arg(long, value_name = "VARIABLE")]
    api_key_env: Option<String>,
    /// Validate the API key in this file
    #[arg(long, value_name = "FILE", conflicts_with = "api_key_env")]
    api_key_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    version: &'static str,
    site: String,
    /// Nothing failed.
    ok: bool,
    module: &'a ModuleStatus,
    outbound_proxy: Option<String>,
    findings: &'a [Finding],
    running: Running,
}

/// What a proxy that runs says of the same.
#[derive(Default, Serialize)]
struct Running {
    /// It answered.
    asked: bool,
    /// Why it cannot be asked.
    problem: Option<String>,
    /// What it complains about.
    notes: Vec<String>,
}

/// `diagnose`. Exit 0 only if no step failed.
pub(super) fn run(args: &DiagnoseArgs, inputs: &InputArgs) -> Exit {
    let mut config = match inputs.load_or_exit() {
        Ok(loaded) => loaded.config,
        Err(exit) => return exit,
    };
    if let Some(product) = args
        .products
        .iter()
        .find(|product| product.protocol() != Protocol::Http)
    {
        complain!(
            "agent-fips-proxy: {product} is not HTTP: its connections are passed on with the Agent's own TLS, and the proxy has no way of \
             its own to look at"
        );
        return Exit::Usage;
    }
    let key = match api_key(args) {
        Ok(key) => key,
        Err((exit, message)) => {
            complain!("agent-fips-proxy: {message}");
            return exit;
        }
    };
    for path in config.upstream.secret_files().into_iter().flatten() {
        if let Err(error) = fs::File::open(path)
            && error.kind() == std::io::ErrorKind::PermissionDenied
        {
            complain!(
                "agent-fips-proxy: {}: {error}: run as root, as the proxy reads it",
                path.display()
            );
            return Exit::NoPermission;
        }
    }
    let limit = args.timeout.map(Duration::from_secs);
    if let Some(limit) = limit {
        config.upstream.connect_timeout = limit;
    }
    let options = Options {
        products: args.products.clone(),
        private_link: args.private_link,
        agent_version: args.agent_version.clone(),
        key: key.map(Arc::new),
        limit: limit.unwrap_or(Duration::from_secs(10)),
    };
    let progress = Progress::new(diagnose::targets(&config, &options).len());
    let found = diagnose::run(config.clone(), &options, |name| progress.step(name));
    progress.end();
    let (module, findings) = match found {
        Ok(found) => found,
        Err((exit, message)) => {
            complain!("agent-fips-proxy: {message}");
            return exit;
        }
    };
    let ok = findings.iter().all(|finding| finding.level < Level::Fail);
    let report = Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        site: config.site.to_string(),
        ok,
        module: &module,
        outbound_proxy: config.upstream.proxy.url.as_ref().map(ToString::to_string),
        findings: &findings,
        running: running(&config),
    };
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => say!("{text}"),
            Err(error) => {
                complain!("agent-fips-proxy: {error}");
                return Exit::Internal;
            }
        }
    } else {
        print(&report);
    }
    if ok { Exit::Ok } else { Exit::Unavailable }
}

/// The key that the user gave, by a variable or a file: never on the command line, where everybody reads it.
fn api_key(args: &DiagnoseArgs) -> Result<Option<Zeroizing<String>>, (Exit, String)> {
    let text = match (&args.api_key_env, &args.api_key_file) {
        (Some(variable), _) => {
            let value = std::env::var(variable).map(Zeroizing::new);
            value.map_err(|_| {
                (
                    Exit::Usage,
                    format!("--api-key-env: no variable {variable} with text in it"),
                )
            })?
        }
        (None, Some(path)) => {
            let text = fs::read_to_string(path).map(Zeroizing::new);
            text.map_err(|error| {
                let exit = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => Exit::NoPermission,
                    _ => Exit::Usage,
                };
                (exit, format!("--api-key-file {}: {error}", path.display()))
            })?
        }
        (None, None) => return Ok(None),
    };
    let key = Zeroizing::new(text.trim().to_owned());
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err((
            Exit::Usage,
            "the API key is empty, or holds more than letters and digits".to_owned(),
        ));
    }
    Ok(Some(key))
}

fn agent_version(text: &str) -> Result<String, String> {
    let numbers: Vec<&str> = text.split('.').collect();
    let number =
        |part: &&str| !part.is_empty() && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit());
    if numbers.len() == 3 && numbers.iter().all(number) {
        Ok(text.to_owned())
    } else {
        Err("three numbers are expected, for example 7.81.0".to_owned())
    }
}

/// Asks a proxy that runs what it met on these ways.
fn running(config: &Config) -> Running {
    let mut running = Running::default();
    let status = match admin::ask(&config.status.socket, Request::Status) {
        Ok(Answer::Ok(status)) => status,
        Ok(Answer::Error(message)) => {
            running.problem = Some(message);
            return running;
        }
        Err(error) => {
            running.problem = Some(match error.kind() {
                std::io::ErrorKind::PermissionDenied => "no permission to ask it: run as root".to_owned(),
                _ => "none answers".to_owned(),
            });
            return running;
        }
    };
    running.asked = true;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    for stale in list(&status["dns"]["stale"]) {
        running.notes.push(format!(
            "{}: it uses the last good addresses, {} s old: {}",
            stale["name"].as_str().unwrap_or("?"),
            stale["age_s"],
            stale["problem"].as_str().unwrap_or("?")
        ));
    }
    for product in list(&status["products"]) {
        let requests = product["requests"].as_object().cloned().unwrap_or_default();
        let failed: Vec<String> = requests
            .iter()
            .filter(|(outcome, _)| outcome.starts_with("upstream") || *outcome == "no_address")
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        if !failed.is_empty() {
            let name = product["name"].as_str().unwrap_or("?");
            running.notes.push(format!(
                "{name}: failed since its worker started: {}",
                failed.join(", ")
            ));
        }
    }
    for alarm in list(&status["trust"]["alarms"]) {
        running.notes.extend(alarm.as_str().map(str::to_owned));
    }
    running
}

fn print(report: &Report<'_>) {
    let module = report.module;
    say!(
        "site {}; {}, certificate {}",
        report.site,
        module.version,
        module.certificate.as_deref().unwrap_or("none")
    );
    if let Some(proxy) = &report.outbound_proxy {
        say!("outbound proxy {proxy}");
    }
    for finding in report.findings {
        say!("");
        say!("{:<4}  {} ({})", finding.level, finding.product, finding.name);
        for step in &finding.steps {
            say!("  {:<4}  {:<5} {}", step.level, step.step, step.detail);
            if let Some(cure) = &step.cure {
                say!("        -> {cure}");
            }
        }
    }
    say!("");
    match &report.running.problem {
        Some(problem) => say!("note  the running proxy: {problem}"),
        None if report.running.notes.is_empty() => {
            say!("OK    the running proxy: met no trouble on these ways");
        }
        None => {}
    }
    for note in &report.running.notes {
        say!("WARN  the running proxy: {note}");
    }
    let count = |level| {
        report
            .findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    say!(
        "{} names: {} OK, {} notes, {} warnings, {} failed",
        report.findings.len(),
        count(Level::Ok),
        count(Level::Note),
        count(Level::Warn),
        count(Level::Fail)
    );
}

/// One line on the terminal that is written over and over; nothing where standard error is none.
struct Progress {
    terminal: bool,
    all: usize,
    done: Cell<usize>,
}

impl Progress {
    fn new(all: usize) -> Self {
        let progress = Self {
            terminal: std::io::stderr().is_terminal(),
            all,
            done: Cell::new(0),
        };
        progress.write(&format!("looking at {all} names"));
        progress
    }

    fn step(&self, name: &str) {
        self.done.set(self.done.get() + 1);
        self.write(&format!("{} of {}: {name}", self.done.get(), self.all));
    }

    fn end(&self) {
        self.write("");
    }

    /// From the line's beginning, and clears what is behind (ECMA-48: EL).
    fn write(&self, text: &str) {
        if self.terminal {
            let mut stderr = std::io::stderr().lock();
            // It is for whoever looks: nobody does.
            let _ = write!(stderr, "\r{text}\x1b[K").and_then(|()| stderr.flush());
        }
    }
}
