//! Requests of an Agent's pod leave through TLS with the pod's own address; everything else is as without us.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use harness::agent::{ask, curl};
use harness::cni::{Node, Plugin, Pod, Style};
use harness::local_ca::LocalAuthority;
use harness::proxy::Proxy;
use harness::world::{API_KEY, BYSTANDER, ELSEWHERE, INTAKE4, INTAKE6, VERSIONED, World};
use harness::{check, check_eq};
use serde_json::{Value, json};

use crate::stage::{config, pair};

pub fn ptp_by_cgroup() -> Result<()> {
    pods(Plugin::Ptp, Style::Systemd, "cgroup", &json!({}))
}

pub fn bridge_by_cgroup() -> Result<()> {
    pods(Plugin::Bridge, Style::Cgroupfs, "cgroup", &json!({}))
}

pub fn ptp_by_tc() -> Result<()> {
    pods(Plugin::Ptp, Style::Cgroupfs, "tc", &json!({}))
}

pub fn bridge_by_tc() -> Result<()> {
    pods(Plugin::Bridge, Style::Systemd, "tc", &json!({}))
}

/// As on a kernel without TCX.
pub fn ptp_by_classic_filter() -> Result<()> {
    pods(
        Plugin::Ptp,
        Style::Systemd,
        "tc",
        &json!({"classifier_attach": "netlink", "classifier_priority": 4}),
    )
}

/// Acceptance: both families of an Agent's pod through TLS, intact, from the pod's own address; the other pod, other names
/// and other addresses untouched, byte for byte and from their own address.
fn pods(plugin: Plugin, style: Style, datapath: &str, extra: &Value) -> Result<()> {
    let world = World::new()?;
    let node = Node::new(&world, plugin, false, style)?;
    let (agent, other) = pair(&node)?;
    let mut settings = config(&world, &[&agent], datapath);
    for (key, value) in extra.as_object().into_iter().flatten() {
        settings["intercept"][key] = value.clone();
    }
    let authority = LocalAuthority::new()?;
    settings["ca"] = json!({"dir": authority.dir()});
    // What the other pod's requests look like without us.
    let before = clear_bytes(&world, &other)?;
    let proxy = world.start(&settings)?;
    let status = proxy.status()?;
    let found = &status["interception"]["agents"][0];
    check_eq!(found["datapath"], json!(datapath), "{status:#}");
    for (option, address, source) in [
        ("-4", INTAKE4, agent.network.v4),
        ("-6", INTAKE6, agent.network.v6),
    ] {
        request(&world, &proxy, &agent, option, datapath)?;
        let seen = world.intake.take().pop().context("nothing at the intake")?;
        check_eq!(
            (seen.local.ip(), seen.peer.ip()),
            (address, source),
            "{option}: where the connection went and came from"
        );
    }
    https(&world, &proxy, &agent, &authority, datapath)?;
    bystanders(&world, &agent)?;
    check_eq!(clear_bytes(&world, &other)?, before, "the other pod's bytes");
    check!(
        world.leaks().iter().all(|leak| leak.contains("other-pod")),
        "{:?}",
        world.leaks()
    );
    Ok(())
}

