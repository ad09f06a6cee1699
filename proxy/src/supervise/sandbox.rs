//! What is left to a worker that has given up its privileges: the files it may read ([`files`], Landlock) and the system calls
//! it may make ([`calls`], seccomp). Both hold for all that this process does from then on, and cannot be undone.
//!
//! It comes after everything that is read once (roots, certificates, keys, what the module proves itself with) and before the first
//! byte from the network.

mod calls;
mod files;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::config::Config;

/// What the kernel refuses a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// `worker.sandbox` is `false`.
    #[default]
    Off,
    /// System calls are restricted, and this much of files.
    On {
        /// Which files may be opened.
        files: Files,
    },
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off (worker.sandbox: false)",
            Self::On { files } => match files {
                Files::Restricted => "system calls, files, ports and signals restricted",
                Files::Partly => "system calls and files restricted; this kernel restricts no ports (6.7) or no signals (6.12)",
                Files::Unrestricted => "system calls restricted; this kernel has no Landlock for files (5.13, `lsm=landlock`)",
            },
        })
    }
}

/// What the kernel knows of Landlock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Files {
    /// Nothing may be written, little may be read; no TCP port may be bound; no signal may be sent to others.
    Restricted,
    /// The same, but for what this kernel does not know: ports before Linux 6.7, signals before 6.12.
    Partly,
    /// Not in this kernel (before Linux 5.13), or not switched on (`lsm=`): permissions alone decide.
    Unrestricted,
}

/// Why a worker cannot be confined. It must not serve then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// What is asked of the kernel holds for one thread; others would go free.
    #[error("{0} threads run already: they would not be confined")]
    Threads(usize),
    /// One step failed.
    #[error("cannot {step}: {cause}; worker.sandbox: false goes without")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why not.
        cause: io::Error,
    },
}

impl SandboxError {
    fn step(step: &'static str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |cause| Self::Step {
            step,
            cause: io::Error::other(cause),
        }
    }
}

/// Confines this process, which must have one thread only, and no new privileges ahead of it.
pub fn enter(config: &Config) -> Result<Sandbox, SandboxError> {
    if !config.worker.sandbox {
        return Ok(Sandbox::Off);
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    let files = files::restrict(&files::readable(config))
        .map_err(|e| SandboxError::step("restrict files")(e.into()))?;
    calls::restrict().map_err(|e| SandboxError::step("restrict system calls")(e.into()))?;
    Ok(Sandbox::On { files })
}
