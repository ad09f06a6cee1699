//! Agents by cgroup: path globs, and a scan of the hierarchy where they may match.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Agent, Selector, Source, View};
use crate::intercept::error::InterceptError;
use crate::intercept::host::{Cgroup2, MAX_VISITED};

/// One component of a glob.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `**`: any number of components, none included.
    Any,
    /// A component in which `*` stands for any characters.
    Name(String),
}

/// A cgroup path glob, relative to the cgroup2 root: `/system.slice/datadog-agent*.service`. `*` stays within one
/// component, `**` as a whole component spans any number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupGlob {
    parts: Vec<Part>,
}

impl CgroupGlob {
    /// Reads a glob.
    ///
    /// # Errors
    /// It does not begin with `/`, names the root itself, or has `.`, `..`, an empty component or a `**` that is not a whole one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |reason| format!("`{text}` {reason}");
        let path = text
            .strip_prefix('/')
            .ok_or_else(|| wrong("does not begin with `/`; it is a path below the cgroup2 root"))?;
        let parts: Vec<Part> = path
            .split('/')
            .map(|part| match part {
                "" | "." | ".." => Err(wrong("has an empty, `.` or `..` component")),
                "**" => Ok(Part::Any),
                name if name.contains("**") => {
                    Err(wrong("has `**` inside a component; it must be a whole one"))
                }
                name => Ok(Part::Name(name.to_owned())),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { parts })
    }

    /// True when the glob covers this path (with or without the leading `/`).
    pub fn matches(&self, path: &str) -> bool {
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut state = self.start();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            state = self.step(&state, name);
        }
        self.accepts(&state)
    }

    // A glob is a small automaton: a state is the set of positions that may come next, sorted.

    fn start(&self) -> Vec<usize> {
        self.closure(vec![0])
    }

    /// The state after one component.
    fn step(&self, state: &[usize], name: &str) -> Vec<usize> {
        let mut next = Vec::new();
        for &position in state {
            match self.parts.get(position) {
                Some(Part::Any) => next.push(position),
                Some(Part::Name(pattern)) if component_matches(pattern, name) => next.push(position + 1),
                _ => {}
            }
        }
        self.closure(next)
    }

    /// `**` may stand for nothing.
    fn closure(&self, mut state: Vec<usize>) -> Vec<usize> {
        let mut index = 0;
        while index < state.len() {
            if self.parts.get(state[index]) == Some(&Part::Any) && !state.contains(&(state[index] + 1)) {
                state.push(state[index] + 1);
            }
            index += 1;
        }
        state.sort_unstable();
        state.dedup();
        state
    }

    fn accepts(&self, state: &[usize]) -> bool {
        state.contains(&self.parts.len())
    }

    /// True when something below may match.
    fn goes_on(&self, state: &[usize]) -> bool {
        state.iter().any(|&position| position < self.parts.len())
    }
}

/// `*` within one component; greedy with one point of return, linear in practice.
fn component_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// The source that the globs are.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    globs: Vec<CgroupGlob>,
}

impl Cgroups {
    pub(super) fn new(texts: &[String]) -> Result<Self, InterceptError> {
        Ok(Self {
            globs: parse_globs(texts)?,
        })
    }
}

impl Source for Cgroups {
    fn agents(&self, view: &mut View<'_>) -> Result<Vec<Agent>, InterceptError> {
        let mut agents = Vec::new();
        for (id, path) in scan(view.cgroups, &self.globs)?.selected {
            let home = view.home(&path)?;
            agents.push(Agent {
                selector: Selector::Cgroup(path.clone()),
                cgroups: [(id, path)].into(),
                no_cgroup: None,
                namespaces: home.namespaces,
                unseen: home.unseen,
            });
        }
        Ok(agents)
    }
}

/// Reads all globs of the configuration.
pub(in crate::intercept) fn parse_globs(texts: &[String]) -> Result<Vec<CgroupGlob>, InterceptError> {
    let globs = texts.iter().map(|text| CgroupGlob::parse(text));
    globs.collect::<Result<_, _>>().map_err(InterceptError::Selector)
}

/// What a scan saw.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Selected cgroups by id. Not their descendants: a program covers those anyway.
    pub(super) selected: BTreeMap<u64, PathBuf>,
    /// Directories below which a match may appear: what a watcher must watch.
    pub(super) parents: Vec<PathBuf>,
}

/// Walks the hierarchy where the globs may match.
pub(super) fn scan(cgroups: &Cgroup2, globs: &[CgroupGlob]) -> Result<Scan, InterceptError> {
    let root = cgroups.root();
    let mut found = Scan::default();
    let mut pending = vec![(
        PathBuf::from("/"),
        globs.iter().map(CgroupGlob::start).collect::<Vec<_>>(),
    )];
    while let Some((path, states)) = pending.pop() {
        if found.parents.len() >= MAX_VISITED {
            tracing::warn!(
                limit = MAX_VISITED,
                "too many cgroups for intercept.agents.cgroups; the rest is not seen"
            );
            break;
        }
        let directory = cgroups.directory(&path);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Gone between its parent's listing and now.
            Err(error) if path != Path::new("/") && is_gone(&error) => continue,
            Err(error) => {
                return Err(InterceptError::file("read the cgroup", root.join(directory))(
                    error,
                ));
            }
        };
        found.parents.push(path.clone());
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let next: Vec<Vec<usize>> = globs
                .iter()
                .zip(&states)
                .map(|(glob, state)| glob.step(state, &name))
                .collect();
            let child = path.join(&name);
            if globs.iter().zip(&next).any(|(glob, state)| glob.accepts(state)) {
                if let Ok(metadata) = entry.metadata() {
                    found.selected.insert(metadata.ino(), child);
                }
            } else if globs.iter().zip(&next).any(|(glob, state)| glob.goes_on(state)) {
                pending.push((child, next));
            }
        }
    }
    Ok(found)
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV))
}

#[cfg(test)]
mod tests;
