//! The deb on a Debian whose first process is systemd.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::systemd::{Systemd, UNIT};
use harness::world::World;
use harness::{capture, check, check_eq, eventually, succeed};
use serde_json::json;

use crate::made::{bring, packages, traces, user};
use crate::stage::{KILL, Load, ask, config};

const LIMIT: Duration = Duration::from_secs(60);

/// `dpkg` with these words; everything is installed, also what a slim image leaves out.
pub fn dpkg(machine: &Systemd<'_>, words: &[&str]) -> Result<String> {
    let output = capture(
        machine
            .command("dpkg")
            .args(["--force-unsafe-io", "--path-include=/usr/share/*"])
            .args(words),
    )?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    check!(
        output.status.success(),
        "dpkg {words:?}: {text}\n{}",
        machine.log()
    );
    Ok(text)
}

/// The configuration that intercepts, and the authority of this world's intake.
pub fn site(world: &World, machine: &Systemd<'_>) -> Result<()> {
    let roots = world.host.folder().join("ca.pem");
    std::fs::copy(roots, machine.path("/etc/agent-fips-proxy/ca.pem"))?;
    machine.configure(&config())
}

/// Nobody was refused, and every request was answered.
pub fn lost_nothing(machine: &Systemd<'_>, loads: Vec<Load>) -> Result<()> {
    for load in loads {
        let report = load.finish()?;
        check!(report.all(202), "{report:?}\n{}", machine.log());
        let refused = report
            .again()
            .into_values()
            .flatten()
            .any(|failed| failed.why.starts_with("connect_"));
        check!(!refused, "refused connects: {report:?}\n{}", machine.log());
        check!(report.count("attempts") > 50, "hardly a load: {report:?}");
    }
    Ok(())
}

/// No hook, pin or map of ours is left, and the Agent goes its own way.
pub fn let_go(machine: &Systemd<'_>) -> Result<()> {
    check!(
        !machine.path("/sys/fs/bpf/agent-fips-proxy").exists(),
        "pins are left"
    );
    check!(
        !machine.path("/run/agent-fips-proxy").exists(),
        "the socket's folder is left"
    );
    check_eq!(ask(machine)?.1, "plain", "the Agent goes its own way");
    Ok(())
}

pub fn from_install_to_purge() -> Result<()> {
    let (first, second) = (packages(1)?, packages(2)?);
    let world = World::new()?;
    let machine = Systemd::boot_bare(&world.host)?;
    machine.drop_in("kill.conf", Some(KILL))?;
    check_eq!(
        traces(&machine)?,
        Vec::<String>::new(),
        "a machine that never saw it"
    );
    let (first, second) = (bring(&machine, &first.deb)?, bring(&machine, &second.deb)?);

    // Installed: it runs, serves who asks, takes nobody.
    dpkg(&machine, &["--install", &first])?;
    check_eq!(
        machine.property(UNIT, "UnitFileState")?,
        "enabled",
        "{}",
        machine.log()
    );
    let status = machine.ready()?;
    check_eq!(status["interception"]["attached"], json!(false), "{status:#}");
    check_eq!(status["site"], json!("ddog-gov.com"), "{status:#}");
    check_eq!(ask(&machine)?.1, "plain", "nobody is taken");
    for name in ["agent-fips-proxy", "agent-fips-proxy-master"] {
        let line = user(&machine, name)?.with_context(|| format!("no user {name}"))?;
        check!(line.ends_with("nologin"), "{line}");
    }
    for (path, expected) in [
        ("/var/lib/agent-fips-proxy", "755 agent-fips-proxy-master"),
        ("/etc/agent-fips-proxy/config.yaml", "644 root"),
    ] {
        let found = succeed(machine.command("stat").args(["--format=%a %U", path]))?;
        check_eq!(found.trim(), expected, "{path}");
    }

    // Configured, and upgraded under load: in the same process.
    site(&world, &machine)?;
    machine.must(&["reload", UNIT])?;
    eventually("interception", LIMIT, || {
        Ok((ask(&machine)?.0 == 202).then_some(()))
    })
    .with_context(|| machine.log())?;
    let before = world.leaks().len();
    let master = machine.property(UNIT, "MainPID")?;
    let loads = vec![Load::start(&machine, false)?, Load::start(&machine, true)?];
    std::thread::sleep(Duration::from_millis(500));
    let said = dpkg(&machine, &["--install", &second])?;
    check!(said.contains("has taken over from version"), "{said}");
    check_eq!(
        machine.property(UNIT, "MainPID")?,
        master,
        "the same process\n{said}"
    );
    check_eq!(machine.ready()?["upgrades"], json!(1), "{said}");
    // What does not take over in place: root's program in a folder where others may write.
    succeed(machine.command("chmod").args(["o+w", "/usr/bin"]))?;
    let said = dpkg(&machine, &["--install", &second])?;
    succeed(machine.command("chmod").args(["o-w", "/usr/bin"]))?;
    check!(said.contains("no upgrade:"), "{said}");
    check!(machine.property(UNIT, "MainPID")? != master, "restarted: {said}");
    machine.ready()?;
    lost_nothing(&machine, loads)?;
    check_eq!(
        ask(&machine)?.0,
        202,
        "the configuration is the administrator's\n{}",
        machine.log()
    );
    check_eq!(world.leaks().len(), before, "leaks since interception began");

    // Removed: the Agent is let go, what was configured stays. Installed again: as it was.
    for words in [&["ca", "init"][..], &["ca", "install"]] {
        let output = machine.cli(words)?;
        check!(output.status.success(), "{output:?}");
    }
    dpkg(&machine, &["--remove", "agent-fips-proxy"])?;
    let_go(&machine)?;
    check_eq!(machine.property(UNIT, "LoadState")?, "not-found", "the unit");
    for path in [
        "/etc/agent-fips-proxy/config.yaml",
        "/var/lib/agent-fips-proxy/ca",
    ] {
        check!(machine.path(path).exists(), "{path} is not there any more");
    }
    check!(!machine.path("/usr/bin/agent-fips-proxy").exists(), "the program");
    dpkg(&machine, &["--install", &first])?;
    machine.ready()?;
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());

    // Purged, while it runs: nothing is left but two users without files.
    dpkg(&machine, &["--purge", "agent-fips-proxy"])?;
    let_go(&machine)?;
    check_eq!(
        traces(&machine)?,
        Vec::<String>::new(),
        "what is left\n{}",
        machine.log()
    );
    check!(user(&machine, "agent-fips-proxy-master")?.is_some(), "users stay");
    Ok(())
}

