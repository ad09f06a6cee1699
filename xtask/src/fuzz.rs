//! `cargo xtask fuzz`: our readers of others' bytes, run on bytes that libFuzzer makes (tests/fuzz).
//!
//! Our crates are compiled with the counters that tell the engine which code an input reached, by `tests/fuzz/instrument` and the
//! ordinary compiler. Crates of others are those of the ordinary debug build, the FIPS module among them: it is not compiled again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use crate::{build, sh};

/// The package of the programs, from the root of the checkout.
const PACKAGE: &str = "tests/fuzz";
/// How long each target runs in `cargo xtask ci`, and where nothing else is asked for.
const SECONDS: u32 = 10;
/// Bytes of an input at most: more than the largest in the tree, which shows how large those of its kind are.
const LONGEST: u32 = 4096;
/// What an input may take. A debug build needs milliseconds.
const SECONDS_FOR_ONE: u32 = 10;
/// What a target may take, with all the inputs that it remembers.
const MEBIBYTES: u32 = 1024;
/// So that two runs begin alike. Where they end depends on the time, too.
const SEED: u32 = 1;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// The targets to run; none for all of them
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, value_name = "N", default_value_t = SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Add to the corpora in the tree what reaches code that they do not reach, and run nothing
    #[arg(long)]
    keep: bool,
}

impl Default for Options {
    /// What `cargo xtask ci` runs.
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            seconds: SECONDS,
            keep: false,
        }
    }
}

/// Builds all targets, then runs those that were asked for, as many at once as there are processors.
pub fn run(options: &Options) -> Result<()> {
    let known = targets()?;
    if let Some(unknown) = options.targets.iter().find(|name| !known.contains(name)) {
        bail!("no target `{unknown}`; there are: {}", known.join(", "));
    }
    let wanted = match options.targets.is_empty() {
        true => known,
        false => options.targets.clone(),
    };
    build()?;
    let targets = wanted
        .iter()
        .map(|name| Target::new(name))
        .collect::<Result<Vec<_>>>()?;
    if options.keep {
        return targets.iter().try_for_each(Target::keep);
    }
    println!(
        "| {:<14} | executions | a second | coverage | corpus |\n|{:-<16}|---:|---:|---:|---:|",
        "target", ""
    );
    let broken = all(&targets, options.seconds)?;
    if broken.is_empty() {
        return Ok(());
    }
    bail!("findings, told above: {}", broken.join(", "));
}

/// The names of the targets.
fn targets() -> Result<Vec<String>> {
    let folder = sh::root().join(PACKAGE).join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.push(name.context("a target has a strange name")?.to_owned());
    }
    names.sort();
    Ok(names)
}

fn build() -> Result<()> {
    sh::run(
        sh::cargo()
            .args([
                "build",
                "--locked",
                "--package",
                "agent-fips-proxy-fuzz",
                "--features",
                "run",
                "--bins",
            ])
            .env(
                "RUSTC_WORKSPACE_WRAPPER",
                sh::root().join(PACKAGE).join("instrument"),
            )
            // Nothing here loads the programs.
            .env("AGENT_FIPS_PROXY_SKIP_EBPF", "1"),
    )
}

/// Runs them; the names of those that failed.
fn all(targets: &[Target], seconds: u32) -> Result<Vec<String>> {
    let next = Mutex::new(targets.iter());
    let broken = Mutex::new(Vec::new());
    let lock = "another target's thread has panicked";
    std::thread::scope(|scope| {
        let one = || -> Result<()> {
            loop {
                let Some(target) = next.lock().ok().and_then(|mut next| next.next()) else {
                    return Ok(());
                };
                match target.run(seconds)? {
                    Ok(row) => println!("{row}"),
                    Err(finding) => {
                        eprintln!("fuzz: {finding}");
                        broken.lock().ok().context(lock)?.push(target.name.clone());
                    }
                }
            }
        };
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().ok().context(lock)?)
    })?;
    broken.into_inner().ok().context(lock)
}

/// One target, and where its files are.
struct Target {
    name: String,
    program: PathBuf,
    /// Its corpus in the tree.
    corpus: PathBuf,
    /// Inputs that were found in runs, to begin with the next time. Only `--keep` brings any of them into the tree.
    found: PathBuf,
    /// Where an input stays that broke it; with a slash, because libFuzzer puts a name behind it.
    findings: String,
    /// What libFuzzer says.
    log: PathBuf,
}

impl Target {
    fn new(name: &str) -> Result<Self> {
        let folder = build::target().join("fuzz");
        let target = Self {
            name: name.to_owned(),
            program: build::target().join("debug").join(format!("fuzz-{name}")),
            corpus: sh::root().join(PACKAGE).join("corpus").join(name),
            found: folder.join("corpus").join(name),
            findings: format!("{}/findings/{name}/", folder.display()),
            log: folder.join(format!("{name}.log")),
        };
        for folder in [target.found.as_path(), Path::new(&target.findings)] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(target)
    }

    fn command(&self) -> Command {
        let mut command = sh::command(&self.program);
        command
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-timeout={SECONDS_FOR_ONE}"))
            .arg(format!("-rss_limit_mb={MEBIBYTES}"))
            .arg(format!("-artifact_prefix={}", self.findings));
        command
    }

