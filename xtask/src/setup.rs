//! `cargo xtask setup`: installs what the build and the tests need and is not there yet, and says what it does.
//! Running it again costs milliseconds. Every other verb calls it first.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;

/// The version of bpf-linker that is tested with the compiler pair below.
const BPF_LINKER: &str = "0.13.0";
/// The LLVM that bpf-linker is built against; it must be at least the one of the eBPF compiler.
const LLVM: &str = "22";

/// Options of `cargo xtask setup`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Only say what is missing; exit with an error when anything is
    #[arg(long)]
    pub check: bool,
}

/// One thing that the build needs, how to see that it is there, and the Debian packages that bring it.
pub struct Need {
    /// For people.
    pub what: &'static str,
    /// True when it is there.
    pub present: fn() -> bool,
    /// Debian's names.
    pub packages: &'static [&'static str],
}

const NEEDS: &[Need] = &[
    Need {
        what: "C and C++ compilers and make (FIPS module, fuzzing engine)",
        present: || has("cc") && has("c++") && has("make"),
        packages: &["build-essential"],
    },
    Need {
        what: "cmake (FIPS module)",
        present: || has("cmake"),
        packages: &["cmake"],
    },
    Need {
        what: "Go (FIPS module: delocate and the integrity hash)",
        present: || has("go"),
        packages: &["golang-go"],
    },
    Need {
        what: "perl (FIPS module: assembly)",
        present: || has("perl"),
        packages: &["perl"],
    },
    Need {
        what: "an eBPF-capable compiler with its own library source",
        present: ebpf_compiler,
        packages: &["rustc-web", "rust-web-src"],
    },
    Need {
        what: "LLVM 22 (to build bpf-linker)",
        present: || linker().is_some() || PathBuf::from("/usr/lib/llvm-22/include/llvm-c/Core.h").exists(),
        packages: &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"],
    },
    Need {
        what: "ip, tc and ss (tests)",
        present: || has("ip") && has("tc") && has("ss"),
        packages: &["iproute2"],
    },
    Need {
        what: "CNI plug-ins (tests: pods)",
        present: || {
            PathBuf::from("/usr/lib/cni/ptp").is_file() && PathBuf::from("/usr/lib/cni/host-local").is_file()
        },
        packages: &["containernetworking-plugins"],
    },
    Need {
        what: "iptables (tests: pods behind masquerading)",
        present: || has("iptables") && has("ip6tables"),
        packages: &["iptables"],
    },
    Need {
        what: "nsenter and unshare (tests)",
        present: || has("nsenter") && has("unshare"),
        packages: &["util-linux"],
    },
    Need {
        what: "curl (tests: a client that nobody here wrote)",
        present: || has("curl"),
        packages: &["curl"],
    },
    Need {
        what: "nm and strip (tests: which symbols are linked)",
        present: || has("nm"),
        packages: &["binutils"],
    },
    Need {
        what: "valgrind (counts of instructions)",
        present: || has("valgrind"),
        packages: &["valgrind"],
    },
    Need {
        what: "Node (tests: a client with roots of its own)",
        present: || has("node"),
        packages: &["nodejs"],
    },
    Need {
        what: "systemd (tests: which units a drop-in reaches, and our own in namespaces; it need not run here)",
        present: || has("systemd-analyze") && PathBuf::from("/lib/systemd/systemd").is_file(),
        packages: &["systemd"],
    },
    Need {
        what: "rpm and rpmbuild, dpkg-deb and dpkg-shlibdeps (packages)",
        present: || has("rpm") && has("rpmbuild") && has("dpkg-deb") && has("dpkg-shlibdeps"),
        packages: &["rpm", "dpkg-dev"],
    },
    Need {
        what: "lintian and rpmlint, man, zsh and fish (tests: packages)",
        present: || ["lintian", "rpmlint", "man", "zsh", "fish"].into_iter().all(has),
        packages: &["lintian", "rpmlint", "man-db", "zsh", "fish"],
    },
    Need {
        what: "openssl (tests: a verifier and peers that are not ours)",
        present: || has("openssl"),
        packages: &["openssl"],
    },
    Need {
        what: "Python with venv (tests: the `datadog` client from PyPI)",
        present: || sh::succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])),
        packages: &["python3", "python3-venv"],
    },
];

