//! Crashes, reloads, toggles and the end: what happens to connections meanwhile, and what is left behind.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::{self, Curl, Load};
use harness::cgroup::Cgroup;
use harness::intake::Answer;
use harness::proxy::{Launch, Proxy};
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, VERSIONED, World};
use harness::{bpf, check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    run(vec![
        case(
            "worker_killed_under_load",
            &[Need::Root],
            worker_killed_under_load,
        ),
        case(
            "worker_killed_under_intercepted_load",
            &[Need::Bpf],
            worker_killed_under_intercepted_load,
        ),
        case(
            "master_killed_fails_closed",
            &[Need::Bpf],
            master_killed_fails_closed,
        ),
        case("master_killed_fails_open", &[Need::Bpf], master_killed_fails_open),
        case("reload_under_load", &[Need::Root], reload_under_load),
        case(
            "bad_reload_changes_nothing",
            &[Need::Root],
            bad_reload_changes_nothing,
        ),
        case("disabled_at_start", &[Need::Bpf], disabled_at_start),
        case(
            "toggle_by_environment_file",
            &[Need::Bpf],
            toggle_by_environment_file,
        ),
        case("toggle_by_command", &[Need::Bpf], toggle_by_command),
        case("sigterm_drains", &[Need::Root], sigterm_drains),
        case("uninstall_leaves_nothing", &[Need::Bpf], uninstall_leaves_nothing),
    ])
}

/// A load that runs until told, one request per connection.
fn load(world: &World, agent: Option<&Cgroup>, url: &str) -> Result<Load> {
    let words = [
        "--url",
        url,
        "--clients",
        "4",
        "--interval-ms",
        "2",
        "--body",
        "300",
        "--api-key",
        API_KEY,
    ];
    Load::start(&world.host, agent, &words)
}

/// One request of the Agent.
fn ask(world: &World, agent: Option<&Cgroup>) -> Result<Curl> {
    agent::ask(&world.host, agent, &[&format!("http://{VERSIONED}/ask")])
}

/// One request to an explicit port.
fn ask_explicit(world: &World, path: &str) -> Result<Curl> {
    agent::ask(&world.host, None, &[&format!("http://localhost:9804/{path}")])
}

fn attached(proxy: &Proxy<'_>, wanted: bool) -> Result<()> {
    eventually("the hooks' new state", LIMIT, || {
        Ok((proxy.status()?["interception"]["attached"] == json!(wanted)).then_some(()))
    })
    .with_context(|| proxy.log())
}

/// Acceptance 5, the worker: the master holds the listeners, so nobody is refused; only requests in flight may be lost.
fn kill_workers(world: &World, agent: Option<&Cgroup>, proxy: &Proxy<'_>, url: &str) -> Result<()> {
    const KILLS: u64 = 3;
    let load = load(world, agent, url)?;
    for _ in 0..KILLS {
        sleep(Duration::from_millis(700));
        proxy.kill_worker()?;
    }
    sleep(Duration::from_millis(700));
    let before = world.intake.count();
    sleep(Duration::from_millis(300));
    check!(
        world.intake.count() > before,
        "traffic goes on after the last kill"
    );
    let report = load.finish()?;
    let lost = report.count("attempts") - report.status(202);
    check_eq!(
        report.errors("connect_ConnectionRefused"),
        0,
        "refused connections: {report:?}"
    );
    check_eq!(
        report.errors("connect_TimedOut"),
        0,
        "connections without an answer: {report:?}"
    );
    check!(
        lost <= KILLS * 4,
        "lost {lost} of {report:?}, more than were in flight"
    );
    check!(
        report.status(202) > 100,
        "too little load to prove anything: {report:?}"
    );
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}

fn worker_killed_under_load() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    kill_workers(&world, None, &proxy, "http://localhost:9804/api/v2/series")
}

fn worker_killed_under_intercepted_load() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = world.start(&world.intercepting(&agent))?;
    kill_workers(
        &world,
        Some(&agent),
        &proxy,
        &format!("http://{VERSIONED}/api/v2/series"),
    )
}

