//! Explicit mode against the real binary: every port, the HTTP rules, refusals, start-up. No eBPF.

#[path = "direct/log.rs"]
mod log;
#[path = "direct/smuggling.rs"]
mod smuggling;
#[path = "direct/startup.rs"]
mod startup;
#[path = "direct/strangers.rs"]
mod strangers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::agent::{Load, curl};
use harness::intake::Answer;
use harness::proxy::{Launch, Proxy};
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, PORTS, SITE, Setup, World};
use harness::{check, check_eq};
use serde_json::json;

fn main() -> ExitCode {
    run(vec![
        case(
            "every_port_reaches_its_product",
            &[Need::Root],
            every_port_reaches_its_product,
        ),
        case(
            "bodies_arrive_byte_for_byte",
            &[Need::Root],
            bodies_arrive_byte_for_byte,
        ),
        case(
            "responses_arrive_byte_for_byte",
            &[Need::Root],
            responses_arrive_byte_for_byte,
        ),
        case("http2_upstream", &[Need::Root], http2_upstream),
        case("connections_are_pooled", &[Need::Root], connections_are_pooled),
        case(
            "stale_connections_are_not_the_clients_problem",
            &[Need::Root],
            stale_connections,
        ),
        case("broken_intake_is_502", &[Need::Root], broken_intake_is_502),
        case("slow_intake_is_504", &[Need::Root], slow_intake_is_504),
        case(
            "private_addresses_are_refused",
            &[Need::Root],
            private_addresses_are_refused,
        ),
        case(
            "another_address_is_tried",
            &[Need::Root],
            another_address_is_tried,
        ),
        case(
            "smuggling_corpus_is_refused",
            &[Need::Root],
            smuggling::corpus_is_refused,
        ),
        case("strangers_by_user", &[Need::Root], strangers::by_user),
        case("strangers_by_cgroup", &[Need::Root], strangers::by_cgroup),
        case("strangers_bad_lists", &[Need::Root], strangers::bad_lists),
        case(
            "a_stuck_reader_stops_no_request",
            &[Need::Root],
            log::a_stuck_reader_stops_no_request,
        ),
        case(
            "a_stuck_reader_stops_no_stop",
            &[Need::Root],
            log::a_stuck_reader_stops_no_stop,
        ),
        case("a_stop_loses_no_line", &[Need::Root], log::a_stop_loses_no_line),
        case(
            "bad_configuration_is_named",
            &[Need::Root],
            startup::bad_configuration_is_named,
        ),
        case("command_line", &[Need::Root], startup::command_line),
        case(
            "version_names_the_module",
            &[Need::Root],
            startup::version_names_the_module,
        ),
        case("busy_port_is_named", &[Need::Root], startup::busy_port_is_named),
        case("sidecar", &[Need::Root], startup::sidecar),
        case(
            "missing_capability_is_named",
            &[Need::Root],
            startup::missing_capability_is_named,
        ),
    ])
}

fn start(world: &World) -> Result<Proxy<'_>> {
    Launch::new(&world.host).config(&world.config())?.start()
}

/// Acceptance 2: site and CA, nothing else in the file.
fn every_port_reaches_its_product() -> Result<()> {
    let world = World::new()?;
    let config = json!({"site": SITE, "upstream": {"ca_file": world.host.folder().join("ca.pem")}});
    let proxy = Launch::new(&world.host)
        .config(&config)?
        // The machine of a test has no such user; a packaged install has one.
        .env("DD_FIPS_PROXY_WORKER_USER", "nobody")
        .start()?;
    let routes = PORTS
        .iter()
        .map(|(port, _, prefix)| (*port, "/any/path?x=1", *prefix))
        .chain([
            (9804, "/api/v1/validate", "api"),
            (9804, "/support/flare/1234", "flare"),
            (9804, "/api/v2/series", "metrics.agent"),
            (9805, "/api/v1/validate", "trace.agent"),
        ]);
    for (port, path, prefix) in routes {
        for family in ["-4", "-6"] {
            let answer = startup::ask(&world, port, family, path)?;
            check_eq!(
                answer.status,
                202,
                "{port}{path} {family}: {}\n{}",
                answer.body,
                proxy.log()
            );
            let seen = world.intake.take();
            let name = format!("{prefix}.{SITE}");
            check_eq!(seen.len(), 1, "requests at the intake for {port}{path}");
            check_eq!(
                seen[0].session.sni.as_deref(),
                Some(name.as_str()),
                "SNI of {port}{path}"
            );
            check_eq!(
                (seen[0].host.as_str(), seen[0].target.as_str()),
                (name.as_str(), path),
                "host and path"
            );
            check_eq!(seen[0].session.version, "TLSv1_3", "version");
            check_eq!(seen[0].faults, Vec::<String>::new(), "faults");
        }
    }
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}

