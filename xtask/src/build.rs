//! `cargo xtask build` and `build-ebpf`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Options of `cargo xtask build`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Build the debug profile at target/debug/agent-fips-proxy instead
    #[arg(long)]
    pub debug: bool,
}

/// Options of `cargo xtask build-ebpf`.
#[derive(clap::Args, Default)]
pub struct EbpfOptions {}

/// Builds the binary and says where it is.
pub fn run(options: &Options) -> Result<()> {
    let build = ["build", "--locked", "--package", "agent-fips-proxy"];
    if options.debug {
        sh::run(sh::cargo().args(build))?;
    } else {
        sh::run(release(sh::cargo().args(build).arg("--release"))?)?;
    }
    let binary = binary(options.debug);
    let size = std::fs::metadata(&binary)
        .with_context(|| format!("{} was not built", binary.display()))?
        .len();
    eprintln!("built {} ({} MiB)", binary.display(), size / (1 << 20));
    Ok(())
}

/// Makes a release build the same in every folder: no path of this machine gets into it. Who builds the release otherwise gets
/// another file that does the same.
pub fn release(command: &mut Command) -> Result<&mut Command> {
    let sysroot = sh::output(sh::command("rustc").args(["--print", "sysroot"]))?;
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| Ok::<_, std::env::VarError>(format!("{}/.cargo", std::env::var("HOME")?)))
        .context("neither CARGO_HOME nor HOME is set")?;
    let (root, target) = (sh::root(), target());
    // Of two that fit, the later one counts.
    let remap = [
        (sysroot.trim(), "/rust"),
        (&home, "/cargo"),
        (&root.to_string_lossy(), "/agent-fips-proxy"),
        (&target.to_string_lossy(), "/target"),
    ]
    .map(|(from, to)| format!("--remap-path-prefix={from}={to}"));
    Ok(command.env("CARGO_ENCODED_RUSTFLAGS", remap.join("\x1f")))
}

/// Where cargo puts the proxy's binary.
pub fn binary(debug: bool) -> PathBuf {
    let profile = if debug { "debug" } else { "release" };
    target().join(profile).join("agent-fips-proxy")
}

/// The target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| sh::root().join("target"), PathBuf::from)
}

/// Runs the proxy's build script, which compiles the programs, and reports the object. `cargo check` runs build scripts
/// without compiling the proxy itself.
pub fn ebpf(_: &EbpfOptions) -> Result<()> {
    sh::run(sh::cargo().args(["check", "--locked", "--package", "agent-fips-proxy", "--lib"]))?;
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(target().join("debug/build"))?.flatten() {
        let object = entry.path().join("out/agent-fips-proxy-ebpf");
        if let Ok(about) = std::fs::metadata(&object) {
            objects.push((about.modified()?, about.len(), object));
        }
    }
    let Some((_, size, object)) = objects.into_iter().max() else {
        bail!("the build left no eBPF object; see the output above");
    };
    if size == 0 {
        bail!("the object is empty: AGENT_FIPS_PROXY_SKIP_EBPF was set for the last build");
    }
    eprintln!("built {} ({size} bytes)", object.display());
    Ok(())
}
