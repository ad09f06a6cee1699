//! An Agent's own session, passed through: read, recorded, and cut below the policy.

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::intake::Peer;
use harness::proxy::Proxy;
use harness::world::{API_KEY, BYSTANDER, INTAKE4, Setup};
use harness::{check, check_eq, sha256};
use serde_json::{Value, json};

use super::Stage;
use super::clients::{API, body};

fn sessions(proxy: &Proxy<'_>) -> Result<Vec<Value>> {
    let status = proxy.status()?;
    Ok(status["https"]["sessions"].as_array().context("no list")?.clone())
}

fn own_ca(stage: &Stage) -> String {
    stage.world.host.folder().join("ca.pem").display().to_string()
}

/// Acceptance 3, second half: approved parameters, several shapes of handshake.
pub(super) fn within_the_policy_it_passes() -> Result<()> {
    let stage = Stage::new(Setup {
        http2: true,
        ..Setup::default()
    })?;
    let proxy = stage.start(&json!({"https": "passthrough"}))?;
    let (file, body) = body(&stage)?;
    let (ca, data) = (own_ca(&stage), format!("@{}", file.display()));
    let key = format!("DD-API-KEY: {API_KEY}");
    for (words, version, group) in [
        (&["--curves", "P-256"][..], "TLSv1.3", "secp256r1"),
        (&["--curves", "P-384"], "TLSv1.3", "secp384r1"),
        // The server asks for another share: HelloRetryRequest.
        (&["--curves", "X25519:P-256"], "TLSv1.3", "secp256r1"),
        (&["--tls-max", "1.2", "--curves", "P-256"], "TLSv1.2", "secp256r1"),
        (&["--http1.1", "--curves", "P-256"], "TLSv1.3", "secp256r1"),
    ] {
        let url = format!("https://{API}/api/v1/series");
        let usual = ["-4", "--cacert", &ca, "-H", &key, "--data-binary", &data, &url];
        let answer = curl(
            &stage.world.host,
            Some(&stage.agent),
            &[words, &usual[..]].concat(),
        )?;
        check_eq!(answer.status, 202, "{words:?}: {answer:?}\n{}", proxy.log());
        let seen = stage.world.intake.take().remove(0);
        check_eq!(seen.body_sha256, sha256(&body), "{words:?}: digest");
        let sessions = sessions(&proxy)?;
        check!(
            sessions.iter().any(|one| {
                one["decision"] == "passthrough"
                    && one["version"] == version
                    && one["group"] == group
                    && one["below"].is_null()
            }),
            "{words:?}: recorded as the Agent's own cryptography: {sessions:?}"
        );
    }
    check!(
        sessions(&proxy)?
            .iter()
            .all(|one| one["decision"] == "passthrough"),
        "nothing is ended here"
    );
    let line = proxy.connection_line(|line| line["decision"] == "passthrough")?;
    check_eq!(
        (&line["name"], &line["process"], &line["class"], &line["outcome"]),
        (&json!(API), &json!("curl"), &json!("tls"), &json!("ok")),
        "{line}"
    );
    Ok(())
}

/// Acceptance 3, first half: only ChaCha20, only X25519: cut under the default, recorded in any case.
pub(super) fn below_the_policy_it_is_cut() -> Result<()> {
    for (peer, below) in [(Peer::OnlyChaCha20, "suite"), (Peer::OnlyX25519, "group")] {
        let stage = Stage::new(Setup {
            peer,
            ..Setup::default()
        })?;
        let ca = own_ca(&stage);
        let (key, url) = (format!("DD-API-KEY: {API_KEY}"), format!("https://{API}/x"));
        let send = || {
            curl(
                &stage.world.host,
                Some(&stage.agent),
                &["-4", "--cacert", &ca, "-H", &key, "-d", "{}", &url],
            )
        };
        let proxy = stage.start(&json!({"https": "passthrough"}))?;
        let answer = send()?;
        check_eq!(
            (answer.status, answer.exit),
            (0, 35),
            "{peer:?}: {answer:?}\n{}",
            proxy.log()
        );
        check!(
            answer.error.contains("insufficient security"),
            "{peer:?}: the alert: {answer:?}"
        );
        check_eq!(stage.world.intake.count(), 0, "{peer:?}: requests");
        let line = proxy.connection_line(|line| line["decision"] == "passthrough")?;
        check_eq!(line["outcome"], json!("below_policy"), "{peer:?}: {line}");
        let error = line["error"].as_str().unwrap_or_default();
        check!(
            error.contains("below the policy") && error.contains("intercept.https_below_policy"),
            "{peer:?}: {line}"
        );
        let recorded = sessions(&proxy)?;
        check_eq!(recorded[0]["below"], json!(below), "{peer:?}: {recorded:?}");
        check_eq!(
            proxy
                .metrics()?
                .sum("agent_fips_proxy_client_tls_total", &[("policy", below)]),
            1.0,
            "{peer:?}: counted"
        );
        drop(proxy);
        let proxy = stage.start(&json!({"https": "passthrough", "https_below_policy": "record"}))?;
        let answer = send()?;
        check_eq!(answer.status, 202, "{peer:?}: {answer:?}\n{}", proxy.log());
        check_eq!(stage.world.intake.take().len(), 1, "{peer:?}");
        check_eq!(sessions(&proxy)?[0]["below"], json!(below), "{peer:?}: recorded");
        let shown = String::from_utf8(proxy.cli(&["status"])?.stdout)?;
        let told = shown.lines().find(|line| line.contains("BELOW THE POLICY"));
        println!("{}", told.context("status says so to people")?);
    }
    Ok(())
}

/// A stream that is no HTTP inside its TLS, on a port that is intercepted: never ended here, held to the policy.
pub(super) fn streams_are_never_terminated() -> Result<()> {
    let stage = Stage::new(Setup::default())?;
    let proxy = stage.start(&json!({"https": "terminate"}))?;
    let ca = own_ca(&stage);
    let name = "agent-intake.logs.ddog-gov.com";
    let connect = format!("{name}:443:{INTAKE4}");
    let answer = curl(
        &stage.world.host,
        Some(&stage.agent),
        &[
            "--resolve",
            &connect,
            "--curves",
            "P-256",
            "--cacert",
            &ca,
            &format!("https://{name}/x"),
        ],
    )?;
    // The intake has no such name in its certificate, so that curl sees the intake's own and refuses it.
    check!(answer.exit == 60 && answer.error.contains("name"), "{answer:?}");
    let line = proxy.connection_line(|line| line["name"] == name)?;
    check_eq!(line["decision"], json!("passthrough"), "{line}");
    Ok(())
}

/// A foreign name at the intake's address, in whatever cryptography.
pub(super) fn other_names_are_left_alone() -> Result<()> {
    let stage = Stage::new(Setup {
        peer: Peer::OnlyX25519,
        ..Setup::default()
    })?;
    let proxy = stage.start(&json!({"https": "terminate"}))?;
    let answer = curl(
        &stage.world.host,
        Some(&stage.agent),
        &["-4", "-k", &format!("https://{BYSTANDER}/x")],
    )?;
    check!(answer.status > 0, "it got an answer: {answer:?}\n{}", proxy.log());
    let seen = stage.world.intake.take().remove(0);
    check_eq!(
        (seen.session.sni.as_deref(), seen.session.group.as_str()),
        (Some(BYSTANDER), "X25519"),
        "the client's own session"
    );
    let line = proxy.connection_line(|line| line["name"] == BYSTANDER)?;
    check_eq!(line["decision"], json!("tunnel"), "{line}");
    check!(sessions(&proxy)?.is_empty(), "and is none of our business");
    Ok(())
}
