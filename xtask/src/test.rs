//! `cargo xtask test`: unit tests of every package, then the suites of `tests/` with the debug binary, then one closing
//! line that counts them all.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{build, sh};

/// The suites, in the order of what a failure in them explains: one that fails early explains later ones.
pub const SUITES: &[&str] = &[
    "selfcheck",
    "datapath",
    "fips",
    "direct",
    "intercept",
    "lifecycle",
    "secrets",
];

/// Options of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Run only this suite (repeatable); `unit` stands for the unit tests
    #[arg(long = "suite", value_name = "NAME")]
    pub suites: Vec<String>,
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

/// Runs everything that was asked for, also after a failure, and fails at the end when anything did.
pub fn run(options: &Options) -> Result<()> {
    let known: Vec<&str> = SUITES.iter().copied().filter(|suite| exists(suite)).collect();
    if let Some(unknown) = options
        .suites
        .iter()
        .find(|name| *name != "unit" && !known.contains(&name.as_str()))
    {
        bail!("no suite `{unknown}`; there are: unit, {}", known.join(", "));
    }
    let wanted = |name: &str| options.suites.is_empty() || options.suites.iter().any(|suite| suite == name);
    let mut tally = Tally::default();
    let mut broken = Vec::new();
    if wanted("unit") {
        report(
            "unit",
            count(&mut units(options.filter.as_deref())),
            &mut tally,
            &mut broken,
        );
    }
    let suites: Vec<&str> = known.into_iter().filter(|suite| wanted(suite)).collect();
    if !suites.is_empty() {
        sh::run(sh::cargo().args(["build", "--locked", "--bins"]).args([
            "--package",
            "agent-fips-proxy",
            "--package",
            "agent-fips-proxy-tests",
        ]))?;
    }
    for suite in suites {
        let mut command = sh::cargo();
        command
            .args([
                "test",
                "--quiet",
                "--locked",
                "--package",
                "agent-fips-proxy-tests",
                "--test",
                suite,
                "--",
            ])
            .args(options.filter.as_deref())
            .env("AGENT_FIPS_PROXY_BIN", build::binary(true))
            // A backtrace of the harness tells nothing about the proxy.
            .env("RUST_BACKTRACE", "0");
        report(suite, count(&mut command), &mut tally, &mut broken);
    }
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

fn report(
    name: &'static str,
    result: Result<(Tally, bool)>,
    total: &mut Tally,
    broken: &mut Vec<&'static str>,
) {
    let good = match result {
        Ok((tally, good)) => {
            total.passed += tally.passed;
            total.failed += tally.failed;
            total.skipped += tally.skipped;
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
        broken.push(name);
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
        tally.passed += other.passed;
        tally.failed += other.failed;
        tally.skipped += other.skipped;
    }
    Ok((tally, child.wait()?.success()))
}

fn pass_on(stream: impl BufRead, show: impl Fn(&str)) -> Tally {
    let mut tally = Tally::default();
    for line in stream.lines().map_while(Result::ok) {
        if let Some(more) = closing(&line) {
            tally.passed += more.passed;
            tally.failed += more.failed;
            tally.skipped += more.skipped;
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
