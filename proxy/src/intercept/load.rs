//! Loads the embedded object: probes what the kernel can do, re-uses pinned maps, and names the program and the kernel
//! when the verifier refuses.

use std::fs;
use std::io;
use std::path::Path;

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapInfo, MapType, PerCpuArray, SockMap};
use aya::programs::{Program, ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use proxy_ebpf::{
    Counter, Flow, HandoverKey, Interface, Leak, LeakKey, MAX_COUNTED, MAX_FLOWS, MAX_HANDOVER, MAX_LEAKED,
    MAX_NETWORKS, MAX_OWN_FLOWS, MAX_PREFIXES, Namespace, Original, OwnFlow, Passed, SLOTS, Settings, Taken,
};
use serde::{Deserialize, Serialize};

use super::error::InterceptError;
use super::kernel_log::{self, KernelLog};
use super::leaks::Teller;
use super::memlock;
use super::pins::PinDirectory;

/// The object that `build.rs` compiled.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent-fips-proxy-ebpf"));

/// Programs for an Agent's cgroup in the order of attachment: no connection is rewritten before the rest is in place.
pub(super) const AGENT_HOOKS: [&str; 5] =
    ["handover", "getpeername4", "getpeername6", "connect4", "connect6"];
/// Programs for the proxy's own cgroup.
pub(super) const OWN_HOOKS: [&str; 2] = ["own_handover", "original_dst"];
/// The program for interfaces.
pub(super) const CLASSIFIER: &str = "classify";
/// The program for the host's network namespace.
pub(super) const SK_LOOKUP: &str = "pick";
/// The program that tells a namespace's cookie; attached to our own cgroup while it is asked.
pub(super) const NETNS_PROBE: &str = "netns_probe";

/// Optional kernel features that the programs use when they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// `bpf_set_retval` in connect hooks (5.18): a refused connect fails with ECONNREFUSED, else with EPERM.
    pub set_retval: bool,
    /// `bpf_get_netns_cookie` in sockops (5.15): equal tuples of two network namespaces cannot be confused.
    pub sockops_netns_cookie: bool,
}

impl Features {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The probe itself was refused: no CAP_BPF.
    pub fn probe() -> Result<Self, InterceptError> {
        let supported = |kind, helper| {
            is_helper_supported(kind, helper).map_err(|error| InterceptError::Program {
                program: "feature probe",
                kernel: kernel(),
                source: Box::new(error),
            })
        };
        Ok(Self {
            set_retval: supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)?,
            sockops_netns_cookie: supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie)?,
        })
    }
}

/// The loaded programs and the maps that user space writes.
pub struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) settings: HashMap<MapData, u32, Settings>,
    pub(super) prefix4: LpmTrie<MapData, u32, u32>,
    pub(super) prefix6: LpmTrie<MapData, [u32; 4], u32>,
    pub(super) listeners: SockMap<MapData>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) namespaces: HashMap<MapData, u64, Namespace>,
    pub(super) interfaces: HashMap<MapData, u32, Interface>,
    pub(super) flows: HashMap<MapData, Flow, Taken>,
    pub(super) own_flows: HashMap<MapData, OwnFlow, u32>,
    pub(super) leaked: HashMap<MapData, LeakKey, Leak>,
    pub(super) counted: HashMap<MapData, u64, u32>,
    pub(super) let_go: HashMap<MapData, Flow, u32>,
    pub(super) probed: HashMap<MapData, u64, u64>,
    pub(super) features: Features,
    pub(super) log: Option<KernelLog>,
    /// Every pinned map once more, to pin it again after somebody removed the pins.
    handles: Vec<(&'static str, MapData)>,
}

impl Loaded {
    /// Loads every program, with its maps pinned below `pins`; takes over maps that are pinned there.
    ///
    /// # Errors
    /// A missing capability, a kernel that refuses a program, or a bpffs that cannot be written.
    pub fn open(pins: &PinDirectory) -> Result<Self, InterceptError> {
        load(pins, Teller::default())
    }

