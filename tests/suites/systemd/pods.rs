//! Agents in network namespaces of their own.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::systemd::{POD_AGENT, PODS, Systemd, UNIT, dist};
use harness::world::World;
use harness::{check, check_eq, eventually, succeed};
use serde_json::json;

use crate::stage::{KILL, ask, ask_from, config, nothing_leaked};

const LIMIT: Duration = Duration::from_secs(60);

/// The unit alone refuses such an Agent and says what is missing; with the drop-in it is served, by both datapaths.
pub fn need_the_drop_in() -> Result<()> {
    let world = World::new()?;
    let machine = Systemd::boot(&world.host, &config(), &[])?;
    machine.drop_in("kill.conf", Some(KILL))?;
    let pod = Pod::start(&world, &machine)?;
    machine.must(&["start", UNIT])?;
    machine.ready()?;
    let (status, error) = pod.ask()?;
    check_eq!(
        status,
        0,
        "refused, since nobody may look where it lives: {error}"
    );
    eventually("a reason that names the drop-in", LIMIT, || {
        let status = machine.status()?;
        Ok((status["not_ready"].to_string().contains(PODS) && status["ready"] == false).then_some(()))
    })
    .with_context(|| machine.log())?;
    check_eq!(ask(&machine)?.0, 202, "the host's Agent is served all the same");
    let doctor = machine.cli(&["doctor"])?;
    check!(
        !doctor.status.success() && String::from_utf8_lossy(&doctor.stdout).contains(PODS),
        "{doctor:?}"
    );

    machine.drop_in(PODS, Some(&std::fs::read_to_string(dist(PODS))?))?;
    machine.must(&["restart", UNIT])?;
    for datapath in ["cgroup", "tc"] {
        let mut config = config();
        // In the host's network there is nobody for `tc` to take.
        config["intercept"]["datapath"] = json!(datapath);
        config["intercept"]["agents"]["cgroups"] = json!([format!("/system.slice/{POD_AGENT}")]);
        machine.configure(&config)?;
        machine.must(&["restart", UNIT])?;
        let way = format!("({datapath})");
        eventually("a connection of our own from the pod", LIMIT, || {
            let status = machine.status()?;
            let tests = status["self_tests"].as_array().context("self_tests")?;
            let passed = |test: &serde_json::Value| {
                let name = test["way"].as_str().unwrap_or_default();
                name.starts_with("net:") && name.ends_with(&way) && test["at"] != 0 && test["error"].is_null()
            };
            check!(status["ready"] == true && tests.iter().any(passed), "{status:#}");
            Ok(Some(()))
        })
        .with_context(|| machine.log())?;
        let before = world.intake.seen().len();
        check_eq!(pod.ask()?.0, 202, "{datapath}\n{}", machine.log());
        let seen = world.intake.seen();
        check!(
            seen[before..]
                .iter()
                .any(|seen| seen.peer.ip().to_string() == POD),
            "{datapath}: the request leaves from the pod"
        );
    }
    nothing_leaked(&world)
}

/// Its address: private.
const POD: &str = "10.94.0.2";

struct Pod<'a> {
    machine: &'a Systemd<'a>,
    pid: String,
}

impl<'a> Pod<'a> {
    /// A process in a network namespace of systemd's making, with a way out.
    fn start(world: &World, machine: &'a Systemd<'a>) -> Result<Self> {
        machine.must(&["start", POD_AGENT])?;
        let pid = machine.property(POD_AGENT, "MainPID")?;
        world.host.sysctl("ipv4/ip_forward", "1")?;
        world.net.ip("route add 10.94.0.0/24 via 198.51.100.2")?;
        let script = format!(
            "set -e
            ip link add pod0 type veth peer name eth0 netns {pid}
            ip address add 10.94.0.1/24 dev pod0
            ip link set pod0 up
            pod() {{ nsenter --net=/proc/{pid}/ns/net ip \"$@\"; }}
            pod address add {POD}/24 dev eth0
            pod link set lo up
            pod link set eth0 up
            pod route add default via 10.94.0.1"
        );
        succeed(machine.command("sh").args(["-c", &script]))?;
        Ok(Self { machine, pid })
    }

    fn ask(&self) -> Result<(u16, String)> {
        let namespace = format!("--net=/proc/{}/ns/net", self.pid);
        ask_from(self.machine, POD_AGENT, &["nsenter", &namespace, "--"])
    }
}
