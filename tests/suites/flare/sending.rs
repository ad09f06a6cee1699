//! What is sent, to whom, how, and what comes of each answer.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use harness::ca::Fault;
use harness::forward::Forward;
use harness::intake::Answer;
use harness::world::{API_KEY, INTAKE4, Setup, World};
use harness::{check, check_eq, sha256};
use serde_json::{Value, json};

use crate::stage::{Flare, Said};

const CASE: &str = "1234567";
const PATH: &str = "/support/flare/1234567";
const HOST: &str = "flare.ddog-gov.com";

fn flare<'a>(world: &'a World, config: &Value, name: &str) -> Result<Flare<'a>> {
    Ok(Flare::new(world, config)?
        .words(&[
            CASE,
            "--email",
            "you@example.com",
            "--yes",
            "--local",
            "--output",
            name,
        ])
        .env("DD_API_KEY", API_KEY))
}

/// Reads a form by Python's `email`: the fields, and of the file its name and SHA-256.
const READER: &str = r#"
import sys, json, hashlib, email, email.policy
kind, body = sys.argv[1], sys.stdin.buffer.read()
message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP)
assert message.is_multipart() and not message.defects, message.defects
fields = []
for part in message.iter_parts():
    assert part.get_content_disposition() == "form-data" and not part.defects
    name, data = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
    if part.get_filename():
        fields.append([name, part.get_filename(), hashlib.sha256(data).hexdigest()])
    else:
        fields.append([name, data.decode()])
print(json.dumps(fields))
"#;

