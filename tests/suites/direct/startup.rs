//! How the program starts and how it refuses to: configuration errors, ports, privileges, the sidecar of Datadog's chart.

use std::net::TcpListener;

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::proxy::Launch;
use harness::world::{API_KEY, PORTS, World};
use harness::{check, check_eq};
use serde_json::{Value, json};

/// Exit codes of design section 10.
const USAGE: i32 = 64;
const PRIVILEGE: i32 = 77;
const CONFIGURATION: i32 = 78;

/// Text of the file, and what the message must name: place, key, accepted values.
const BAD: &[(&str, &[&str])] = &[
    (
        "site: ddog-gov.com\nlog:\n  levle: info\n",
        &["config.yaml:3", "levle", "level"],
    ),
    ("sites: ddog-gov.com\n", &["config.yaml:1", "sites", "site"]),
    (
        "limits:\n  max_connections: many\n",
        &["config.yaml:2", "limits.max_connections", "number"],
    ),
    (
        "limits:\n  idle_timeout: 120\n",
        &["config.yaml:2", "limits.idle_timeout", "duration"],
    ),
    (
        "log: {format: xml}\n",
        &["config.yaml:1", "log.format", "text", "json"],
    ),
    (
        "intercept: {on_failure: maybe}\n",
        &["intercept.on_failure", "closed", "open"],
    ),
    (
        "intercept: {https: decrypt}\n",
        &["intercept.https", "terminate", "passthrough", "refuse"],
    ),
    (
        "intercept: {datapath: xdp}\n",
        &["intercept.datapath", "cgroup", "tc"],
    ),
    (
        "upstream: {tls_policy: \"off\"}\n",
        &["upstream.tls_policy", "fips", "strict"],
    ),
    (
        "explicit: {port_range_start: 65530}\n",
        &["explicit.port_range_start"],
    ),
    (
        "status: {port: 9805}\n",
        &["status.port", "explicit.port_range_start"],
    ),
    (
        "explicit: {enabled: false}\nintercept: {enabled: false}\n",
        &["explicit.enabled", "intercept.enabled"],
    ),
    (
        "upstream: {ca_file: /nonexistent/ca.pem}\n",
        &["upstream.ca_file", "/nonexistent/ca.pem"],
    ),
    (
        "upstream: {allow_private: [0.0.0.0/0]}\n",
        &["upstream.allow_private", "0.0.0.0/0"],
    ),
    ("site: [ddog-gov.com\n", &["config.yaml:"]),
    (
        "site: ddog-gov.com\nsite: datadoghq.com\n",
        &["config.yaml:2", "site"],
    ),
];