/// Installs what is missing.
pub fn run(options: &Options) -> Result<()> {
    let missing = missing(NEEDS);
    if options.check {
        if linker().is_none() {
            eprintln!("setup: missing: bpf-linker {BPF_LINKER}");
        }
        if !missing.is_empty() || linker().is_none() {
            bail!("something is missing; `cargo xtask setup` installs it");
        }
        return Ok(());
    }
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    if linker().is_none() {
        install_linker()?;
    }
    Ok(())
}

/// Installs what is missing of these, which not every verb needs; the packages that it installed.
pub fn install(needs: &[Need]) -> Result<Vec<&'static str>> {
    let missing = missing(needs);
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    Ok(missing
        .iter()
        .flat_map(|need| need.packages.iter().copied())
        .collect())
}

/// What is missing of these, told to people.
fn missing(needs: &[Need]) -> Vec<&Need> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    for need in &missing {
        eprintln!(
            "setup: missing: {} -> Debian packages {}",
            need.what,
            need.packages.join(" ")
        );
    }
    missing
}

/// Where `bpf-linker` is: the copy that setup built inside `target/`, or one on PATH.
pub fn linker() -> Option<PathBuf> {
    let own = tools().join("bin/bpf-linker");
    [own, PathBuf::from("bpf-linker")].into_iter().find(|program| {
        sh::output(Command::new(program).arg("--version")).is_ok_and(|version| version.contains(BPF_LINKER))
    })
}

/// Tools that setup builds live inside the checkout: nothing is left behind elsewhere.
pub fn tools() -> PathBuf {
    sh::root().join("target/tools")
}

fn install_packages(missing: &[&Need]) -> Result<()> {
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|need| need.packages.iter().copied())
        .collect();
    if !has("apt-get") {
        bail!(
            "this system has no apt-get. Install the equivalents of these Debian packages and run again: {}",
            packages.join(" ")
        );
    }
    eprintln!("setup: installing with apt-get: {}", packages.join(" "));
    let update = sh::run(apt().args(["update", "-qq"]));
    if let Err(error) = update {
        // One unreachable third-party source must not stop us: the install below decides.
        eprintln!("setup: apt-get update had trouble ({error}); going on with the lists there are");
    }
    sh::run(
        apt()
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&packages),
    )
    .context("apt-get install failed; as root, run the line above by hand to see why")
}

/// apt-get, through sudo when we are not root.
fn apt() -> Command {
    let root = sh::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = if root {
        sh::command("apt-get")
    } else {
        let mut sudo = sh::command("sudo");
        sudo.arg("apt-get");
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_linker() -> Result<()> {
    eprintln!(
        "setup: building bpf-linker {BPF_LINKER} against LLVM {LLVM} into target/tools (about a minute)"
    );
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    let mut command = sh::cargo();
    command
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--no-default-features",
            "--quiet",
        ])
        .args(["--features", &format!("llvm-{LLVM}"), "--root"])
        .arg(tools())
        .env("LLVM_PREFIX", &prefix)
        .env("RUSTFLAGS", format!("-L{prefix}/lib"))
        .env("CARGO_TARGET_DIR", sh::root().join("target/tools-build"));
    sh::run(&mut command).context("cannot build bpf-linker")
}

/// Either a rustup nightly with rust-src, or the distribution's compiler with its own source.
fn ebpf_compiler() -> bool {
    let nightly = sh::output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
        .is_ok_and(|sysroot| {
            PathBuf::from(sysroot.trim())
                .join("lib/rustlib/src/rust/library/core")
                .exists()
        });
    nightly || distribution_compiler()
}

/// Debian's `rustc-web` with `rust-web-src`.
fn distribution_compiler() -> bool {
    sh::output(Command::new("/usr/bin/rustc").args(["--print", "sysroot"])).is_ok_and(|sysroot| {
        PathBuf::from(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .exists()
    })
}

/// True when a program is on PATH.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}
