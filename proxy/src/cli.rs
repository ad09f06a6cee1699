//! The command line: one verb a file, documented exit codes.

pub mod ca;
pub mod check;
pub mod diagnose;
pub mod doctor;
pub mod flare;
pub mod intercept;
mod migrate;
pub(crate) mod output;
pub mod reference;
pub mod run;
pub mod self_test;
pub mod status;
pub mod uninstall;
pub mod upgrade;
pub mod version;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cli::output::complain;
use crate::config::{ConfigErrors, Inputs, Loaded, Reloader};
use crate::intercept::{ErrorKind, InterceptError, enter_host_cgroups};
use crate::observe::logging;

/// Exit codes, after sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Ok = 0,
    /// The command line is wrong.
    Usage = 64,
    /// Something that is needed is not there: a port, the master, a kernel feature.
    Unavailable = 69,
    /// Something failed that should not.
    Internal = 70,
    /// A privilege is missing; the message names the call that needs it.
    NoPermission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// From the number that another process of ours ended with.
    pub fn from_code(code: u8) -> Self {
        [
            Self::Ok,
            Self::Usage,
            Self::Unavailable,
            Self::NoPermission,
            Self::Config,
        ]
        .into_iter()
        .find(|exit| *exit as u8 == code)
        .unwrap_or(Self::Internal)
    }

    /// What a failure of interception means for whoever started us.
    pub fn from_intercept(error: &InterceptError) -> Self {
        match error.kind() {
            ErrorKind::Privilege => Self::NoPermission,
            ErrorKind::Unsupported => Self::Unavailable,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[derive(Parser)]
#[command(
    name = "agent-fips-proxy",
    version,
    about = "Takes the Datadog Agent's intake connections and re-encrypts them with a FIPS 140-3 validated module",
    after_help = "Exit codes: 0 good, 64 usage, 69 a needed service is unavailable, 70 internal, 77 missing privilege, 78 configuration"
)]
struct Cli {
    #[command(flatten)]
    inputs: InputArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Where the configuration comes from; every verb takes these.
#[derive(Args, Clone)]
struct InputArgs {
    /// Configuration file [default: /etc/agent-fips-proxy/config.yaml, when it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File of DD_FIPS_PROXY_* variables, read again on reload [default: /etc/default/agent-fips-proxy, when it is there]
    #[arg(long, global = true, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// One setting, over everything else; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the proxy (also without a verb)
    Run,
    /// The unprivileged part: started by `run`, or alone by socket activation
    Worker(run::WorkerArgs),
    /// Connections of our own through the live datapath: started by `run`
    #[command(hide = true)]
    Probe(run::ProbeArgs),
    /// Check, show or print the configuration
    Config(check::ConfigArgs),
    /// What the running proxy does
    Status(status::StatusArgs),
    /// What this host allows, and what is missing
    Doctor(doctor::DoctorArgs),
    /// The way to every intake, step by step: DNS, TCP, TLS, HTTP
    Diagnose(diagnose::DiagnoseArgs),
    /// A connection from each Agent's scope through the live datapath, now
    SelfTest(self_test::SelfTestArgs),
    /// A support bundle: shows what is in it, asks, writes it, and sends it where you say so
    Flare(flare::FlareArgs),
    /// Switch interception of the running proxy, or show it
    Intercept(intercept::InterceptArgs),
    /// Let the program that is installed now take over, without a gap
    Upgrade,
    /// The local authority, by which Agents that speak HTTPS trust us
    Ca(ca::CaArgs),
    /// Version, crypto module and certificate
    Version(version::VersionArgs),
    /// Remove every hook, pin and map that was left in the kernel
    Uninstall,
    /// Print a reference page in Markdown
    #[command(hide = true)]
    Reference(reference::ReferenceArgs),
}

/// Runs the command line of this process.
pub fn main() -> Exit {
    let exit = verb();
    logging::finish();
    exit
}

fn verb() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no errors.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            let _ = error.print();
            return exit;
        }
    };
    let inputs = cli.inputs;
    let verb = cli.verb.unwrap_or(Verb::Run);
    if matches!(
        verb,
        Verb::Run | Verb::Doctor(_) | Verb::Intercept(_) | Verb::Uninstall
    ) {
        // Where that may not be, the checks say what does not work for it (`own cgroup`).
        let _ = enter_host_cgroups();
    }
    match verb {
        Verb::Run => run::run(&inputs),
        Verb::Worker(args) => run::worker(&args, &inputs),
        Verb::Probe(args) => run::probe(&args),
        Verb::Config(args) => check::run(&args, &inputs),
        Verb::Status(args) => status::run(&args, &inputs),
        Verb::Doctor(args) => doctor::run(&args, &inputs),
        Verb::Diagnose(args) => diagnose::run(&args, &inputs),
        Verb::SelfTest(args) => self_test::run(&args, &inputs),
        Verb::Flare(args) => flare::run(&args, &inputs),
        Verb::Intercept(args) => intercept::run(&args, &inputs),
        Verb::Upgrade => upgrade::run(&inputs),
        Verb::Ca(args) => ca::run(&args, &inputs),
        Verb::Version(args) => version::run(&args),
        Verb::Uninstall => uninstall::run(),
        Verb::Reference(args) => reference::run(&args),
    }
}

impl InputArgs {
    fn reloader(&self) -> Reloader {
        Reloader::new(Inputs {
            file: self.config.clone(),
            env_file: self.env_file.clone(),
            flags: self.set.clone(),
            ..Inputs::of_process()
        })
    }

    /// The same as words of the command line.
    fn flags(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        for (flag, file) in [("--config", &self.config), ("--env-file", &self.env_file)] {
            if let Some(file) = file {
                words.extend([flag.into(), file.into()]);
            }
        }
        for (key, value) in &self.set {
            words.extend(["--set".into(), format!("{key}={value}").into()]);
        }
        words
    }

    fn load(&self) -> Result<Loaded, ConfigErrors> {
        self.reloader().load()
    }

    /// Loads, or tells what is wrong.
    fn load_or_exit(&self) -> Result<Loaded, Exit> {
        self.load().map_err(|errors| {
            complain!("{errors}");
            Exit::Config
        })
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "KEY=VALUE is expected, for example site=ddog-gov.com".to_owned())
}
