//! The rpm: rpm's own database beside dpkg's, its scriptlets with a systemd that runs.

use std::time::Duration;

use anyhow::Result;
use harness::systemd::{Systemd, UNIT};
use harness::world::World;
use harness::{capture, check, check_eq};

use crate::deb::{let_go, lost_nothing, site};
use crate::made::{bring, packages, traces, user};
use crate::stage::{Load, ask, nothing_leaked};

/// `rpm` with these words. What the packages need is here, as Debian's.
fn rpm(machine: &Systemd<'_>, words: &[&str]) -> Result<String> {
    let output = capture(
        machine
            .command("rpm")
            .args([
                "--dbpath=/var/lib/rpm-test",
                "--nodeps",
                "--nosignature",
                "--force-debian",
            ])
            .args(words),
    )?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // A scriptlet that fails is a warning to rpm.
    check!(
        output.status.success() && !text.contains("scriptlet failed"),
        "rpm {words:?}: {text}\n{}",
        machine.log()
    );
    Ok(text)
}

pub fn from_install_to_erase() -> Result<()> {
    let (first, second) = (packages(1)?, packages(2)?);
    let world = World::new()?;
    let machine = Systemd::boot_bare(&world.host)?;
    let (first, second) = (bring(&machine, &first.rpm)?, bring(&machine, &second.rpm)?);

    // Installed: the presets decide, and without one a service is not started. Of presets this machine has none but a general no.
    std::fs::create_dir_all(machine.path("/etc/systemd/system-preset"))?;
    std::fs::write(
        machine.path("/etc/systemd/system-preset/99-default.preset"),
        "disable *\n",
    )?;
    rpm(&machine, &["--install", &first])?;
    check_eq!(
        machine.property(UNIT, "UnitFileState")?,
        "disabled",
        "{}",
        machine.log()
    );
    check_eq!(machine.property(UNIT, "ActiveState")?, "inactive", "not started");
    check!(user(&machine, "agent-fips-proxy-master")?.is_some(), "no user");

    site(&world, &machine)?;
    machine.must(&["enable", "--now", UNIT])?;
    machine.ready()?;
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    let master = machine.property(UNIT, "MainPID")?;
    let loads = vec![Load::start(&machine, false)?, Load::start(&machine, true)?];
    std::thread::sleep(Duration::from_millis(500));
    let said = rpm(&machine, &["--upgrade", &second])?;
    check!(said.contains("has taken over from version"), "{said}");
    check_eq!(machine.property(UNIT, "MainPID")?, master, "the same process");
    machine.ready()?;
    lost_nothing(&machine, loads)?;
    check_eq!(ask(&machine)?.0, 202, "the configuration is the administrator's");
    check_eq!(
        machine.property(UNIT, "UnitFileState")?,
        "enabled",
        "still enabled"
    );
    nothing_leaked(&world)?;

    // Erased: the Agent is let go; what was changed is saved beside its place.
    rpm(&machine, &["--erase", "agent-fips-proxy"])?;
    let_go(&machine)?;
    check_eq!(machine.property(UNIT, "LoadState")?, "not-found", "the unit");
    check!(
        machine.path("/etc/agent-fips-proxy/config.yaml.rpmsave").exists(),
        "saved settings"
    );
    check_eq!(
        traces(&machine)?,
        ["/etc/agent-fips-proxy", "/var/lib/agent-fips-proxy"],
        "what is left"
    );
    Ok(())
}
