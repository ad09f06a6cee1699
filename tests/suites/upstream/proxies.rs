//! Sites whose hosts reach the intake only through a proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use harness::ca::{Authority, Fault};
use harness::cgroup::Cgroup;
use harness::forward::{Forward, Rules};
use harness::world::{INTAKE4, SITE, VERSIONED, World};
use harness::{check, check_eq};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Gateway, PRIVATE, all_names, ask, file, request, start, until};

/// The proxy's own address: private, as usual, and in no `upstream.allow_private`.
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 30, 0, 1)), 3128);
const NAME: &str = "proxy.example.net";

/// A world whose host knows the proxy's name and no intake's.
fn behind(world: &World, to: IpAddr, leaf: Option<harness::ca::Leaf>) -> Result<Forward> {
    world.net.ip(&format!("address add {}/32 dev lo", PROXY.ip()))?;
    world.host.set_names(&[(NAME.to_owned(), PROXY.ip())])?;
    Forward::start(&world.net, PROXY, SocketAddr::new(to, 443), leaf)
}

fn config(world: &World, scheme: &str) -> Value {
    let mut config = world.config();
    config["upstream"]["proxy"] = json!({"url": format!("{scheme}://{NAME}:3128")});
    config
}

/// What every good way has in common: one tunnel for all requests, the intake's name in it, evidence.
fn goes_through(world: &World, proxy: &harness::proxy::Proxy<'_>, forward: &Forward) -> Result<()> {
    let name = format!("metrics.agent.{SITE}");
    for _ in 0..10 {
        let answer = ask(world, 9804)?;
        check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    }
    check_eq!(ask(world, 9808)?.status, 202, "logs\n{}", proxy.log());
    let asked = forward.take();
    check!(
        (2..=3).contains(&asked.len()),
        "a tunnel for each intake and data thread: {asked:?}"
    );
    check_eq!(asked[0].authority, format!("{name}:443"), "the tunnel asked for");
    for asked in &asked {
        check_eq!(
            asked.faults,
            Vec::<String>::new(),
            "faults of {}",
            asked.authority
        );
    }
    check!(forward.strange().is_empty(), "{:?}", forward.strange());
    let seen = world.intake.take();
    check_eq!(seen.len(), 11, "requests");
    check!(
        seen.iter()
            .all(|seen| seen.faults.is_empty() && seen.header("proxy-authorization").is_none()),
        "{seen:?}"
    );
    check_eq!(seen[0].session.sni.as_deref(), Some(name.as_str()), "SNI");
    let line = proxy.access_line(|line| line["product"] == "metrics")?;
    let authority = json!(format!("{NAME}:3128"));
    check_eq!(
        (&line["upstream_proxy"], &line["tls_version"]),
        (&authority, &json!("TLSv1.3")),
        "access line"
    );
    let status = proxy.status()?;
    check!(
        status["upstream_sessions"]
            .as_array()
            .is_some_and(|sessions| !sessions.is_empty() && sessions.iter().all(|s| s["proxy"] == authority)),
        "{status}"
    );
    check!(
        proxy.metrics()?.sum(
            "agent_fips_proxy_upstream_sessions_total",
            &[("proxy", "proxy.example.net:3128")]
        ) >= 2.0,
        "sessions are counted by their way"
    );
    Ok(())
}

pub fn through_a_proxy() -> Result<()> {
    let world = World::new()?;
    let forward = behind(&world, INTAKE4, None)?;
    let proxy = start(&world, &config(&world, "http"))?;
    goes_through(&world, &proxy, &forward)?;
    let (_, page) = proxy.get("/")?;
    check!(page.contains("through proxy.example.net:3128"), "{page}");
    Ok(())
}

/// TLS within TLS, and the proxy's own certificate counts.
pub fn through_a_proxy_that_speaks_tls() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::new()?;
    let leaf = authority.leaf(&[NAME.to_owned()], Fault::None)?;
    let forward = behind(&world, INTAKE4, Some(leaf))?;
    let mut config = config(&world, "https");
    config["upstream"]["proxy"]["ca_file"] = json!(file(&world, "proxy-ca.pem", authority.pem(), 0o644)?);
    {
        let proxy = start(&world, &config)?;
        goes_through(&world, &proxy, &forward)?;
    }
    // The intake's roots are not the proxy's.
    config["upstream"]["proxy"]["ca_file"] = config["upstream"]["ca_file"].clone();
    let proxy = start(&world, &config)?;
    let refused = ask(&world, 9804)?;
    check_eq!(refused.status, 502, "{refused:?}");
    check!(
        refused.body.contains("proxy.example.net:3128")
            && refused.body.contains("TLS with `proxy.example.net` failed"),
        "{}",
        refused.body
    );
    check_eq!(forward.take().len(), 0, "tunnels\n{}", proxy.log());
    Ok(())
}

