//! Signals that end the watch in good order: the terminal is given back first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

/// Whether somebody asked for the end.
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on SIGINT, SIGTERM and SIGHUP (a terminal that has gone, as when ssh ends) end nothing by themselves. To be called
    /// before other threads are made: they inherit it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn listen() -> io::Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        signals.thread_block()?;
        let asked = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&asked);
        thread::Builder::new().spawn(move || {
            // An error would be of a set that is none.
            let _ = signals.wait();
            heard.store(true, Ordering::Relaxed);
        })?;
        Ok(Self(asked))
    }

    /// See [`Stop::listen`].
    pub(super) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
