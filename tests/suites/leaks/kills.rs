//! Acceptance: master and worker are killed at random, again and again, while an Agent connects in a loop.
//!
//! Three witnesses: the intake and its port for what is in the clear; the proxy's own counts; and every packet on the host's only way
//! out, whoever sent it. They must agree to the connection.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::agent::{Load, Report};
use harness::cgroup::Cgroup;
use harness::cni::{Node, Plugin, Style};
use harness::dice::Dice;
use harness::netns::Host;
use harness::proxy::{Launch, Proxy};
use harness::wire::{Capture, Captured, Connection};
use harness::world::{API_KEY, INTAKES, VERSIONED, World};
use harness::{check, check_eq, eventually};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::stage::{LIMIT, expect, leaked, name};
use crate::{open, pods};

const KILLS: u64 = 100;
/// Fewer where the same is shown a second time.
const FEWER: u64 = 25;

pub fn a_hundred_kills_leak_nothing() -> Result<()> {
    on_the_host("closed")
}

pub fn a_hundred_kills_are_counted() -> Result<()> {
    on_the_host("open")
}

pub fn kills_leak_nothing_by_tc() -> Result<()> {
    in_a_pod("closed")
}

pub fn kills_are_counted_by_tc() -> Result<()> {
    in_a_pod("open")
}

fn on_the_host(mode: &'static str) -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    Case {
        world: &world,
        at: &world.host,
        cgroup: &agent,
        name: name(&agent),
        config: open::config(&world, &agent),
        mode,
        kills: KILLS,
    }
    .play()
}

fn in_a_pod(mode: &'static str) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Systemd)?;
    let agent = node.pod()?;
    Case {
        world: &world,
        at: &agent.network.host,
        cgroup: &agent.cgroup,
        name: name(&agent.above),
        config: pods::config(&world, &agent, "tc"),
        mode,
        kills: FEWER,
    }
    .play()
}

struct Case<'a> {
    world: &'a World,
    /// Where the Agent is.
    at: &'a Host,
    cgroup: &'a Cgroup,
    /// As its leaks are told.
    name: String,
    config: Value,
    /// `intercept.on_failure`
    mode: &'static str,
    kills: u64,
}

/// What was killed.
#[derive(Default)]
struct Killed {
    masters: u64,
    workers: u64,
    /// Starts of a master whose first worker was killed before it served.
    starts: u64,
}

