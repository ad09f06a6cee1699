//! A node with an Agent's pod, a place for vendors' programs, and what the Agent's requests tell.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use agent_fips_proxy::intercept::tc::FILTER_NAME;
use anyhow::{Context, Result, bail};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use harness::agent::ask;
use harness::cni::{Node, Plugin, Pod, Style};
use harness::netns::Host;
use harness::proxy::{Proxy, binary};
use harness::vendor::{Acts, Answer, OK, SHOT, UNSPEC, Vendor, filters, tc};
use harness::world::{VERSIONED, World};
use harness::{capture, eventually, sha256, succeed};
use serde_json::{Value, json};

/// Where the vendors' programs are pinned, on the node.
const PINS: &str = "/run/vendors";

/// The node, its outside world and one pod.
pub struct Stage<'a> {
    pub world: &'a World,
    pub pod: &'a Pod<'a>,
    /// The index of the node's way out.
    out: u32,
}

/// What became of a request of the Agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It arrived at the TLS intake.
    Intercepted,
    /// It arrived in the clear.
    Clear,
    /// No connection.
    Nothing,
}

/// A vendor's verdict on the Agent's clear-text packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Unspec,
    Ok,
    Shot,
    /// Forwards them itself, past the node's routing.
    Redirect,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Unspec, Self::Ok, Self::Shot, Self::Redirect];

    /// What becomes of a request where this verdict is the last word.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Unspec | Self::Ok | Self::Redirect => Outcome::Clear,
            Self::Shot => Outcome::Nothing,
        }
    }
}

/// Sets the stage for a case; everything goes with it.
pub fn stage(body: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Systemd)?;
    let pod = node.pod()?;
    succeed(
        world
            .host
            .command("sh")
            .args(["-c", &format!("mkdir {PINS} && mount -t bpf vendors {PINS}")]),
    )?;
    body(&Stage {
        world: &world,
        pod: &pod,
        out: world.host.within(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?,
    })
}

