//! `cargo xtask ci`: what `.ci/run` calls.

use anyhow::Result;

use crate::{audit, docs, lint, test};

/// Options of `cargo xtask ci`.
#[derive(clap::Args, Default)]
pub struct Options {}

/// Lint first: it is the fastest to say no. The closing line of the tests comes last, where a reader looks for it.
pub fn run(_: &Options) -> Result<()> {
    lint::run(&lint::Options::default())?;
    docs::run(&docs::Options { check: true })?;
    audit::run(&audit::Options::default())?;
    test::run(&test::Options::default())
}