/// Acceptance 7: configuration.
pub(crate) fn bad_configuration_is_named() -> Result<()> {
    let world = World::new()?;
    let mut wrong = Vec::new();
    for (text, words) in BAD {
        for verb in [&["run"][..], &["config", "check"]] {
            let mut line = verb.to_vec();
            let launch = Launch::new(&world.host).command_line(&[]).config_text(text)?;
            let path = world.host.folder().join("config.yaml").display().to_string();
            line.extend(["--config", &path]);
            let output = launch.command_line(&line).output()?;
            let message = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            if output.status.code() != Some(CONFIGURATION) {
                wrong.push(format!(
                    "{verb:?} with {text:?}: exit {:?}: {message}",
                    output.status
                ));
            }
            for word in *words {
                if !message.contains(word) {
                    wrong.push(format!("{verb:?} with {text:?}: no {word:?} in: {message}"));
                }
            }
        }
    }
    let missing = Launch::new(&world.host)
        .args(&["--config", "/nonexistent/config.yaml"])
        .output()?;
    if missing.status.code() != Some(CONFIGURATION)
        || !String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/config.yaml")
    {
        wrong.push(format!("unreadable file: {missing:?}"));
    }
    let variable = Launch::new(&world.host)
        .env("DD_FIPS_PROXY_LOG_LEVLE", "info")
        .output()?;
    if variable.status.code() != Some(CONFIGURATION)
        || !String::from_utf8_lossy(&variable.stderr).contains("DD_FIPS_PROXY_LOG_LEVLE")
    {
        wrong.push(format!("unknown variable: {variable:?}"));
    }
    check!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Usage errors are 64; a good file passes `config check`; `config show` names each value's source.
pub(crate) fn command_line() -> Result<()> {
    let world = World::new()?;
    for line in [
        &["nonsense"][..],
        &["run", "--nonsense"],
        &["intercept", "sideways"],
    ] {
        let output = Launch::new(&world.host).command_line(line).output()?;
        check_eq!(output.status.code(), Some(USAGE), "{line:?}");
    }
    Launch::new(&world.host).config(&world.config())?;
    let path = world.host.folder().join("config.yaml").display().to_string();
    let check = Launch::new(&world.host)
        .command_line(&["config", "check", "--config", &path])
        .output()?;
    check!(check.status.success(), "config check: {check:?}");
    let show = Launch::new(&world.host)
        .env("DD_SITE", "datadoghq.eu")
        .env("DD_FIPS_PROXY_LOG_LEVEL", "debug")
        .command_line(&["config", "show", "--config", &path])
        .output()?;
    let text = String::from_utf8_lossy(&show.stdout).into_owned();
    let line = |key: &str| {
        text.lines()
            .find(|line| line.contains(key))
            .map(str::to_owned)
            .context(format!("{key}: {text}"))
    };
    check!(
        line("site")?.contains("ddog-gov.com"),
        "the file wins over DD_SITE: {text}"
    );
    let level = line("log.level")?;
    check!(
        level.contains("debug") && level.contains("DD_FIPS_PROXY_LOG_LEVEL"),
        "source: {level}"
    );
    Ok(())
}

/// `version --json` names module and certificate, and never the bare word.
pub(crate) fn version_names_the_module() -> Result<()> {
    let world = World::new()?;
    let output = Launch::new(&world.host)
        .command_line(&["version", "--json"])
        .output()?;
    let version: Value = serde_json::from_slice(&output.stdout).context("version --json")?;
    let text = version.to_string();
    check!(
        text.contains("AWS-LC FIPS 3.1.0") && text.contains("5314"),
        "{text}"
    );
    Ok(())
}

/// Acceptance 7: a busy port is named, the others serve, readiness says so.
pub(crate) fn busy_port_is_named() -> Result<()> {
    let world = World::new()?;
    let _busy = world.host.within(|| Ok(TcpListener::bind("127.0.0.1:9807")?))?;
    let mut config = world.config();
    config["intercept"]["enabled"] = json!(false);
    let proxy = Launch::new(&world.host).config(&config)?.spawn()?;
    let (status, body) = harness::eventually("the status port", std::time::Duration::from_secs(30), || {
        let (status, body) = proxy.get("/readyz")?;
        Ok(body.contains("9807").then_some((status, body)))
    })
    .with_context(|| proxy.log())?;
    check_eq!(status, 503, "readiness with a busy port: {body}");
    check!(
        proxy
            .log()
            .contains("cannot bind 127.0.0.1:9807 (processes): address already in use"),
        "{}",
        proxy.log()
    );
    for (port, _, _) in PORTS.iter().filter(|(port, _, _)| *port != 9807) {
        let answer = ask(&world, *port, "-4", "/busy")?;
        check_eq!(answer.status, 202, "port {port}: {answer:?}");
    }
    check_eq!(
        ask(&world, 9807, "-6", "/busy")?.status,
        202,
        "the other loopback of the busy port"
    );
    let listeners = proxy.status()?["listeners"].clone();
    let broken: Vec<&Value> = listeners
        .as_array()
        .into_iter()
        .flatten()
        .filter(|l| l["bound"] == false)
        .collect();
    check!(
        broken.len() == 1 && broken[0]["address"] == "127.0.0.1:9807",
        "{listeners}"
    );
    Ok(())
}

/// Issue point 5: as Datadog's chart starts its sidecar. No argument, no capability, no writable file, one variable.
pub(crate) fn sidecar() -> Result<()> {
    let world = World::new()?;
    let unprivileged = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--no-new-privs",
    ];
    let proxy = Launch::new(&world.host)
        .command_line(&[])
        .through(&unprivileged)
        .env("DD_FIPS_LOCAL_ADDRESS", "127.0.0.1")
        .spawn()?;
    // The system's roots do not know the test authority, so an answer of ours is the proof of life: 502 from the handshake.
    let answer = harness::eventually("an answer on 9804", std::time::Duration::from_secs(30), || {
        let answer = ask(&world, 9804, "-4", "/api/v2/series")?;
        Ok((answer.status != 0).then_some(answer))
    })
    .with_context(|| proxy.log())?;
    // DD_SITE is not set: the default site is not in this world's hosts file.
    check!(matches!(answer.status, 502 | 503), "{answer:?}");
    for (port, _, _) in PORTS {
        let answer = ask(&world, *port, "-4", "/")?;
        check!(matches!(answer.status, 502 | 503), "port {port}: {answer:?}");
    }
    check_eq!(
        ask(&world, 9804, "-6", "/")?.exit,
        7,
        "DD_FIPS_LOCAL_ADDRESS=127.0.0.1 binds nothing on ::1"
    );
    check_eq!(proxy.get("/healthz")?.0, 200, "health");
    check!(proxy.get("/metrics")?.1.contains("agent_fips_proxy_"), "metrics");
    Ok(())
}

/// Acceptance 7: interception was asked for and cannot be had.
pub(crate) fn missing_capability_is_named() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["intercept"] = json!({"enabled": true});
    let output = Launch::new(&world.host)
        .through(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        ])
        .config(&config)?
        .output()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    check_eq!(output.status.code(), Some(PRIVILEGE), "{message}");
    check!(
        message.contains("CAP_BPF") || message.contains("CAP_SYS_ADMIN"),
        "which capability: {message}"
    );
    check!(
        message.contains("cannot create the cgroup") || message.contains("bpf("),
        "which call: {message}"
    );
    Ok(())
}

/// One GET to an explicit port.
pub(crate) fn ask(world: &World, port: u16, family: &str, path: &str) -> Result<harness::agent::Curl> {
    let key = format!("DD-API-KEY: {API_KEY}");
    curl(
        &world.host,
        None,
        &[family, "-H", &key, &format!("http://localhost:{port}{path}")],
    )
}
