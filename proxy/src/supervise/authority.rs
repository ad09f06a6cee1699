//! The local authority on its way to the worker: the master opens its files and hands the descriptors on. It reads no byte
//! of a key, and the worker needs no right to the files (docs/adr/0007-key-of-the-local-authority.md).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Protocol};
use crate::config::{Ca, Config, HttpsPolicy, TlsPolicy};
use crate::tls::ca::{self, Authorities, CaError, OpenAuthority, Role, Store};
use crate::tls::{Server, server::ServerError};

/// What the master says of each pair of descriptors: certificate, then key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedAuthority {
    /// Which one.
    pub role: Role,
    /// For messages.
    pub certificate: PathBuf,
    /// For messages.
    pub key: PathBuf,
}

/// All that the master knows of the authority: part of the worker's set-up. Two descriptors follow for each of `passed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passing {
    /// What each pair is.
    pub passed: Vec<PassedAuthority>,
    /// Why there is none although there should be.
    pub problem: Option<String>,
}

impl Passing {
    /// Descriptors that belong to it.
    pub fn descriptors(&self) -> usize {
        self.passed.len() * 2
    }
}

/// Opens what is there: the operator's own authority where one is configured, else ours, else nothing.
pub fn open(config: &Ca) -> (Passing, Vec<OwnedFd>) {
    let opened = match (&config.certificate_file, &config.key_file) {
        (Some(certificate), Some(key)) => OpenAuthority::supplied(certificate, key).map(|one| vec![one]),
        _ => Store::new(&config.dir).open(),
    };
    match opened {
        Ok(found) => {
            let mut passing = Passing::default();
            let mut descriptors = Vec::new();
            for one in found {
                passing.passed.push(PassedAuthority {
                    role: one.role,
                    certificate: one.certificate_path,
                    key: one.key_path,
                });
                descriptors.extend([OwnedFd::from(one.certificate), OwnedFd::from(one.key)]);
            }
            (passing, descriptors)
        }
        Err(CaError::None(_)) => (Passing::default(), Vec::new()),
        Err(error) => (
            Passing {
                passed: Vec::new(),
                problem: Some(error.to_string()),
            },
            Vec::new(),
        ),
    }
}

/// For a worker that is about to start: [`open`], after [`ensure`] where `intercept.https` asks for an authority.
pub fn provide(config: &Config) -> (Passing, Vec<OwnedFd>) {
    if config.intercept.https == HttpsPolicy::Terminate
        && let Err(error) = ensure(Path::new("/proc/self/exe"), config)
    {
        let passing = Passing {
            passed: Vec::new(),
            problem: Some(error.to_string()),
        };
        return (passing, Vec::new());
    }
    open(&config.ca)
}

/// Changes whenever another authority would be opened, or the files of this one are others: then the worker is replaced.
pub fn identity(config: &Ca) -> String {
    let (passing, descriptors) = open(config);
    let mut text = format!("{passing:?}");
    for descriptor in descriptors {
        let file = std::fs::File::from(descriptor);
        if let Ok(metadata) = file.metadata() {
            text.push_str(&format!(
                " {}:{}:{}",
                metadata.ino(),
                metadata.mtime(),
                metadata.mtime_nsec()
            ));
        }
    }
    text
}

/// In the worker: reads, checks and proves what came, and makes the server of Agents' sessions from it.
///
/// # Errors
/// [`ServerError`]: the authority is unfit for the configured site, or the module does not answer as approved.
pub fn receive(
    config: &Config,
    passing: &Passing,
    descriptors: Vec<OwnedFd>,
) -> Result<Option<Server>, ServerError> {
    let mut files = descriptors.into_iter().map(std::fs::File::from);
    let mut open = Vec::new();
    for one in &passing.passed {
        if let (Some(certificate), Some(key)) = (files.next(), files.next()) {
            open.push(OpenAuthority {
                role: one.role,
                certificate,
                certificate_path: one.certificate.clone(),
                key,
                key_path: one.key.clone(),
            });
        }
    }
    if open.is_empty() {
        return Ok(None);
    }
    let catalog = Catalog::new(&config.site);
    let (authorities, problem) = Authorities::load(&open, &catalog.domains(), ca::now())?;
    if let Some(problem) = problem {
        tracing::error!("{problem}");
    }
    let accepts = Arc::new(move |name: &str| {
        catalog
            .lookup(name)
            .is_some_and(|product| product.protocol() == Protocol::Http)
    });
    // Agents' sessions are no part of what is claimed: an old Agent without TLS 1.3 is served, whatever upstream.tls_policy.
    Server::new(TlsPolicy::Fips, authorities, accepts).map(Some)
}

/// In the worker: the same, but an authority that may not sign stops nothing that works without it; it is an error in the log
/// and in `status`.
pub fn server(
    config: &Config,
    passing: &Passing,
    descriptors: Vec<OwnedFd>,
) -> (Option<Server>, Option<String>) {
    let made = match &passing.problem {
        Some(problem) => Err(problem.clone()),
        None => receive(config, passing, descriptors).map_err(|error| error.to_string()),
    };
    match made {
        Ok(server) => (server, None),
        Err(problem) => {
            tracing::error!("{problem}");
            (None, Some(problem))
        }
    }
}

/// Says once a day that the local authority ends soon.
pub async fn watch(server: Option<Server>) {
    let Some(server) = server else { return };
    let mut day = tokio::time::interval(Duration::from_secs(86_400));
    loop {
        day.tick().await;
        if let Some(warning) = server.authorities().warning {
            tracing::warn!("{warning}");
        }
    }
}

/// Makes our authority when there is none, by a process of its own: the key is never in the caller's memory.
///
/// # Errors
/// The process could not be started, or what it said.
pub fn ensure(program: &Path, config: &Config) -> io::Result<()> {
    if config.ca.certificate_file.is_some() || Store::new(&config.ca.dir).exists() {
        return Ok(());
    }
    let output = Command::new(program)
        .args([
            "ca",
            "init",
            "--if-missing",
            "--config",
            "/dev/null",
            "--env-file",
            "/dev/null",
        ])
        .arg("--set")
        .arg(format!("site={}", config.site))
        .arg("--set")
        .arg(format!("ca.dir={}", config.ca.dir.display()))
        .arg("--set")
        .arg(format!("ca.validity_days={}", config.ca.validity_days))
        .env_clear()
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "cannot make a local authority: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
