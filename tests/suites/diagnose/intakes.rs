//! `diagnose`: each wrong outcome is found where it is, with its cure; what is right is not complained about.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::ca::Fault;
use harness::dns::Says;
use harness::forward::{Forward, Rules};
use harness::intake::{Answer, Intake, Options, Peer};
use harness::proxy::Launch;
use harness::world::{API_KEY, INTAKE4, SITE, Setup, World, names};
use harness::{capture, check, check_eq};
use serde_json::{Value, json};

/// Where a VPC endpoint would be.
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 20, 0, 10));
/// Whom the tests look at where one is enough.
const METRICS: &[&str] = &["--product", "metrics"];

/// Runs it with this configuration; no proxy runs.
fn output(world: &World, config: &Value, words: &[&str], env: &[(&str, &str)]) -> Result<Output> {
    let path = world.host.folder().join("diagnose.yaml");
    std::fs::write(&path, config.to_string())?;
    let path = path.display().to_string();
    let mut launch =
        Launch::new(&world.host).command_line(&[&["diagnose", "--config", &path], words].concat());
    for (name, value) in env {
        launch = launch.env(name, value);
    }
    // Read while it writes: the report is larger than a pipe.
    let output = capture(&mut launch.command()?)?;
    for text in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(text);
        check!(!text.contains(API_KEY), "the API key is in {text}");
        check!(
            !text.contains('\x1b') && !text.contains('\r'),
            "progress without a terminal: {text}"
        );
    }
    Ok(output)
}

/// `--json`, with its exit code.
fn report(world: &World, config: &Value, words: &[&str]) -> Result<(Value, Option<i32>)> {
    let output = output(world, config, &[words, &["--json"]].concat(), &[])?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((report, output.status.code()))
}

/// The finding about a name.
fn about<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let findings = report["findings"].as_array().context("no findings")?;
    let found = findings
        .iter()
        .find(|finding| finding["name"] == format!("{name}.{SITE}"));
    found.with_context(|| format!("nothing about {name}: {report}"))
}

/// The metrics fail, in this step, for this reason, and this is what to do about it.
fn fails(world: &World, config: &Value, words: &[&str], step: &str, detail: &str, cure: &str) -> Result<()> {
    judged(world, config, words, ("fail", 69), (step, detail, cure))
}

fn judged(
    world: &World,
    config: &Value,
    words: &[&str],
    (level, code): (&str, i32),
    (step, detail, cure): (&str, &str, &str),
) -> Result<()> {
    let (report, exit) = report(world, config, &[METRICS, words].concat())?;
    let finding = about(&report, "metrics.agent")?;
    check_eq!(exit, Some(code), "{finding:#}");
    let steps = finding["steps"].as_array().context("no steps")?;
    let says = |found: &Value| {
        let cured = found["cure"].as_str().unwrap_or_default();
        let told = found["detail"].as_str().unwrap_or_default();
        found["level"] == level
            && found["step"] == step
            && told.contains(detail)
            && (cured.contains(cure) || told.contains(cure))
    };
    check!(
        steps.iter().any(says),
        "no {level} {step} with `{detail}` and `{cure}`: {finding:#}"
    );
    Ok(())
}

/// Every intake name leads there.
fn lead_to(world: &World, address: IpAddr) -> Result<()> {
    let names: Vec<_> = names().into_iter().map(|name| (name, address)).collect();
    world.host.set_names(&names)
}

