//! The folder that `SSL_CERT_DIR` names: our certificates and nothing else, under names for Go and Rust (any file) and for
//! OpenSSL (a hash of the subject).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::certificate::Certificate;
use super::error::CaError;
use super::files::{sync_folder, write_file};
use super::store::Published;

/// What the certificates' files begin with.
const PREFIX: &str = "agent-fips-proxy-";

/// Makes `folder` hold exactly these. What is new comes first and what is old goes last, so that a reader at any moment
/// finds every authority that is trusted before and after. Files of others are left alone.
pub(super) fn write(folder: &Path, published: &[Published]) -> Result<(), CaError> {
    let mut wanted: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut files = Vec::new();
    for one in published {
        let name = PathBuf::from(format!("{PREFIX}{}.pem", one.facts.id()));
        let path = folder.join(&name);
        if fs::read(&path).ok().as_deref() != Some(one.pem.as_bytes()) {
            write_file(&path, one.pem.as_bytes(), 0o644)?;
        }
        let hash = Certificate::read_pem(one.pem.as_bytes())
            .ok()
            .and_then(|found| found.first().map(|first| first.subject_hash))
            .ok_or_else(|| CaError::malformed(&one.path, "it holds no certificate"))?;
        // Two subjects may share a hash: OpenSSL tries .0, .1 and so on until one is missing.
        let link = (0..)
            .map(|number| PathBuf::from(format!("{hash:08x}.{number}")))
            .find(|link| !wanted.contains_key(link));
        if let Some(link) = link {
            wanted.insert(link, name.clone());
        }
        files.push(name);
    }
    for (link, target) in &wanted {
        let path = folder.join(link);
        if fs::read_link(&path).ok().as_ref() == Some(target) {
            continue;
        }
        replace_link(&path, target)?;
    }
    let entries = fs::read_dir(folder).map_err(CaError::file("read", folder))?;
    for entry in entries.flatten() {
        let name = PathBuf::from(entry.file_name());
        let kept = files.contains(&name) || wanted.contains_key(&name);
        if !kept && is_ours(&entry.path()) {
            fs::remove_file(entry.path()).map_err(CaError::file("remove", entry.path()))?;
        }
    }
    sync_folder(folder)
}

/// A certificate file of ours, or a link to one.
fn is_ours(path: &Path) -> bool {
    let ours = |path: &Path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(".pem"))
    };
    match fs::read_link(path) {
        Ok(target) => target.components().count() == 1 && ours(&target),
        Err(_) => ours(path),
    }
}

fn replace_link(path: &Path, target: &Path) -> Result<(), CaError> {
    let aside = path.with_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(CaError::file("remove", aside)(error));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(target, &aside)
        .and_then(|()| fs::rename(&aside, path))
        .map_err(CaError::file("link", path))
}
