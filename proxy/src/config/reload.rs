//! Reads the configuration again while running: on SIGHUP, `systemctl reload`, or when somebody turned interception
//! off.

use std::ffi::OsString;

use super::environment::EnvironmentFile;
use super::error::ConfigErrors;
use super::load::{Inputs, Loaded, load_with};

/// The inputs, and what the environment file said when the process was started: the only way to know which of the
/// process's variables came from there and must follow it.
#[derive(Clone, Debug)]
pub struct Reloader {
    inputs: Inputs,
    first: Option<EnvironmentFile>,
}

impl Reloader {
    /// Nothing is read yet.
    pub fn new(inputs: Inputs) -> Self {
        Self { inputs, first: None }
    }

    /// The first load. The environment file is taken to be what the process was started with.
    ///
    /// # Errors
    /// As [`load`](super::load()).
    pub fn load(&mut self) -> Result<Loaded, ConfigErrors> {
        let mut errors = Vec::new();
        let now = self.inputs.environment_file(&mut errors);
        self.first = Some(now.clone());
        load_with(&self.inputs, &now, &now, errors)
    }

    /// The variables for another program in this process: all that it was started with, but for those that came from the
    /// environment file, which that program reads as it is now.
    pub fn variables(&self) -> Vec<(OsString, OsString)> {
        let of_file = |name: &OsString| {
            let name = name.to_str()?;
            let value = self.inputs.environment.get(name)?;
            Some(self.first.as_ref()?.get(name) == Some(value.as_str()))
        };
        std::env::vars_os()
            .filter(|(name, _)| !of_file(name).unwrap_or_default())
            .collect()
    }

    /// Every later load: a variable that the process got from the environment file follows the file, changed or
    /// removed; one that it got from elsewhere stays.
    ///
    /// # Errors
    /// As [`load`](super::load()). The caller keeps what it has.
    pub fn reload(&mut self) -> Result<Loaded, ConfigErrors> {
        let Some(first) = &self.first else {
            return self.load();
        };
        let mut errors = Vec::new();
        let now = self.inputs.environment_file(&mut errors);
        load_with(&self.inputs, first, &now, errors)
    }
}
