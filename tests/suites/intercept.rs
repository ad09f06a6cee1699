//! Interception against the real kernel: connections of a selected cgroup leave through TLS, all others are left alone.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::{Load, ask, curl, run_python};
use harness::cgroup::Cgroup;
use harness::proxy::{Launch, Proxy};
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, BYSTANDER, ELSEWHERE, INTAKE4, INTAKE6, SITE, Setup, VERSIONED, World};
use harness::{check, check_eq, succeed};
use serde_json::json;

fn main() -> ExitCode {
    run(vec![
        case("bodies_leave_through_tls", &[Need::Bpf], bodies_leave_through_tls),
        case(
            "outside_the_cgroup_nothing_changes",
            &[Need::Bpf],
            outside_the_cgroup_nothing_changes,
        ),
        case(
            "other_names_are_tunnelled",
            &[Need::Bpf],
            other_names_are_tunnelled,
        ),
        case(
            "other_addresses_are_not_touched",
            &[Need::Bpf],
            other_addresses_are_not_touched,
        ),
        case("tls_of_the_agent_passes", &[Need::Bpf], tls_of_the_agent_passes),
        case(
            "datadog_python_client",
            &[Need::Bpf, Need::Python],
            datadog_python_client,
        ),
        case(
            "the_proxy_does_not_intercept_itself",
            &[Need::Bpf],
            the_proxy_does_not_intercept_itself,
        ),
        case(
            "strangers_at_the_listener_get_nothing",
            &[Need::Bpf],
            strangers_get_nothing,
        ),
        case(
            "for_a_silent_client_nobody_is_dialled",
            &[Need::Bpf],
            a_silent_client,
        ),
        case(
            "units_that_start_later_are_selected",
            &[Need::Bpf],
            units_that_start_later,
        ),
        case(
            "a_dead_resolver_delays_nothing",
            &[Need::Bpf],
            a_dead_resolver_delays_nothing,
        ),
        case(
            "fifty_thousand_connections",
            &[Need::Bpf],
            fifty_thousand_connections,
        ),
    ])
}

fn start<'a>(world: &'a World, agent: &Cgroup) -> Result<Proxy<'a>> {
    world.start(&world.intercepting(agent))
}

/// Acceptance 3, inside the cgroup, both families.
fn bodies_leave_through_tls() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = start(&world, &agent)?;
    let body: Vec<u8> = (0..3_u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let file = world.host.folder().join("body");
    std::fs::write(&file, &body)?;
    let (data, key) = (format!("@{}", file.display()), format!("DD-API-KEY: {API_KEY}"));
    let url = format!("http://{VERSIONED}/api/v2/series");
    for (family, address) in [("-4", INTAKE4), ("-6", INTAKE6)] {
        let answer = curl(
            &world.host,
            Some(&agent),
            &[family, "-H", &key, "--data-binary", &data, &url],
        )?;
        check_eq!(answer.status, 202, "{family}: {answer:?}\n{}", proxy.log());
        check_eq!(
            answer.peer,
            format!("{address} 80"),
            "the peer that the Agent sees"
        );
        let seen = world.intake.take().remove(0);
        check_eq!(seen.body_sha256, harness::sha256(&body), "digest");
        check_eq!(seen.session.sni.as_deref(), Some(VERSIONED), "SNI");
        check_eq!(
            (seen.session.version.as_str(), seen.local.ip()),
            ("TLSv1_3", address),
            "version and address"
        );
        check_eq!(seen.faults, Vec::<String>::new(), "faults");
        let original = SocketAddr::new(address, 80).to_string();
        let line = proxy.access_line(|line| line["original_dst"] == original)?;
        check_eq!(
            (
                &line["via"],
                &line["product"],
                &line["outcome"],
                &line["tls_version"]
            ),
            (
                &json!("cgroup"),
                &json!("metrics"),
                &json!("ok"),
                &json!("TLSv1.3")
            ),
            "{line}"
        );
    }
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    let status = proxy.status()?;
    check_eq!(status["interception"]["attached"], json!(true), "{status}");
    check!(
        status["interception"]["agents"]
            .to_string()
            .contains(agent.inside()),
        "the Agent's cgroup is listed: {status}"
    );
    Ok(())
}

/// Acceptance 3, the same process outside.
fn outside_the_cgroup_nothing_changes() -> Result<()> {
    let (world, agent, other) = (World::new()?, Cgroup::new("agent")?, Cgroup::new("other")?);
    let proxy = start(&world, &agent)?;
    for (family, cgroup) in [
        ("-4", None),
        ("-6", None),
        ("-4", Some(&other)),
        ("-6", Some(&other)),
    ] {
        let answer = curl(
            &world.host,
            cgroup,
            &[family, &format!("http://{VERSIONED}/outside")],
        )?;
        check_eq!(
            (answer.status, answer.body.as_str()),
            (200, "plain"),
            "{family}: {answer:?}"
        );
    }
    check_eq!(world.intake.count(), 0, "requests at the TLS intake");
    check_eq!(world.plain.seen().len(), 4, "requests in the clear");
    check_eq!(proxy.metrics()?.connections("cgroup"), 0.0, "connections");
    Ok(())
}

