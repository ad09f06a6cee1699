//! The catalogue: the contract of the ports, and which names are an intake's.

use proptest::prelude::*;

use super::*;

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
