//! The list as files: the root of a package, with modes and times as they will be.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::assets::{ASSETS, In, Kind, Source};
use super::{Job, gzip};
use crate::sh;

/// A file of a package.
pub struct Staged {
    /// From the root, without a slash in front.
    pub path: String,
    pub kind: Kind,
}

/// Lays out the files of one package; sorted by path.
pub fn lay_out(job: &Job, package: In, root: &Path) -> Result<Vec<Staged>> {
    let mut files = Vec::new();
    let made = job.output.join("made");
    for asset in ASSETS {
        if asset.within != In::Both && asset.within != package {
            continue;
        }
        let sources = match asset.source {
            Source::Program => vec![job.program.clone()],
            Source::Tree(path) => vec![sh::root().join(path)],
            Source::Made(path) => vec![made.join(path)],
            Source::MadeFolder(path) => files_of(&made.join(path))?,
            Source::TreeFolder(path) => files_of(&sh::root().join(path))?,
        };
        for source in sources {
            let mut path = asset.to.to_owned();
            if path.ends_with('/') {
                path += &source.file_name().unwrap_or_default().to_string_lossy();
            }
            let there = root.join(&path);
            copy(&source, &there, matches!(asset.source, Source::Program))?;
            if asset.gzip {
                gzip(&there)?;
                path += ".gz";
            }
            files.push(Staged {
                path,
                kind: asset.kind,
            });
        }
    }
    settle(root, job.epoch)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The files of a folder, sorted; none where it is not there.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn copy(from: &Path, to: &Path, program: bool) -> Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let mode = if program { 0o755 } else { 0o644 };
    std::fs::set_permissions(to, PermissionsExt::from_mode(mode))?;
    Ok(())
}

/// Modes of folders and times of everything, whatever the umask and the clock of the build are.
pub fn settle(root: &Path, epoch: u64) -> Result<()> {
    sh::run(
        Command::new("find")
            .arg(root)
            .args(["-type", "d", "-exec", "chmod", "0755", "{}", "+"]),
    )?;
    sh::run(Command::new("find").arg(root).args([
        "-exec",
        "touch",
        "--no-dereference",
        &format!("--date=@{epoch}"),
        "{}",
        "+",
    ]))
}