impl Stage<'_> {
    /// The node.
    pub fn node(&self) -> &Host {
        &self.world.host
    }

    /// The pod's device on the node.
    pub fn device(&self) -> &str {
        &self.pod.network.veth
    }

    /// What the proxy is told.
    pub fn config(&self, intercept: &Value) -> Value {
        let mut config = self.world.intercepting_pods(&[self.pod.above.inside()], "tc");
        // The log is shown when a case fails: without a line for each of thousands of requests.
        config["log"]["access"] = json!(false);
        for (key, value) in intercept.as_object().into_iter().flatten() {
            config["intercept"][key] = value.clone();
        }
        config
    }

    /// The proxy, ready.
    pub fn start(&self, intercept: &Value) -> Result<Proxy<'_>> {
        self.world.start(&self.config(intercept))
    }

    /// `uninstall`, as an operator calls it.
    pub fn uninstall(&self) -> Result<String> {
        succeed(self.node().command(binary()?).arg("uninstall"))
    }

    /// `doctor --json` with this configuration and these words: its exit code and what it printed.
    pub fn doctor(&self, intercept: &Value, words: &[&str]) -> Result<(i32, Value)> {
        let path = self.node().folder().join("doctor.yaml");
        std::fs::write(&path, self.config(intercept).to_string())?;
        let output = capture(
            self.node()
                .command(binary()?)
                .args(["doctor", "--json", "--config"])
                .arg(&path)
                .args(words),
        )?;
        let report = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "doctor printed {} {}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok((output.status.code().unwrap_or(-1), report))
    }

    /// What `doctor` foresees for the pod's device.
    pub fn interface(&self, report: &Value) -> Result<Value> {
        let found = report["forecast"]["interfaces"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["name"] == self.device()));
        found
            .cloned()
            .with_context(|| format!("{} is not in {report:#}", self.device()))
    }

    /// Loads a vendor's program. It acts on what Agents send in the clear: a vendor that dropped or redirected everything
    /// would take name resolution and the proxy's own connections with it, and nothing would be learned.
    pub fn vendor(&self, name: &str, verdict: Verdict) -> Result<Vendor> {
        let answer = match verdict {
            Verdict::Unspec => UNSPEC,
            Verdict::Ok => OK,
            Verdict::Shot => SHOT,
            Verdict::Redirect => Answer::Forwards(self.out),
        };
        Vendor::load_for(&self.pins(), name, Acts::OnPort(80), answer)
    }

    /// Where vendors pin their programs, as seen from here.
    pub fn pins(&self) -> PathBuf {
        self.node().path(PINS)
    }

    /// `tc filter VERB` on the pod's device, handle 1, as vendors do.
    pub fn filter(&self, vendor: &Vendor, verb: &str, priority: u16) -> Result<()> {
        let device = self.device();
        self.node().within(|| vendor.tc(verb, device, priority, 1))
    }

    /// On TCX of the pod's device, for as long as the result lives.
    pub fn tcx(&self, vendor: &Vendor, first: bool) -> Result<OwnedFd> {
        let index = self
            .node()
            .within(|| Ok(nix::net::if_::if_nametoindex(self.device())?))?;
        self.node().within(|| vendor.tcx(index, first))
    }

    /// `tc` on the node.
    pub fn tc(&self, words: &str) -> Result<String> {
        self.node().within(|| tc(words))
    }

    /// Program ids on TCX of the pod's device, in order.
    pub fn on_tcx(&self) -> Result<Vec<u32>> {
        let device = self.device();
        self.node().within(|| {
            let (_, programs) = SchedClassifier::query_tcx(device, TcAttachType::Ingress)?;
            Ok(programs.iter().map(|program| program.id()).collect())
        })
    }

    /// Everybody's classifiers on the pod's device but ours: filters as `tc` shows them (priority, handle, name, id, tag, in
    /// order) and programs on TCX with their tags.
    pub fn others(&self) -> Result<Vec<String>> {
        let device = self.device();
        self.node().within(|| {
            let mut found = filters(device, FILTER_NAME)?;
            // A device that is gone has none.
            let (_, programs) = SchedClassifier::query_tcx(device, TcAttachType::Ingress).unwrap_or_default();
            found.extend(
                programs
                    .iter()
                    .filter(|program| program.name_as_str() != Some("classify"))
                    .map(|program| {
                        format!(
                            "tcx {} {:?} {:016x}",
                            program.id(),
                            program.name_as_str(),
                            program.tag()
                        )
                    }),
            );
            Ok(found)
        })
    }

    /// One request of the Agent, and what became of it.
    pub fn ask(&self) -> Result<Outcome> {
        // Beside others that run at the same time: known by its body.
        let own = sha256(b"x");
        let at_intake = || {
            let seen = self.world.intake.seen();
            seen.iter().filter(|seen| seen.body_sha256 == own).count()
        };
        let (secure, clear) = (at_intake(), self.world.plain.seen().len());
        let url = format!("http://{VERSIONED}/api/v2/series");
        let words = ["-4", "--connect-timeout", "1", "-d", "x", &url];
        let answer = ask(&self.pod.network.host, Some(&self.pod.cgroup), &words)?;
        let now = (at_intake() - secure, self.world.plain.seen().len() - clear);
        match (answer.status, now) {
            (202, (1, 0)) => Ok(Outcome::Intercepted),
            (200, (0, 1)) => Ok(Outcome::Clear),
            (0, (0, 0)) => Ok(Outcome::Nothing),
            _ => bail!("{answer:?} with {now:?} requests at the TLS intake and in the clear"),
        }
    }
}

/// `status --json` of the one interface.
pub fn interface(proxy: &Proxy) -> Result<Value> {
    let status = proxy.status()?;
    let found = status["interception"]["interfaces"].as_array();
    found
        .and_then(|all| all.first())
        .cloned()
        .with_context(|| format!("no interface in {status:#}"))
}

/// Waits until the one interface is in this state.
pub fn wait_state(proxy: &Proxy, state: &str, limit: Duration) -> Result<Value> {
    eventually(&format!("an interface {state}"), limit, || {
        let found = interface(proxy)?;
        Ok((found["state"] == state).then_some(found))
    })
    .with_context(|| proxy.log())
}
