//! The deb: control files beside the root, and `dpkg-deb`. What its scripts do is in `proxy/dist/deb`.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::assets::{In, Kind};
use super::stage::{Staged, lay_out, settle};
use super::{DESCRIPTION, Job, MAINTAINER, NAME, SUMMARY, date, script, tool, write};
use crate::sh;

const SCRIPTS: &[&str] = &["preinst", "postinst", "prerm", "postrm"];
/// Whoever makes the users, and what the scripts call.
const DEPENDS: &str =
    "systemd | systemd-standalone-sysusers | systemd-sysusers, init-system-helpers (>= 1.54~)";

/// Makes it.
pub fn make(job: &Job) -> Result<PathBuf> {
    let version = format!("{}-{}", job.version, job.revision);
    write(
        &job.output.join("made/changelog.Debian"),
        changelog(job, &version)?,
    )?;
    write(&job.output.join("made/copyright"), copyright())?;
    let root = job.output.join("deb");
    let files = lay_out(job, In::Deb, &root)?;
    let architecture = sh::output(tool(job, "dpkg").arg("--print-architecture"))?
        .trim()
        .to_owned();
    let control = root.join("DEBIAN");
    let size: u64 = files.iter().map(|file| size(&root, file)).sum::<Result<u64>>()?;
    let text = format!(
        "Package: {NAME}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\nInstalled-Size: {size}\n\
         Depends: {}, {DEPENDS}\nRecommends: ca-certificates\nSection: net\nPriority: optional\nDescription: {SUMMARY}\n{}",
        libraries(job)?,
        DESCRIPTION
            .iter()
            .map(|line| format!(" {line}\n"))
            .collect::<String>()
    );
    write(&control.join("control"), text)?;
    write(
        &control.join("conffiles"),
        listed(&files, |file| {
            (file.kind == Kind::Config).then(|| format!("/{}\n", file.path))
        }),
    )?;
    let mut sums = String::new();
    for file in files.iter().filter(|file| file.kind != Kind::Config) {
        let line = sh::output(tool(job, "md5sum").arg(root.join(&file.path)))?;
        let digest = line.split_whitespace().next().unwrap_or_default();
        writeln!(sums, "{digest}  {}", file.path)?;
    }
    write(&control.join("md5sums"), sums)?;
    for name in SCRIPTS {
        let path = control.join(name);
        write(&path, script(&format!("deb/{name}"))?)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    }
    settle(&root, job.epoch)?;
    let package = job.output.join(format!("{NAME}_{version}_{architecture}.deb"));
    sh::run(
        tool(job, "dpkg-deb")
            .args([
                "--root-owner-group",
                "-Zxz",
                if job.trial { "-z1" } else { "-z9" },
                "--build",
            ])
            .arg(&root)
            .arg(&package),
    )?;
    Ok(package)
}

fn listed(files: &[Staged], line: impl Fn(&Staged) -> Option<String>) -> String {
    files.iter().filter_map(line).collect()
}

/// In KiB, rounded up file by file, as the policy wants it (5.6.20).
fn size(root: &Path, file: &Staged) -> Result<u64> {
    Ok(std::fs::metadata(root.join(&file.path))?.len().div_ceil(1024))
}

/// The shared libraries with the versions that the program's symbols need.
fn libraries(job: &Job) -> Result<String> {
    let folder = job.output.join("made/shlibdeps");
    write(
        &folder.join("debian/control"),
        format!("Source: {NAME}\n\nPackage: {NAME}\nArchitecture: any\n"),
    )?;
    let text = sh::output(
        tool(job, "dpkg-shlibdeps")
            .args(["-O", "-e"])
            .arg(&job.program)
            .current_dir(&folder),
    )?;
    text.lines()
        .find_map(|line| line.strip_prefix("shlibs:Depends="))
        .map(str::to_owned)
        .context("dpkg-shlibdeps named no library")
}

/// The history of the packaging; the product's is beside it.
fn changelog(job: &Job, version: &str) -> Result<String> {
    Ok(format!(
        "{NAME} ({version}) stable; urgency=medium\n\n  * Packaged from the sources of version {}: see changelog.gz.\n\n -- {MAINTAINER}  {}\n",
        job.version,
        date(job.epoch, "+%a, %d %b %Y %H:%M:%S +0000")?
    ))
}

/// Machine-readable (DEP 5). The crates' own texts are too many for this form.
fn copyright() -> String {
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: {NAME}\n\
         Comment: The program contains the crates that third-party.txt.gz lists, each with its\n version, licence and text, among them the AWS-LC FIPS module.\n\n\
         Files: *\nCopyright: 2026 the authors of {NAME}\nLicense: Apache-2.0\n\n\
         License: Apache-2.0\n On Debian systems, the text of the Apache License 2.0 is in\n /usr/share/common-licenses/Apache-2.0.\n"
    )
}
