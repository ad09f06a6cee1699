//! Certificate revocation lists: the folder of `upstream.crl_dir`, read again when a file in it changes.
//!
//! A list is trusted when a certificate is checked: its signature is verified then, with the key of the certificate's
//! issuer. Here it only has to be a list. A file that is none, or is half written, is told and left out; when it was one
//! before, what it held before stays in use.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::der;
use super::error::ConfigError;
use crate::config::CrlPolicy;

/// The largest lists of public authorities have some 30 MiB.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// Files that are looked at; a folder with more is the wrong folder.
const MAX_FILES: usize = 1024;

/// The revocation lists in use: evidence, shown by `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrlStatus {
    /// `upstream.crl_dir`
    pub folder: PathBuf,
    /// `upstream.crl_policy`
    pub policy: CrlPolicy,
    /// How many lists are in use; one that a newer one of the same issuer replaces is not.
    pub count: usize,
    /// When the first of them expires (RFC 3339); absent when there is none.
    pub next_update: Option<String>,
    /// The same in seconds of Unix time, for metrics.
    pub next_update_unix: Option<u64>,
    /// Lists that are expired now, by their files.
    pub expired: Vec<String>,
    /// Files that cannot be used, and why.
    pub problems: Vec<String>,
    /// How often the set of lists has changed since the worker started.
    pub changes: u64,
}

/// The lists of a folder.
#[derive(Debug)]
pub(super) struct Crls {
    folder: PathBuf,
    policy: CrlPolicy,
    files: BTreeMap<PathBuf, Found>,
    /// Why the folder itself cannot be listed now.
    unlisted: Option<String>,
    changes: u64,
}

/// A file as it was when it was last looked at.
#[derive(Debug)]
struct Found {
    stamp: Stamp,
    lists: Vec<List>,
    problem: Option<String>,
}

/// Issuer, and the part of its certificates that a list is about (issuing distribution point).
type Scope = (Vec<u8>, Option<Vec<u8>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct List {
    der: CertificateRevocationListDer<'static>,
    /// Of two lists that share it only the newer counts.
    scope: Scope,
    this_update: u64,
    next_update: u64,
}

/// Inode, modification time, length: changes when a file is edited or replaced.
type Stamp = (u64, i64, i64, u64);

impl Crls {
    /// The lists of `folder`.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub(super) fn load(folder: &Path, policy: CrlPolicy) -> Result<Self, ConfigError> {
        let mut crls = Self {
            folder: folder.to_owned(),
            policy,
            files: BTreeMap::new(),
            unlisted: None,
            changes: 0,
        };
        crls.look().map_err(|error| ConfigError::CrlDir {
            path: folder.to_owned(),
            problem: error.to_string(),
        })?;
        Ok(crls)
    }

    /// Looks for changes; true when other lists are in use afterwards.
    pub(super) fn refresh(&mut self) -> bool {
        let changed = match self.look() {
            Ok(changed) => {
                self.unlisted = None;
                changed
            }
            Err(error) => {
                self.unlisted = Some(format!(
                    "{}: {error}; what was read before stays in use",
                    self.folder.display()
                ));
                false
            }
        };
        self.changes += u64::from(changed);
        changed
    }

    fn look(&mut self) -> io::Result<bool> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Editors and Kubernetes keep what is on its way in hidden files and folders.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            paths.push(entry.path());
            if paths.len() > MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files")));
            }
        }
        let mut changed = false;
        let mut before = std::mem::take(&mut self.files);
        for path in paths {
            // Through a link: a mounted volume changes by putting another file behind it.
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => continue,
                Ok(metadata) => metadata,
                // Removed since the folder was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let mut found = before.remove(&path).unwrap_or_else(Found::empty);
                    found.problem = Some(error.to_string());
                    self.files.insert(path, found);
                    continue;
                }
            };
            let stamp = (
                metadata.ino(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.len(),
            );
            let found = match before.remove(&path) {
                Some(found) if found.stamp == stamp && found.problem.is_none() => found,
                last => {
                    let (was, known) = match last {
                        Some(found) => (found.lists, true),
                        None => (Vec::new(), false),
                    };
                    match read(&path, metadata.len()) {
                        Ok(lists) => {
                            changed |= lists != was;
                            Found {
                                stamp,
                                lists,
                                problem: None,
                            }
                        }
                        Err(problem) => Found {
                            stamp,
                            problem: Some(if known && !was.is_empty() {
                                format!("{problem}; what it held before stays in use")
                            } else {
                                problem
                            }),
                            lists: was,
                        },
                    }
                }
            };
            self.files.insert(path, found);
        }
        changed |= before.values().any(|gone| !gone.lists.is_empty());
        Ok(changed)
    }

    /// Every list that counts.
    pub(super) fn in_use(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.newest()
            .into_iter()
            .map(|(_, list)| list.der.clone())
            .collect()
    }

    /// The lists that no newer one of the same issuer and scope replaces, with their files. The verifier would take
    /// whichever comes first.
    fn newest(&self) -> Vec<(&Path, &List)> {
        let mut newest: BTreeMap<&Scope, (&Path, &List)> = BTreeMap::new();
        for (path, found) in &self.files {
            for list in &found.lists {
                let age = |list: &List| (list.this_update, list.next_update);
                let kept = newest.entry(&list.scope).or_insert((path, list));
                if age(list) > age(kept.1) {
                    *kept = (path, list);
                }
            }
        }
        newest.into_values().collect()
    }

    /// How many of them are expired at `now`, in seconds of Unix time.
    pub(super) fn expired(&self, now: u64) -> usize {
        let newest = self.newest();
        newest.iter().filter(|(_, list)| list.next_update <= now).count()
    }

    pub(super) fn policy(&self) -> CrlPolicy {
        self.policy
    }

    /// The state at `now`, in seconds of Unix time.
    pub(super) fn status(&self, now: u64) -> CrlStatus {
        let newest = self.newest();
        let next = newest.iter().map(|(_, list)| list.next_update).min();
        let expired = newest
            .iter()
            .filter(|(_, list)| list.next_update <= now)
            .map(|(path, list)| format!("{} (since {})", path.display(), der::timestamp(list.next_update)));
        let problems = self.files.iter().filter_map(|(path, found)| {
            let problem = found.problem.as_ref()?;
            Some(format!("{}: {problem}", path.display()))
        });
        CrlStatus {
            folder: self.folder.clone(),
            policy: self.policy,
            count: newest.len(),
            next_update: next.map(der::timestamp),
            next_update_unix: next,
            expired: expired.collect(),
            problems: self.unlisted.iter().cloned().chain(problems).collect(),
            changes: self.changes,
        }
    }
}

