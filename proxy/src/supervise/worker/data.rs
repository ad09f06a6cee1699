//! The data threads: each has its own runtime, listeners and pool.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use super::beats::{Beat, Beats};
use crate::observe::metrics;
use crate::relay::{self, Change, Listener, Role, Shared};
use crate::supervise::protocol::{Passed, Purpose};

/// The data threads, seen from the main thread.
pub(super) struct Data {
    threads: Vec<JoinHandle<()>>,
    /// What tells each of new and of lost listeners.
    pub(super) changes: Vec<mpsc::UnboundedSender<Change>>,
    pub(super) beats: Beats,
}

impl Data {
    /// Starts a thread for each set of listeners; those of `retiring` are served until nobody waits in them any more.
    pub(super) fn start(
        listeners: Vec<Vec<Listener>>,
        retiring: Vec<Vec<Listener>>,
        shared: &Arc<Shared>,
        draining: &watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let mut data = Self {
            threads: Vec::new(),
            changes: Vec::new(),
            beats: Beats::new(),
        };
        for (index, (listeners, retiring)) in listeners.into_iter().zip(retiring).enumerate() {
            let (change, changing) = mpsc::unbounded_channel();
            if !retiring.is_empty() {
                // The thread is not there yet: nobody has closed the channel.
                let _ = change.send(Change::AddRetiring(retiring));
            }
            let (shared, draining, beat) = (Arc::clone(shared), draining.clone(), data.beats.add());
            let thread = std::thread::Builder::new()
                .name(format!("data-{index}"))
                .spawn(move || {
                    metrics::count_as(index);
                    serve(listeners, changing, shared, draining, beat);
                })?;
            data.threads.push(thread);
            data.changes.push(change);
        }
        Ok(data)
    }

    /// What waits for their end.
    pub(super) fn take_threads(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.threads)
    }
}

/// One data thread. A connection stays here from accept to its record.
fn serve(
    listeners: Vec<Listener>,
    changes: mpsc::UnboundedReceiver<Change>,
    shared: Arc<Shared>,
    draining: watch::Receiver<bool>,
    beat: Beat,
) {
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let local = LocalSet::new();
            local.spawn_local(beat.go_on());
            local.block_on(&runtime, relay::serve(listeners, changes, shared, draining));
        }
        Err(error) => tracing::error!(%error, "cannot start a data thread's runtime"),
    }
}

/// Listeners by data thread, and those of the status port.
pub(super) fn sort(
    listeners: Vec<(OwnedFd, Passed)>,
    threads: usize,
) -> (Vec<Vec<Listener>>, Vec<TcpListener>) {
    let threads = threads.max(1);
    let mut data: Vec<Vec<Listener>> = (0..threads).map(|_| Vec::new()).collect();
    let mut status = Vec::new();
    for (descriptor, passed) in listeners {
        let socket = TcpListener::from(descriptor);
        if let Err(error) = socket.set_nonblocking(true) {
            tracing::error!(%error, name = %passed.purpose.name(), "cannot use a listener");
            continue;
        }
        let role = match passed.purpose {
            Purpose::Status => {
                status.push(socket);
                continue;
            }
            Purpose::Explicit(product) => Role::Explicit(product),
            Purpose::Intercept { network, datapath } => Role::Intercept {
                network,
                taken: datapath,
            },
        };
        data[passed.thread % threads].push(Listener { role, socket });
    }
    (data, status)
}