    /// Pins every map again.
    pub(super) fn restore_pins(&self, pins: &PinDirectory) -> Result<(), InterceptError> {
        for (name, map) in &self.handles {
            let path = pins.maps().join(name);
            map.pin(&path).map_err(|source| InterceptError::Pin {
                path,
                source: Box::new(source),
            })?;
        }
        Ok(())
    }
}

/// A map as this version expects it. A pin that differs is of another version.
struct Layout {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
    flags: u32,
}

impl Layout {
    /// With these flags.
    const fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }
}

/// `BPF_F_NO_PREALLOC` (linux/bpf.h): an entry is freed after a grace period, and never used again before.
const GROWS: u32 = 1;
/// `BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG` (5.2): programs may only read.
const READ_ONLY: u32 = 1 | 1 << 7;

const LAYOUTS: [Layout; 16] = {
    const fn layout(name: &'static str, kind: MapType, key: usize, value: usize, entries: u32) -> Layout {
        Layout {
            name,
            kind,
            key,
            value,
            entries,
            flags: 0,
        }
    }
    [
        layout("SETTINGS", MapType::Hash, 4, size_of::<Settings>(), 1).flags(READ_ONLY),
        layout("PREFIX4", MapType::LpmTrie, 8, 4, MAX_PREFIXES).flags(READ_ONLY),
        layout("PREFIX6", MapType::LpmTrie, 20, 4, MAX_PREFIXES).flags(READ_ONLY),
        layout("LISTENERS", MapType::SockMap, 4, 4, SLOTS),
        layout("CLIENT", MapType::SkStorage, 4, size_of::<Original>(), 0).flags(GROWS),
        layout("ACCEPTED", MapType::SkStorage, 4, size_of::<Original>(), 0).flags(GROWS),
        layout("PASSED", MapType::SkStorage, 4, size_of::<Passed>(), 0).flags(GROWS),
        layout(
            "HANDOVER",
            MapType::LruHash,
            size_of::<HandoverKey>(),
            size_of::<Original>(),
            MAX_HANDOVER,
        ),
        layout(
            "NAMESPACES",
            MapType::Hash,
            8,
            size_of::<Namespace>(),
            MAX_NETWORKS,
        )
        .flags(READ_ONLY),
        layout(
            "INTERFACES",
            MapType::Hash,
            4,
            size_of::<Interface>(),
            MAX_NETWORKS,
        )
        .flags(GROWS),
        layout(
            "FLOWS",
            MapType::LruHash,
            size_of::<Flow>(),
            size_of::<Taken>(),
            MAX_FLOWS,
        ),
        layout(
            "OWN_FLOWS",
            MapType::LruHash,
            size_of::<OwnFlow>(),
            4,
            MAX_OWN_FLOWS,
        ),
        layout(
            "LEAKED",
            MapType::LruHash,
            size_of::<LeakKey>(),
            size_of::<Leak>(),
            MAX_LEAKED,
        ),
        layout("COUNTED", MapType::LruHash, 8, 4, MAX_COUNTED),
        layout("LET_GO", MapType::LruHash, size_of::<Flow>(), 4, MAX_COUNTED),
        layout("COUNTERS", MapType::PerCpuArray, 4, 8, counter_count()),
    ]
};

#[expect(
    clippy::cast_possible_truncation,
    reason = "a constant of two digits; `try_from` is not const"
)]
const fn counter_count() -> u32 {
    Counter::ALL.len() as u32
}

