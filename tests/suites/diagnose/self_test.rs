//! `self-test`: says OK where connections pass, and which Agent's do not where they do not.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::cgroup::Cgroup;
use harness::cni::{Node, Plugin, Style};
use harness::proxy::{Launch, Proxy};
use harness::vendor::detach_link;
use harness::world::{PORTS, World};
use harness::{bpf, check, check_eq, eventually};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const OK: &str = "Runtime self test: OK";
const LIMIT: Duration = Duration::from_secs(30);

/// Standard output, and the exit code.
fn text(proxy: &Proxy<'_>) -> Result<(String, Option<i32>)> {
    let output = proxy.cli(&["self-test"])?;
    Ok((String::from_utf8(output.stdout)?, output.status.code()))
}

/// `--json`, and the exit code.
fn json(proxy: &Proxy<'_>) -> Result<(Value, Option<i32>)> {
    let output = proxy.cli(&["self-test", "--json"])?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((report, output.status.code()))
}

/// It passes, and says so.
fn passes(proxy: &Proxy<'_>) -> Result<String> {
    let (said, code) = text(proxy)?;
    check!(
        code == Some(0) && said.lines().last() == Some(OK) && !said.contains("FAIL"),
        "{code:?}: {said}\n{}",
        proxy.log()
    );
    Ok(said)
}

/// It fails and says these words.
fn fails(proxy: &Proxy<'_>, words: &[&str]) -> Result<()> {
    let (said, code) = text(proxy)?;
    check!(
        code == Some(69) && !said.contains(OK) && said.contains("Runtime self test: FAILED: "),
        "{code:?}: {said}\n{}",
        proxy.log()
    );
    for word in words {
        check!(said.contains(word), "no `{word}` in {said}\n{}", proxy.log());
    }
    Ok(())
}

pub fn of_explicit_ports() -> Result<()> {
    let world = World::new()?;
    let mut proxy = world.start(&world.config())?;
    let said = passes(&proxy)?;
    check!(said.contains("interception is off"), "{said}");
    let (report, code) = json(&proxy)?;
    check_eq!((code, &report["ok"]), (Some(0), &Value::Bool(true)), "{report}");
    check!(
        report["module"]["known_answers_us"].as_u64() > Some(0)
            && report["module"]["integrity_us"].as_u64() > Some(0),
        "the module's tests took time: {report}"
    );
    // Both families of each port, each with the time that it took.
    let ports = report["ports"].as_array().context("no ports")?;
    check_eq!(ports.len(), 2 * PORTS.len(), "{report}");
    check!(
        ports.iter().all(|port| port["took_us"].as_u64() > Some(0)),
        "{report}"
    );
    eventually("the log to tell of both", LIMIT, || {
        Ok((proxy.logged("the crypto module passed its tests on demand") == 2).then_some(()))
    })
    .with_context(|| proxy.log())?;

    // Age and time of the last one of itself.
    let status = String::from_utf8(proxy.cli(&["status"])?.stdout)?;
    let line = status.lines().find(|line| line.starts_with("self-test"));
    check!(
        line.is_some_and(|line| line.contains("explicit: passed ") && line.contains(" ago in ")),
        "{status}"
    );
    let at = proxy.metrics()?.sum(
        "agent_fips_proxy_self_test_timestamp_seconds",
        &[("way", "explicit")],
    );
    check!(at > 1.7e9, "{at}");

    world.host.ip("link set lo down")?;
    fails(
        &proxy,
        &[
            "FAIL  port 127.0.0.1:9804 (metrics): no connection to 127.0.0.1:9804",
            "-> ",
        ],
    )?;
    world.host.ip("link set lo up")?;
    passes(&proxy)?;
    check_eq!(world.intake.connections(), 0, "no intake was asked");

    let stranger = Launch::new(&world.host)
        .through(&["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"])
        .command_line(&["self-test"])
        .output()?;
    ended(&stranger, 77, "run as root")?;
    check_eq!(proxy.stop()?.code(), Some(0), "exit code");
    let nobody = Launch::new(&world.host).command_line(&["self-test"]).output()?;
    ended(&nobody, 69, "no proxy answers")
}

fn ended(output: &Output, code: i32, words: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    check!(
        output.status.code() == Some(code) && said.contains(words),
        "{output:?}"
    );
    Ok(())
}

