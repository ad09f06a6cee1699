//! A service manager that keeps descriptors, as far as systemd's store goes (sd_pid_notify_with_fds(3), sd_listen_fds(3)): systemd
//! itself does not run where the tests do.
//!
//! What a service sends with `FDSTORE=1` is kept under its `FDNAME`, once for each open file; `FDSTOREREMOVE=1` lets go of all with
//! that name. The next process finds them from descriptor 3 on, named by LISTEN_FDNAMES, in LISTEN_PID's process alone.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, RecvMsg, recvmsg};
use nix::sys::stat::fstat;

use crate::netns::Host;

/// First number that copies for the next process get here: out of the way of those that it will find.
const HIGH: RawFd = 300;

/// A running manager; stops when dropped, and lets go of what it kept.
pub struct Manager {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    socket: Arc<UnixDatagram>,
}

#[derive(Default)]
struct State {
    kept: Vec<(String, OwnedFd)>,
    /// Every message so far.
    said: Vec<String>,
}

impl Manager {
    /// Listens in the folder of `host`.
    pub fn start(host: &Host) -> Result<Self> {
        let path = host.folder().join("notify");
        let socket = Arc::new(UnixDatagram::bind(&path).context("cannot bind the manager's socket")?);
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let state = Arc::new(Mutex::new(State::default()));
        let (its_socket, its_state) = (Arc::downgrade(&socket), Arc::clone(&state));
        std::thread::spawn(move || {
            while let Some(socket) = its_socket.upgrade() {
                listen(&socket, &its_state);
            }
        });
        Ok(Self { path, state, socket })
    }

    /// Where it listens: NOTIFY_SOCKET.
    pub fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// The names of what it keeps, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.state().kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Every message that it was sent.
    pub fn said(&self) -> Vec<String> {
        self.state().said.clone()
    }

    /// Lets go of everything, as after a full stop.
    pub fn forget(&self) {
        self.state().kept.clear();
    }

    /// Copies for the next process, and the words that put them where it looks for them.
    pub fn pass(&self) -> Result<Passing> {
        let state = self.state();
        let mut passing = Passing {
            copies: Vec::new(),
            words: Vec::new(),
        };
        let (mut script, mut names) = (String::new(), Vec::new());
        for (number, (name, kept)) in (3..).zip(&state.kept) {
            let copy = fcntl(kept.as_fd(), FcntlArg::F_DUPFD(HIGH))?;
            passing.copies.push(copy);
            script.push_str(&format!("exec {number}<&{copy} {copy}<&-; "));
            names.push(name.as_str());
        }
        if !names.is_empty() {
            script.push_str(&format!(
                "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}; ",
                names.len(),
                names.join(":")
            ));
        }
        script.push_str("exec \"$@\"");
        passing.words = ["bash", "-c", &script, "bash"].map(str::to_owned).to_vec();
        Ok(passing)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // The thread's copy of the socket goes at its next look.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What goes to the next process; closed here when dropped.
pub struct Passing {
    copies: Vec<RawFd>,
    /// To be put in front of the program.
    pub words: Vec<String>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        for copy in &self.copies {
            let _ = nix::unistd::close(*copy);
        }
    }
}

/// One message.
fn listen(socket: &UnixDatagram, state: &Mutex<State>) {
    let mut bytes = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received: RecvMsg<'_, '_, ()> = match recvmsg(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    ) {
        Ok(received) => received,
        Err(_) => return,
    };
    let mut descriptors = Vec::new();
    for control in received.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed them for us and nobody else knows their numbers. Needed because the only
            // way to receive a descriptor is as a bare number.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = received.bytes;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    if text.is_empty() {
        return;
    }
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let name = value("FDNAME=").unwrap_or("stored").to_owned();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    if value("FDSTOREREMOVE=") == Some("1") {
        state.kept.retain(|(kept, _)| *kept != name);
    } else if value("FDSTORE=") == Some("1") {
        for descriptor in descriptors {
            if !state.kept.iter().any(|(_, kept)| same(kept, &descriptor)) {
                state.kept.push((name.clone(), descriptor));
            }
        }
    }
    state.said.push(text);
}

/// The same open socket: systemd asks kcmp(2); a socket's inode is its own.
fn same(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}
