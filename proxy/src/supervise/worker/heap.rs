//! Memory that was freed goes back to the kernel.
//!
//! By itself glibc gives back what is free at the end of a heap only: one small block that stays behind keeps everything before it, and
//! 5,000 clients that have left still take what they took.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// Pools close what is idle and let buffers go about as often.
const EVERY: Duration = Duration::from_secs(10);

/// Runs as long as the worker serves.
pub(super) async fn give_back() {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        trim();
    }
}

/// Walks the free blocks of every thread's heap, and tells the kernel of each whole page in them.
#[cfg(target_env = "gnu")]
fn trim() {
    /// Left at the end of the heap: glibc's own M_TOP_PAD (mallopt(3)).
    const PAD: usize = 128 << 10;
    // SAFETY: the call takes no pointer, any thread may make it at any time (malloc_trim(3): MT-Safe), and it touches only what is free.
    // nix has no binding of it.
    unsafe { nix::libc::malloc_trim(PAD) };
}

/// Other allocators do it by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
