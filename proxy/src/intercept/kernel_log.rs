//! Brings the programs' log lines to `tracing`, target `agent_fips_proxy::intercept::kernel`, level debug.
//!
//! aya-log writes to a `log::Log` that it is given; ours hands each record to `tracing`, so that there is no second
//! logging stack. The programs are loaded with logging compiled out (a frozen global) unless that target is enabled at
//! the time of loading: then it costs nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The programs' target: `log.level: info,agent_fips_proxy::intercept::kernel=debug` shows every decision.
macro_rules! target {
    () => {
        "agent_fips_proxy::intercept::kernel"
    };
}

/// What the programs are told to log: aya-log's number of a level, 0 for nothing.
pub(super) fn level() -> u8 {
    if tracing::enabled!(target: target!(), tracing::Level::DEBUG) {
        aya_log::Level::Debug as u8
    } else {
        0
    }
}

/// The programs' log. Nothing is shown until it is drained.
pub struct KernelLog(EbpfLogger<Bridge>);

impl KernelLog {
    /// `None` when the programs have no log ring: that is worth a line, not a failure.
    pub(super) fn new(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init_with_logger(ebpf, Bridge)
            .inspect_err(|error| tracing::warn!(%error, "the eBPF programs' log is not available"))
            .ok()
            .map(Self)
    }

    /// Hands over what is there.
    pub fn drain(&mut self) {
        self.0.flush();
    }

    /// Hands over lines as they come, until dropped. For a task of a tokio runtime.
    ///
    /// # Errors
    /// The descriptor could not be registered with the runtime.
    pub async fn forward(self) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "the replacement is unsafe for a promise that holds here: the value owns its descriptor for good"
        )]
        let mut log = AsyncFd::with_interest(RawLog(self), Interest::READABLE)?;
        loop {
            let mut ready = log.readable_mut().await?;
            ready.get_inner_mut().0.drain();
            ready.clear_ready();
        }
    }
}

impl AsFd for KernelLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// tokio wants `AsRawFd`.
struct RawLog(KernelLog);

impl std::os::fd::AsRawFd for RawLog {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Bridge;

impl log::Log for Bridge {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // One static target: the modules of the programs mean nothing to an operator.
        tracing::debug!(target: target!(), "{}", record.args());
    }

    fn flush(&self) {}
}
