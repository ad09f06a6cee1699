//! A place of its own for every configuration test: nothing of the machine is read.

use std::collections::BTreeMap;
use std::path::Path;

use agent_fips_proxy::config::{Inputs, Paths};

/// Inputs without anything set, whose files would lie in `folder`.
pub fn inputs(folder: &Path) -> Inputs {
    Inputs {
        file: None,
        env_file: None,
        environment: BTreeMap::new(),
        flags: Vec::new(),
        defaults: Paths {
            file: folder.join("config.yaml"),
            env_file: folder.join("environment"),
        },
    }
}
