//! What the unit's users may read.

use std::time::Duration;

use anyhow::{Context, Result};
use harness::systemd::{Systemd, UNIT};
use harness::world::World;
use harness::{check, check_eq, eventually, succeed};
use serde_json::json;

use crate::stage::{ask, config};

const LIMIT: Duration = Duration::from_secs(60);

/// A secret of root's that the master's group may read is read; one that is root's alone is not, and the reason says what helps.
/// What `/proc` hides is said where somebody counts on it.
pub fn secrets_of_root() -> Result<()> {
    let world = World::new()?;
    let file = "/etc/agent-fips-proxy/credentials";
    let mut config = config();
    config["intercept"]["https_passthrough_names"] = json!(["process:node"]);
    // Nothing of this case goes there.
    config["upstream"]["proxy"] = json!({
        "url": "http://203.0.113.99:3128",
        "credentials_file": file,
        "products": ["flare"],
    });
    let machine = Systemd::boot(&world.host, &config, &[])?;
    let script = format!("umask 077; echo user:password > {file}");
    succeed(machine.command("sh").args(["-c", &script]))?;
    check!(
        !machine.systemctl(&["start", UNIT])?.status.success(),
        "{}",
        machine.log()
    );
    eventually("the reason", LIMIT, || {
        let log = machine.log();
        Ok((log.contains(file) && log.contains("chgrp agent-fips-proxy-master")).then_some(()))
    })
    .with_context(|| machine.log())?;
    machine.must(&["stop", UNIT])?;
    let script = format!("chgrp agent-fips-proxy-master {file} && chmod 640 {file}");
    succeed(machine.command("sh").args(["-c", &script]))?;
    machine.must(&["start", UNIT])?;
    machine.ready()?;
    check_eq!(ask(&machine)?.0, 202, "{}", machine.log());
    check!(
        machine
            .log()
            .contains("entries `process:` of intercept.https_passthrough_names match nobody"),
        "{}",
        machine.log()
    );
    Ok(())
}
