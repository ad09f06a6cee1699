//! Compiles the eBPF programs from source into `OUT_DIR`, where `intercept::load` embeds them, and tells the binary what
//! it was built from.
//!
//! The target `bpfel-unknown-none` has no prebuilt `core`: a compiler, the library source of exactly that compiler, and
//! `bpf-linker` are needed. Two pairs are known (docs/KERNELS.md); the first that is there and works is taken.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// File name of the object in `OUT_DIR`, and of the binary target that makes it.
const OBJECT: &str = "agent-fips-proxy-ebpf";
/// Set to anything: do not build the programs. For lint and documentation; loading such an object is an error.
const SKIP: &str = "AGENT_FIPS_PROXY_SKIP_EBPF";
/// Where `bpf-linker` is, when it is none of the usual places.
const LINKER: &str = "BPF_LINKER";
/// Debian's `rustc-web`; `rust-web-src` brings its library source.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Shown by cargo as the reason of the failure.
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("the package has no parent directory")?
        .to_owned();
    for path in ["proxy-ebpf/src", "proxy-ebpf/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    for name in [SKIP, LINKER] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    git_commit(&workspace);

    let object = out.join(OBJECT);
    let compiler = if env::var_os(SKIP).is_some() {
        fs::write(&object, []).map_err(|error| format!("cannot write {}: {error}", object.display()))?;
        "none (built without eBPF programs)".to_owned()
    } else {
        compile(&workspace, &out, &object)?
    };
    println!("cargo::rustc-env=AFP_EBPF_RUSTC={compiler}");
    Ok(())
}

/// A compiler with its matching library source.
struct Toolchain {
    /// What it is, for messages.
    name: &'static str,
    /// `cargo`, ready for its arguments.
    cargo: Command,
    /// `rustc --version`.
    version: String,
}

/// Builds the object with the first toolchain that works; returns the compiler's version.
fn compile(workspace: &Path, out: &Path, object: &Path) -> Result<String, String> {
    let linker = linker(workspace)
        .ok_or_else(|| format!("bpf-linker not found ({LINKER}, target/tools/bin, PATH). {CURE}"))?;
    let mut failures = Vec::new();
    for mut toolchain in [nightly(), distribution()].into_iter().flatten() {
        let target = out.join("ebpf");
        match run(&mut toolchain.cargo, workspace, &target, &linker) {
            Ok(()) => {
                let built = target.join("bpfel-unknown-none/release").join(OBJECT);
                fs::copy(&built, object)
                    .map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
                return Ok(toolchain.version);
            }
            Err(error) => failures.push(format!("{} ({}): {error}", toolchain.name, toolchain.version)),
        }
    }
    if failures.is_empty() {
        return Err(format!(
            "no compiler for eBPF found: neither a rustup nightly with rust-src nor {DISTRIBUTION_RUSTC} with its \
             library source. {CURE}"
        ));
    }
    Err(format!(
        "cannot build the eBPF programs. {CURE}\n{}",
        failures.join("\n")
    ))
}

const CURE: &str = "Run `cargo xtask setup`: it installs what is missing";

/// `cargo build` of the programs.
fn run(cargo: &mut Command, workspace: &Path, target: &Path, linker: &Path) -> Result<(), String> {
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let home = env::var("CARGO_HOME").unwrap_or_else(|_| "/nonexistent".to_owned());
    // BTF is made from debug information; the paths in it are those of any machine.
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("--remap-path-prefix={}=.", workspace.display()),
        format!("--remap-path-prefix={home}=/cargo"),
    ];
    let output = cargo
        .args([
            "build",
            "--locked",
            "--quiet",
            "--release",
            "--package",
            "proxy-ebpf",
            "--bin",
            OBJECT,
        ])
        .args([
            "--features",
            "kernel",
            "--target",
            "bpfel-unknown-none",
            "-Zbuild-std=core",
            "--target-dir",
        ])
        .arg(target)
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // bpf-linker optimises the whole program itself.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// rustup's nightly, when it has the library source.
fn nightly() -> Option<Toolchain> {
    let rustc = |argument: &[&str]| {
        let mut command = clean("rustup");
        command.args(["run", "nightly", "rustc"]).args(argument);
        text(&mut command)
    };
    has_source(&rustc(&["--print", "sysroot"])?).then_some(())?;
    let mut cargo = clean("rustup");
    cargo.args(["run", "nightly", "cargo"]);
    Some(Toolchain {
        name: "rustup nightly",
        cargo,
        version: rustc(&["--version"])?,
    })
}

/// The distribution's compiler, when it has the library source; the running cargo drives it.
fn distribution() -> Option<Toolchain> {
    let rustc = |argument: &[&str]| text(clean(DISTRIBUTION_RUSTC).args(argument));
    has_source(&rustc(&["--print", "sysroot"])?).then_some(())?;
    let mut cargo = clean(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // A stable compiler that may use `-Z build-std`: source and compiler are of one version, which is what matters.
    cargo.env("RUSTC", DISTRIBUTION_RUSTC).env("RUSTC_BOOTSTRAP", "1");
    Some(Toolchain {
        name: "the distribution's rustc",
        cargo,
        version: rustc(&["--version"])?,
    })
}

fn has_source(sysroot: &str) -> bool {
    Path::new(sysroot)
        .join("lib/rustlib/src/rust/library/core")
        .exists()
}

/// `bpf-linker`: named, built by `cargo xtask setup`, or installed.
fn linker(workspace: &Path) -> Option<PathBuf> {
    if let Some(named) = env::var_os(LINKER) {
        return Some(PathBuf::from(named));
    }
    let tools = "tools/bin/bpf-linker";
    let mut places = vec![workspace.join("target").join(tools)];
    places.extend(env::var_os("CARGO_TARGET_DIR").map(|target| workspace.join(target).join(tools)));
    if let Some(path) = env::var_os("PATH") {
        places.extend(env::split_paths(&path).map(|folder| folder.join("bpf-linker")));
    }
    places.into_iter().find(|place| place.is_file())
}

/// A command that inherits nothing of the outer build: its flags, its compiler, its job server and its library path
/// are for another target and another compiler.
fn clean(program: impl Into<OsString>) -> Command {
    let mut command = Command::new(program.into());
    // How to reach the registry is no property of the outer build.
    let keep = |name: &str| {
        [
            "CARGO_HOME",
            "CARGO_HTTP",
            "CARGO_NET",
            "CARGO_REGISTR",
            "CARGO_SOURCE",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let outer = ["CARGO", "RUSTC", "RUSTDOC", "DEP_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || [
                "RUSTFLAGS",
                "RUSTUP_TOOLCHAIN",
                "LD_LIBRARY_PATH",
                "MAKEFLAGS",
                "TARGET",
                "OUT_DIR",
            ]
            .contains(&name.as_ref());
        if outer && !keep(&name) {
            command.env_remove(name.as_ref());
        }
    }
    command
}

/// The commit, when this is a git checkout; empty otherwise.
fn git_commit(workspace: &Path) {
    let git = |arguments: &[&str]| text(Command::new("git").arg("-C").arg(workspace).args(arguments));
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    println!("cargo::rustc-env=AFP_GIT_COMMIT={commit}");
    // Only a release build is rebuilt for a new commit: while developing, each commit would cost a build. What has no programs
    // in it is released to nobody.
    if env::var("PROFILE").as_deref() == Ok("release")
        && env::var_os(SKIP).is_none()
        && let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])
    {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// Trimmed standard output of a command that succeeded.
fn text(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set: this is a build script, run by cargo"))
}
