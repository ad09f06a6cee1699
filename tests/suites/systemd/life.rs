//! The unit from its start to its end.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::systemd::{Systemd, UNIT};
use harness::world::World;
use harness::{check, check_eq, eventually, succeed};
use serde_json::{Value, json};

use crate::stage::{KILL, Load, ask, config, nothing_leaked};

const LIMIT: Duration = Duration::from_secs(60);

/// Start, worker killed, reload, upgrade, restart, all under load; stop, which refuses; uninstall, which lets go; start again.
pub fn from_start_to_uninstall() -> Result<()> {
    let world = World::new()?;
    let machine = Systemd::boot(&world.host, &config(), &[])?;
    // A call that the unit refuses, and that somebody goes on without, would not show.
    machine.drop_in("kill.conf", Some(KILL))?;
    machine.must(&["start", UNIT])?;
    let status = machine.ready()?;
    let agent = &status["interception"]["agents"][0];
    check_eq!(agent["datapath"], json!("cgroup"), "{status:#}");
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    tested(&status)?;

    let loads = [Load::start(&machine, false)?, Load::start(&machine, true)?];
    std::thread::sleep(Duration::from_millis(500));
    machine.must(&["reload", UNIT])?;
    said(&machine, "configuration reloaded", 1)?;
    let rights = rights(&machine)?;
    for times in 1..=2_u64 {
        machine.install()?;
        let output = machine.cli(&["upgrade"])?;
        check!(output.status.success(), "{output:?}\n{}", machine.log());
        check_eq!(machine.status()?["upgrades"], json!(times), "upgrades");
        check_eq!(self::rights(&machine)?, rights, "rights after an upgrade");
        tested(&machine.ready()?)?;
    }
    machine.must(&["restart", UNIT])?;
    tested(&machine.ready()?)?;
    said(&machine, "the service manager kept listeners for us", 1)?;
    for load in loads {
        let report = load.finish()?;
        check!(report.all(202), "{report:?}\n{}", machine.log());
        let refused = report
            .again()
            .into_values()
            .flatten()
            .any(|failed| failed.why.starts_with("connect_"));
        check!(!refused, "refused connects: {report:?}\n{}", machine.log());
        check!(report.count("attempts") > 50, "hardly a load: {report:?}");
    }
    let worker = machine.status()?["worker"]["pid"].to_string();
    succeed(machine.command("kill").args(["-KILL", &worker]))?;
    eventually("another worker", LIMIT, || {
        let status = machine.status()?;
        Ok((status["ready"] == true && status["worker_restarts"] == 1).then_some(()))
    })
    .with_context(|| machine.log())?;
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    // A worker that stands still is ended by the master: it is another user's.
    let worker = machine.status()?["worker"]["pid"].to_string();
    succeed(machine.command("kill").args(["-STOP", &worker]))?;
    eventually("a worker in the place of one that hangs", LIMIT, || {
        let status = machine.status()?;
        Ok((status["ready"] == true && status["worker_restarts"] == 2).then_some(()))
    })
    .with_context(|| machine.log())?;
    let gone = machine.path(&format!("/proc/{worker}"));
    eventually("the end of the one that hangs", LIMIT, || {
        Ok((!gone.exists()).then_some(()))
    })
    .with_context(|| machine.log())?;
    nothing_leaked(&world)?;

    machine.must(&["stop", UNIT])?;
    check_eq!(ask(&machine)?.0, 0, "refused: on_failure is closed");
    check_eq!(machine.property(UNIT, "Result")?, "success", "{}", machine.log());
    let output = machine.cli(&["uninstall"])?;
    check!(output.status.success(), "{output:?}");
    check!(
        !machine.path("/sys/fs/bpf/agent-fips-proxy").exists(),
        "{output:?}"
    );
    check_eq!(ask(&machine)?.1, "plain", "the Agent goes its own way");
    machine.must(&["start", UNIT])?;
    machine.ready()?;
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    Ok(())
}

/// Users, rights, and what each may touch.
pub fn who_is_who() -> Result<()> {
    let world = World::new()?;
    let machine = Systemd::boot(&world.host, &config(), &[])?;
    machine.must(&["start", UNIT])?;
    let status = machine.ready()?;
    let (master, worker) = (rights(&machine)?, worker_rights(&machine, &status)?);
    let user = |name: &str| succeed(machine.command("id").args(["-u", name])).map(|id| id.trim().to_owned());
    check_eq!(master[0], user("agent-fips-proxy-master")?, "the master's user");
    check_eq!(worker[0], user("agent-fips-proxy")?, "the worker's user");
    check_eq!(worker[1], "0000000000000000", "the worker's capabilities");
    let held = u64::from_str_radix(&master[1], 16)?;
    // CAP_KILL 5, CAP_SETGID 6, CAP_SETUID 7, CAP_SETPCAP 8, CAP_NET_ADMIN 12, CAP_PERFMON 38 before 5.18, CAP_BPF 39.
    let wanted = [5, 6, 7, 8, 12, 39].iter().fold(0_u64, |all, bit| all | 1 << bit);
    check_eq!(held & !(1 << 38), wanted, "the master's capabilities: {master:?}");
    let prober = rights_of(&machine, &child(&machine, "probe")?)?;
    check_eq!(prober[1], "0000000000000000", "the prober's capabilities");
    // The worker's user can neither ask the master nor touch what is its own.
    for words in [
        &["agent-fips-proxy", "intercept", "off"][..],
        &["ls", "/sys/fs/bpf/agent-fips-proxy"],
        &["touch", "/run/agent-fips-proxy/x"],
        &["touch", "/var/lib/agent-fips-proxy/x"],
    ] {
        let mut command = machine.command("setpriv");
        command.args([
            "--reuid=agent-fips-proxy",
            "--regid=agent-fips-proxy",
            "--clear-groups",
            "--",
        ]);
        let output = harness::capture(command.args(words))?;
        check!(
            !output.status.success(),
            "{words:?} by the worker's user: {output:?}"
        );
    }
    // Root's tools see what the service made.
    let links = succeed(machine.command("ls").arg("/sys/fs/bpf/agent-fips-proxy/v4/links"))?;
    check!(!links.trim().is_empty(), "pins: {links}");
    let doctor = machine.cli(&["doctor", "--json"])?;
    check!(
        doctor.status.success(),
        "{}",
        String::from_utf8_lossy(&doctor.stdout)
    );
    check!(
        machine.cli(&["intercept", "off"])?.status.success(),
        "root may ask"
    );
    check_eq!(ask(&machine)?.1, "plain", "switched off");
    check!(
        machine.cli(&["intercept", "on"])?.status.success(),
        "root may ask"
    );
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    Ok(())
}

