//! Whom we trust beyond the roots: revocation lists, pins, and gateways that ask who we are.

use anyhow::{Context, Result};
use harness::ca::Authority;
use harness::world::World;
use harness::{check, check_eq};
use serde_json::{Value, json};

use super::{Gateway, PRIVATE, all_names, ask, file, start, until};

/// A world whose only intake is the gateway.
fn stage(world: &World) -> Result<(Gateway, Value)> {
    let gateway = Gateway::new(world)?;
    Ok((gateway, config(world)?))
}

fn config(world: &World) -> Result<Value> {
    world.host.set_names(&all_names(PRIVATE))?;
    let mut config = world.config();
    config["upstream"]["allow_private"] = json!(["10.0.0.0/8"]);
    Ok(config)
}

pub fn a_revoked_certificate_is_refused_without_a_restart() -> Result<()> {
    let world = World::new()?;
    let (gateway, mut config) = stage(&world)?;
    let crls = world.host.folder().join("crls");
    std::fs::create_dir(&crls)?;
    file(&world, "crls/site.crl", &world.authority.crl(&[], 2090)?, 0o644)?;
    config["upstream"]["crl_dir"] = json!(crls);
    config["upstream"]["crl_policy"] = json!("hard_fail");
    let proxy = start(&world, &config)?;
    let worker = proxy.worker()?;
    check_eq!(ask(&world, 9804)?.status, 202, "before\n{}", proxy.log());
    let status = proxy.status()?;
    check_eq!(
        (
            &status["trust"]["crls"]["count"],
            &status["trust"]["crls"]["next_update"]
        ),
        (&json!(1), &json!("2090-01-01T00:00:00Z")),
        "status"
    );
    check!(
        proxy
            .metrics()?
            .sum("agent_fips_proxy_crl_next_update_timestamp_seconds", &[])
            > 3.0e9,
        "the next update is a metric"
    );

    file(
        &world,
        "crls/site.crl",
        &world.authority.crl(&[&gateway.serial], 2090)?,
        0o644,
    )?;
    let refused = until(&world, &proxy, |answer| answer.status == 502)?;
    check!(refused.body.contains("has been revoked"), "{}", refused.body);
    let count = gateway.intake.count();
    check_eq!(ask(&world, 9804)?.status, 502, "afterwards");
    check_eq!(gateway.intake.count(), count, "requests at a revoked intake");
    let line = proxy.access_line(|line| line["status"] == 502)?;
    check_eq!(line["outcome"], json!("upstream_tls"), "{line}");

    file(&world, "crls/site.crl", &world.authority.crl(&[], 2091)?, 0o644)?;
    until(&world, &proxy, |answer| answer.status == 202)?;
    // Nothing covers the certificate any more.
    std::fs::remove_file(crls.join("site.crl"))?;
    let refused = until(&world, &proxy, |answer| answer.status == 502)?;
    check!(
        refused.body.contains("upstream.crl_policy is hard_fail"),
        "{}",
        refused.body
    );
    check_eq!(proxy.worker()?, worker, "the worker is the same");
    Ok(())
}

pub fn an_expired_list_is_an_alarm() -> Result<()> {
    let world = World::new()?;
    let (gateway, mut config) = stage(&world)?;
    std::fs::create_dir(world.host.folder().join("crls"))?;
    file(&world, "crls/site.crl", &world.authority.crl(&[], 2025)?, 0o644)?;
    file(&world, "crls/half.crl", "-----BEGIN X509 CRL-----\nMIIB", 0o644)?;
    config["upstream"]["crl_dir"] = json!(world.host.folder().join("crls"));
    {
        let proxy = start(&world, &config)?;
        check_eq!(ask(&world, 9804)?.status, 202, "soft_fail\n{}", proxy.log());
        harness::eventually("the alarms", std::time::Duration::from_secs(10), || {
            let status = proxy.status()?;
            let alarms = status["trust"]["alarms"].to_string();
            Ok(
                (alarms.contains("site.crl (since 2025-01-01T00:00:00Z) is expired")
                    && alarms.contains("half.crl"))
                .then_some(()),
            )
        })
        .with_context(|| proxy.log())?;
        let metrics = proxy.metrics()?;
        check_eq!(
            (
                metrics.sum("agent_fips_proxy_crls_expired", &[]),
                metrics.sum("agent_fips_proxy_crls_unusable", &[]),
                metrics.sum("agent_fips_proxy_trust_alarms", &[])
            ),
            (1.0, 1.0, 2.0),
            "metrics"
        );
        check!(
            proxy.log().contains("is expired") && proxy.get("/")?.1.contains("is expired"),
            "log and page say it: {}",
            proxy.log()
        );
        let text = String::from_utf8_lossy(&proxy.cli(&["status"])?.stdout).into_owned();
        check!(text.contains("ALARM"), "{text}");
    }
    gateway.intake.take();
    config["upstream"]["crl_policy"] = json!("hard_fail");
    let proxy = start(&world, &config)?;
    let refused = ask(&world, 9804)?;
    check_eq!(refused.status, 502, "hard_fail: {refused:?}");
    check!(refused.body.contains("is expired"), "{}", refused.body);
    check_eq!(gateway.intake.count(), 0, "requests\n{}", proxy.log());
    Ok(())
}

