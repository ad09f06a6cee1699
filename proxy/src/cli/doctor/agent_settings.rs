//! The settings of this host's Agent, as far as they concern us: its file, its environment file, its unit.
//!
//! The Agent lets a variable win over its file (`DD_` and the path in upper case, joined by `_`), systemd lets the
//! environment file win over the unit's `Environment=` (systemd.exec(5)). Policies of a fleet, secrets' backends and the
//! environment of containers are not seen here.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy};

use crate::config::assignment;
use crate::trust::Place;

/// The Agent's folder; without it no Agent is installed on this host.
const FOLDER: &str = "/etc/datadog-agent";
/// Its configuration.
pub(in crate::cli) const FILE: &str = "/etc/datadog-agent/datadog.yaml";
/// The environment file of all its units.
const ENVIRONMENT: &str = "/etc/datadog-agent/environment";
/// The unit of the core Agent, which is the one that sends logs.
const UNIT: &str = "datadog-agent.service";
/// Where units and drop-ins are; the first that has a file of that name wins (systemd.unit(5)).
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// More than any configuration has, in bytes: the template with all its comments has a quarter of a mebibyte.
const LARGEST: u64 = 8 << 20;

/// The Agent's settings. They hold its API key: nothing here is ever printed but names, and values that cannot be secret.
#[derive(Default)]
pub(in crate::cli) struct Settings {
    file: Value,
    /// Value and the file that it is from, of those variables that were asked for.
    variables: BTreeMap<String, (String, &'static str)>,
}

/// Something that kept us from knowing all of them.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Problem {
    pub(in crate::cli) detail: String,
    pub(in crate::cli) cure: &'static str,
}

impl Settings {
    /// Those of the host of `place`, of variables only those for `paths`; `None` where no Agent is installed.
    pub(in crate::cli) fn read(place: &Place, paths: &[&str]) -> Option<(Self, Vec<Problem>)> {
        // No rights to look into it are a problem of its own, not an absence.
        if fs::metadata(place.at(FOLDER)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return None;
        }
        let mut settings = Self::default();
        let mut problems = Vec::new();
        for path in unit_files(place) {
            if let Ok(Some(text)) = read_file(&path) {
                settings.take(unit_variables(&text), paths, UNIT);
            }
        }
        match read_file(&place.at(ENVIRONMENT)) {
            Ok(None) => {}
            Ok(Some(text)) => {
                let (variables, wrong) = environment_variables(&text);
                settings.take(variables, paths, ENVIRONMENT);
                problems.extend(wrong);
            }
            Err(problem) => problems.push(unreadable(ENVIRONMENT, &problem)),
        }
        match read_file(&place.at(FILE)) {
            Ok(None) => {}
            Ok(Some(text)) => match parse(&text) {
                Ok(file) => settings.file = file,
                Err(problem) => problems.push(problem),
            },
            Err(problem) => problems.push(unreadable(FILE, &problem)),
        }
        Some((settings, problems))
    }

    /// From texts alone.
    #[cfg(test)]
    pub(in crate::cli) fn of(yaml: &str, environment: &str, paths: &[&str]) -> Result<Self, Problem> {
        let mut settings = Self {
            file: parse(yaml)?,
            ..Self::default()
        };
        settings.take(environment_variables(environment).0, paths, ENVIRONMENT);
        Ok(settings)
    }

    /// A later call wins. No other variables are kept: the API key is often one of them.
    fn take(&mut self, variables: Vec<(String, String)>, paths: &[&str], from: &'static str) {
        for (name, value) in variables {
            // The Agent takes an empty variable for none.
            if !value.is_empty() && paths.iter().any(|path| variable(path) == name) {
                self.variables.insert(name, (value, from));
            }
        }
    }

