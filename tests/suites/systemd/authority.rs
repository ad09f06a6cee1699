//! The local authority: systemd gives its folder to the master's user, and root's commands go on to work there.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::systemd::{Systemd, UNIT};
use harness::world::World;
use harness::{check, check_eq, eventually, succeed};
use serde_json::{Value, json};

use crate::stage::config;

const LIMIT: Duration = Duration::from_secs(60);

/// Made by root before the first start, rotated by root while it runs; then, thrown away, made by the service itself.
pub fn made_rotated_and_used() -> Result<()> {
    let world = World::new()?;
    let mut config = config();
    config["intercept"]["https"] = json!("terminate");
    let machine = Systemd::boot(&world.host, &config, &[])?;
    by_root(&machine, &["ca", "init"])?;
    machine.must(&["start", UNIT])?;
    let first = signs(&machine, false)?;
    belongs_to_the_master(&machine)?;
    by_root(&machine, &["ca", "rotate"])?;
    belongs_to_the_master(&machine)?;
    machine.must(&["reload", UNIT])?;
    signs(&machine, true)?;
    by_root(&machine, &["ca", "rotate", "--finish", "--force"])?;
    machine.must(&["reload", UNIT])?;
    let second = eventually("the next one, alone", LIMIT, || {
        Ok(Some(signs(&machine, false)?).filter(|current| *current != first))
    })?;
    by_root(&machine, &["ca", "show"])?;
    by_root(&machine, &["ca", "install"])?;
    belongs_to_the_master(&machine)?;
    let forget = || succeed(machine.command("rm").args(["-r", "/var/lib/agent-fips-proxy/ca"])).map(drop);
    // As an operator begins, beside a running proxy.
    forget()?;
    by_root(&machine, &["ca", "init"])?;
    belongs_to_the_master(&machine)?;
    machine.must(&["reload", UNIT])?;
    eventually("the new one", LIMIT, || {
        Ok((signs(&machine, false)? != second).then_some(()))
    })?;
    forget()?;
    machine.must(&["restart", UNIT])?;
    let third = signs(&machine, false)?;
    check!(third != second, "one of its own: {second} {third}");
    belongs_to_the_master(&machine)?;
    // And root's commands take what the service made, but are not led elsewhere by its user.
    led_elsewhere(&machine)?;
    by_root(&machine, &["ca", "rotate"])
}

/// Another file of root's where the lock was: neither opened through a link, nor given away.
fn led_elsewhere(machine: &Systemd<'_>) -> Result<()> {
    let (lock, victim) = ("/var/lib/agent-fips-proxy/ca/lock", "/var/lib/victim");
    for link in ["-s", "-P"] {
        let script = format!("echo kept > {victim}; rm {lock}; ln {link} {victim} {lock}");
        succeed(machine.command("sh").args(["-c", &script]))?;
        let output = machine.cli(&["ca", "rotate"])?;
        check!(!output.status.success(), "ln {link}: {output:?}");
        let found = succeed(machine.command("stat").args(["-c", "%u", victim]))?;
        check_eq!(found.trim(), "0", "ln {link}: whose the other file is");
    }
    succeed(machine.command("rm").args([lock, victim]))?;
    Ok(())
}

fn by_root(machine: &Systemd<'_>, words: &[&str]) -> Result<()> {
    let output = machine.cli(words)?;
    check!(
        output.status.success(),
        "{words:?}: {output:?}\n{}",
        machine.log()
    );
    Ok(())
}

/// Everything in the folder but links, keys among it, and no key is for anybody else.
fn belongs_to_the_master(machine: &Systemd<'_>) -> Result<()> {
    let script = "find /var/lib/agent-fips-proxy ! -type l ! -user agent-fips-proxy-master; find /var/lib/agent-fips-proxy -name '*.key' ! -perm 600";
    let others = succeed(machine.command("sh").args(["-c", script]))?;
    check_eq!(others.trim(), "", "files of others, or keys for others");
    Ok(())
}

/// Waits until the worker has an authority, and a next one if there is to be one, without a problem; the current one.
fn signs(machine: &Systemd<'_>, next: bool) -> Result<Value> {
    eventually("an authority that signs", LIMIT, || {
        let status = machine.status()?;
        let authority = &status["authority"];
        check!(
            status["ready"] == true
                && status["authority_problem"].is_null()
                && !authority["signing"].is_null()
                && authority["next"].is_null() != next,
            "{authority} {}",
            status["authority_problem"]
        );
        Ok(Some(authority["current"].clone()))
    })
    .with_context(|| machine.log())
}
