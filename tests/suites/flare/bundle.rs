//! What is in a bundle.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::cgroup::Cgroup;
use harness::proxy::Launch;
use harness::world::World;
use harness::{check, check_eq};
use serde_json::{Value, json};

use crate::stage::{Flare, read};

/// Written down once more on purpose: a file that vanishes from the bundle is noticed.
const FILES: &[&str] = &[
    "agent-settings.txt",
    "configuration.txt",
    "datapath/bpf.txt",
    "datapath/cgroups.txt",
    "datapath/classifiers.txt",
    "datapath/routes.txt",
    "diagnose.txt",
    "doctor.json",
    "doctor.txt",
    "kernel/host.txt",
    "kernel/mounts.txt",
    "kernel/options.txt",
    "kernel/sysctl.txt",
    "log/journal.txt",
    "log/standard-error.txt",
    "manifest.json",
    "metrics.txt",
    "processes.txt",
    "self-test.txt",
    "status.json",
    "status.txt",
    "version.json",
];

/// The words that must be in files.
fn holds(files: &BTreeMap<String, String>, expected: &[(&str, &str)]) -> Result<()> {
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    check_eq!(names, FILES, "the files");
    for (name, words) in expected {
        check!(
            files[*name].contains(words),
            "{name} does not say {words}:\n{}",
            files[*name]
        );
    }
    Ok(())
}

pub fn running() -> Result<()> {
    let world = World::new()?;
    let config = world.config();
    let log = world.host.folder().join("proxy.log");
    let proxy = Launch::new(&world.host)
        .config(&config)?
        // Its standard error is a file, as without a journal.
        .through(&["sh", "-c", &format!("exec \"$@\" 2>>{}", log.display()), "sh"])
        .start()?;
    let header = format!("DD-API-KEY: {}", harness::world::API_KEY);
    let answer = curl(
        &world.host,
        None,
        &["-H", &header, "-d", "x", "http://localhost:9804/api/v2/series"],
    )?;
    check_eq!(answer.status, 202, "{answer:?}");
    let flare = Flare::new(&world, &config)?.words(&["--yes", "--no-send", "--output", "x.zip"]);
    let said = flare.run()?;
    check_eq!(said.code, 0, "{said:?}");
    let path = flare.path("x.zip");
    check_eq!(path.metadata()?.permissions().mode() & 0o777, 0o600, "its mode");
    let files = read(&path)?;
    // What was shown is what is in there.
    for (name, text) in &files {
        let line = said
            .out
            .lines()
            .find(|line| line.trim_start().starts_with(name.as_str()));
        let line = line.with_context(|| format!("{name} was not shown: {}", said.out))?;
        check!(
            line.contains(&format!(" {} bytes", text.len())),
            "{line} for {}",
            text.len()
        );
    }
    holds(
        &files,
        &[
            ("agent-settings.txt", "no Agent is installed"),
            ("configuration.txt", "site "),
            ("configuration.txt", "flare.yaml"),
            ("datapath/classifiers.txt", ": lo"),
            ("datapath/routes.txt", "lookup 254"),
            ("doctor.txt", "crypto module"),
            ("kernel/host.txt", "Linux version"),
            ("kernel/mounts.txt", "the kernel knows cgroup2: yes"),
            ("kernel/options.txt", "CONFIG_BPF_SYSCALL=y"),
            ("kernel/sysctl.txt", "net.core.bpf_jit_enable = "),
            ("log/standard-error.txt", "agent-fips-proxy starts"),
            ("log/standard-error.txt", "/api/v2/series"),
            ("manifest.json", "\"proxy_answers\": true"),
            ("metrics.txt", "# EOF"),
            ("processes.txt", "CapEff"),
            ("status.txt", "state            ready"),
        ],
    )?;
    let status: Value = serde_json::from_str(&files["status.json"])?;
    check_eq!(status["ready"], json!(true), "{status}");
    check_eq!(status["master"]["pid"], json!(proxy.pid().as_raw()), "{status}");
    let doctor: Value = serde_json::from_str(&files["doctor.json"])?;
    check!(doctor["checks"].is_array(), "{doctor}");
    let version: Value = serde_json::from_str(&files["version.json"])?;
    check!(version["module"].is_object(), "{version}");
    // Left alone when that is asked for.
    let local =
        Flare::new(&world, &config)?.words(&["--yes", "--no-send", "--local", "--output", "local.zip"]);
    check_eq!(local.run()?.code, 0, "--local");
    holds(
        &read(&local.path("local.zip"))?,
        &[
            ("status.json", "was not asked (--local)"),
            ("metrics.txt", "was not asked (--local)"),
            ("self-test.txt", "was not asked (--local)"),
            ("diagnose.txt", "were not asked (--local)"),
            ("configuration.txt", "site "),
        ],
    )
}

/// Programs, links, pins and cgroups are listed.
pub fn intercepting() -> Result<()> {
    let (world, agent) = (World::new()?, Cgroup::new("agent")?);
    let config = world.intercepting(&agent);
    let _proxy = world.start(&config)?;
    let flare = Flare::new(&world, &config)?.words(&["--yes", "--no-send", "--output", "x.zip"]);
    let said = flare.run()?;
    check_eq!(said.code, 0, "{said:?}");
    let agent = agent.inside();
    holds(
        &read(&flare.path("x.zip"))?,
        &[
            ("datapath/bpf.txt", "CGROUP_SOCK_ADDR"),
            ("datapath/bpf.txt", "SK_LOOKUP"),
            ("datapath/cgroups.txt", agent),
            ("datapath/cgroups.txt", "connect4"),
        ],
    )
}

/// Nothing runs, nobody is root, the configuration is wrong: there is a bundle all the same, and it says what is missing.
pub fn without() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["no_such_key"] = json!(1);
    let flare = Flare::new(&world, &config)?
        .words(&["--yes", "--no-send", "--output", "x.zip"])
        .through(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
        ]);
    let said = flare.run()?;
    check_eq!(said.code, 0, "{said:?}");
    holds(
        &read(&flare.path("x.zip"))?,
        &[
            ("configuration.txt", "no_such_key"),
            ("datapath/bpf.txt", "CAP_SYS_ADMIN"),
            ("datapath/routes.txt", "lookup 254"),
            ("log/standard-error.txt", "no proxy answers"),
            ("manifest.json", "no_such_key"),
            ("manifest.json", "\"proxy_answers\": false"),
            ("manifest.json", "\"user\": 65534"),
            ("metrics.txt", "no metrics at"),
            ("status.txt", "no_such_key"),
            ("version.json", "\"module\""),
        ],
    )?;
    // With a good configuration it is the proxy that is missing.
    let flare = Flare::new(&world, &world.config())?.words(&["--yes", "--no-send", "--output", "y.zip"]);
    check_eq!(flare.run()?.code, 0, "stopped");
    holds(
        &read(&flare.path("y.zip"))?,
        &[("status.txt", "no proxy answers")],
    )
}
