//! What `doctor` says of an Agent's settings: each that selects TCP, each that asks for HTTP, and no secrets.

use super::*;

/// For the Agent's own default site.
fn ours() -> Config {
    Config::default()
}

fn judged(yaml: &str, environment: &str, config: &Config) -> Vec<Check> {
    match Settings::of(yaml, environment, LOOKED_AT) {
        Ok(settings) => judge(&settings, config),
        Err(broken) => vec![problem(broken)],
    }
}

fn found<'c>(checks: &'c [Check], name: &str) -> Option<&'c Check> {
    checks.iter().find(|check| check.name == name)
}

/// What is said of the logs.
fn said_of_logs(yaml: &str, environment: &str) -> Check {
    let checks = judged(yaml, environment, &ours());
    found(&checks, "agent logs")
        .unwrap_or_else(|| panic!("{yaml}: {checks:#?}"))
        .clone()
}

#[test]
fn every_setting_is_looked_at_once() {
    let mut unique = LOOKED_AT.to_vec();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), LOOKED_AT.len());
}

#[test]
fn what_selects_tcp_is_named() {
    let cases = [
        (
            "logs_enabled: true\nlogs_config: {use_tcp: true}",
            "",
            "logs_config.use_tcp is set",
        ),
        (
            "logs_enabled: true\nlogs_config: {force_use_tcp: yes}",
            "",
            "logs_config.force_use_tcp is set",
        ),
        (
            "log_enabled: true\nlogs_config: {use_tcp: true}",
            "",
            "logs_config.use_tcp is set",
        ),
        (
            "logs_enabled: true\nlogs_config: {socks5_proxy_address: \"p:1080\"}",
            "",
            "logs_config.socks5_proxy_address is set",
        ),
        (
            "logs_enabled: true\nlogs_config:\n  additional_endpoints:\n    - {api_key: s3cret, Host: h.example, Port: 443}",
            "",
            "logs_config.additional_endpoints has an entry",
        ),
        (
            "logs_enabled: true\nlogs_config: {logs_dd_url: \"user:s3cret@intake.example:10516\"}",
            "",
            "logs_config.logs_dd_url names port 10516",
        ),
        (
            "logs_enabled: true\nlogs_config: {logs_dd_url: \"agent-intake.logs.datadoghq.eu:443\"}",
            "",
            "logs_config.logs_dd_url names an intake that takes raw TCP alone",
        ),
        (
            "",
            "DD_LOGS_ENABLED=true\nDD_LOGS_CONFIG_USE_TCP=1",
            "DD_LOGS_CONFIG_USE_TCP (/etc/datadog-agent/environment) is set",
        ),
        (
            "logs_enabled: true",
            "DD_LOGS_CONFIG_ADDITIONAL_ENDPOINTS='[{\"api_key\":\"s3cret\",\"Host\":\"h\"}]'",
            "DD_LOGS_CONFIG_ADDITIONAL_ENDPOINTS (/etc/datadog-agent/environment) has an entry",
        ),
        // A variable wins over the file.
        (
            "logs_enabled: true\nlogs_config: {use_tcp: true, use_http: true}",
            "DD_LOGS_CONFIG_USE_HTTP=false",
            "logs_config.use_tcp is set",
        ),
    ];
    for (yaml, environment, why) in cases {
        let check = said_of_logs(yaml, environment);
        assert!(!check.ok && !check.required, "{yaml} {environment}: {check:?}");
        assert!(
            check.detail.contains(why),
            "{yaml} {environment}: {}",
            check.detail
        );
        assert!(check.detail.starts_with("over TCP: "), "{}", check.detail);
        assert!(
            check.cure.contains("logs_config.force_use_http: true"),
            "{}",
            check.cure
        );
        assert!(!format!("{check:?}").contains("s3cret"), "{check:?}");
    }
}

