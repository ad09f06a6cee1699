//! Others do what they like while the Agent sends without a pause: ours is back within two seconds, or the shadow is
//! reported, and what is theirs stays as they left it.
//!
//! A connection that is open goes on (`an_open_connection_goes_on`).
//!
//! What may leak, also under `on_failure: closed`: a connection that is opened while our classifier does not stand first on
//! the interface goes out as it would without us, to its end, since no program of ours sees its first packet. The policy
//! is ours to keep only where our program runs. Connections that are opened before and after go through TLS.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::agent::Load;
use harness::intake::Answer;
use harness::proxy::Proxy;
use harness::world::{API_KEY, VERSIONED};
use harness::{check, check_eq, eventually, succeed};
use serde_json::{Value, json};

use crate::stage::{Outcome, Stage, Verdict, interface, stage, wait_state};

/// Within this time interception is back.
pub const BACK: Duration = Duration::from_secs(2);
/// For so long leaks are looked for.
const WATCH: Duration = Duration::from_secs(4);
/// Senders at a time.
const CLIENTS: u64 = 4;

/// Requests of the Agent, one connection each, numbered, without a pause but for a few milliseconds.
struct Sending(Load);

impl Sending {
    fn start(stage: &Stage) -> Result<Self> {
        let (clients, url) = (CLIENTS.to_string(), format!("http://{VERSIONED}/api/v2/series"));
        let words = [
            "--url",
            &url,
            "--api-key",
            API_KEY,
            "--clients",
            &clients,
            "--interval-ms",
            "5",
            // When a qdisc comes or goes, the kernel stops the device's queues for a moment (`qdisc_graft`) and loses what is
            // sent then, a SYN-ACK for one, with and without us. It comes again after a second.
            "--timeout-s",
            "3",
        ];
        let load = Load::start(&stage.pod.network.host, Some(&stage.pod.cgroup), &words)?;
        let sending = Self(load);
        sending.more(stage)?;
        Ok(sending)
    }

    /// Waits until twenty more requests arrived through TLS.
    fn more(&self, stage: &Stage) -> Result<()> {
        let before = stage.world.intake.count();
        eventually(
            "twenty more requests through TLS",
            Duration::from_secs(10),
            || Ok((stage.world.intake.count() >= before + 20).then_some(())),
        )
    }
}

/// The number of a request.
fn number(id: &str) -> Option<u64> {
    id.strip_prefix("load-")?.parse().ok()
}

/// Numbers of requests that arrived at the TLS intake.
fn secure(stage: &Stage) -> BTreeSet<u64> {
    let seen = stage.world.intake.seen();
    seen.iter()
        .filter_map(|seen| number(seen.header("x-test-id")?))
        .collect()
}

/// Numbers of requests that arrived in the clear.
fn clear(stage: &Stage) -> Result<BTreeSet<u64>> {
    let seen = stage.world.plain.seen();
    seen.iter()
        .map(|clear| {
            let text = String::from_utf8_lossy(&clear.bytes).into_owned();
            let id = text.lines().find_map(|line| line.strip_prefix("x-test-id: "));
            id.and_then(number)
                .with_context(|| format!("not a request of ours: {text}"))
        })
        .collect()
}

/// What is to become of a disturbance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Nothing: not one request leaks or fails.
    Nothing,
    /// Interception is back within [`BACK`].
    Back,
    /// It is reported: ours cannot come before this vendor with this configuration.
    Shadowed,
}

/// A proxy with this configuration, beside what `before` put there; `disturb` happens under load.
fn disturbed(
    ours: &Value,
    expected: Expected,
    before: impl FnOnce(&Stage) -> Result<()>,
    disturb: impl FnOnce(&Stage) -> Result<()>,
) -> Result<()> {
    stage(|stage| {
        before(stage)?;
        let proxy = stage.start(ours)?;
        check_eq!(stage.ask()?, Outcome::Intercepted, "before: {}", proxy.log());
        let sending = Sending::start(stage)?;
        check_eq!(
            stage.world.leaks(),
            Vec::<String>::new(),
            "before anything happened"
        );
        let first = secure(stage)
            .last()
            .copied()
            .unwrap_or_default()
            .saturating_sub(CLIENTS);
        disturb(stage)?;
        let start = Instant::now();
        let left = stage.others()?;
        match expected {
            Expected::Shadowed => shadowed(stage, &proxy)?,
            Expected::Back | Expected::Nothing => back(stage, &proxy, start, first, expected)?,
        }
        check_eq!(stage.others()?, left, "the vendor's, as it left them");
        let report = sending.0.finish()?;
        if expected == Expected::Nothing {
            check!(report.all(202), "requests failed: {report:?}\n{}", proxy.log());
        }
        if expected != Expected::Shadowed {
            // Everything is as before: not one of these fails.
            let url = format!("http://{VERSIONED}/api/v2/series");
            let words = [
                "--url",
                &url,
                "--api-key",
                API_KEY,
                "--requests",
                "50",
                "--clients",
                "2",
            ];
            let pod = stage.pod;
            let after = Load::start(&pod.network.host, Some(&pod.cgroup), &words)?.wait()?;
            check!(after.all(202), "afterwards: {after:?}\n{}", proxy.log());
        }
        drop(proxy);
        stage.uninstall()?;
        check_eq!(stage.others()?, left, "the vendor's, after uninstall");
        Ok(())
    })
}