impl Found {
    fn empty() -> Self {
        Self {
            stamp: (0, 0, 0, 0),
            lists: Vec::new(),
            problem: None,
        }
    }
}

impl CrlStatus {
    /// What somebody should do something about, in words.
    pub(super) fn alarms(&self) -> impl Iterator<Item = String> {
        let meaning = match self.policy {
            CrlPolicy::SoftFail => {
                "certificates that it does not name are accepted (upstream.crl_policy: soft_fail)"
            }
            CrlPolicy::HardFail => {
                "every certificate of its issuer is refused (upstream.crl_policy: hard_fail)"
            }
        };
        let none = (self.count == 0).then(|| {
            let meaning = match self.policy {
                CrlPolicy::SoftFail => "nothing is checked for revocation",
                CrlPolicy::HardFail => "every intake is refused (upstream.crl_policy: hard_fail)",
            };
            format!(
                "no revocation list in upstream.crl_dir {}: {meaning}",
                self.folder.display()
            )
        });
        let expired = self.expired.iter().map(move |file| {
            format!("the revocation list {file} is expired: {meaning}; put a new one in its place")
        });
        let problems = self
            .problems
            .iter()
            .map(|problem| format!("a revocation list cannot be used: {problem}"));
        none.into_iter().chain(expired).chain(problems)
    }
}

/// The lists of one file: a single one in DER, or any number in PEM.
fn read(path: &Path, len: u64) -> Result<Vec<List>, String> {
    if len > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    // A SEQUENCE, which no PEM text begins with.
    let ders = if bytes.first() == Some(&0x30) {
        vec![CertificateRevocationListDer::from(bytes)]
    } else {
        CertificateRevocationListDer::pem_slice_iter(&bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| super::roots::pem_problem(&error).to_owned())?
    };
    if ders.is_empty() {
        return Err(
            "it holds no revocation list, neither in DER nor in PEM (`-----BEGIN X509 CRL-----`)".to_owned(),
        );
    }
    ders.into_iter()
        .map(|der| {
            let parsed = OwnedCertRevocationList::from_der(&der).map_err(|error| {
                format!("not a revocation list that can be used (RFC 5280, version 2, no delta, not indirect): {error}")
            })?;
            let (this_update, next_update) =
                der::crl_dates(&der).ok_or("its dates cannot be read (thisUpdate, nextUpdate)")?;
            let parsed = CertRevocationList::from(parsed);
            Ok(List {
                scope: (
                    parsed.issuer().to_vec(),
                    parsed.issuing_distribution_point().map(<[u8]>::to_vec),
                ),
                der,
                this_update,
                next_update,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
