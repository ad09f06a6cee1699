//! Whether the kernel still runs our programs in the cgroups where we attached them. Anybody who may use bpf can detach a link of
//! ours by force (`bpftool link detach`, BPF_LINK_DETACH, kernel 5.9): its pin stays, and leads to nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::Interceptor;
use super::load::AGENT_HOOKS;
use super::sys;

/// The hooks with the kernel's numbers (`enum bpf_attach_type`, linux/bpf.h).
const ATTACH_TYPES: [(&str, u32); 5] = [
    ("handover", 3),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("connect4", 10),
    ("connect6", 11),
];

impl Interceptor {
    /// Hooked cgroups in which the kernel does not run all of our programs any more, with those that it does not. Nobody is told of
    /// that: the kernel is asked, a system call for each program and cgroup. What cannot be asked is not told.
    pub fn unhooked(&self) -> Vec<(PathBuf, Vec<&'static str>)> {
        let programs: BTreeMap<&'static str, u32> = AGENT_HOOKS
            .into_iter()
            .filter_map(|name| Some((name, self.loaded.ebpf.program(name)?.info().ok()?.id())))
            .collect();
        let hooked = self.hooked.values().map(|cgroup| {
            let missing = missing(&self.cgroups.directory(cgroup), &programs);
            (cgroup.clone(), missing)
        });
        hooked.filter(|(_, missing)| !missing.is_empty()).collect()
    }
}

/// Which of these programs do not run in a cgroup.
fn missing(directory: &Path, programs: &BTreeMap<&'static str, u32>) -> Vec<&'static str> {
    // One that ended meanwhile lacks nothing.
    let Ok(cgroup) = File::open(directory) else {
        return Vec::new();
    };
    ATTACH_TYPES
        .into_iter()
        .filter(
            |(name, kind)| match (programs.get(name), sys::cgroup_programs(cgroup.as_fd(), *kind)) {
                (Some(id), Ok((_, attached))) => !attached.contains(id),
                _ => false,
            },
        )
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_has_its_number() {
        let mut known: Vec<&str> = ATTACH_TYPES.iter().map(|(name, _)| *name).collect();
        let mut hooks = AGENT_HOOKS.to_vec();
        known.sort_unstable();
        hooks.sort_unstable();
        assert_eq!(known, hooks);
    }
}