/// Acceptance 5, the master, `closed`.
fn master_killed_fails_closed() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut proxy = world.start(&world.intercepting(&agent))?;
    check_eq!(ask(&world, Some(&agent))?.status, 202, "before\n{}", proxy.log());
    proxy.kill()?;
    for _ in 0..5 {
        let answer = ask(&world, Some(&agent))?;
        // 7: the connect itself fails, ECONNREFUSED or EPERM.
        check_eq!(
            (answer.exit, answer.status),
            (7, 0),
            "without a master: {answer:?}"
        );
    }
    check_eq!(ask(&world, None)?.body, "plain", "others are not touched");
    check_eq!(
        world.plain.seen().len(),
        1,
        "requests in the clear: only the other's"
    );
    let proxy = world.start(&world.intercepting(&agent))?;
    check_eq!(
        ask(&world, Some(&agent))?.status,
        202,
        "after a restart\n{}",
        proxy.log()
    );
    Ok(())
}

/// Acceptance 5, the master, `open`: direct, and counted.
fn master_killed_fails_open() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut config = world.intercepting(&agent);
    config["intercept"]["on_failure"] = json!("open");
    let mut proxy = world.start(&config)?;
    check_eq!(ask(&world, Some(&agent))?.status, 202, "before\n{}", proxy.log());
    proxy.kill()?;
    for _ in 0..5 {
        let answer = ask(&world, Some(&agent))?;
        check_eq!(
            (answer.status, answer.body.as_str()),
            (200, "plain"),
            "without a master: {answer:?}"
        );
    }
    let proxy = world.start(&config)?;
    check_eq!(
        ask(&world, Some(&agent))?.status,
        202,
        "after a restart\n{}",
        proxy.log()
    );
    let events = proxy
        .metrics()?
        .by("agent_fips_proxy_kernel_events_total", "event");
    let open: f64 = events
        .iter()
        .filter(|(event, _)| event.contains("open"))
        .map(|(_, count)| count)
        .sum();
    check!(open >= 5.0, "the direct connects are counted: {events:?}");
    Ok(())
}

fn reload_under_load() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    let load = load(&world, None, "http://localhost:9804/api/v2/series")?;
    let mut config = world.config();
    for round in 1..=3 {
        sleep(Duration::from_millis(500));
        let old = proxy.worker()?;
        config["upstream"]["response_timeout"] = json!(format!("{}s", 30 + round));
        proxy.rewrite(&config)?;
        proxy.signal(Signal::SIGHUP)?;
        proxy.another_worker(old)?;
    }
    sleep(Duration::from_millis(500));
    let report = load.finish()?;
    check!(
        report.all(202) && report.status(202) > 100,
        "a reload loses nothing: {report:?}\n{}",
        proxy.log()
    );
    check_eq!(world.intake.faults(), Vec::<String>::new(), "faults");
    Ok(())
}

fn bad_reload_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    let worker = proxy.worker()?;
    let mut config = world.config();
    config["log"]["levle"] = json!("info");
    proxy.rewrite(&config)?;
    proxy.signal(Signal::SIGHUP)?;
    eventually("the error in the log", LIMIT, || {
        Ok(proxy.log().contains("levle").then_some(()))
    })?;
    let answer = ask_explicit(&world, "")?;
    check_eq!(
        (answer.status, proxy.worker()?),
        (202, worker),
        "the old configuration serves on"
    );
    Ok(())
}

/// Acceptance 6: off at start by the environment.
fn disabled_at_start() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = Launch::new(&world.host)
        .config(&world.intercepting(&agent))?
        .env("DD_FIPS_PROXY_INTERCEPT_ENABLED", "false")
        .start()?;
    check_eq!(
        proxy.status()?["interception"]["attached"],
        json!(false),
        "attached"
    );
    check_eq!(
        ask(&world, Some(&agent))?.body,
        "plain",
        "the Agent goes its own way"
    );
    let answer = ask_explicit(&world, "")?;
    check_eq!(answer.status, 202, "the explicit ports serve\n{}", proxy.log());
    Ok(())
}

/// Toggles twice under load from both sides; no request may be lost whatever the state.
fn toggle(world: &World, agent: &Cgroup, proxy: &Proxy<'_>, set: &dyn Fn(bool) -> Result<()>) -> Result<()> {
    let explicit = load(world, None, "http://localhost:9804/api/v2/series")?;
    let taken = load(world, Some(agent), &format!("http://{VERSIONED}/api/v2/series"))?;
    for on in [false, true, false, true] {
        sleep(Duration::from_millis(600));
        set(on)?;
        attached(proxy, on)?;
        let answer = ask(world, Some(agent))?;
        let expected = if on { 202 } else { 200 };
        check_eq!(
            answer.status,
            expected,
            "interception {on}: {answer:?}\n{}",
            proxy.log()
        );
    }
    sleep(Duration::from_millis(600));
    let (explicit, taken) = (explicit.finish()?, taken.finish()?);
    check!(
        explicit.all(202),
        "explicit ports serve throughout: {explicit:?}\n{}",
        proxy.log()
    );
    check!(explicit.count("attempts") > 200, "too little load: {explicit:?}");
    // 202 from the intake through us, 200 from the plain listener while interception is off.
    check_eq!(
        taken.status(202) + taken.status(200),
        taken.count("attempts"),
        "{taken:?}"
    );
    check!(
        taken.status(202) > 50 && taken.status(200) > 5,
        "both states saw traffic: {taken:?}"
    );
    Ok(())
}