#[test]
fn what_asks_for_http_wins() {
    let tcp = "use_tcp: true, additional_endpoints: [{Host: h}], socks5_proxy_address: \"p:1\"";
    for yaml in [
        format!("logs_enabled: true\nlogs_config: {{{tcp}, use_http: true}}"),
        format!("logs_enabled: true\nlogs_config: {{{tcp}, force_use_http: true}}"),
        format!("logs_enabled: true\nlogs_config: {{{tcp}, logs_dd_url: \"https://h.example:10516\"}}"),
        format!("logs_enabled: true\nlogs_config: {{{tcp}}}\nfips: {{enabled: true, https: false}}"),
        format!("logs_enabled: true\nlogs_config: {{{tcp}}}\nvector: {{logs: {{enabled: true}}}}"),
        format!(
            "logs_enabled: true\nlogs_config: {{{tcp}}}\nobservability_pipelines_worker: {{logs: {{enabled: true}}}}"
        ),
    ] {
        let check = said_of_logs(&yaml, "");
        assert!(
            check.ok && check.detail.contains("over HTTP"),
            "{yaml}: {check:?}"
        );
    }
    let off = said_of_logs("logs_config: {use_tcp: true}", "");
    assert!(off.ok && off.detail.contains("not collected"), "{off:?}");
}

#[test]
fn an_agent_that_may_go_over_to_tcp_is_told_where_there_is_tcp() {
    let check = said_of_logs("logs_enabled: true", "");
    assert!(
        !check.ok && check.detail.contains("goes over to TCP"),
        "{check:?}"
    );
    assert!(
        check.detail.contains("past the proxy: their port 10516"),
        "{check:?}"
    );
    // An empty list selects nothing.
    let check = said_of_logs("logs_enabled: true\nlogs_config: {additional_endpoints: []}", "");
    assert!(check.detail.contains("goes over to TCP"), "{check:?}");

    let mut config = ours();
    config.site = "ddog-gov.com".parse().unwrap();
    let checks = judged("site: ddog-gov.com\nlogs_enabled: true", "", &config);
    let check = found(&checks, "agent logs").unwrap();
    assert!(
        check.ok && check.detail.contains("ddog-gov.com does not take"),
        "{check:?}"
    );
    // A site that nobody knows may have it.
    config.site = "intake.example".parse().unwrap();
    let checks = judged("site: intake.example\nlogs_enabled: true", "", &config);
    assert!(!found(&checks, "agent logs").unwrap().ok, "{checks:#?}");
}

#[test]
fn the_port_says_what_becomes_of_them() {
    let tcp = |more: &str| format!("logs_enabled: true\nlogs_config: {{use_tcp: true{more}}}");
    let mut config = ours();
    let mut eu = ours();
    eu.site = "datadoghq.eu".parse().unwrap();
    let detail = |yaml: &str, config: &Config| {
        let checks = judged(yaml, "", config);
        found(&checks, "agent logs").unwrap().detail.clone()
    };
    assert!(detail(&tcp(""), &config).contains("past the proxy: their port 10516"));
    assert!(
        detail(&tcp(", use_port_443: true"), &config).contains("Their port 443 is one of intercept.ports")
    );
    assert!(detail(&tcp(", logs_dd_url: \"h:8443\""), &config).contains("their port 8443 is not"));
    assert!(detail(&format!("site: datadoghq.eu\n{}", tcp("")), &eu).contains("Their port 443 is one"));
    config.intercept.ports.push(10516);
    assert!(detail(&tcp(""), &config).contains("Their port 10516 is one of intercept.ports"));
    config.intercept.enabled = false;
    assert!(detail(&tcp(""), &config).contains("without the proxy (intercept.enabled: false)"));
}

#[test]
fn an_agent_that_believes_any_certificate_is_told() {
    for (yaml, environment, why) in [
        ("skip_ssl_validation: true", "", "skip_ssl_validation is true"),
        (
            "",
            "DD_SKIP_SSL_VALIDATION=true",
            "DD_SKIP_SSL_VALIDATION (/etc/datadog-agent/environment) is true",
        ),
        (
            "fips: {enabled: true, tls_verify: false}",
            "",
            "fips.tls_verify is false",
        ),
    ] {
        let checks = judged(yaml, environment, &ours());
        let check = found(&checks, "agent certificate checks").unwrap_or_else(|| panic!("{yaml}"));
        assert!(
            !check.ok && !check.required && check.detail.contains(why),
            "{check:?}"
        );
    }
    for yaml in [
        "skip_ssl_validation: false",
        "fips: {enabled: true, https: false, tls_verify: false}",
        "fips: {tls_verify: false}",
    ] {
        let checks = judged(yaml, "", &ours());
        assert!(
            found(&checks, "agent certificate checks").is_none(),
            "{yaml}: {checks:#?}"
        );
    }
}

