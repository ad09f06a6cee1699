//! `cargo xtask`: every developer and CI action as one typed verb. Run `cargo xtask help` for the list.

mod audit;
mod bench;
mod build;
mod ci;
mod demo;
mod docs;
mod fuzz;
mod kernel;
mod lint;
mod package;
mod setup;
mod sh;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test and check agent-fips-proxy")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// The verbs; the doc comments are the help.
#[derive(Subcommand)]
enum Verb {
    /// Install what is missing to build and test: C tools for the FIPS module, the eBPF compiler pair, bpf-linker
    Setup(setup::Options),
    /// Build the release binary at target/release/agent-fips-proxy
    Build(build::Options),
    /// Compile the eBPF programs alone, as the build of the proxy does
    BuildEbpf(build::EbpfOptions),
    /// Show the main job for real, in namespaces of its own: agent, eBPF, proxy, TLS intake (root)
    Demo(demo::Options),
    /// Run the unit tests and the suites of tests/ with the real binary (suites that need root say so)
    Test(test::Options),
    /// Measure against peers in the same run, as ratios (root): the whole relay, or a part by its name
    Bench(bench::Options),
    /// Run our readers of others' bytes on bytes that libFuzzer makes, ten seconds for each target
    Fuzz(fuzz::Options),
    /// Write docs/reference from the program's own tables
    Docs(docs::Options),
    /// Check formatting, clippy and the rules of this repository
    Lint(lint::Options),
    /// Prove of the release build: the module and only it, no banned crate, no unexplained advisory, hardening
    Audit(audit::Options),
    /// Make the deb and the rpm of the release build, with manual pages, completions and SBOM
    Package(package::Options),
    /// What CI runs: lint, audit, the counts of instructions, fuzz, test
    Ci(ci::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    if !matches!(verb, Verb::Setup(_)) {
        setup::run(&setup::Options::default())?;
    }
    match verb {
        Verb::Setup(options) => setup::run(&options),
        Verb::Build(options) => build::run(&options),
        Verb::BuildEbpf(options) => build::ebpf(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Test(options) => test::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Docs(options) => docs::run(&options),
        Verb::Lint(options) => lint::run(&options),
        Verb::Audit(options) => audit::run(&options),
        Verb::Package(options) => package::run(&options),
        Verb::Ci(options) => ci::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
        for words in [
            "bench",
            "bench datapath",
            "bench instructions --update",
            "bench datapath --rounds 5 --json x",
            "bench --gate --workloads W1",
            "test --suite bench x",
            "fuzz",
            "fuzz event netlink --seconds 600",
            "fuzz --keep",
        ] {
            let words = ["xtask"].into_iter().chain(words.split(' '));
            assert!(
                Cli::try_parse_from(words.clone()).is_ok(),
                "{:?}",
                words.collect::<Vec<_>>()
            );
        }
        assert!(Cli::try_parse_from(["xtask", "bench", "--gate", "datapath"]).is_err());
        // For libFuzzer that would be for ever.
        assert!(Cli::try_parse_from(["xtask", "fuzz", "--seconds", "0"]).is_err());
    }
}
