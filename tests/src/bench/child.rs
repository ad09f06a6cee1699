//! Processes of the benchmark: started so that none outlives it, asked by lines, waited for within bounds.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP make every wait of this module an error, so that all guards clean up.
pub fn watch_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (ready, registered) = channel();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let all = [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ];
            let mut waiting = tokio::task::JoinSet::new();
            for kind in all {
                match signal(kind) {
                    Ok(mut signal) => {
                        waiting.spawn(async move { signal.recv().await });
                    }
                    Err(error) => return drop(ready.send(Err(error))),
                }
            }
            let _ = ready.send(Ok(()));
            waiting.join_next().await;
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("bench-relay: interrupted; taking everything down");
        });
    });
    registered.recv().context("no thread for signals")??;
    Ok(())
}

/// An error once a signal came.
pub fn interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, unless a signal comes.
pub fn pause(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        interrupted()?;
        std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
    }
    interrupted()
}

/// A process that is asked by lines; ended when dropped.
pub struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    what: String,
}

impl Child {
    /// Starts it; `what` names it in errors. Its standard error is ours.
    pub fn start(mut command: Command, what: &str) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        let (send, lines) = channel();
        if let Some(output) = process.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self {
            input: process.stdin.take(),
            process,
            lines,
            what: what.to_owned(),
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its next line, within this time.
    pub fn line(&self, limit: Duration) -> Result<String> {
        let until = Instant::now() + limit;
        loop {
            interrupted()?;
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended; what it said stands above", self.what)
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => {
                    bail!("{} said nothing within {limit:?}", self.what)
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Gives it a line.
    pub fn say(&mut self, word: &str) -> Result<()> {
        let input = self
            .input
            .as_mut()
            .with_context(|| format!("no way to {}", self.what))?;
        writeln!(input, "{word}").with_context(|| format!("{} does not listen", self.what))
    }

    /// True while it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Ours end with their input; the others are killed, and what is below them with them (see `peers`).
        drop(self.input.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