pub fn credentials_follow_their_file() -> Result<()> {
    let world = World::new()?;
    let forward = behind(&world, INTAKE4, None)?;
    forward.set_rules(Rules {
        credentials: Some("agent:right-61be".to_owned()),
        refuse: None,
    });
    let mut config = config(&world, "http");
    let proxy = start(&world, &config)?;
    let refused = ask(&world, 9804)?;
    check_eq!(refused.status, 502, "{refused:?}");
    check!(
        refused.body.contains("set upstream.proxy.credentials_file"),
        "{}",
        refused.body
    );
    drop(proxy);

    // Root's own file, which the worker could not open by itself.
    let path = file(&world, "credentials", "agent:wrong-77aa\n", 0o600)?;
    config["upstream"]["proxy"]["credentials_file"] = json!(path);
    let proxy = start(&world, &config)?;
    let refused = ask(&world, 9804)?;
    check_eq!(refused.status, 502, "{refused:?}");
    check!(
        refused
            .body
            .contains("refuses the credentials of upstream.proxy.credentials_file"),
        "{}",
        refused.body
    );
    file(&world, "credentials", "agent:right-61be\n", 0o600)?;
    // The configuration is the same; the file is not.
    proxy.signal(Signal::SIGHUP)?;
    until(&world, &proxy, |answer| answer.status == 202)?;
    for secret in ["wrong-77aa", "right-61be"] {
        check!(!proxy.log().contains(secret), "{secret} in the log");
    }

    // Readable by others: refused before anything starts, and a reload keeps what it has.
    file(&world, "credentials", "agent:right-61be\n", 0o644)?;
    let check = proxy.cli(&[
        "config",
        "check",
        "--config",
        &world.host.folder().join("config.yaml").display().to_string(),
    ])?;
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    check_eq!(check.status.code(), Some(78), "exit code of config check: {told}");
    check!(
        told.contains("upstream.proxy.credentials_file") && told.contains("0600"),
        "{told}"
    );
    proxy.signal(Signal::SIGHUP)?;
    until(&world, &proxy, |answer| answer.status == 202)?;
    Ok(())
}

pub fn what_a_proxy_refuses_is_told() -> Result<()> {
    let world = World::new()?;
    let forward = behind(&world, INTAKE4, None)?;
    let proxy = start(&world, &config(&world, "http"))?;
    for (status, words) in [
        (403, "forbids this destination (403)"),
        (503, "cannot reach this destination (503)"),
        (404, "answered CONNECT with 404"),
    ] {
        forward.set_rules(Rules {
            credentials: None,
            refuse: Some(status),
        });
        let refused = ask(&world, 9804)?;
        check_eq!(refused.status, 502, "{refused:?}");
        check!(
            refused.body.contains(words) && refused.body.contains(&format!("metrics.agent.{SITE}:443")),
            "{}",
            refused.body
        );
        let line =
            proxy.access_line(|line| line["error"].as_str().is_some_and(|error| error.contains(words)))?;
        check_eq!(line["outcome"], json!("upstream_proxy"), "{line}");
    }
    check_eq!(world.intake.connections(), 0, "connections of the intake");
    // The name leads to the intake itself: still nothing goes around the proxy.
    world.host.set_names(
        &all_names(INTAKE4)
            .into_iter()
            .chain([(NAME.to_owned(), PROXY.ip())])
            .collect::<Vec<_>>(),
    )?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    check_eq!(ask(&world, 9804)?.status, 502, "around the proxy");
    check_eq!(world.intake.connections(), 0, "connections of the intake");
    Ok(())
}

/// The original address is not dialled: the proxy's tunnel leads to another intake, and that is where the data arrives.
pub fn intercepted_through_a_proxy() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let gateway = Gateway::new(&world)?;
    let forward = behind(&world, PRIVATE, None)?;
    world.host.set_names(
        &all_names(INTAKE4)
            .into_iter()
            .chain([(NAME.to_owned(), PROXY.ip())])
            .collect::<Vec<_>>(),
    )?;
    let mut config = world.intercepting(&agent);
    config["upstream"]["proxy"] = json!({"url": format!("http://{NAME}:3128"), "products": ["metrics"]});
    let proxy = start(&world, &config)?;
    let answer = request(&world, Some(&agent), &format!("http://{VERSIONED}/api/v2/series"))?;
    check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    check_eq!(
        forward.take()[0].authority,
        format!("{VERSIONED}:443"),
        "the tunnel"
    );
    check_eq!(
        (gateway.intake.count(), world.intake.connections()),
        (1, 0),
        "through the proxy, and only so"
    );
    // Another product goes where it was meant for.
    let traces = request(
        &world,
        Some(&agent),
        &format!("http://trace.agent.{SITE}/api/v0.2/traces"),
    )?;
    check_eq!((traces.status, world.intake.count()), (202, 1), "traces");
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}
