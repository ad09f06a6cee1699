//! What this host can do: one row per check, for `doctor`, and for the decision whether interception can start.
//!
//! Nothing is changed: checks read, and load throw-away programs at most.

use std::fs;
use std::path::Path;

use caps::{CapSet, Capability};
use serde::{Deserialize, Serialize};

use super::host::Cgroup2;
use super::load::{Features, kernel};
use super::memlock;
use super::own;
use super::pins::{OWN_BPFFS, PinDirectory};

/// Lowest kernel that every program was seen to load on.
const MIN_KERNEL: (u32, u32) = (5, 10);

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, short and stable: scripts may match it.
    pub name: String,
    /// Good, or good enough.
    pub ok: bool,
    /// False for a check whose failure costs comfort, not interception.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when `ok`.
    pub cure: String,
    /// The capability that is missing, with the call that needs it; `None` when the reason is another.
    pub capability: Option<String>,
}

impl Check {
    pub(super) fn new(name: &str, ok: bool, detail: impl Into<String>, cure: &str) -> Self {
        Self {
            name: name.to_owned(),
            ok,
            required: true,
            detail: detail.into(),
            cure: if ok { String::new() } else { cure.to_owned() },
            capability: None,
        }
    }

    pub(super) fn optional(mut self) -> Self {
        self.required = false;
        self
    }
}

/// Every check, in the order in which the things are needed.
pub fn checks() -> Vec<Check> {
    let mut rows = vec![kernel_version(&kernel())];
    rows.extend(NEEDED.iter().map(capability));
    if parse_release(&kernel()).is_some_and(|version| version < DEAD_CODE_IS_DEAD) {
        rows.push(capability(&PERFMON));
    }
    rows.extend(memlock::check());
    rows.extend([cgroup2(), membership(), bpffs(), programs(), btf(), jit(), pods()]);
    rows
}

/// What Agents in network namespaces of their own need on top.
fn pods() -> Check {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let missing: Vec<String> = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE]
        .into_iter()
        .filter(|capability| !has(*capability))
        .map(|capability| capability.to_string())
        .collect();
    Check::new(
        "agents in pods",
        missing.is_empty(),
        if missing.is_empty() {
            "their network namespaces can be seen and entered".to_owned()
        } else {
            format!(
                "{} missing: setns() and the namespaces of other users' processes need them; Agents of the host do not",
                missing.join(" and ")
            )
        },
        "grant them where Agents run in pods: with systemd the drop-in agent-fips-proxy-pods.conf does; a pod of the proxy needs hostPID too",
    )
    .optional()
}

/// The first required check that fails, when interception cannot work here. A missing capability comes first: without
/// it later checks fail for that reason.
pub fn obstacle(rows: &[Check]) -> Option<&Check> {
    let failed = || rows.iter().filter(|row| row.required && !row.ok);
    failed()
        .find(|row| row.capability.is_some())
        .or_else(|| failed().next())
}

/// Capabilities that only older kernels ask for, and this one does.
pub fn for_older_kernels() -> Vec<Capability> {
    let perfmon = parse_release(&kernel()).is_some_and(|version| version < DEAD_CODE_IS_DEAD);
    let memory = memlock::counts();
    let asked = [
        (perfmon, Capability::CAP_PERFMON),
        (memory, Capability::CAP_SYS_RESOURCE),
    ];
    asked
        .into_iter()
        .filter_map(|(asked, capability)| asked.then_some(capability))
        .collect()
}

/// A capability, the calls that need it, and whether CAP_SYS_ADMIN includes it.
struct Needed {
    capability: Capability,
    calls: &'static str,
    in_sys_admin: bool,
}

const NEEDED: [Needed; 3] = [
    Needed {
        capability: Capability::CAP_BPF,
        calls: "bpf(BPF_MAP_CREATE), bpf(BPF_PROG_LOAD)",
        in_sys_admin: true,
    },
    Needed {
        capability: Capability::CAP_NET_ADMIN,
        calls: "bpf(BPF_PROG_LOAD) of cgroup socket programs, bpf(BPF_LINK_CREATE)",
        in_sys_admin: false,
    },
    Needed {
        capability: Capability::CAP_DAC_OVERRIDE,
        calls: "creating a cgroup, moving into it, and pinning below bpffs, unless the process is root or owns them",
        in_sys_admin: false,
    },
];

/// First kernel with every helper that the programs call (`bpf_set_retval`). An older one without CAP_PERFMON follows branches
/// that are never taken, as a processor might speculatively, and refuses the helper that it does not know; 5.10 also refuses
/// to compare the ends of a getsockopt buffer ("pointer comparison prohibited"). Both seen on 5.10; not needed on 6.1.
const DEAD_CODE_IS_DEAD: (u32, u32) = (5, 18);
const PERFMON: Needed = Needed {
    capability: Capability::CAP_PERFMON,
    calls: "bpf(BPF_PROG_LOAD) before Linux 5.18",
    in_sys_admin: true,
};

