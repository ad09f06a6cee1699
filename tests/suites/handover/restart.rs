//! Restarts with a service manager that keeps the listeners: while nobody runs, connections wait.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::{Load, Report};
use harness::cgroup::{self, Cgroup};
use harness::cni::{Node, Plugin, Style};
use harness::held::{ESTABLISHED, Tcp, sockets};
use harness::manager::Manager;
use harness::netns::Host;
use harness::proxy::{Installed, Launch, Proxy};
use harness::steady::{Account, EXPLICIT, LIMIT, intercepted};
use harness::world::World;
use harness::{check, check_eq, eventually};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::load::{ask, pair, unharmed, upgraded};
use crate::pod::from_the_pod;

/// Starts the proxy as a service of this manager.
fn start<'a>(world: &'a World, manager: &'a Manager, config: &Value) -> Result<Proxy<'a>> {
    let proxy = Launch::new(&world.host)
        .manager(manager)
        .config(config)?
        .start()?;
    eventually("READY", LIMIT, || {
        Ok(manager
            .said()
            .iter()
            .any(|said| said.contains("READY=1"))
            .then_some(()))
    })?;
    Ok(proxy)
}

/// Requests while nobody runs: every client connects, and waits.
fn waiting(host: &Host, agent: Option<&Cgroup>, url: &str, name: &str) -> Result<Load> {
    Load::once(host, agent, url, 6, &["--name", name, "--body", "5000"])
}

/// One request is answered.
fn serves(proxy: &Proxy<'_>, host: &Host, agent: Option<&Cgroup>, url: &str, when: &str) -> Result<()> {
    check_eq!(ask(host, agent, url)?.status, 202, "{when}\n{}", proxy.log());
    Ok(())
}

/// That many connections to anywhere are open in a host's network and have not been answered.
fn connected(host: &Host, port: u16, wanted: usize) -> Result<()> {
    let holder = Pid::from_raw(i32::try_from(host.pid())?);
    eventually("connections that wait", LIMIT, || {
        // The client's end.
        let open = |socket: &Tcp| socket.remote == port && socket.state == ESTABLISHED;
        let found = sockets(holder)?.iter().filter(|socket| open(socket)).count();
        Ok((found >= wanted).then_some(()))
    })
}

fn served(world: &World, load: Load, name: &str, proxy: &Proxy<'_>) -> Result<Report> {
    let report = load.wait()?;
    check_eq!(report.count("attempts"), 6, "{name}");
    let twice = Account::of(world).whole(name, &report, &proxy.log())?;
    check!(twice.is_empty(), "{name}: came twice: {twice:?}");
    Ok(report)
}

/// The pins of what accepts: one directory for each cgroup of ours.
fn own_pins(host: &Host) -> Result<Vec<PathBuf>> {
    let pins = harness::bpf::pins(host)?;
    Ok(pins
        .into_iter()
        .filter(|pin| pin.components().any(|part| part.as_os_str() == "own"))
        .collect())
}

pub fn killed_connections_wait() -> Result<()> {
    let world = World::new()?;
    let manager = Manager::start(&world.host)?;
    let mut proxy = start(&world, &manager, &world.config())?;
    let names = manager.names();
    check!(
        names.iter().any(|name| name == "metrics.4.9804.0")
            && names.iter().any(|name| name == "status.6.9803.0"),
        "{names:?}"
    );
    for round in 0..2 {
        proxy.kill()?;
        let name = format!("round{round}");
        let load = waiting(&world.host, None, EXPLICIT, &name)?;
        connected(&world.host, 9804, 6)?;
        check_eq!(Account::of(&world).requests(&name), 0, "nobody answers");
        proxy = start(&world, &manager, &world.config())?;
        served(&world, load, &name, &proxy)?;
        check_eq!(manager.names(), names, "nothing is stored twice");
    }
    Ok(())
}