    /// A single value as text.
    pub(in crate::cli) fn text(&self, path: &str) -> Option<String> {
        if let Some((value, _)) = self.variables.get(&variable(path)) {
            return Some(value.trim().to_owned());
        }
        match self.value(path)? {
            Value::String(text) => Some(text.trim().to_owned()),
            Value::Bool(_) | Value::Number(_) => Some(self.value(path)?.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// True for what the Agent takes for true: YAML 1.1's words, and those of Go's `strconv.ParseBool`.
    pub(in crate::cli) fn is_on(&self, path: &str) -> bool {
        self.switch(path) == Some(true)
    }

    /// A switch; `None` where it is not set, or to what is no switch.
    pub(in crate::cli) fn switch(&self, path: &str) -> Option<bool> {
        match self.text(path)?.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" | "yes" | "y" | "on" => Some(true),
            "false" | "f" | "0" | "no" | "n" | "off" => Some(false),
            _ => None,
        }
    }

    /// How many items a list has: one of YAML, or one of JSON in a text, as variables have it.
    pub(in crate::cli) fn items(&self, path: &str) -> usize {
        let length = |value: &Value| value.as_array().map_or(0, Vec::len);
        match (self.text(path), self.value(path)) {
            (Some(text), _) => serde_json::from_str(&text).map_or(0, |value| length(&value)),
            (None, Some(value)) => length(value),
            (None, None) => 0,
        }
    }

    /// Where a setting is from, for people: the path, or the variable and its file.
    pub(in crate::cli) fn origin(&self, path: &str) -> String {
        let name = variable(path);
        match self.variables.get(&name) {
            Some((_, from)) => format!("{name} ({from})"),
            None => path.to_owned(),
        }
    }

    /// The value in the file. The Agent's keys have no case.
    fn value(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.file, |value, key| {
            let (_, value) = value
                .as_object()?
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(key))?;
            Some(value)
        })
    }
}

/// The variable of a setting of the Agent.
fn variable(path: &str) -> String {
    format!("DD_{}", path.to_ascii_uppercase().replace('.', "_"))
}

/// A file's text; `None` where there is none.
fn read_file(path: &Path) -> Result<Option<String>, String> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(|error| error.to_string())?,
    };
    // Reading a pipe could take for ever.
    if !metadata.is_file() {
        return Err("it is no regular file".to_owned());
    }
    if metadata.len() > LARGEST {
        return Err(format!("it has more than {} MiB", LARGEST >> 20));
    }
    fs::read_to_string(path)
        .map(Some)
        .map_err(|error| error.to_string())
}

fn unreadable(path: &str, problem: &str) -> Problem {
    Problem {
        detail: format!("{path} cannot be read: {problem}"),
        cure: "see the message; run as root",
    }
}

/// Any YAML that the Agent takes. What the parser says of a mistake could quote a secret: the place has to do.
fn parse(text: &str) -> Result<Value, Problem> {
    let options = serde_saphyr::options! {
        // What the Agent's own parser does.
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        merge_keys: MergeKeyPolicy::Merge,
        with_snippet: false,
        emit_comments: false,
    };
    let broken = |place: String| Problem {
        detail: format!("{FILE}: {place}; what its Agent does is not known"),
        cure: "correct the file: the Agent does not start with it either",
    };
    match serde_saphyr::from_str_with_options::<Value>(text, options) {
        Ok(value @ (Value::Object(_) | Value::Null)) => Ok(value),
        Ok(_) => Err(broken("a map of settings is expected (`key: value`)".to_owned())),
        // Nothing but comments.
        Err(serde_saphyr::Error::Eof { .. }) => Ok(Value::Null),
        Err(error) => Err(broken(match error.location() {
            Some(at) => format!("not valid YAML in line {}, column {}", at.line(), at.column()),
            None => "not valid YAML".to_owned(),
        })),
    }
}

/// The variables of an environment file, and what is wrong with its first line that is none.
fn environment_variables(text: &str) -> (Vec<(String, String)>, Option<Problem>) {
    let mut variables = Vec::new();
    let mut wrong = None;
    for (line, text) in (1..).zip(text.lines()) {
        match assignment(text) {
            Ok(found) => variables.extend(found),
            // The text itself could be a secret.
            Err(_) => {
                wrong.get_or_insert(line);
            }
        }
    }
    let problem = wrong.map(|line: u64| Problem {
        detail: format!("{ENVIRONMENT}: line {line} is not of the form NAME=value"),
        cure: "correct the line",
    });
    (variables, problem)
}

/// The unit and its drop-ins, in the order in which systemd reads them.
fn unit_files(place: &Place) -> Vec<PathBuf> {
    let folders = || UNIT_FOLDERS.iter().map(|folder| place.at(folder));
    let unit = folders()
        .map(|folder| folder.join(UNIT))
        .find(|path| path.exists());
    let mut drop_ins = BTreeMap::new();
    for folder in folders() {
        let Ok(entries) = fs::read_dir(folder.join(format!("{UNIT}.d"))) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.ends_with(".conf")) {
                drop_ins.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    unit.into_iter().chain(drop_ins.into_values()).collect()
}

/// What a unit file's lines `Environment=` set (systemd.exec(5)). Of specifiers only `%%` is known; of what is meant by the
/// others nothing follows for a switch.
fn unit_variables(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Environment=").map(words))
        .flatten()
        .filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.replace("%%", "%")))
        })
        .collect()
}

/// Words by systemd's rules (systemd.syntax(7)): quotes hold a word together, a backslash keeps the next character.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (_, '\\') => word.extend(characters.next()),
            (None, c) if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests;
