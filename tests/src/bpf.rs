//! Which kernel objects a proxy left pinned, and whether they are still loaded.
//!
//! The kernel's lists are machine-wide and other tests run beside this one, so a count before and after says nothing:
//! we remember the ids of what is pinned in the host's own bpffs, and ask for exactly these later.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::loaded_maps;
use aya::programs::links::PinnedLink;
use aya::programs::{loaded_links, loaded_programs};

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
        // The kernel opens a pin of any kind the same way; what it is stands in the descriptor's fdinfo (map_id, prog_id,
        // link_id), while this value holds it open. No other thread of a suite holds a bpf descriptor.
        let open = PinnedLink::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        let facts = bpf_descriptors()?;
        drop(open);
        let mut known = false;
        for (key, ids) in [
            ("prog_id:", &mut objects.programs),
            ("map_id:", &mut objects.maps),
            ("link_id:", &mut objects.links),
        ] {
            for id in facts
                .lines()
                .filter_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            {
                ids.insert(id);
                known = true;
            }
        }
        if !known {
            bail!("{} is neither program, map nor link: {facts}", pin.display());
        }
    }
    Ok(objects)
}

/// The fdinfo of every bpf descriptor of this process.
fn bpf_descriptors() -> Result<String> {
    let mut facts = String::new();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        if name.to_string_lossy().starts_with("anon_inode:bpf") {
            let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
            facts.push_str(&std::fs::read_to_string(info)?);
        }
    }
    Ok(facts)
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
