//! The process that makes connections of our own, as an Agent would: from a cgroup that has the hooks, or from a pod's network
//! namespace. It keeps the right to enter namespaces and no other, and tells the master what became of each connection.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use caps::Capability;
use nix::sched::{CloneFlags, setns};

use super::{Answer, Ask, LIMIT, Place, Tried};
use crate::cli::Exit;
use crate::cli::output::complain;
use crate::self_test;
use crate::supervise::channel::Channel;
use crate::supervise::privileges;

/// Serves the master until it is gone. Standard input is the channel.
pub fn run() -> Exit {
    match serve() {
        Ok(()) => Exit::Ok,
        // The master went.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Exit::Ok,
        Err(error) => {
            complain!("agent-fips-proxy probe: {error}");
            Exit::Internal
        }
    }
}

fn serve() -> io::Result<()> {
    let mut channel = Channel::new(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?));
    let (place, _) = channel.receive::<Place>()?;
    let home = File::open("/proc/self/ns/net")?;
    privileges::keep_only(&[Capability::CAP_SYS_ADMIN]).map_err(io::Error::other)?;
    privileges::follow_the_master()?;
    let mut prober = Prober {
        place,
        home,
        at: None,
    };
    loop {
        let (ask, descriptors) = channel.receive::<Ask>()?;
        let tried = prober.ask(&ask, descriptors.into_iter().next())?;
        channel.send(&Answer { id: ask.id, tried })?;
    }
}

struct Prober {
    place: Place,
    /// The host's network namespace.
    home: File,
    /// The cgroup that this process is in, once it moved.
    at: Option<PathBuf>,
}

impl Prober {
    /// What became of one connection. `Err`: this process is not where it should be, and must not go on.
    fn ask(&mut self, ask: &Ask, namespace: Option<OwnedFd>) -> io::Result<Tried> {
        let cgroup = match ask.hooked {
            true => self.place.hooked.clone(),
            false => self.place.bare.clone(),
        };
        if let Err(error) = self.enter(&cgroup) {
            return Ok(Tried::not(format!(
                "cannot move into the cgroup {}: {error}",
                cgroup.display()
            )));
        }
        let Some(namespace) = namespace else {
            return Ok(Tried::of(self_test::ask(ask.address, LIMIT)));
        };
        if let Err(error) = setns(&namespace, CloneFlags::CLONE_NEWNET) {
            return Ok(Tried::not(format!("cannot enter the network namespace: {error}")));
        }
        drop(namespace);
        let tried = Tried::of(self_test::ask(ask.address, LIMIT));
        setns(&self.home, CloneFlags::CLONE_NEWNET)?;
        Ok(tried)
    }

    fn enter(&mut self, cgroup: &Path) -> io::Result<()> {
        if self.at.as_deref() != Some(cgroup) {
            fs::write(cgroup.join("cgroup.procs"), "0")?;
            self.at = Some(cgroup.to_owned());
        }
        Ok(())
    }
}
