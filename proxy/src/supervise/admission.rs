//! Who may use the explicit ports, when the operator says so: `explicit.allowed_users` and `explicit.allowed_cgroups`.
//!
//! The worker asks for each connection, since only the master sees the hierarchy of cgroups. Whoever cannot be told is nobody that
//! may.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use nix::unistd::User;

use crate::config::Explicit;
use crate::intercept::{self, Cgroup2, CgroupGlob, InterceptError, Peer};

/// Cgroups that are remembered; beyond, all are looked up anew.
const REMEMBERED: usize = 4096;

/// What is asked of whoever connects. Each list that is set must have them.
#[derive(Debug)]
pub struct Admission {
    users: Option<BTreeSet<u32>>,
    cgroups: Option<Cgroups>,
}

#[derive(Debug)]
struct Cgroups {
    globs: Vec<CgroupGlob>,
    hierarchy: Cgroup2,
    /// By the kernel's id, which is never used again.
    known: HashMap<u64, bool>,
}

/// Why somebody may not connect, in words.
pub type Refused = String;

impl Admission {
    /// What `config` asks for; `None` when that is nothing.
    ///
    /// # Errors
    /// A user that does not exist, a glob that is none, or no cgroup2 hierarchy.
    pub fn new(config: &Explicit) -> Result<Option<Self>, String> {
        if !config.is_limited() {
            return Ok(None);
        }
        let users = config
            .allowed_users
            .iter()
            .map(|name| uid(name))
            .collect::<Result<BTreeSet<u32>, String>>()?;
        let globs = config
            .allowed_cgroups
            .iter()
            .map(|glob| CgroupGlob::parse(glob).map_err(|error| format!("explicit.allowed_cgroups: {error}")))
            .collect::<Result<Vec<_>, String>>()?;
        let cgroups = match globs.is_empty() {
            true => None,
            false => Some(Cgroups {
                globs,
                hierarchy: Cgroup2::find().map_err(|error| format!("explicit.allowed_cgroups: {error}"))?,
                known: HashMap::new(),
            }),
        };
        Ok(Some(Self {
            users: (!users.is_empty()).then_some(users),
            cgroups,
        }))
    }

    /// Judges the connection that `client` made to `ours`.
    ///
    /// # Errors
    /// Why it may not be served.
    pub fn judge(&mut self, client: SocketAddr, ours: SocketAddr) -> Result<(), Refused> {
        let peer = intercept::peer(client, ours)
            .map_err(|error| format!("cannot find out who connects: {error}"))?
            .ok_or("nobody of this host has that end of the connection open")?;
        if let Some(users) = &self.users
            && !users.contains(&peer.uid)
        {
            return Err(format!("uid {} is not in explicit.allowed_users", peer.uid));
        }
        match &mut self.cgroups {
            Some(cgroups) => cgroups.judge(peer),
            None => Ok(()),
        }
    }
}

impl Cgroups {
    fn judge(&mut self, peer: Peer) -> Result<(), Refused> {
        let id = peer
            .cgroup
            .ok_or("this kernel does not tell the cgroup of a socket (Linux 5.8), which explicit.allowed_cgroups needs")?;
        let allowed = match self.known.get(&id) {
            Some(allowed) => *allowed,
            None => {
                let allowed = self.look(id).map_err(|error| error.to_string())?;
                if self.known.len() >= REMEMBERED {
                    self.known.clear();
                }
                self.known.insert(id, allowed);
                allowed
            }
        };
        if allowed {
            return Ok(());
        }
        Err(format!("cgroup {id} is not in explicit.allowed_cgroups"))
    }

    /// True for a cgroup that a glob covers, or that is inside of one.
    fn look(&self, id: u64) -> Result<bool, InterceptError> {
        let path = self.hierarchy.find_id(id)?;
        Ok(path.is_some_and(|path| {
            path.ancestors().any(|outer| {
                let text = outer.to_string_lossy();
                self.globs.iter().any(|glob| glob.matches(&text))
            })
        }))
    }
}

/// The number of a user, by name or as it stands.
fn uid(name: &str) -> Result<u32, String> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("explicit.allowed_users: there is no user `{name}`")),
        Err(error) => Err(format!(
            "explicit.allowed_users: cannot look up the user `{name}`: {error}"
        )),
    }
}
