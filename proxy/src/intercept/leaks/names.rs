//! Whose leak it is: from the kernel's numbers to the Agents that they stand for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proxy_ebpf::{LeakKey, WHO_CGROUP};

use crate::intercept::choose::Taken;
use crate::intercept::host::below;
use crate::intercept::netns::Namespace;

/// Who is not known by name: a cgroup or namespace that was gone before we saw it.
pub(in crate::intercept) const UNKNOWN: &str = "unknown";
/// Cgroups that are remembered: an Agent's own and those below, of all its restarts. Beyond, those that are gone go.
const MOST: usize = 16_384;

/// An Agent, as far as leaks are concerned.
#[derive(Clone, Debug)]
pub(in crate::intercept) struct Kin {
    /// What named it, in words.
    pub(in crate::intercept) name: String,
    /// How its connections are taken; `None`: they are not.
    pub(in crate::intercept) taken: Option<Taken>,
    /// The directories of its cgroups.
    pub(in crate::intercept) directories: Vec<PathBuf>,
    /// Where its processes live.
    pub(in crate::intercept) namespaces: Vec<Arc<Namespace>>,
}

/// The kernel's ids of the Agents' cgroups and of all below them, each with the place of its Agent in `kin`. Of two Agents
/// one of which is inside the other, the inner one has its own.
pub(in crate::intercept) fn cgroups(kin: &[Kin]) -> BTreeMap<u64, usize> {
    let mut roots: Vec<(&Path, usize)> = kin
        .iter()
        .enumerate()
        .flat_map(|(at, one)| one.directories.iter().map(move |path| (path.as_path(), at)))
        .collect();
    // Outer ones first: inner ones overwrite.
    roots.sort_unstable_by_key(|(path, _)| path.components().count());
    let mut found = BTreeMap::new();
    for (root, at) in roots {
        for (_, id) in below(root) {
            found.insert(id, at);
        }
    }
    found
}

/// The names behind the keys, also of what is gone by now.
#[derive(Debug, Default)]
pub(in crate::intercept) struct Names {
    kin: Vec<Kin>,
    cgroups: BTreeMap<u64, String>,
    namespaces: BTreeMap<u64, String>,
    /// Cgroups that were looked for since the last [`Names::learn`], and are nobody's.
    strangers: BTreeSet<u64>,
}

impl Names {
    /// Takes note of the Agents that there are, and of the namespaces with their cookies. What was known stays known.
    pub(in crate::intercept) fn learn(
        &mut self,
        kin: &[Kin],
        namespaces: impl IntoIterator<Item = (u64, String)>,
    ) {
        // Without the namespaces: they must not live for our sake.
        self.kin = kin
            .iter()
            .map(|one| Kin {
                namespaces: Vec::new(),
                ..one.clone()
            })
            .collect();
        self.strangers.clear();
        let present = self.walk();
        if self.cgroups.len() > MOST {
            self.cgroups.retain(|id, _| present.contains(id));
        }
        self.namespaces.extend(namespaces);
    }

    /// The Agent behind a key; [`UNKNOWN`] when nobody can tell any more.
    pub(in crate::intercept) fn agent(&mut self, key: &LeakKey) -> String {
        let known = if key.kind == WHO_CGROUP {
            if !self.cgroups.contains_key(&key.who) && self.strangers.insert(key.who) {
                // Made since the last look.
                self.walk();
            }
            self.cgroups.get(&key.who)
        } else {
            self.namespaces.get(&key.who)
        };
        known.map_or_else(|| UNKNOWN.to_owned(), Clone::clone)
    }

    /// Learns every cgroup of the Agents that there are; returns them.
    fn walk(&mut self) -> BTreeSet<u64> {
        let found = cgroups(&self.kin);
        for (id, at) in &found {
            self.cgroups.insert(*id, self.kin[*at].name.clone());
        }
        found.into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use proxy_ebpf::{Reason, WHO_NETNS};

    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn kin(name: &str, directory: &Path) -> Kin {
        Kin {
            name: name.to_owned(),
            taken: Some(Taken::Cgroup),
            directories: vec![directory.to_owned()],
            namespaces: Vec::new(),
        }
    }

    fn key(kind: u32, who: u64) -> LeakKey {
        LeakKey {
            who,
            reason: Reason::NoListener as u32,
            kind,
        }
    }

    /// Directories stand for cgroups: their ids are inode numbers, too.
    #[test]
    fn cgroups_are_named_by_the_innermost_agent_and_remembered() {
        let root = tempfile::tempdir().unwrap();
        let (outer, inner) = (root.path().join("outer"), root.path().join("outer/a/inner"));
        fs::create_dir_all(inner.join("deep")).unwrap();
        let id = |path: &Path| fs::metadata(path).unwrap().ino();
        let all = [kin("inner", &inner), kin("outer", &outer)];
        let mut names = Names::default();
        names.learn(&all, [(7, "pod".to_owned())]);
        for (path, expected) in [
            (outer.clone(), "outer"),
            (outer.join("a"), "outer"),
            (inner.clone(), "inner"),
            (inner.join("deep"), "inner"),
            (root.path().to_owned(), UNKNOWN),
        ] {
            assert_eq!(
                names.agent(&key(WHO_CGROUP, id(&path))),
                expected,
                "{}",
                path.display()
            );
        }
        assert_eq!(names.agent(&key(WHO_NETNS, 7)), "pod");
        assert_eq!(names.agent(&key(WHO_NETNS, 8)), UNKNOWN);

        // One that came since, and then one that is gone.
        fs::create_dir(outer.join("new")).unwrap();
        let new = id(&outer.join("new"));
        assert_eq!(names.agent(&key(WHO_CGROUP, new)), "outer");
        fs::remove_dir_all(&outer).unwrap();
        names.learn(&[], []);
        assert_eq!(names.agent(&key(WHO_CGROUP, new)), "outer");
        assert_eq!(names.agent(&key(WHO_NETNS, 7)), "pod");
    }
}
