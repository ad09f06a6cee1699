//! `third-party.txt`: name, version and licence of every crate in the program, then the texts that their authors put beside the
//! sources, each once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::sbom::Crate;
use super::write;

/// How such files are called.
const NAMES: &[&str] = &[
    "license",
    "licence",
    "copying",
    "notice",
    "copyright",
    "unlicense",
    "patents",
];

/// Writes it into `made`.
pub fn make(crates: &[Crate], made: &Path) -> Result<()> {
    let mut list = String::from("Software in agent-fips-proxy that others wrote\n\n");
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in crates.iter().filter(|one| one.registry) {
        writeln!(list, "{} {}: {}", one.name, one.version, one.licence)?;
        if one.licence == "NOASSERTION" {
            bail!(
                "{} {} names no licence: deny.toml should have refused it",
                one.name,
                one.version
            );
        }
        for file in files(&one.folder)? {
            let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let text = String::from_utf8_lossy(&text)
                .replace("\r\n", "\n")
                .trim()
                .to_owned();
            let name = file
                .strip_prefix(&one.folder)
                .unwrap_or(&file)
                .display()
                .to_string();
            texts
                .entry(text)
                .or_default()
                .push(format!("{} {} ({name})", one.name, one.version));
        }
    }
    for (text, of) in &texts {
        write!(list, "\n{}\n{}\n\n{text}\n", "=".repeat(78), of.join("\n"))?;
    }
    write(&made.join("third-party.txt"), list)
}

/// The texts of one crate, its vendored module's among them; sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for place in [folder.to_owned(), folder.join("aws-lc")] {
        if !place.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&place)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_ascii_lowercase();
            if path.is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
