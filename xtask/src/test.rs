//! `cargo xtask test`: unit tests of every package, then the suites of `tests/` with the debug binary, then one closing
//! line that counts them all.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{build, kernel, sh};

/// The suites, in the order of what a failure in them explains: one that fails early explains later ones.
pub const SUITES: &[&str] = &[
    "selfcheck",
    "bench",
    "classifiers",
    "datapath",
    "fips",
    "ca",
    "https",
    "direct",
    "upstream",
    "diagnose",
    "faults",
    "intercept",
    "lifecycle",
    "liveness",
    "leaks",
    "handover",
    "systemd",
    "packages",
    "sandbox",
    "console",
    "pods",
    "coexist",
    "page",
    "secrets",
    "flare",
    "soak",
    "chart",
    "kubernetes",
];

/// What tells the suites which binary is under test.
const BINARY: &str = "AGENT_FIPS_PROXY_BIN";

/// Options of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Run only this suite (repeatable); `unit` stands for the unit tests
    #[arg(long = "suite", value_name = "NAME")]
    pub suites: Vec<String>,
    /// Run the suites that depend on the kernel on this one of Debian, under qemu (repeatable): 5.10, 6.1, 6.12, latest
    #[arg(long = "kernel", value_name = "NAME")]
    pub kernels: Vec<String>,
    /// Run only cases whose name contains this
    pub filter: Option<String>,
}

/// How many cases ended how.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
}

/// Runs everything that was asked for, also after a failure, and fails at the end when anything did.
pub fn run(options: &Options) -> Result<()> {
    let mut tally = Tally::default();
    let mut broken = Vec::new();
    if options.kernels.is_empty() {
        here(options, &mut tally, &mut broken)?;
    } else {
        other_kernels(options, &mut tally, &mut broken)?;
    }
    close(tally, &broken)
}

/// Everything on this machine, then the suites that depend on the kernel on another; one closing line for both.
pub fn run_with_kernel(name: &str, suites: &[&str]) -> Result<()> {
    let mut tally = Tally::default();
    let mut broken = Vec::new();
    let mut options = Options::default();
    here(&options, &mut tally, &mut broken)?;
    options.kernels = vec![name.to_owned()];
    options.suites = suites.iter().map(|suite| (*suite).to_owned()).collect();
    other_kernels(&options, &mut tally, &mut broken)?;
    close(tally, &broken)
}

/// Unit tests and suites on the kernel that runs us.
fn here(options: &Options, tally: &mut Tally, broken: &mut Vec<String>) -> Result<()> {
    let known: Vec<&str> = SUITES.iter().copied().filter(|suite| exists(suite)).collect();
    if let Some(unknown) = options
        .suites
        .iter()
        .find(|name| *name != "unit" && !known.contains(&name.as_str()))
    {
        bail!("no suite `{unknown}`; there are: unit, {}", known.join(", "));
    }
    let wanted = |name: &str| options.suites.is_empty() || options.suites.iter().any(|suite| suite == name);
    if wanted("unit") {
        report(
            "unit",
            count(&mut units(options.filter.as_deref())),
            tally,
            broken,
        );
    }
    let suites: Vec<&str> = known.into_iter().filter(|suite| wanted(suite)).collect();
    if !suites.is_empty() {
        build_programs()?;
    }
    // Another one only for who says which: a suite in full, with the release.
    let binary = std::env::var_os(BINARY).map_or_else(|| build::binary(true), PathBuf::from);
    for suite in suites {
        let mut command = suite_command(suite);
        command
            .args(options.filter.as_deref())
            .env(BINARY, &binary)
            // A backtrace of the harness tells nothing about the proxy.
            .env("RUST_BACKTRACE", "0");
        report(suite, count(&mut command), tally, broken);
    }
    Ok(())
}

