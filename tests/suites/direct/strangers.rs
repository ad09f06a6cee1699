//! `explicit.allowed_users` and `explicit.allowed_cgroups`: who connects is told by the kernel, not by what it says.

use std::time::Duration;

use anyhow::Result;
use harness::cgroup::Cgroup;
use harness::proxy::Launch;
use harness::world::{API_KEY, World};
use harness::{capture, check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

/// A user that is nobody's here.
const OTHER: &str = "4711";

/// The status that a client of this user, in this cgroup, gets.
fn asks(world: &World, user: &str, cgroup: Option<&Cgroup>) -> Result<String> {
    let mut command = world.host.command("setpriv");
    let header = format!("DD-API-KEY: {API_KEY}");
    command
        .args([
            "--reuid",
            user,
            "--clear-groups",
            "curl",
            "-sS",
            "--max-time",
            "30",
            "-o",
            "/dev/null",
        ])
        .args([
            "-w",
            "%{http_code}",
            "-H",
            &header,
            "http://localhost:9804/api/v2/series",
        ]);
    let mut command = match cgroup {
        Some(cgroup) => cgroup.wrap(&command),
        None => command,
    };
    Ok(String::from_utf8_lossy(&capture(&mut command)?.stdout).into_owned())
}

pub(super) fn by_user() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["explicit"]["allowed_users"] = json!([OTHER]);
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    check_eq!(asks(&world, OTHER, None)?, "202", "{}", proxy.log());
    check_eq!(asks(&world, "0", None)?, "503", "root is not in the list");
    check_eq!(asks(&world, "4712", None)?, "503", "another user");
    check_eq!(world.intake.count(), 1, "requests at the intake");
    let log = proxy.log();
    check!(log.contains("uid 4712 is not in explicit.allowed_users"), "{log}");
    let refused = proxy
        .metrics()?
        .sum("agent_fips_proxy_requests_total", &[("outcome", "not_allowed")]);
    check_eq!(refused, 2.0, "refused requests");
    // Self-tests are nobody's: the proxy stays ready.
    check!(proxy.status()?["ready"] == true, "{:?}", proxy.status());
    // Who has gone by the time we look is not taken for root, as the kernel has it.
    let mut config = config.clone();
    config["explicit"]["allowed_users"] = json!(["root"]);
    std::fs::write(world.host.folder().join("config.yaml"), config.to_string())?;
    proxy.signal(Signal::SIGHUP)?;
    eventually(
        "root to be served after the reload",
        Duration::from_secs(20),
        || Ok((asks(&world, "0", None)? == "202").then_some(())),
    )?;
    check_eq!(asks(&world, OTHER, None)?, "503", "not any more");
    let before = world.intake.count();
    for _ in 0..20 {
        gone(&world)?;
    }
    check_eq!(asks(&world, "0", None)?, "202", "{}", proxy.log());
    check_eq!(world.intake.count(), before + 1, "requests of who had gone");
    Ok(())
}

/// Another user's request, sent and left before anybody can look: the kernel says of such a socket that it is root's.
fn gone(world: &World) -> Result<()> {
    let script = "exec 3<>/dev/tcp/127.0.0.1/9804
        printf 'POST /gone HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 0\\r\\n\\r\\n' >&3";
    let mut bash = world.host.command("setpriv");
    let output = capture(bash.args(["--reuid", OTHER, "--clear-groups", "bash", "-c", script]))?;
    check!(output.status.success(), "{output:?}");
    Ok(())
}

pub(super) fn by_cgroup() -> Result<()> {
    let (world, agent, other) = (World::new()?, Cgroup::new("agent")?, Cgroup::new("other")?);
    let inner = agent.child("inner")?;
    let mut config = world.config();
    config["explicit"]["allowed_cgroups"] = json!([agent.inside()]);
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    for (cgroup, expected) in [
        (Some(&agent), "202"),
        (Some(&inner), "202"),
        (Some(&other), "503"),
        (None, "503"),
        (Some(&agent), "202"),
    ] {
        check_eq!(
            asks(&world, "0", cgroup)?,
            expected,
            "{:?}\n{}",
            cgroup.map(Cgroup::inside),
            proxy.log()
        );
    }
    // A cgroup that comes later is known when it connects.
    let late = agent.child("late")?;
    check_eq!(asks(&world, "0", Some(&late))?, "202", "{}", proxy.log());
    check_eq!(world.intake.count(), 4, "requests at the intake");
    check!(proxy.status()?["ready"] == true, "{:?}", proxy.status());
    Ok(())
}

pub(super) fn bad_lists() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["explicit"]["allowed_users"] = json!(["no-such-user"]);
    let output = Launch::new(&world.host).config(&config)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check_eq!(output.status.code(), Some(78), "{said}");
    check!(
        said.contains("explicit.allowed_users: there is no user `no-such-user`"),
        "{said}"
    );
    Ok(())
}
