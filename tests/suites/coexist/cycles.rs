//! Fifty times up and down, by every way of ending, with both datapaths in turn, under a vendor's filters: what is not ours
//! is the same afterwards, and nothing of ours is left.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use agent_fips_proxy::intercept::tc::{FILTER_NAME, PROTOCOL, TABLE};
use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use harness::bpf::{self, Objects};
use harness::cgroup;
use harness::proxy::Proxy;
use harness::vendor::Vendor;
use harness::{check, check_eq, eventually, succeed};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::stage::{Outcome, Stage, Verdict, stage};

const CYCLES: usize = 50;

/// How a cycle ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// SIGTERM: the policy stays (`on_failure: closed`).
    Stop,
    /// SIGKILL to the master.
    Kill,
    /// SIGTERM and a start with the other datapath, which takes over; then SIGTERM.
    Restart,
    /// `uninstall` while it runs, then SIGTERM.
    UninstallRunning,
    /// SIGTERM, then `uninstall`.
    Uninstall,
}

const ENDS: [End; 5] = [
    End::Stop,
    End::Kill,
    End::Restart,
    End::UninstallRunning,
    End::Uninstall,
];

/// By cgroup, by TCX and by a classic filter.
fn ways() -> [Value; 4] {
    [
        json!({"datapath": "cgroup"}),
        json!({"classifier_attach": "tcx"}),
        json!({"datapath": "cgroup"}),
        json!({"classifier_attach": "netlink", "classifier_priority": 4}),
    ]
}

/// The host's own: filters, qdiscs, rules and routes, as `tc` and `ip` show them, without ours.
fn network(stage: &Stage) -> Result<Vec<String>> {
    let script = "set -e
        ip -o link show | cut -d: -f2 | cut -d@ -f1 | while read -r device; do
            for direction in ingress egress; do
                echo \"== filters $device $direction\"
                tc filter show dev \"$device\" \"$direction\" 2>&1
            done
        done
        echo '== qdiscs'; tc qdisc show
        echo '== rules'; ip rule show
        echo '== rules, IPv6'; ip -6 rule show
        echo '== routes'; ip route show table all
        echo '== routes, IPv6'; ip -6 route show table all";
    let text = succeed(stage.node().command("sh").args(["-c", script]))?;
    let (table, protocol) = (format!(" {TABLE}"), format!("proto {PROTOCOL}"));
    let ours = |line: &str| {
        line.contains(FILTER_NAME)
            || line.contains(&format!("lookup{table}"))
            || line.contains(&format!("table{table}"))
            || line.contains(&protocol)
            // The line that only announces our priority.
            || line.contains("pref 4 ")
    };
    // Link-local and multicast routes come and go with time, and with neighbours; `ip` ends lines with blanks.
    Ok(text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !ours(line) && !line.is_empty())
        .collect())
}

/// The kernel's list of the vendor's programs: number, name and tag.
fn programs(vendors: &[&Vendor]) -> Vec<String> {
    let mut found: Vec<String> = loaded_programs()
        .flatten()
        .filter(|program| vendors.iter().any(|vendor| vendor.id == program.id()))
        .map(|program| {
            format!(
                "{} {:?} {:016x} {:?}",
                program.id(),
                program.name_as_str(),
                program.tag(),
                program.map_ids().ok()
            )
        })
        .collect();
    found.sort();
    found
}

/// Everything of others that must be the same.
#[derive(Debug)]
struct Others {
    network: Vec<String>,
    classifiers: Vec<String>,
    programs: Vec<String>,
    bpffs: Vec<String>,
}

fn others(stage: &Stage, vendors: &[&Vendor]) -> Result<Others> {
    let mut bpffs: Vec<String> = std::fs::read_dir(stage.pins())?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    bpffs.sort();
    Ok(Others {
        network: network(stage)?,
        classifiers: stage.others()?,
        programs: programs(vendors),
        bpffs,
    })
}

