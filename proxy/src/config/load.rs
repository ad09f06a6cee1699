//! Puts the layers together: flags over environment over file over defaults. Every error is found in one go, every
//! value knows where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::Config;
use super::check::{self, Checked};
use super::environment::{self, EnvironmentFile};
use super::error::{ConfigError, ConfigErrors, Source};
use super::keys::{self, Draft, Key, PREFIX, TABLE};
use super::value::{Fault, Raw};
use super::yaml;

/// Everything that a configuration is made from.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// `--config`: must exist.
    pub file: Option<PathBuf>,
    /// `--env-file`: must exist.
    pub env_file: Option<PathBuf>,
    /// The variables of the process; see [`Inputs::of_process`].
    pub environment: BTreeMap<String, String>,
    /// `--set key=value`, in order.
    pub flags: Vec<(String, String)>,
    /// What is read when nothing is named.
    pub defaults: Paths,
}

impl Inputs {
    /// With the variables of this process and the usual paths.
    pub fn of_process() -> Self {
        Self {
            environment: environment::of_process(),
            ..Self::default()
        }
    }

    /// The environment file as it is now.
    pub(super) fn environment_file(&self, errors: &mut Vec<ConfigError>) -> EnvironmentFile {
        let path = self.env_file.as_ref().unwrap_or(&self.defaults.env_file);
        EnvironmentFile::read(path, self.env_file.is_some(), errors)
    }
}

/// Files that are read when they exist.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The configuration file.
    pub file: PathBuf,
    /// The environment file.
    pub env_file: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            file: "/etc/agent-fips-proxy/config.yaml".into(),
            env_file: "/etc/default/agent-fips-proxy".into(),
        }
    }
}

/// A configuration with its history.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting, in the order of the table.
    pub settings: Vec<Setting>,
    /// What is allowed and should be known.
    pub warnings: Vec<String>,
}

/// One setting as it is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// `upstream.ca_file`.
    pub key: String,
    /// YAML on one line.
    pub value: String,
    /// Where it was set.
    pub source: Source,
}

/// Reads and checks everything.
///
/// # Errors
/// All that is wrong, each with its place, its key and what would be accepted. A value that a higher layer replaces
/// must be right, too: it counts as soon as that layer goes away.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigErrors> {
    let mut errors = Vec::new();
    let now = inputs.environment_file(&mut errors);
    load_with(inputs, &now, &now, errors)
}

/// [`load`], where the process got its variables from the environment file as it was `first`.
pub(super) fn load_with(
    inputs: &Inputs,
    first: &EnvironmentFile,
    now: &EnvironmentFile,
    errors: Vec<ConfigError>,
) -> Result<Loaded, ConfigErrors> {
    let mut layers = Layers {
        errors,
        ..Layers::default()
    };
    let file = layers.file(inputs);
    let variables = environment::effective(&inputs.environment, first, now);
    let overridden = |key: &Key| {
        file.iter().any(|(row, _)| row.path == key.path)
            || variables.contains_key(&key.variable())
            || inputs.flags.iter().any(|(path, _)| path == key.path)
    };
    layers.fallbacks(&variables, overridden);
    for (key, raw) in &file {
        layers.apply(key, raw);
    }
    layers.variables(&variables);
    layers.flags(&inputs.flags);
    layers.finish()
}

/// The draft while layers are laid on it, lowest first.
#[derive(Default)]
struct Layers {
    draft: Draft,
    sources: BTreeMap<&'static str, Source>,
    /// Keys with an error: what they say together with others is not judged.
    failed: BTreeSet<&'static str>,
    errors: Vec<ConfigError>,
}

