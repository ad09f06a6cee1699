//! Proposals are read back by the configuration's own reader.

use std::collections::BTreeMap;

use super::*;
use crate::config::{Inputs, Paths, load};

/// As the documents show it.
const SHIPPED: &str = "
global
    presetenv DD_FIPS_LOCAL_ADDRESS localhost
listen stats
    bind \"${DD_FIPS_LOCAL_ADDRESS}\":9803
    mode http
    stats enable
frontend metrics-forwarder
    bind \"${DD_FIPS_LOCAL_ADDRESS}\":9804
    default_backend datadog-metrics
frontend logs_frontend
    bind \"${DD_FIPS_LOCAL_ADDRESS}\":9808
    default_backend datadog-logs
backend datadog-metrics
    server-template mothership 5 metrics.agent.ddog-gov.com:443 check ssl verify required ca-file ca-certificates.crt
backend datadog-logs
    server logs agent-http-intake.logs.ddog-gov.com:443 ssl
";

fn settings(yaml: &str) -> Settings {
    Settings::of(yaml, "", LOOKED_AT).unwrap()
}

/// What `config show` would say of a proposal.
fn read_back(text: &str) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, text).unwrap();
    let nowhere = folder.path().join("nowhere");
    let loaded = load(&Inputs {
        file: Some(file),
        env_file: None,
        environment: BTreeMap::new(),
        flags: Vec::new(),
        defaults: Paths {
            file: nowhere.clone(),
            env_file: nowhere,
        },
    })
    .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let value = |setting: &crate::config::Setting| (setting.key.to_string(), setting.value.clone());
    loaded.settings.iter().map(value).collect()
}

#[test]
fn the_shipped_proxy_is_replaced_without_a_change_to_the_agent() {
    let old = haproxy::read(SHIPPED);
    let agent = settings("api_key: abc\nfips: {enabled: true, https: false, port_range_start: 9803}\n");
    let text = propose(Some(&old), Some(&agent)).text();
    assert!(!text.contains("abc") && !text.contains("NOTE"), "{text}");
    let values = read_back(&text);
    assert_eq!(values["site"], "ddog-gov.com");
    assert_eq!(values["explicit.enabled"], "true");
    assert_eq!(values["intercept.enabled"], "false");
    assert_eq!(values["upstream.endpoints"], "{}");
}

#[test]
fn other_ports_and_private_endpoints_are_kept() {
    let text = SHIPPED.replace("980", "180").replace(
        "agent-http-intake.logs.ddog-gov.com:443",
        "vpce-1.vpce.amazonaws.com:443 ssl ca-file /opt/gw.pem",
    );
    let old = haproxy::read(&text.replace("localhost", "0.0.0.0"));
    let agent = settings("site: us5.datadoghq.com\nfips: {enabled: true}\n");
    let text = propose(Some(&old), Some(&agent)).text();
    let values = read_back(&text);
    assert_eq!(values["explicit.port_range_start"], "1803");
    assert!(
        values["upstream.endpoints"].contains("vpce-1.vpce.amazonaws.com"),
        "{values:?}"
    );
    for note in [
        "us5.datadoghq.com, the old proxy sends to ddog-gov.com",
        "fips.https: false",
        "every address of the host",
        "/opt/gw.pem",
        "allow_private",
    ] {
        assert!(text.contains(note), "{note}: {text}");
    }
}

#[test]
fn the_ports_are_where_the_agent_looks() {
    let old = haproxy::read(&SHIPPED.replace(
        "presetenv DD_FIPS_LOCAL_ADDRESS localhost",
        "presetenv DD_FIPS_LOCAL_ADDRESS 10.0.0.7",
    ));
    let agent = settings("fips: {enabled: true, https: false, local_address: 127.0.0.2}\n");
    let text = propose(Some(&old), Some(&agent)).text();
    assert_eq!(read_back(&text)["explicit.local_address"], "127.0.0.2");
    assert_eq!(text.matches("listened on 10.0.0.7").count(), 1, "{text}");
}

#[test]
fn an_agent_alone_is_intercepted() {
    let text = propose(None, Some(&settings("site: ddog-gov.com\n"))).text();
    let values = read_back(&text);
    assert_eq!(values["site"], "ddog-gov.com");
    assert_eq!(values["explicit.enabled"], "false");
    assert_eq!(values["intercept.enabled"], "true");
}

#[test]
fn what_a_file_holds_never_becomes_a_line_of_ours() {
    let old = haproxy::read(
        "listen a\nbind :9804\nserver x \"a\\\" \u{e9}b\":443 ca-file \"/x\rintercept: {on_failure: open}\u{2028}\"\n",
    );
    let text = propose(Some(&old), None).text();
    assert!(text.contains("metrics: \"a\\\" \u{e9}b:443\""), "{text}");
    assert!(!text.contains(['\r', '\u{2028}']), "{text}");
    assert!(
        text.lines().all(|line| !line.starts_with("intercept: {")),
        "{text}"
    );
}

#[test]
fn nothing_is_proposed_over_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let etc = folder.path().join("etc/datadog-agent");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("datadog.yaml"), "fips: [").unwrap();
    let args = MigrateArgs {
        root: folder.path().to_owned(),
    };
    assert_eq!(run(&args), Exit::Config);
}

#[test]
fn a_host_without_either_has_nothing_to_say() {
    let folder = tempfile::tempdir().unwrap();
    let args = MigrateArgs {
        root: folder.path().to_owned(),
    };
    assert_eq!(run(&args), Exit::Unavailable);
    let etc = folder.path().join("etc/datadog-fips-proxy");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("datadog-fips-proxy.cfg"), SHIPPED).unwrap();
    assert_eq!(run(&args), Exit::Ok);
}
