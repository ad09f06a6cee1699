//! The distribution's own store of roots, on request: every program of the host then trusts the local authority, within its
//! name constraints.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Place;
use crate::tls::ca::CaError;
use crate::tls::ca::certificate::is_own;
use crate::tls::ca::files::write_file;
use crate::tls::ca::store::Published;

/// A distribution's way.
#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    /// Where an administrator's roots are put.
    folder: &'static str,
    /// What takes them over.
    add: &'static [&'static str],
    /// What forgets those that are gone.
    remove: &'static [&'static str],
}

/// The order matters: the folders of the first three are nobody else's, the last one's is made by hand on others, too.
const FLAVOURS: [Flavour; 4] = [
    // Fedora, RHEL, Amazon Linux
    Flavour {
        folder: "/etc/pki/ca-trust/source/anchors",
        add: &["update-ca-trust", "extract"],
        remove: &["update-ca-trust", "extract"],
    },
    // SUSE
    Flavour {
        folder: "/etc/pki/trust/anchors",
        add: &["update-ca-certificates"],
        remove: &["update-ca-certificates"],
    },
    // Arch
    Flavour {
        folder: "/etc/ca-certificates/trust-source/anchors",
        add: &["update-ca-trust"],
        remove: &["update-ca-trust"],
    },
    // Debian, Ubuntu, Alpine. Only `--fresh` removes links to files that are gone.
    Flavour {
        folder: "/usr/local/share/ca-certificates",
        add: &["update-ca-certificates"],
        remove: &["update-ca-certificates", "--fresh"],
    },
];

/// What our files are called there; one certificate each, which is all that Debian's tool takes.
const PREFIX: &str = "agent-fips-proxy-";

impl Flavour {
    /// That host's.
    ///
    /// # Errors
    /// In words: none of the known ones.
    pub fn of(place: &Place) -> Result<Self, String> {
        FLAVOURS
            .into_iter()
            .find(|flavour| place.at(flavour.folder).is_dir())
            .ok_or_else(|| {
                "this distribution's store of roots is not known: leave --host-store out, and give clients the variables"
                    .to_owned()
            })
    }

    /// Our certificates in it, by their names on that host.
    pub fn present(self, place: &Place) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(place.at(self.folder)) else {
            return Vec::new();
        };
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(PREFIX) && name.ends_with(".crt"))
            .map(|name| Path::new(self.folder).join(name))
            .filter(|path| fs::read_to_string(place.at(path)).is_ok_and(|text| is_own(&text)))
            .collect();
        found.sort();
        found
    }

    /// Puts these into the store and takes ours that are not among them out; what changed, by names on that host.
    ///
    /// # Errors
    /// What the system or the distribution's tool says.
    pub fn sync(self, place: &Place, wanted: &[Published]) -> Result<Vec<PathBuf>, CaError> {
        let mut changed = Vec::new();
        let mut kept = Vec::new();
        for one in wanted {
            let path = Path::new(self.folder).join(format!("{PREFIX}{}.crt", one.facts.id()));
            if fs::read_to_string(place.at(&path)).ok().as_deref() != Some(&one.pem) {
                write_file(&place.at(&path), one.pem.as_bytes(), 0o644)?;
                changed.push(path.clone());
            }
            kept.push(path);
        }
        let mut removed = false;
        for path in self.present(place) {
            if !kept.contains(&path) {
                let there = place.at(&path);
                fs::remove_file(&there).map_err(CaError::file("remove", there))?;
                changed.push(path);
                removed = true;
            }
        }
        if !changed.is_empty() && place.is_running() {
            run(if removed { self.remove } else { self.add })?;
        }
        Ok(changed)
    }

    /// The command that takes a change over, for a host that does not run us.
    pub fn command(self) -> String {
        self.remove.join(" ")
    }
}

fn run(words: &[&str]) -> Result<(), CaError> {
    let (program, words) = words
        .split_first()
        .map_or(("", words), |(first, rest)| (*first, rest));
    let output = Command::new(program)
        .args(words)
        .output()
        .map_err(CaError::file("run", program))?;
    if output.status.success() {
        return Ok(());
    }
    Err(CaError::File {
        what: "run",
        path: program.into(),
        source: std::io::Error::other(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    })
}
