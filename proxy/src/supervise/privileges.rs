//! What the master does not keep ([`narrow`]), and what the worker gives up before it touches the network ([`give_up`]): user, groups,
//! every capability, new privileges, dumps.

use std::io;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, setgroups, setresgid, setresuid};

use crate::owner;

/// Why a worker could not give up its privileges. It must not go on with them.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The user database could not be read.
    #[error("cannot look up the user `{0}` (worker.user): {1}")]
    Lookup(String, nix::Error),
    /// One step failed.
    #[error("cannot {0}: {1}")]
    Step(&'static str, io::Error),
    /// A step said that it worked, and it did not.
    #[error("privileges are still there after giving them up: {0}")]
    Still(&'static str),
}

/// What a master may come to need; docs/CAPABILITIES.md names the calls.
const MASTER: [Capability; 10] = [
    Capability::CAP_BPF,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_KILL,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
];

/// Keeps what a master may come to need, as far as it is there, and `older`: what only this kernel asks for. Call it before any
/// thread is started: capabilities belong to threads.
pub fn narrow(older: &[Capability]) -> Result<(), PrivilegeError> {
    let step =
        |what: &'static str| move |error: CapsError| PrivilegeError::Step(what, io::Error::other(error));
    let wanted: CapsHashSet = MASTER.iter().chain(older).copied().collect();
    let kept = |set| caps::read(None, set).map(|has| has.intersection(&wanted).copied().collect());
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        let bounding = caps::read(None, CapSet::Bounding).map_err(step("read the bounding set"))?;
        for capability in bounding.difference(&wanted) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(step("narrow the bounding set"))?;
        }
    }
    // In this order: each set bounds the one before it.
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        let kept: CapsHashSet = kept(set).map_err(step("read the capabilities"))?;
        caps::set(None, set, &kept).map_err(step("give capabilities up"))?;
    }
    Ok(())
}

/// Keeps these capabilities and no other, for good: neither a program that is run nor another user's rights bring more. Call it
/// before any thread is started.
pub fn keep_only(kept: &[Capability]) -> Result<(), PrivilegeError> {
    let step =
        |what: &'static str| move |error: CapsError| PrivilegeError::Step(what, io::Error::other(error));
    let kept: CapsHashSet = kept.iter().copied().collect();
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        caps::clear(None, CapSet::Bounding).map_err(step("clear the bounding set"))?;
    }
    caps::clear(None, CapSet::Ambient).map_err(step("clear the ambient set"))?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(step("clear the inheritable set"))?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let has = caps::read(None, set).map_err(step("read the capabilities"))?;
        let left = has.intersection(&kept).copied().collect();
        caps::set(None, set, &left).map_err(step("give capabilities up"))?;
    }
    prctl::set_no_new_privs().map_err(|error| PrivilegeError::Step("set no_new_privs", error.into()))
}

/// Takes everything away from this process. With the right to change users it becomes `user` (or, when that user does not
/// exist, `nobody`, with a warning); without, as in a container that dropped every capability, it keeps its user and gives
/// up the rest. Call it before any thread is started: capabilities belong to threads.
pub fn give_up(user: &str) -> Result<(), PrivilegeError> {
    let step = |what: &'static str| move |error: nix::Error| PrivilegeError::Step(what, error.into());
    let may = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let before = Uid::effective();
    if may(Capability::CAP_SETPCAP) {
        // First the bounding set: the right to empty it goes with the rest.
        caps::clear(None, CapSet::Bounding)
            .map_err(|e| PrivilegeError::Step("clear the bounding set", io::Error::other(e)))?;
    }
    let changes = may(Capability::CAP_SETUID) && may(Capability::CAP_SETGID);
    if changes {
        let (uid, gid) = target(user)?;
        setgroups(&[]).map_err(step("drop the supplementary groups"))?;
        setresgid(gid, gid, gid).map_err(step("change the group"))?;
        setresuid(uid, uid, uid).map_err(step("change the user"))?;
        owner::changed_from(before);
    }
    caps::clear(None, CapSet::Ambient)
        .and_then(|()| caps::set(None, CapSet::Inheritable, &CapsHashSet::new()))
        .and_then(|()| caps::set(None, CapSet::Effective, &CapsHashSet::new()))
        .and_then(|()| caps::set(None, CapSet::Permitted, &CapsHashSet::new()))
        .map_err(|e| PrivilegeError::Step("drop the capabilities", io::Error::other(e)))?;
    // Only now: a master that is no root has its capabilities still, after a change of user.
    if changes && (Uid::effective() == before || setresuid(before, before, before).is_ok()) {
        return Err(PrivilegeError::Still(
            "the process can be the master's user again",
        ));
    }
    prctl::set_no_new_privs().map_err(step("set no_new_privs"))?;
    // Nobody of the same user may trace us or read our memory; no core file may hold a key.
    prctl::set_dumpable(false).map_err(step("become undumpable"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("forbid core files"))?;
    let left = caps::read(None, CapSet::Permitted).is_ok_and(|set| !set.is_empty());
    if left {
        return Err(PrivilegeError::Still("capabilities"));
    }
    Ok(())
}

/// Asks for SIGTERM when the master dies. The kernel forgets it on a change of user, so it comes after [`give_up`].
pub fn follow_the_master() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
}

/// Raises the soft limit of open files to the hard one; returns what is in force. Agents are few, but each connection
/// costs two descriptors, and the usual soft limit of 1024 would be reached by a burst.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

fn target(user: &str) -> Result<(Uid, Gid), PrivilegeError> {
    let lookup = |name: &str| User::from_name(name).map_err(|e| PrivilegeError::Lookup(name.to_owned(), e));
    if let Some(found) = lookup(user)? {
        return Ok((found.uid, found.gid));
    }
    tracing::warn!("the user `{user}` (worker.user) does not exist; the worker runs as `nobody`");
    // 65534 is nobody's number wherever there is no entry for it (Documentation/admin-guide/sysctl/fs.rst, overflowuid).
    Ok(
        lookup("nobody")?.map_or((Uid::from_raw(65534), Gid::from_raw(65534)), |nobody| {
            (nobody.uid, nobody.gid)
        }),
    )
}
