//! The connections of one Agent's pod are divided among all data threads, also after a worker was replaced.
//!
//! Which thread has a connection is no metric. The kernel tells: a data thread has one epoll instance, and what is
//! registered there is in `/proc/<worker>/fdinfo` (proc(5): `tfd`, `ino`).

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::Load;
use harness::cni::{Node, Plugin, Pod, Style};
use harness::proxy::Proxy;
use harness::world::{API_KEY, VERSIONED, World};
use harness::{check, check_eq, eventually};
use nix::unistd::Pid;
use serde_json::json;

use crate::stage::config;

const THREADS: usize = 2;
/// Fair coins leave one of two threads without any once in 2^63 runs.
const CONNECTIONS: usize = 64;

/// States of `/proc/net/tcp`: `TCP_ESTABLISHED`, `TCP_LISTEN` (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

pub fn every_thread_by_cgroup() -> Result<()> {
    every_thread("cgroup")
}

pub fn every_thread_by_tc() -> Result<()> {
    every_thread("tc")
}

fn every_thread(datapath: &str) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, Plugin::Ptp, false, Style::Systemd)?;
    let agent = node.pod()?;
    let mut settings = config(&world, &[&agent], datapath);
    settings["worker"]["threads"] = json!(THREADS);
    let mut proxy = world.start(&settings)?;
    let found = &proxy.status()?["interception"]["agents"][0];
    check_eq!(found["datapath"], json!(datapath), "{found:#}");
    divided(&world, &proxy, &agent, datapath)?;
    // The next worker is given the same sockets, each for the same thread.
    proxy.kill_worker()?;
    proxy.wait_ready()?;
    divided(&world, &proxy, &agent, datapath)
}

/// Keeps connections open, each with a request now and then, and looks where they are.
fn divided(world: &World, proxy: &Proxy, agent: &Pod, datapath: &str) -> Result<()> {
    let worker = proxy.worker()?;
    let url = format!("http://{VERSIONED}/api/v2/series");
    let clients = CONNECTIONS.to_string();
    let words = [
        "--url",
        &url,
        "--api-key",
        API_KEY,
        "--ip",
        "4",
        "--clients",
        &clients,
        "--per-connection",
        "1000000",
        "--interval-ms",
        "500",
    ];
    let load = Load::start(&agent.network.host, Some(&agent.cgroup), &words)?;
    let mut last = Vec::new();
    let shares = eventually("every connection is at a thread", Duration::from_secs(30), || {
        let accepted = accepted(worker, agent, datapath)?;
        last = shares(worker, &accepted)?;
        Ok((last.iter().sum::<usize>() == CONNECTIONS).then(|| last.clone()))
    })
    .with_context(|| format!("connections by thread: {last:?}\n{}", proxy.log()))?;
    println!("{datapath}: connections by thread {shares:?}");
    check_eq!(shares.len(), THREADS, "threads that have connections: {shares:?}");
    let report = load.finish()?;
    check!(report.all(202), "{report:?}");
    check_eq!(report.count("connects"), CONNECTIONS as u64, "{report:?}");
    check!(world.leaks().is_empty(), "{:?}", world.leaks());
    Ok(())
}

/// Inodes of the connections that the worker has from the pod.
fn accepted(worker: Pid, agent: &Pod, datapath: &str) -> Result<BTreeSet<u64>> {
    // By `tc` an accepted socket is the host's and has the intake's port; by `cgroup` it is the pod's and has the port that
    // all of the pod's listeners share.
    let (rows, port) = if datapath == "tc" {
        (table(worker.as_raw())?, 80)
    } else {
        let rows = table(i32::try_from(agent.pid())?)?;
        let own = sockets(worker)?;
        let ports: Vec<u16> = rows
            .iter()
            .filter(|row| row.state == LISTEN && own.contains(&row.inode))
            .map(|row| row.port)
            .collect();
        check_eq!(ports.len(), THREADS, "sockets that listen in the pod: {ports:?}");
        check_eq!(ports[0], ports[1], "one port");
        (rows, ports[0])
    };
    Ok(rows
        .into_iter()
        .filter(|row| row.state == ESTABLISHED && row.port == port)
        .map(|row| row.inode)
        .collect())
}

/// A row of `/proc/net/tcp`.
struct Row {
    state: String,
    /// The local port.
    port: u16,
    inode: u64,
}

/// TCP sockets of the network namespace that a process lives in.
fn table(process: i32) -> Result<Vec<Row>> {
    let text = fs::read_to_string(format!("/proc/{process}/net/tcp"))?;
    text.lines()
        .skip(1)
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let word = |at: usize| words.get(at).copied().with_context(|| line.to_owned());
            let (_, port) = word(1)?.split_once(':').with_context(|| line.to_owned())?;
            Ok(Row {
                state: word(3)?.to_owned(),
                port: u16::from_str_radix(port, 16)?,
                inode: word(9)?.parse()?,
            })
        })
        .collect()
}

/// Inodes of the sockets that a process has open.
fn sockets(process: Pid) -> Result<BTreeSet<u64>> {
    Ok(links(process)?
        .into_iter()
        .filter_map(|(_, link)| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect())
}

/// Descriptors of a process and what they are.
fn links(process: Pid) -> Result<Vec<(String, String)>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let entry = entry?;
        // It may be closed by now.
        if let Ok(link) = fs::read_link(entry.path()) {
            let number = entry.file_name().to_string_lossy().into_owned();
            links.push((number, link.to_string_lossy().into_owned()));
        }
    }
    Ok(links)
}

/// How many of these sockets each epoll instance of the worker has, of those that have any.
fn shares(worker: Pid, inodes: &BTreeSet<u64>) -> Result<Vec<usize>> {
    // A runtime may have two descriptors of one instance: the same sockets, counted once.
    let mut instances = BTreeSet::new();
    for (number, link) in links(worker)? {
        if link != "anon_inode:[eventpoll]" {
            continue;
        }
        let info = fs::read_to_string(format!("/proc/{worker}/fdinfo/{number}"))?;
        let registered: BTreeSet<u64> = info
            .lines()
            .filter(|line| line.starts_with("tfd:"))
            .filter_map(|line| {
                let inode = line
                    .split_whitespace()
                    .find_map(|word| word.strip_prefix("ino:"))?;
                u64::from_str_radix(inode, 16).ok()
            })
            .filter(|inode| inodes.contains(inode))
            .collect();
        if !registered.is_empty() {
            instances.insert(registered);
        }
    }
    Ok(instances.iter().map(BTreeSet::len).collect())
}