/// Fails unless both are equal, line by line and in order.
fn same(now: &Others, before: &Others) -> Result<()> {
    let lines = |others: &Others| -> Vec<String> {
        let Others {
            network,
            classifiers,
            programs,
            bpffs,
        } = others;
        [network, classifiers, programs, bpffs]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    };
    let (now, before) = (lines(now), lines(before));
    let more: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
    let less: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
    check!(
        now == before,
        "what is not ours changed: there are now {more:#?}, and no longer {less:#?}"
    );
    Ok(())
}

/// What was ever ours. (The kernel's lists are machine-wide and other suites run beside this one.)
#[derive(Default)]
struct Seen {
    objects: Objects,
    cgroups: BTreeSet<PathBuf>,
}

impl Seen {
    /// Programs, maps and links of a running proxy: what it pinned, and what master and worker hold besides.
    fn note(&mut self, stage: &Stage, proxy: &Proxy) -> Result<()> {
        let mut ours = bpf::objects(stage.node())?;
        for process in [proxy.pid(), proxy.worker()?] {
            ours.extend(bpf::held(process)?);
        }
        self.objects.extend(ours.with_maps());
        let status = proxy.status()?;
        let own = status["interception"]["own_cgroup"]
            .as_str()
            .context("no own cgroup in status")?;
        self.cgroups
            .insert(cgroup::mount()?.join(own.trim_start_matches('/')));
        Ok(())
    }
}

/// The vendor: filters that let packets go on at 1 and 20, one on egress, one on TCX.
fn settle<'a>(stage: &Stage<'a>) -> Result<(Vec<Vendor>, OwnedFd)> {
    let device = stage.device();
    stage.tc(&format!("qdisc add dev {device} clsact"))?;
    let vendors = ["one", "twenty", "egress", "tcx"]
        .into_iter()
        .map(|name| stage.vendor(name, Verdict::Unspec))
        .collect::<Result<Vec<_>>>()?;
    stage.filter(&vendors[0], "add", 1)?;
    stage.filter(&vendors[1], "add", 20)?;
    stage.tc(&format!(
        "filter add dev {device} egress prio 1 handle 1 bpf direct-action object-pinned {}",
        vendors[2].pin().display()
    ))?;
    let link = stage.tcx(&vendors[3], false)?;
    Ok((vendors, link))
}

pub fn fifty_cycles() -> Result<()> {
    stage(|stage| {
        let (vendors, _link) = settle(stage)?;
        let vendors: Vec<&Vendor> = vendors.iter().collect();
        // The kernel adds routes when the devices' own IPv6 addresses have been found unique.
        eventually("settled addresses", Duration::from_secs(10), || {
            let tentative = succeed(
                stage
                    .node()
                    .command("ip")
                    .args(["-6", "address", "show", "tentative"]),
            )?;
            Ok(tentative.trim().is_empty().then_some(()))
        })?;
        check_eq!(stage.ask()?, Outcome::Clear, "without us");
        let before = others(stage, &vendors)?;
        check_eq!(
            (before.classifiers.len(), before.programs.len()),
            (4, 4),
            "{before:#?}"
        );
        let ways = ways();
        let mut seen = Seen::default();
        for cycle in 0..CYCLES {
            // 4 and 5 have no common factor: every way meets every end.
            let (way, end) = (&ways[cycle % ways.len()], ENDS[cycle % ENDS.len()]);
            once(stage, way, &ways[(cycle + 1) % ways.len()], end, &mut seen)
                .with_context(|| format!("cycle {cycle}: {way}, {end:?}"))?;
            same(&others(stage, &vendors)?, &before)
                .with_context(|| format!("after cycle {cycle}: {way}, {end:?}"))?;
        }
        stage.uninstall()?;
        same(&others(stage, &vendors)?, &before).context("after the last uninstall")?;
        check_eq!(stage.ask()?, Outcome::Clear, "without us");
        check!(
            seen.objects.programs.len() > CYCLES
                && seen.objects.maps.len() > CYCLES
                && seen.objects.links.len() > CYCLES,
            "too few of ours were seen: {} programs, {} maps, {} links",
            seen.objects.programs.len(),
            seen.objects.maps.len(),
            seen.objects.links.len()
        );
        // What the kernel frees after a grace period is gone a moment later.
        eventually(
            "the end of every program, map and link of ours",
            Duration::from_secs(10),
            || {
                let left = seen.objects.still_loaded()?;
                if left.is_empty() {
                    return Ok(Some(()));
                }
                anyhow::bail!("left: {left:?}")
            },
        )?;
        nothing_left(stage, &seen)
    })
}

