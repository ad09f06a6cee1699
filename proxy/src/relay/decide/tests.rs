//! The tables of decisions.

use super::*;
use crate::relay::origin::OriginalDst;

fn catalog() -> Catalog {
    Catalog::new(&"ddog-gov.com".parse().unwrap())
}

#[test]
fn where_http_is_spoken_the_client_speaks_first() {
    assert!(!server_may_speak_first(80) && !server_may_speak_first(443));
    assert!([22, 25, 8080, 10516].into_iter().all(server_may_speak_first));
}

#[test]
fn only_plain_http_for_an_intake_name_is_terminated() {
    use Class::{Http1, Http2, Opaque, Silent};
    for (class, host, expected) in [
        (Http1, Some("app.ddog-gov.com"), Decision::Terminate),
        (
            Http1,
            Some("7-81-0-app.agent.ddog-gov.com:80"),
            Decision::Terminate,
        ),
        (Http1, Some("APP.DDOG-GOV.COM."), Decision::Terminate),
        (Http1, Some(self_test::NAME), Decision::Terminate),
        (Http1, Some("example.org"), Decision::Tunnel),
        (Http1, Some("evilddog-gov.com"), Decision::Tunnel),
        (Http1, Some("app.ddog-gov.com.evil.org"), Decision::Tunnel),
        (Http1, Some("203.0.113.1"), Decision::Tunnel),
        (Http1, None, Decision::Tunnel),
        (
            Http1,
            Some("key@app.ddog-gov.com"),
            Decision::Refuse(Refusal::Bad("Host carries user-info")),
        ),
        (
            Http1,
            Some("a b"),
            Decision::Refuse(Refusal::Bad("malformed Host")),
        ),
        (Http1, Some(""), Decision::Refuse(Refusal::Bad("malformed Host"))),
        (
            Http2,
            None,
            Decision::Refuse(Refusal::Unsupported(
                "HTTP/2 without TLS is not relayed: let the Agent speak HTTP/1.1, or HTTPS",
            )),
        ),
        (Opaque, None, Decision::Tunnel),
        (Silent, None, Decision::Tunnel),
    ] {
        assert_eq!(
            connection(class, None, host, &catalog()),
            expected,
            "{class:?} {host:?}"
        );
    }
}

#[test]
fn a_head_that_names_an_intake_and_another_host_is_not_passed_on() {
    let two = Decision::Refuse(Refusal::Bad(TWO_HOSTS));
    for (target, host, expected) in [
        ("app.ddog-gov.com", "APP.ddog-gov.com", Decision::Terminate),
        ("example.org", "app.ddog-gov.com", two.clone()),
        ("example.org", "app.ddog-gov.com:8080", two.clone()),
        ("app.ddog-gov.com", "example.org", two.clone()),
        ("app.ddog-gov.com", "trace.agent.ddog-gov.com", two),
        ("example.org", "www.example.net", Decision::Tunnel),
    ] {
        assert_eq!(
            connection(Class::Http1, Some(target), Some(host), &catalog()),
            expected,
            "{target} {host}"
        );
    }
}

#[test]
fn tls_is_decided_by_the_name_asked_for() {
    use Decision::{Passthrough, Refuse, Terminate, Tunnel};
    let exceptions: Vec<HttpsException> = ["config.ddog-gov.com", "*-app.agent.ddog-gov.com", "process:node"]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    let refuse = Refuse(Refusal::Https);
    // Asked for, by whom; under terminate, passthrough, refuse.
    for (name, process, expected) in [
        (
            Some("process.ddog-gov.com"),
            None,
            [Terminate, Passthrough, refuse.clone()],
        ),
        (
            Some("Process.DDOG-gov.com"),
            Some("agent"),
            [Terminate, Passthrough, refuse.clone()],
        ),
        (
            Some("process.ddog-gov.com"),
            Some("node"),
            [Passthrough, Passthrough, Passthrough],
        ),
        (
            Some("config.ddog-gov.com"),
            None,
            [Passthrough, Passthrough, Passthrough],
        ),
        (
            Some("7-81-0-app.agent.ddog-gov.com"),
            None,
            [Passthrough, Passthrough, Passthrough],
        ),
        // A stream that is no HTTP inside its TLS.
        (
            Some("agent-intake.logs.ddog-gov.com"),
            None,
            [Passthrough, Passthrough, refuse],
        ),
        (Some("evilddog-gov.com"), None, [Tunnel, Tunnel, Tunnel]),
        (Some("www.example.org"), Some("node"), [Tunnel, Tunnel, Tunnel]),
        (None, None, [Tunnel, Tunnel, Tunnel]),
        (None, Some("node"), [Tunnel, Tunnel, Tunnel]),
    ] {
        for (https, expected) in [Https::Terminate, Https::Passthrough, Https::Refuse]
            .into_iter()
            .zip(expected)
        {
            assert_eq!(
                tls(name, process, https, &exceptions, &catalog()),
                expected,
                "{name:?} {process:?} {https:?}"
            );
        }
    }
}

