//! What becomes of a connection that is open while our classifier is away.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::proxy::{Launch, Proxy};
use harness::world::{API_KEY, VERSIONED};
use harness::{check, check_eq, eventually, sha256, succeed};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::stage::{Outcome, Stage, interface, stage, wait_state};
use crate::vandalism::{BACK, classic, friend};

/// Packets and bytes that came to the intake's port 80 since the counter was made.
fn in_the_clear(stage: &Stage) -> Result<(u64, u64)> {
    let text = succeed(stage.world.net.command("iptables").args(["-nvxL", "INPUT"]))?;
    let line = text.lines().find(|line| line.contains("dpt:80"));
    let mut words = line.context("no counter")?.split_whitespace();
    let mut word = || words.next().context("no count")?.parse().context("no number");
    Ok((word()?, word()?))
}

/// A connection that was open when our classifier went is not lost, and nothing of it leaks: the kernel finds the proxy's
/// socket by the packet's four numbers before it asks for a route (`tcp_v4_early_demux`), mark or no mark.
pub fn an_open_connection_goes_on() -> Result<()> {
    stage(|stage| {
        friend(stage)?;
        let words = "-A INPUT -d 203.0.113.10 -p tcp --dport 80";
        succeed(stage.world.net.command("iptables").args(words.split_whitespace()))?;
        let proxy = stage.start(&classic(10))?;
        check_eq!(stage.ask()?, Outcome::Intercepted, "before: {}", proxy.log());
        let before = stage.world.intake.count();
        let (file, mut upload) = upload(stage, &proxy)?;
        check_eq!(in_the_clear(stage)?, (0, 0), "packets at port 80");
        stage.tc(&format!("qdisc delete dev {} clsact", stage.device()))?;
        arrives(stage, &proxy, &mut upload, &file)?;
        let found = wait_state(&proxy, "active", BACK)?;
        check_eq!(found["reassertions"], json!(1), "{found:#}");
        check_eq!(stage.ask()?, Outcome::Intercepted, "afterwards: {}", proxy.log());
        check_eq!(in_the_clear(stage)?, (0, 0), "packets at port 80");
        check_eq!(stage.world.intake.count(), before + 2, "requests");
        // The counter counts.
        drop(proxy);
        stage.uninstall()?;
        check_eq!(stage.ask()?, Outcome::Clear, "without us");
        check!(in_the_clear(stage)?.0 > 0, "no packet was counted");
        Ok(())
    })
}

/// Switched off by command: what is open ends as it began, what is new goes its own way at once, and when the time for
/// draining is over nothing of ours is left.
pub fn switched_off_an_open_connection_goes_on() -> Result<()> {
    stage(|stage| {
        let mut config = stage.config(&classic(10));
        config["limits"]["drain_timeout"] = json!("8s");
        let left = stage.others()?;
        let proxy = Launch::new(stage.node()).config(&config)?.start()?;
        check_eq!(stage.ask()?, Outcome::Intercepted, "before: {}", proxy.log());
        let (file, mut upload) = upload(stage, &proxy)?;
        check!(
            proxy.cli(&["intercept", "off"])?.status.success(),
            "{}",
            proxy.log()
        );
        check_eq!(stage.ask()?, Outcome::Clear, "a new connection: {}", proxy.log());
        check!(
            upload.try_wait()?.is_none(),
            "the upload ended before it could be seen to go on"
        );
        arrives(stage, &proxy, &mut upload, &file)?;
        eventually("an empty chain", Duration::from_secs(20), || {
            let filters = stage.tc(&format!("filter show dev {} ingress", stage.device()))?;
            let rules = succeed(stage.node().command("ip").args(["rule", "show"]))?;
            Ok((!filters.contains("agent-fips-proxy") && !rules.contains("3536")).then_some(()))
        })?;
        check_eq!(stage.ask()?, Outcome::Clear, "after the drain: {}", proxy.log());
        check!(
            proxy.cli(&["intercept", "on"])?.status.success(),
            "{}",
            proxy.log()
        );
        check_eq!(stage.ask()?, Outcome::Intercepted, "on again: {}", proxy.log());
        drop(proxy);
        stage.uninstall()?;
        check_eq!(stage.others()?, left, "left behind");
        Ok(())
    })
}

