//! Upgrades that are refused, and cost nothing.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::proxy::{Installed, Proxy, binary};
use harness::steady::{EXPLICIT, LIMIT};
use harness::world::World;
use harness::{check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::load::{ask, pair, unharmed, upgraded};

/// Nothing happened but a refusal that says `words`.
fn refused(world: &World, proxy: &Proxy<'_>, output: &Output, words: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(69), "{said}");
    check!(said.contains(words), "{words:?} is not in: {said}");
    println!("{}", said.trim());
    eventually("a line that says so", LIMIT, || {
        Ok(proxy.log().contains("no upgrade").then_some(()))
    })
    .with_context(|| proxy.log())?;
    check_eq!(
        ask(&world.host, None, EXPLICIT)?.status,
        202,
        "the old one serves"
    );
    check_eq!(proxy.status()?["upgrades"], json!(0), "upgrades");
    Ok(())
}

pub fn broken_files() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    let worker = proxy.worker()?;
    let loads = pair(&world.host, None, EXPLICIT)?;
    let good = std::fs::read(binary()?)?;
    let older = "#!/bin/sh\necho '{\"version\":\"0.0.1\"}'\n";
    for (bytes, words) in [
        // Cut within what the kernel maps.
        (&good[..good.len() / 20], ""),
        (&good[..40], "cannot be run"),
        (b"".as_slice(), "is no program"),
        (b"package half unpacked".as_slice(), "is no program"),
        (b"#!/nonexistent/interpreter\n".as_slice(), "cannot be run"),
        (
            b"#!/bin/sh\necho hello\n".as_slice(),
            "does not answer as ours does",
        ),
        (older.as_bytes(), "cannot take over"),
        (b"#!/bin/sh\nexec sleep 1000\n".as_slice(), "did not end within"),
    ] {
        proxy.install(Installed::Bytes(bytes))?;
        refused(&world, &proxy, &proxy.upgrade()?, words)?;
    }
    // Whose file it is.
    proxy.install(Installed::Copy)?;
    let mode =
        |mode| std::fs::set_permissions(proxy.program()?, PermissionsExt::from_mode(mode)).context("mode");
    mode(0o777)?;
    refused(&world, &proxy, &proxy.upgrade()?, "can be written by others")?;
    mode(0o755)?;
    std::os::unix::fs::chown(proxy.program()?, Some(65534), None)?;
    refused(&world, &proxy, &proxy.upgrade()?, "belongs to user 65534")?;
    std::fs::remove_file(proxy.program()?)?;
    refused(&world, &proxy, &proxy.upgrade()?, "No such file")?;
    check_eq!(proxy.worker()?, worker, "the worker was never replaced");
    // After all that a good one is taken.
    proxy.install(Installed::Copy)?;
    let output = proxy.upgrade()?;
    check!(output.status.success(), "{output:?}\n{}", proxy.log());
    unharmed(&world, loads, &proxy)
}

pub fn a_bad_configuration() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    let mut config = world.config();
    config["log"]["levle"] = json!("info");
    proxy.rewrite(&config)?;
    proxy.install(Installed::Copy)?;
    // The command reads the socket's path from the same file: here it has the usual one.
    let output = proxy.upgrade()?;
    refused(&world, &proxy, &output, "levle")
}

/// The second of two is refused, whoever asks.
pub fn two_at_once() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    let loads = pair(&world.host, None, EXPLICIT)?;
    // A program that takes its time to be tried.
    let slow = "#!/bin/sh\nsleep 3\nexit 1\n";
    proxy.install(Installed::Bytes(slow.as_bytes()))?;
    proxy.signal(Signal::SIGUSR2)?;
    eventually("the first one", LIMIT, || {
        Ok(proxy.log().contains("upgrade asked for by SIGUSR2").then_some(()))
    })?;
    refused(&world, &proxy, &proxy.upgrade()?, "another upgrade is going on")?;
    eventually("the end of the first one", LIMIT, || {
        Ok(proxy.log().contains("exit code 1").then_some(()))
    })
    .with_context(|| proxy.log())?;
    proxy.install(Installed::Copy)?;
    let outputs = std::thread::scope(|scope| {
        let asked = [(); 4].map(|()| scope.spawn(|| proxy.upgrade()));
        asked
            .into_iter()
            .map(|one| one.join().map_err(|_| anyhow::anyhow!("panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let done = outputs.iter().filter(|output| output.status.success()).count();
    check!(done >= 1, "{outputs:?}\n{}", proxy.log());
    upgraded(&proxy, done as u64)?;
    unharmed(&world, loads, &proxy)
}

/// Reloads before, while and after.
pub fn beside_a_reload() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    let loads = pair(&world.host, None, EXPLICIT)?;
    for round in 1..=3_u64 {
        let mut config = world.config();
        config["upstream"]["response_timeout"] = json!(format!("{}s", 40 + round));
        proxy.rewrite(&config)?;
        proxy.signal(Signal::SIGHUP)?;
        proxy.install(Installed::Copy)?;
        let output = std::thread::scope(|scope| {
            let asked = scope.spawn(|| proxy.upgrade());
            for again in 0..10 {
                config["upstream"]["response_timeout"] = json!(format!("{}s", 50 + again));
                proxy.rewrite(&config)?;
                proxy.signal(Signal::SIGHUP)?;
                std::thread::sleep(Duration::from_millis(20));
            }
            asked.join().map_err(|_| anyhow::anyhow!("panicked"))?
        })?;
        check!(output.status.success(), "{output:?}\n{}", proxy.log());
        upgraded(&proxy, round)?;
    }
    unharmed(&world, loads, &proxy)
}

/// The new program has taken over, but its worker cannot start: the old worker serves on, and whoever asked is told.
pub fn a_worker_that_cannot_start() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    let worker = proxy.worker()?;
    let loads = pair(&world.host, None, EXPLICIT)?;
    // `config check` does not look for it; the worker must have it.
    let mut config = world.config();
    config["intercept"]["https"] = json!("terminate");
    config["ca"] = json!({"dir": "/dev/null/ca"});
    proxy.rewrite(&config)?;
    proxy.install(Installed::Copy)?;
    let output = proxy.upgrade()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check_eq!(output.status.code(), Some(69), "{said}");
    check!(said.contains("its worker does not serve"), "{said}");
    check!(said.contains("no local authority can sign"), "why: {said}");
    check_eq!(proxy.worker()?, worker, "the old worker serves on");
    proxy.rewrite(&world.config())?;
    let output = proxy.upgrade()?;
    check!(output.status.success(), "{output:?}\n{}", proxy.log());
    check!(proxy.worker()? != worker, "the new one's");
    unharmed(&world, loads, &proxy)
}