fn form(kind: &str, body: &[u8]) -> Result<Value> {
    let mut reader = Command::new("python3")
        .args(["-c", READER, kind])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    reader.stdin.take().context("no pipe")?.write_all(body)?;
    let output = reader.wait_with_output()?;
    if !output.status.success() {
        bail!("the form cannot be read");
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn no_key(said: &Said) -> Result<()> {
    check!(
        !said.out.contains(API_KEY) && !said.err.contains(API_KEY),
        "the key is told: {said:?}"
    );
    Ok(())
}

pub fn sent() -> Result<()> {
    for http2 in [false, true] {
        let world = World::with(Setup {
            http2,
            ..Setup::default()
        })?;
        world
            .intake
            .answer(PATH, Answer::Status(200, r#"{"case_id": 1234567}"#.to_owned()));
        world.intake.keep_bodies("/support/flare");
        let flare = flare(&world, &world.config(), "x.zip")?;
        let said = flare.run()?;
        check_eq!(said.code, 0, "{said:?}");
        check!(
            said.out.contains("sent to flare.ddog-gov.com, TLSv1.3 TLS_AES_")
                && said.out.contains("case id: 1234567"),
            "{said:?}"
        );
        no_key(&said)?;
        let seen = world.intake.take();
        let [seen] = &seen[..] else { bail!("{seen:?}") };
        check!(seen.faults.is_empty(), "{seen:?}");
        check_eq!(seen.http, if http2 { "2" } else { "1.1" }, "{seen:?}");
        check_eq!(
            (seen.method.as_str(), seen.host.as_str(), seen.target.as_str()),
            ("POST", HOST, format!("{PATH}?api_key={API_KEY}").as_str()),
            "the request"
        );
        let kind = seen.header("content-type").unwrap_or_default().to_owned();
        let bodies = world.intake.bodies();
        let fields = form(&kind, &bodies[0])?;
        let file = std::fs::read(flare.path("x.zip")).context("the file stays")?;
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        check_eq!(
            fields,
            json!([
                ["case_id", CASE],
                ["email", "you@example.com"],
                ["flare_file", "x.zip", sha256(&file)],
                ["agent_version", env!("CARGO_PKG_VERSION")],
                ["hostname", host],
            ]),
            "the form"
        );
    }
    Ok(())
}

pub fn asks() -> Result<()> {
    let world = World::new()?;
    world.intake.answer(
        "/support/flare",
        Answer::Status(200, r#"{"case_id": 7}"#.to_owned()),
    );
    let key = world.host.folder().join("key");
    std::fs::write(&key, format!("{API_KEY}\n"))?;
    let name = key.display().to_string();
    let at_terminal = |text: &str| {
        Flare::new(&world, &world.config())?
            .words(&["--local", "--api-key-file", &name])
            .type_in(text)
    };
    // Others could have read it.
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let said = at_terminal("y\ny\n")?;
    check_eq!(said.code, 64, "{said:?}");
    check!(said.err.contains("0600"), "{said:?}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    for (text, sent) in [("y\nn\n", false), ("y\n\u{4}", false), ("y\ny\n", true)] {
        let said = at_terminal(text)?;
        check_eq!(said.code, 0, "{text:?}: {said:?}");
        check!(
            said.out.contains("Send it to flare.ddog-gov.com? [y/N]"),
            "{text:?}: {said:?}"
        );
        check_eq!(said.out.contains("case id: 7"), sent, "{text:?}: {said:?}");
        check_eq!(
            said.out.contains("not sent; the file stays"),
            !sent,
            "{text:?}: {said:?}"
        );
        check_eq!(world.intake.take().len(), usize::from(sent), "{text:?}");
        no_key(&said)?;
    }
    // Whoever names a case wants to send it, and hears at once that nothing will be.
    let said = Flare::new(&world, &world.config())?
        .words(&[CASE, "--yes"])
        .run()?;
    check_eq!(said.code, 64, "{said:?}");
    check!(said.err.contains("DD_API_KEY"), "{said:?}");
    for words in [
        &["1/2", "--yes", "--local"][..],
        &["--email", "nobody", "--yes", "--local"],
    ] {
        let said = Flare::new(&world, &world.config())?
            .words(words)
            .env("DD_API_KEY", API_KEY)
            .run()?;
        check_eq!(said.code, 64, "{words:?}: {said:?}");
    }
    check_eq!(world.intake.connections(), 1, "connections");
    Ok(())
}

pub fn answers() -> Result<()> {
    let world = World::with(Setup {
        check_key: false,
        ..Setup::default()
    })?;
    let mut config = world.config();
    config["upstream"]["response_timeout"] = json!("1s");
    let quoting = format!("no such case; you sent {API_KEY}");
    for (number, (answer, code, words)) in [
        (
            Answer::Status(403, "{}".to_owned()),
            77,
            "refuses the API key (403",
        ),
        (
            Answer::Status(400, quoting),
            64,
            "no such case; you sent [redacted]",
        ),
        (Answer::Status(500, "oops".to_owned()), 69, "it answered 500"),
        (
            Answer::Status(200, r#"{"error":"mail"}"#.to_owned()),
            69,
            "answered with an error",
        ),
        (Answer::UntilClose("<html>".to_owned()), 69, "not with JSON"),
        (Answer::Status(302, String::new()), 69, "which is not followed"),
        // Longer than its time limit: silent.
        (
            Answer::Slow(std::time::Duration::from_secs(30)),
            69,
            "upstream.response_timeout",
        ),
        (Answer::ResetBeforeHead, 69, "broke the connection"),
    ]
    .into_iter()
    .enumerate()
    {
        world.intake.answer(PATH, answer.clone());
        let flare = flare(&world, &config, &format!("{number}.zip"))?;
        let said = flare.run()?;
        check_eq!(said.code, code, "{answer:?}: {said:?}");
        check!(said.err.contains(words), "{answer:?}: {said:?}");
        check!(said.err.contains("the file stays"), "{answer:?}: {said:?}");
        check!(
            flare.path(&format!("{number}.zip")).is_file(),
            "{answer:?}: the file is gone"
        );
        no_key(&said)?;
    }
    check_eq!(world.leaks(), Vec::<String>::new(), "in the clear");
    Ok(())
}

/// A certificate of somebody else, an address that is not public, nobody there, a configuration that is wrong.
pub fn unreachable() -> Result<()> {
    let world = World::with(Setup {
        fault: Fault::UnknownAuthority,
        ..Setup::default()
    })?;
    let refused = |config: &Value, name: &str, code: i32, words: &str| -> Result<()> {
        let flare = flare(&world, config, name)?;
        let said = flare.run()?;
        check_eq!(said.code, code, "{name}: {said:?}");
        check!(said.err.contains(words), "{name}: {said:?}");
        check!(flare.path(name).is_file(), "{name}: the file is gone");
        no_key(&said)
    };
    refused(&world.config(), "certificate.zip", 69, "bad_certificate")?;
    check!(
        world.intake.seen().is_empty(),
        "a request was sent: {:?}",
        world.intake.seen()
    );
    let mut config = world.config();
    config["upstream"]["endpoints"] = json!({"flare": "203.0.113.10:4444"});
    refused(&config, "nobody.zip", 69, "203.0.113.10:4444")?;
    config["upstream"]["endpoints"] = json!({"flare": "no-such-name.example.net"});
    refused(&config, "name.zip", 69, "no-such-name.example.net")?;
    config["upstream"] = json!({"ca_file": "/nonexistent.pem"});
    refused(&config, "ca.zip", 78, "/nonexistent.pem")?;
    config["no_such_key"] = json!(1);
    refused(&config, "wrong.zip", 78, "no_such_key")?;
    // A name server that somebody else has.
    world
        .host
        .set_names(&[(HOST.to_owned(), IpAddr::from([10, 9, 9, 9]))])?;
    refused(&world.config(), "private.zip", 69, "upstream.allow_private")
}

pub fn outbound() -> Result<()> {
    let world = World::new()?;
    world
        .intake
        .answer(PATH, Answer::Status(200, r#"{"case_id": 1234567}"#.to_owned()));
    let address = SocketAddr::new([10, 30, 0, 1].into(), 3128);
    world.net.ip(&format!("address add {}/32 dev lo", address.ip()))?;
    let forward = Forward::start(&world.net, address, SocketAddr::new(INTAKE4, 443), None)?;
    let mut config = world.config();
    config["upstream"]["proxy"] = json!({"url": format!("http://{address}")});
    let said = flare(&world, &config, "x.zip")?.run()?;
    check_eq!(said.code, 0, "{said:?}");
    check!(said.out.contains("10.30.0.1:3128"), "{said:?}");
    let asked: Vec<String> = forward.take().into_iter().map(|asked| asked.authority).collect();
    check_eq!(asked, ["flare.ddog-gov.com:443"], "what the proxy was asked");
    check_eq!(world.intake.take().len(), 1, "requests");
    Ok(())
}
