//! Who keeps our hooks out of a cgroup: a program attached exclusively there or above. (Cilium does so on kernels before
//! 5.7, and where it was upgraded in place from a version before 1.14.)

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::host::Cgroup2;
use super::sys;

/// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI` (linux/bpf.h).
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// The hooks of an Agent's cgroup with the kernel's numbers (`enum bpf_attach_type`).
const HOOKS: [(&str, u32); 5] = [
    ("sock_ops", 3),
    ("connect4", 10),
    ("connect6", 11),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// Why the kernel would refuse our hooks on this cgroup; `None` when it would not, or when it cannot be asked. The rules are
/// those of `hierarchy_allows_attach` and `__cgroup_bpf_attach` (kernel/bpf/cgroup.c).
pub(super) fn refusal(cgroups: &Cgroup2, cgroup: &Path) -> Option<String> {
    HOOKS.iter().find_map(|(name, kind)| {
        let mut first = true;
        for place in cgroup.ancestors() {
            let here = std::mem::take(&mut first);
            let Ok(handle) = File::open(cgroups.directory(place)) else {
                continue;
            };
            let Ok((flags, programs)) = sys::cgroup_programs(handle.as_fd(), *kind) else {
                continue;
            };
            match judge(here, flags, &programs) {
                Judgement::Refused(id) => {
                    return Some(format!(
                        "program {id} is attached exclusively as {name} at cgroup {}, which keeps ours out \
                         (`bpftool prog show id {id}` shows whose it is; its owner must attach it with BPF_F_ALLOW_MULTI \
                         or a link)",
                        place.display()
                    ));
                }
                Judgement::Allowed => break,
                Judgement::LookAbove => {}
            }
        }
        None
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Allowed,
    Refused(u32),
    LookAbove,
}

/// One step of the way up. `here`: the cgroup itself, where programs of another mode exclude ours; above it a program that
/// allows to be overridden is no obstacle.
fn judge(here: bool, flags: u32, programs: &[u32]) -> Judgement {
    match programs {
        _ if flags & ALLOW_MULTI != 0 => Judgement::Allowed,
        [id, ..] if here => Judgement::Refused(*id),
        [_] if flags & ALLOW_OVERRIDE != 0 => Judgement::Allowed,
        [id, ..] => Judgement::Refused(*id),
        [] => Judgement::LookAbove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_rules() {
        for (here, flags, programs, expected) in [
            (true, 0, &[][..], Judgement::LookAbove),
            (true, 0, &[7], Judgement::Refused(7)),
            (true, ALLOW_OVERRIDE, &[7], Judgement::Refused(7)),
            (true, ALLOW_MULTI, &[7], Judgement::Allowed),
            (false, 0, &[], Judgement::LookAbove),
            (false, 0, &[7], Judgement::Refused(7)),
            (false, ALLOW_OVERRIDE, &[7], Judgement::Allowed),
            (false, ALLOW_MULTI, &[7, 8], Judgement::Allowed),
        ] {
            assert_eq!(
                judge(here, flags, programs),
                expected,
                "{here} {flags} {programs:?}"
            );
        }
    }
}