/// Before and after the cgroup of the dead process is removed, as a service manager does.
pub fn killed_intercepted_connections_wait() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let manager = Manager::start(&world.host)?;
    let config = world.intercepting(&agent);
    let mut proxy = start(&world, &manager, &config)?;
    serves(&proxy, &world.host, Some(&agent), &intercepted(), "before")?;
    let listener = |proxy: &Proxy<'_>| -> Result<u16> {
        let status = proxy.status()?;
        let listeners = status["listeners"].as_array().context("listeners")?;
        let address = listeners
            .iter()
            .filter(|one| one["name"] == "intercept")
            .find_map(|one| one["address"].as_str()?.strip_prefix("127.0.0.1:")?.parse().ok());
        address.with_context(|| status.to_string())
    };
    let old_port = listener(&proxy)?;
    proxy.kill()?;
    let before = waiting(&world.host, Some(&agent), &intercepted(), "before")?;
    connected(&world.host, old_port, 6)?;
    let own = cgroup::mount()?.join(format!("agent-fips-proxy-{}", proxy.pid()));
    std::fs::remove_dir(&own).with_context(|| format!("{} is not ours any more", own.display()))?;
    let after = waiting(&world.host, Some(&agent), &intercepted(), "after")?;
    connected(&world.host, old_port, 12)?;
    proxy = start(&world, &manager, &config)?;
    served(&world, before, "before", &proxy)?;
    served(&world, after, "after", &proxy)?;
    check!(listener(&proxy)? != old_port, "new ones took their place");
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    serves(&proxy, &world.host, Some(&agent), &intercepted(), "new ones")?;
    // The old ones, their pins and what the manager keeps of them go when nobody can wait there any more.
    let old = format!("intercept.4.{old_port}.");
    let kept = |manager: &Manager| manager.names().iter().any(|name| name.starts_with(&old));
    check!(kept(&manager), "{:?}", manager.names());
    check_eq!(own_pins(&world.host)?.len(), 4, "pins of both processes");
    eventually("the end of the old listeners", LIMIT, || {
        Ok((!kept(&manager) && own_pins(&world.host)?.len() == 2).then_some(()))
    })
    .with_context(|| format!("{:?} {:?}", manager.names(), own_pins(&world.host)))?;
    serves(
        &proxy,
        &world.host,
        Some(&agent),
        &intercepted(),
        "and afterwards",
    )?;
    Ok(())
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
    let manager = Manager::start(&world.host)?;
    let config = world.intercepting_pods(&[agent.above.inside()], datapath);
    let mut proxy = start(&world, &manager, &config)?;
    let url = intercepted();
    serves(&proxy, &agent.network.host, Some(&agent.cgroup), &url, "before")?;
    proxy.kill()?;
    let load = waiting(&agent.network.host, Some(&agent.cgroup), &url, "pod")?;
    // By `cgroup` towards a listener whose port only the pod knows; by `tc` towards the intake's.
    if datapath == "tc" {
        connected(&agent.network.host, 80, 6)?;
    } else {
        let port = manager
            .names()
            .iter()
            .filter_map(|name| name.strip_prefix("network-")?.split('.').nth(2)?.parse().ok())
            .find(|_| true)
            .context("no listener of the pod is kept")?;
        connected(&agent.network.host, port, 6)?;
    }
    proxy = start(&world, &manager, &config)?;
    served(&world, load, "pod", &proxy)?;
    from_the_pod(&world, &agent)?;
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    Ok(())
}

/// Stops and starts, and kills, under load from one side and then the other.
pub fn under_load() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let manager = Manager::start(&world.host)?;
    let config = world.intercepting(&agent);
    let mut proxy = start(&world, &manager, &config)?;
    let taken = intercepted();
    for (who, url) in [(None, EXPLICIT), (Some(&agent), taken.as_str())] {
        world.intake.take();
        let loads = pair(&world.host, who, url)?;
        for end in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
            std::thread::sleep(Duration::from_millis(500));
            proxy.signal(end)?;
            // The worker goes on to finish what it has; nobody need wait for that.
            proxy.wait(LIMIT)?;
            proxy = start(&world, &manager, &config)?;
        }
        std::thread::sleep(Duration::from_millis(500));
        unharmed(&world, loads, &proxy)?;
    }
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    Ok(())
}

