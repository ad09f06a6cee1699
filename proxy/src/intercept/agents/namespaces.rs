//! Agents by network namespace: files such as `/run/netns/agent`. Everything that lives there is an Agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::processes::Hidden;
use super::{Agent, Selector, Source, View, processes};
use crate::intercept::error::InterceptError;
use crate::intercept::netns::NamespaceId;

/// The configured files.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    paths: Vec<PathBuf>,
}

impl Namespaces {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        Self {
            paths: paths.to_vec(),
        }
    }
}

impl Source for Namespaces {
    fn agents(&self, view: &mut View<'_>) -> Result<Vec<Agent>, InterceptError> {
        let mut agents = Vec::new();
        if self.paths.is_empty() {
            return Ok(agents);
        }
        let table = Table::read()?;
        for path in &self.paths {
            // Not there yet, or not any more.
            let Ok(namespace) = view.open.at(path) else {
                continue;
            };
            let id = namespace.id();
            let (cgroups, no_cgroup) = match table.exclusive(view, id)? {
                Ok(cgroups) => (cgroups, None),
                Err(why) => (BTreeMap::new(), Some(why)),
            };
            agents.push(Agent {
                selector: Selector::Namespace(path.clone()),
                cgroups,
                no_cgroup,
                namespaces: [(id, namespace)].into(),
                unseen: super::unseen(false, table.denied),
            });
        }
        Ok(agents)
    }
}

/// Where every process lives.
struct Table {
    processes: Vec<(u32, NamespaceId)>,
    /// There are processes of which that may not be seen.
    denied: bool,
}

impl Table {
    fn read() -> Result<Self, InterceptError> {
        let mut table = Self {
            processes: Vec::new(),
            denied: false,
        };
        for pid in processes::all().map_err(InterceptError::file("read", "/proc"))? {
            match processes::namespace_of(pid) {
                Ok(namespace) => table.processes.push((pid, namespace)),
                Err(Hidden::Gone) => {}
                Err(Hidden::Denied) => table.denied = true,
            }
        }
        Ok(table)
    }

    /// The cgroups of a namespace's processes, provided that no process of another namespace is in one of them: hooks on
    /// a cgroup would take that one's connections, too. The inner result says why not.
    fn exclusive(
        &self,
        view: &View<'_>,
        id: NamespaceId,
    ) -> Result<Result<BTreeMap<u64, PathBuf>, String>, InterceptError> {
        let inside: BTreeSet<u32> = self
            .processes
            .iter()
            .filter(|(_, namespace)| *namespace == id)
            .map(|(pid, _)| *pid)
            .collect();
        let paths: BTreeSet<PathBuf> = inside
            .iter()
            .filter_map(|pid| processes::cgroup_of(*pid))
            .collect();
        if paths.is_empty() {
            return Ok(Err("no process lives there yet".to_owned()));
        }
        let mut cgroups = BTreeMap::new();
        for path in paths {
            if path == Path::new("/") {
                return Ok(Err(
                    "its processes are in the root cgroup, which is everybody's".to_owned()
                ));
            }
            let members = processes::of_cgroup(view.cgroups, &path)?;
            if members.outside {
                return Ok(Err(format!(
                    "its cgroup {} also holds processes outside of the proxy's process namespace, which may be \
                     anybody's; run the proxy's pod with hostPID: true",
                    path.display()
                )));
            }
            let stranger = members.pids.into_iter().find(|pid| {
                let other = processes::namespace_of(*pid);
                !inside.contains(pid) && other != Ok(id) && other != Err(Hidden::Gone)
            });
            if let Some(pid) = stranger {
                return Ok(Err(format!(
                    "its cgroup {} also holds process {pid} of another network namespace, or of one that we may not look at (CAP_SYS_PTRACE)",
                    path.display()
                )));
            }
            if let Ok(number) = view.cgroups.id(&path) {
                cgroups.insert(number, path);
            }
        }
        Ok(Ok(cgroups))
    }
}
