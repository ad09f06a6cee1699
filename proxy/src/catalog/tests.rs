//! The catalogue: the contract of the ports, and which names are an intake's.

use proptest::prelude::*;

use super::*;

mod names;

fn gov() -> Catalog {
    Catalog::new(&"ddog-gov.com".parse().unwrap())
}

#[test]
fn every_product_has_its_row() {
    for entry in TABLE {
        assert_eq!(entry.product.entry().name, entry.name, "two rows for one product");
        assert_eq!(entry.name.parse::<Product>().unwrap(), entry.product);
        assert_eq!(serde_json::to_value(entry.product).unwrap(), entry.name);
    }
    let rows = TABLE
        .iter()
        .map(|e| e.name)
        .collect::<std::collections::BTreeSet<_>>();
    assert_eq!(rows.len(), TABLE.len());
}

#[test]
fn every_row_leads_somewhere_and_no_name_stands_twice() {
    let mut seen = std::collections::BTreeMap::new();
    for entry in TABLE {
        let first = entry.hosts[0];
        assert!(is_dns_name(first), "{}: `{first}` is no name to dial", entry.name);
        for host in entry.hosts {
            let plain = host
                .strip_prefix('*')
                .map_or((*host).to_owned(), |rest| format!("x{rest}"));
            assert!(is_dns_name(&plain), "{}: {host}", entry.name);
            // The two ports of database monitoring lead to one name.
            if entry.product != Product::DbmSamples
                && let Some(other) = seen.insert(*host, entry.name)
            {
                panic!("{host} is {}'s and {other}'s", entry.name);
            }
        }
    }
}

#[test]
fn the_port_order_is_the_agents_contract() {
    let order: Vec<(u16, &str)> = TABLE
        .iter()
        .filter_map(|e| Some((e.offset?, e.hosts[0])))
        .collect();
    let expected = [
        (1, "metrics.agent"),
        (2, "trace.agent"),
        (3, "intake.profile"),
        (4, "process"),
        (5, "agent-http-intake.logs"),
        (6, "dbm-metrics-intake"),
        (7, "dbm-metrics-intake"),
        (8, "ndm-intake"),
        (9, "snmp-traps-intake"),
        (10, "instrumentation-telemetry-intake"),
        (11, "appsecevts-intake"),
        (12, "orchestrator"),
        (13, "runtime-security-http-intake.logs"),
        (14, "cspm-intake"),
        (15, "ndmflow-intake"),
    ];
    assert_eq!(order, expected);
}

#[test]
fn names_are_compared_whole_and_on_label_boundaries() {
    let catalog = gov();
    let cases = [
        ("trace.agent.ddog-gov.com", Some(Product::Traces)),
        ("TRACE.Agent.DDOG-gov.com.", Some(Product::Traces)),
        ("7-81-0-app.agent.ddog-gov.com", Some(Product::Metrics)),
        ("7-81-0-flare.agent.ddog-gov.com", Some(Product::Flare)),
        ("config.ddog-gov.com", Some(Product::RemoteConfiguration)),
        ("sbom-intake.ddog-gov.com", Some(Product::Sbom)),
        ("something-new-intake.ddog-gov.com", Some(Product::OtherIntake)),
        (
            "runtime-security-http-intake.logs.ddog-gov.com",
            Some(Product::RuntimeSecurity),
        ),
        ("evilddog-gov.com", None),
        ("trace.agent.evilddog-gov.com", None),
        ("trace.agent.ddog-gov.com.evil.example", None),
        ("ddog-gov.com", None),
        (".ddog-gov.com", None),
        ("www.ddog-gov.com", None),
        ("trace.agent.ddog-gov.com..", None),
        ("a.b-intake.ddog-gov.com", None),
        ("-intake.ddog-gov.com", None),
        ("trace.agent.datadoghq.com", None),
        ("", None),
    ];
    for (name, product) in cases {
        assert_eq!(catalog.lookup(name), product, "{name}");
    }
}

#[test]
fn a_name_wins_over_every_pattern() {
    let catalog = gov();
    let covering = |prefix: &str| {
        TABLE
            .iter()
            .any(|entry| entry.hosts.iter().any(|host| covers(host, prefix)))
    };
    let mut contested = 0;
    for entry in TABLE.iter().filter(|entry| entry.product != Product::OtherIntake) {
        for host in entry.hosts.iter().filter(|host| covering(host)) {
            let found = catalog.lookup(&format!("{host}.ddog-gov.com"));
            assert_ne!(found, Some(Product::OtherIntake), "{host}");
            contested += 1;
        }
    }
    assert!(contested > 20, "{contested}");
    // Also where the pattern stands first.
    let row = |product: Product, hosts| Entry {
        product,
        hosts,
        offset: None,
        ..*product.entry()
    };
    let table = [
        row(Product::OtherIntake, &["first", "*-intake.logs"][..]),
        row(Product::TcpLogs, &["agent-intake.logs"][..]),
        row(Product::Logs, &["*-http-intake.logs", "first"][..]),
    ];
    for (prefix, product) in [
        ("agent-intake.logs", Some(Product::TcpLogs)),
        ("agent-http-intake.logs", Some(Product::OtherIntake)),
        ("first", Some(Product::OtherIntake)),
        ("second", None),
    ] {
        let found = find(&table, prefix).map(|entry| entry.product);
        assert_eq!(found, product, "{prefix}");
    }
    assert_eq!(
        catalog.lookup("1-app.agent.ddog-gov.com"),
        Some(Product::Metrics),
        "of two patterns the first counts"
    );
    assert_eq!(
        catalog.lookup("agent-443-intake.logs.ddog-gov.com"),
        Some(Product::TcpLogs)
    );
    assert_eq!(
        catalog.lookup("new-intake.logs.ddog-gov.com"),
        Some(Product::OtherIntake)
    );
}

