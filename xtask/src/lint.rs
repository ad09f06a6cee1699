//! `cargo xtask lint`: formatting, clippy, and the rules of this repository that no compiler knows.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;

/// The crates that only `proxy/src/tls` may name, so that the crypto module can be changed in one place.
const CRYPTO: &[&str] = &[
    "rustls::",
    "tokio_rustls::",
    "aws_lc_rs::",
    "aws_lc_fips_sys::",
    "webpki::",
    "rustls_pki_types::",
];

/// Files (or folders, ending in `/`) that may hold `unsafe`, and why. A new one is a decision for a review.
const UNSAFE: &[(&str, &str)] = &[
    ("proxy-ebpf/src/", "kernel helpers and contexts are raw pointers"),
    (
        "proxy/src/tls/module.rs",
        "the module's self-tests have no safe binding",
    ),
    (
        "proxy/src/relay/upstream/socket.rs",
        "TCP_INFO has no safe binding",
    ),
    (
        "proxy/src/intercept/sys.rs",
        "bpf(2) calls that aya does not offer",
    ),
    (
        "proxy/src/supervise/worker/heap.rs",
        "malloc_trim has no safe binding",
    ),
    (
        "proxy/src/supervise/channel.rs",
        "a descriptor is received as a bare number",
    ),
    (
        "proxy/src/supervise/descriptors.rs",
        "what the service manager and the program before leave open comes as bare numbers",
    ),
    (
        "tests/src/manager.rs",
        "a descriptor is received as a bare number",
    ),
    (
        "proxy/src/tls/provider.rs",
        "tests: the module's service indicator has no safe binding",
    ),
    (
        "tests/src/vendor.rs",
        "bare instructions are loaded by bpf(2), which has no binding",
    ),
    (
        "tests/suites/datapath/",
        "socket calls that std does not have: disconnect, odd option lengths",
    ),
];

/// Beginnings of paths that only exist on somebody's machine, in two halves so that this file passes its own check.
const MACHINE_PATHS: &[(&str, &str)] = &[("/ho", "me/"), ("/ro", "ot/."), ("/wo", "rk/"), ("/Us", "ers/")];

/// Options of `cargo xtask lint`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Only the rules of this repository: takes a moment
    #[arg(long)]
    pub rules: bool,
}

/// Runs every check, also after one failed.
pub fn run(options: &Options) -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("lint: {name}: {error:#}");
            failed.push(name);
        }
    };
    step("rules", rules());
    if !options.rules {
        step(
            "formatting",
            sh::run(sh::cargo().args(["fmt", "--all", "--", "--check"])),
        );
        step(
            "clippy",
            sh::run(sh::cargo().args([
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                // What only the counts of instructions and the fuzz targets compile is held to the same.
                "--features",
                "agent-fips-proxy/counts,agent-fips-proxy-fuzz/run",
                "--",
                "-D",
                "warnings",
            ])),
        );
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    eprintln!("lint: ok");
    Ok(())
}

/// Every rule over every file of the repository.
fn rules() -> Result<()> {
    let mut findings = Vec::new();
    for path in files()? {
        let Ok(text) = std::fs::read_to_string(sh::root().join(&path)) else {
            // Not UTF-8, or deleted but not yet committed.
            continue;
        };
        findings.extend(check(&path, &text));
        if path.ends_with(".md") {
            findings.extend(broken_links(&path, &text));
        }
    }
    if !findings.is_empty() {
        bail!("{} findings\n{}", findings.len(), findings.join("\n"));
    }
    Ok(())
}

