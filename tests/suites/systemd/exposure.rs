//! What `systemd-analyze security` thinks of the shipped files.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::Result;
use harness::systemd::{PODS, UNIT, dist};
use harness::{capture, check};

/// Tenths. What is asked for of the unit, and what it is with the drop-in.
const LIMIT: u32 = 20;
const LIMIT_WITH_PODS: u32 = 28;

pub fn exposure() -> Result<()> {
    for (drop_in, limit) in [(None, LIMIT), (Some(PODS), LIMIT_WITH_PODS)] {
        let folder = tempfile::tempdir()?;
        let unit = folder.path().join(UNIT);
        std::fs::copy(dist(UNIT), &unit)?;
        if let Some(name) = drop_in {
            let place = folder.path().join(format!("{UNIT}.d"));
            std::fs::create_dir(&place)?;
            std::fs::copy(dist(name), place.join(name))?;
        }
        let output = analyze(&unit, limit)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        check!(
            output.status.success(),
            "{drop_in:?}, more than {limit} tenths: {text}"
        );
        println!("{}", text.lines().last().unwrap_or_default());
        // The tool says so when it is more: the check above is one.
        check!(
            !analyze(&unit, limit - 1)?.status.success(),
            "{drop_in:?}: better than documented: {text}"
        );
    }
    Ok(())
}

fn analyze(unit: &Path, limit: u32) -> Result<Output> {
    capture(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={limit}"))
            .arg(unit),
    )
}
