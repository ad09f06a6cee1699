//! Canary secrets at trace level: they reach the intake, and appear in nothing that the proxy prints, serves or stores.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use harness::agent::curl;
use harness::ca::Authority;
use harness::cgroup::Cgroup;
use harness::forward::{Forward, Rules};
use harness::intake::Answer;
use harness::local_ca::LocalAuthority;
use harness::proxy::Launch;
use harness::suite::{Need, case, run};
use harness::world::{INTAKE4, Setup, World};
use harness::{check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

/// Shapes of real keys: 32 and 40 hexadecimal digits, and free text.
const CANARIES: &[&str] = &[
    "c0ffee11c0ffee22c0ffee33c0ffee44",
    "decade55decade66decade77decade88decade99",
    "facade00facade00facade00facade00",
    "bearer-canary-5b1f",
    "cookie-canary-77aa",
    "body-canary-91cd",
    "query-canary-3e3e",
];

fn main() -> ExitCode {
    run(vec![
        case("canaries_appear_nowhere", &[Need::Root], canaries_appear_nowhere),
        case(
            "canaries_appear_nowhere_in_errors",
            &[Need::Root],
            canaries_appear_nowhere_in_errors,
        ),
        case(
            "canaries_appear_nowhere_of_agents_that_speak_https",
            &[Need::Bpf],
            canaries_appear_nowhere_of_agents_that_speak_https,
        ),
        case(
            "credentials_of_the_outbound_proxy_appear_nowhere",
            &[Need::Root],
            credentials_of_the_outbound_proxy_appear_nowhere,
        ),
    ])
}

/// Options and path that carry every canary.
fn words() -> (Vec<String>, String) {
    let [api, app, path, bearer, cookie, body, query] = CANARIES else {
        return (Vec::new(), String::new());
    };
    let options = [
        format!("DD-API-KEY: {api}"),
        format!("DD-APPLICATION-KEY: {app}"),
        format!("Authorization: Bearer {bearer}"),
        format!("Cookie: session={cookie}"),
    ];
    let mut words: Vec<String> = options
        .into_iter()
        .flat_map(|header| ["-H".to_owned(), header])
        .collect();
    words.extend(["--data-binary".to_owned(), format!("{{\"secret\":\"{body}\"}}")]);
    (
        words,
        format!("/v1/input/{path}?api_key={api}&application_key={app}&other={query}"),
    )
}

/// Acceptance 10: the good way.
fn canaries_appear_nowhere() -> Result<()> {
    let world = World::with(Setup {
        check_key: false,
        ..Setup::default()
    })?;
    let proxy = start(&world)?;
    let (words, path) = words();
    for port in [9804, 9808] {
        let url = format!("http://localhost:{port}{path}");
        let line: Vec<&str> = words.iter().chain([&url]).map(String::as_str).collect();
        let answer = curl(&world.host, None, &line)?;
        check!(answer.status == 202, "{answer:?}\n{}", proxy.log());
    }
    // The other half of the proof: the canaries did pass through.
    let seen = format!("{:?}", world.intake.seen());
    for canary in CANARIES.iter().filter(|canary| !canary.starts_with("body")) {
        check!(seen.contains(canary), "{canary} did not reach the intake");
    }
    everywhere(&proxy)
}

/// The bad ways: refused heads, a broken and a refusing intake, a foreign host, a client that goes away.
fn canaries_appear_nowhere_in_errors() -> Result<()> {
    let world = World::with(Setup {
        check_key: false,
        ..Setup::default()
    })?;
    let proxy = start(&world)?;
    let (words, path) = words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let bodies = std::cell::RefCell::new(String::new());
    let send = |more: &[&str]| -> Result<()> {
        let url = format!("http://localhost:9804{path}");
        let line: Vec<&str> = words.iter().chain(more).copied().chain([url.as_str()]).collect();
        let answer = curl(&world.host, None, &line)?;
        bodies.borrow_mut().push_str(&answer.body);
        Ok(())
    };
    for bad in [
        "Host: evil.example.net",
        "Transfer-Encoding: identity",
        "Content-Length: 1, 2",
        "Upgrade: websocket",
        "Host: c0ffee11c0ffee22c0ffee33c0ffee44.example.net",
    ] {
        send(&["-H", bad])?;
    }
    let plain = path.split('?').next().unwrap_or_default();
    for answer in [
        Answer::ResetBeforeHead,
        Answer::ResetInBody,
        Answer::Status(500, String::new()),
    ] {
        world.intake.answer(plain, answer);
        send(&[])?;
    }
    world.intake.set_dropping(true);
    send(&[])?;
    send(&["--max-time", "0.2"])?;
    check!(
        proxy.log().contains("bad_request"),
        "the refusals were logged: {}",
        proxy.log()
    );
    for canary in CANARIES {
        check!(
            !bodies.borrow().contains(canary),
            "{canary} in an answer of ours: {}",
            bodies.borrow()
        );
    }
    everywhere(&proxy)
}

/// The same within TLS, by HTTP/1.1 and HTTP/2, good and refused, and by clients that do not trust us; nor does the local
/// authority's key appear.
fn canaries_appear_nowhere_of_agents_that_speak_https() -> Result<()> {
    let world = World::with(Setup {
        check_key: false,
        ..Setup::default()
    })?;
    let (agent, authority) = (Cgroup::new("agent")?, LocalAuthority::new()?);
    let mut config = world.intercepting(&agent);
    config["log"] = json!({"level": "trace", "format": "json", "access": true});
    config["ca"] = json!({"dir": authority.dir()});
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    let ca = authority.certificate()?.display().to_string();
    let (words, path) = words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let name = "agent-http-intake.logs.ddog-gov.com";
    let url = format!("https://{name}{path}");
    let mut bodies = String::new();
    for version in ["--http1.1", "--http2"] {
        for (more, status) in [
            (&["--cacert", &ca][..], 202),
            (&["--cacert", &ca, "-H", "Host: trace.agent.ddog-gov.com"], 421),
            (
                &[
                    "--cacert",
                    &ca,
                    "-H",
                    "Host: c0ffee11c0ffee22c0ffee33c0ffee44.example.net",
                ],
                421,
            ),
            (&[], 0),
        ] {
            let line = [&words[..], more, &[version, &url]].concat();
            let answer = curl(&world.host, Some(&agent), &line)?;
            check_eq!(
                answer.status,
                status,
                "{version} {more:?}: {answer:?}\n{}",
                proxy.log()
            );
            bodies.push_str(&answer.body);
        }
    }
    let seen = format!("{:?}", world.intake.take());
    for canary in CANARIES.iter().filter(|canary| !canary.starts_with("body")) {
        check!(seen.contains(canary), "{canary} did not reach the intake");
    }
    for canary in CANARIES {
        check!(
            !bodies.contains(canary),
            "{canary} in an answer of ours: {bodies}"
        );
    }
    let key = std::fs::read_to_string(authority.key()?)?;
    let line = key.lines().nth(1).unwrap_or_default().to_owned();
    check!(
        line.len() > 40 && !proxy.log().contains(&line),
        "the authority's key is in the log"
    );
    everywhere(&proxy)
}

/// What a site's proxy is told goes to that proxy: not to the intake, and into nothing that can be read. Neither does the
/// key of the client certificate.
fn credentials_of_the_outbound_proxy_appear_nowhere() -> Result<()> {
    const USER: &str = "proxy-user-2c9b";
    const PASSWORD: &str = "proxy-canary-61be";
    let world = World::with(Setup {
        check_key: false,
        ..Setup::default()
    })?;
    let address = SocketAddr::new([10, 30, 0, 1].into(), 3128);
    world.net.ip(&format!("address add {}/32 dev lo", address.ip()))?;
    let forward = Forward::start(&world.net, address, SocketAddr::new(INTAKE4, 443), None)?;
    let secret = |name: &str, text: &str| -> Result<PathBuf> {
        let path = world.host.folder().join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    };
    let (certificate, key) = Authority::new()?.client()?;
    let certificate_file = world.host.folder().join("us.pem");
    std::fs::write(&certificate_file, certificate)?;
    let mut config = world.config();
    config["log"] = json!({"level": "trace", "format": "json", "access": true});
    config["upstream"]["client_certificate_file"] = json!(certificate_file);
    config["upstream"]["client_key_file"] = json!(secret("us.key", &key)?);
    config["upstream"]["proxy"] = json!({
        "url": format!("http://{address}"),
        "credentials_file": secret("credentials", &format!("{USER}:{PASSWORD}\n"))?,
    });
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    let rules = |credentials: &str, refuse| Rules {
        credentials: Some(credentials.to_owned()),
        refuse,
    };
    let good = format!("{USER}:{PASSWORD}");
    let mut bodies = String::new();
    // A pooled connection would never ask the proxy again.
    world.intake.answer("/x", Answer::CloseAfter);
    // Let through, refused for the credentials, and refused for everything else.
    for (rules, status) in [
        (rules(&good, None), 202),
        (rules("somebody:else", None), 502),
        (rules(&good, Some(403)), 502),
        (rules(&good, Some(503)), 502),
        (rules(&good, Some(302)), 502),
    ] {
        forward.set_rules(rules);
        // Each product has its own tunnel.
        for port in [9804, 9805, 9808] {
            let url = format!("http://localhost:{port}/x");
            let answer = curl(&world.host, None, &["-d", "x", &url])?;
            bodies.push_str(&answer.body);
            if status == 202 {
                check_eq!(answer.status, status, "{answer:?}\n{}", proxy.log());
            }
        }
    }
    let asked = forward.take();
    let token = asked[0].authorization.clone().unwrap_or_default();
    let token = token.strip_prefix("Basic ").unwrap_or_default().to_owned();
    check!(
        token.len() > 40 && asked.iter().all(|asked| asked.authorization.is_some()),
        "the proxy was told: {asked:?}"
    );
    check!(
        [407, 403, 503, 302]
            .iter()
            .all(|status| asked.iter().any(|asked| asked.status == *status)),
        "every refusal was met: {asked:?}"
    );
    check!(
        !format!("{:?}", world.intake.seen()).contains(&token),
        "the intake saw the credentials"
    );
    check!(bodies.contains("407") && bodies.contains("403"), "{bodies}");
    // A line of the key's base64 that no header of PEM repeats.
    let key_line = key.lines().nth(1).unwrap_or_default().to_owned();
    check!(key_line.len() > 40, "{key_line}");
    let canaries = [PASSWORD, &good, &token, &token[..24], &key_line];
    for canary in canaries {
        check!(
            !bodies.contains(canary),
            "{canary} in an answer of ours: {bodies}"
        );
    }
    // Bad credentials at a reload are told, and not repeated.
    secret("credentials", &format!("{PASSWORD}\n"))?;
    proxy.signal(Signal::SIGHUP)?;
    eventually("the refusal", Duration::from_secs(20), || {
        Ok(proxy
            .log()
            .contains("is not of the form user:password")
            .then_some(()))
    })?;
    in_no_output(&proxy, &canaries)
}

fn start(world: &World) -> Result<harness::proxy::Proxy<'_>> {
    let mut config = world.config();
    config["log"] = json!({"level": "trace", "format": "json", "access": true});
    Launch::new(&world.host).config(&config)?.start()
}