pub fn all_is_well() -> Result<()> {
    let world = World::new()?;
    let (report, code) = report(&world, &world.config(), &[])?;
    check_eq!((code, &report["ok"]), (Some(0), &json!(true)), "{report:#}");
    check_eq!(report["schema"], json!(1), "schema");
    // The names of PrivateLink, and the Agent's own for metrics.
    for name in [
        "agent-http-intake.logs",
        "http-intake.logs",
        "api",
        "metrics.agent",
        "orchestrator",
        "process",
        "intake.profile",
        "trace.agent",
        "dbm-metrics-intake",
        "config",
        "7-81-0-app.agent",
    ] {
        let finding = about(&report, name)?;
        check_eq!(finding["level"], json!("ok"), "{finding:#}");
        let address = &finding["look"]["addresses"][0];
        check_eq!(address["tls"]["version"], json!("TLSv1.3"), "{finding:#}");
        check!(
            address["shown"]["anchor"]
                .as_str()
                .is_some_and(|root| root.contains("test authority"))
                && address["shown"]["certificates"][0]["days_left"].as_i64() > Some(1000),
            "{finding:#}"
        );
        check_eq!(
            finding["look"]["addresses"].as_array().map(Vec::len),
            Some(2),
            "both families"
        );
    }
    // A name that this site does not have.
    check_eq!(
        about(&report, "contimage-intake")?["level"],
        json!("note"),
        "an optional name"
    );
    let seen = world.intake.take();
    check!(
        seen.iter().all(|seen| seen.header("dd-api-key").is_none()),
        "a key that nobody gave"
    );
    check!(seen.iter().any(|seen| seen.target == "/_health"), "{seen:?}");
    check!(seen.iter().all(|seen| seen.session.approved()), "{seen:?}");

    // With a key: to key validation, and nowhere else.
    let config = world.config();
    let text = output(
        &world,
        &config,
        &["--api-key-env", "CANARY"],
        &[("CANARY", API_KEY)],
    )?;
    let said = String::from_utf8(text.stdout)?;
    check!(
        text.status.success() && said.contains("OK    metrics (metrics.agent."),
        "{said}"
    );
    check!(said.contains("202 to GET /api/v1/validate"), "{said}");
    check_eq!(text.stderr, Vec::<u8>::new(), "standard error");
    let keyed: Vec<_> = world
        .intake
        .take()
        .into_iter()
        .filter(|seen| seen.header("dd-api-key").is_some())
        .collect();
    check_eq!(keyed.len(), 1, "requests with the key: {keyed:?}");
    check_eq!(keyed[0].header("dd-api-key"), Some(API_KEY), "the key");
    check_eq!(keyed[0].path(), "/api/v1/validate", "where it went");
    let file = world.host.folder().join("key");
    std::fs::write(&file, "ffffffffffffffffffffffffffffffff\n")?;
    let file = file.display().to_string();
    let refused = output(
        &world,
        &config,
        &["--product", "api", "--api-key-file", &file],
        &[],
    )?;
    let said = String::from_utf8(refused.stdout)?;
    check!(
        refused.status.code() == Some(69) && said.contains("the API key is refused"),
        "{said}"
    );
    check!(!said.contains("ffffffff"), "{said}");
    Ok(())
}

pub fn names_lead_astray() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    fails(
        &world,
        &config,
        &["--private-link"],
        "dns",
        "although a private address is expected",
        "Route 53 private hosted zone",
    )?;
    lead_to(&world, PRIVATE)?;
    fails(
        &world,
        &config,
        &[],
        "dns",
        "never dialled",
        "upstream.allow_private: [10.20.0.10/32]",
    )?;
    config["upstream"]["allow_private"] = json!(["10.20.0.0/16"]);
    // The way there is none: DNS is right.
    world.net.ip(&format!("address add {PRIVATE}/32 dev lo"))?;
    fails(
        &world,
        &config,
        &["--private-link"],
        "tcp",
        "10.20.0.10:443",
        "VPC peering",
    )?;
    let options = Options {
        addresses: vec![PRIVATE],
        port: 443,
        leaf: world.authority.leaf(&names(), Fault::None)?,
        peer: Peer::Modern,
        http2: true,
        api_key: None,
    };
    let gateway = Intake::start(Some(&world.net), options)?;
    let good = ("dns", "10.20.0.10 private", "");
    judged(&world, &config, &["--private-link"], ("ok", 0), good)?;
    check!(gateway.count() > 0, "the endpoint was asked");
    lead_to(&world, INTAKE4)?;
    judged(
        &world,
        &config,
        &[],
        ("warn", 0),
        (
            "dns",
            "public, although upstream.allow_private",
            "enableDnsSupport",
        ),
    )?;

    world.host.set_names(&[])?;
    config = world.config();
    let server = world.name_server.as_ref().context("no name server")?;
    fails(
        &world,
        &config,
        &[],
        "dns",
        "metrics.agent.ddog-gov.com",
        "resolver must know the name",
    )?;
    server.says(Says::Silence);
    fails(
        &world,
        &config,
        &["--timeout", "1"],
        "dns",
        "metrics.agent.ddog-gov.com",
        "/etc/resolv.conf",
    )?;
    server.says(Says::Addresses {
        name: format!("metrics.agent.{SITE}"),
        ips: vec![INTAKE4],
        ttl: 60,
        delay: Duration::from_millis(300),
    });
    judged(&world, &config, &[], ("ok", 0), ("http", "to GET /probe", ""))
}

