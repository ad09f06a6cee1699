//! The proxy's own cgroup: what the kernel programs recognise as "ourselves", and where the accepting side's programs
//! are attached.
//!
//! A socket belongs to the cgroup of the process that creates it, so the master moves before it makes listeners.
//! Under a service manager the unit's cgroup is already ours; elsewhere we make `<root>/agent-fips-proxy-<pid>`. Where the
//! root is not ours to write (the shipped unit: no root, and the hierarchy is read-only), the service manager gave us the unit's
//! cgroup (`Delegate=`), and we make `<unit>/agent-fips-proxy-<pid>`: so that what else we make there is beside it, not below.
//! Leftovers of a killed instance are removed at the next start: `rmdir` refuses as long as a process lives there,
//! which is exactly the ownership test, and safe against instances that run at the same time.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::InterceptError;
use super::host::{Cgroup2, may_write};
use super::probe_cgroup;

/// In the name of every cgroup that is ours.
pub(super) const NAME: &str = "agent-fips-proxy";

/// Membership in our own cgroup. Dropping it moves the process back and removes the cgroup when we made it.
#[derive(Debug)]
pub struct OwnCgroup {
    cgroups: Cgroup2,
    path: PathBuf,
    id: u64,
    /// Where cgroups of ours are made.
    parent: PathBuf,
    /// Where the process was before; `None` when the cgroup was there before us.
    previous: Option<PathBuf>,
}

impl OwnCgroup {
    /// Enters it.
    ///
    /// # Errors
    /// No cgroup2 hierarchy, or no right to make a cgroup and move into it (root).
    pub fn enter() -> Result<Self, InterceptError> {
        let cgroups = Cgroup2::find()?;
        let current = current()?;
        let parent = parent(&current, |cgroup| may_write(&cgroups.directory(cgroup)));
        remove_stale(&cgroups, &parent);
        if current != parent && is_own_leaf(&cgroups, &current) {
            let id = cgroups.id(&current)?;
            return Ok(Self {
                cgroups,
                path: current,
                id,
                parent,
                previous: None,
            });
        }
        let path = own_name(&parent);
        let directory = cgroups.directory(&path);
        // Another instance's clean-up may remove the directory while it is empty: then once more.
        for attempt in 0_u8.. {
            create(&directory)?;
            let members = directory.join("cgroup.procs");
            match fs::write(&members, "0") {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < 3 => {}
                Err(error) => return Err(InterceptError::file("move into the cgroup", members)(error)),
            }
        }
        let id = cgroups.id(&path)?;
        tracing::debug!(cgroup = %path.display(), id, "entered our own cgroup");
        Ok(Self {
            cgroups,
            path,
            id,
            parent,
            previous: Some(current),
        })
    }

    /// The kernel's id of the cgroup.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Enters it again after this process replaced its program. A cgroup that we made before is still ours to remove: the
    /// process goes back to `previous` then.
    ///
    /// # Errors
    /// As [`OwnCgroup::enter`].
    pub fn enter_again(previous: Option<PathBuf>) -> Result<Self, InterceptError> {
        let mut own = Self::enter()?;
        if own.previous.is_none() && own.path == own_name(&own.parent) {
            own.previous = previous;
        }
        Ok(own)
    }

    /// Where the process was before; `None` when the cgroup was there before us.
    pub fn previous(&self) -> Option<&Path> {
        self.previous.as_deref()
    }

    /// Its path below the cgroup2 root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where cgroups of ours are made, below the cgroup2 root: the root itself, or the unit's cgroup that was delegated to us.
    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    pub(super) fn cgroups(&self) -> &Cgroup2 {
        &self.cgroups
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let Some(previous) = &self.previous else {
            return;
        };
        let members = self.cgroups.directory(previous).join("cgroup.procs");
        let directory = self.cgroups.directory(&self.path);
        // A draining worker keeps the cgroup; the next start removes it then.
        if let Err(error) = fs::write(&members, "0").and_then(|()| fs::remove_dir(&directory)) {
            tracing::debug!(cgroup = %self.path.display(), %error, "our cgroup stays until the next start");
        }
    }
}

/// Where cgroups of ours may be made: the root, unless only the unit's cgroup is ours to write.
fn parent(current: &Path, may_write: impl Fn(&Path) -> bool) -> PathBuf {
    let root = PathBuf::from("/");
    if may_write(&root) {
        return root;
    }
    // After this process replaced its program it is one further down.
    let name = |cgroup: &Path| cgroup.file_name().map(|name| name.to_string_lossy().into_owned());
    let unit = match current.parent() {
        Some(above) if name(current).is_some_and(|name| is_made_by_us(&name)) => above,
        _ => current,
    };
    // Nobody else's, should somebody have been given the wrong one.
    if name(unit).is_some_and(|name| name.contains(NAME)) && may_write(unit) {
        return unit.to_owned();
    }
    root
}

