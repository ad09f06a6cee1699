//! What is recorded shows up under its labels.

use super::*;

fn metrics() -> Metrics {
    Metrics::new(
        crate::tls::module::start().unwrap(),
        MasterStatus::default(),
        2,
        false,
    )
}

fn record(product: Option<Product>, outcome: Outcome, status: u16) -> RequestRecord {
    RequestRecord {
        product,
        via: Via::Cgroup,
        client: "127.0.0.1:1".parse().unwrap(),
        original_dst: None,
        method: http::Method::POST,
        path: "/api/v2/series".to_owned(),
        upstream_name: None,
        upstream_addr: None,
        tls: None,
        http: "1.1",
        upstream_http: None,
        status,
        outcome,
        bytes_up: 10,
        bytes_down: 2,
        duration: Duration::from_millis(3),
        retries: 1,
        error: None,
    }
}

#[test]
fn the_indexes_are_the_tables() {
    for (at, entry) in TABLE.iter().enumerate() {
        assert_eq!(product_index(Some(entry.product)), at, "{}", entry.name);
    }
    for (at, outcome) in Outcome::ALL.iter().enumerate() {
        assert_eq!(outcome_index(*outcome), at);
    }
    for (at, via) in VIAS.iter().enumerate() {
        assert_eq!(via_index(*via), at);
    }
}

#[test]
fn a_request_shows_up_under_its_labels() {
    let metrics = metrics();
    metrics.request(&record(Some(Product::Logs), Outcome::Ok, 202));
    metrics.request(&record(None, Outcome::Misdirected, 421));
    let text = metrics.render();
    let expected = [
        r#"agent_fips_proxy_requests_total{product="logs",via="cgroup",outcome="ok",status_class="2xx"} 1"#,
        r#"agent_fips_proxy_requests_total{product="-",via="cgroup",outcome="misdirected",status_class="4xx"} 1"#,
        r#"agent_fips_proxy_bytes_total{direction="up",product="logs"} 10"#,
        r#"agent_fips_proxy_request_duration_seconds_bucket{le="0.005",product="logs"} 1"#,
        r#"agent_fips_proxy_request_duration_seconds_bucket{le="0.0025",product="logs"} 0"#,
        r#"agent_fips_proxy_upstream_retries_total 2"#,
        "# EOF",
    ];
    for line in expected {
        assert!(text.contains(line), "{line}\nnot in\n{text}");
    }
    assert_eq!(metrics.products().len(), 2);
}

#[test]
fn open_connections_come_back_to_zero() {
    let metrics = metrics();
    metrics.connection_opened(Via::Explicit);
    metrics.connection_opened(Via::Cgroup);
    assert_eq!(metrics.connections(), 2);
    for via in VIAS {
        metrics.connection(&ConnectionRecord {
            via,
            client: "127.0.0.1:1".parse().unwrap(),
            original_dst: None,
            class: Some("http1"),
            decision: "terminate",
            process: None,
            tls: None,
            name: None,
            outcome: Outcome::Ok,
            requests: 1,
            bytes_up: 0,
            bytes_down: 0,
            duration: Duration::ZERO,
            error: None,
        });
    }
    assert_eq!(metrics.connections(), 0);
    assert!(metrics.render().contains(
        r#"agent_fips_proxy_connections_total{via="explicit",decision="terminate",outcome="ok"} 1"#
    ));
}

#[test]
fn handshakes_are_counted_by_parameters() {
    let metrics = metrics();
    let tls = Negotiated {
        version: "TLSv1.3".to_owned(),
        suite: "TLS13_AES_256_GCM_SHA384".to_owned(),
        group: Some("secp256r1".to_owned()),
        peer: "api.ddog-gov.com".to_owned(),
        pin: Some("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".to_owned()),
        client_certificate: true,
        proxy: Some("proxy.example.net:3128".to_owned()),
        ..Negotiated::default()
    };
    let place = UpstreamPlace {
        product: Product::Logs,
        name: "agent-http-intake.logs.ddog-gov.com",
        host: "proxy.example.net",
        address: "203.0.113.7:3128".parse().unwrap(),
    };
    metrics.upstream_connected(&place, &tls);
    metrics.upstream_connected(&place, &tls);
    assert_eq!(metrics.upstream_tls()[0].handshakes, 2);
    let session = &metrics.upstream_sessions()[0];
    assert_eq!(
        (session.sessions, session.proxy.clone(), session.pin.clone()),
        (2, tls.proxy, tls.pin)
    );
    assert!(metrics.render().contains(
        r#"agent_fips_proxy_upstream_sessions_total{proxy="proxy.example.net:3128",pin="47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",client_certificate="true"} 2"#
    ));
    assert!(metrics.render().contains(
        r#"agent_fips_proxy_upstream_tls_total{version="TLSv1.3",suite="TLS13_AES_256_GCM_SHA384",group="secp256r1"} 2"#
    ));
}

#[test]
fn what_servers_are_judged_by_shows_up() {
    let metrics = metrics();
    assert!(metrics.render().contains("agent_fips_proxy_trust_alarms 0"));
    assert!(!metrics.render().contains("crl"), "{}", metrics.render());
    metrics.set_trust(TrustStatus {
        crls: Some(crate::tls::CrlStatus {
            folder: "/etc/crls".into(),
            policy: crate::config::CrlPolicy::HardFail,
            count: 3,
            next_update: None,
            next_update_unix: Some(1_800_000_000),
            expired: vec!["/etc/crls/a.crl".to_owned()],
            problems: vec!["/etc/crls/b.crl: no list".to_owned(), "c".to_owned()],
            changes: 0,
        }),
        client_certificate: Some(crate::tls::ClientCertificateStatus {
            file: "/etc/us.pem".into(),
            sha256: "00".to_owned(),
            not_after: String::new(),
            not_after_unix: 1_900_000_000,
        }),
        alarms: vec!["one".to_owned()],
        ..TrustStatus::default()
    });
    let text = metrics.render();
    for line in [
        "agent_fips_proxy_trust_alarms 1",
        "agent_fips_proxy_crls 3",
        "agent_fips_proxy_crls_expired 1",
        "agent_fips_proxy_crls_unusable 2",
        "agent_fips_proxy_crl_next_update_timestamp_seconds 1800000000",
        "agent_fips_proxy_client_certificate_not_after_timestamp_seconds 1900000000",
    ] {
        assert!(text.contains(line), "{line} not in {text}");
    }
}
