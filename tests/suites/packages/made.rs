//! The packages: made once for all cases, two revisions of each, and brought to a machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use harness::proxy::binary;
use harness::systemd::Systemd;
use harness::{sibling, succeed};

/// What one run of `cargo xtask package` left.
pub struct Made {
    pub folder: PathBuf,
    pub deb: PathBuf,
    pub rpm: PathBuf,
    pub sbom: PathBuf,
}

/// The program under test, packaged as this revision (1 or 2): what 2 installs is an upgrade.
pub fn packages(revision: usize) -> Result<&'static Made> {
    static MADE: OnceLock<Result<[Made; 2], String>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        // Two processors, two packages.
        let second = std::thread::spawn(|| make(2));
        let first = make(1).map_err(|error| format!("{error:#}"))?;
        match second.join() {
            Ok(second) => Ok([first, second.map_err(|error| format!("{error:#}"))?]),
            Err(_) => Err("the thread that packages ended by itself".to_owned()),
        }
    });
    made.as_ref()
        .map(|made| &made[revision - 1])
        .map_err(|error| anyhow!("{error}"))
}

fn make(revision: usize) -> Result<Made> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no checkout")?;
    let folder = checkout.join(format!("target/packages-test/{revision}"));
    let mut command = Command::new(sibling("xtask").context("the suite is run by `cargo xtask test`")?);
    command
        .arg("package")
        .arg("--binary")
        .arg(binary()?)
        .arg("--output")
        .arg(&folder)
        .arg(format!("--revision={revision}"));
    succeed(&mut command)?;
    let find = |ending: &str| {
        let mut entries = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
        entries
            .find(|path| path.to_string_lossy().ends_with(ending))
            .with_context(|| format!("no *{ending} in {}", folder.display()))
    };
    Ok(Made {
        deb: find(".deb")?,
        rpm: find(".rpm")?,
        sbom: find(".cdx.json")?,
        folder,
    })
}

/// Copies a package onto the machine; its path there.
pub fn bring(machine: &Systemd<'_>, package: &Path) -> Result<String> {
    let name = package
        .file_name()
        .context("no name")?
        .to_string_lossy()
        .into_owned();
    let inside = format!("/run/machine/{name}");
    std::fs::copy(package, machine.path(&inside)).with_context(|| format!("cannot copy {name}"))?;
    Ok(inside)
}

/// Files and folders of the machine with our name in theirs, but for kernel files and what the tests brought; sorted.
pub fn traces(machine: &Systemd<'_>) -> Result<Vec<String>> {
    let places = ["/etc", "/usr", "/var", "/run", "/tmp", "/sys/fs/bpf"];
    let text = succeed(
        machine
            .command("find")
            .args(places)
            .args([
                "-path",
                "/run/machine",
                "-prune",
                "-o",
                "-path",
                "/run/systemd/system",
                "-prune",
            ])
            .args(["-o", "-name", "*agent-fips-proxy*", "-print"]),
    )?;
    let mut found: Vec<String> = text.lines().map(str::to_owned).collect();
    found.sort();
    Ok(found)
}

/// The line of a user in the machine's passwd.
pub fn user(machine: &Systemd<'_>, name: &str) -> Result<Option<String>> {
    let text = std::fs::read_to_string(machine.path("/etc/passwd"))?;
    let line = text.lines().find(|line| line.starts_with(&format!("{name}:")));
    Ok(line.map(str::to_owned))
}