/// The same on kernels of Debian: only [`kernel::KERNEL_SUITES`], with the same programs.
fn other_kernels(options: &Options, tally: &mut Tally, broken: &mut Vec<String>) -> Result<()> {
    let known: Vec<&str> = kernel::KERNEL_SUITES
        .iter()
        .map(|(suite, _)| *suite)
        .filter(|suite| exists(suite))
        .collect();
    let asked = &options.suites;
    if let Some(unknown) = asked.iter().find(|name| !known.contains(&name.as_str())) {
        bail!(
            "suite `{unknown}` does not run on other kernels; these do: {}",
            known.join(", ")
        );
    }
    if let Some(unknown) = options
        .kernels
        .iter()
        .find(|name| !kernel::names().contains(&name.as_str()))
    {
        bail!("no kernel `{unknown}`; there are: {}", kernel::names().join(", "));
    }
    build_programs()?;
    let programs = known
        .into_iter()
        .filter(|suite| asked.is_empty() || asked.iter().any(|name| name == suite))
        .map(|suite| Ok((suite.to_owned(), program(suite)?)))
        .collect::<Result<Vec<_>>>()?;
    for name in &options.kernels {
        on_kernel(name, &programs, options.filter.as_deref(), tally, broken);
    }
    Ok(())
}

/// Runs the suites on one kernel and counts them.
fn on_kernel(
    name: &str,
    programs: &[(String, PathBuf)],
    filter: Option<&str>,
    tally: &mut Tally,
    broken: &mut Vec<String>,
) {
    let mut current = Tally::default();
    let mut ended = 0;
    let result = kernel::run(name, programs, filter, |event| match event {
        kernel::Event::Begin(suite) => {
            println!("kernel {name}: {suite}");
            current = Tally::default();
        }
        kernel::Event::Line(line) => {
            if let Some(more) = closing(&line) {
                current.add(more);
            }
            println!("{line}");
        }
        kernel::Event::End(suite, status) => {
            ended += 1;
            // A suite that says nothing of its cases did not run them.
            let counted = current != Tally::default() || filter.is_some();
            let label = format!("{suite} on {name}");
            report(&label, Ok((current, status == 0 && counted)), tally, broken);
        }
    });
    if let Err(error) = result {
        report(&format!("kernel {name}"), Err(error), tally, broken);
    } else if ended != programs.len() {
        report(
            &format!("kernel {name}"),
            Ok((Tally::default(), false)),
            tally,
            broken,
        );
    }
}

/// The proxy and the clients of the tests.
fn build_programs() -> Result<()> {
    sh::run(sh::cargo().args(["build", "--locked", "--bins"]).args([
        "--package",
        "agent-fips-proxy",
        "--package",
        "agent-fips-proxy-tests",
    ]))
}

/// Builds a suite and says where cargo put it.
fn program(suite: &str) -> Result<PathBuf> {
    let messages = sh::output(sh::cargo().args([
        "test",
        "--locked",
        "--no-run",
        "--message-format=json",
        "--package",
        "agent-fips-proxy-tests",
        "--test",
        suite,
    ]))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == suite)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo built no program for suite {suite}"))
}

/// The closing line, and failure when anything failed.
fn close(tally: Tally, broken: &[String]) -> Result<()> {
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    );
    if !broken.is_empty() {
        bail!("failed: {}", broken.join(", "));
    }
    Ok(())
}

/// Unit tests, by nextest where it is installed: a process per test keeps what a test does to its process to itself.
fn units(filter: Option<&str>) -> Command {
    let mut command = sh::cargo();
    // The suites are `--test` targets of a package of their own and run below, with the binary.
    let packages = ["--locked", "--workspace", "--exclude", "agent-fips-proxy-tests"];
    if sh::succeeds(Command::new("cargo-nextest").args(["nextest", "--version"])) {
        command
            .args(["nextest", "run", "--no-tests=pass"])
            .args(packages)
            .args(filter);
    } else {
        command.arg("test").args(packages).arg("--").args(filter);
    }
    command
}

fn exists(suite: &str) -> bool {
    sh::root().join(format!("tests/suites/{suite}.rs")).is_file()
}

