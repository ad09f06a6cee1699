//! Which running processes trust the local authority, read from `/proc`: by their environment, and by when they started.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::intercept::CgroupGlob;
use crate::process;

/// Ticks of a second in `/proc/<pid>/stat`: USER_HZ, part of the kernel's ABI, 100 on every architecture we build for.
const USER_HZ: i64 = 100;

/// A process that trusts the authority, or an Agent, whether or not it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name: [`process::name`].
    pub name: String,
    /// Its cgroup is one of `intercept.agents.cgroups`.
    pub agent: bool,
    /// The variable that points it to the authority; `None`: none does. Unknown (`None`, too) where `readable` is false.
    pub by: Option<&'static str>,
    /// Its environment could be read: for others' processes that needs root.
    pub readable: bool,
    /// When it started, in seconds since 1970.
    pub started: i64,
}

impl Process {
    /// True when it started before `published`: it read its roots then, and does not know what was published later.
    pub fn is_older_than(&self, published: i64) -> bool {
        self.started < published
    }
}

/// What processes are pointed to.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// The folder of certificates.
    pub trust_dir: &'a Path,
    /// The distribution's roots and ours.
    pub bundle: &'a Path,
    /// Ours alone.
    pub authorities: &'a Path,
}

/// Every process that is pointed to one of `targets`, and every Agent by `globs`. Processes that end meanwhile are left out.
pub fn find(targets: Targets<'_>, globs: &[CgroupGlob]) -> Vec<Process> {
    let Some(boot) = boot_time() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id();
    let mut found: Vec<Process> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| look(pid, boot, targets, globs))
        .filter(|process| process.agent || process.by.is_some())
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

fn look(pid: u32, boot: i64, targets: Targets<'_>, globs: &[CgroupGlob]) -> Option<Process> {
    let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    // Fields after the name, which may hold anything and ends with the last parenthesis: the start is the 22nd of all.
    let stat = text("stat")?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: i64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let cgroup = text("cgroup")?;
    let cgroup = cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or_default()
        .to_owned();
    let environment = fs::read(format!("/proc/{pid}/environ"));
    Some(Process {
        pid,
        name: process::name(pid)?,
        agent: globs.iter().any(|glob| glob.matches(&cgroup)),
        by: environment
            .as_deref()
            .ok()
            .and_then(|bytes| pointed(pid, bytes, targets)),
        readable: environment.is_ok(),
        started: boot + ticks / USER_HZ,
    })
}

/// The variable of this environment that points to us.
fn pointed(pid: u32, environment: &[u8], targets: Targets<'_>) -> Option<&'static str> {
    let value = |name: &str| {
        environment
            .split(|byte| *byte == 0)
            .filter_map(|entry| std::str::from_utf8(entry).ok())
            .filter_map(|entry| entry.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let by = |name: &'static str, target: &Path, folders: bool| {
        value(name)?
            .split(':')
            .filter(|path| folders || !path.is_empty())
            .any(|path| is_same(pid, path, target))
            .then_some(name)
    };
    by("SSL_CERT_DIR", targets.trust_dir, true)
        .or_else(|| by("SSL_CERT_FILE", targets.bundle, false))
        .or_else(|| by("REQUESTS_CA_BUNDLE", targets.bundle, false))
        .or_else(|| by("NODE_EXTRA_CA_CERTS", targets.authorities, false))
}

/// True when `path`, as that process sees it, is `target`: in a pod it is mounted elsewhere.
fn is_same(pid: u32, path: &str, target: &Path) -> bool {
    if Path::new(path) == target {
        return true;
    }
    if !path.starts_with('/') {
        return false;
    }
    match (
        fs::metadata(format!("/proc/{pid}/root{path}")),
        fs::metadata(target),
    ) {
        (Ok(theirs), Ok(ours)) => (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()),
        _ => false,
    }
}

/// When the machine started, in seconds since 1970.
fn boot_time() -> Option<i64> {
    fs::read_to_string("/proc/stat")
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}
