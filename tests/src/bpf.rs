//! Which kernel objects a proxy left pinned, whether they are still loaded, and how many entries their maps have.
//!
//! The kernel's lists are machine-wide and other tests run beside this one, so a count before and after says nothing:
//! we remember the ids of what is pinned in the host's own bpffs, and ask for exactly these later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, Map, MapData, MapError, MapType, loaded_maps};
use aya::programs::links::PinnedLink;
use aya::programs::{loaded_links, loaded_programs};
use proxy_ebpf::{Flow, HandoverKey, Interface, Leak, LeakKey, Namespace, Original, OwnFlow, Settings};

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

    /// How many.
    pub fn len(&self) -> usize {
        self.programs.len() + self.maps.len() + self.links.len()
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

    /// Adds what these descriptors are; false when there is nothing among them.
    fn note(&mut self, facts: &BTreeMap<std::ffi::OsString, String>) -> bool {
        let mut known = false;
        for (key, ids) in [
            ("prog_id:", &mut self.programs),
            ("map_id:", &mut self.maps),
            ("link_id:", &mut self.links),
        ] {
            for id in facts
                .values()
                .flat_map(|fact| fact.lines())
                .filter_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            {
                ids.insert(id);
                known = true;
            }
        }
        known
    }

    /// Adds the others.
    pub fn extend(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.links.extend(other.links);
    }

    /// Adds the maps that the programs use, which may be held by nothing else.
    pub fn with_maps(mut self) -> Self {
        for program in loaded_programs().flatten() {
            if self.programs.contains(&program.id()) {
                self.maps
                    .extend(program.map_ids().ok().flatten().into_iter().flatten());
            }
        }
        self
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
        // link_id), while this value holds it open. No other thread of a suite opens a bpf descriptor meanwhile.
        let before = bpf_descriptors("self")?;
        let open = PinnedLink::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        let mut facts = bpf_descriptors("self")?;
        drop(open);
        facts.retain(|descriptor, _| !before.contains_key(descriptor));
        if !objects.note(&facts) {
            bail!("{} is neither program, map nor link: {facts:?}", pin.display());
        }
    }
    Ok(objects)
}

/// What a process holds open, pinned or not.
pub fn held(process: nix::unistd::Pid) -> Result<Objects> {
    let mut objects = Objects::default();
    objects.note(&bpf_descriptors(&process.to_string())?);
    Ok(objects)
}

/// How many entries each of these maps has that can have more or fewer, by its name; maps of one name together.
///
/// The others have a size that nothing changes (arrays, the ring buffer), or live in sockets and go with them.
pub fn entries(maps: &BTreeSet<u32>) -> Result<BTreeMap<String, usize>> {
    let mut all = BTreeMap::new();
    for id in maps {
        let map = MapData::from_id(*id).with_context(|| format!("map {id}"))?;
        let info = map.info()?;
        let name = info.name_as_str().context("a map's name")?.to_owned();
        let count = match name.as_str() {
            "SETTINGS" => in_hash::<u32, Settings>(Map::HashMap(map)),
            "NAMESPACES" => in_hash::<u64, Namespace>(Map::HashMap(map)),
            "INTERFACES" => in_hash::<u32, Interface>(Map::HashMap(map)),
            "HANDOVER" => in_hash::<HandoverKey, Original>(Map::LruHashMap(map)),
            "FLOWS" | "LET_GO" => in_hash::<Flow, u32>(Map::LruHashMap(map)),
            "OWN_FLOWS" => in_hash::<OwnFlow, u32>(Map::LruHashMap(map)),
            "LEAKED" => in_hash::<LeakKey, Leak>(Map::LruHashMap(map)),
            "COUNTED" => in_hash::<u64, u32>(Map::LruHashMap(map)),
            "PROBED" => in_hash::<u64, u64>(Map::HashMap(map)),
            "PREFIX4" => in_trie::<u32>(map),
            "PREFIX6" => in_trie::<[u32; 4]>(map),
            _ => {
                let kind = info.map_type()?;
                if GROWING.contains(&kind) {
                    bail!("map {name} is of kind {kind:?}, and nobody here knows its keys");
                }
                continue;
            }
        };
        *all.entry(name.clone()).or_default() += count.with_context(|| format!("map {name}"))?;
    }
    Ok(all)
}

/// Kinds of maps in which there can be more or fewer entries, sockets apart.
const GROWING: &[MapType] = &[
    MapType::Hash,
    MapType::LruHash,
    MapType::PerCpuHash,
    MapType::LruPerCpuHash,
    MapType::LpmTrie,
];

fn in_hash<K: Pod, V: Pod>(map: Map) -> Result<usize, MapError> {
    count(HashMap::<MapData, K, V>::try_from(map)?.keys())
}

fn in_trie<K: Pod>(map: MapData) -> Result<usize, MapError> {
    count(LpmTrie::<MapData, K, u32>::try_from(Map::LpmTrie(map))?.keys())
}

/// A key that goes while they are read sets the kernel back to the first one, so that some may count twice; and it may never end.
fn count<K>(keys: impl Iterator<Item = Result<K, MapError>>) -> Result<usize, MapError> {
    const MOST: usize = 1 << 20;
    keys.take(MOST).try_fold(0, |count, key| key.map(|_| count + 1))
}

/// The fdinfo of every bpf descriptor of a process, by its number.
fn bpf_descriptors(process: &str) -> Result<BTreeMap<std::ffi::OsString, String>> {
    let process = Path::new("/proc").join(process);
    let mut facts = BTreeMap::new();
    for entry in std::fs::read_dir(process.join("fd"))?.flatten() {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        if name.to_string_lossy().starts_with("anon_inode:bpf") {
            let info = process.join("fdinfo").join(entry.file_name());
            // It may have been closed since it was listed.
            if let Ok(info) = std::fs::read_to_string(info) {
                facts.insert(entry.file_name(), info);
            }
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
