//! What happens when something hangs instead of dying: whether it is noticed, told, and replaced.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::inject::Stopped;
use harness::proxy::{Launch, Proxy};
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, World};
use harness::{check, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The master waits 15 s for a sign of life, the worker 5 s for one of its threads.
const NOTICED: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    run(vec![
        case("hung_worker_is_replaced", &[Need::Root], hung_worker_is_replaced),
        case(
            "hung_data_thread_is_noticed",
            &[Need::Root],
            hung_data_thread_is_noticed,
        ),
    ])
}

/// The thread of a process that has this name.
fn thread(process: Pid, name: &str) -> Result<Pid> {
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let entry = entry?;
        if std::fs::read_to_string(entry.path().join("comm"))?.trim() == name {
            return Ok(Pid::from_raw(entry.file_name().to_string_lossy().parse()?));
        }
    }
    anyhow::bail!("process {process} has no thread {name}")
}

/// Another worker than `old`, which serves.
fn replaced(world: &World, proxy: &Proxy<'_>, old: Pid) -> Result<()> {
    eventually("another worker", NOTICED, || {
        Ok(proxy.worker().ok().filter(|new| *new != old))
    })
    .with_context(|| proxy.log())?;
    let key = format!("DD-API-KEY: {API_KEY}");
    let answer = eventually("an answer", NOTICED, || {
        let answer = curl(&world.host, None, &["-H", &key, "http://localhost:9804/"])?;
        Ok((answer.status == 202).then_some(()))
    });
    answer.with_context(|| proxy.log())?;
    check!(
        proxy.log().contains("the worker hangs: replacing it"),
        "the master says why\n{}",
        proxy.log()
    );
    Ok(())
}

fn hung_worker_is_replaced() -> Result<()> {
    let world = World::new()?;
    let proxy = Launch::new(&world.host).config(&world.config())?.start()?;
    let old = proxy.worker()?;
    kill(old, Signal::SIGSTOP)?;
    replaced(&world, &proxy, old)
}

/// The worker's other threads turn, and its main thread talks to the master: only one of two that serve stands still.
fn hung_data_thread_is_noticed() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["worker"]["threads"] = 2.into();
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    let old = proxy.worker()?;
    let stopped = Stopped::thread(thread(old, "data-1")?)?;
    replaced(&world, &proxy, old)?;
    drop(stopped);
    let log = proxy.log();
    check!(
        log.contains("a data thread hangs") && log.contains("data-1"),
        "the worker says which\n{log}"
    );
    Ok(())
}
