//! `cargo xtask ci`: what `.ci/run` calls.

use anyhow::Result;

use crate::bench::instructions;
use crate::{audit, docs, fuzz, lint, test};

/// The other kernel of every run: Debian 12's own, without TCX and with the refusals of an older verifier. The rest is run by hand
/// (`cargo xtask test --kernel 5.10 --kernel 6.12 --kernel latest`): each takes minutes under emulation.
const KERNEL: &str = "6.1";
/// What runs there: the classifiers and the pods, through both datapaths. `datapath` is run by hand too: it takes as long as both.
const SUITES: &[&str] = &["classifiers", "pods"];

/// Options of `cargo xtask ci`.
#[derive(clap::Args, Default)]
pub struct Options {}

/// Lint first: it is the fastest to say no. The closing line of the tests comes last, where a reader looks for it.
pub fn run(_: &Options) -> Result<()> {
    lint::run(&lint::Options::default())?;
    docs::run(&docs::Options { check: true })?;
    audit::run(&audit::Options::default())?;
    // Behind the audit, whose release build has compiled the dependencies.
    instructions::run(&instructions::Options::default())?;
    // Before the tests, which need what it compiles of other crates.
    fuzz::run(&fuzz::Options::default())?;
    test::run_with_kernel(KERNEL, SUITES)
}
