//! Canaries planted wherever a secret may be: none is in a bundle, plain, in base64 or percent-encoded, and what stands beside them is.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use harness::agent::curl;
use harness::proxy::Launch;
use harness::world::{Setup, World};
use harness::{check, check_eq, succeed};
use serde_json::json;

use crate::stage::{Flare, unpack};

/// What this process can know: also in the encodings.
const KNOWN: &[&str] = &[
    // DD_API_KEY
    "c0ffee11c0ffee22c0ffee33c0ffee44",
    // A variable with a telling name.
    "variable canary/5b1f+=",
    // The outbound proxy's password.
    "proxy/canary+61be",
];
/// What is known by where it stands.
const OTHERS: &[&str] = &[
    "decade55decade66decade77decade88decade99",
    "facade00facade00facade00facade00",
    "bearer-canary-5b1f",
    "cookie-canary-77aa",
    "body-canary-91cd",
    "query-canary-3e3e",
    "yaml-canary-0a0a",
    "block-canary-1b1b",
    "list-canary-2c2c",
    "agent-canary-4d4d",
    "variable-canary-6f6f",
    "url-canary-7a7a",
    "path-canary-8b8b",
    "KEYcanary9c9cKEYcanary9c9c",
    "escaped-canary-ad0b",
    "encoded-canary-be1c",
    "token-canary-cf2d",
    "journal-canary-d03e",
    "unit-canary-e14f",
];
/// What is no secret, on lines beside secrets: it must be there.
const MARKERS: &[&str] = &["marker-of-the-log", "marker-of-the-journal", "marker-of-json"];

/// Lines as a careless library, a script or an operator would leave them in a log.
fn lines() -> String {
    let [key, variable, password] = KNOWN else {
        return String::new();
    };
    let mut text = format!(
        "marker-of-the-log at the beginning
DD-API-KEY: {key}
an application key decade55decade66decade77decade88decade99 in prose
GET /api/v1/validate?api_key=query-canary-3e3e&x=1 failed
POST /v1/input/path-canary-8b8b/x?y 403
Authorization: Bearer bearer-canary-5b1f
sent Bearer token-canary-cf2d again
Cookie: session=cookie-canary-77aa; other=1
cannot connect to http://user:url-canary-7a7a@proxy.example.net:3128/
db_password: yaml-canary-0a0a
client_secret: |
  block-canary-1b1b
  block-canary-1b1b
api_tokens:
  - list-canary-2c2c
export AGENT_TOKEN=\"variable-canary-6f6f\"
{{\"level\":\"info\",\"fields\":{{\"message\":\"marker-of-json\",\"password\":\"escaped-canary-ad0b\"}}}}
x=\"{{\\\"auth_token\\\":\\\"escaped-canary-ad0b\\\"}}\"
to=%2Fv%3Fapp_key%3Dencoded-canary-be1c%26x
%2Fv1%2Finput%2Fencoded-canary-be1c%2Fx
-----BEGIN EC PRIVATE KEY-----
KEYcanary9c9cKEYcanary9c9c
-----END EC PRIVATE KEY-----
facade00facade00facade00facade00
{key} {variable} {password}
"
    );
    for secret in KNOWN {
        for form in forms(secret) {
            text.push_str(&format!("somewhere {form} else\n"));
        }
    }
    text
}

fn forms(secret: &str) -> Vec<String> {
    let percent: String = secret
        .bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    let mut forms = vec![secret.to_owned(), percent];
    for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
        forms.push(engine.encode(secret));
    }
    forms
}

pub fn nowhere() -> Result<()> {
    let world = World::with(Setup {
        check_key: false,
        ..Setup::default()
    })?;
    plant_agent(&world)?;
    let folder = world.host.folder();
    let (log, environment, credentials) = (
        folder.join("proxy.log"),
        folder.join("environment"),
        folder.join("credentials"),
    );
    std::fs::write(&log, lines())?;
    // In comments of both files, and in variables that are none of ours.
    std::fs::write(
        &environment,
        format!(
            "# DD_API_KEY={}\nSOME_TOKEN=variable-canary-6f6f\nDD_FIPS_PROXY_LOG_LEVEL=trace\n",
            KNOWN[0]
        ),
    )?;
    std::fs::write(&credentials, format!("user:{}\n", KNOWN[2]))?;
    std::fs::set_permissions(&credentials, Permissions::from_mode(0o600))?;
    let mut config = world.config();
    config["log"] = json!({"level": "trace", "format": "json", "access": true});
    config["upstream"]["proxy"] = json!({
        "url": "http://10.30.0.1:3128",
        "credentials_file": credentials,
        // Nobody is there: requests go by themselves.
        "no_proxy": ["*"],
    });
    let proxy = Launch::new(&world.host)
        .config_text(&format!(
            "# api_key: yaml-canary-0a0a\n{}",
            serde_json::to_string_pretty(&config)?
        ))?
        .args(&["--env-file", &environment.display().to_string()])
        .through(&["sh", "-c", &format!("exec \"$@\" 2>>{}", log.display()), "sh"])
        .start()?;
    let url = format!(
        "http://localhost:9804/v1/input/{}?api_key={}&other=query-canary-3e3e",
        OTHERS[1], KNOWN[0]
    );
    for more in [
        &[][..],
        &["-H", "Transfer-Encoding: identity"],
        &["-H", "Host: evil.example.net"],
    ] {
        let key = format!("DD-API-KEY: {}", KNOWN[0]);
        let all = [
            &[
                "-H",
                &key,
                "-H",
                "Authorization: Bearer bearer-canary-5b1f",
                "-H",
                "Cookie: a=cookie-canary-77aa",
            ][..],
            &["-d", "body-canary-91cd"],
            more,
            &[&url],
        ];
        curl(&world.host, None, &all.concat())?;
    }
    let programs = folder.join("programs");
    std::fs::create_dir(&programs)?;
    let journal = programs.join("journalctl");
    std::fs::write(
        &journal,
        format!(
            "#!/bin/sh\ncat <<'END'\nmarker-of-the-journal\ntoken=journal-canary-d03e\n{}END\n",
            lines()
        ),
    )?;
    std::fs::set_permissions(&journal, Permissions::from_mode(0o755))?;
    let mut output = Vec::new();
    for (name, config) in [("good.zip", config.clone()), ("wrong.zip", wrong(&config))] {
        let flare = Flare::new(&world, &config)?
            .words(&[
                "--yes",
                "--no-send",
                "--output",
                name,
                "--env-file",
                &environment.display().to_string(),
            ])
            .env(
                "PATH",
                &format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()),
            )
            .env("DD_API_KEY", KNOWN[0])
            .env("SITE_SECRET", KNOWN[1]);
        let said = flare.run()?;
        check_eq!(said.code, 0, "{said:?}");
        let files = unpack(&flare.path(name))?;
        check!(files.len() > 15, "{:?}", files.keys());
        let all: String = files
            .values()
            .map(|bytes| String::from_utf8_lossy(bytes))
            .collect();
        let expected = if name == "good.zip" {
            MARKERS
        } else {
            &MARKERS[1..]
        };
        for marker in expected {
            check!(
                all.contains(marker),
                "{marker} is not in {name}: nothing is proved"
            );
        }
        if name == "good.zip" {
            check!(
                all.contains("site: ddog-gov.com  site") && all.contains("logs_enabled: true"),
                "the Agent's settings were not read:\n{}",
                String::from_utf8_lossy(&files["agent-settings.txt"])
            );
        }
        output.extend(files.into_iter().map(|(file, bytes)| {
            (
                format!("{name}: {file}"),
                String::from_utf8_lossy(&bytes).into_owned(),
            )
        }));
        output.push((format!("{name}: said"), said.out + &said.err));
    }
    drop(proxy);
    for (name, text) in output {
        let text = text.to_ascii_lowercase();
        for canary in KNOWN.iter().chain(OTHERS) {
            // Where the configuration cannot be read, nobody knows the file with this password.
            if *canary == KNOWN[2] && name.starts_with("wrong.zip") {
                continue;
            }
            for form in forms(canary) {
                if let Some(at) = text.find(&form.to_ascii_lowercase()) {
                    let near: String = text[..at]
                        .chars()
                        .rev()
                        .take(160)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev()
                        .collect();
                    ensure!(false, "{canary} (as {form}) in {name}, behind …{near}");
                }
            }
        }
    }
    Ok(())
}