/// Every canary of [`CANARIES`].
fn everywhere(proxy: &harness::proxy::Proxy<'_>) -> Result<()> {
    in_no_output(proxy, CANARIES)
}

/// Every output of the proxy.
fn in_no_output(proxy: &harness::proxy::Proxy<'_>, canaries: &[&str]) -> Result<()> {
    let mut outputs = Vec::new();
    for path in ["/", "/metrics", "/readyz", "/healthz"] {
        outputs.push((path.to_owned(), proxy.get(path)?.1));
    }
    for line in [
        &["status"][..],
        &["status", "--json"],
        &["config", "show"],
        &["doctor"],
        &["doctor", "--json"],
        &["version", "--json"],
    ] {
        let output = proxy.cli(line)?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        outputs.push((line.join(" "), text));
    }
    let log = proxy.log();
    check!(
        log.contains("TRACE") || log.contains("\"level\":\"trace\""),
        "the log is not at trace level"
    );
    outputs.push(("log".to_owned(), log));
    for (name, text) in outputs {
        check!(!text.is_empty(), "{name} is empty");
        for canary in canaries {
            let at = text.to_ascii_lowercase().find(&canary.to_ascii_lowercase());
            let near = at.map(|at| {
                text.chars()
                    .skip(at.saturating_sub(120))
                    .take(200)
                    .collect::<String>()
            });
            check!(
                near.is_none(),
                "{canary} in {name}: …{}…",
                near.unwrap_or_default()
            );
        }
    }
    Ok(())
}
