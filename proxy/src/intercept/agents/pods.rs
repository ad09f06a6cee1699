//! Agents by pod: Kubernetes names them, the cgroup hierarchy says where they are.
//!
//! A kubelet gives each pod a cgroup that carries its uid: `pod<uid>` with the cgroupfs driver,
//! `kubepods-besteffort-pod<uid with _ for ->.slice` with the systemd driver, below whatever `--cgroup-root` is.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Agent, Home, Selector, Source, View, processes};
use crate::intercept::error::InterceptError;
use crate::intercept::host::{Cgroup2, MAX_VISITED};

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// `metadata.uid`; for static pods the hash that names their cgroup.
    pub uid: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}/{}", self.namespace, self.name)
    }
}

/// The pods that Kubernetes named last.
#[derive(Debug, Default)]
pub(super) struct Pods {
    wanted: Vec<PodRef>,
}

impl Pods {
    pub(super) fn new(wanted: Vec<PodRef>) -> Self {
        Self { wanted }
    }

    pub(super) fn len(&self) -> usize {
        self.wanted.len()
    }
}

impl Source for Pods {
    fn agents(&self, view: &mut View<'_>) -> Result<Vec<Agent>, InterceptError> {
        if self.wanted.is_empty() {
            return Ok(Vec::new());
        }
        let cgroups = find(view.cgroups, &self.wanted);
        let mut agents = Vec::new();
        for pod in &self.wanted {
            let place = cgroups.get(pod.uid.as_str());
            let home = match place {
                Some((_, path)) => view.home(path)?,
                None => Home::default(),
            };
            agents.push(Agent {
                selector: Selector::Pod(pod.clone()),
                cgroups: place.cloned().into_iter().collect(),
                no_cgroup: place.is_none().then(|| {
                    "no cgroup carries its uid yet; a pod of the proxy needs the host's cgroups and hostPID"
                        .to_owned()
                }),
                namespaces: home.namespaces,
                unseen: home.unseen,
            });
        }
        Ok(agents)
    }
}

/// Subtrees of the hierarchy's root that never hold pods; on a host without them nothing is lost.
const NO_PODS: [&str; 4] = ["system.slice", "user.slice", "init.scope", "machine.slice"];

/// Cgroup id and path of each pod, by uid.
fn find<'a>(cgroups: &Cgroup2, wanted: &'a [PodRef]) -> BTreeMap<&'a str, (u64, PathBuf)> {
    // Both spellings of the last component's end.
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for pod in wanted {
        names.insert(format!("pod{}", pod.uid), &pod.uid);
        names.insert(format!("pod{}.slice", pod.uid.replace('-', "_")), &pod.uid);
    }
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::from("/")];
    let mut visited = 0;
    while let Some(path) = pending.pop() {
        visited += 1;
        if found.len() == wanted.len() {
            break;
        }
        if visited > MAX_VISITED {
            processes::too_many("the hierarchy's root, where pods are looked for");
            break;
        }
        let Ok(entries) = fs::read_dir(cgroups.directory(&path)) else {
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let child = path.join(&name);
            let pod = names.get(&name).or_else(|| {
                let last = name.rfind("-pod").map(|at| &name[at + 1..])?;
                names.get(last)
            });
            if let Some(uid) = pod {
                if let Ok(metadata) = entry.metadata() {
                    found.insert(*uid, (metadata.ino(), child));
                }
            } else if holds_pods(&path, &name) {
                pending.push(child);
            }
        }
    }
    found
}

/// False where no pod's cgroup can be: other subtrees of the root, and what is a leaf to every manager.
fn holds_pods(parent: &Path, name: &str) -> bool {
    let leaf = name.ends_with(".service") || name.ends_with(".scope");
    let elsewhere = parent == Path::new("/") && NO_PODS.contains(&name);
    !leaf && !elsewhere
}

#[cfg(test)]
mod tests {
    use super::super::Open;
    use super::*;

    fn pod(uid: &str) -> PodRef {
        PodRef {
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            name: format!("agent-{uid}"),
        }
    }

    /// As in a container of the proxy without `hostPID`: the cgroup is there, and its processes show as 0.
    #[test]
    fn a_pod_whose_processes_are_outside_is_not_one_without_processes() {
        let root = tempfile::tempdir().unwrap();
        let container = root.path().join("kubepods/besteffort/poda-1/container");
        fs::create_dir_all(&container).unwrap();
        fs::write(container.join("../cgroup.procs"), "").unwrap();
        let cgroups = Cgroup2::at(root.path());
        let own = std::process::id();
        for (procs, unseen, namespaces) in [
            (String::new(), false, 0),
            ("0\n".to_owned(), true, 0),
            (format!("{own}\n"), false, 1),
            (format!("0\n{own}\n"), true, 1),
        ] {
            fs::write(container.join("cgroup.procs"), &procs).unwrap();
            let mut open = Open::default();
            let mut view = View {
                cgroups: &cgroups,
                open: &mut open,
            };
            let found = Pods::new(vec![pod("a-1")]).agents(&mut view).unwrap();
            assert_eq!(found[0].unseen.is_some(), unseen, "{procs:?}");
            assert_eq!(found[0].namespaces.len(), namespaces, "{procs:?}");
        }
    }

    #[test]
    fn both_drivers_and_any_cgroup_root() {
        let root = tempfile::tempdir().unwrap();
        let places = [
            ("a-1", "kubepods/besteffort/poda-1"),
            (
                "b-2",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podb_2.slice",
            ),
            ("c-3", "kubelet/kubepods/podc-3"),
            (
                "d-4",
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podd_4.slice",
            ),
        ];
        for (_, place) in places {
            fs::create_dir_all(root.path().join(place).join("container")).unwrap();
        }
        fs::create_dir_all(root.path().join("system.slice/pode-5")).unwrap();
        fs::create_dir_all(root.path().join("kubepods/podf-6-and-more")).unwrap();
        let wanted: Vec<PodRef> = ["a-1", "b-2", "c-3", "d-4", "e-5", "f-6"]
            .iter()
            .map(|uid| pod(uid))
            .collect();
        let found = find(&Cgroup2::at(root.path()), &wanted);
        let expected: BTreeMap<&str, PathBuf> = places
            .iter()
            .map(|(uid, place)| (*uid, PathBuf::from("/").join(place)))
            .collect();
        let paths: BTreeMap<&str, PathBuf> = found.into_iter().map(|(uid, (_, path))| (uid, path)).collect();
        assert_eq!(paths, expected);
    }
}
