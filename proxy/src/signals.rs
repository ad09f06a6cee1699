//! The signals that the master listens for, while its program is replaced: a blocked signal waits, also through execve(2), and is
//! lost for nobody. The first thread alone takes them; it is the one that hands over.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// What ends a program that does not listen for it yet.
const HELD: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR2];

fn held() -> SigSet {
    HELD.into_iter().collect()
}

/// From now on they wait.
///
/// # Errors
/// What the kernel says.
pub fn hold() -> io::Result<()> {
    Ok(held().thread_block()?)
}

/// They come again, with those that waited.
///
/// # Errors
/// What the kernel says.
pub fn take() -> io::Result<()> {
    Ok(held().thread_unblock()?)
}

/// To be called by a thread that is not the first: the kernel gives a signal to any thread that does not block it, and what comes
/// to such a thread while the first one holds them would be lost with it.
pub fn leave_to_the_first_thread() {
    if let Err(error) = hold() {
        tracing::debug!(%error, "cannot block signals on a thread");
    }
}
