//! Clients that will not trust the local authority: never a silent loop of broken handshakes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::{curl, go_client};
use harness::proxy::Proxy;
use harness::world::{API_KEY, Setup};
use harness::{capture, check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Stage;
use super::clients::{API, body, call, clients};

const LINE: &str = "a client does not trust the local authority";

fn distrusting(proxy: &Proxy<'_>) -> Result<Vec<Value>> {
    let status = proxy.status()?;
    let list = status["https"]["distrusting"].as_array().context("no list")?;
    Ok(list.clone())
}

fn warnings(proxy: &Proxy<'_>) -> usize {
    proxy.log().matches(LINE).count()
}

fn line_of(comm: &str) -> String {
    format!("DISTRUSTS US   {comm} (pid ")
}

/// Every client without the variables: told once, with its name and process, counted, and forgotten when it trusts.
pub(super) fn named_once_and_until_they_trust() -> Result<()> {
    let stage = Stage::new(Setup::default())?;
    let environment = stage.authority.environment()?;
    let proxy = stage.start(&json!({}))?;
    let (file, _) = body(&stage)?;
    for client in clients(&file)?
        .iter()
        .filter(|client| client.name != "curl --http2")
    {
        if client.name == "datadog-api-client" {
            // The same program as the one before: nothing new to tell.
            continue;
        }
        let before = warnings(&proxy);
        for _ in 0..4 {
            let (good, said) = call(&stage, client, &[])?;
            check!(!good, "{} trusts it without being told: {said}", client.name);
        }
        check_eq!(stage.world.intake.count(), 0, "{}: a request came", client.name);
        let one = eventually("the client in status", Duration::from_secs(20), || {
            Ok(distrusting(&proxy)?
                .into_iter()
                .find(|one| one["process"]["name"] == client.comm))
        })?;
        check_eq!(one["name"], json!(API), "{}", client.name);
        check!(one["process"]["pid"].as_u64().is_some_and(|pid| pid > 1), "{one}");
        check!(one["handshakes"].as_u64().is_some_and(|n| n >= 3), "{one}");
        check_eq!(one["said"].is_object(), client.alerts, "{}: {one}", client.name);
        check_eq!(
            warnings(&proxy),
            before + 1,
            "{}: told once\n{}",
            client.name,
            proxy.log()
        );
        // What a person sees.
        let shown = String::from_utf8(proxy.cli(&["status"])?.stdout)?;
        check!(
            shown.contains(&line_of(client.comm)) && shown.contains(&format!("process:{}", client.comm)),
            "{}: {shown}",
            client.name
        );
        let tell: Vec<&str> = shown
            .lines()
            .skip_while(|line| !line.contains(&line_of(client.comm)))
            .take(2)
            .collect();
        println!("{}:\n{}", client.name, tell.join("\n"));
        let (good, said) = call(&stage, client, &environment)?;
        check!(good, "{} with the variables: {said}", client.name);
        stage.world.intake.take();
        check!(
            distrusting(&proxy)?
                .iter()
                .all(|one| one["process"]["name"] != client.comm),
            "{} trusts us now",
            client.name
        );
    }
    let metrics = proxy.metrics()?;
    let failures = "agent_fips_proxy_client_tls_failures_total";
    check!(
        metrics.sum(failures, &[("reason", "untrusted")]) >= 12.0,
        "untrusted handshakes are counted"
    );
    check_eq!(
        metrics.sum("agent_fips_proxy_distrusting_clients", &[]),
        0.0,
        "all of them trust us now"
    );
    Ok(())
}

/// Acceptance 8.
pub(super) fn compiled_in_roots_work_once_listed() -> Result<()> {
    let stage = Stage::new(Setup::default())?;
    let proxy = stage.start(&json!({}))?;
    let (file, body) = body(&stage)?;
    let own = stage.world.host.folder().join("ca.pem");
    let run = || -> Result<(bool, String)> {
        let mut command: Command = stage.world.host.command("env");
        command
            .args(["-i", &format!("KEY={API_KEY}")])
            .arg(go_client()?)
            .arg("own")
            .arg(&own)
            .arg(format!("https://{API}/api/v1/series"))
            .arg(&file);
        let output = capture(&mut stage.agent.wrap(&command))?;
        Ok((output.status.success(), String::from_utf8(output.stdout)?))
    };
    let (good, said) = run()?;
    check!(
        !good && said.contains("certificate"),
        "it should not trust us: {said}"
    );
    let listed = distrusting(&proxy)?;
    check!(
        listed
            .iter()
            .any(|one| one["process"]["name"] == "go-client" && one["name"] == API),
        "named in status before: {listed:?}"
    );
    for exception in [
        API.to_owned(),
        "*i.ddog-gov.com".to_owned(),
        "process:go-client".to_owned(),
    ] {
        proxy.rewrite(&stage.config(&json!({"https_passthrough_names": [exception]})))?;
        proxy.signal(Signal::SIGHUP)?;
        eventually("the listed client gets through", Duration::from_secs(30), || {
            let (good, _) = run()?;
            Ok(good.then_some(()))
        })?;
        let seen = stage.world.intake.take().pop().context("nothing came")?;
        check_eq!(
            (seen.body_sha256.as_str(), seen.host.as_str()),
            (harness::sha256(&body).as_str(), API),
            "{exception}"
        );
        let line =
            proxy.connection_line(|line| line["decision"] == "passthrough" && line["outcome"] == "ok")?;
        check_eq!(line["process"], json!("go-client"), "{exception}: {line}");
        // Others are terminated as before, unless their name is listed.
        let answer = curl(
            &stage.world.host,
            Some(&stage.agent),
            &[
                "--cacert",
                &own.display().to_string(),
                "https://process.ddog-gov.com/x",
            ],
        )?;
        check_eq!(
            answer.exit,
            60,
            "{exception}: curl still sees the local authority: {answer:?}"
        );
        // Back to where nobody is listed.
        proxy.rewrite(&stage.config(&json!({})))?;
        proxy.signal(Signal::SIGHUP)?;
        eventually("nobody is listed", Duration::from_secs(30), || {
            Ok((!run()?.0).then_some(()))
        })?;
        stage.world.intake.take();
    }
    Ok(())
}
