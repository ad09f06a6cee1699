//! Canary secrets at trace level: they reach the intake, and appear in nothing that the proxy prints, serves or stores.

use std::process::ExitCode;

use anyhow::Result;
use harness::agent::curl;
use harness::check;
use harness::intake::Answer;
use harness::proxy::Launch;
use harness::suite::{Need, case, run};
use harness::world::{Setup, World};
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

fn start(world: &World) -> Result<harness::proxy::Proxy<'_>> {
    let mut config = world.config();
    config["log"] = json!({"level": "trace", "format": "json", "access": true});
    Launch::new(&world.host).config(&config)?.start()
}

/// Every output of the proxy.
fn everywhere(proxy: &harness::proxy::Proxy<'_>) -> Result<()> {
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
        for canary in CANARIES {
            let at = text.to_ascii_lowercase().find(canary);
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