#[test]
fn a_request_within_tls_names_what_its_session_asked_for() {
    let origin = Origin::Intercepted(OriginalDst("203.0.113.1:443".parse().unwrap()));
    let session = Some("process.ddog-gov.com");
    let served = || {
        Ok(Route {
            product: Product::Processes,
            name: session.map(str::to_owned),
        })
    };
    for (target, host, expected) in [
        (None, Some("process.ddog-gov.com"), served()),
        (None, Some("PROCESS.ddog-gov.com."), served()),
        (None, Some("process.ddog-gov.com:443"), served()),
        (
            None,
            Some("process.ddog-gov.com:80"),
            Err(Refusal::Bad("Host names a foreign port")),
        ),
        (None, Some("trace.agent.ddog-gov.com"), Err(Refusal::Misdirected)),
        (None, Some("example.org"), Err(Refusal::Misdirected)),
        (
            None,
            Some("203.0.113.1"),
            Err(Refusal::Bad("Host is an IP address")),
        ),
        (None, None, Err(Refusal::Bad("no Host"))),
        (
            Some("trace.agent.ddog-gov.com"),
            None,
            Err(Refusal::Bad("absolute-form for a foreign host")),
        ),
    ] {
        assert_eq!(
            request(&origin, session, target, host, "/", &catalog()),
            expected,
            "{target:?} {host:?}"
        );
    }
}

#[test]
fn explicit_ports_serve_their_product_only() {
    let bad = |reason| Err(Refusal::Bad(reason));
    let own = |product| Ok(Route { product, name: None });
    let named = |product, name: &str| {
        Ok(Route {
            product,
            name: Some(name.to_owned()),
        })
    };
    for (product, host, path, expected) in [
        (
            Product::Metrics,
            Some("localhost:9804"),
            "/api/v2/series",
            own(Product::Metrics),
        ),
        (Product::Metrics, Some("127.0.0.1:1"), "/", own(Product::Metrics)),
        (Product::Metrics, Some("[::1]:9804"), "/", own(Product::Metrics)),
        (
            Product::Metrics,
            Some("[::ffff:127.0.0.1]"),
            "/",
            own(Product::Metrics),
        ),
        (
            Product::Metrics,
            Some("10.1.2.3:9804"),
            "/",
            own(Product::Metrics),
        ),
        (Product::Metrics, None, "/", own(Product::Metrics)),
        (
            Product::Metrics,
            Some("localhost"),
            "/api/v1/validate",
            own(Product::Api),
        ),
        (
            Product::Metrics,
            Some("app.ddog-gov.com"),
            "/support/flare/1",
            own(Product::Flare),
        ),
        (
            Product::Metrics,
            Some("App.ddog-gov.com.:443"),
            "/",
            named(Product::Metrics, "app.ddog-gov.com"),
        ),
        (
            Product::DbmSamples,
            Some("dbm-metrics-intake.ddog-gov.com"),
            "/",
            named(Product::DbmSamples, "dbm-metrics-intake.ddog-gov.com"),
        ),
        (
            Product::Metrics,
            Some("trace.agent.ddog-gov.com"),
            "/",
            Err(Refusal::Misdirected),
        ),
        (
            Product::Traces,
            Some("example.org"),
            "/",
            Err(Refusal::Misdirected),
        ),
        (
            Product::Traces,
            Some("203.0.113.9"),
            "/",
            bad("Host is an IP address"),
        ),
        (
            Product::Traces,
            Some("169.254.169.254"),
            "/",
            bad("Host is an IP address"),
        ),
        (
            Product::Traces,
            Some("[2001:db8::1]"),
            "/",
            bad("Host is an IP address"),
        ),
        (
            Product::Traces,
            Some("trace.agent.ddog-gov.com:22"),
            "/",
            bad("Host names a foreign port"),
        ),
        (
            Product::Traces,
            Some("a@localhost"),
            "/",
            bad("Host carries user-info"),
        ),
        (Product::Traces, Some("localhost:"), "/", bad("malformed Host")),
        (Product::Traces, Some("localhost:+80"), "/", bad("malformed Host")),
        (
            Product::Traces,
            Some("localhost:99999"),
            "/",
            bad("malformed Host"),
        ),
        (Product::Traces, Some("127.1"), "/", bad("malformed Host")),
        (Product::Traces, Some("0x7f000001"), "/", bad("malformed Host")),
        (Product::Traces, Some("[::1"), "/", bad("malformed Host")),
        (Product::Traces, Some("local host"), "/", bad("malformed Host")),
    ] {
        let origin = Origin::Explicit {
            product,
            local: "10.1.2.3:9804".parse().unwrap(),
            stranger: false,
        };
        assert_eq!(
            request(&origin, None, None, host, path, &catalog()),
            expected,
            "{product} {host:?} {path}"
        );
    }
}