/// One request with a body, checked from end to end.
pub fn request(world: &World, proxy: &Proxy, pod: &Pod, option: &str, via: &str) -> Result<()> {
    let body: Vec<u8> = (0..300_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let file = world.host.folder().join("body");
    std::fs::write(&file, &body)?;
    let data = format!("@{}", file.display());
    let url = format!("http://{VERSIONED}/api/v2/series");
    let words = [option, "--data-binary", &data, &url];
    let answer = ask(&pod.network.host, Some(&pod.cgroup), &words)?;
    check_eq!(answer.status, 202, "{option}: {answer:?}\n{}", proxy.log());
    let address = if option == "-4" { INTAKE4 } else { INTAKE6 };
    check_eq!(
        answer.peer,
        format!("{address} 80"),
        "the peer that the Agent sees"
    );
    let seen = world.intake.seen().pop().context("nothing at the intake")?;
    check_eq!(seen.body_sha256, harness::sha256(&body), "digest");
    check_eq!(seen.faults, Vec::<String>::new(), "faults");
    let original = SocketAddr::new(address, 80).to_string();
    let line = proxy.access_line(|line| line["original_dst"] == original)?;
    check_eq!(
        (&line["via"], &line["outcome"]),
        (&json!(via), &json!("ok")),
        "{line}"
    );
    Ok(())
}

/// A stock Agent in a pod: its HTTPS ends here, and who does not trust us is named as far as the datapath tells.
fn https(world: &World, proxy: &Proxy, pod: &Pod, authority: &LocalAuthority, via: &str) -> Result<()> {
    let (ca, key) = (
        authority.certificate()?.display().to_string(),
        format!("DD-API-KEY: {API_KEY}"),
    );
    let url = format!("https://{VERSIONED}/api/v2/series");
    for (option, address, source, version) in [
        ("-4", INTAKE4, pod.network.v4, "--http2"),
        ("-6", INTAKE6, pod.network.v6, "--http1.1"),
    ] {
        let words = [option, version, "--cacert", &ca, "-H", &key, "-d", "{}", &url];
        let answer = curl(&pod.network.host, Some(&pod.cgroup), &words)?;
        check_eq!(answer.status, 202, "{option}: {answer:?}\n{}", proxy.log());
        check_eq!(
            answer.peer,
            format!("{address} 443"),
            "the peer that the Agent sees"
        );
        let seen = world.intake.take().pop().context("nothing at the intake")?;
        check_eq!(
            (seen.local.ip(), seen.peer.ip(), seen.host.as_str()),
            (address, source, VERSIONED),
            "{option}: where it went and came from"
        );
        check_eq!(seen.faults, Vec::<String>::new(), "faults");
    }
    let words = ["-4", "-H", &key, "-d", "{}", &url];
    let answer = curl(&pod.network.host, Some(&pod.cgroup), &words)?;
    check_eq!(answer.exit, 60, "curl without the authority: {answer:?}");
    let status = proxy.status()?;
    let one = &status["https"]["distrusting"][0];
    check_eq!(one["name"], json!(VERSIONED), "{}", status["https"]);
    check!(
        one["network"].as_u64().is_some_and(|network| network > 0),
        "{one}"
    );
    let process = if via == "cgroup" {
        json!("curl")
    } else {
        json!(null)
    };
    check_eq!(one["process"]["name"], process, "{one}");
    let shown = String::from_utf8(proxy.cli(&["status"])?.stdout)?;
    let told = shown.lines().find(|line| line.contains("DISTRUSTS US"));
    let told = told.context("not told to people")?;
    println!("{told}");
    check!(told.contains(pod.above.inside()), "it says whose it is: {told}");
    Ok(())
}

/// Other names at the intake's addresses, and other addresses, from the Agent's pod.
fn bystanders(world: &World, agent: &Pod) -> Result<()> {
    for (option, source) in [("-4", agent.network.v4), ("-6", agent.network.v6)] {
        let url = format!("http://{BYSTANDER}/x?y=1");
        let answer = curl(&agent.network.host, Some(&agent.cgroup), &[option, &url])?;
        check_eq!(
            (answer.status, answer.body.as_str()),
            (200, "plain"),
            "{option}: {answer:?}"
        );
        let clear = world.plain.seen().pop().context("nothing arrived")?;
        check_eq!(clear.peer.ip(), source, "a tunnel starts in the pod");
    }
    let url = format!("http://{ELSEWHERE}/elsewhere");
    let answer = curl(&agent.network.host, Some(&agent.cgroup), &[&url])?;
    check_eq!(
        (answer.status, answer.body.as_str()),
        (200, "plain"),
        "{answer:?}"
    );
    let clear = world.plain.seen().pop().context("nothing arrived")?;
    check_eq!(
        (clear.local.ip(), clear.peer.ip()),
        (ELSEWHERE, agent.network.v4),
        "another address, from the pod's own"
    );
    Ok(())
}

/// Bytes and source of requests of a pod that nobody selected, to the intake's own addresses and names.
fn clear_bytes(world: &World, pod: &Pod) -> Result<Vec<(SocketAddr, String, String)>> {
    let mut all = Vec::new();
    for option in ["-4", "-6"] {
        let url = format!("http://{VERSIONED}/other-pod");
        let answer = curl(&pod.network.host, Some(&pod.cgroup), &[option, &url])?;
        check_eq!(
            (answer.status, answer.body.as_str()),
            (200, "plain"),
            "{option}: {answer:?}"
        );
        let clear = world.plain.seen().pop().context("nothing arrived")?;
        all.push((
            clear.local,
            clear.peer.ip().to_string(),
            String::from_utf8_lossy(&clear.bytes).into_owned(),
        ));
    }
    Ok(all)
}
