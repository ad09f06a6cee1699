//! Variables: those of the process, those of the environment file, and which of the two counts.
//!
//! systemd puts `/etc/default/agent-fips-proxy` into the environment of the process once, at start, and a process
//! cannot be given new variables. So the file is also read by us: at a reload a variable that came from the file
//! follows the file, and one that came from elsewhere (a unit drop-in, a container) stays what it is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::error::{ConfigError, Source};
use super::keys::{self, PREFIX};

/// The variables of this process that mean something to us. No others are kept: the Agent's API key is often one of
/// them.
pub(super) fn of_process() -> BTreeMap<String, String> {
    let ours = |(name, value): (OsString, OsString)| {
        let name = name.into_string().ok()?;
        let known =
            name.starts_with(PREFIX) || keys::TABLE.iter().any(|key| key.fallback == Some(name.as_str()));
        // A value that is no text becomes one that no key accepts, and is then named in an error.
        known.then(|| (name, value.to_string_lossy().into_owned()))
    };
    std::env::vars_os().filter_map(ours).collect()
}

/// The environment file as it was at one time.
#[derive(Clone, Debug)]
pub(super) struct EnvironmentFile {
    path: PathBuf,
    variables: BTreeMap<String, (String, u64)>,
}

impl EnvironmentFile {
    /// Reads it. A missing file is an empty one, unless somebody named it.
    pub(super) fn read(path: &Path, named: bool, errors: &mut Vec<ConfigError>) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            variables: BTreeMap::new(),
        };
        let at = |line| Source::File {
            path: path.to_owned(),
            line,
            column: 1,
        };
        match fs::read_to_string(path) {
            Ok(text) => {
                for (line, text) in (1..).zip(text.lines()) {
                    match assignment(text) {
                        Ok(None) => {}
                        Ok(Some((name, value))) => {
                            // As systemd and shells do it, the last one counts.
                            file.variables.insert(name, (value, line));
                        }
                        Err(problem) => errors.push(ConfigError::new(at(line), "", problem)),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => {}
            Err(error) => errors.push(ConfigError::new(
                at(1),
                "",
                format!("cannot read the environment file: {error}"),
            )),
        }
        file
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|(value, _)| value.as_str())
    }
}

/// The variables that count. One of the process counts when it did not come from the file, that is, when it differs
/// from what the file said `first`; everything else is as the file says `now`.
pub(super) fn effective(
    process: &BTreeMap<String, String>,
    first: &EnvironmentFile,
    now: &EnvironmentFile,
) -> BTreeMap<String, (String, Source)> {
    let of_file = now.variables.iter().map(|(variable, (value, line))| {
        let source = Source::EnvironmentFile {
            variable: variable.clone(),
            path: now.path.clone(),
            line: *line,
        };
        (variable.clone(), (value.clone(), source))
    });
    let of_process = process
        .iter()
        .filter(|(variable, value)| first.get(variable) != Some(value))
        .map(|(variable, value)| {
            (
                variable.clone(),
                (
                    value.clone(),
                    Source::Environment {
                        variable: variable.clone(),
                    },
                ),
            )
        });
    // The later one replaces the earlier one.
    of_file.chain(of_process).collect()
}

/// True for the variables that Kubernetes puts into every pod beside a Service named `dd-fips-proxy` (the documentation of
/// Pods calls them service links): they begin like ours and are nobody's mistake.
pub(super) fn is_service_link(variable: &str) -> bool {
    let Some(name) = variable.strip_prefix(PREFIX) else {
        return false;
    };
    let port = name
        .strip_prefix("PORT_")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    port || name == "PORT"
        || name == "SERVICE_HOST"
        || name == "SERVICE_PORT"
        || name.starts_with("SERVICE_PORT_")
}

/// What to say about a variable of ours that does not exist.
pub(super) fn unknown(variable: &str) -> String {
    match keys::nearest_variable(variable) {
        Some(near) => format!("there is no such variable; did you mean {near}?"),
        None => format!(
            "there is no such variable; `agent-fips-proxy config default` shows all that begin with {PREFIX}"
        ),
    }
}

/// One line by the rules of systemd's `EnvironmentFile=` (systemd.exec(5)), and with `export` as a shell would have
/// it. A `#` later in the line belongs to the value, as it does for systemd.
pub(crate) fn assignment(line: &str) -> Result<Option<(String, String)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with(['#', ';']) {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, value) = line.split_once('=').ok_or("not of the form NAME=value")?;
    let name = name.trim_end();
    let sound = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !sound {
        return Err("not of the form NAME=value: the name may hold letters, digits and _".to_owned());
    }
    unquoted(value.trim())
        .map(|value| Some((name.to_owned(), value)))
        .map_err(|problem| format!("{name}: {problem}"))
}

/// Single quotes keep everything, double quotes and no quotes know the backslash.
fn unquoted(text: &str) -> Result<String, &'static str> {
    let mut value = String::new();
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None | Some('"'), '\\') => match characters.next() {
                Some(next) => value.push(next),
                None => return Err("a value that goes on in the next line is not supported"),
            },
            _ => value.push(c),
        }
    }
    if quote.is_some() {
        Err("the quote is not closed")
    } else {
        Ok(value)
    }
}