pub fn nobody_listens() -> Result<()> {
    let world = World::new()?;
    let config = world.config();
    // Somebody is there and has no such port; nobody is there and no router says so.
    for (address, words, detail) in [
        ([198, 51, 100, 1], &[][..], "refused"),
        (
            [203, 0, 113, 77],
            &["--timeout", "1"],
            "longer than upstream.connect_timeout",
        ),
    ] {
        lead_to(&world, address.into())?;
        fails(&world, &config, words, "tcp", detail, "upstream.proxy.url")?;
    }
    // One of two addresses is enough for the proxy, and for us.
    let name = format!("metrics.agent.{SITE}");
    world
        .host
        .set_names(&[(name.clone(), [198, 51, 100, 1].into()), (name, INTAKE4)])?;
    judged(
        &world,
        &config,
        &[],
        ("warn", 0),
        ("tcp", "198.51.100.1:443", "firewall"),
    )
}

pub fn tls_is_not_good() -> Result<()> {
    for (fault, peer, reason, cure) in [
        (Fault::WrongName, Peer::Modern, "wrong_name", "upstream.endpoints"),
        (Fault::Expired, Peer::Modern, "certificate_expired", "clock"),
        (
            Fault::None,
            Peer::OnlyChaCha20,
            "no_common_suite",
            "upstream.tls_policy",
        ),
        (
            Fault::None,
            Peer::Tls11,
            "no_common_version",
            "upstream.tls_policy",
        ),
    ] {
        let world = World::with(Setup {
            fault,
            peer,
            ..Setup::default()
        })?;
        fails(&world, &world.config(), &[], "tls", &format!("({reason})"), cure)?;
        check_eq!(world.intake.count(), 0, "requests");
    }
    let world = World::with(Setup {
        peer: Peer::Tls12,
        ..Setup::default()
    })?;
    judged(
        &world,
        &world.config(),
        &[],
        ("ok", 0),
        ("tls", "TLSv1.2", "within upstream.tls_policy fips"),
    )?;
    let mut strict = world.config();
    strict["upstream"]["tls_policy"] = json!("strict");
    fails(&world, &strict, &[], "tls", "(no_common_version)", "strict")?;
    // Another authority than the one that signed.
    let mut other = world.config();
    let path = world.host.folder().join("other.pem");
    std::fs::write(&path, harness::ca::Authority::new()?.pem())?;
    other["upstream"]["ca_file"] = json!(path);
    let (report, code) = report(&world, &other, METRICS)?;
    let address = &about(&report, "metrics.agent")?["look"]["addresses"][0];
    check!(
        code == Some(69)
            && ["unknown_issuer", "bad_certificate"]
                .iter()
                .any(|reason| address["reason"] == *reason),
        "{address:#}"
    );
    Ok(())
}

pub fn http_is_not_good() -> Result<()> {
    let world = World::with(Setup {
        check_key: false,
        ..Setup::default()
    })?;
    let config = world.config();
    world
        .intake
        .answer("/probe", Answer::Status(503, "no".to_owned()));
    judged(
        &world,
        &config,
        &[],
        ("warn", 0),
        ("http", "503 to GET /probe", "intake is not well"),
    )?;
    world
        .intake
        .answer("/probe", Answer::Slow(Duration::from_secs(8)));
    fails(
        &world,
        &config,
        &["--timeout", "1"],
        "http",
        "no answer within 1s",
        "--timeout",
    )?;
    world.intake.answer("/probe", Answer::ResetBeforeHead);
    fails(
        &world,
        &config,
        &[],
        "http",
        "no answer to GET /probe",
        "upstream.endpoints",
    )?;
    // Whoever accepts TCP and leaves.
    world.intake.set_dropping(true);
    fails(&world, &config, &[], "tls", "(closed)", "firewall")
}