/// What was stopped or disabled by the administrator stays so over an upgrade, and over a removal that is taken back.
pub fn choices() -> Result<()> {
    let (first, second) = (packages(1)?, packages(2)?);
    let world = World::new()?;
    let machine = Systemd::boot_bare(&world.host)?;
    let (first, second) = (bring(&machine, &first.deb)?, bring(&machine, &second.deb)?);
    dpkg(&machine, &["--install", &first])?;
    machine.ready()?;
    machine.must(&["stop", UNIT])?;
    dpkg(&machine, &["--install", &second])?;
    check_eq!(
        machine.property(UNIT, "ActiveState")?,
        "inactive",
        "stopped stays stopped"
    );
    check_eq!(machine.property(UNIT, "UnitFileState")?, "enabled", "and enabled");
    machine.must(&["disable", UNIT])?;
    dpkg(&machine, &["--install", &first])?;
    check_eq!(
        machine.property(UNIT, "UnitFileState")?,
        "disabled",
        "disabled stays disabled"
    );
    // A program that failed is tried again by the one that comes.
    machine.must(&["enable", UNIT])?;
    let file = machine.path("/etc/agent-fips-proxy/config.yaml");
    let good = std::fs::read_to_string(&file)?;
    std::fs::write(&file, "nonsense: true\n")?;
    check!(!machine.systemctl(&["start", UNIT])?.status.success(), "nonsense");
    dpkg(&machine, &["--install", &second])?;
    check!(
        std::fs::read_to_string(&file)?.contains("nonsense"),
        "a setting is never overwritten"
    );
    std::fs::write(&file, good)?;
    dpkg(&machine, &["--install", &first])?;
    machine.ready()?;
    // Another's drop-in and file stay; the folders are the administrator's.
    let other = "/etc/systemd/system/datadog-agent.service.d/50-mine.conf";
    succeed(machine.command("sh").args([
        "-c",
        &format!("mkdir -p $(dirname {other}) && echo '[Service]' > {other}"),
    ]))?;
    dpkg(&machine, &["--purge", "agent-fips-proxy"])?;
    check!(machine.path(other).exists(), "somebody else's drop-in");
    check_eq!(traces(&machine)?, Vec::<String>::new(), "what is left");
    Ok(())
}