fn bodies_arrive_byte_for_byte() -> Result<()> {
    let world = World::new()?;
    let proxy = start(&world)?;
    let body: Vec<u8> = (0..3_u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let file = world.host.folder().join("body");
    std::fs::write(&file, &body)?;
    let (data, key) = (format!("@{}", file.display()), format!("DD-API-KEY: {API_KEY}"));
    for headers in [
        &["Content-Encoding: zstd1"][..],
        &["Content-Encoding: deflate", "Transfer-Encoding: chunked"],
        &["Expect: 100-continue", "X-Dd-Odd: \u{e4}\u{f6}"],
    ] {
        let mut words = vec!["-H", &key, "--data-binary", &data];
        headers.iter().for_each(|header| words.extend(["-H", header]));
        words.push("http://localhost:9807/api/v1/collector");
        let answer = curl(&world.host, None, &words)?;
        check_eq!(answer.status, 202, "{headers:?}: {answer:?}\n{}", proxy.log());
        let seen = world.intake.take().remove(0);
        check_eq!(seen.body_sha256, harness::sha256(&body), "{headers:?}: digest");
        for header in headers
            .iter()
            .filter(|header| header.starts_with("Content-E") || header.starts_with("X-"))
        {
            let (name, value) = header.split_once(": ").unwrap_or_default();
            check_eq!(seen.header(&name.to_lowercase()), Some(value), "{header}");
        }
        check_eq!(seen.faults, Vec::<String>::new(), "{headers:?}: faults");
    }
    let line = proxy.access_line(|line| line["product"] == "processes")?;
    check_eq!(
        line["bytes_up"],
        json!(3 << 20),
        "bytes in the access log: {line}"
    );
    check!(
        proxy
            .metrics()?
            .sum("agent_fips_proxy_bytes_total", &[("product", "processes")])
            >= 9_437_184.0,
        "bytes are counted"
    );
    Ok(())
}

fn responses_arrive_byte_for_byte() -> Result<()> {
    let world = World::new()?;
    let proxy = start(&world)?;
    let long = "0123456789abcdef".repeat(100_000);
    for (answer, status, body) in [
        (Answer::EarlyHints, 202, r#"{"status":"ok"}"#),
        (Answer::OddChunks, 202, r#"{"status":"ok"}"#),
        (
            Answer::SlowBody(Duration::from_millis(300)),
            202,
            r#"{"status":"ok"}"#,
        ),
        (Answer::UntilClose(long.clone()), 200, long.as_str()),
        (Answer::Status(413, long.clone()), 413, long.as_str()),
        (Answer::Status(403, "no".to_owned()), 403, "no"),
        (Answer::Status(429, String::new()), 429, ""),
    ] {
        world.intake.answer("/answer", answer.clone());
        let seen = startup::ask(&world, 9808, "-4", "/answer")?;
        check_eq!(
            (seen.status, seen.exit),
            (status, 0),
            "{answer:.40?}: {}\n{}",
            seen.error,
            proxy.log()
        );
        check!(
            seen.body == body,
            "{status}: body of {} bytes, expected {}",
            seen.body.len(),
            body.len()
        );
    }
    let key = format!("DD-API-KEY: {API_KEY}");
    let head = curl(
        &world.host,
        None,
        &["-i", "-H", &key, "http://localhost:9808/date"],
    )?;
    check!(
        head.body.contains("Sun, 06 Nov 1994 08:49:37 GMT"),
        "the intake's own Date passes: {}",
        head.body
    );
    Ok(())
}

fn http2_upstream() -> Result<()> {
    let world = World::with(Setup {
        http2: true,
        ..Setup::default()
    })?;
    let proxy = start(&world)?;
    let words = [
        "--url",
        "http://localhost:9805/api/v0.2/traces",
        "--clients",
        "8",
        "--requests",
        "200",
        "--body",
        "5000",
        "--api-key",
        API_KEY,
    ];
    let report = Load::start(&world.host, None, &words)?.wait()?;
    check!(report.all(202), "{report:?}\n{}", proxy.log());
    let seen = world.intake.seen();
    check!(
        seen.len() == 200 && seen.iter().all(|s| s.http == "2"),
        "{} requests, all by HTTP/2",
        seen.len()
    );
    check_eq!(world.intake.faults(), Vec::<String>::new(), "faults");
    // Eight clients that begin at once may each open one; after that, streams share them.
    check!(
        world.intake.connections() <= 16,
        "connections for 200 requests: {}",
        world.intake.connections()
    );
    Ok(())
}

fn connections_are_pooled() -> Result<()> {
    let world = World::new()?;
    let proxy = start(&world)?;
    let words = [
        "--url",
        "http://localhost:9804/api/v2/series",
        "--clients",
        "4",
        "--requests",
        "400",
        "--body",
        "1000",
        "--api-key",
        API_KEY,
    ];
    let report = Load::start(&world.host, None, &words)?.wait()?;
    check!(
        report.all(202) && report.count("connects") == 400,
        "{report:?}\n{}",
        proxy.log()
    );
    check_eq!(world.intake.count(), 400, "requests");
    check!(
        world.intake.connections() <= 16,
        "TLS connections for 400 requests: {}",
        world.intake.connections()
    );
    check_eq!(world.intake.faults(), Vec::<String>::new(), "faults");
    Ok(())
}

/// The intake closes behind each answer, or when the next request arrives: no client sees it, nothing is sent twice.
fn stale_connections() -> Result<()> {
    let world = World::new()?;
    let proxy = start(&world)?;
    let words = [
        "--url",
        "http://localhost:9804/stale",
        "--clients",
        "4",
        "--requests",
        "100",
        "--per-connection",
        "10",
        "--body",
        "500",
        "--api-key",
        API_KEY,
    ];
    world.intake.answer("/stale", Answer::CloseAfter);
    let report = Load::start(&world.host, None, &words)?.wait()?;
    check!(
        report.all(202),
        "closed behind the answer: {report:?}\n{}",
        proxy.log()
    );
    world.intake.answer("/stale", Answer::CloseOnNext);
    world.intake.take();
    let report = Load::start(&world.host, None, &words)?.wait()?;
    // Here the intake did read the request: whether it acted is unknown, so 502 is the honest answer, never a second copy.
    check_eq!(
        report.status(202) + report.status(502),
        100,
        "every client has an answer: {report:?}\n{}",
        proxy.log()
    );
    let mut ids: Vec<String> = world
        .intake
        .seen()
        .iter()
        .filter_map(|s| s.header("x-test-id").map(str::to_owned))
        .collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    check_eq!(ids.len(), all, "requests that arrived twice");
    Ok(())
}

fn broken_intake_is_502() -> Result<()> {
    let world = World::new()?;
    let proxy = start(&world)?;
    for answer in [Answer::ResetBeforeHead, Answer::ResetInHead] {
        world.intake.answer("/broken", answer.clone());
        let seen = startup::ask(&world, 9804, "-4", "/broken")?;
        check_eq!(seen.status, 502, "{answer:?}: {seen:?}\n{}", proxy.log());
    }
    world.intake.answer("/broken", Answer::ResetInBody);
    let seen = startup::ask(&world, 9804, "-4", "/broken")?;
    check!(seen.exit != 0, "a cut body must look cut: {seen:?}");
    world.intake.set_dropping(true);
    let seen = startup::ask(&world, 9805, "-4", "/")?;
    check_eq!(seen.status, 502, "dropped before TLS: {seen:?}");
    world.intake.set_dropping(false);
    check_eq!(
        startup::ask(&world, 9805, "-4", "/")?.status,
        202,
        "and it recovers"
    );
    Ok(())
}

fn slow_intake_is_504() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["upstream"]["response_timeout"] = json!("1s");
    let _proxy = Launch::new(&world.host).config(&config)?.start()?;
    world
        .intake
        .answer("/slow", Answer::Slow(Duration::from_secs(20)));
    let start = Instant::now();
    let seen = startup::ask(&world, 9804, "-4", "/slow")?;
    check_eq!(seen.status, 504, "{seen:?}");
    check!(
        start.elapsed() < Duration::from_secs(5),
        "took {:?}",
        start.elapsed()
    );
    Ok(())
}

/// A name that resolves into this host, the metadata service or a private network is not dialled.
fn private_addresses_are_refused() -> Result<()> {
    let world = World::new()?;
    for address in [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "224.0.0.1",
        "0.0.0.0",
    ] {
        world
            .host
            .set_names(&[(format!("metrics.agent.{SITE}"), address.parse()?)])?;
        let proxy = start(&world)?;
        let seen = startup::ask(&world, 9804, "-4", "/")?;
        check_eq!(seen.status, 503, "{address}: {seen:?}\n{}", proxy.log());
        let line = proxy.access_line(|line| line["status"] == 503)?;
        check_eq!(line["outcome"], json!("no_address"), "{address}: {line}");
    }
    Ok(())
}

/// A dead first address costs the client nothing.
fn another_address_is_tried() -> Result<()> {
    let world = World::new()?;
    let name = format!("metrics.agent.{SITE}");
    // 198.51.100.1 is up and refuses; the intake's own address comes second.
    world.host.set_names(&[
        (name.clone(), [198, 51, 100, 1].into()),
        (name, harness::world::INTAKE4),
    ])?;
    let proxy = start(&world)?;
    for _ in 0..10 {
        let seen = startup::ask(&world, 9804, "-4", "/")?;
        check_eq!(seen.status, 202, "{seen:?}\n{}", proxy.log());
    }
    check_eq!(world.intake.count(), 10, "requests");
    Ok(())
}
