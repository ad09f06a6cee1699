//! The names themselves: every row on every site, those that Agents were seen to use, those beside the site, those left alone.

use super::*;

/// The name that a host of the table stands for, a pattern with a version in its place.
fn example(host: &str) -> String {
    host.strip_prefix('*')
        .map_or(host.to_owned(), |rest| format!("7-81-0{rest}"))
}

#[test]
fn every_site_has_every_row() {
    let sites = KNOWN_SITES
        .iter()
        .map(|known| known.domain)
        .chain(["intake.example.net"]);
    let mut looked_up = 0;
    for site in sites {
        let catalog = Catalog::new(&site.parse().unwrap());
        for entry in TABLE {
            for host in entry.hosts {
                let prefix = example(host);
                let name = format!("{prefix}.{site}");
                // Both ports of database monitoring lead to the first's name.
                let shared = entry.product == Product::DbmSamples && *host == "dbm-metrics-intake";
                let product = if shared {
                    Product::DbmMetrics
                } else {
                    entry.product
                };
                for good in [
                    name.clone(),
                    name.to_ascii_uppercase(),
                    format!("{name}."),
                    format!("{}.", name.to_ascii_uppercase()),
                ] {
                    assert_eq!(catalog.lookup(&good), Some(product), "{good}");
                    looked_up += 1;
                }
                for bad in [
                    format!("{prefix}.evil{site}"),
                    format!("{prefix}{site}"),
                    format!("{prefix}-{site}"),
                    format!("{name}.evil.org"),
                    format!("{name}.."),
                    format!(".{name}"),
                    format!("evil.{name}"),
                    format!("{prefix}.wrong.example"),
                    format!("{prefix}.{site}:443"),
                    prefix.clone(),
                ] {
                    assert_eq!(catalog.lookup(&bad), None, "{bad}");
                }
            }
        }
        let others = KNOWN_SITES.iter().filter(|other| other.domain != site);
        for other in others {
            for entry in TABLE {
                let name = format!("{}.{}", example(entry.hosts[0]), other.domain);
                assert_eq!(catalog.lookup(&name), None, "{name} for {site}");
            }
        }
    }
    assert!(looked_up > 3000, "{looked_up}");
}

/// Names that the Agent was seen to use or that are documented, not read from the table: what people meet.
#[test]
fn what_agents_ask_for_is_an_intake() {
    let cases = [
        // What the Agent's fips.* settings do not redirect.
        ("config", Product::RemoteConfiguration),
        ("contimage-intake", Product::ContainerImages),
        ("contlcycle-intake", Product::ContainerLifecycle),
        ("sbom-intake", Product::Sbom),
        ("netpath-intake", Product::NetworkPath),
        ("http-synthetics", Product::Synthetics),
        ("intake.synthetics", Product::Synthetics),
        ("event-management-intake", Product::EventManagement),
        ("softinv-intake", Product::SoftwareInventory),
        ("eudm-intake", Product::SoftwareInventory),
        ("kubeops-intake", Product::OtherIntake),
        ("resources-intake", Product::OtherIntake),
        ("agentdiscovery-intake", Product::OtherIntake),
        ("agenthealth-intake", Product::OtherIntake),
        ("sds-intake", Product::OtherIntake),
        ("sourcemap-intake", Product::OtherIntake),
        ("llmobs-intake", Product::OtherIntake),
        ("data-obs-intake", Product::DataObservability),
        ("ndm-intake", Product::NetworkDevices),
        ("instrumentation-telemetry-intake", Product::Telemetry),
        ("cws-intake", Product::SecurityDumps),
        ("debugger-intake", Product::Debugger),
        ("dbquery-intake", Product::DbmSamples),
        ("otlp", Product::Otlp),
        ("app", Product::Metrics),
        ("6-53-0-app.agent", Product::Metrics),
        ("7-101-12-flare.agent", Product::Flare),
        // PrivateLink.
        ("agent-http-intake.logs", Product::Logs),
        ("http-intake.logs", Product::UserLogs),
        ("api", Product::Api),
        ("metrics.agent", Product::Metrics),
        ("orchestrator", Product::Orchestrator),
        ("process", Product::Processes),
        ("intake.profile", Product::Profiles),
        ("trace.agent", Product::Traces),
        ("dbm-metrics-intake", Product::DbmMetrics),
        // Failover.
        ("app.mrf", Product::Metrics),
        ("7-81-0-app.agent.mrf", Product::Metrics),
        ("agent-http-intake.logs.mrf", Product::Logs),
        ("trace.agent.mrf", Product::Traces),
        ("config.mrf", Product::RemoteConfiguration),
        ("sbom-intake.logs.mrf", Product::OtherIntake),
        ("http-synthetics.logs.mrf", Product::OtherIntake),
        ("runtime-security-http-intake.logs.mrf", Product::OtherIntake),
        ("agent-intake.logs.mrf", Product::TcpLogs),
        // What a tracer sends through the Agent's proxy (`evp_proxy`).
        ("citestcycle-intake", Product::OtherIntake),
        ("event-platform-intake", Product::OtherIntake),
    ];
    for site in ["datadoghq.com", "us5.datadoghq.com"] {
        let catalog = Catalog::new(&site.parse().unwrap());
        for (prefix, product) in cases {
            let name = format!("{prefix}.{site}");
            assert_eq!(catalog.lookup(&name), Some(product), "{name}");
        }
    }
}