fn capability(needed: &Needed) -> Check {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let ok = has(needed.capability) || (needed.in_sys_admin && has(Capability::CAP_SYS_ADMIN));
    let name = needed.capability.to_string();
    let mut check = Check::new(
        &name,
        ok,
        if ok {
            "effective".to_owned()
        } else {
            format!("missing; needed for {}", needed.calls)
        },
        "run as root, or add it to AmbientCapabilities= of the unit or to securityContext.capabilities.add",
    );
    if !ok {
        check.capability = Some(format!("{name} ({})", needed.calls));
    }
    // The service manager may have prepared the directories: only then is it not needed.
    if needed.capability == Capability::CAP_DAC_OVERRIDE {
        check = check.optional();
    }
    check
}

fn kernel_version(release: &str) -> Check {
    let (major, minor) = MIN_KERNEL;
    let ok = parse_release(release).is_some_and(|version| version >= MIN_KERNEL);
    Check::new(
        "kernel",
        ok,
        release,
        &format!(
            "interception needs Linux {major}.{minor} or newer; use the explicit ports (fips.* settings) instead"
        ),
    )
}

pub(super) fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn cgroup2() -> Check {
    let (ok, detail) = match Cgroup2::find() {
        Ok(found) => (true, found.root().display().to_string()),
        Err(error) => (false, error.to_string()),
    };
    Check::new(
        "cgroup2",
        ok,
        detail,
        "mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or boot with systemd.unified_cgroup_hierarchy=1",
    )
}

fn membership() -> Check {
    let (ok, detail) = match own::current() {
        Ok(path) => (true, path.display().to_string()),
        Err(error) => (false, error.to_string()),
    };
    Check::new(
        "own cgroup",
        ok,
        detail,
        "start the proxy inside the cgroup namespace of the host",
    )
}

fn bpffs() -> Check {
    let name = "bpffs";
    if let Some(pins) = PinDirectory::find() {
        let (path, ok) = (pins.bpffs().display(), pins.is_usable());
        let detail = match ok {
            true => path.to_string(),
            false => format!("{path} may not be entered or written by this process, which is not its owner"),
        };
        return Check::new(
            name,
            ok,
            detail,
            "run as root, or give the user a directory there as the shipped unit does (ExecStartPre=, BindPaths=)",
        );
    }
    let known = fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("\tbpf\n"));
    let admin = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false);
    let mut check = Check::new(
        name,
        known && admin,
        format!("none at /sys/fs/bpf; one of our own will be mounted at {OWN_BPFFS}"),
        "mount one: `mount -t bpf bpf /sys/fs/bpf`",
    );
    if known && !admin {
        check.detail = "none at /sys/fs/bpf".to_owned();
        check.capability = Some("CAP_SYS_ADMIN (mount of a bpffs)".to_owned());
    } else if !known {
        check.detail = "the kernel has no bpf file system (CONFIG_BPF_SYSCALL)".to_owned();
    }
    check
}

fn programs() -> Check {
    let (ok, detail) = match Features::probe() {
        Ok(features) => (
            true,
            format!(
                "loadable; refusal by {}; namespaces told apart in sockops: {}",
                if features.set_retval {
                    "ECONNREFUSED"
                } else {
                    "EPERM (before 5.18)"
                },
                if features.sockops_netns_cookie {
                    "yes"
                } else {
                    "no (before 5.15)"
                },
            ),
        ),
        Err(error) => (false, error.to_string()),
    };
    Check::new(
        "bpf programs",
        ok,
        detail,
        "see the capabilities above; a lockdown mode or a security module may forbid bpf() too",
    )
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    let ok = Path::new(path).exists();
    Check::new(
        "btf",
        ok,
        if ok { path } else { "the kernel shows no BTF" },
        "socket storage needs a kernel with CONFIG_DEBUG_INFO_BTF; every current distribution kernel has it",
    )
    // The maps' own BTF is loaded without that of the kernel; it helps only to read the verifier's messages.
    .optional()
}

fn jit() -> Check {
    let value = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    let ok = value.trim() != "0";
    Check::new(
        "bpf jit",
        ok,
        if ok { "on" } else { "off: programs are interpreted" },
        "sysctl net.core.bpf_jit_enable=1",
    )
    .optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.18.44"), Some((6, 18)));
        assert_eq!(parse_release("5.10.0-30-cloud-amd64"), Some((5, 10)));
        assert_eq!(parse_release("unknown"), None);
        assert!(kernel_version("5.10.1").ok && kernel_version("7.2-rc1").ok);
        let old = kernel_version("5.4.0-1-generic");
        assert!(!old.ok && old.cure.contains("5.10"));
    }

    #[test]
    fn a_missing_capability_is_the_first_obstacle() {
        let mut missing = Check::new("CAP_BPF", false, "missing", "run as root");
        missing.capability = Some("CAP_BPF (bpf)".to_owned());
        let rows = [
            Check::new("kernel", true, "6.1", ""),
            Check::new("btf", false, "none", "x").optional(),
            Check::new("bpffs", false, "none", "mount"),
            missing,
        ];
        assert_eq!(obstacle(&rows).unwrap().name, "CAP_BPF");
        assert_eq!(obstacle(&rows[..3]).unwrap().name, "bpffs");
        assert_eq!(obstacle(&rows[..2]), None, "an optional check is no obstacle");
    }

    #[test]
    fn every_failed_row_has_a_cure() {
        for row in checks() {
            assert!(!row.detail.is_empty(), "{row:?}");
            assert_eq!(row.ok, row.cure.is_empty(), "{row:?}");
        }
    }
}
