//! Landlock: which files may be opened, and that no port is bound and nobody is signalled.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::Files;
use crate::config::Config;

/// The newest rules that are asked for: signals and abstract sockets, Linux 6.12. Older kernels hold to what they know.
const RULES: ABI = ABI::V6;

/// Read at any time by the C library, when it is asked for names: there may be no resolv.conf for our own resolver.
const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// Folders whose files a worker reads while it serves, those of them that are there.
pub(super) fn readable(config: &Config) -> Vec<PathBuf> {
    let folders = LIBRARIES.into_iter().chain([
        // resolv.conf and hosts, which are replaced by others of the name: the folder, not the files.
        "/etc", // Names of processes for the access log.
        "/proc",
    ]);
    let mut folders: Vec<PathBuf> = folders.map(PathBuf::from).collect();
    // Often a link to a file that a network service keeps in /run.
    folders.extend(folder_behind(Path::new("/etc/resolv.conf")));
    folders.extend(folder_behind(Path::new("/etc/hosts")));
    folders.extend(config.upstream.crl_dir.clone());
    folders.push(config.intercept.agents.pods.service_account.clone());
    folders.retain(|folder| folder.exists());
    folders
}

fn folder_behind(path: &Path) -> Option<PathBuf> {
    let file = path.canonicalize().ok()?;
    file.parent()
        .filter(|folder| *folder != Path::new("/"))
        .map(Path::to_owned)
}

/// From now on nothing else may be opened, by this thread and those it starts.
pub(super) fn restrict(readable: &[PathBuf]) -> Result<Files, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(RULES))?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Files::Restricted,
        RulesetStatus::PartiallyEnforced => Files::Partly,
        RulesetStatus::NotEnforced => Files::Unrestricted,
    })
}
