//! Beside `datadog-fips-proxy`, and then in its place.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::systemd::{Systemd, UNIT};
use harness::world::{API_KEY, World};
use harness::{check, check_eq, eventually, succeed};

use crate::deb::dpkg;
use crate::made::{bring, packages};

const LIMIT: Duration = Duration::from_secs(60);
/// Its configuration, in the form that the documents show; written down once more.
const OLD: &str = "\
global
    presetenv DD_FIPS_LOCAL_ADDRESS localhost
listen stats
    bind \"${DD_FIPS_LOCAL_ADDRESS}\":9803
    mode http
    stats enable
frontend metrics-forwarder
    bind \"${DD_FIPS_LOCAL_ADDRESS}\":9804
    mode http
    use_backend datadog-api if { path_beg -i /api/v1/validate }
    default_backend datadog-metrics
backend datadog-api
    mode http
    server-template mothership 5 api.ddog-gov.com:443 check port 443 ssl verify required ca-file ca-certificates.crt
backend datadog-metrics
    mode http
    server-template mothership 5 metrics.agent.ddog-gov.com:443 check port 443 ssl verify required ca-file ca-certificates.crt
";

/// Installed beside it, its ports are named and left alone; its settings become ours; once it stops, its ports are taken over.
pub fn takes_over() -> Result<()> {
    let made = packages(1)?;
    let world = World::new()?;
    let machine = Systemd::boot_bare(&world.host)?;
    let etc = machine.path("/etc/datadog-fips-proxy");
    std::fs::create_dir_all(&etc)?;
    std::fs::write(etc.join("datadog-fips-proxy.cfg"), OLD)?;
    std::fs::create_dir_all(machine.path("/etc/datadog-agent"))?;
    let agent =
        format!("api_key: {API_KEY}\nfips:\n  enabled: true\n  port_range_start: 9803\n  https: false\n");
    std::fs::write(machine.path("/etc/datadog-agent/datadog.yaml"), agent)?;
    let unit = machine.path("/run/machine/units/datadog-fips-proxy.service");
    let listener = "[Service]\nExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 9804\n";
    std::fs::write(unit, listener)?;
    machine.must(&["daemon-reload"])?;
    machine.must(&["start", "datadog-fips-proxy.service"])?;

    let said = dpkg(&machine, &["--install", &bring(&machine, &made.deb)?])?;
    check!(said.contains("agent-fips-proxy config migrate"), "{said}");
    eventually("the busy port by its number", LIMIT, || {
        let status = machine.cli(&["status"])?;
        Ok(String::from_utf8_lossy(&status.stdout)
            .contains("9804")
            .then_some(()))
    })
    .with_context(|| machine.log())?;
    check_eq!(
        machine.property(UNIT, "ActiveState")?,
        "active",
        "{}",
        machine.log()
    );
    check_eq!(
        machine.property("datadog-fips-proxy.service", "ActiveState")?,
        "active",
        "untouched"
    );

    let proposal = succeed(machine.command("agent-fips-proxy").args(["config", "migrate"]))?;
    check!(!proposal.contains(API_KEY), "{proposal}");
    check!(proposal.contains("site: ddog-gov.com"), "{proposal}");
    // The intake of this world has an authority of its own.
    std::fs::copy(
        world.host.folder().join("ca.pem"),
        machine.path("/etc/agent-fips-proxy/ca.pem"),
    )?;
    let text = format!("{proposal}upstream: {{ca_file: /etc/agent-fips-proxy/ca.pem}}\n");
    std::fs::write(machine.path("/etc/agent-fips-proxy/config.yaml"), text)?;
    machine.must(&["reload", UNIT])?;
    machine.must(&["stop", "datadog-fips-proxy.service"])?;
    let key = format!("DD-API-KEY: {API_KEY}");
    eventually("its port, served by us", LIMIT, || {
        let mut curl = machine.command("curl");
        curl.args([
            "-sS",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            &key,
            "http://localhost:9804/api/v2/series",
        ]);
        let output = harness::capture(&mut curl)?;
        Ok((String::from_utf8_lossy(&output.stdout) == "202").then_some(()))
    })
    .with_context(|| machine.log())?;
    machine.ready()?;
    Ok(())
}