/// Same addresses, another name: the verdict is by name, in user space.
fn other_names_are_tunnelled() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = start(&world, &agent)?;
    for (family, address) in [("-4", INTAKE4), ("-6", INTAKE6)] {
        let answer = curl(
            &world.host,
            Some(&agent),
            &[
                family,
                "-H",
                "X-Mixed-Case: yes",
                &format!("http://{BYSTANDER}/x?y=1"),
            ],
        )?;
        check_eq!(
            (answer.status, answer.body.as_str()),
            (200, "plain"),
            "{answer:?}\n{}",
            proxy.log()
        );
        let clear = world.plain.seen().pop().context("nothing arrived")?;
        check_eq!(
            clear.local,
            SocketAddr::new(address, 80),
            "the original destination"
        );
        let text = String::from_utf8_lossy(&clear.bytes).into_owned();
        check!(
            text.starts_with("GET /x?y=1 HTTP/1.1\r\n") && text.contains("X-Mixed-Case: yes"),
            "untouched: {text}"
        );
    }
    check_eq!(world.intake.count(), 0, "requests at the TLS intake");
    let tunnelled = harness::eventually("two tunnels", Duration::from_secs(5), || {
        let count = proxy.metrics()?.sum(
            "agent_fips_proxy_connections_total",
            &[("via", "cgroup"), ("decision", "tunnel")],
        );
        Ok((count >= 2.0).then_some(count))
    })?;
    check_eq!(tunnelled, 2.0, "tunnels");
    Ok(())
}

fn other_addresses_are_not_touched() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = start(&world, &agent)?;
    let answer = curl(&world.host, Some(&agent), &[&format!("http://{ELSEWHERE}/")])?;
    check_eq!(
        (answer.status, answer.body.as_str()),
        (200, "plain"),
        "{answer:?}"
    );
    check_eq!(proxy.metrics()?.connections("cgroup"), 0.0, "connections");
    Ok(())
}

/// Until HTTPS is terminated, the Agent's own TLS session goes to its destination, handshake unbroken.
fn tls_of_the_agent_passes() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = start(&world, &agent)?;
    let ca = world.host.folder().join("ca.pem").display().to_string();
    let key = format!("DD-API-KEY: {API_KEY}");
    let answer = curl(
        &world.host,
        Some(&agent),
        &[
            "-4",
            "--cacert",
            &ca,
            "-H",
            &key,
            &format!("https://{VERSIONED}/own"),
        ],
    )?;
    check_eq!(
        (answer.status, answer.peer.as_str()),
        (202, "203.0.113.10 443"),
        "{answer:?}\n{}",
        proxy.log()
    );
    let session = world.intake.seen().remove(0).session;
    // curl's OpenSSL prefers another suite and knows no hybrid group: the session is its own.
    check!(!session.group.contains("MLKEM"), "{session:?}");
    harness::eventually("its record", Duration::from_secs(5), || {
        let count = proxy.metrics()?.sum(
            "agent_fips_proxy_connections_total",
            &[("via", "cgroup"), ("decision", "passthrough")],
        );
        Ok((count == 1.0).then_some(()))
    })
}

/// A client that nobody here wrote.
fn datadog_python_client() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = start(&world, &agent)?;
    let script = format!(
        "import time\nfrom datadog import initialize, api\n\
         initialize(api_key='{API_KEY}', app_key='app', api_host='http://metrics.agent.{SITE}', mute=False)\n\
         for n in range(5):\n    print(api.Metric.send(metric='afp.test', points=[(time.time(), n)], tags=['a:b']))\n"
    );
    let printed = run_python(&world.host, Some(&agent), &script).with_context(|| proxy.log())?;
    check_eq!(printed.matches("'status': 'ok'").count(), 5, "{printed}");
    let seen = world.intake.seen();
    check_eq!(seen.len(), 5, "requests");
    check!(
        seen.iter()
            .all(|s| s.path() == "/api/v1/series" && s.body_len > 0),
        "{seen:?}"
    );
    check_eq!(world.intake.faults(), Vec::<String>::new(), "faults");
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}

/// The proxy runs inside the cgroup that it selects, and still dials out.
fn the_proxy_does_not_intercept_itself() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = Launch::new(&world.host)
        .cgroup(&agent)
        .config(&world.intercepting(&agent))?
        .start()?;
    for url in [
        "http://localhost:9804/self".to_owned(),
        format!("http://{VERSIONED}/self"),
    ] {
        let answer = ask(&world.host, Some(&agent), &[&url])?;
        check_eq!(answer.status, 202, "{url}: {answer:?}\n{}", proxy.log());
    }
    check_eq!(world.intake.count(), 2, "requests");
    Ok(())
}

