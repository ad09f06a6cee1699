//! `cargo xtask audit`: what the release build is made of. Acceptance 11.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{build, setup, sh, test};

/// Pinned, so that a new release of a tool never changes what a commit means.
const CARGO_DENY: &str = "0.20.2";
const CARGO_AUDIT: &str = "0.22.2";

/// Crates of which nothing may be in the resolved graph, dev-dependencies and other targets included. Also banned in
/// deny.toml; asked here once more through cargo itself, which needs no configuration.
const BANNED: &[&str] = &[
    "ring",
    "openssl",
    "openssl-sys",
    "native-tls",
    "boring",
    "boring-sys",
];

/// What the certified module needs, exactly (docs/adr/0001-fips-module-pin.md).
const PINNED: &[(&str, &str)] = &[
    ("aws-lc-fips-sys", "0.13.11"),
    ("aws-lc-rs", "1.17.1"),
    ("rustls", "0.23.43"),
];

/// Options of `cargo xtask audit`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Look at the debug binary: faster, for trying the audit itself
    #[arg(long)]
    pub debug: bool,
}

/// Runs every check, also after one failed.
pub fn run(options: &Options) -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| match result {
        Ok(()) => eprintln!("audit: ok: {name}"),
        Err(error) => {
            eprintln!("audit: FAILED: {name}: {error:#}");
            failed.push(name);
        }
    };
    step("pinned versions", pinned());
    step("no banned crate in the resolved graph", banned());
    step("bans, licences and sources (cargo deny)", deny());
    step("advisories (cargo audit)", advisories());
    step("the binary", binary(options.debug));
    if !failed.is_empty() {
        bail!("audit failed: {}", failed.join("; "));
    }
    Ok(())
}

fn pinned() -> Result<()> {
    for (name, version) in PINNED {
        let line = sh::output(sh::cargo().args(["pkgid", "--locked", "--package", name]))?;
        let found = line.trim().rsplit(['@', '#']).next().unwrap_or_default();
        if found != *version {
            bail!("{name} is {found}, the certified module needs {version}");
        }
    }
    Ok(())
}

fn banned() -> Result<()> {
    for name in BANNED {
        let mut tree = sh::cargo();
        tree.args([
            "tree",
            "--locked",
            "--workspace",
            "--target",
            "all",
            "--edges",
            "all",
            "--invert",
            name,
        ]);
        // cargo fails when the package is not even in the lock file: as good as an empty answer.
        let Ok(tree) = sh::output(&mut tree) else { continue };
        if !tree.trim().is_empty() {
            bail!("{name} is in the graph:\n{tree}");
        }
    }
    Ok(())
}

fn deny() -> Result<()> {
    let program = tool("cargo-deny", CARGO_DENY, &[])?;
    sh::run(sh::command(program).args(["--locked", "check", "bans", "licenses", "sources"]))
}

/// The exceptions come from deny.toml, the one list with reasons.
fn advisories() -> Result<()> {
    let program = tool("cargo-audit", CARGO_AUDIT, &["--no-default-features"])?;
    let mut command = sh::command(program);
    command.args(["audit", "--deny", "warnings"]);
    for id in exceptions()? {
        command.args(["--ignore", &id]);
    }
    // A copy of the database beside the checkout serves machines without a network.
    match sh::root()
        .ancestors()
        .skip(1)
        .map(|folder| folder.join("shared/advisory-db"))
        .find(|copy| copy.is_dir())
    {
        Some(copy) => {
            eprintln!(
                "audit: using the copy of the advisory database at {}",
                copy.display()
            );
            command.args(["--no-fetch", "--stale", "--db"]).arg(copy);
        }
        None => eprintln!("audit: fetching the advisory database"),
    }
    sh::run(&mut command)
}

/// The advisory ids of deny.toml; each must have a reason that names an end.
fn exceptions() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(sh::root().join("deny.toml")).context("cannot read deny.toml")?;
    let mut ids = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| line.contains("RUSTSEC-"))
    {
        let id = line
            .split('"')
            .find(|word| word.starts_with("RUSTSEC-"))
            .with_context(|| format!("deny.toml: no quoted id in {line}"))?;
        if !line.contains("reason = ") || !line.contains("Ends ") {
            bail!("deny.toml: the exception {id} has no reason with an end (`reason = \"… Ends when …\"`)");
        }
        ids.push(id.to_owned());
    }
    Ok(ids)
}

/// The `module_*` cases of the fips suite against this binary: version string, symbols, libraries, hardening, and one
/// flipped byte that must abort it.
fn binary(debug: bool) -> Result<()> {
    build::run(&build::Options { debug })?;
    sh::run(
        test::suite_command("fips")
            .arg("module_")
            .env("AGENT_FIPS_PROXY_BIN", build::binary(debug))
            .env("RUST_BACKTRACE", "0"),
    )
}

/// A tool of this exact version inside `target/tools`, built when it is not there yet (minutes, once).
fn tool(name: &str, version: &str, options: &[&str]) -> Result<PathBuf> {
    let program = setup::tools().join("bin").join(name);
    // cargo's own list: not every tool says its version.
    let installed = std::fs::read_to_string(setup::tools().join(".crates.toml")).unwrap_or_default();
    if program.is_file() && installed.contains(&format!("\"{name} {version} (")) {
        return Ok(program);
    }
    eprintln!("audit: building {name} {version} into target/tools (some minutes, once)");
    let mut command = sh::cargo();
    command
        .args([
            "install",
            name,
            "--version",
            version,
            "--locked",
            "--quiet",
            "--root",
        ])
        .arg(setup::tools())
        .args(options)
        .env("CARGO_TARGET_DIR", sh::root().join("target/tools-build"));
    sh::run(&mut command).with_context(|| format!("cannot build {name}"))?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_read_with_their_reasons() {
        let ids = exceptions().unwrap();
        assert!(ids.iter().any(|id| id == "RUSTSEC-2026-0285"), "{ids:?}");
        assert!(
            ids.iter().all(|id| id.len() == "RUSTSEC-2026-0285".len()),
            "{ids:?}"
        );
    }
}
