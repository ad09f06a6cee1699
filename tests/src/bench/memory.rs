//! W6: memory of a fresh proxy, with idle clients that have sent one request each, and after they have left.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::child::{interrupted, pause};
use super::peers::{Front, Peer, Running};
use super::process::{Memory, trees};
use super::run::family;
use super::stage::{Load, Stage};

/// How many idle clients.
pub const CLIENTS: [usize; 2] = [1_000, 5_000];
/// Above the largest of them: the default of 4,096 would refuse the rest.
const LIMIT: usize = 10_000;
/// Allocators give back, and timers fire, within it.
const SETTLE: Duration = Duration::from_secs(2);

/// What a part of a peer held.
#[derive(Clone, Debug, Default)]
pub struct Idle {
    /// `haproxy`
    pub peer: String,
    /// `all`; of ours also `worker` and `master`.
    pub part: String,
    /// Before any client.
    pub fresh: Memory,
    /// With as many as [`CLIENTS`] says.
    pub with: [Memory; 2],
    /// After the last of them have left.
    pub left: Memory,
    /// What went wrong, for the whole peer.
    pub errors: Vec<String>,
}

impl Idle {
    /// Every raw figure.
    pub fn json(&self) -> Value {
        let one = |memory: &Memory| json!({"rss_kib": memory.rss, "pss_kib": memory.pss});
        json!({
            "peer": self.peer, "part": self.part, "errors": self.errors, "fresh": one(&self.fresh),
            "clients_1000": one(&self.with[0]), "clients_5000": one(&self.with[1]), "left": one(&self.left),
        })
    }
}

/// The parts of a peer with their processes: all, and for ours the master and the worker.
pub fn parts(peer: &Running) -> Result<Vec<(String, Vec<i32>)>> {
    let all = trees(&peer.roots())?;
    let mut parts = vec![("all".to_owned(), all)];
    if peer.peer == Peer::Ours {
        let root = *peer.roots().first().context("ours has no process")?;
        let (master, workers) = family(root)?;
        parts.push(("worker".to_owned(), workers));
        parts.push(("master".to_owned(), vec![master]));
    }
    Ok(parts)
}

/// Every peer that is a process, one after the other, each alone on a stage of its own.
pub fn run(peers: &[Peer]) -> Result<Vec<Idle>> {
    let mut all = Vec::new();
    for peer in peers.iter().filter(|peer| **peer != Peer::Direct) {
        match one(*peer) {
            Ok(found) => all.extend(found),
            Err(error) => {
                interrupted()?;
                eprintln!("bench-relay: W6, {}: {error:#}", peer.name());
                all.push(Idle {
                    peer: peer.name().to_owned(),
                    part: "all".to_owned(),
                    errors: vec![format!("{error:#}")],
                    ..Idle::default()
                });
            }
        }
    }
    Ok(all)
}

fn one(peer: Peer) -> Result<Vec<Idle>> {
    let stage = Stage::one_host()?;
    let more = json!({"limits": {"max_connections": LIMIT}});
    let running = Running::start_with(&stage, peer, Front::Clear, &more)?;
    pause(SETTLE)?;
    let mut found: Vec<Idle> = parts(&running)?
        .into_iter()
        .map(|(part, processes)| {
            Ok(Idle {
                peer: peer.name().to_owned(),
                part,
                fresh: Memory::of(&processes)?,
                ..Idle::default()
            })
        })
        .collect::<Result<_>>()?;
    for (index, clients) in CLIENTS.into_iter().enumerate() {
        let load = Load {
            mode: "idle",
            connections: clients,
            body: 1 << 10,
            window: Duration::ZERO,
            warmup: Duration::ZERO,
        };
        let mut client = stage.load(&running.target, &load)?;
        let word = client.line(Duration::from_secs(120))?;
        if word != "warm" {
            bail!("the load generator said {word}");
        }
        pause(SETTLE)?;
        for (idle, (_, processes)) in found.iter_mut().zip(parts(&running)?) {
            idle.with[index] = Memory::of(&processes)?;
        }
        client.say("go")?;
        let line = client.line(Duration::from_secs(30))?;
        let said: Value = serde_json::from_str(&line).with_context(|| format!("it said {line}"))?;
        let failed = said["errors"].as_object().is_none_or(|errors| !errors.is_empty());
        if failed || said["requests"] != json!(clients) {
            let what = format!(
                "{clients} clients: {} answered, {}",
                said["requests"], said["errors"]
            );
            found.iter_mut().for_each(|idle| idle.errors.push(what.clone()));
        }
        drop(client);
        pause(SETTLE)?;
    }
    for (idle, (_, processes)) in found.iter_mut().zip(parts(&running)?) {
        idle.left = Memory::of(&processes)?;
        eprintln!(
            "W6 {:<12} {:<7} RSS {} KiB, {} and {} clients {} and {} KiB, left {} KiB{}",
            idle.peer,
            idle.part,
            idle.fresh.rss,
            CLIENTS[0],
            CLIENTS[1],
            idle.with[0].rss,
            idle.with[1].rss,
            idle.left.rss,
            if idle.errors.is_empty() { "" } else { " (errors)" }
        );
    }
    Ok(found)
}
