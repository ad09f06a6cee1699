//! Who is an Agent. Three sources behind one question: cgroup globs, pods that Kubernetes named, network namespaces.
//!
//! A source says which Agents there are now; it remembers nothing that the host would not tell again. What makes an
//! Agent is the same for all of them: the cgroups in which its connections are taken, and the network namespaces that its
//! processes live in. A namespace is known by device and inode and held open by a descriptor: a path may name another one
//! a moment later.

mod glob;
mod namespaces;
mod pods;
mod processes;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use glob::CgroupGlob;
pub use pods::PodRef;
pub use watch::AgentWatcher;

use processes::Hidden;

use super::error::InterceptError;
use super::host::Cgroup2;
use super::netns::{Namespace, NamespaceId};
use crate::config;

/// What named an Agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// A glob of `intercept.agents.cgroups` matched this cgroup.
    Cgroup(PathBuf),
    /// A pod with the labels of `intercept.agents.pods.label_selector`.
    Pod(PodRef),
    /// A file of `intercept.agents.namespaces`.
    Namespace(PathBuf),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Pod(pod) => pod.fmt(f),
            Self::Namespace(path) => write!(f, "namespace {}", path.display()),
        }
    }
}

/// An Agent as a source saw it.
#[derive(Clone, Debug)]
pub struct Agent {
    /// What named it.
    pub selector: Selector,
    /// The cgroups that hold its processes, and nobody else's, by the kernel's id.
    pub cgroups: BTreeMap<u64, PathBuf>,
    /// Why `cgroups` is empty, or is not all of it.
    pub no_cgroup: Option<String>,
    /// Where its processes live now; empty while it has none that can be seen.
    pub namespaces: BTreeMap<NamespaceId, Arc<Namespace>>,
    /// Why some of its processes cannot be seen; `None` when all of them are.
    pub unseen: Option<Unseen>,
}

/// Why processes that are there cannot be seen. As text, also what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// They are in another pid namespace than we.
    Outside,
    /// They are another user's, and we have no CAP_SYS_PTRACE.
    Denied,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its processes cannot be seen: ")?;
        f.write_str(match self {
            Self::Outside => {
                "they are outside of the proxy's process namespace; run its pod with hostPID: true"
            }
            Self::Denied => {
                "they are another user's; give the proxy CAP_SYS_PTRACE (with systemd: the drop-in agent-fips-proxy-pods.conf)"
            }
        })
    }
}

/// What a source looks at.
struct View<'a> {
    cgroups: &'a Cgroup2,
    /// Namespaces that are open already: the same one is never opened twice.
    open: &'a mut Open,
}

/// Where the processes of a cgroup live.
#[derive(Default)]
struct Home {
    namespaces: BTreeMap<NamespaceId, Arc<Namespace>>,
    /// As [`Agent::unseen`].
    unseen: Option<Unseen>,
}

impl View<'_> {
    fn home(&mut self, cgroup: &Path) -> Result<Home, InterceptError> {
        let members = processes::of_cgroup(self.cgroups, cgroup)?;
        let mut home = Home::default();
        let mut denied = false;
        for pid in members.pids {
            match self.open.of_process(pid) {
                Ok(namespace) => {
                    home.namespaces.insert(namespace.id(), namespace);
                }
                Err(Hidden::Gone) => {}
                Err(Hidden::Denied) => denied = true,
            }
        }
        home.unseen = unseen(members.outside, denied);
        Ok(home)
    }
}

/// Processes that are there and not seen: `outside` of our pid namespace, or `denied` to us. Without the host's processes the
/// capability alone would not help.
fn unseen(outside: bool, denied: bool) -> Option<Unseen> {
    match (outside, denied) {
        (false, false) => None,
        (true, _) => Some(Unseen::Outside),
        (false, true) => Some(Unseen::Denied),
    }
}

/// One way to name Agents.
trait Source {
    /// The Agents that there are now. One that ended meanwhile is left out, it is no error.
    fn agents(&self, view: &mut View<'_>) -> Result<Vec<Agent>, InterceptError>;
}

/// Open namespaces by identity.
#[derive(Debug, Default)]
struct Open {
    known: BTreeMap<NamespaceId, Arc<Namespace>>,
    used: BTreeSet<NamespaceId>,
}

impl Open {
    /// The namespace of a process.
    fn of_process(&mut self, pid: u32) -> Result<Arc<Namespace>, Hidden> {
        let id = processes::namespace_of(pid)?;
        self.get(id, || Namespace::of_process(pid))
            .map_err(|error| processes::hidden(pid, &error))
    }