/// Nothing leaks later than [`BACK`] after `start`, and what leaked was opened in between.
fn back(stage: &Stage, proxy: &Proxy, start: Instant, first: u64, expected: Expected) -> Result<()> {
    let mut leaked = clear(stage)?;
    let mut last = Duration::ZERO;
    while start.elapsed() < WATCH {
        let now = clear(stage)?;
        if now.len() != leaked.len() {
            last = start.elapsed();
            leaked = now;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    check!(
        last < BACK,
        "requests leaked until {last:?} after the disturbance\n{}",
        proxy.log()
    );
    // And they are not merely stuck: more arrive, opened after the last that leaked.
    let before = secure(stage);
    eventually("requests through TLS again", Duration::from_secs(5), || {
        Ok((secure(stage).len() >= before.len() + 20).then_some(()))
    })
    .with_context(|| proxy.log())?;
    if let (Some(from), Some(to)) = (leaked.first(), leaked.last()) {
        let after = before.iter().filter(|number| *number > to).count();
        check!(
            *from >= first && after > 0,
            "{from} to {to} leaked, opened outside of the gap (from {first}, {after} after it)"
        );
    }
    if expected == Expected::Nothing {
        check_eq!(leaked, BTreeSet::new(), "leaks");
    }
    // The API key and all else that reached the TLS port was TLS.
    check_eq!(
        stage.world.intake.clear(),
        Vec::<Vec<u8>>::new(),
        "clear text at port 443"
    );
    let found = wait_state(proxy, "active", BACK)?;
    check_eq!(found["detail"], json!(""), "{found:#}");
    Ok(())
}

/// The shadow is in `status`, in the metrics and in the log, with who it is and what to set.
fn shadowed(stage: &Stage, proxy: &Proxy) -> Result<()> {
    let found = wait_state(proxy, "shadowed", Duration::from_secs(3))?;
    let detail = found["detail"].as_str().unwrap_or_default();
    for part in ["hostile", "intercept."] {
        check!(detail.contains(part), "{part} is not in: {detail}");
    }
    check!(found["missed"].as_u64().unwrap_or(0) >= 4, "{found:#}");
    eventually("the gauge", Duration::from_secs(3), || {
        let gauge = proxy.metrics()?.sum("agent_fips_proxy_shadowed_interfaces", &[]);
        Ok((gauge == 1.0).then_some(()))
    })?;
    // The log comes by a pipe: later than the answer.
    eventually("a warning in the log", Duration::from_secs(3), || {
        let told = |line: &str| {
            line.contains("\"WARN\"")
                && line.contains("the classifier is shadowed")
                && line.contains("hostile")
        };
        Ok(proxy.log().lines().any(told).then_some(()))
    })
    .with_context(|| proxy.log())?;
    // That is no exaggeration.
    let before = clear(stage)?.len();
    eventually("requests in the clear", Duration::from_secs(5), || {
        Ok((clear(stage)?.len() >= before + 5).then_some(()))
    })?;
    check_eq!(interface(proxy)?["state"], json!("shadowed"), "still");
    Ok(())
}

pub fn classic(priority: u16) -> Value {
    json!({"classifier_attach": "netlink", "classifier_priority": priority})
}

fn tcx() -> Value {
    json!({"classifier_attach": "tcx"})
}

fn qdisc(stage: &Stage) -> Result<()> {
    stage
        .tc(&format!("qdisc add dev {} clsact", stage.device()))
        .map(drop)
}

/// A vendor at 1/1 that lets packets go on.
pub fn friend(stage: &Stage) -> Result<()> {
    qdisc(stage)?;
    let friend = stage.vendor("friend", Verdict::Unspec)?;
    stage.filter(&friend, "add", 1)
}

fn delete(stage: &Stage) -> Result<()> {
    let words = format!("filter delete dev {} ingress prio 1 handle 1 bpf", stage.device());
    stage.tc(&words).map(drop)
}

pub fn a_vendor_replaces_its_filter() -> Result<()> {
    let replace = |name: &'static str, verdict| {
        move |stage: &Stage<'_>| {
            let vendor = stage.vendor(name, verdict)?;
            stage.filter(&vendor, "replace", 1)
        }
    };
    for ours in [classic(10), tcx()] {
        disturbed(
            &ours,
            Expected::Nothing,
            friend,
            replace("friend_2", Verdict::Unspec),
        )
        .with_context(|| format!("{ours}, by another that lets packets go on"))?;
    }
    disturbed(&tcx(), Expected::Nothing, friend, replace("hostile", Verdict::Ok)).context("behind TCX")?;
    disturbed(
        &classic(10),
        Expected::Shadowed,
        friend,
        replace("hostile", Verdict::Ok),
    )
    .context("before a classic filter")
}

