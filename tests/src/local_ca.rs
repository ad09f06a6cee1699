//! The proxy's local authority as an operator makes it: by the command line, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::proxy::binary;
use crate::world::SITE;
use crate::{capture, check};

/// A folder for an authority, and the command line on it.
pub struct LocalAuthority {
    folder: TempDir,
}

impl LocalAuthority {
    /// With an authority in it.
    pub fn new() -> Result<Self> {
        let made = Self::none()?;
        made.good(&["init"])?;
        Ok(made)
    }

    /// Without one.
    pub fn none() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("afp-ca-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()?;
        Ok(Self { folder })
    }

    /// `ca.dir`
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("ca")
    }

    /// `ca` with these words.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .arg("ca")
            .args(words)
            .args(["--config", "/dev/null", "--env-file", "/dev/null"])
            .args(["--set", &format!("site={SITE}")])
            .args(["--set", &format!("ca.dir={}", self.dir().display())]);
        Ok(command)
    }

    /// The same, run.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        capture(&mut self.command(words)?)
    }

    /// The same, which must succeed; standard output.
    pub fn good(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        check!(
            output.status.success(),
            "ca {words:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `ca show --json`.
    pub fn show(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.run(&["show", "--json"])?.stdout)?)
    }

    /// The first sixteen digits of its fingerprint, by which its files are named.
    pub fn id(&self) -> Result<String> {
        let show = self.show()?;
        let fingerprint = show["authorities"][0]["fingerprint"]
            .as_str()
            .context("no fingerprint")?;
        Ok(fingerprint[..16].to_owned())
    }

    /// The file of its certificate.
    pub fn certificate(&self) -> Result<PathBuf> {
        Ok(self.dir().join(format!("{}.pem", self.id()?)))
    }

    /// The file of its key.
    pub fn key(&self) -> Result<PathBuf> {
        Ok(self.dir().join(format!("{}.key", self.id()?)))
    }

    /// What `ca install` writes for clients (`<ca.dir>/environment`), on a system whose roots are this machine's.
    pub fn environment(&self) -> Result<Vec<(String, String)>> {
        let root = tempfile::tempdir()?;
        // Every path is this machine's own, except that units are written into an empty folder: a link leads out of it.
        let bundle = roots()?;
        for path in [&bundle, &self.dir()] {
            let there = root.path().join(path.strip_prefix("/")?);
            if let Some(above) = there.parent() {
                std::fs::create_dir_all(above)?;
            }
            std::os::unix::fs::symlink(path, there)?;
        }
        let root = root.path().display().to_string();
        self.good(&["install", "--root", &root])?;
        Ok(std::fs::read_to_string(self.dir().join("environment"))?
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }
}

fn roots() -> Result<PathBuf> {
    let usual = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ];
    match usual.into_iter().map(Path::new).find(|path| path.is_file()) {
        Some(path) => Ok(path.to_owned()),
        None => bail!("no bundle of roots on this machine: install ca-certificates"),
    }
}
