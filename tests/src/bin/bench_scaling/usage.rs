//! What processes take of the processors, from `/proc` (Documentation/scheduler/sched-stats.rst).

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::Pid;

/// Nanoseconds on a processor, all threads that live.
fn ran(pid: Pid) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else {
            continue;
        };
        sum += text
            .split(' ')
            .next()
            .and_then(|word| word.parse::<f64>().ok())
            .context("schedstat")?;
    }
    Ok(sum)
}

/// Milliseconds of CPU for each second of `window`, of each process.
pub fn at_rest(pids: &[Pid], window: Duration) -> Result<Vec<f64>> {
    let before: Vec<f64> = pids.iter().map(|pid| ran(*pid)).collect::<Result<_>>()?;
    let start = Instant::now();
    std::thread::sleep(window);
    let seconds = start.elapsed().as_secs_f64();
    pids.iter()
        .zip(before)
        .map(|(pid, before)| Ok((ran(*pid)? - before) / 1e6 / seconds))
        .collect()
}
