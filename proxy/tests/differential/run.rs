//! Many cases at once for a fixed time: each thread has a runner of its own.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Cases wait for time limits and for each other's threads, not for the processor.
const THREADS: usize = 8;
/// What a test of the usual run may take.
const SECONDS: u64 = 6;
/// More cases than fit into any time.
const MANY: u32 = 1_000_000;

/// Runs `check` on what `strategy` makes until the time is over, and gives the number of cases that were run.
///
/// A failure is made smaller and panics with the smallest case.
pub fn cases<S: Strategy>(
    strategy: impl Fn() -> S + Sync,
    check: impl Fn(&S::Value) -> Result<(), TestCaseError> + Sync,
) -> usize
where
    S::Value: Debug + Send,
{
    let seconds = std::env::var("DIFFERENTIAL_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let run = AtomicUsize::new(0);
    let one = || {
        let config = Config {
            cases: MANY,
            failure_persistence: None,
            max_shrink_time: 15_000,
            max_global_rejects: 0,
            ..Config::default()
        };
        let failed = std::cell::Cell::new(false);
        TestRunner::new(config).run(&strategy(), |case| {
            // A failed case is made smaller, whatever the time is.
            if Instant::now() >= until && !failed.get() {
                return Err(TestCaseError::reject("the time is over"));
            }
            run.fetch_add(1, Ordering::Relaxed);
            let result = check(&case);
            failed.set(failed.get() || matches!(result, Err(TestCaseError::Fail(_))));
            result
        })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            match thread.join().unwrap() {
                // Rejected: the time is over.
                Ok(()) | Err(proptest::test_runner::TestError::Abort(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    run.into_inner()
}
