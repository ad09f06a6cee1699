//! `cargo xtask package`: the deb and the rpm, from one list of files ([`assets`]).
//!
//! ```text
//! program (release) ─► made/: manual pages, completions, SBOM, licences ─┐
//! tree: proxy/dist, README, docs ────────────────────────────────────────┴─► one list ─► deb/ root ─► dpkg-deb
//!                                                                                   └──► rpm/ root ─► rpmbuild
//! ```
//!
//! The distributions' own tools make the packages: what they refuse, a user's machine would refuse, too. Nothing in them depends on
//! the clock, the folder or the user of the build (`SOURCE_DATE_EPOCH` is the commit's time): [`reproducible`] shows it.

mod assets;
mod deb;
mod licences;
mod pages;
mod reproducible;
mod rpm;
mod sbom;
mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, sh};

/// Name of package, program and unit.
pub(crate) const NAME: &str = "agent-fips-proxy";
/// Who answers for the packages.
const MAINTAINER: &str = "agent-fips-proxy engineers <agent-fips-proxy@example.com>";
/// One line for both.
const SUMMARY: &str = "transparent FIPS proxy for the Datadog Agent";
/// The paragraph for both.
const DESCRIPTION: &[&str] = &[
    "Takes the Datadog Agent's connections to its intakes, by eBPF or on the",
    "ports of the Agent's fips.* settings, and re-encrypts them with AWS-LC",
    "FIPS 3.1.0, a cryptographic module with a FIPS 140-3 certificate.",
];

/// Options of `cargo xtask package`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Package this program, for trying, and compress in a hurry; a release is built and packaged otherwise
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where packages, SBOM and what they are made of are left
    #[arg(long, value_name = "DIR", default_value = "target/package")]
    output: PathBuf,
    /// Which packaging of this version it is: higher numbers upgrade lower ones
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    revision: u32,
    /// Build the commit twice, in two other folders, and compare program and packages byte by byte (two release builds)
    #[arg(long, conflicts_with = "binary")]
    check_reproducible: bool,
}

/// What is packaged.
struct Job {
    /// The program, stripped.
    program: PathBuf,
    /// `0.1.0`, the workspace's.
    version: String,
    revision: u32,
    /// Seconds since 1970: every time in the packages.
    epoch: u64,
    /// Compressed in a hurry.
    trial: bool,
    /// Everything is made below.
    output: PathBuf,
}

/// Makes both, and says where they are.
pub fn run(options: &Options) -> Result<()> {
    if options.check_reproducible {
        return reproducible::run(options.revision);
    }
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            build::run(&build::Options::default())?;
            build::binary(false)
        }
    };
    let output = sh::root().join(&options.output);
    for package in make(&binary, &output, options.revision, options.binary.is_some())? {
        eprintln!("packaged {}", package.display());
    }
    Ok(())
}

/// Both packages and the SBOM of this program.
fn make(binary: &Path, output: &Path, revision: u32, trial: bool) -> Result<Vec<PathBuf>> {
    if output.exists() {
        std::fs::remove_dir_all(output).with_context(|| format!("cannot empty {}", output.display()))?;
    }
    std::fs::create_dir_all(output)?;
    let output = output.canonicalize()?;
    let job = Job {
        program: output.join(NAME),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision,
        epoch: epoch()?,
        trial,
        output,
    };
    // Names of functions are in no report of ours, and half of the file. The list of crates (.dep-v0) stays.
    sh::run(
        Command::new("strip")
            .args(["--strip-unneeded", "-o"])
            .arg(&job.program)
            .arg(sh::root().join(binary)),
    )?;
    let made = job.output.join("made");
    pages::make(&job, &made)?;
    let crates = sbom::crates()?;
    let sbom = sbom::make(&job, &crates, &made)?;
    licences::make(&crates, &made)?;
    Ok(vec![deb::make(&job)?, rpm::make(&job)?, sbom])
}

/// `SOURCE_DATE_EPOCH`, else the commit's time.
fn epoch() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => sh::output(sh::command("git").args(["log", "-1", "--format=%ct"]))
            .context("set SOURCE_DATE_EPOCH where there is no git")?,
    };
    text.trim()
        .parse()
        .with_context(|| format!("SOURCE_DATE_EPOCH is no number of seconds: {text}"))
}

/// The epoch as `date` prints it by this format, in UTC and English.
fn date(epoch: u64, format: &str) -> Result<String> {
    let text = sh::output(
        Command::new("date")
            .args(["--utc", &format!("--date=@{epoch}"), format])
            .env("LC_ALL", "C"),
    )?;
    Ok(text.trim().to_owned())
}

/// A tool with everything in its environment that must not show in what it makes.
fn tool(job: &Job, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("SOURCE_DATE_EPOCH", job.epoch.to_string())
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC");
    command
}

/// A script that a package manager runs: a file of `proxy/dist`.
fn script(path: &str) -> Result<String> {
    let path = sh::root().join("proxy/dist").join(path);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file and the folders above it.
fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Compresses a file without its name and time; it gets the ending `.gz`.
fn gzip(path: &Path) -> Result<()> {
    sh::run(
        Command::new("gzip")
            .args(["-9", "--no-name", "--force"])
            .arg(path),
    )
}

/// SHA-256 of a file, in lower case.
fn sha256(path: &Path) -> Result<String> {
    let line = sh::output(Command::new("sha256sum").arg(path))?;
    match line.split_whitespace().next() {
        Some(digest) => Ok(digest.trim_start_matches('\\').to_owned()),
        None => bail!("sha256sum said nothing about {}", path.display()),
    }
}