#[test]
fn another_site_is_none_of_ours() {
    let mut gov = ours();
    gov.site = "ddog-gov.com".parse().unwrap();
    let checks = judged("", "", &gov);
    let check = found(&checks, "agent site").unwrap();
    assert!(
        !check.ok
            && check.detail.contains("datadoghq.com, the default")
            && check.detail.contains("ddog-gov.com"),
        "{check:?}"
    );
    for same in ["site: ddog-gov.com", "site: DDOG-GOV.com."] {
        assert!(found(&judged(same, "", &gov), "agent site").is_none(), "{same}");
    }
    let checks = judged("site: \"https://ddog-gov.com\"", "", &gov);
    assert!(
        found(&checks, "agent site")
            .unwrap()
            .detail
            .contains("is not a site"),
        "{checks:#?}"
    );

    let failover = "multi_region_failover: {enabled: true, site: datadoghq.eu}";
    let checks = judged(failover, "", &ours());
    assert!(found(&checks, "agent failover site").is_some(), "{checks:#?}");
    for quiet in [
        "multi_region_failover: {enabled: false, site: datadoghq.eu}",
        "multi_region_failover: {enabled: true, site: datadoghq.com}",
        "multi_region_failover: {enabled: true}",
    ] {
        assert!(
            found(&judged(quiet, "", &ours()), "agent failover site").is_none(),
            "{quiet}"
        );
    }
}

#[test]
fn fips_settings_fit_the_explicit_ports() {
    let check =
        |yaml: &str, config: &Config| found(&judged(yaml, "", config), "agent fips settings").cloned();
    assert!(check("", &ours()).is_none());
    let good = check("fips: {enabled: true, https: false}", &ours()).unwrap();
    assert!(good.ok, "{good:?}");
    let mut other = ours();
    other.explicit.port_range_start = 19803;
    let moved = check(
        "fips: {enabled: true, https: false, port_range_start: 19803}",
        &other,
    )
    .unwrap();
    assert!(moved.ok, "{moved:?}");
    let mut off = ours();
    off.explicit.enabled = false;
    for (yaml, config, why) in [
        ("fips: {enabled: true}", &ours(), "without fips.https: false"),
        (
            "fips: {enabled: true, https: false}",
            &other,
            "begin at 9803, the proxy's at 19803",
        ),
        (
            "fips: {enabled: true, https: false, port_range_start: x}",
            &other,
            "is no port",
        ),
        (
            "fips: {enabled: true, https: false}",
            &off,
            "explicit.enabled: false",
        ),
    ] {
        let bad = check(yaml, config).unwrap();
        assert!(
            !bad.ok && !bad.required && bad.detail.contains(why),
            "{yaml}: {bad:?}"
        );
    }
}

#[test]
fn a_host_is_read_whole_or_the_reason_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path());
    assert_eq!(checks(&place, &ours()), [], "no Agent, nothing to say");

    let agent = folder.path().join("etc/datadog-agent");
    std::fs::create_dir_all(&agent).unwrap();
    std::fs::write(
        agent.join("datadog.yaml"),
        "api_key: s3cret\nlogs_enabled: true\n",
    )
    .unwrap();
    std::fs::write(agent.join("environment"), "DD_LOGS_CONFIG_FORCE_USE_TCP=true\n").unwrap();
    let said = checks(&place, &ours());
    assert!(!found(&said, "agent logs").unwrap().ok, "{said:#?}");
    assert!(found(&said, "agent configuration").unwrap().ok, "{said:#?}");

    // With a broken file nothing else is concluded, and nothing is required.
    std::fs::write(agent.join("datadog.yaml"), "api_key: [s3cret\n").unwrap();
    let said = checks(&place, &ours());
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(
        !said[0].ok && !said[0].required && said[0].detail.contains("not valid YAML in line"),
        "{said:#?}"
    );
    assert!(!format!("{said:?}").contains("s3cret"), "{said:#?}");
}