/// When what knows the origin is gone, a connection that waited is closed, and nothing of it goes anywhere.
pub fn without_its_programs() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let manager = Manager::start(&world.host)?;
    let config = world.intercepting(&agent);
    let mut proxy = start(&world, &manager, &config)?;
    serves(&proxy, &world.host, Some(&agent), &intercepted(), "before")?;
    proxy.kill()?;
    for pin in own_pins(&world.host)? {
        std::fs::remove_file(&pin)?;
    }
    world.intake.take();
    let load = waiting(&world.host, Some(&agent), &intercepted(), "lost")?;
    std::thread::sleep(Duration::from_secs(1));
    proxy = start(&world, &manager, &config)?;
    let report = load.wait()?;
    check_eq!(
        (report.status(202), report.count("attempts")),
        (0, 6),
        "{report:?}\n{}",
        proxy.log()
    );
    let closed = report.errors("closed_without_response") + report.errors("read_ConnectionReset");
    check_eq!(closed, 6, "{report:?}\n{}", proxy.log());
    check_eq!(world.intake.count(), 0, "at the intake");
    check_eq!(world.leaks(), Vec::<String>::new(), "leaks");
    serves(
        &proxy,
        &world.host,
        Some(&agent),
        &intercepted(),
        "new ones are served",
    )?;
    Ok(())
}

/// An upgrade in place under the manager: told as a reload, nothing stored twice or forgotten; and what was upgraded is restarted as
/// any other.
pub fn after_an_upgrade() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let manager = Manager::start(&world.host)?;
    let config = world.intercepting(&agent);
    let mut proxy = Launch::new(&world.host)
        .installed()?
        .manager(&manager)
        .config(&config)?
        .start()?;
    let names = manager.names();
    let loads = pair(&world.host, Some(&agent), &intercepted())?;
    let before = manager.said().len();
    for number in 1..=2 {
        proxy.install(Installed::Copy)?;
        let output = proxy.upgrade()?;
        check!(output.status.success(), "{output:?}\n{}", proxy.log());
        upgraded(&proxy, number)?;
    }
    eventually("two reloads", LIMIT, || {
        let states: Vec<String> = manager.said()[before..]
            .iter()
            .flat_map(|said| said.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line == "READY=1" || line == "RELOADING=1")
            .collect();
        Ok((states == ["RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]).then_some(()))
    })
    .with_context(|| format!("{:?}", manager.said()))?;
    check_eq!(manager.names(), names, "what is kept");
    unharmed(&world, loads, &proxy)?;
    proxy.kill()?;
    let load = waiting(&world.host, Some(&agent), &intercepted(), "killed")?;
    proxy = start(&world, &manager, &config)?;
    served(&world, load, "killed", &proxy)?;
    Ok(())
}

/// The store has what is bound and nothing else; what is none of ours is refused; without the store a start binds anew.
pub fn what_is_kept_follows() -> Result<()> {
    let world = World::new()?;
    let manager = Manager::start(&world.host)?;
    let mut proxy = start(&world, &manager, &world.config())?;
    let all = manager.names();
    let mut config = world.config();
    config["explicit"] = json!({"local_address": "127.0.0.1"});
    proxy.rewrite(&config)?;
    proxy.signal(Signal::SIGHUP)?;
    eventually("that closed ports are let go", LIMIT, || {
        Ok((!manager.names().iter().any(|name| name.contains("metrics.6."))).then_some(()))
    })
    .with_context(|| format!("{:?}", manager.names()))?;
    proxy.rewrite(&world.config())?;
    proxy.signal(Signal::SIGHUP)?;
    eventually("that they are kept again", LIMIT, || {
        Ok((manager.names() == all).then_some(()))
    })?;
    // A stop: who connects now waits for the next start.
    proxy.end(Signal::SIGTERM)?;
    check_eq!(manager.names(), all, "a stop lets nothing go");
    let load = waiting(&world.host, None, EXPLICIT, "stopped")?;
    connected(&world.host, 9804, 6)?;
    // Meanwhile somebody changed the ports: what is not wanted any more is let go, the rest is served.
    proxy = start(&world, &manager, &config)?;
    served(&world, load, "stopped", &proxy)?;
    check!(
        !manager.names().iter().any(|name| name.contains("metrics.6.")),
        "{:?}",
        manager.names()
    );
    // A full stop.
    check_eq!(proxy.stop()?.code(), Some(0), "exit code");
    manager.forget();
    check_eq!(
        ask(&world.host, None, EXPLICIT)?.exit,
        7,
        "nobody keeps them: refused"
    );
    let proxy = start(&world, &manager, &world.config())?;
    serves(&proxy, &world.host, None, EXPLICIT, "started anew")?;
    check_eq!(manager.names(), all, "kept again");
    Ok(())
}
