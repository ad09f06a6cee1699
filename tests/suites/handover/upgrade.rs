//! Upgrades in place that are done.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::Load;
use harness::cgroup::Cgroup;
use harness::cni::{Node, Plugin, Style};
use harness::intake::Answer;
use harness::proxy::{Installed, Launch, Proxy};
use harness::steady::{EXPLICIT, LIMIT, intercepted};
use harness::world::World;
use harness::{check, check_eq, eventually};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::load::{ask, pair, unharmed, upgraded};
use crate::pod::from_the_pod;

/// Which file a process runs.
fn runs(proxy: &Proxy<'_>) -> Result<u64> {
    Ok(std::fs::metadata(format!("/proc/{}/exe", proxy.pid()))?.ino())
}

/// Installs another file and upgrades to it: the same process, the new file, another worker.
fn upgrade(proxy: &Proxy<'_>, number: u64) -> Result<Value> {
    let (before, worker) = (runs(proxy)?, proxy.worker()?);
    proxy.install(Installed::Copy)?;
    let output = proxy.upgrade()?;
    check!(
        output.status.success(),
        "upgrade {number}: {output:?}\n{}",
        proxy.log()
    );
    let status = upgraded(proxy, number)?;
    check!(runs(proxy)? != before, "the old file runs on");
    check_eq!(
        runs(proxy)?,
        std::fs::metadata(proxy.program()?)?.ino(),
        "what runs"
    );
    check!(proxy.worker()? != worker, "the old worker serves on");
    check_eq!(status["master"]["pid"], json!(proxy.pid().as_raw()), "{status}");
    check_eq!(status["worker"]["version"], Value::Null, "{status}");
    Ok(status)
}

/// How many descriptors the master has when the workers of programs before have gone: at most `known`, if one is.
fn descriptors(proxy: &Proxy<'_>, known: Option<usize>) -> Result<usize> {
    eventually("the end of old workers", LIMIT, || {
        let log = proxy.log();
        let ended = log.matches("drained worker ended").count() as u64;
        Ok((proxy.status()?["upgrades"] == ended).then_some(()))
    })
    .with_context(|| proxy.log())?;
    let look = || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", proxy.pid()))?.count()) };
    let Some(known) = known else {
        std::thread::sleep(Duration::from_millis(200));
        return look();
    };
    // Whoever asks for the status has one for a moment.
    let held = || Ok(look().ok().filter(|held| *held <= known));
    eventually("descriptors that are closed", LIMIT, held)
        .with_context(|| format!("{:?} are open, {known} were after the first upgrade", look()))
}

/// Three by command and one by signal, with a moment of load between them.
fn several(proxy: &Proxy<'_>) -> Result<()> {
    let mut held = None;
    for number in 1..=3 {
        std::thread::sleep(Duration::from_millis(300));
        upgrade(proxy, number)?;
        held = Some(descriptors(proxy, held)?);
    }
    proxy.install(Installed::Copy)?;
    proxy.signal(Signal::SIGUSR2)?;
    upgraded(proxy, 4)?;
    let settled = "upgraded: the new program serves";
    eventually("a worker of the new program", LIMIT, || {
        Ok((proxy.log().matches(settled).count() == 4).then_some(()))
    })
    .with_context(|| proxy.log())?;
    std::thread::sleep(Duration::from_millis(300));
    check!(
        proxy.log().contains("upgrade asked for by command"),
        "who asked is in the log\n{}",
        proxy.log()
    );
    let shown = String::from_utf8(proxy.cli(&["status"])?.stdout)?;
    check!(shown.contains("upgraded in place 4 times"), "{shown}");
    Ok(())
}

/// Old workers end, and nothing else of them stays.
fn one_worker(world: &World, proxy: &Proxy<'_>) -> Result<()> {
    eventually("the end of the old workers", LIMIT, || {
        let worker = proxy.worker()?;
        // The holder of the namespaces, the master, one worker, and whoever makes connections of our own; clients have gone.
        let all = world.host.processes();
        let expected = 3 + usize::from(proxy.prober()?.is_some());
        Ok((all.len() == expected && all.contains(&worker)).then_some(()))
    })
    .with_context(|| format!("{:?}\n{}", world.host.processes(), proxy.log()))
}

pub fn explicit_ports() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    let loads = pair(&world.host, None, EXPLICIT)?;
    several(&proxy)?;
    unharmed(&world, loads, &proxy)?;
    one_worker(&world, &proxy)
}

