//! What the package managers run, from the tree.

use anyhow::{Context, Result};

use crate::sh;

/// A script of `proxy/dist`.
pub fn read(path: &str) -> Result<String> {
    let path = sh::root().join("proxy/dist").join(path);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}
