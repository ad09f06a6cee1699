//! PrivateLink: intake names and endpoints at private addresses.

use anyhow::Result;
use harness::cgroup::Cgroup;
use harness::world::{INTAKE4, SITE, VERSIONED, World};
use harness::{check, check_eq};
use serde_json::json;

use super::{Gateway, PRIVATE, all_names, ask, reload, request, start, until};

const ENDPOINT: &str = "vpce-0a1b2c.metrics.vpce.example.net";

/// Acceptance 6: with private DNS the intake's own names lead to the endpoint.
pub fn private_dns_needs_allow_private() -> Result<()> {
    let world = World::new()?;
    let gateway = Gateway::new(&world)?;
    world.host.set_names(&all_names(PRIVATE))?;
    let mut config = world.config();
    let proxy = start(&world, &config)?;
    for port in [9804, 9808] {
        let refused = ask(&world, port)?;
        check_eq!(refused.status, 503, "{refused:?}\n{}", proxy.log());
        check!(
            refused.body.contains("upstream.allow_private") && refused.body.contains("10.20.0.10"),
            "the refusal names key and address: {}",
            refused.body
        );
    }
    check_eq!(gateway.intake.connections(), 0, "connections without the key");

    config["upstream"]["allow_private"] = json!(["10.0.0.0/8"]);
    reload(&proxy, &config)?;
    until(&world, &proxy, |answer| answer.status == 202)?;
    let seen = gateway.intake.take().remove(0);
    let name = format!("metrics.agent.{SITE}");
    check_eq!(
        (seen.session.sni.as_deref(), seen.host.as_str(), seen.local.ip()),
        (Some(name.as_str()), name.as_str(), PRIVATE),
        "SNI, host and address"
    );
    check_eq!(seen.faults, Vec::<String>::new(), "faults");

    // A name that leads to both: the one that is allowed is used.
    config["upstream"]["allow_private"] = json!([]);
    let mut both = all_names(PRIVATE);
    both.extend(all_names(INTAKE4));
    world.host.set_names(&both)?;
    reload(&proxy, &config)?;
    until(&world, &proxy, |answer| {
        answer.status == 202 && world.intake.count() > 0
    })?;
    let before = gateway.intake.connections();
    check_eq!(ask(&world, 9805)?.status, 202, "another product\n{}", proxy.log());
    check_eq!(
        gateway.intake.connections(),
        before,
        "connections to what is not allowed"
    );
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}

/// An endpoint of one product, verified for the intake's name; another certificate there is refused.
pub fn an_endpoint_is_for_its_product() -> Result<()> {
    let world = World::new()?;
    let gateway = Gateway::new(&world)?;
    let mut names = all_names(INTAKE4);
    names.push((ENDPOINT.to_owned(), PRIVATE));
    world.host.set_names(&names)?;
    let mut config = world.config();
    config["upstream"]["endpoints"] = json!({"metrics": ENDPOINT});
    let proxy = start(&world, &config)?;
    let refused = ask(&world, 9804)?;
    check_eq!(refused.status, 503, "{refused:?}");
    check!(
        refused.body.contains("upstream.allow_private") && refused.body.contains(ENDPOINT),
        "the refusal names key and endpoint: {}",
        refused.body
    );
    config["upstream"]["allow_private"] = json!(["10.20.0.0/16"]);
    reload(&proxy, &config)?;
    until(&world, &proxy, |answer| answer.status == 202)?;
    let seen = gateway.intake.take().remove(0);
    check_eq!(
        (seen.session.sni.as_deref(), seen.host.as_str()),
        (
            Some(format!("metrics.agent.{SITE}").as_str()),
            format!("metrics.agent.{SITE}").as_str()
        ),
        "SNI and host keep the intake's name"
    );
    check_eq!(ask(&world, 9805)?.status, 202, "traces\n{}", proxy.log());
    check_eq!(
        (gateway.intake.count(), world.intake.count()),
        (0, 1),
        "traces go to their own address"
    );

    // Only the intake's name counts: a certificate for the endpoint's would not do, and neither does another's.
    config["upstream"]["endpoints"] = json!({"metrics": "198.51.100.1:443"});
    let other = harness::ca::Authority::new()?;
    let options = harness::intake::Options {
        addresses: vec![[198, 51, 100, 1].into()],
        port: 443,
        leaf: other.leaf(&[format!("metrics.agent.{SITE}")], harness::ca::Fault::None)?,
        peer: harness::intake::Peer::Modern,
        http2: false,
        api_key: None,
    };
    let stranger = harness::intake::Intake::start(Some(&world.net), options)?;
    reload(&proxy, &config)?;
    let refused = until(&world, &proxy, |answer| answer.status == 502)?;
    check!(refused.body.contains("TLS with"), "{}", refused.body);
    check_eq!(stranger.count(), 0, "requests at a stranger");
    Ok(())
}

