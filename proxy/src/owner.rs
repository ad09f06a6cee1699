//! Whose files are as good as our own: those that say what this process is to do or hold its secrets must be changeable by nobody
//! else.
//!
//! The shipped unit runs the master as a user of its own ([`MASTER`]), to whom systemd gives the folder of the local authority. So
//! its files are as good as root's, to root's commands and to the worker, which was that user before it became another.

use std::sync::OnceLock;

use nix::unistd::{Uid, User};

/// The user of the shipped unit's master (`User=`; proxy/dist/agent-fips-proxy.sysusers).
pub const MASTER: &str = "agent-fips-proxy-master";

/// Who this process was before it became another user.
static BEFORE: OnceLock<Uid> = OnceLock::new();

/// Remembers who this process was: its files are the master's.
pub fn changed_from(user: Uid) {
    // A process changes its user once.
    let _ = BEFORE.set(user);
}

/// True for root, ourselves, who we were before, and, to root, for [`MASTER`].
pub fn is_trusted(user: u32) -> bool {
    let us = Uid::effective();
    trusted(user, us.as_raw(), BEFORE.get().map(|uid| uid.as_raw()), || {
        // Root's commands look at the files of a service that may not be installed here.
        User::from_name(MASTER)
            .ok()
            .flatten()
            .map(|master| master.uid.as_raw())
    })
}

fn trusted(user: u32, us: u32, before: Option<u32>, master: impl FnOnce() -> Option<u32>) -> bool {
    user == 0 || user == us || before == Some(user) || (us == 0 && master() == Some(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_files_are_trusted() {
        for (user, us, before, master, expected) in [
            (0, 0, None, None, true),
            (0, 7, None, None, true),
            (7, 7, None, None, true),
            (8, 7, None, Some(8), false),
            // The worker, of a master that is no root.
            (8, 7, Some(8), None, true),
            (9, 7, Some(8), Some(9), false),
            // Root's commands.
            (8, 0, None, Some(8), true),
            (7, 0, None, Some(8), false),
            (7, 0, None, None, false),
        ] {
            assert_eq!(
                trusted(user, us, before, || master),
                expected,
                "{user} {us} {before:?} {master:?}"
            );
        }
    }

    #[test]
    fn the_unit_and_its_users_have_the_same_name() {
        let unit = include_str!("../dist/agent-fips-proxy.service");
        assert!(unit.lines().any(|line| line == format!("User={MASTER}")));
        let users = include_str!("../dist/agent-fips-proxy.sysusers");
        assert!(
            users
                .lines()
                .any(|line| line.starts_with(&format!("u {MASTER} ")))
        );
    }
}
