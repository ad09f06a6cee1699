//! `--check-reproducible`: the commit, twice, by the recipe that everybody uses, each time in a folder of its own with nothing built
//! before; and not one byte of difference.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::sha256;
use crate::{build, setup, sh};

/// Builds, packages and compares. What is not committed is not in it.
pub fn run(revision: u32) -> Result<()> {
    let base = build::target().join("reproducible");
    let mut first: Option<Vec<(String, String)>> = None;
    // Names of different length: a path in a file would move what comes after it.
    for name in ["a", "another-place"] {
        let folder = base.join(name);
        let digests = once(&folder, revision).with_context(|| format!("in {}", folder.display()))?;
        for (file, digest) in &digests {
            println!("{digest}  {file}  ({name})");
        }
        match &first {
            None => first = Some(digests),
            Some(first) if *first == digests => {}
            Some(_) => bail!(
                "not reproducible: the digests above differ. Both are left below {}: `diffoscope` shows where",
                base.display()
            ),
        }
    }
    std::fs::remove_dir_all(&base).with_context(|| format!("cannot remove {}", base.display()))?;
    eprintln!("reproducible: program, SBOM and packages are the same from two folders");
    Ok(())
}

/// Name and SHA-256 of everything that one build makes.
fn once(folder: &Path, revision: u32) -> Result<Vec<(String, String)>> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    let tree = folder.join("tree");
    sh::run(
        sh::command("git")
            .args(["clone", "--quiet", "--no-hardlinks", "."])
            .arg(&tree),
    )?;
    // The tools are pinned: building them again would only take time.
    std::fs::create_dir(tree.join("target"))?;
    std::os::unix::fs::symlink(setup::tools(), tree.join("target/tools"))?;
    let mut recipe = sh::cargo();
    recipe
        .args([
            "run",
            "--quiet",
            "--locked",
            "--package",
            "xtask",
            "--",
            "package",
        ])
        .arg(format!("--revision={revision}"))
        .current_dir(&tree)
        .env_remove("CARGO_TARGET_DIR");
    sh::run(&mut recipe)?;
    let mut digests = Vec::new();
    for entry in std::fs::read_dir(tree.join("target/package"))? {
        let path = entry?.path();
        if path.is_file() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            digests.push((name, sha256(&path)?));
        }
    }
    // The next one needs the room.
    std::fs::remove_dir_all(tree.join("target/release"))?;
    digests.sort();
    Ok(digests)
}
