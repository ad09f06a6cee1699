//! Running `flare` on a host of a test, with a terminal or without, and reading its bundle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use harness::proxy::binary;
use harness::world::World;
use harness::{sha256, succeed};
use nix::pty::openpty;
use serde_json::Value;

/// `flare` on the host of a world.
pub struct Flare<'a> {
    world: &'a World,
    words: Vec<String>,
    env: Vec<(String, String)>,
    through: Vec<String>,
    folder: PathBuf,
}

impl<'a> Flare<'a> {
    /// With this configuration, which is written beside the proxy's, in a folder of its own that everybody may write to.
    pub fn new(world: &'a World, config: &Value) -> Result<Self> {
        let file = world.host.folder().join("flare.yaml");
        std::fs::write(&file, serde_json::to_string_pretty(config)?)?;
        let folder = world.host.folder().join("bundles");
        if !folder.exists() {
            std::fs::create_dir(&folder)?;
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
        }
        Ok(Self {
            world,
            words: vec![
                "flare".to_owned(),
                "--config".to_owned(),
                file.display().to_string(),
            ],
            env: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
            through: Vec::new(),
            folder,
        })
    }

    pub fn words(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A program in front.
    pub fn through(mut self, words: &[&str]) -> Self {
        self.through = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.world.host.command("env");
        command
            .arg("-i")
            .arg(format!("--chdir={}", self.folder.display()))
            .args(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        command.args(&self.through).arg(binary()?).args(&self.words);
        Ok(command)
    }

    /// Runs it without a terminal.
    pub fn run(&self) -> Result<Said> {
        Said::of(harness::capture(&mut self.command()?)?)
    }

    /// Runs it at a terminal where somebody types this.
    pub fn type_in(&self, text: &str) -> Result<Said> {
        let terminal = openpty(None, None).context("no terminal")?;
        let child = self
            .command()?
            .stdin(Stdio::from(terminal.slave))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut master = File::from(terminal.master);
        master.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        drop(master);
        Said::of(output)
    }

    /// Bundles in the folder where it ran.
    pub fn bundles(&self) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&self.folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.sort();
        Ok(paths)
    }

    /// A path in that folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// What it came to.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    fn of(output: Output) -> Result<Self> {
        Ok(Self {
            code: output.status.code().context("it was killed")?,
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }
}

/// The files of a bundle, unpacked by Python.
pub fn unpack(bundle: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    succeed(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(bundle)
            .arg(folder.path()),
    )?;
    let mut files = BTreeMap::new();
    let mut pending = vec![folder.path().to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        } else {
            let name = path.strip_prefix(folder.path())?.display().to_string();
            files.insert(name, std::fs::read(&path)?);
        }
    }
    Ok(files)
}

/// The same as text; what the manifest says of each file is true, and it says so of every one.
pub fn read(bundle: &Path) -> Result<BTreeMap<String, String>> {
    let files = unpack(bundle)?;
    let manifest: Value = serde_json::from_slice(files.get("manifest.json").context("no manifest")?)?;
    let listed = manifest["files"].as_array().context("no files in the manifest")?;
    if listed.len() + 1 != files.len() {
        bail!("{} files, and a manifest of {}", files.len(), listed.len());
    }
    for entry in listed {
        let name = entry["name"].as_str().unwrap_or_default();
        let bytes = files.get(name).with_context(|| format!("{name} is missing"))?;
        if entry["bytes"] != bytes.len() || entry["sha256"] != sha256(bytes).as_str() {
            bail!("{entry} is not what {name} is");
        }
    }
    files
        .into_iter()
        .map(|(name, bytes)| Ok((name, String::from_utf8(bytes)?)))
        .collect()
}