/// An older unit's master was root: what it pinned stays in force, and belongs to the new one.
pub fn pins_of_root() -> Result<()> {
    let world = World::new()?;
    let machine = Systemd::boot(&world.host, &config(), &[])?;
    let old = "[Service]\nExecStartPre=\nUser=root\nAmbientCapabilities=\nReadWritePaths=/sys/fs/bpf /sys/fs/cgroup\n\
               ProtectControlGroups=no\nProtectKernelTunables=no\nBindPaths=\n";
    machine.drop_in("old.conf", Some(old))?;
    machine.must(&["start", UNIT])?;
    machine.ready()?;
    check_eq!(rights(&machine)?[0], "0", "the old one is root's");
    machine.must(&["stop", UNIT])?;
    check_eq!(ask(&machine)?.0, 0, "refused");
    machine.drop_in("old.conf", None)?;
    machine.must(&["start", UNIT])?;
    machine.ready()?;
    check!(rights(&machine)?[0] != "0", "the new one is not");
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    nothing_leaked(&world)
}

/// With `intercept.on_failure: open` a stop takes everything away.
pub fn a_stop_in_open_mode() -> Result<()> {
    let world = World::new()?;
    let mut config = config();
    config["intercept"]["on_failure"] = json!("open");
    let machine = Systemd::boot(&world.host, &config, &[])?;
    for _ in 0..2 {
        machine.must(&["start", UNIT])?;
        machine.ready()?;
        check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
        machine.must(&["stop", UNIT])?;
        check_eq!(machine.property(UNIT, "Result")?, "success", "{}", machine.log());
        let left = succeed(machine.command("ls").arg("/sys/fs/bpf/agent-fips-proxy"))?;
        check_eq!(left.trim(), "", "pins\n{}", machine.log());
        check_eq!(ask(&machine)?.1, "plain", "the Agent goes its own way");
    }
    Ok(())
}

/// The host lets go of its bpffs: the service has one directory of it, and what is pinned there stays while it runs.
pub fn bpffs_unmounted() -> Result<()> {
    let world = World::new()?;
    let machine = Systemd::boot(&world.host, &config(), &[])?;
    machine.must(&["start", UNIT])?;
    machine.ready()?;
    succeed(machine.command("umount").arg("/sys/fs/bpf"))?;
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    machine.must(&["reload", UNIT])?;
    tested(&machine.ready()?)?;
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    nothing_leaked(&world)
}

/// Every connection of our own passed, one of them through the hooks.
fn tested(status: &Value) -> Result<()> {
    let tests = status["self_tests"].as_array().context("self_tests")?;
    check!(
        tests.iter().any(|test| test["way"] == "host (cgroup)")
            && tests.iter().all(|test| test["error"].is_null()),
        "{tests:?}"
    );
    Ok(())
}

/// Waits until the log has these words as often.
fn said(machine: &Systemd<'_>, words: &str, times: usize) -> Result<()> {
    eventually(words, LIMIT, || {
        Ok((machine.log().matches(words).count() >= times).then_some(()))
    })
    .with_context(|| machine.log())
}

/// User and effective capabilities of the master, whether it can gain more, and that it is filtered.
fn rights(machine: &Systemd<'_>) -> Result<Vec<String>> {
    rights_of(machine, &machine.property(UNIT, "MainPID")?)
}

fn worker_rights(machine: &Systemd<'_>, status: &Value) -> Result<Vec<String>> {
    rights_of(machine, &status["worker"]["pid"].to_string())
}

fn rights_of(machine: &Systemd<'_>, pid: &str) -> Result<Vec<String>> {
    let text = machine.process(pid)?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
            .map(str::to_owned)
            .with_context(|| format!("no {name} in {text}"))
    };
    check_eq!(field("NoNewPrivs:")?, "1", "{text}");
    check_eq!(field("Seccomp:")?, "2", "{text}");
    ["Uid:", "CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"]
        .into_iter()
        .map(field)
        .collect()
}

/// A child of the master with this word in its command line.
fn child(machine: &Systemd<'_>, word: &str) -> Result<String> {
    let script = format!("pgrep -f 'agent-fips-proxy {word}'");
    Ok(succeed(machine.command("sh").args(["-c", &script]))?
        .lines()
        .next()
        .context("no such child")?
        .to_owned())
}