fn intercepted_load(open: bool) -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut config = world.intercepting(&agent);
    if open {
        config["intercept"]["on_failure"] = json!("open");
    }
    let mut proxy = world.start_installed(&config)?;
    let loads = pair(&world.host, Some(&agent), &intercepted())?;
    several(&proxy)?;
    unharmed(&world, loads, &proxy)?;
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    let events = proxy
        .metrics()?
        .by("agent_fips_proxy_kernel_events_total", "event");
    let missed: Vec<_> = events
        .iter()
        .filter(|(event, count)| (event.contains("open") || event.contains("refused")) && *count > 0.0)
        .collect();
    check!(missed.is_empty(), "{missed:?}\n{}", proxy.log());
    one_worker(&world, &proxy)?;
    // Nothing of the hand-over is left behind by the last program.
    check_eq!(proxy.stop()?.code(), Some(0), "exit code\n{}", proxy.log());
    let uninstalled = proxy.cli(&["uninstall"])?;
    check!(uninstalled.status.success(), "{uninstalled:?}");
    check_eq!(
        harness::bpf::pins(&world.host)?,
        Vec::<std::path::PathBuf>::new(),
        "pins"
    );
    check!(
        !harness::cgroup::mount()?
            .join(format!("agent-fips-proxy-{}", proxy.pid()))
            .exists(),
        "our cgroup went with us"
    );
    Ok(())
}

pub fn of_the_host() -> Result<()> {
    intercepted_load(false)
}

/// `on_failure: open` would let a connection out that meets no listener or no hook: the leak detector sees none.
pub fn open_mode_lets_nothing_out() -> Result<()> {
    intercepted_load(true)
}

pub fn a_pod_by_cgroup() -> Result<()> {
    pod("cgroup")
}

pub fn a_pod_by_tc() -> Result<()> {
    pod("tc")
}

fn pod(datapath: &str) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Systemd)?;
    let agent = node.pod()?;
    let mut config = world.intercepting_pods(&[agent.above.inside()], datapath);
    config["worker"]["threads"] = json!(2);
    let proxy = world.start_installed(&config)?;
    let network = |status: &Value| status["interception"]["networks"].clone();
    let before = network(&proxy.status()?);
    let loads = pair(&agent.network.host, Some(&agent.cgroup), &intercepted())?;
    several(&proxy)?;
    let status = proxy.status()?;
    check_eq!(network(&status), before, "numbers of networks");
    check_eq!(
        status["interception"]["agents"][0]["datapath"],
        json!(datapath),
        "{status:#}"
    );
    unharmed(&world, loads, &proxy)?;
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    from_the_pod(&world, &agent)?;
    Ok(())
}

/// Switched off by command it stays off, and can be switched on again.
pub fn switched_off() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = world.start_installed(&world.intercepting(&agent))?;
    check!(proxy.cli(&["intercept", "off"])?.status.success(), "off");
    let loads = pair(&world.host, None, EXPLICIT)?;
    let status = upgrade(&proxy, 1)?;
    check_eq!(status["interception"]["attached"], json!(false), "{status:#}");
    check_eq!(
        ask(&world.host, Some(&agent), &intercepted())?.body,
        "plain",
        "the Agent goes its own way"
    );
    check!(proxy.cli(&["intercept", "on"])?.status.success(), "on");
    let taken = pair(&world.host, Some(&agent), &intercepted())?;
    std::thread::sleep(Duration::from_millis(300));
    let status = upgrade(&proxy, 2)?;
    check_eq!(status["interception"]["attached"], json!(true), "{status:#}");
    for load in loads.into_iter().chain(taken) {
        let report = load.finish()?;
        check!(report.all(202), "{report:?}\n{}", proxy.log());
    }
    Ok(())
}

/// The new program reads what there is now: file, environment file, and not what the variables of the old process said of it.
pub fn a_changed_configuration_counts() -> Result<()> {
    let world = World::new()?;
    let variables = world.host.folder().join("variables");
    std::fs::write(&variables, "DD_FIPS_PROXY_LOG_LEVEL=info\n")?;
    let mut config = world.config();
    config["log"].as_object_mut().context("log")?.remove("level");
    let proxy = Launch::new(&world.host)
        .installed()?
        .config(&config)?
        .args(&["--env-file", &variables.display().to_string()])
        // As systemd puts the file's variables into the process.
        .env("DD_FIPS_PROXY_LOG_LEVEL", "info")
        .env("DD_FIPS_PROXY_LIMITS_MAX_CONNECTIONS", "777")
        .start()?;
    std::fs::write(&variables, "DD_FIPS_PROXY_LOG_LEVEL=debug\n")?;
    config["explicit"] = json!({"local_address": "127.0.0.1"});
    proxy.rewrite(&config)?;
    let status = upgrade(&proxy, 1)?;
    let listeners = status["listeners"].as_array().context("listeners")?;
    check_eq!(
        listeners.len(),
        17,
        "two of the status page, one for each product"
    );
    let configured = |key: &str, value: &str| {
        eventually("a line of the configuration", LIMIT, || {
            let found = proxy
                .log()
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .any(|line| line["fields"]["key"] == key && line["fields"]["value"] == value);
            Ok(found.then_some(()))
        })
        .with_context(|| proxy.log())
    };
    configured("log.level", "debug")?;
    configured("limits.max_connections", "777")?;
    // And it goes on to follow the file.
    std::fs::write(&variables, "DD_FIPS_PROXY_LOG_LEVEL=trace\n")?;
    proxy.signal(Signal::SIGHUP)?;
    std::thread::sleep(Duration::from_millis(200));
    upgrade(&proxy, 2)?;
    configured("log.level", "trace")?;
    Ok(())
}

