//! The service manager's store of descriptors (systemd.service(5), `FileDescriptorStoreMax=`): it keeps our listeners while nobody
//! runs, whatever ended the last process, and hands them to the next. So connections wait and none is refused.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

use super::descriptors;
use super::listeners::Listeners;

/// How many descriptors the manager keeps for us: it says so itself from systemd 254 on, and our unit says it for older ones.
const CAPACITY: &str = "FDSTORE";

/// What it keeps.
#[derive(Debug)]
pub struct Store {
    /// Where it listens; `None` when it keeps nothing for us.
    manager: Option<UnixAddr>,
    capacity: usize,
    names: BTreeSet<String>,
    /// Said once.
    complained: bool,
}

impl Store {
    /// The store of this process's manager, which holds `names` by now.
    pub fn of_process(names: impl IntoIterator<Item = String>) -> Self {
        let capacity = std::env::var(CAPACITY)
            .ok()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        let manager = std::env::var("NOTIFY_SOCKET").ok().filter(|_| capacity > 0);
        let manager = manager.and_then(|path| {
            let address = match path.strip_prefix('@') {
                Some(name) => UnixAddr::new_abstract(name.as_bytes()),
                None => UnixAddr::new(path.as_str()),
            };
            address
                .inspect_err(|error| tracing::warn!(%error, "cannot use NOTIFY_SOCKET: nothing is stored"))
                .ok()
        });
        Self {
            manager,
            capacity,
            names: names.into_iter().collect(),
            complained: false,
        }
    }

    /// True when listeners outlive us.
    pub fn in_use(&self) -> bool {
        self.manager.is_some()
    }

    /// The names of what it holds.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter()
    }

    /// Makes it hold every listener, and nothing else of ours.
    pub fn sync(&mut self, listeners: &Listeners) {
        let Some(manager) = self.manager else { return };
        let wanted = listeners.named();
        if wanted.len() > self.capacity && !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(
                listeners = wanted.len(),
                capacity = self.capacity,
                "the service manager keeps fewer listeners than there are: connections to the others are refused during a \
                 restart; raise FileDescriptorStoreMax="
            );
        }
        // First those that make room.
        let names: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        self.names.retain(|name| {
            names.contains(name.as_str())
                || send(&manager, &format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None)
                    .inspect_err(told)
                    .is_err()
        });
        for (name, socket) in wanted {
            // FDPOLL=0: a listener is kept whatever happens to it.
            let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
            if !self.names.contains(&name) && send(&manager, &message, Some(socket)).inspect_err(told).is_ok()
            {
                self.names.insert(name);
            }
        }
    }
}

fn told(error: &io::Error) {
    tracing::warn!(%error, "cannot reach the service manager's store; it is tried again");
}

/// `sd_notify` sends no descriptors without another dependency.
fn send(manager: &UnixAddr, message: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let own = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let descriptors: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    sendmsg(
        own.as_raw_fd(),
        &[IoSlice::new(message.as_bytes())],
        control,
        MsgFlags::MSG_NOSIGNAL,
        Some(manager),
    )?;
    Ok(())
}

/// What the service manager kept for this process, in no order. To be called once.
pub fn kept() -> Vec<(String, std::os::fd::OwnedFd)> {
    descriptors::activated_with_names().unwrap_or_else(|error| {
        tracing::error!(%error, "cannot take what the service manager kept for us");
        Vec::new()
    })
}