pub fn a_wrong_pin_sends_nothing() -> Result<()> {
    let world = World::new()?;
    let (gateway, mut config) = stage(&world)?;
    let others = [
        "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ];
    config["upstream"]["pins"] = json!(others);
    {
        let proxy = start(&world, &config)?;
        let refused = ask(&world, 9804)?;
        check_eq!(refused.status, 502, "{refused:?}");
        check!(refused.body.contains("upstream.pins"), "{}", refused.body);
        check_eq!(gateway.intake.count(), 0, "requests\n{}", proxy.log());
        let line = proxy.access_line(|line| line["status"] == 502)?;
        check_eq!(line["outcome"], json!("upstream_tls"), "{line}");
    }
    config["upstream"]["pins"] = json!([others[0], gateway.pin]);
    let proxy = start(&world, &config)?;
    let answer = ask(&world, 9804)?;
    check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    let line = proxy.access_line(|line| line["status"] == 202)?;
    check_eq!(line["tls_pin"], json!(gateway.pin), "the pin is evidence");
    let status = proxy.status()?;
    check_eq!(
        (&status["upstream_sessions"][0]["pin"], &status["trust"]["alarms"]),
        (&json!(gateway.pin), &json!([])),
        "status"
    );
    Ok(())
}

pub fn a_gateway_that_asks_who_we_are() -> Result<()> {
    let world = World::new()?;
    let clients = Authority::new()?;
    let mut config = config(&world)?;
    // HTTP/2 keeps of an error only the words.
    for http2 in [true, false] {
        let gateway = Gateway::asking(&world, Some(clients.der().clone()), http2)?;
        let proxy = start(&world, &config)?;
        let refused = ask(&world, 9804)?;
        check_eq!(refused.status, 502, "{refused:?}");
        check!(
            refused.body.contains("wants a client certificate")
                && refused.body.contains("set upstream.client_certificate_file"),
            "{}\n{}",
            refused.body,
            proxy.log()
        );
        let line = proxy.access_line(|line| line["status"] == 502)?;
        check_eq!(line["outcome"], json!("upstream_tls"), "{line}");
        check_eq!(gateway.intake.count(), 0, "requests");
    }
    let gateway = Gateway::asking(&world, Some(clients.der().clone()), false)?;
    let (certificate, key) = clients.client()?;
    config["upstream"]["client_certificate_file"] = json!(file(&world, "us.pem", &certificate, 0o644)?);
    // Root's own file, which the worker could not open by itself.
    config["upstream"]["client_key_file"] = json!(file(&world, "us.key", &key, 0o600)?);
    let proxy = start(&world, &config)?;
    for _ in 0..3 {
        let answer = ask(&world, 9804)?;
        check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    }
    check!(
        gateway
            .intake
            .take()
            .iter()
            .all(|seen| seen.session.client_certificate),
        "the gateway saw our certificate"
    );
    let line = proxy.access_line(|line| line["status"] == 202)?;
    check_eq!(line["tls_client_certificate"], json!(true), "access line");
    let status = proxy.status()?;
    check_eq!(
        (
            &status["upstream_sessions"][0]["client_certificate"],
            &status["trust"]["client_certificate"]["not_after"]
        ),
        (&json!(true), &json!("2089-01-01T00:00:00Z")),
        "status"
    );
    // Another key under the same name, then one that others can read: refused with the reason, the old one serves on.
    file(&world, "us.key", &clients.client()?.1, 0o600)?;
    proxy.signal(nix::sys::signal::Signal::SIGHUP)?;
    harness::eventually("the refusal", std::time::Duration::from_secs(20), || {
        Ok(proxy
            .log()
            .contains("is not the key of upstream.client_certificate_file")
            .then_some(()))
    })
    .with_context(|| proxy.log())?;
    check_eq!(ask(&world, 9804)?.status, 202, "the old one serves on");
    check!(
        !proxy.log().contains(&key[60..90]),
        "a piece of the key is in the log"
    );
    Ok(())
}
