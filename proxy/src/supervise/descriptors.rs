//! Descriptors that this process was given as bare numbers: by the service manager, and by the program that ran in this process
//! before.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The sockets of a systemd .socket unit (sd_listen_fds(3)): descriptors from 3 on, meant for this process.
///
/// # Errors
/// What the environment says is no number, or no descriptor.
pub fn activated() -> io::Result<Vec<OwnedFd>> {
    let descriptors = sd_notify::listen_fds()?;
    // SAFETY: the service manager opened these descriptors for this process, and a process asks once: here as a worker by
    // itself, or in `activated_with_names` as a master. Needed because the protocol passes them as bare numbers.
    Ok(descriptors
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect())
}

/// The same with their names: those of its store (systemd.service(5), `FileDescriptorStoreMax=`).
///
/// # Errors
/// As [`activated`].
pub fn activated_with_names() -> io::Result<Vec<(String, OwnedFd)>> {
    let descriptors = sd_notify::listen_fds_with_names()?;
    // SAFETY: as in `activated`.
    Ok(descriptors
        .map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) }))
        .collect())
}

/// Takes descriptors that the program before left open for us, each once.
#[derive(Debug, Default)]
pub struct Left {
    taken: BTreeSet<RawFd>,
}

impl Left {
    /// The descriptor with this number. No program that we start gets it from now on.
    ///
    /// # Errors
    /// There is none, or it was taken before.
    pub fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        if number <= 2 || !self.taken.insert(number) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("descriptor {number} is not ours to take"),
            ));
        }
        // SAFETY: the program before left it open for us under this number, and `taken` sees to it that it has one owner. Only
        // when there is none does the call below fail, and then nothing is closed. Needed because nothing but a number passes
        // execve(2).
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        match fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            Ok(_) => Ok(descriptor),
            Err(error) => {
                std::mem::forget(descriptor);
                Err(error.into())
            }
        }
    }
}
