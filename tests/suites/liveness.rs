//! What happens when something hangs instead of dying: whether it is noticed, told, and replaced.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::cgroup::Cgroup;
use harness::inject::Stopped;
use harness::proxy::Proxy;
use harness::suite::{Need, case, run_at_once};
use harness::world::{API_KEY, World};
use harness::{check, check_eq, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The master waits 15 s for a sign of life, the worker 5 s for one of its threads.
const NOTICED: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    // They mostly wait, and share nothing.
    run_at_once(
        vec![
            case("hung_worker_is_replaced", &[Need::Root], hung_worker_is_replaced),
            case(
                "hung_data_thread_is_noticed",
                &[Need::Root],
                hung_data_thread_is_noticed,
            ),
            case(
                "readiness_is_a_connection",
                &[Need::Root],
                readiness_is_a_connection,
            ),
            case(
                "readiness_is_a_taken_connection",
                &[Need::Bpf],
                readiness_is_a_taken_connection,
            ),
            case("prober_is_replaced", &[Need::Bpf], prober_is_replaced),
            case("hung_prober_is_replaced", &[Need::Bpf], hung_prober_is_replaced),
            case("nothing_is_left", &[Need::Bpf], nothing_is_left),
        ],
        7,
    )
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
    let proxy = world.start(&world.config())?;
    let old = proxy.worker()?;
    kill(old, Signal::SIGSTOP)?;
    replaced(&world, &proxy, old)
}

/// The worker's other threads turn, and its main thread talks to the master: only one of two that serve stands still.
fn hung_data_thread_is_noticed() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["worker"]["threads"] = 2.into();
    let proxy = world.start(&config)?;
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

/// The last result of one way; none: it is not tried.
fn result(proxy: &Proxy<'_>, way: &str) -> Result<Option<Value>> {
    let status = proxy.status()?;
    let tests = status["self_tests"].as_array().context("no self_tests")?;
    Ok(tests.iter().find(|test| test["way"] == way).cloned())
}

fn passes(proxy: &Proxy<'_>, way: &str) -> Result<u64> {
    let found = eventually(&format!("the way {way} to pass"), NOTICED, || {
        Ok(result(proxy, way)?.filter(|test| test["error"].is_null() && test["at"] != 0))
    });
    let found = found.with_context(|| proxy.log())?;
    found["at"]
        .as_u64()
        .filter(|at| *at > 0)
        .context("passed at no time")
}

fn fails(proxy: &Proxy<'_>, way: &str, because: &str) -> Result<()> {
    let said = format!("self-test {way}: ");
    eventually(
        &format!("the way {way} to keep us from being ready"),
        NOTICED,
        || {
            let status = proxy.status()?;
            let reasons = status["not_ready"].to_string();
            Ok(
                (status["ready"] == false && reasons.contains(&said) && reasons.contains(because))
                    .then_some(()),
            )
        },
    )
    .with_context(|| format!("{:?}\n{}", result(proxy, way), proxy.log()))
}

/// Explicit ports: the listener is there and the threads turn, but whoever connects is not served.
fn readiness_is_a_connection() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    let first = passes(&proxy, "explicit")?;
    eventually("another try", NOTICED, || {
        Ok((passes(&proxy, "explicit")? > first).then_some(()))
    })?;
    // Listener, threads and worker are all well.
    world.host.ip("link set lo down")?;
    fails(&proxy, "explicit", "no connection to")?;
    world.host.ip("link set lo up")?;
    passes(&proxy, "explicit")?;
    eventually("ready again", NOTICED, || {
        Ok((proxy.status()?["ready"] == true).then_some(()))
    })?;
    check_eq!(world.intake.count(), 0, "no intake was asked");
    Ok(())
}

/// By the hooks, as an Agent's connection comes.
fn readiness_is_a_taken_connection() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = world.start(&world.intercepting(&agent))?;
    passes(&proxy, "host (cgroup)")?;
    check!(proxy.status()?["ready"] == true, "ready: {:?}", proxy.status());
    // Hooks, listeners and worker are all well.
    world.host.ip("link set lo down")?;
    fails(&proxy, "host (cgroup)", "no connection to")?;
    let output = proxy.cli(&["intercept", "off"])?;
    check!(output.status.success(), "{output:?}");
    eventually("a way that is none any more to be forgotten", NOTICED, || {
        Ok(result(&proxy, "host (cgroup)")?.is_none().then_some(()))
    })?;
    world.host.ip("link set lo up")?;
    let output = proxy.cli(&["intercept", "on"])?;
    check!(output.status.success(), "{output:?}");
    passes(&proxy, "host (cgroup)")?;
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    Ok(())
}

fn prober_is_replaced() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = world.start(&world.intercepting(&agent))?;
    let before = passes(&proxy, "host (cgroup)")?;
    let old = proxy.prober()?.context("no prober")?;
    let status = std::fs::read_to_string(format!("/proc/{old}/status"))?;
    // CAP_SYS_ADMIN, number 21, to enter namespaces, and nothing else.
    for set in ["CapPrm:", "CapEff:"] {
        let line = status
            .lines()
            .find(|line| line.starts_with(set))
            .context("no set")?;
        check!(line.ends_with("0000000000200000"), "{line}");
    }
    check!(status.contains("NoNewPrivs:\t1"), "{status}");
    kill(old, Signal::SIGKILL)?;
    eventually("another prober, which passes", NOTICED, || {
        let at = passes(&proxy, "host (cgroup)")?;
        Ok(proxy.prober()?.filter(|new| *new != old && at > before))
    })
    .with_context(|| proxy.log())?;
    Ok(())
}

/// It neither answers nor ends: nobody knows whether the datapath takes anything, until another one has found out.
fn hung_prober_is_replaced() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = world.start(&world.intercepting(&agent))?;
    let before = passes(&proxy, "host (cgroup)")?;
    let old = proxy.prober()?.context("no prober")?;
    kill(old, Signal::SIGSTOP)?;
    fails(&proxy, "host (cgroup)", "it hangs")?;
    eventually("another prober, which passes", NOTICED, || {
        let found = result(&proxy, "host (cgroup)")?.context("the way is gone")?;
        let passed = found["error"].is_null() && found["at"].as_u64() > Some(before);
        Ok(proxy.prober()?.filter(|new| *new != old && passed))
    })
    .with_context(|| proxy.log())?;
    eventually("ready again", NOTICED, || {
        Ok((proxy.status()?["ready"] == true).then_some(()))
    })?;
    eventually("the end of the process that hung", NOTICED, || {
        Ok(kill(old, None).is_err().then_some(()))
    })?;
    let log = proxy.log();
    let said = "the process that makes connections of our own hangs: replacing it";
    check_eq!(log.matches(said).count(), 1, "lines that say so\n{log}");
    let replaced = proxy
        .metrics()?
        .sum("agent_fips_proxy_self_test_process_restarts_total", &[]);
    check!(replaced == 1.0, "{replaced} were replaced");
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    Ok(())
}

fn nothing_is_left() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut proxy = world.start(&world.intercepting(&agent))?;
    passes(&proxy, "host (cgroup)")?;
    let own = harness::cgroup::mount()?.join(format!("agent-fips-proxy-probe-{}", proxy.pid()));
    check!(own.is_dir(), "{}", own.display());
    check_eq!(proxy.stop()?.code(), Some(0), "exit code\n{}", proxy.log());
    check!(!own.exists(), "{} is left", own.display());
    Ok(())
}