#[test]
fn only_logs_over_tcp_are_a_stream() {
    let streams: Vec<&str> = TABLE
        .iter()
        .filter(|entry| entry.product.protocol() == Protocol::Stream)
        .map(|entry| entry.name)
        .collect();
    assert_eq!(streams, ["tcp_logs"]);
    let us = Catalog::new(&"datadoghq.com".parse().unwrap());
    for prefix in [
        "agent-intake",
        "agent-443-intake",
        "intake",
        "tcp-intake",
        "tcp-encrypted-intake",
        "lambda-intake",
    ] {
        let found = us.lookup(&format!("{prefix}.logs.datadoghq.com"));
        assert_eq!(found.map(Product::protocol), Some(Protocol::Stream), "{prefix}");
    }
    for prefix in [
        "agent-http-intake",
        "http-intake",
        "lambda-http-intake",
        "gcp-intake",
        "http-encrypted-intake",
    ] {
        let found = us.lookup(&format!("{prefix}.logs.datadoghq.com"));
        assert_eq!(found.map(Product::protocol), Some(Protocol::Http), "{prefix}");
    }
    // A port of the Agent's `fips.*` settings speaks HTTP.
    assert!(
        TABLE
            .iter()
            .all(|entry| entry.offset.is_none() || entry.protocol == Protocol::Http)
    );
}

#[test]
fn the_metrics_port_routes_by_path() {
    let cases = [
        ("/api/v1/validate", Product::Api),
        ("/api/v1/validate/", Product::Api),
        ("/api/v1/validated", Product::Metrics),
        ("/support/flare", Product::Flare),
        ("/support/flare/123", Product::Flare),
        ("/api/v2/series", Product::Metrics),
    ];
    for (path, product) in cases {
        assert_eq!(Catalog::route(Product::Metrics, path), product, "{path}");
    }
    assert_eq!(
        Catalog::route(Product::Traces, "/api/v1/validate"),
        Product::Traces
    );
}

#[test]
fn sites_are_domains() {
    assert_eq!("DDOG-GOV.com.".parse::<Site>().unwrap().as_str(), "ddog-gov.com");
    for bad in ["", "com", "a..b", "http://x.com", "x.com/", "x .com", "-a.com"] {
        assert!(bad.parse::<Site>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn property_lookup_never_accepts_a_foreign_domain(prefix in "[a-z0-9.-]{0,40}", site in "[a-z]{1,12}\\.(com|net)") {
        prop_assume!(site != "ddog-gov.com" && !site.ends_with(".ddog-gov.com"));
        let name = format!("{prefix}{site}");
        prop_assert_eq!(gov().lookup(&name), None);
    }

    #[test]
    fn property_lookup_ignores_case_and_one_trailing_dot(index in 0..TABLE.len(), upper in any::<bool>(), dot in any::<bool>()) {
        let host = TABLE[index].hosts[0];
        prop_assume!(!host.starts_with('*'));
        let mut name = format!("{host}.ddog-gov.com");
        let plain = gov().lookup(&name);
        if upper { name = name.to_ascii_uppercase(); }
        if dot { name.push('.'); }
        prop_assert!(plain.is_some());
        prop_assert_eq!(gov().lookup(&name), plain);
    }

    #[test]
    fn property_lookup_takes_any_text(name in "\\PC{0,300}") {
        let _ = gov().lookup(&name);
    }
}

#[test]
fn sites_that_are_known() {
    let known = |site: &str| site.parse::<Site>().unwrap().known();
    assert_eq!(known("DDOG-GOV.com.").map(|site| site.name), Some("US1-FED"));
    assert_eq!(known("example.net"), None);
    // The Agent's own table of ports (`logsEndpoints`); no other site has a name for logs over TCP.
    let ports: Vec<(&str, u16)> = KNOWN_SITES
        .iter()
        .filter_map(|site| Some((site.domain, site.tcp_logs?)))
        .collect();
    let expected = [
        ("datadoghq.com", 10516),
        ("datadoghq.eu", 443),
        ("datad0g.com", 10516),
        ("datad0g.eu", 443),
    ];
    assert_eq!(ports, expected);
    assert_eq!(Site::default().known().map(|site| site.name), Some("US1"));
}

#[test]
fn the_reference_says_everything() {
    let page = reference();
    for entry in TABLE {
        assert!(page.contains(&format!("| `{}` |", entry.name)), "{}", entry.name);
        for host in entry.hosts {
            assert!(page.contains(&format!("`{host}.<site>`")), "{host}");
        }
    }
    for site in KNOWN_SITES {
        assert!(
            page.contains(&format!("| `{}` |", site.domain)),
            "{}",
            site.domain
        );
    }
    assert!(!page.contains("{stream names}"));
    // A cell must not end its row.
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.iter().all(|row| row.ends_with('|')), "{rows:#?}");
}