/// Loads every program, with its maps pinned below `pins`. `teller` names those whose leaks the programs tell.
pub(super) fn load(pins: &PinDirectory, teller: Teller) -> Result<Loaded, InterceptError> {
    if OBJECT.is_empty() {
        return Err(InterceptError::EmptyObject);
    }
    let features = Features::probe()?;
    drop_incompatible(&pins.maps())?;

    let has_set_retval = u8::from(features.set_retval);
    let has_cookie = u8::from(features.sockops_netns_cookie);
    let page_size = page_size();
    let wanted = kernel_log::wanted();
    memlock::raise();
    let mut loader = EbpfLoader::new();
    loader
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .override_global("HAS_SOCKOPS_NETNS_COOKIE", &has_cookie, true)
        .override_global("PAGE_SIZE", &page_size, true)
        .override_global("LOG", &wanted, true);
    for layout in &LAYOUTS {
        loader.map_pin_path(layout.name, pins.maps().join(layout.name));
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|source| InterceptError::Object(Box::new(source)))?;
    let others = [CLASSIFIER, SK_LOOKUP, NETNS_PROBE];
    for name in AGENT_HOOKS.into_iter().chain(OWN_HOOKS).chain(others) {
        load_program(&mut ebpf, name)?;
    }
    let handles = LAYOUTS
        .iter()
        .map(|layout| {
            MapData::from_pin(pins.maps().join(layout.name))
                .map(|map| (layout.name, map))
                .map_err(InterceptError::map("open the pin of", layout.name))
        })
        .collect::<Result<_, _>>()?;
    let log = KernelLog::new(&mut ebpf, teller);
    Ok(Loaded {
        settings: take(&mut ebpf, "SETTINGS")?,
        prefix4: take(&mut ebpf, "PREFIX4")?,
        prefix6: take(&mut ebpf, "PREFIX6")?,
        listeners: take(&mut ebpf, "LISTENERS")?,
        counters: take(&mut ebpf, "COUNTERS")?,
        namespaces: take(&mut ebpf, "NAMESPACES")?,
        interfaces: take(&mut ebpf, "INTERFACES")?,
        flows: take(&mut ebpf, "FLOWS")?,
        own_flows: take(&mut ebpf, "OWN_FLOWS")?,
        leaked: take(&mut ebpf, "LEAKED")?,
        counted: take(&mut ebpf, "COUNTED")?,
        let_go: take(&mut ebpf, "LET_GO")?,
        probed: take(&mut ebpf, "PROBED")?,
        ebpf,
        features,
        log,
        handles,
    })
}

/// The running kernel's release, as `uname -r` prints it.
pub(super) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), InterceptError> {
    let program = ebpf.program_mut(name).ok_or(InterceptError::Missing(name))?;
    let result = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    result.map_err(|source| InterceptError::Program {
        program: name,
        kernel: kernel(),
        source: Box::new(source),
    })
}

fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, InterceptError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(InterceptError::Missing(name))?;
    M::try_from(map).map_err(InterceptError::map("open", name))
}

/// Removes all pinned maps when one of them is of another layout. Programs that are still attached keep their own.
fn drop_incompatible(directory: &Path) -> Result<(), InterceptError> {
    let Some(reason) = LAYOUTS.iter().find_map(|layout| incompatible(directory, layout)) else {
        return Ok(());
    };
    tracing::warn!(
        directory = %directory.display(), %reason,
        "pinned maps are of another version: replaced; learnt destinations start anew"
    );
    for layout in &LAYOUTS {
        let pin = directory.join(layout.name);
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(InterceptError::file("remove", pin)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn incompatible(directory: &Path, layout: &Layout) -> Option<String> {
    let pin = directory.join(layout.name);
    if !pin.exists() {
        return None;
    }
    let info = match MapInfo::from_pin(&pin) {
        Ok(info) => info,
        Err(error) => return Some(format!("{}: {error}", layout.name)),
    };
    let found = (
        info.map_type().ok(),
        info.key_size() as usize,
        info.value_size() as usize,
        info.max_entries(),
        info.map_flags(),
    );
    let expected = (
        Some(layout.kind),
        layout.key,
        layout.value,
        layout.entries,
        layout.flags,
    );
    (found != expected).then(|| format!("{} is {found:?}, expected {expected:?}", layout.name))
}

fn page_size() -> u32 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u32::try_from(size).ok())
        .unwrap_or(4096)
}