/// Acceptance 6: the variable in the environment file, and SIGHUP.
fn toggle_by_environment_file() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let file = world.host.folder().join("environment");
    std::fs::write(&file, "# toggled below\nDD_FIPS_PROXY_INTERCEPT_ENABLED=true\n")?;
    let mut config = world.intercepting(&agent);
    if let Some(intercept) = config["intercept"].as_object_mut() {
        intercept.remove("enabled");
    }
    let proxy = Launch::new(&world.host)
        .config(&config)?
        .args(&["--env-file", &file.display().to_string()])
        .start()?;
    let set = |on: bool| {
        std::fs::write(&file, format!("DD_FIPS_PROXY_INTERCEPT_ENABLED={on}\n"))?;
        proxy.signal(Signal::SIGHUP)
    };
    toggle(&world, &agent, &proxy, &set)
}

fn toggle_by_command() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = world.start(&world.intercepting(&agent))?;
    let set = |on: bool| {
        let output = proxy.cli(&["intercept", if on { "on" } else { "off" }])?;
        check!(output.status.success(), "intercept {on}: {output:?}");
        Ok(())
    };
    toggle(&world, &agent, &proxy, &set)
}

/// A request in flight is answered, new connections are not taken, the exit code is 0.
fn sigterm_drains() -> Result<()> {
    let world = World::new()?;
    let mut proxy = world.start(&world.config())?;
    world.intake.answer("/slow", Answer::Slow(Duration::from_secs(2)));
    let slow = Load::once(&world.host, None, "http://localhost:9804/slow", 8, &[])?;
    eventually("eight requests at the intake", LIMIT, || {
        Ok((world.intake.count() == 8).then_some(()))
    })?;
    proxy.signal(Signal::SIGTERM)?;
    sleep(Duration::from_millis(500));
    let late = ask_explicit(&world, "late")?;
    check!(late.status != 202, "a new connection while draining: {late:?}");
    let report = slow.wait()?;
    check!(report.all(202), "requests in flight: {report:?}\n{}", proxy.log());
    let status = proxy.wait(LIMIT)?;
    check_eq!(status.code(), Some(0), "exit code\n{}", proxy.log());
    check!(
        world.host.processes().len() == 1,
        "processes left: {:?}",
        world.host.processes()
    );
    Ok(())
}

/// Acceptance 5: no pin, link, map, program or process.
fn uninstall_leaves_nothing() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut proxy = world.start(&world.intercepting(&agent))?;
    check_eq!(ask(&world, Some(&agent))?.status, 202, "before\n{}", proxy.log());
    let objects = bpf::objects(&world.host)?;
    check!(
        !objects.links.is_empty() && !objects.maps.is_empty(),
        "pinned while running: {objects:?}"
    );
    let loaded = objects.still_loaded()?;
    check_eq!(loaded, objects, "the kernel's lists and the pins agree");
    check_eq!(proxy.stop()?.code(), Some(0), "exit code\n{}", proxy.log());
    // The policy outlives the processes.
    check_eq!(ask(&world, Some(&agent))?.exit, 7, "stopped, but fail-closed");
    let output = proxy.cli(&["uninstall"])?;
    check!(output.status.success(), "uninstall: {output:?}");
    check_eq!(bpf::pins(&world.host)?, Vec::<std::path::PathBuf>::new(), "pins");
    // The kernel frees programs and maps a moment after the last reference is gone.
    let left = eventually("the kernel to free everything", LIMIT, || {
        let left = objects.still_loaded()?;
        Ok(left.is_empty().then_some(left))
    });
    check!(left.is_ok(), "left: {:?}", objects.still_loaded()?);
    check_eq!(
        ask(&world, Some(&agent))?.body,
        "plain",
        "the Agent goes its own way"
    );
    check_eq!(world.host.processes().len(), 1, "processes");
    check!(
        proxy.cli(&["uninstall"])?.status.success(),
        "uninstall is idempotent"
    );
    Ok(())
}