#[test]
fn what_is_no_intake_is_left_alone() {
    for site in ["datadoghq.com", "ddog-gov.com"] {
        let catalog = Catalog::new(&site.parse().unwrap());
        for (name, _) in reference::LEFT_ALONE {
            let name = name.replace("<site>", site).replace("datadoghq.com", site);
            assert_eq!(catalog.lookup(&name), None, "{name}");
        }
        for name in ["www", "docs", "us3", "mrf", "agent", "logs", "intake"] {
            let name = format!("{name}.{site}");
            assert_eq!(catalog.lookup(&name), None, "{name}");
        }
    }
}

#[test]
fn names_beside_the_site_belong_to_it() {
    for (site, expected) in [
        ("datadoghq.com", "browser-intake-datadoghq.com"),
        ("us3.datadoghq.com", "browser-intake-us3-datadoghq.com"),
        ("us5.datadoghq.com", "browser-intake-us5-datadoghq.com"),
        ("datadoghq.eu", "browser-intake-datadoghq.eu"),
        ("ap1.datadoghq.com", "browser-intake-ap1-datadoghq.com"),
        ("ap2.datadoghq.com", "browser-intake-ap2-datadoghq.com"),
        ("uk1.datadoghq.com", "browser-intake-uk1-datadoghq.com"),
        ("ddog-gov.com", "browser-intake-ddog-gov.com"),
        ("us2.ddog-gov.com", "browser-intake-us2-ddog-gov.com"),
        ("datad0g.com", "browser-intake-datad0g.com"),
    ] {
        let catalog = Catalog::new(&site.parse().unwrap());
        assert_eq!(catalog.domains(), [site, expected]);
        for good in [
            expected.to_owned(),
            expected.to_ascii_uppercase(),
            format!("{expected}."),
        ] {
            assert_eq!(catalog.lookup(&good), Some(Product::OtherIntake), "{good}");
        }
        for bad in [
            format!("x.{expected}"),
            format!("evil{expected}"),
            format!("{expected}.evil.org"),
            format!("{expected}.."),
        ] {
            assert_eq!(catalog.lookup(&bad), None, "{bad}");
        }
        assert!(catalog.names().contains(&expected.to_owned()));
    }
}

#[test]
fn names_can_be_resolved_and_are_ours() {
    let catalog = gov();
    let names = catalog.names();
    for name in &names {
        assert!(is_dns_name(name) && catalog.lookup(name).is_some(), "{name}");
    }
    for entry in TABLE {
        assert!(names.contains(&catalog.host(entry.product)), "{}", entry.name);
    }
    let mut once = names.clone();
    once.dedup();
    assert_eq!(once, names);
}

#[test]
fn a_dns_name_has_sound_labels() {
    let long = "a".repeat(63);
    let longest = format!("{long}.{long}.{long}.{}", "a".repeat(61));
    for good in [
        "a",
        "a.b",
        "xn--a",
        "a_b.c-d",
        "0",
        "A.b",
        long.as_str(),
        longest.as_str(),
    ] {
        assert!(is_dns_name(good), "{good}");
    }
    let too_long = (format!("{long}a"), format!("{longest}a"));
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a.-b",
        "a-.b",
        "a b",
        "a:b",
        "*",
        "ä",
        &too_long.0,
        &too_long.1,
    ] {
        assert!(!is_dns_name(bad), "{bad}");
    }
}