pub fn another_way() -> Result<()> {
    let world = World::new()?;
    const ENDPOINT: &str = "vpce-0a1b2c.metrics.vpce.example.net";
    let mut config = world.config();
    config["upstream"]["endpoints"] = json!({"metrics": ENDPOINT});
    // It leads to the public intake: not what the name of a VPC endpoint promises.
    world.host.set_names(&[(ENDPOINT.to_owned(), INTAKE4)])?;
    fails(
        &world,
        &config,
        &[],
        "dns",
        "upstream.endpoints.metrics names a VPC endpoint",
        "A record",
    )?;
    check_eq!(
        world.intake.take()[0].session.sni,
        Some(format!("metrics.agent.{SITE}")),
        "SNI"
    );

    // Through the site's proxy, which resolves.
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 30, 0, 1)), 3128);
    world.net.ip(&format!("address add {}/32 dev lo", address.ip()))?;
    world
        .host
        .set_names(&[("proxy.example.net".to_owned(), address.ip())])?;
    let forward = Forward::start(&world.net, address, SocketAddr::new(INTAKE4, 443), None)?;
    let mut config = world.config();
    config["upstream"]["proxy"] = json!({"url": "http://proxy.example.net:3128"});
    judged(
        &world,
        &config,
        &[],
        ("ok", 0),
        ("tls", "10.30.0.1:3128", "within upstream.tls_policy"),
    )?;
    let asked = forward.take();
    check!(
        asked
            .iter()
            .any(|asked| asked.authority == format!("metrics.agent.{SITE}:443") && asked.faults.is_empty()),
        "{asked:?}"
    );
    forward.set_rules(Rules {
        refuse: Some(403),
        ..Rules::default()
    });
    fails(
        &world,
        &config,
        &[],
        "proxy",
        "forbids this destination",
        "must allow CONNECT",
    )
}

pub fn wrong_commands() -> Result<()> {
    let world = World::new()?;
    let config = world.config();
    for (words, says) in [
        (&["--product", "nothing"][..], "is not a product"),
        (&["--product", "tcp_logs"], "is not HTTP"),
        (&["--timeout", "0"], "0 is not in 1..=120"),
        (&["--agent-version", "x"], "three numbers"),
        (
            &["--api-key-env", "NOBODY_SET_THIS"],
            "no variable NOBODY_SET_THIS",
        ),
    ] {
        let output = output(&world, &config, words, &[])?;
        let said = String::from_utf8_lossy(&output.stderr);
        check!(
            output.status.code() == Some(64) && said.contains(says),
            "{words:?}: {output:?}"
        );
    }
    let wrong = output(&world, &json!({"upstream": {"nothing": 1}}), &[], &[])?;
    check_eq!(wrong.status.code(), Some(78), "{wrong:?}");
    Ok(())
}

/// A proxy that runs is asked, and what it met is told; nobody needs rights for the rest.
pub fn beside_the_proxy() -> Result<()> {
    let world = World::new()?;
    lead_to(&world, [198, 51, 100, 1].into())?;
    let proxy = world.start(&world.config())?;
    let (report, code) = report(&world, &world.config(), METRICS)?;
    check!(
        code == Some(69) && report["running"]["asked"] == true,
        "{:#}",
        report["running"]
    );
    check_eq!(report["running"]["notes"], json!([]), "nothing was asked for yet");
    let answer = harness::agent::curl(&world.host, None, &["http://localhost:9804/"])?;
    check_eq!(answer.status, 502, "{answer:?}");
    let met = output(&world, &world.config(), METRICS, &[])?;
    let said = String::from_utf8(met.stdout)?;
    check!(
        said.contains("WARN  the running proxy: metrics: failed since its worker started: "),
        "{said}\n{}",
        proxy.log()
    );
    lead_to(&world, INTAKE4)?;
    let path = world.host.folder().join("diagnose.yaml").display().to_string();
    let stranger = Launch::new(&world.host)
        .through(&["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"])
        .command_line(&["diagnose", "--config", &path, "--product", "metrics"])
        .output()?;
    let said = String::from_utf8(stranger.stdout)?;
    check!(
        stranger.status.success() && said.contains("note  the running proxy: no permission to ask it"),
        "{said} {}",
        String::from_utf8_lossy(&stranger.stderr)
    );
    Ok(())
}