/// The Agent has resolved the name itself: its original address is private.
pub fn intercepted_for_a_private_address() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let gateway = Gateway::new(&world)?;
    world.host.set_names(&all_names(PRIVATE))?;
    let mut config = world.intercepting(&agent);
    let url = format!("http://{VERSIONED}/api/v2/series");
    {
        let proxy = start(&world, &config)?;
        let refused = request(&world, Some(&agent), &url)?;
        check_eq!(refused.status, 503, "{refused:?}\n{}", proxy.log());
        check!(
            refused.body.contains("upstream.allow_private")
                && refused.body.contains("meant for 10.20.0.10")
                && refused.body.contains(VERSIONED),
            "{}",
            refused.body
        );
        // Not even when the host's own resolver knows a public address: that would lead past the private network.
        world.host.set_names(&all_names(INTAKE4))?;
        let key = format!("DD-API-KEY: {}", harness::world::API_KEY);
        let pinned = format!("{VERSIONED}:80:{PRIVATE}");
        let refused = harness::agent::curl(
            &world.host,
            Some(&agent),
            &["-H", &key, "--resolve", &pinned, &url],
        )?;
        check_eq!(refused.status, 503, "{refused:?}\n{}", proxy.log());
        check_eq!(
            (gateway.intake.connections(), world.intake.connections()),
            (0, 0),
            "connections"
        );
    }
    world.host.set_names(&all_names(PRIVATE))?;
    config["upstream"]["allow_private"] = json!(["10.0.0.0/8"]);
    let proxy = start(&world, &config)?;
    let answer = request(&world, Some(&agent), &url)?;
    check_eq!(
        (answer.status, answer.peer.as_str()),
        (202, "10.20.0.10 80"),
        "{answer:?}\n{}",
        proxy.log()
    );
    let seen = gateway.intake.take().remove(0);
    check_eq!(
        (seen.session.sni.as_deref(), seen.local.to_string().as_str()),
        (Some(VERSIONED), "10.20.0.10:443"),
        "SNI and address"
    );
    check_eq!(seen.faults, Vec::<String>::new(), "faults");
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}

/// The endpoint is the operator's word on where to go, and wins over what the Agent resolved.
pub fn intercepted_with_an_endpoint() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let gateway = Gateway::new(&world)?;
    let mut names = all_names(INTAKE4);
    names.push((ENDPOINT.to_owned(), PRIVATE));
    world.host.set_names(&names)?;
    let mut config = world.intercepting(&agent);
    config["upstream"]["endpoints"] = json!({"metrics": ENDPOINT});
    config["upstream"]["allow_private"] = json!(["10.20.0.10"]);
    let proxy = start(&world, &config)?;
    let answer = request(&world, Some(&agent), &format!("http://{VERSIONED}/api/v2/series"))?;
    check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    check_eq!(
        answer.peer,
        format!("{INTAKE4} 80"),
        "the peer that the Agent sees"
    );
    let traces = request(
        &world,
        Some(&agent),
        &format!("http://trace.agent.{SITE}/api/v0.2/traces"),
    )?;
    check_eq!(traces.status, 202, "{traces:?}");
    check_eq!(
        (gateway.intake.count(), world.intake.count()),
        (1, 1),
        "metrics at the endpoint, traces where they were meant for"
    );
    check_eq!(
        gateway.intake.take()[0].session.sni.as_deref(),
        Some(VERSIONED),
        "SNI"
    );
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}
