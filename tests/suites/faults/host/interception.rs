//! What the interception of an Agent hangs on: its cgroup, the file system of pinned objects, the interface of its pod. The load is
//! an explicit client; the Agent's requests are those of the row.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::ask;
use harness::cgroup::Cgroup;
use harness::cni::{Node, Plugin, Pod, Style};
use harness::netns::Host;
use harness::suite::Need;
use harness::world::VERSIONED;
use harness::{check, check_eq, eventually, succeed};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::judge::{finish, told};
use crate::stage::{Set, Stage};
use crate::table::Hold::Own;
use crate::table::{Inject, NAME, ROW, Row};

const LIMIT: Duration = Duration::from_secs(20);

pub const CGROUP_REMOVED: Row = Row {
    name: "cgroup_removed",
    fault: "the cgroup of an intercepted Agent is removed, and made again with the same name",
    inject: Inject::Whole(cgroup_removed),
    holds: &[Own("the Agent is no longer listed; the new one is intercepted")],
    needs: &[Need::Bpf],
    ..ROW
};

pub const BPFFS_UNMOUNTED: Row = Row {
    name: "bpffs_unmounted",
    fault: "somebody unmounts the file system of the pinned programs under the running proxy",
    inject: Inject::Whole(bpffs_unmounted),
    holds: &[Own(
        "the kernel says that it is busy; the Agent stays intercepted, also after a reload",
    )],
    needs: &[Need::Bpf],
    ..ROW
};

pub const VETH_RENAMED: Row = Row {
    name: "veth_renamed",
    fault: "the interface of a pod that is intercepted gets another name, and its own again; by each datapath",
    inject: Inject::Whole(veth_renamed),
    holds: &[Own(
        "`cgroup`: no request fails; `tc`: nothing leaves until the new name is seen, and the pod is intercepted again",
    )],
    needs: &[Need::Bpf, Need::Cni],
    ..ROW
};

/// The first request of an Agent: one whose namespace is not known yet is refused, and asks again.
fn first_of(host: &Host, cgroup: &Cgroup) -> Result<()> {
    eventually("an Agent that is taken", LIMIT, || agent(host, cgroup).map(Some))
}

/// A request of an Agent to the intake that breaks, by its name and in the clear.
fn agent(host: &Host, cgroup: &Cgroup) -> Result<()> {
    answered(host, cgroup, "warm", &format!("http://{NAME}/api/v2/profile"))
}

/// A request that an intake takes.
fn answered(host: &Host, cgroup: &Cgroup, id: &str, url: &str) -> Result<()> {
    let id = format!("x-test-id: {id}");
    let answer = ask(host, Some(cgroup), &["-4", "-H", &id, url])?;
    check_eq!(answer.status, 202, "{id}: {answer:?}");
    Ok(())
}

/// The number of Agents that `status` lists as attached.
fn agents(stage: &Stage<'_>) -> Result<usize> {
    let status = stage.proxy.status()?;
    Ok(status["interception"]["agents"].as_array().map_or(0, Vec::len))
}

fn until(stage: &Stage<'_>, wanted: usize) -> Result<()> {
    eventually("the Agents of the status", LIMIT, || {
        Ok((agents(stage)? == wanted).then_some(()))
    })
    .with_context(|| format!("wanted {wanted}: {:?}", stage.proxy.status()))
}

fn intercepting(set: &Set, row: &Row, cgroups: &[&str], datapath: &str) -> Result<Value> {
    let mut config = set.config(row)?;
    config["intercept"] = set.world.intercepting_pods(cgroups, datapath)["intercept"].take();
    Ok(config)
}

/// Plays a body on a stage, and what must hold in every row.
fn play(mut stage: Stage<'_>, body: impl FnOnce(&mut Stage<'_>) -> Result<()>) -> Result<()> {
    body(&mut stage)
        .and_then(|()| finish(&mut stage))
        .map_err(|error| told(&error, &stage))
}

fn cgroup_removed(row: &Row) -> Result<()> {
    let set = Set::new(row.leads)?;
    let above = Cgroup::new("agents")?;
    let first = above.child("agent")?;
    let config = intercepting(&set, row, &[&format!("{}/agent", above.inside())], "cgroup")?;
    play(set.stage_with(row, &config)?, |stage| {
        let host = &stage.set.world.host;
        until(stage, 1)?;
        first_of(host, &first)?;
        drop(first);
        until(stage, 0)?;
        let again = above.child("agent")?;
        until(stage, 1)?;
        first_of(host, &again)
    })
}

fn bpffs_unmounted(row: &Row) -> Result<()> {
    let set = Set::new(row.leads)?;
    let cgroup = Cgroup::new("agent")?;
    let config = intercepting(&set, row, &[cgroup.inside()], "cgroup")?;
    // In this host's mount namespace alone.
    let sh = |script: &str| succeed(set.world.host.command("sh").args(["-ec", script]));
    sh("mount -t bpf afp-bpf /sys/fs/bpf")?;
    play(set.stage_with(row, &config)?, |stage| {
        let host = &stage.set.world.host;
        until(stage, 1)?;
        first_of(host, &cgroup)?;
        check!(
            !sh("ls /sys/fs/bpf")?.trim().is_empty(),
            "nothing was pinned there"
        );
        check!(sh("umount /sys/fs/bpf").is_err(), "nothing holds the bpffs");
        for number in 1..6 {
            agent(host, &cgroup).with_context(|| format!("request {number} afterwards"))?;
        }
        stage.proxy.signal(Signal::SIGHUP)?;
        std::thread::sleep(Duration::from_secs(2));
        until(stage, 1)?;
        agent(host, &cgroup).context("after a reload")
    })
}

fn veth_renamed(row: &Row) -> Result<()> {
    by_another_name(row, "cgroup")?;
    by_another_name(row, "tc")
}

fn by_another_name(row: &Row, datapath: &str) -> Result<()> {
    let set = Set::new(row.leads)?;
    let node = Node::new(&set.world, Plugin::Ptp, false, Style::Systemd)?;
    let pod = node.pod()?;
    // The pod's own hosts file knows the healthy intake only.
    let ask = |id: &str| from_pod(&pod, id);
    let config = intercepting(&set, row, &[pod.above.inside()], datapath)?;
    play(set.stage_with(row, &config)?, |stage| {
        until(stage, 1)?;
        ask("pod-1")?;
        pod.network.rename(&pod.network.veth, "renamed0")?;
        if datapath == "tc" {
            // Refused meanwhile, each time as another request.
            let mut number = 100;
            eventually("a request after another name", LIMIT, || {
                number += 1;
                ask(&format!("pod-{number}")).map(Some)
            })?;
        }
        for number in 2..6 {
            ask(&format!("pod-{number}"))?;
        }
        // It is looked for again.
        std::thread::sleep(Duration::from_secs(6));
        until(stage, 1)?;
        ask("pod-6")?;
        pod.network.rename("renamed0", &pod.network.veth)
    })
    .with_context(|| format!("datapath {datapath}"))
}

/// A request of the pod, which the healthy intake gets.
fn from_pod(pod: &Pod<'_>, id: &str) -> Result<()> {
    answered(
        &pod.network.host,
        &pod.cgroup,
        id,
        &format!("http://{VERSIONED}/pod"),
    )
}
