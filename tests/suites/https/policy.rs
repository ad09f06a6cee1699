//! `intercept.https`: what each word does, and what is not relayed at all.

use std::time::Duration;

use anyhow::Result;
use harness::agent::curl;
use harness::proxy::Launch;
use harness::world::{API_KEY, Setup};
use harness::{check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use super::Stage;
use super::clients::API;

pub(super) fn refuse_says_so() -> Result<()> {
    let stage = Stage::new(Setup::default())?;
    let proxy = stage.start(&json!({"https": "refuse"}))?;
    let answer = curl(
        &stage.world.host,
        Some(&stage.agent),
        &["-4", "-k", &format!("https://{API}/x")],
    )?;
    check!(
        answer.exit == 35 && answer.error.contains("access denied"),
        "an alert: {answer:?}"
    );
    let line = proxy.connection_line(|line| line["name"] == API)?;
    check_eq!(
        (&line["decision"], &line["outcome"]),
        (&json!("refuse"), &json!("https_refused")),
        "{line}"
    );
    check!(
        proxy.log().contains("intercept.https is refuse"),
        "the log names the setting"
    );
    check_eq!(stage.world.intake.count(), 0, "requests");
    check!(stage.world.intake.refused().is_empty(), "not even a connection");
    // What is not HTTPS goes on.
    let key = format!("DD-API-KEY: {API_KEY}");
    let answer = curl(
        &stage.world.host,
        Some(&stage.agent),
        &["-4", "-H", &key, "-d", "{}", &format!("http://{API}/x")],
    )?;
    check_eq!(answer.status, 202, "{answer:?}");
    Ok(())
}

/// Without an authority sessions pass; `ca init` and a reload, and they end here; the Agent that trusts it notices nothing.
pub(super) fn auto_follows_the_authority() -> Result<()> {
    let mut stage = Stage::new(Setup::default())?;
    stage.authority = harness::local_ca::LocalAuthority::none()?;
    let proxy = stage.start(&json!({}))?;
    check_eq!(
        proxy.status()?["https"]["handling"],
        json!("passthrough"),
        "without an authority"
    );
    stage.authority.good(&["init"])?;
    proxy.signal(Signal::SIGHUP)?;
    eventually("the authority is used", Duration::from_secs(30), || {
        Ok((proxy.status()?["https"]["handling"] == "terminate").then_some(()))
    })?;
    let ca = stage.authority.certificate()?.display().to_string();
    let key = format!("DD-API-KEY: {API_KEY}");
    let answer = curl(
        &stage.world.host,
        Some(&stage.agent),
        &[
            "--cacert",
            &ca,
            "-H",
            &key,
            "-d",
            "{}",
            &format!("https://{API}/x"),
        ],
    )?;
    check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    Ok(())
}

pub(super) fn terminate_makes_an_authority() -> Result<()> {
    let mut stage = Stage::new(Setup::default())?;
    stage.authority = harness::local_ca::LocalAuthority::none()?;
    let proxy = stage.start(&json!({"https": "terminate"}))?;
    let status = proxy.status()?;
    check_eq!(status["https"]["handling"], json!("terminate"), "{status}");
    let id = stage.authority.id()?;
    check!(
        status["authority"].to_string().contains(&id),
        "the one that was made, {id}: {status}"
    );
    Ok(())
}

pub(super) fn an_unfit_authority_stops_the_start() -> Result<()> {
    let stage = Stage::new(Setup::default())?;
    // A key that others may read.
    let key = stage.authority.key()?;
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let output = Launch::new(&stage.world.host)
        .config(&stage.config(&json!({"https": "terminate"})))?
        .output()?;
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    check_eq!(output.status.code(), Some(78), "{said}");
    check!(
        said.contains("intercept.https is terminate") && said.contains(&key.display().to_string()),
        "it names the setting and the file: {said}"
    );
    Ok(())
}

/// WebSocket, HTTP/2 in the clear, a protocol of somebody's own in ALPN: refused in a way that each understands, and counted.
pub(super) fn what_is_not_relayed_is_counted() -> Result<()> {
    let stage = Stage::new(Setup::default())?;
    let proxy = stage.start(&json!({}))?;
    let ca = stage.authority.certificate()?.display().to_string();
    let config = "config.ddog-gov.com";
    let upgrade = [
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
        "-H",
        "Sec-WebSocket-Version: 13",
    ];
    let url = format!("https://{config}/api/v0.2/echo-test");
    let words = ["-4", "--http1.1", "--cacert", &ca, &url];
    let answer = curl(
        &stage.world.host,
        Some(&stage.agent),
        &[&upgrade[..], &words[..]].concat(),
    )?;
    check_eq!(answer.status, 400, "WebSocket: {answer:?}\n{}", proxy.log());
    let url = format!("http://{config}/x");
    let answer = curl(
        &stage.world.host,
        Some(&stage.agent),
        &["-4", "--http2-prior-knowledge", &url],
    )?;
    check!(
        answer.status == 0 && answer.exit != 0,
        "HTTP/2 in the clear: {answer:?}"
    );
    check!(stage.world.leaks().is_empty(), "leaks: {:?}", stage.world.leaks());
    let connections = "agent_fips_proxy_connections_total";
    eventually("both are counted", Duration::from_secs(20), || {
        let counted = proxy.metrics()?.sum(connections, &[("outcome", "unsupported")]);
        Ok((counted >= 2.0).then_some(()))
    })?;
    check_eq!(stage.world.intake.count(), 0, "requests");
    Ok(())
}
