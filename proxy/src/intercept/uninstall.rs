//! Removes everything that interception leaves on a host, whether or not a master runs: pinned links (which detaches the
//! programs), pinned maps, empty cgroups, our own bpffs mount.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::attach::{detach_agent, pinned_cgroups};
use super::error::InterceptError;
use super::host::{Cgroup2, PinDirectory};
use super::own;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UninstallReport {
    /// Pinned links: each was a program attached to an Agent's cgroup.
    pub links: Vec<PathBuf>,
    /// Pinned maps.
    pub maps: Vec<PathBuf>,
    /// Directories in bpffs, and the mount of our own bpffs.
    pub directories: Vec<PathBuf>,
    /// Cgroups of instances that are gone. The one of a running instance goes when it ends.
    pub cgroups: Vec<PathBuf>,
}

impl UninstallReport {
    /// True when there was nothing to remove.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for UninstallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing of ours was left in the kernel");
        }
        let parts = [
            ("link", &self.links),
            ("map", &self.maps),
            ("directory", &self.directories),
            ("cgroup", &self.cgroups),
        ];
        let mut first = true;
        for (what, paths) in parts {
            for path in paths {
                let between = if std::mem::take(&mut first) { "" } else { "\n" };
                write!(f, "{between}removed {what} {}", path.display())?;
            }
        }
        Ok(())
    }
}

/// Removes everything of ours. A master that runs notices at its next scan and does not attach again.
///
/// # Errors
/// The first thing that could not be removed, named; what was removed before stays removed.
pub fn uninstall() -> Result<UninstallReport, InterceptError> {
    let mut report = UninstallReport::default();
    // More than one place may hold pins: ours from before the host mounted its own bpffs.
    while let Some(pins) = PinDirectory::find() {
        let removed = remove_pins(&pins, &mut report)?;
        report.directories.extend(removed.iter().cloned());
        // Only when our own mount was removed may there be another place.
        if removed.is_empty() || PinDirectory::find().as_ref() == Some(&pins) {
            break;
        }
    }
    if let Ok(cgroups) = Cgroup2::find() {
        report.cgroups = own::remove_stale(&cgroups);
    }
    Ok(report)
}

/// Removes the pins of one place, links first: the maps must not be missing under a running program's successor.
pub(super) fn remove_pins(
    pins: &PinDirectory,
    report: &mut UninstallReport,
) -> Result<Vec<PathBuf>, InterceptError> {
    for id in pinned_cgroups(pins)? {
        report.links.extend(detach_agent(pins, id)?);
    }
    if let Ok(entries) = fs::read_dir(pins.maps()) {
        for entry in entries.flatten() {
            let pin = entry.path();
            fs::remove_file(&pin).map_err(InterceptError::file("remove", &pin))?;
            report.maps.push(pin);
        }
    }
    pins.remove()
}