/// Files under version control, and new ones that will be.
fn files() -> Result<Vec<String>> {
    let list = sh::output(&mut git(&[
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("the rules look at the files that git knows")?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn git(words: &[&str]) -> Command {
    let mut command = sh::command("git");
    command.args(words);
    command
}

/// The rules that need nothing but the text.
fn check(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let rust = path.ends_with(".rs");
    if rust && !text.starts_with("//!") {
        findings.push(format!(
            "{path}:1: does not open with a `//!` doc comment that says what it is for"
        ));
    }
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        if path != "Cargo.lock"
            && let Some((head, tail)) = MACHINE_PATHS
                .iter()
                .find(|(head, tail)| line.contains(&format!("{head}{tail}")))
        {
            findings.push(format!(
                "{path}:{number}: a path of somebody's machine ({head}{tail}…)"
            ));
        }
        let code = line.trim_start();
        if !rust || code.starts_with("//") {
            continue;
        }
        if outside_tls(path)
            && let Some(name) = CRYPTO.iter().find(|name| names(code, name))
        {
            findings.push(format!("{path}:{number}: names {name} outside proxy/src/tls"));
        }
        if holds_unsafe(code)
            && !UNSAFE
                .iter()
                .any(|(allowed, _)| path == *allowed || (allowed.ends_with('/') && path.starts_with(allowed)))
        {
            findings.push(format!(
                "{path}:{number}: `unsafe` in a file that xtask/src/lint.rs does not list"
            ));
        }
    }
    findings
}

/// The proxy's own code outside `tls`; tests may bring a peer of their own.
fn outside_tls(path: &str) -> bool {
    path.starts_with("proxy/src/")
        && path != "proxy/src/tls.rs"
        && !path.starts_with("proxy/src/tls/")
        && !path.ends_with("/tests.rs")
        && !path.contains("/tests/")
}

/// True when the code names this crate path as such (`crate::tls::rustls::` would still be a path into it).
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// The keyword, as opposed to the lint names `unsafe_code` or `undocumented_unsafe_blocks`.
fn holds_unsafe(code: &str) -> bool {
    let code = code.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '"' && c != '`' && c != '-')
        .any(|word| word == "unsafe")
}

/// Markdown links to files that are not there.
fn broken_links(path: &str, text: &str) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or_else(|| Path::new(""));
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for link in line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', ' ']).next())
        {
            let file = link.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !sh::root().join(folder).join(file).exists() {
                findings.push(format!("{path}:{number}: link to {file}, which is not there"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_what_it_is_for() {
        let machine = format!("{}{}me/x", "/ho", "me/");
        for (path, text, finding) in [
            ("proxy/src/a.rs", "fn a() {}\n", "does not open"),
            (
                "proxy/src/relay/a.rs",
                "//! A.\nuse rustls::ClientConfig;\n",
                "names rustls::",
            ),
            (
                "proxy/src/relay/a.rs",
                "//! A.\nlet x = aws_lc_rs::rand::fill(b);\n",
                "names aws_lc_rs::",
            ),
            (
                "proxy/src/relay/a.rs",
                "//! A.\n    unsafe { x() }\n",
                "`unsafe` in a file",
            ),
            ("docs/a.md", machine.as_str(), "somebody's machine"),
        ] {
            let findings = check(path, text);
            assert!(
                findings.len() == 1 && findings[0].contains(finding),
                "{text:?}: {findings:?}"
            );
        }
        assert_eq!(
            broken_links("README.md", "see [x](docs/not-there.md) and [y](#z)").len(),
            1
        );
    }

    #[test]
    fn what_is_allowed_is_not_found() {
        for (path, text) in [
            ("proxy/src/tls/client.rs", "//! A.\nuse rustls::ClientConfig;\n"),
            (
                "proxy/src/relay/a.rs",
                "//! A.\n// rustls::ClientConfig is elsewhere\n",
            ),
            ("proxy/src/relay/a.rs", "//! A.\n#![forbid(unsafe_code)]\n"),
            ("proxy-ebpf/src/connect.rs", "//! A.\nunsafe { x() }\n"),
        ] {
            assert_eq!(check(path, text), Vec::<String>::new(), "{text:?}");
        }
        assert!(
            broken_links(
                "README.md",
                "[x](Cargo.toml) [y](https://example.net/z)\n```\n[a](b)\n```"
            )
            .is_empty()
        );
    }
}