/// A client that hesitates is waited for: not one packet of ours to the intake's port 80 meanwhile.
fn a_silent_client() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = start(&world, &agent)?;
    let mut client = world.host.command("bash");
    client.arg("-ec").arg(format!(
        "exec 3<>/dev/tcp/{INTAKE4}/80; sleep 2; \
         printf 'GET /api/v1/validate HTTP/1.1\\r\\nHost: {VERSIONED}\\r\\nDD-API-KEY: {API_KEY}\\r\\nConnection: close\\r\\n\\r\\n' >&3; \
         head -n 1 <&3"
    ));
    let answer = succeed(&mut agent.wrap(&client))?;
    check!(answer.starts_with("HTTP/1.1 202"), "{answer:?}\n{}", proxy.log());
    check_eq!(world.intake.count(), 1, "requests at the TLS intake");
    check!(world.plain.seen().is_empty(), "{:?}", world.plain.seen());
    Ok(())
}

/// Whoever finds the interception listener and connects to it directly is closed without a byte.
fn strangers_get_nothing() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let proxy = start(&world, &agent)?;
    let status = proxy.status()?;
    let listeners: Vec<SocketAddr> = status["listeners"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|listener| listener["address"].as_str()?.parse().ok())
        .filter(|address: &SocketAddr| !(9803..=9818).contains(&address.port()))
        .collect();
    check!(!listeners.is_empty(), "no interception listener in {status}");
    for address in listeners {
        let answer = world.host.within(|| {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            std::io::Write::write_all(
                &mut stream,
                format!("GET / HTTP/1.1\r\nHost: {VERSIONED}\r\n\r\n").as_bytes(),
            )?;
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
                _ => Ok(answer),
            }
        })?;
        check!(
            answer.is_empty(),
            "{address} answered {:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    check_eq!(world.intake.count(), 0, "requests at the intake");
    Ok(())
}

/// The glob is watched: a cgroup that appears after the start is selected within seconds.
fn units_that_start_later() -> Result<()> {
    let world = World::new()?;
    let parent = Cgroup::new("units")?;
    let mut config = world.intercepting(&parent);
    config["intercept"]["agents"]["cgroups"] = json!([format!("{}/agent-*.service", parent.inside())]);
    let proxy = world.start(&config)?;
    let late = parent.child("agent-late.service")?;
    harness::eventually("the late unit in the status", Duration::from_secs(10), || {
        let agents = proxy.status()?["interception"]["agents"].to_string();
        Ok(agents.contains("agent-late.service").then_some(()))
    })?;
    let answer = ask(&world.host, Some(&late), &[&format!("http://{VERSIONED}/late")])?;
    check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    let other = parent.child("other.service")?;
    let answer = curl(&world.host, Some(&other), &[&format!("http://{BYSTANDER}/other")])?;
    check_eq!(answer.body, "plain", "a cgroup that the glob does not match");
    Ok(())
}

/// Names of the hosts file are known at once; names that nobody answers for must not hold them up. Ready means ready: what
/// is asked right after `/readyz` goes through us.
fn a_dead_resolver_delays_nothing() -> Result<()> {
    let world = World::with(Setup {
        name_server: false,
        ..Setup::default()
    })?;
    let agent = Cgroup::new("agent")?;
    let proxy = start(&world, &agent)?;
    let answer = ask(
        &world.host,
        Some(&agent),
        &[&format!("http://{VERSIONED}/at-once")],
    )?;
    check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}

/// Acceptance 4: 64 clients, 1,024 recycled ports, both families.
fn fifty_thousand_connections() -> Result<()> {
    const CONNECTIONS: u64 = 50_000;
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    world.host.sysctl("ipv4/ip_local_port_range", "40000 41023")?;
    let proxy = start(&world, &agent)?;
    let count = CONNECTIONS.to_string();
    let url = format!("http://{VERSIONED}/api/v2/series");
    let words = [
        "--url",
        &url,
        "--ip",
        "both",
        "--clients",
        "64",
        "--requests",
        &count,
        "--body",
        "200",
        "--api-key",
        API_KEY,
    ];
    let report = Load::start(&world.host, Some(&agent), &words)?.wait()?;
    check!(
        report.all(202) && report.count("connects") == CONNECTIONS,
        "{report:?}"
    );
    let seen = world.intake.seen();
    check_eq!(seen.len() as u64, CONNECTIONS, "requests at the intake");
    check_eq!(world.intake.faults().first(), None, "faults");
    check!(world.leaks().is_empty(), "{} leaks", world.leaks().len());
    let mut ids: Vec<&str> = seen.iter().filter_map(|s| s.header("x-test-id")).collect();
    ids.sort_unstable();
    ids.dedup();
    check_eq!(ids.len() as u64, CONNECTIONS, "different requests");
    let metrics = proxy.metrics()?;
    check_eq!(
        metrics.sum("agent_fips_proxy_connections_total", &[("outcome", "no_origin")]),
        0.0,
        "no origin"
    );
    let ok = metrics.sum(
        "agent_fips_proxy_requests_total",
        &[("via", "cgroup"), ("outcome", "ok")],
    );
    check!((ok - 50_000.0).abs() < 0.5, "requests counted: {ok}");
    Ok(())
}