/// One cycle. `seen` collects what was ever ours.
fn once(stage: &Stage, way: &Value, next: &Value, end: End, seen: &mut Seen) -> Result<()> {
    let mut proxy = stage.start(way)?;
    check_eq!(stage.ask()?, Outcome::Intercepted, "{}", proxy.log());
    check!(running(stage)? >= 2, "master and worker run, and are not found");
    seen.note(stage, &proxy)?;
    // In force without a proxy: nothing leaves, and nothing leaks.
    let closed = || -> Result<()> {
        check_eq!(stage.ask()?, Outcome::Nothing, "closed");
        Ok(())
    };
    match end {
        End::Stop => {
            stopped(&mut proxy)?;
            closed()
        }
        End::Kill => {
            proxy.signal(Signal::SIGKILL)?;
            proxy.wait(Duration::from_secs(5))?;
            // Its worker ends with it.
            eventually("the worker's end", Duration::from_secs(5), || {
                let left = running(stage)?;
                Ok((left == 0).then_some(()))
            })?;
            closed()
        }
        End::Restart => {
            stopped(&mut proxy)?;
            drop(proxy);
            let mut proxy = stage.start(next)?;
            check_eq!(stage.ask()?, Outcome::Intercepted, "{}", proxy.log());
            seen.note(stage, &proxy)?;
            stopped(&mut proxy)?;
            closed()
        }
        End::UninstallRunning => {
            stage.uninstall()?;
            // A look that had begun before may still end after it.
            eventually("interception to be off", Duration::from_secs(5), || {
                Ok((stage.ask()? == Outcome::Clear).then_some(()))
            })?;
            stopped(&mut proxy)?;
            check_eq!(stage.ask()?, Outcome::Clear, "after the end");
            Ok(())
        }
        End::Uninstall => {
            stopped(&mut proxy)?;
            stage.uninstall()?;
            check_eq!(stage.ask()?, Outcome::Clear, "after uninstall");
            Ok(())
        }
    }
}

fn stopped(proxy: &mut Proxy) -> Result<()> {
    let status = proxy.stop()?;
    check!(status.success(), "{status}: {}", proxy.log());
    Ok(())
}

/// Processes of the proxy on the node.
fn running(stage: &Stage) -> Result<usize> {
    let binary = harness::proxy::binary()?;
    Ok(stage
        .node()
        .processes()
        .into_iter()
        .filter(|process| std::fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|exe| exe == binary))
        .count())
}

/// Nothing of ours: no process, pin, cgroup, filter, rule or route.
fn nothing_left(stage: &Stage, seen: &Seen) -> Result<()> {
    check_eq!(running(stage)?, 0, "processes");
    check_eq!(bpf::pins(stage.node())?, Vec::<PathBuf>::new(), "pins");
    let left: Vec<&PathBuf> = seen.cgroups.iter().filter(|path| path.exists()).collect();
    check_eq!(left, Vec::<&PathBuf>::new(), "cgroups of ours");
    let script = "ip -o link show | cut -d: -f2 | cut -d@ -f1 | while read -r device; do
            tc filter show dev \"$device\" ingress; tc filter show dev \"$device\" egress
        done
        ip rule show; ip -6 rule show; ip route show table all; ip -6 route show table all; cat /proc/self/mounts";
    let text = succeed(stage.node().command("sh").args(["-c", script]))?;
    for word in [
        FILTER_NAME,
        &format!("lookup {TABLE}"),
        &format!("table {TABLE}"),
        "pref 4 ",
    ] {
        check!(!text.contains(word), "`{word}` is left:\n{text}");
    }
    check_eq!(stage.on_tcx()?.len(), 1, "programs on TCX");
    Ok(())
}