impl Case<'_> {
    fn play(mut self) -> Result<()> {
        self.config["intercept"]["on_failure"] = json!(self.mode);
        let mut dice = Dice::new()?;
        let told = format!(
            "{} kills, `{}`, {}, seed {}",
            self.kills, self.mode, self.config["intercept"]["datapath"], dice.seed
        );
        let line = self.storm(&mut dice).with_context(|| told.clone())?;
        eprintln!("{told}: {line}");
        Ok(())
    }

    /// Everything between the first packet and the last; the line for a report.
    fn storm(&self, dice: &mut Dice) -> Result<String> {
        let began = Instant::now();
        let world = self.world;
        let capture = Capture::start(&world.host, "eth0", API_KEY)?;
        let proxy = world.start(&self.config)?;
        let load = self.load()?;
        let (mut proxy, killed) = self.kill(dice, proxy)?;
        let before = world.intake.count();
        eventually("requests after the last kill", LIMIT, || {
            Ok((world.intake.count() > before + 10).then_some(()))
        })
        .with_context(|| proxy.log())?;
        let answers = Answers::of(&load.finish()?);
        let told = self.told(&proxy, &answers)?;
        proxy.stop()?;
        drop(proxy);
        let captured = capture.finish()?;
        let direct = self.judge(&captured)?;
        check!(
            (told, answers.direct) == (direct, direct),
            "{direct} connections in the clear on the wire, {told} by our own count; {answers}"
        );
        check!(
            killed.masters * 10 > self.kills
                && killed.workers * 10 > self.kills
                && (killed.starts > 0 || self.kills < KILLS),
            "{killed}: that is one-sided"
        );
        check!(
            answers.through > self.kills && (self.mode == "closed" || direct > self.kills / 2),
            "too little load to prove anything: {answers}; {direct} direct"
        );
        Ok(format!(
            "{killed} in {:.0} s; requests: {answers}; intake: {} connections, {} sessions, all of them FIPS; way out: {} packets \
             captured, {} dropped, {direct} connections in the clear; counted as leaked: {told}",
            began.elapsed().as_secs_f32(),
            world.intake.connections(),
            world.intake.sessions().len(),
            captured.packets,
            captured.dropped,
        ))
    }

    /// An Agent that connects for each request, by both families.
    fn load(&self) -> Result<Load> {
        let url = format!("http://{VERSIONED}/api/v2/series");
        // The port for what is in the clear waits for the end of a body, and a request without one is answered at once.
        let body = if self.mode == "closed" { "100" } else { "0" };
        // By `tc` a client that meets nobody is not refused: its next SYN is a second away.
        let clients = if self.config["intercept"]["datapath"] == "tc" {
            "8"
        } else {
            "2"
        };
        let words = [
            "--url",
            &url,
            "--ip",
            "both",
            "--clients",
            clients,
            "--interval-ms",
            "5",
        ];
        let more = ["--body", body, "--api-key", API_KEY];
        Load::start(self.at, Some(self.cgroup), &[&words[..], &more[..]].concat())
    }

    /// Kills one or the other: a master or a worker, at rest, at work or in the middle of its start. Whoever is the last runs.
    fn kill<'a>(&'a self, dice: &mut Dice, mut proxy: Proxy<'a>) -> Result<(Proxy<'a>, Killed)> {
        let mut killed = Killed::default();
        while killed.masters + killed.workers < self.kills {
            if dice.roll(3) > 0 {
                killed.starts += self.until_ready(&mut proxy)?;
            }
            sleep(Duration::from_millis(dice.roll(150)));
            killed.starts += self.again(&mut proxy)?;
            if dice.roll(2) == 0 {
                // For a moment there is none.
                if let Some(worker) = proxy.any_worker().ok().flatten() {
                    // It may just have ended by itself.
                    killed.workers += u64::from(kill(worker, Signal::SIGKILL).is_ok());
                }
            } else {
                proxy.signal(Signal::SIGKILL)?;
                proxy.wait(LIMIT)?;
                killed.masters += 1;
                sleep(Duration::from_millis(dice.roll(150)));
                proxy = self.spawn()?;
                if dice.roll(4) == 0 {
                    // Its first, as soon as there is one.
                    let worker = eventually("a worker", LIMIT, || Ok(proxy.any_worker().ok().flatten()))?;
                    killed.workers += u64::from(kill(worker, Signal::SIGKILL).is_ok());
                }
            }
        }
        killed.starts += self.until_ready(&mut proxy)?;
        Ok((proxy, killed))
    }

    fn spawn(&self) -> Result<Proxy<'_>> {
        Launch::new(&self.world.host).config(&self.config)?.spawn()
    }

    /// Waits until it is ready; how many starts that took, beside the first.
    fn until_ready<'a>(&'a self, proxy: &mut Proxy<'a>) -> Result<u64> {
        let mut starts = 0;
        eventually("a proxy that is ready", LIMIT, || {
            starts += self.again(proxy)?;
            let ready = proxy.get("/readyz").is_ok_and(|(status, _)| status == 200);
            Ok(ready.then_some(starts))
        })
        .with_context(|| proxy.log())
    }

    /// A master whose worker died before it ever served ends with it, and is started again, as a service manager does.
    fn again<'a>(&'a self, proxy: &mut Proxy<'a>) -> Result<u64> {
        let Some(status) = proxy.ended()? else {
            return Ok(0);
        };
        // EX_SOFTWARE: docs/OPERATIONS.md.
        check_eq!(status.code(), Some(70), "how the master ended\n{}", proxy.log());
        *proxy = self.spawn()?;
        Ok(1)
    }

    /// How many connections the proxy says went around it: all of this Agent, and as many as came in the clear.
    fn told(&self, proxy: &Proxy<'_>, answers: &Answers) -> Result<u64> {
        let told = eventually("the count of leaks", LIMIT, || {
            let leaks = leaked(proxy)?;
            let sum: u64 = leaks.iter().map(|(_, _, count)| count).sum();
            check!(sum >= answers.direct, "{sum} leaks of {leaks:?}, {answers}");
            Ok(Some(leaks))
        })
        .with_context(|| proxy.log())?;
        // Seen once in thousands: counted, with nobody's name, of a connection in the instant of a kill. None of anybody else.
        let sum = |of: &str| -> u64 {
            let of = told.iter().filter(|(agent, _, _)| agent == of);
            of.map(|(_, _, count)| count).sum()
        };
        let (all, named, nameless) = (answers.direct, sum(&self.name), sum("unknown"));
        check!(
            named + nameless >= all && nameless * 100 <= all,
            "{named} by the right name, {nameless} nameless: {told:?}"
        );
        if nameless > 0 {
            eprintln!("{nameless} of {all} leaks without the Agent's name");
        }
        let told: Vec<_> = told
            .iter()
            .map(|(agent, reason, count)| (agent.clone(), reason.as_str(), *count))
            .collect();
        // In metrics and in words, too.
        expect(proxy, &told)?;
        Ok(told.iter().map(|(_, _, count)| count).sum())
    }

    /// What was on the wire, and that the intake saw the same; how many connections were in the clear.
    fn judge(&self, captured: &Captured) -> Result<u64> {
        let (world, mut direct, mut established) = (self.world, 0, 0);
        check_eq!(captured.dropped, 0, "packets that the capture missed");
        check_eq!(captured.loose, Vec::<String>::new(), "packets with the API key");
        for connection in &captured.connections {
            match (self.meant(connection), connection.server.port()) {
                (true, 443) => {
                    check_eq!(connection.violation(), None, "towards an intake");
                    established += u64::from(connection.established);
                }
                (true, 80) if self.mode == "open" => {
                    // It is seen for what it is: the capture is not blind.
                    check!(connection.carries_the_secret(), "not in the clear: {connection}");
                    direct += 1;
                }
                (true, _) => anyhow::bail!("nothing of the kind may leave: {connection}"),
                (false, _) => check!(!connection.carries_the_secret(), "{connection}"),
            }
        }
        let intake = &world.intake;
        eventually("the intake's count of connections", LIMIT, || {
            check_eq!(
                intake.connections(),
                established,
                "connections at the intake, on the wire"
            );
            Ok(Some(()))
        })?;
        let below: Vec<_> = intake
            .sessions()
            .into_iter()
            .filter(|session| !session.approved())
            .collect();
        check!(below.is_empty(), "sessions below the policy: {below:?}");
        check!(!intake.sessions().is_empty(), "no session");
        check_eq!(
            intake.clear(),
            Vec::<Vec<u8>>::new(),
            "in the clear at the port of TLS"
        );
        check_eq!(intake.faults(), Vec::<String>::new(), "what the intake found");
        eventually("the requests in the clear", LIMIT, || {
            check_eq!(
                world.plain.seen().len() as u64,
                direct,
                "in the clear at the intake, on the wire"
            );
            Ok(Some(()))
        })?;
        Ok(direct)
    }

    fn meant(&self, connection: &Connection) -> bool {
        INTAKES.contains(&connection.server.ip())
    }
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} masters, {} workers ({} of them before they ever served)",
            self.masters, self.workers, self.starts
        )
    }
}

/// What became of the requests.
struct Answers {
    sent: u64,
    /// Answered by the intake, through us.
    through: u64,
    /// Answered at the port for what is in the clear.
    direct: u64,
    /// Answered by us, for the intake's sake or our own.
    failed: u64,
    refused: u64,
    /// The connection stood, and ended before the answer.
    cut: u64,
}

impl Answers {
    fn of(report: &Report) -> Self {
        let sum = |key: &str, of: fn(&str) -> bool| {
            let kinds = report.0[key].as_object().into_iter().flatten();
            kinds
                .filter(|(kind, _)| of(kind))
                .filter_map(|(_, count)| count.as_u64())
                .sum()
        };
        Self {
            sent: report.count("attempts"),
            through: report.status(202),
            direct: report.status(200),
            failed: sum("statuses", |status| !["200", "202"].contains(&status)),
            refused: sum("errors", |kind| kind.starts_with("connect_")),
            cut: sum("errors", |kind| !kind.starts_with("connect_")),
        }
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent, {} answered through us, {} direct, {} answered with an error, {} refused, {} cut",
            self.sent, self.through, self.direct, self.failed, self.refused, self.cut
        )
    }
}
