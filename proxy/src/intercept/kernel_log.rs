//! Brings the programs' records to `tracing`: of every leak, and of every other connection with the target
//! `agent_fips_proxy::intercept::kernel`, level debug.
//!
//! The programs are loaded with reporting of the latter compiled out (a frozen global) unless that target is enabled at the
//! time of loading: then it costs nothing. The sentences are made here, from records of two sizes:
//! `proxy-ebpf/src/event.rs` and `leak.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use proxy_ebpf::{Event, LeakRecord};

use super::leaks::Teller;
use super::sys::{self, OwnsDescriptor};

/// The programs' target: `log.level: info,agent_fips_proxy::intercept::kernel=debug` shows every decision.
macro_rules! target {
    () => {
        "agent_fips_proxy::intercept::kernel"
    };
}

/// What the programs' global `LOG` becomes: 1 when somebody wants to read.
pub(super) fn wanted() -> u8 {
    tracing::enabled!(target: target!(), tracing::Level::DEBUG).into()
}

/// The programs' log. Nothing is shown until it is drained.
pub struct KernelLog {
    ring: RingBuf<MapData>,
    teller: Teller,
}

impl KernelLog {
    /// `None` when the ring cannot be mapped: that is worth a line, not a failure.
    pub(super) fn new(ebpf: &mut Ebpf, teller: Teller) -> Option<Self> {
        RingBuf::try_from(ebpf.take_map("EVENTS")?)
            .inspect_err(|error| tracing::warn!(%error, "the eBPF programs' log is not available"))
            .ok()
            .map(|ring| Self { ring, teller })
    }

    /// Hands over what is there.
    pub fn drain(&mut self) {
        while let Some(record) = self.ring.next() {
            if let Some(leak) = LeakRecord::from_bytes(&record) {
                self.teller.tell(&leak);
                continue;
            }
            // One static target: the modules of the programs mean nothing to an operator.
            match Event::from_bytes(&record) {
                Some(event) => tracing::debug!(target: target!(), "{event}"),
                None => {
                    tracing::debug!(target: target!(), length = record.len(), "a record of an unknown size");
                }
            }
        }
    }

    /// Hands over lines as they come, until dropped. For a task of a tokio runtime.
    ///
    /// # Errors
    /// The descriptor could not be registered with the runtime.
    pub async fn forward(self) -> io::Result<()> {
        let mut log = sys::register(RawLog(self))?;
        loop {
            let mut ready = log.readable_mut().await?;
            ready.get_inner_mut().0.drain();
            ready.clear_ready();
        }
    }
}

impl AsFd for KernelLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// tokio wants `AsRawFd`.
struct RawLog(KernelLog);

impl OwnsDescriptor for RawLog {}

impl std::os::fd::AsRawFd for RawLog {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