impl Layers {
    fn file(&mut self, inputs: &Inputs) -> Vec<(&'static Key, Raw)> {
        let path = inputs.file.as_ref().unwrap_or(&inputs.defaults.file).clone();
        match fs::read_to_string(path.as_path()) {
            Ok(text) => yaml::read(&path, &text, &mut self.errors),
            Err(error) if error.kind() == io::ErrorKind::NotFound && inputs.file.is_none() => Vec::new(),
            Err(error) => {
                let source = Source::File {
                    path,
                    line: 1,
                    column: 1,
                };
                self.errors.push(ConfigError::new(
                    source,
                    "",
                    format!("cannot read the configuration file: {error}"),
                ));
                Vec::new()
            }
        }
    }

    /// The Agent's own variables. An empty one is an unset one, as it is for the Agent, and one that is replaced is
    /// not judged: it was not written for us.
    fn fallbacks(
        &mut self,
        variables: &BTreeMap<String, (String, Source)>,
        overridden: impl Fn(&Key) -> bool,
    ) {
        for key in TABLE.iter().filter(|key| !overridden(key)) {
            let found = key.fallback.and_then(|variable| variables.get(variable));
            if let Some((value, source)) = found.filter(|(value, _)| !value.is_empty()) {
                self.line(key, value, source);
            }
        }
    }

    fn variables(&mut self, variables: &BTreeMap<String, (String, Source)>) {
        let ours = |name: &str| name.starts_with(PREFIX) && !environment::is_service_link(name);
        for (variable, (value, source)) in variables.iter().filter(|(name, _)| ours(name)) {
            match TABLE.iter().find(|key| key.variable() == *variable) {
                Some(key) => self.line(key, value, source),
                None => self.errors.push(ConfigError::new(
                    source.clone(),
                    "",
                    environment::unknown(variable),
                )),
            }
        }
    }

    fn flags(&mut self, flags: &[(String, String)]) {
        let mut seen = BTreeSet::new();
        for (path, value) in flags {
            let source = Source::Flag { key: path.clone() };
            match keys::find(path) {
                None => self
                    .errors
                    .push(ConfigError::new(source, "", yaml::unknown(path))),
                Some(_) if !seen.insert(path) => {
                    self.errors
                        .push(ConfigError::new(source, "", "given twice; keep one"));
                }
                Some(key) => self.line(key, value, &source),
            }
        }
    }

    fn line(&mut self, key: &'static Key, value: &str, source: &Source) {
        match Raw::from_line(key.shape, value, source) {
            Ok(raw) => self.apply(key, &raw),
            Err(fault) => self.refuse(key, fault, source),
        }
    }

    fn apply(&mut self, key: &'static Key, raw: &Raw) {
        match (key.set)(&mut self.draft, raw) {
            Ok(()) => {
                self.sources.insert(key.path, raw.source.clone());
            }
            Err(fault) => self.refuse(key, fault, &raw.source),
        }
    }

    fn refuse(&mut self, key: &'static Key, fault: Fault, source: &Source) {
        let Fault {
            source: inner,
            problem,
        } = fault;
        self.failed.insert(key.path);
        self.errors.push(ConfigError::new(
            inner.unwrap_or_else(|| source.clone()),
            key.path,
            format!("{problem}; accepted: {}", key.accepted),
        ));
    }

    fn finish(mut self) -> Result<Loaded, ConfigErrors> {
        let requested = self.sources.contains_key("intercept.enabled");
        let Checked {
            config,
            errors,
            warnings,
        } = check::whole(self.draft, requested, &self.sources, &self.failed);
        self.errors.extend(errors);
        if !self.errors.is_empty() {
            return Err(ConfigErrors(self.errors));
        }
        // Left out, the port follows the range, and so does the answer to where it was set.
        if let Some(range) = self.sources.get("explicit.port_range_start").cloned() {
            self.sources.entry("status.port").or_insert(range);
        }
        let settings = TABLE
            .iter()
            .map(|key| Setting {
                key: key.path.to_owned(),
                value: (key.get)(&config),
                source: self.sources.remove(key.path).unwrap_or(Source::Default),
            })
            .collect();
        Ok(Loaded {
            config,
            settings,
            warnings,
        })
    }
}