    /// A row of the table, or what broke and how to see it again.
    fn run(&self, seconds: u32) -> Result<Result<String, String>> {
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let status = self
            .command()
            .args([format!("-max_total_time={seconds}"), format!("-seed={SEED}")])
            .arg("-print_final_stats=1")
            .args([&self.found, &self.corpus])
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let text = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let text = String::from_utf8_lossy(&text);
        match Stats::read(&text) {
            Some(stats) if status.success() => Ok(Ok(stats.row(&self.name))),
            _ => Ok(Err(self.finding(&text, &status.to_string()))),
        }
    }

    fn finding(&self, log: &str, status: &str) -> String {
        let said: Vec<&str> = log
            .lines()
            .skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: libFuzzer"))
            .take(12)
            .collect();
        let input = log.lines().find_map(|line| {
            line.split_once("Test unit written to ")
                .map(|(_, path)| path.trim())
        });
        let again = match input {
            Some(input) => format!(
                "input: {input}\nagain: {program} {input}\nas a test: cp {input} {corpus}/ && cargo test --package \
                 agent-fips-proxy --lib fuzz::",
                program = self.program.display(),
                corpus = self.corpus.display(),
            ),
            None => "it left no input".to_owned(),
        };
        format!(
            "{name} ended with {status}\n{said}\n{again}\nall that it said: {log}",
            name = self.name,
            said = said.join("\n"),
            log = self.log.display(),
        )
    }

    /// Adds the fewest inputs of those found that reach code which the corpus in the tree does not. How often one reaches it does not
    /// count: that would be several times as many.
    fn keep(&self) -> Result<()> {
        let before = count(&self.corpus)?;
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let status = self
            .command()
            .args(["-set_cover_merge=1", "-use_counters=0"])
            .args([&self.corpus, &self.found])
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if !status.success() {
            bail!("{}: {status}; see {}", self.name, self.log.display());
        }
        println!("{}: {before} inputs, now {}", self.name, count(&self.corpus)?);
        Ok(())
    }
}

fn count(folder: &Path) -> Result<usize> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(entries.count())
}

/// What libFuzzer says at the end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stats {
    executions: u64,
    /// Edges of our code that were reached.
    coverage: u64,
    /// Inputs that it remembers, and their size.
    corpus: String,
    per_second: u64,
}

impl Stats {
    /// Reads the line `#123 DONE cov: 4 ft: 5 corp: 6/7Kb lim: 8 exec/s: 9 rss: 10Mb`; none when the run did not get so far.
    fn read(log: &str) -> Option<Self> {
        let line = log.lines().rfind(|line| line.contains("DONE "))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let values: BTreeMap<&str, &str> = words.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let number = |key: &str| values.get(key)?.parse().ok();
        Some(Self {
            executions: words.first()?.strip_prefix('#')?.parse().ok()?,
            coverage: number("cov:")?,
            corpus: (*values.get("corp:")?).to_owned(),
            per_second: number("exec/s:")?,
        })
    }

    fn row(&self, name: &str) -> String {
        format!(
            "| {name:<14} | {:>10} | {:>8} | {:>8} | {:>12} |",
            self.executions, self.per_second, self.coverage, self.corpus
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_read() {
        let log = "#2\tINITED cov: 1 ft: 1 corp: 1/1b exec/s: 0 rss: 40Mb\n\
                   #123456\tDONE   cov: 318 ft: 1205 corp: 207/18Kb lim: 4096 exec/s: 11223 rss: 61Mb\n\
                   Done 123456 runs in 11 second(s)\n";
        let expected = Stats {
            executions: 123_456,
            coverage: 318,
            corpus: "207/18Kb".to_owned(),
            per_second: 11_223,
        };
        assert_eq!(Stats::read(log), Some(expected));
        assert_eq!(
            Stats::read("#2\tINITED cov: 1 ft: 1 corp: 1/1b exec/s: 0 rss: 40Mb\n"),
            None
        );
    }

    #[test]
    fn a_finding_says_how_to_see_it_again() {
        let target = Target {
            name: "event".to_owned(),
            program: "p/fuzz-event".into(),
            corpus: "c/event".into(),
            found: "f/event".into(),
            findings: "x/".to_owned(),
            log: "event.log".into(),
        };
        let log = "#2 INITED\nthread '<unnamed>' panicked at proxy/src/fuzz.rs:1:2:\nno\n\
                   ==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='x/'; Test unit written to x/crash-1\n";
        let finding = target.finding(log, "exit status: 77");
        for part in [
            "exit status: 77",
            "panicked at proxy/src/fuzz.rs",
            "p/fuzz-event x/crash-1",
            "cp x/crash-1 c/event/",
        ] {
            assert!(finding.contains(part), "{part}: {finding}");
        }
    }

    #[test]
    fn every_target_has_its_program() {
        let manifest = fs::read_to_string(sh::root().join(PACKAGE).join("Cargo.toml")).unwrap();
        for name in targets().unwrap() {
            let program = format!("name = \"fuzz-{name}\"\npath = \"fuzz_targets/{name}.rs\"\n");
            assert!(
                manifest.contains(&program),
                "{name} is not in tests/fuzz/Cargo.toml"
            );
        }
    }
}
