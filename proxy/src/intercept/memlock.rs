//! Locked memory before Linux 5.11, where maps and programs count against `RLIMIT_MEMLOCK` of the user (since then against
//! the memory of the cgroup). The usual limit, 64 KiB to 8 MiB, is too small for them, and the refusal is a bare EPERM.

use caps::{CapSet, Capability};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};

use super::load::kernel;
use super::preflight::{Check, parse_release};

/// First kernel that charges maps to the memory of the cgroup.
const CHARGED_TO_CGROUP: (u32, u32) = (5, 11);
/// What maps and programs were seen to fit into with 2 CPUs, in bytes: docs/KERNELS.md. It counts for all processes of the user.
const ENOUGH: rlim_t = 64 << 20;

/// What helps, for errors and `doctor`.
pub(super) const CURE: &str = "before Linux 5.11 eBPF maps count against RLIMIT_MEMLOCK: set LimitMEMLOCK=infinity in the \
                               unit, start under `ulimit -l unlimited`, or grant CAP_SYS_RESOURCE";

/// True where the limit matters.
pub(super) fn counts() -> bool {
    parse_release(&kernel()).is_some_and(|version| version < CHARGED_TO_CGROUP)
}

/// [`CURE`] in brackets, for an error of this kernel; else nothing.
pub(super) fn cure() -> String {
    if counts() {
        format!(" ({CURE})")
    } else {
        String::new()
    }
}

/// Raises the limit as far as this process may. What is too little shows when the maps are made, with [`CURE`].
pub(super) fn raise() {
    if !counts() {
        return;
    }
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        // Up to the hard limit everybody may.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// A row for `doctor`; `None` where the limit does not matter.
pub(super) fn check() -> Option<Check> {
    counts().then(|| {
        let hard = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(_, hard)| hard);
        let may_raise = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap_or(false);
        row(hard, may_raise)
    })
}

fn row(hard: rlim_t, may_raise: bool) -> Check {
    let detail = if hard == RLIM_INFINITY {
        "not limited".to_owned()
    } else if may_raise {
        "can be raised (CAP_SYS_RESOURCE)".to_owned()
    } else {
        format!("at most {} KiB", hard >> 10)
    };
    let mut check = Check::new("locked memory", hard >= ENOUGH || may_raise, detail, CURE);
    if !check.ok {
        check.capability = Some("CAP_SYS_RESOURCE (RLIMIT_MEMLOCK, before Linux 5.11)".to_owned());
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_is_named_with_its_cure() {
        assert!(row(RLIM_INFINITY, false).ok && row(64 << 10, true).ok && row(ENOUGH, false).ok);
        let small = row(64 << 10, false);
        assert!(!small.ok && small.required, "{small:?}");
        assert_eq!(small.detail, "at most 64 KiB");
        assert!(small.cure.contains("LimitMEMLOCK"), "{small:?}");
    }
}