/// Another priority, another way and another mark at a reload, while requests run: none of them leaves in the clear, and an
/// open connection goes on.
pub fn a_reload_moves_the_classifier_without_a_gap() -> Result<()> {
    stage(|stage| {
        let mut proxy = stage.start(&classic(10))?;
        check_eq!(stage.ask()?, Outcome::Intercepted, "before: {}", proxy.log());
        for (intercept, status) in [
            (classic(4), ("priority", json!(4))),
            (
                json!({"classifier_attach": "tcx", "mark": {"value": 0x0010_0000, "mask": 0x00f0_0000}}),
                ("attached", json!("tcx")),
            ),
            (
                json!({"classifier_attach": "netlink", "classifier_priority": 4, "mark": {"value": 0x00e0_0000, "mask": 0x00f0_0000}}),
                ("attached", json!("netlink")),
            ),
        ] {
            let (file, mut upload) = upload(stage, &proxy)?;
            proxy.rewrite(&stage.config(&intercept))?;
            proxy.signal(Signal::SIGHUP)?;
            // Some of them before the reload, some within, some after.
            for _ in 0..20 {
                check_eq!(stage.ask()?, Outcome::Intercepted, "at a reload: {}", proxy.log());
            }
            eventually("the new place", Duration::from_secs(5), || {
                Ok((interface(&proxy)?[status.0] == status.1).then_some(()))
            })?;
            arrives(stage, &proxy, &mut upload, &file)?;
            let rules = succeed(stage.node().command("ip").args(["rule", "show"]))?;
            let ours = rules.lines().filter(|line| line.contains("lookup 3536")).count();
            check_eq!(ours, 1, "rules: {rules}");
        }
        check!(proxy.stop()?.success(), "{}", proxy.log());
        stage.uninstall().map(drop)
    })
}

/// However the proxy ends, what was meant for the intake reaches no other socket of the node that listens at its port, as the
/// one of an ingress does.
pub fn no_other_socket_gets_it() -> Result<()> {
    stage(|stage| {
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let stranger = stage.node().within(|| Ok(TcpListener::bind("[::]:80")?))?;
            stranger.set_nonblocking(true)?;
            let mut proxy = stage.start(&classic(10))?;
            check_eq!(stage.ask()?, Outcome::Intercepted, "before: {}", proxy.log());
            let clear = stage.world.plain.seen().len();
            let stop = stage.node().folder().join("stop");
            let script = format!(
                "while [ ! -e {} ]; do curl -s -o /dev/null --noproxy '*' -m 0.3 http://{VERSIONED}/x & sleep 0.01; done; wait",
                stop.display()
            );
            let before = stage.world.intake.count();
            let mut load = stage.pod.command("sh").args(["-c", &script]).spawn()?;
            let result = eventually("a load", Duration::from_secs(20), || {
                Ok((stage.world.intake.count() >= before + 10).then_some(()))
            })
            .and_then(|()| proxy.signal(signal))
            .and_then(|()| proxy.wait(Duration::from_secs(20)).map(drop));
            std::thread::sleep(Duration::from_secs(2));
            std::fs::write(&stop, "")?;
            check!(load.wait()?.success(), "the load failed");
            std::fs::remove_file(&stop)?;
            result?;
            let got = stranger.accept();
            check!(
                got.as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "after {signal}: another socket got a connection: {got:?}"
            );
            check_eq!(
                stage.world.plain.seen().len(),
                clear,
                "in the clear after {signal}"
            );
            stage.uninstall()?;
            // It is there to be reached.
            stage.node().within(|| Ok(TcpStream::connect("127.0.0.1:80")?))?;
            check!(stranger.accept().is_ok(), "the other socket hears nothing");
        }
        Ok(())
    })
}

/// Starts an upload of 8 MiB that takes three seconds; its connection is one that the classifier took.
fn upload(stage: &Stage, proxy: &Proxy) -> Result<(PathBuf, Child)> {
    let before = taken(proxy)?;
    let file = stage.node().folder().join("body");
    std::fs::write(&file, vec![b'x'; 8 << 20])?;
    let upload = stage
        .pod
        .command("curl")
        .args(["-sS", "-4", "--noproxy", "*", "--max-time", "20"])
        .args(["--limit-rate", "3M", "-H", &format!("DD-API-KEY: {API_KEY}")])
        .args(["-H", "Expect:", "--data-binary", &format!("@{}", file.display())])
        .arg(format!("http://{VERSIONED}/api/v2/series"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start curl")?;
    eventually("the upload's connection", Duration::from_secs(5), || {
        Ok((taken(proxy)? > before).then_some(()))
    })?;
    Ok((file, upload))
}

/// Waits for the upload's end: the intake has every byte of it.
fn arrives(stage: &Stage, proxy: &Proxy, upload: &mut Child, file: &Path) -> Result<()> {
    let status = eventually("the end of the upload", Duration::from_secs(20), || {
        Ok(upload.try_wait()?)
    })?;
    check!(status.success(), "the upload failed: {status}\n{}", proxy.log());
    let digest = sha256(&std::fs::read(file)?);
    let whole = stage
        .world
        .intake
        .seen()
        .iter()
        .any(|seen| seen.body_sha256 == digest);
    check!(whole, "the upload did not arrive whole");
    Ok(())
}

/// Connections that the classifier took.
fn taken(proxy: &Proxy) -> Result<u64> {
    let status = proxy.status()?;
    status["interception"]["counters"]["tc_taken_v4"]
        .as_u64()
        .with_context(|| format!("no counter in {status:#}"))
}