    /// The namespace that a file is.
    fn at(&mut self, path: &Path) -> std::io::Result<Arc<Namespace>> {
        let namespace = Namespace::open(path)?;
        let id = namespace.id();
        self.used.insert(id);
        Ok(Arc::clone(
            self.known.entry(id).or_insert_with(|| Arc::new(namespace)),
        ))
    }

    fn get(
        &mut self,
        id: NamespaceId,
        open: impl FnOnce() -> std::io::Result<Namespace>,
    ) -> std::io::Result<Arc<Namespace>> {
        let namespace = match self.known.get(&id) {
            Some(known) => Arc::clone(known),
            None => {
                let namespace = Arc::new(open()?);
                // The process may have moved between the look and the open.
                self.known.insert(namespace.id(), Arc::clone(&namespace));
                namespace
            }
        };
        self.used.insert(namespace.id());
        Ok(namespace)
    }

    /// Closes what the last scan did not use: a namespace must not stay alive for our sake.
    fn close_unused(&mut self) {
        let used = std::mem::take(&mut self.used);
        self.known.retain(|id, _| used.contains(id));
    }
}

/// All sources.
pub struct Discovery {
    cgroups: Cgroup2,
    globs: glob::Cgroups,
    namespaces: namespaces::Namespaces,
    pods: pods::Pods,
    open: Open,
}

impl Discovery {
    /// Sources as configured.
    ///
    /// # Errors
    /// A glob that is none.
    pub fn new(config: &config::Agents, cgroups: Cgroup2) -> Result<Self, InterceptError> {
        Ok(Self {
            cgroups,
            globs: glob::Cgroups::new(&config.cgroups)?,
            namespaces: namespaces::Namespaces::new(&config.namespaces),
            pods: pods::Pods::default(),
            open: Open::default(),
        })
    }

    /// Follows a changed configuration; pods that Kubernetes named stay known.
    ///
    /// # Errors
    /// A glob that is none; then nothing changed.
    pub fn reconfigure(&mut self, config: &config::Agents) -> Result<(), InterceptError> {
        self.globs = glob::Cgroups::new(&config.cgroups)?;
        self.namespaces = namespaces::Namespaces::new(&config.namespaces);
        Ok(())
    }

    /// The pods that Kubernetes names now.
    pub fn set_pods(&mut self, pods: Vec<PodRef>) {
        self.pods = pods::Pods::new(pods);
    }

    /// Every Agent of every source. `ours` are cgroups of our own, which nobody can select. An Agent that two sources name is
    /// listed once, under the first of them.
    ///
    /// # Errors
    /// The cgroup hierarchy or the process table cannot be read.
    pub fn scan(&mut self, ours: &[u64]) -> Result<Vec<Agent>, InterceptError> {
        let mut view = View {
            cgroups: &self.cgroups,
            open: &mut self.open,
        };
        let mut found: Vec<Agent> = Vec::new();
        let mut taken: BTreeSet<u64> = ours.iter().copied().collect();
        let sources: [&dyn Source; 3] = [&self.pods, &self.globs, &self.namespaces];
        for source in sources {
            for mut agent in source.agents(&mut view)? {
                let named = !agent.cgroups.is_empty();
                agent.cgroups.retain(|id, _| taken.insert(*id));
                if named && agent.cgroups.is_empty() && !matches!(agent.selector, Selector::Namespace(_)) {
                    continue;
                }
                found.push(agent);
            }
        }
        self.open.close_unused();
        Ok(found)
    }

    /// How many namespaces are held open.
    pub fn open_namespaces(&self) -> usize {
        self.open.known.len()
    }

    /// How many pods Kubernetes names.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_has_its_own_cure() {
        assert_eq!(unseen(false, false), None);
        for (outside, denied, words) in [
            (true, false, "hostPID: true"),
            (false, true, "CAP_SYS_PTRACE"),
            (true, true, "hostPID: true"),
        ] {
            let text = unseen(outside, denied).unwrap().to_string();
            assert!(
                text.starts_with("its processes cannot be seen: ") && text.contains(words),
                "{text}"
            );
        }
    }
}