fn report(name: &str, result: Result<(Tally, bool)>, total: &mut Tally, broken: &mut Vec<String>) {
    let good = match result {
        Ok((tally, good)) => {
            total.add(tally);
            // A program that fails without a failed case did not get as far as its cases.
            if !good && tally.failed == 0 {
                total.failed += 1;
            }
            good
        }
        Err(error) => {
            eprintln!("test: {name}: {error:#}");
            total.failed += 1;
            false
        }
    };
    if !good {
        broken.push(name.to_owned());
    }
}

/// Runs a test program, shows its output as it comes and counts its cases; true when it succeeded.
fn count(command: &mut Command) -> Result<(Tally, bool)> {
    let line = sh::display(command);
    eprintln!("+ {line}");
    // Both streams matter (libtest counts on stdout, nextest on stderr): each is read by a thread of its own.
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let errors = std::thread::spawn(move || {
        err.map(|stream| pass_on(BufReader::new(stream), |text| eprintln!("{text}")))
    });
    let mut tally = out
        .map(|stream| pass_on(BufReader::new(stream), |text| println!("{text}")))
        .unwrap_or_default();
    if let Ok(Some(other)) = errors.join() {
        tally.add(other);
    }
    Ok((tally, child.wait()?.success()))
}

fn pass_on(stream: impl BufRead, show: impl Fn(&str)) -> Tally {
    let mut tally = Tally::default();
    for line in stream.lines().map_while(Result::ok) {
        if let Some(more) = closing(&line) {
            tally.add(more);
        }
        show(&line);
    }
    tally
}

/// Reads a closing line of libtest (`test result: ok. 3 passed; 0 failed; 1 ignored; …`) or nextest
/// (`Summary [  1.2s] 4 tests run: 3 passed, 1 failed, 2 skipped`); colours are off when the output is a pipe.
fn closing(line: &str) -> Option<Tally> {
    let line = line.trim();
    let libtest = line.starts_with("test result:");
    if !libtest && !line.starts_with("Summary [") {
        return None;
    }
    let mut tally = Tally::default();
    let counts = if libtest { line } else { line.split_once("run:")?.1 };
    let words: Vec<&str> = counts
        .split([' ', ';', ',', '(', ')'])
        .filter(|word| !word.is_empty())
        .collect();
    for pair in words.windows(2) {
        let Ok(number) = pair[0].parse::<u64>() else {
            continue;
        };
        match pair[1] {
            "passed" => tally.passed += number,
            "failed" | "timed" | "exec" => tally.failed += number,
            "ignored" | "skipped" => tally.skipped += number,
            _ => {}
        }
    }
    // What a filter took out was not asked for.
    if !libtest {
        tally.skipped = 0;
    }
    Some(tally)
}

/// Runs a suite; what follows is the suite's own.
pub fn suite_command(suite: &str) -> Command {
    let mut command = sh::cargo();
    command.args([
        "test",
        "--quiet",
        "--locked",
        "--package",
        "agent-fips-proxy-tests",
        "--test",
        suite,
        "--",
    ]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_read() {
        let tally = |passed, failed, skipped| {
            Some(Tally {
                passed,
                failed,
                skipped,
            })
        };
        for (line, expected) in [
            (
                "test result: FAILED. 10 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 15.83s",
                tally(10, 1, 2),
            ),
            (
                "     Summary [   0.120s] 7 tests run: 5 passed (1 slow), 2 failed, 9 skipped",
                tally(5, 2, 0),
            ),
            (
                "     Summary [   0.120s] 1 test run: 1 passed, 0 skipped",
                tally(1, 0, 0),
            ),
            ("test passed: 3 failed", None),
            ("running 3 tests", None),
        ] {
            assert_eq!(closing(line), expected, "{line}");
        }
    }

    #[test]
    fn every_suite_file_is_in_the_list() {
        let mut files: Vec<String> = std::fs::read_dir(sh::root().join("tests/suites"))
            .unwrap()
            .filter_map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .into_string()
                    .unwrap()
                    .strip_suffix(".rs")
                    .map(str::to_owned)
            })
            .collect();
        files.retain(|file| !SUITES.contains(&file.as_str()));
        assert!(
            files.is_empty(),
            "suites that `cargo xtask test` would not run: {files:?}"
        );
    }
}