fn own_name(parent: &Path) -> PathBuf {
    parent.join(format!("{NAME}-{}", std::process::id()))
}

/// Removes cgroups of instances that are gone, where instances make them; returns them. Never fails: one that is in use stays.
pub(super) fn remove_stale(cgroups: &Cgroup2, parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroups.directory(parent)) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if probe_cgroup::is_one(&name) {
                probe_cgroup::remove_stale(&entry.path()).is_ok()
            } else {
                is_made_by_us(&name) && fs::remove_dir(entry.path()).is_ok()
            }
        })
        .map(|entry| parent.join(entry.file_name()))
        .collect()
}

/// The kernel's ids of the cgroups that instances of us made, this one's among them.
pub(super) fn ids(cgroups: &Cgroup2, parent: &Path) -> BTreeSet<u64> {
    let Ok(entries) = fs::read_dir(cgroups.directory(parent)) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .filter(|entry| is_made_by_us(&entry.file_name().to_string_lossy()))
        .filter_map(|entry| Some(entry.metadata().ok()?.ino()))
        .collect()
}

/// `agent-fips-proxy-<pid>`: nothing else is ever removed.
fn is_made_by_us(name: &str) -> bool {
    name.strip_prefix(NAME)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

fn create(directory: &Path) -> Result<(), InterceptError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(InterceptError::file("create the cgroup", directory)(error))
        }
        _ => Ok(()),
    }
}

/// The cgroup2 membership of this process.
pub(super) fn current() -> Result<PathBuf, InterceptError> {
    let path = "/proc/self/cgroup";
    let text = fs::read_to_string(path).map_err(InterceptError::file("read", path))?;
    parse_membership(&text).ok_or_else(|| {
        InterceptError::Unsupported(
            "this process is in no cgroup2 cgroup (no `0::` line in /proc/self/cgroup, or one outside of the visible \
             hierarchy); interception needs cgroup2 (kernel command line: systemd.unified_cgroup_hierarchy=1)"
                .to_owned(),
        )
    })
}

fn parse_membership(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A cgroup outside of our cgroup namespace shows as `/../..`: nothing that we could open.
    (path.starts_with('/') && !path.split('/').any(|part| part == "..")).then(|| PathBuf::from(path))
}

/// True for a cgroup with our name and no children: a unit's, or one that we made and re-enter after an exec.
fn is_own_leaf(cgroups: &Cgroup2, cgroup: &Path) -> bool {
    let named = cgroup
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains(NAME));
    named
        && fs::read_dir(cgroups.directory(cgroup)).is_ok_and(|entries| {
            !entries
                .flatten()
                .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_lines() {
        let hybrid = "2:cpu:/x\n1:name=systemd:/y\n0::/system.slice/ssh.service\n";
        assert_eq!(parse_membership(hybrid), Some("/system.slice/ssh.service".into()));
        assert_eq!(parse_membership("0::/\n"), Some("/".into()));
        assert_eq!(
            parse_membership("0::/../../x\n"),
            None,
            "outside of the cgroup namespace"
        );
        assert_eq!(parse_membership("1:cpu:/x\n"), None, "cgroup v1 only");
    }

    #[test]
    fn cgroups_are_made_where_we_may() {
        let unit = "/system.slice/agent-fips-proxy.service";
        let inside = "/system.slice/agent-fips-proxy.service/agent-fips-proxy-4711";
        for (current, writable, expected) in [
            (unit, vec!["/", unit], "/"),
            (unit, vec![unit], unit),
            (inside, vec![unit, inside], unit),
            // Not delegated: what is asked for next says what is missing.
            (unit, vec![], "/"),
            // Writable, but not ours.
            ("/user.slice/shell.scope", vec!["/user.slice/shell.scope"], "/"),
            ("/", vec![], "/"),
        ] {
            let may = |cgroup: &Path| writable.iter().any(|one| Path::new(one) == cgroup);
            assert_eq!(
                parent(Path::new(current), may),
                Path::new(expected),
                "{current} {writable:?}"
            );
        }
    }

    #[test]
    fn only_our_naming_scheme_is_removed() {
        assert!(is_made_by_us("agent-fips-proxy-4711"));
        for other in [
            "agent-fips-proxy.service",
            "agent-fips-proxy-",
            "agent-fips-proxy-x1",
            "agent-fips-proxy",
            "agent-fips-proxy-probe-4711",
            "x-1",
        ] {
            assert!(!is_made_by_us(other), "{other}");
        }
        assert!(probe_cgroup::is_one("agent-fips-proxy-probe-4711"));
        for other in [
            "agent-fips-proxy-4711",
            "agent-fips-proxy-probe-",
            "agent-fips-proxy-probe-1x",
        ] {
            assert!(!probe_cgroup::is_one(other), "{other}");
        }
    }
}
