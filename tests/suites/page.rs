//! The status page and `status --json`: what they tell of real traffic, and to whom the page's port answers.

use std::process::ExitCode;

use anyhow::{Context, Result};
use harness::agent::{ask, curl};
use harness::ca::Fault;
use harness::proxy::Proxy;
use harness::suite::{Need, case, run};
use harness::world::{Setup, World};
use harness::{check, check_eq};
use serde_json::Value;

fn main() -> ExitCode {
    run(vec![
        case("a_product_that_works", &[Need::Root], a_product_that_works),
        case("a_product_that_is_down", &[Need::Root], a_product_that_is_down),
        case(
            "only_this_host_is_answered_on_loopback",
            &[Need::Root],
            only_this_host_is_answered_on_loopback,
        ),
    ])
}

/// What `status --json` says of a product.
fn product(proxy: &Proxy<'_>, name: &str) -> Result<Value> {
    let status = proxy.status()?;
    let products = status["products"].as_array().context("no products")?;
    let found = products.iter().find(|product| product["name"] == name);
    found.cloned().with_context(|| format!("no {name} in {status}"))
}

/// Rates, latencies, address and TLS of real requests.
fn a_product_that_works() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    for _ in 0..20 {
        let answer = ask(
            &world.host,
            None,
            &["-d", "{}", "http://localhost:9808/api/v2/logs"],
        )?;
        check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    }
    let logs = product(&proxy, "logs")?;
    check_eq!(logs["state"], "ok", "{logs}");
    check_eq!(logs["recent"]["requests"], 20, "{logs}");
    check_eq!(logs["recent"]["answered"], 20, "{logs}");
    check_eq!(logs["bytes_up"], 40, "{logs}");
    let figure = |key: &str| logs["recent"][key].as_f64().unwrap_or(-1.0);
    check!(
        figure("requests_per_second") > 0.2 && figure("bytes_up_per_second") > 0.4,
        "rates of {} s: {logs}",
        figure("seconds")
    );
    check!(
        figure("p50_ms") > 0.0 && figure("p50_ms") <= figure("p99_ms"),
        "latencies: {logs}"
    );
    let name = "agent-http-intake.logs.ddog-gov.com";
    let address = &logs["upstream"][0];
    check_eq!(address["health"], "ok", "{logs}");
    check_eq!(address["name"], name, "{logs}");
    check!(
        address["dns"]["addresses"] == 2 && address["dns"]["age_s"].is_null(),
        "the hosts file has two: {logs}"
    );
    check_eq!(logs["tls"][0]["version"], "TLSv1.3", "{logs}");
    let status = proxy.status()?;
    check_eq!(status["warnings"], Value::Array(Vec::new()), "all is well");
    let (code, page) = proxy.get("/")?;
    check_eq!(code, 200, "the page");
    for text in [">Logs<", ">ok<", name, "takes connections", "hosts file"] {
        check!(page.contains(text), "{text} is not in {page}");
    }
    check!(!page.contains("What is wrong"), "{page}");
    Ok(())
}

/// State, reason and cure, and the address that is asked last.
fn a_product_that_is_down() -> Result<()> {
    let world = World::with(Setup {
        fault: Fault::Expired,
        ..Setup::default()
    })?;
    let proxy = world.start(&world.config())?;
    for _ in 0..3 {
        let answer = ask(
            &world.host,
            None,
            &["-d", "{}", "http://localhost:9808/api/v2/logs"],
        )?;
        check_eq!(answer.status, 502, "{answer:?}");
    }
    let logs = product(&proxy, "logs")?;
    check_eq!(logs["state"], "down", "{logs}");
    check_eq!(logs["recent"]["failed"], 3, "{logs}");
    check_eq!(logs["last_failure"]["outcome"], "upstream_tls", "{logs}");
    let addresses = logs["upstream"].as_array().context("no addresses")?;
    check_eq!(addresses.len(), 2, "{logs}");
    for address in addresses {
        check!(
            address["health"]["ejected"]["failures"].as_u64() > Some(0),
            "{address}"
        );
        let why = address["last_error"]["why"].as_str().unwrap_or_default();
        check!(why.contains("expired"), "{address}");
    }
    let warnings = proxy.status()?["warnings"].take();
    let what = warnings[0]["what"].as_str().unwrap_or_default();
    check!(
        what.starts_with("Logs is down: in the last minute 3 of 3 requests failed; the last, upstream_tls: "),
        "{warnings}"
    );
    let cure = warnings[0]["cure"].as_str().unwrap_or_default();
    check!(cure.contains("upstream.ca_file"), "{warnings}");
    let page = proxy.get("/")?.1;
    for text in ["What is wrong", "Logs is down", "asked last", "upstream.ca_file"] {
        check!(page.contains(text), "{text} is not in {page}");
    }
    Ok(())
}

/// Names that lead here by somebody else's word get nothing; what is answered is read-only and brings its policy.
fn only_this_host_is_answered_on_loopback() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    let look = |words: &[&str]| curl(&world.host, None, words);
    for path in ["/", "/metrics", "/readyz", "/healthz"] {
        let url = format!("http://127.0.0.1:9803{path}");
        let answer = look(&["-H", "Host: evil.example.net:9803", &url])?;
        check_eq!(answer.status, 421, "{path}: {answer:?}");
        check!(!answer.body.contains("agent_fips_proxy"), "{answer:?}");
        for host in ["localhost:8080", "127.0.0.1", "[::1]:9803"] {
            let answer = look(&["-H", &format!("Host: {host}"), &url])?;
            check_eq!(
                answer.status,
                200,
                "{path} for {host}: {answer:?}\n{}",
                proxy.log()
            );
        }
        let answer = look(&["-X", "POST", "-d", "x", &url])?;
        check_eq!(answer.status, 405, "{path}: {answer:?}");
    }
    let answer = look(&["-i", "http://localhost:9803/"])?;
    let head = answer.body.to_ascii_lowercase();
    for header in [
        "content-security-policy: default-src 'none'; style-src 'sha256-",
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-store",
    ] {
        check!(head.contains(header), "{header} is not in {head}");
    }
    // Loopback only, unless configured: not on the address that the outside sees.
    let answer = look(&["http://198.51.100.2:9803/"])?;
    check_eq!(answer.exit, 7, "refused: {answer:?}");
    Ok(())
}
