//! Where a setting came from, and what can be wrong with it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nowhere: the program's own value.
    Default,
    /// In the configuration file; line and column count from 1.
    File {
        /// The file.
        path: PathBuf,
        /// Line.
        line: u64,
        /// Column.
        column: u64,
    },
    /// A variable in the environment file.
    EnvironmentFile {
        /// The variable.
        variable: String,
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
    },
    /// A variable of the process.
    Environment {
        /// The variable.
        variable: String,
    },
    /// `--set key=value`.
    Flag {
        /// The key.
        key: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::EnvironmentFile { variable, path, line } => {
                write!(f, "{}:{line} {variable}", path.display())
            }
            Self::Environment { variable } => write!(f, "environment {variable}"),
            Self::Flag { key } => write!(f, "--set {key}"),
        }
    }
}

/// One thing that is wrong: where, which key, what, and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it was said. [`Source::Default`] only when a default does not go together with something else.
    pub source: Source,
    /// The key, as in `upstream.ca_file`; empty when the trouble is with a whole file.
    pub key: String,
    /// What is wrong and what is accepted.
    pub problem: String,
}

impl ConfigError {
    pub(super) fn new(source: Source, key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            source,
            key: key.into(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

/// Everything that is wrong, at once: never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}