/// The pin of one program of ours in a cgroup.
fn pin_of(world: &World, cgroup: &Cgroup, program: &str) -> Result<PathBuf> {
    let id = std::fs::metadata(cgroup.path())?.ino();
    let end = format!("/{id}/{program}");
    let pins = bpf::pins(&world.host)?;
    pins.into_iter()
        .find(|pin| pin.to_string_lossy().ends_with(&end))
        .with_context(|| format!("no pin {end}"))
}

/// An Agent of the host: it passes; a hook of its cgroup that somebody detached, and a loopback that is down, are told.
pub fn by_the_hooks() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let mut sleeper = agent.wrap(world.host.command("sleep").arg("600")).spawn()?;
    let result = hooked(&world, &agent);
    sleeper.kill()?;
    sleeper.wait()?;
    result
}

fn hooked(world: &World, agent: &Cgroup) -> Result<()> {
    let proxy = world.start(&world.intercepting(agent))?;
    let scope = format!("cgroup {}, host (cgroup): ", agent.inside());
    let said = eventually("the Agent to be taken", LIMIT, || {
        Ok(Some(passes(&proxy)?).filter(|said| said.contains(&format!("OK    {scope}"))))
    })?;
    check!(said.contains(" ms"), "{said}");

    world.host.ip("link set lo down")?;
    fails(
        &proxy,
        &[
            &format!("FAIL  {scope}no connection to 192.0.2.217:80"),
            "loopback interface",
        ],
    )?;
    world.host.ip("link set lo up")?;
    passes(&proxy)?;

    detach_link(&pin_of(world, agent, "connect4")?)?;
    fails(
        &proxy,
        &[
            &format!("FAIL  {scope}somebody detached connect4 from its cgroup"),
            "intercept off",
        ],
    )?;
    // Readiness knows it, too, at the next look.
    eventually("readiness to say so", LIMIT, || {
        let reasons = proxy.status()?["not_ready"].to_string();
        Ok(reasons.contains("somebody detached connect4").then_some(()))
    })?;
    // The cure.
    for word in ["off", "on"] {
        let output = proxy.cli(&["intercept", word])?;
        check!(output.status.success(), "{output:?}");
    }
    passes(&proxy)?;
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    Ok(())
}

/// Agents of pods, by either datapath: the pod whose connections do not come is named.
pub fn of_pods() -> Result<()> {
    for datapath in ["cgroup", "tc"] {
        let world = World::new()?;
        let node = Node::new(&world, Plugin::Ptp, false, Style::Systemd)?;
        let (one, two) = (node.pod()?, node.pod()?);
        let cgroups = [one.above.inside(), two.above.inside()];
        let proxy = world.start(&world.intercepting_pods(&cgroups, datapath))?;
        let said = passes(&proxy)?;
        let end = format!("({datapath}): ");
        let scopes: Vec<&str> = said
            .lines()
            .filter(|line| line.contains(&end) && line.contains("net:["))
            .collect();
        check_eq!(scopes.len(), 2, "{said}");
        for cgroup in cgroups {
            check!(
                scopes.iter().any(|line| line.contains(cgroup)),
                "{cgroup}: {said}"
            );
        }

        let down = if datapath == "tc" { "eth0" } else { "lo" };
        one.network.host.ip(&format!("link set {down} down"))?;
        let (report, code) = json(&proxy)?;
        check_eq!(code, Some(69), "{report}");
        for (cgroup, works) in [(cgroups[0], false), (cgroups[1], true)] {
            let scopes = report["scopes"].as_array().context("no scopes")?;
            let scope = scopes.iter().find(|scope| {
                scope["agent"]
                    .as_str()
                    .is_some_and(|agent| agent.contains(cgroup))
            });
            let scope = scope.with_context(|| format!("{cgroup}: {report}"))?;
            check_eq!(scope["error"].is_null(), works, "{datapath}: {report}");
            check_eq!(scope["cure"].is_null(), works, "{datapath}: {report}");
        }
    }
    Ok(())
}

/// It accepts nothing, and nobody has noticed yet.
pub fn of_a_stopped_worker() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    passes(&proxy)?;
    kill(proxy.worker()?, Signal::SIGSTOP)?;
    fails(
        &proxy,
        &[
            "FAIL  port 127.0.0.1:9804 (metrics): connected to 127.0.0.1:9804, but not served",
            "FAIL  cryptographic module of the worker: the worker did not answer",
            "replaced after 15 s",
        ],
    )?;
    // Another one serves soon.
    eventually("a self-test that passes", Duration::from_secs(60), || {
        let (said, _) = text(&proxy)?;
        Ok(said.contains(OK).then_some(()))
    })
    .with_context(|| proxy.log())
}
