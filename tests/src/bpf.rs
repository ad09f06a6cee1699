//! Which kernel objects a proxy left pinned, and whether they are still loaded.
//!
//! The kernel's lists are machine-wide and other tests run beside this one, so a count before and after says nothing:
//! we remember the ids of what is pinned in the host's own bpffs, and ask for exactly these later.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::PinnedLink;
use aya::programs::{ProgramInfo, loaded_links, loaded_programs};

use crate::netns::Host;

/// Where the proxy keeps its pins when no bpffs is mounted at `/sys/fs/bpf` (inside the host's mount namespace).
const PINS: &str = "/run/agent-fips-proxy/bpf";

/// The kernel puts these iterators into every bpffs (CONFIG_BPF_PRELOAD, 5.10): nobody's pins.
const PRELOADED: &[&str] = &["maps.debug", "progs.debug"];

/// Ids of kernel objects.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs, those behind links included.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    /// Those that the kernel still has.
    pub fn still_loaded(&self) -> Result<Self> {
        // An object can go between being listed and being asked about: such an error means "gone".
        let mut left = Self {
            programs: loaded_programs().flatten().map(|p| p.id()).collect(),
            maps: loaded_maps().flatten().map(|m| m.id()).collect(),
            links: loaded_links().flatten().map(|l| l.id()).collect(),
        };
        left.programs.retain(|id| self.programs.contains(id));
        left.maps.retain(|id| self.maps.contains(id));
        left.links.retain(|id| self.links.contains(id));
        Ok(left)
    }
}

/// Every file below the host's pin directory.
pub fn pins(host: &Host) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let root = host.path(PINS);
    if root.exists() {
        walk(&root, &mut files)?;
    }
    Ok(files)
}

/// What the pins of this host hold.
pub fn objects(host: &Host) -> Result<Objects> {
    let mut objects = Objects::default();
    for pin in pins(host)? {
        // The kernel tells nobody what kind of object a pin is; each opener refuses the two other kinds.
        if let Ok(program) = ProgramInfo::from_pin(&pin) {
            objects.programs.insert(program.id());
        } else if let Ok(map) = MapInfo::from_pin(&pin) {
            objects.maps.insert(map.id());
        } else {
            let link = PinnedLink::from_pin(&pin)
                .with_context(|| format!("{} is neither program, map nor link", pin.display()))?;
            let info = aya::programs::links::FdLink::from(link).info()?;
            objects.links.insert(info.id());
            objects.programs.insert(info.program_id());
        }
    }
    Ok(objects)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if !PRELOADED.iter().any(|name| path.ends_with(name)) {
            files.push(path);
        }
    }
    Ok(())
}