/// A request that is half way when its worker's master is replaced, twice, is answered; the port takes others meanwhile.
pub fn requests_in_flight() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    world.intake.answer("/slow", Answer::Slow(Duration::from_secs(8)));
    let slow = Load::once(&world.host, None, "http://localhost:9804/slow", 8, &[])?;
    eventually("eight requests at the intake", LIMIT, || {
        Ok((world.intake.count() == 8).then_some(()))
    })?;
    let old = proxy.worker()?;
    upgrade(&proxy, 1)?;
    upgrade(&proxy, 2)?;
    check_eq!(ask(&world.host, None, EXPLICIT)?.status, 202, "meanwhile");
    check!(
        world.host.processes().contains(&old),
        "the first worker still has its requests"
    );
    let report = slow.wait()?;
    check!(report.all(202), "{report:?}\n{}", proxy.log());
    check_eq!(report.count("connects"), 8, "{report:?}");
    one_worker(&world, &proxy)
}

/// A root that has what Agents everywhere take, and no more: the new program has it all again. (The shipped unit: suite `systemd`.)
pub fn a_root_with_few_rights() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = Launch::new(&world.host)
        .installed()?
        .through(&[
            "setpriv",
            "--no-new-privs",
            "--bounding-set",
            "-all,+bpf,+net_admin,+sys_admin,+sys_ptrace,+setuid,+setgid,+setpcap,+kill,+dac_override",
            "--",
        ])
        .config(&world.intercepting(&agent))?
        .start()?;
    let rights = || -> Result<Vec<String>> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid()))?;
        let kept = |line: &&str| line.starts_with("Cap") || line.starts_with("NoNewPrivs");
        Ok(status.lines().filter(kept).map(str::to_owned).collect())
    };
    let before = rights()?;
    let loads = pair(&world.host, Some(&agent), &intercepted())?;
    several(&proxy)?;
    check_eq!(rights()?, before, "rights");
    unharmed(&world, loads, &proxy)?;
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    Ok(())
}

/// A master that is no root, and has no admin socket: by signal.
pub fn without_any_right() -> Result<()> {
    let world = World::new()?;
    let proxy = Launch::new(&world.host)
        .installed()?
        .through(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--",
        ])
        .config(&world.config())?
        .start()?;
    let loads = pair(&world.host, None, EXPLICIT)?;
    for times in 1..=2 {
        std::thread::sleep(Duration::from_millis(300));
        proxy.install(Installed::Copy)?;
        proxy.signal(Signal::SIGUSR2)?;
        eventually("an upgrade", LIMIT, || {
            let settled = "upgraded: the new program serves";
            Ok((proxy.log().matches(settled).count() == times).then_some(()))
        })
        .with_context(|| proxy.log())?;
        check_eq!(
            runs(&proxy)?,
            std::fs::metadata(proxy.program()?)?.ino(),
            "what runs"
        );
    }
    unharmed(&world, loads, &proxy)
}

/// What an old worker cannot finish within `limits.drain_timeout` is cut, and the worker ends.
pub fn what_does_not_finish_is_cut() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["limits"] = json!({"drain_timeout": "1s"});
    let proxy = world.start_installed(&config)?;
    world
        .intake
        .answer("/slow", Answer::Slow(Duration::from_secs(25)));
    let slow = Load::once(&world.host, None, "http://localhost:9804/slow", 1, &[])?;
    eventually("the request at the intake", LIMIT, || {
        Ok((world.intake.count() == 1).then_some(()))
    })?;
    upgrade(&proxy, 1)?;
    let report = slow.wait()?;
    check_eq!(report.status(202), 0, "{report:?}\n{}", proxy.log());
    check!(
        report.count("slowest_ms") < 25_000,
        "cut before the intake answered: {report:?}"
    );
    eventually("a line that says so", LIMIT, || {
        Ok(proxy.log().contains("limits.drain_timeout is over").then_some(()))
    })
    .with_context(|| proxy.log())?;
    one_worker(&world, &proxy)
}

/// A worker that stands still is no obstacle.
pub fn a_worker_that_hangs() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start_installed(&world.config())?;
    let worker = proxy.worker()?;
    kill(worker, Signal::SIGSTOP)?;
    proxy.install(Installed::Copy)?;
    let output = proxy.upgrade()?;
    check!(output.status.success(), "{output:?}\n{}", proxy.log());
    upgraded(&proxy, 1)?;
    check_eq!(ask(&world.host, None, EXPLICIT)?.status, 202, "{}", proxy.log());
    // It is ended when it has not drained in time; and so that it is, it must be able to.
    kill(worker, Signal::SIGCONT)?;
    one_worker(&world, &proxy)
}