pub fn a_vendor_deletes_and_adds_its_filter() -> Result<()> {
    let anew = |name: &'static str, verdict| {
        move |stage: &Stage<'_>| {
            let vendor = stage.vendor(name, verdict)?;
            delete(stage)?;
            stage.filter(&vendor, "add", 1)
        }
    };
    disturbed(
        &classic(10),
        Expected::Nothing,
        friend,
        anew("friend_2", Verdict::Unspec),
    )
    .context("lets packets go on")?;
    // It shares our priority, and whoever is added last is first: ours is added anew.
    let mut prepend = classic(1);
    prepend["classifier_same_priority"] = json!("prepend");
    disturbed(&prepend, Expected::Back, friend, anew("hostile", Verdict::Ok)).context("prepend")?;
    disturbed(
        &classic(1),
        Expected::Shadowed,
        friend,
        anew("hostile", Verdict::Ok),
    )
    .context("keep")
}

pub fn a_vendor_deletes_the_qdisc() -> Result<()> {
    let vandal = |stage: &Stage<'_>| {
        stage
            .tc(&format!("qdisc delete dev {} clsact", stage.device()))
            .map(drop)
    };
    disturbed(&classic(10), Expected::Back, friend, vandal).context("our filter was on it")?;
    // An upstream connection for each request, for which the worker asks the master: a busy master notices it as well.
    let busy = |stage: &Stage<'_>| {
        stage.world.intake.answer("/api/v2/series", Answer::CloseAfter);
        friend(stage)
    };
    disturbed(&classic(10), Expected::Back, busy, vandal).context("a busy master")?;
    disturbed(&tcx(), Expected::Nothing, friend, vandal).context("ours is on TCX")
}

pub fn a_vendor_comes_first_on_tcx() -> Result<()> {
    for (ours, expected) in [(tcx(), Expected::Back), (classic(10), Expected::Shadowed)] {
        // Kept until the end of the case.
        let link = std::cell::Cell::new(None);
        disturbed(
            &ours,
            expected,
            |_| Ok(()),
            |stage| {
                let hostile = stage.vendor("hostile", Verdict::Ok)?;
                link.set(Some(stage.tcx(&hostile, true)?));
                Ok(())
            },
        )
        .with_context(|| ours.to_string())?;
    }
    Ok(())
}

pub fn a_veth_of_the_same_name() -> Result<()> {
    for ours in [tcx(), classic(10)] {
        disturbed(&ours, Expected::Back, |_| Ok(()), rebuild).with_context(|| ours.to_string())?;
    }
    Ok(())
}

/// The pod's pair is deleted and made again, as `ptp` makes it.
fn rebuild(stage: &Stage) -> Result<()> {
    let (node, pod, veth) = (stage.node(), &stage.pod.network, stage.device());
    let script = "set -e
        ip link delete \"$1\"
        ip link add \"$1\" type veth peer name eth0 netns \"$2\"
        ip address add 10.93.0.1/32 dev \"$1\"
        ip link set \"$1\" up
        ip route add \"$3\"/32 dev \"$1\"";
    succeed(
        node.command("sh")
            .args(["-c", script, "sh", veth])
            .arg(pod.host.pid().to_string())
            .arg(pod.v4.to_string()),
    )?;
    let script = "set -e
        ip address add \"$1\"/32 dev eth0
        ip link set eth0 up
        ip route add 10.93.0.1 dev eth0
        ip route add default via 10.93.0.1";
    succeed(
        pod.host
            .command("sh")
            .args(["-c", script, "sh"])
            .arg(pod.v4.to_string()),
    )?;
    Ok(())
}