/// What an operator gets wrong: a password in the URL, a key where none belongs.
fn wrong(config: &serde_json::Value) -> serde_json::Value {
    let mut config = config.clone();
    config["api_key"] = json!("yaml-canary-0a0a");
    config["upstream"]["proxy"]["url"] = json!("http://user:url-canary-7a7a@10.30.0.1:3128");
    config["upstream"]["token"] = json!("facade00facade00facade00facade00");
    config
}

/// An Agent on this host, whose files hold keys. `/etc` is another one in the mount namespace of the host alone.
fn plant_agent(world: &World) -> Result<()> {
    let script = "set -e
        mkdir -p /run/etc
        mount -t tmpfs afp-etc /run/etc
        mkdir /run/etc/upper /run/etc/work
        mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
        mount --bind \"$1/hosts\" /etc/hosts
        mount --bind \"$1/resolv.conf\" /etc/resolv.conf
        mkdir -p /etc/datadog-agent
        cat >/etc/datadog-agent/datadog.yaml <<'END'
api_key: agent-canary-4d4d
site: ddog-gov.com
logs_enabled: true
logs_config:
  logs_dd_url: https://user:agent-canary-4d4d@logs.example.net:443
  socks5_proxy_address: agent-canary-4d4d:1080
  additional_endpoints:
    - api_key: agent-canary-4d4d
      host: agent-canary-4d4d.example.net
multi_region_failover:
  api_key: agent-canary-4d4d
END
        echo 'DD_API_KEY=unit-canary-e14f' >/etc/datadog-agent/environment
        echo 'DD_PROXY_HTTPS=http://user:unit-canary-e14f@proxy:3128' >>/etc/datadog-agent/environment";
    succeed(
        world
            .host
            .command("sh")
            .args(["-c", script, "sh"])
            .arg(world.host.folder()),
    )
    .map(drop)
}
