//! Drop-ins for systemd units: the variables that make an Agent trust the local authority, without a change to its own files.

use std::fs;
use std::path::{Path, PathBuf};

use super::{HEADER, Place, has_header};
use crate::tls::ca::CaError;
use crate::tls::ca::files::{make_folder, write_file};

/// Where an administrator's drop-ins are (systemd.unit(5)).
const FOLDER: &str = "/etc/systemd/system";
/// The file's name: late, so that it wins over a package's.
const NAME: &str = "50-agent-fips-proxy.conf";
/// In a file whose folder was made for it: the folder goes with the file.
const OWN_FOLDER: &str = "# The folder was made for this file.";

/// The Agent's units by systemd's rule for names with dashes (systemd.unit(5), since 239): the second covers every
/// `datadog-agent-<part>.service` and every `-exp` twin, those of later releases included.
pub const AGENT_UNITS: [&str; 2] = ["datadog-agent.service", "datadog-agent-.service"];

/// The Agent's own environment file, which its units read after any `Environment=` (systemd.exec(5)).
const AGENT_ENVIRONMENT: &str = "/etc/datadog-agent/environment";

/// Whether `unit` is the name of a service.
///
/// # Errors
/// In words.
pub fn check_name(unit: &str) -> Result<(), String> {
    let sound = unit.strip_suffix(".service").is_some_and(|name| {
        !name.is_empty()
            && !name.starts_with('.')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | ':' | '\\'))
    });
    if sound {
        Ok(())
    } else {
        Err(format!(
            "`{unit}` is not the name of a service, such as my-app.service"
        ))
    }
}

/// Writes the drop-in of one unit; its path on that host, and whether that changed anything.
///
/// # Errors
/// What the system says; a file of somebody else under that name.
pub fn write(place: &Place, unit: &str, variables: &[(&str, PathBuf)]) -> Result<(PathBuf, bool), CaError> {
    let folder = Path::new(FOLDER).join(format!("{unit}.d"));
    let path = folder.join(NAME);
    let there = place.at(&path);
    let own_folder = if there.exists() {
        if !has_header(&there) {
            return Err(CaError::Permissions {
                path: there,
                problem: "is there and was not written by us".to_owned(),
                cure: "move it away".to_owned(),
            });
        }
        fs::read_to_string(&there).is_ok_and(|text| text.lines().any(|line| line == OWN_FOLDER))
    } else {
        !place.at(&folder).exists()
    };
    let mut text = format!("{HEADER}\n");
    if own_folder {
        text.push_str(OWN_FOLDER);
        text.push('\n');
    }
    text.push_str("[Service]\n");
    for (name, value) in variables {
        text.push_str(&format!(
            "Environment=\"{name}={}\"\n",
            quoted(&value.to_string_lossy())
        ));
    }
    if fs::read_to_string(&there).is_ok_and(|old| old == text) {
        return Ok((path, false));
    }
    make_folder(&place.at(&folder))?;
    write_file(&there, text.as_bytes(), 0o644)?;
    Ok((path, true))
}

/// Removes every drop-in of ours, of whatever unit, and folders that were made for them; what was removed.
///
/// # Errors
/// What the system says.
pub fn remove(place: &Place) -> Result<Vec<PathBuf>, CaError> {
    let mut removed = Vec::new();
    for path in present(place) {
        let there = place.at(&path);
        let own_folder =
            fs::read_to_string(&there).is_ok_and(|text| text.lines().any(|line| line == OWN_FOLDER));
        fs::remove_file(&there).map_err(CaError::file("remove", &there))?;
        if own_folder && let Some(folder) = there.parent() {
            // Not empty: somebody else's drop-in came; it stays, and so does the folder.
            let _ = fs::remove_dir(folder);
        }
        removed.push(path);
    }
    Ok(removed)
}

/// The drop-ins of ours that are there, by their names on that host.
pub fn present(place: &Place) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(place.at(FOLDER)) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".service.d"))
        .map(|name| Path::new(FOLDER).join(name).join(NAME))
        .filter(|path| has_header(&place.at(path)))
        .collect();
    found.sort();
    found
}

/// Variables of the drop-in that the Agent's own environment file sets, too: the file wins, and the Agent would not trust us.
pub fn overridden(place: &Place, variables: &[(&str, PathBuf)]) -> Vec<String> {
    let text = fs::read_to_string(place.at(AGENT_ENVIRONMENT)).unwrap_or_default();
    variables
        .iter()
        .filter(|(name, _)| {
            text.lines()
                .any(|line| line.trim_start().split('=').next().is_some_and(|key| key.trim() == *name))
        })
        .map(|(name, value)| {
            format!(
                "{AGENT_ENVIRONMENT} sets {name}, which wins over the drop-in: make it name {} as well (with a colon \
                 between folders), or remove it there",
                value.display()
            )
        })
        .collect()
}

/// As it stands inside double quotes in a unit file: `%` begins a specifier (systemd.unit(5)).
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%")
}
