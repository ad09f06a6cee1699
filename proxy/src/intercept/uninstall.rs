//! Removes everything that interception leaves on a host, whether or not a master runs: pinned links (which detaches the
//! programs), pinned maps, empty cgroups, our own bpffs mount.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::attach::{self, detach_agent, pinned_cgroups};
use super::error::InterceptError;
use super::host::Cgroup2;
use super::own;
use super::pins::{PinDirectory, remove_files};
use super::tables::own_qdiscs;
use super::tc;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UninstallReport {
    /// Pinned links: each was a program attached to an Agent's cgroup.
    pub links: Vec<PathBuf>,
    /// Classifiers, rules and routes of the datapath `tc`, in words.
    pub classifiers: Vec<String>,
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
        for what in &self.classifiers {
            let between = if std::mem::take(&mut first) { "" } else { "\n" };
            write!(f, "{between}removed {what}")?;
        }
        for (what, paths) in parts {
            for path in paths {
                let between = if std::mem::take(&mut first) { "" } else { "\n" };
                write!(f, "{between}removed {what} {}", path.display())?;
            }
        }
        Ok(())
    }
}

impl tc::Removed {
    /// One phrase for each kind of thing that was taken away.
    fn words(&self) -> Vec<String> {
        [
            (self.links, "TCX classifiers"),
            (self.filters, "classic classifiers"),
            (self.qdiscs, "clsact qdiscs that we had made"),
            (self.routes, "routing rules and routes"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

/// Removes everything of ours. A master that runs notices at its next look, and puts nothing back.
///
/// # Errors
/// The first thing that could not be removed, named; what was removed before stays removed.
pub fn uninstall() -> Result<UninstallReport, InterceptError> {
    let mut report = UninstallReport::default();
    // More than one place may hold pins: ours from before the host mounted its own bpffs.
    while let Some(pins) = PinDirectory::find() {
        remove_other_layouts(&pins, &mut report)?;
        let removed = remove_pins(&pins, &mut report)?;
        report.directories.extend(removed.iter().cloned());
        // Only when our own mount was removed may there be another place.
        if removed.is_empty() || PinDirectory::find().as_ref() == Some(&pins) {
            break;
        }
    }
    if let Ok(cgroups) = Cgroup2::find() {
        // Those inside of a unit's cgroup go with it.
        report.cgroups = own::remove_stale(&cgroups, Path::new("/"));
    }
    Ok(report)
}

/// Removes what other versions pinned, which detaches their programs. A running instance calls it once its own programs
/// are attached: the older ones have no listener any more and would refuse every connection.
pub(super) fn remove_other_layouts(
    pins: &PinDirectory,
    report: &mut UninstallReport,
) -> Result<(), InterceptError> {
    for other in pins.other_layouts() {
        let removed = remove_pins(&other, report)?;
        report.directories.extend(removed);
    }
    Ok(())
}

/// Removes the pins of one place. The maps go out of the way first, which a running instance understands, and are removed
/// last: they must not be missing under a running program's successor.
pub(super) fn remove_pins(
    pins: &PinDirectory,
    report: &mut UninstallReport,
) -> Result<Vec<PathBuf>, InterceptError> {
    let maps = pins.withdraw_maps()?;
    // The table of interfaces says which qdiscs are ours.
    let removed = tc::uninstall(&pins.classifiers(), &own_qdiscs(&maps))?;
    report.classifiers.extend(removed.words());
    for id in pinned_cgroups(pins)? {
        report.links.extend(detach_agent(pins, id)?);
    }
    for id in attach::own_cgroups(pins)? {
        report.links.extend(attach::unpin_own(pins, id)?);
    }
    // After the classifiers that lead packets to it.
    report.links.extend(attach::unpin(&pins.sk_lookup())?);
    report.maps.extend(remove_files(&maps)?);
    pins.remove()
}
