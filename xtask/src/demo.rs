//! `cargo xtask demo`: builds the proxy and the demo (`tests/src/bin/demo.rs`) and runs it.

use anyhow::Result;

use crate::{build, sh};

/// Options of `cargo xtask demo`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Leave everything running until Ctrl-C, and say how to look around
    #[arg(long)]
    pub keep: bool,
}

/// Builds what is needed, then becomes the demo.
pub fn run(options: &Options) -> Result<()> {
    let packages = [
        "--package",
        "agent-fips-proxy",
        "--package",
        "agent-fips-proxy-tests",
    ];
    sh::run(sh::cargo().args(["build", "--locked", "--bins"]).args(packages))?;
    let mut demo = sh::command(build::target().join("debug/demo"));
    demo.env("AGENT_FIPS_PROXY_BIN", build::binary(true));
    if options.keep {
        demo.arg("--keep");
    }
    sh::run(&mut demo)
}