#[test]
fn intercepted_requests_name_their_intake() {
    let origin = Origin::Intercepted(OriginalDst("203.0.113.1:80".parse().unwrap()));
    let served = |name: &str, product| {
        Ok(Route {
            product,
            name: Some(name.to_owned()),
        })
    };
    for (target, host, expected) in [
        (
            None,
            Some("trace.agent.ddog-gov.com"),
            served("trace.agent.ddog-gov.com", Product::Traces),
        ),
        (
            None,
            Some("process.ddog-gov.com:80"),
            served("process.ddog-gov.com", Product::Processes),
        ),
        (
            None,
            Some("process.ddog-gov.com:8080"),
            Err(Refusal::Bad("Host names a foreign port")),
        ),
        (None, Some("localhost"), Err(Refusal::Misdirected)),
        (
            None,
            Some("127.0.0.1"),
            Err(Refusal::Bad("Host is an IP address")),
        ),
        (None, None, Err(Refusal::Bad("no Host"))),
        (
            Some("process.ddog-gov.com"),
            Some("process.ddog-gov.com"),
            served("process.ddog-gov.com", Product::Processes),
        ),
        (
            Some("example.org"),
            Some("process.ddog-gov.com"),
            Err(Refusal::Bad("the request target and Host name different hosts")),
        ),
        (
            Some("example.org"),
            Some("example.org"),
            Err(Refusal::Bad("absolute-form for a foreign host")),
        ),
    ] {
        assert_eq!(
            request(&origin, None, target, host, "/", &catalog()),
            expected,
            "{target:?} {host:?}"
        );
    }
}

#[test]
fn we_answer_for_ourselves_in_the_clear_only() {
    let local = "127.0.0.1:9804".parse().unwrap();
    let explicit = |stranger| Origin::Explicit {
        product: Product::Metrics,
        local,
        stranger,
    };
    let taken = Origin::Intercepted(OriginalDst("192.0.2.1:80".parse().unwrap()));
    let foreign = Refusal::Bad("absolute-form for a foreign host");
    for (origin, in_absolute_form) in [
        (&explicit(false), &foreign),
        (&explicit(true), &Refusal::Stranger),
        (&taken, &foreign),
    ] {
        assert_eq!(
            request(origin, None, None, Some(self_test::NAME), "/", &catalog()),
            Err(Refusal::SelfTest)
        );
        assert_eq!(
            request(
                origin,
                None,
                Some(self_test::NAME),
                Some(self_test::NAME),
                "/",
                &catalog()
            )
            .as_ref(),
            Err(in_absolute_form)
        );
    }
    assert_eq!(
        request(
            &taken,
            Some("app.ddog-gov.com"),
            None,
            Some(self_test::NAME),
            "/",
            &catalog()
        ),
        Err(Refusal::Misdirected)
    );
    assert_eq!(catalog().lookup(self_test::NAME), None);
}
