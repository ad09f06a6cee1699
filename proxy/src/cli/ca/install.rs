//! `ca install` and `ca uninstall`: who is to trust the authority, written down where clients look, and taken away again.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::{Context, Done, Exit, Failure, json, list};
use crate::cli::output::say;
use crate::trust::drop_ins::{self, AGENT_UNITS};
use crate::trust::host_store::Flavour;
use crate::trust::{Files, Place};

/// `ca install`
#[derive(clap::Args)]
pub struct InstallArgs {
    /// Also for this unit, with the variables of every kind of client; may be repeated
    #[arg(long = "unit", value_name = "NAME.service")]
    units: Vec<String>,
    /// Put it into the distribution's store of roots as well: every program of the host then trusts it
    #[arg(long)]
    host_store: bool,
    /// Write nothing; print what a pod's manifest needs
    #[arg(long, conflicts_with_all = ["units", "host_store"])]
    pod: bool,
}

/// What both print as JSON.
#[derive(Serialize, Default)]
struct Report {
    /// Files that are there now, or were removed.
    files: Vec<PathBuf>,
    /// Something changed.
    changed: bool,
    /// systemd read its units again.
    reloaded: bool,
    /// Running units whose processes do not know yet.
    restart: Vec<String>,
    warnings: Vec<String>,
    /// What to do by hand.
    next: Vec<String>,
}

/// `ca install`
pub(super) fn install(context: &Context, args: &InstallArgs) -> Done {
    context.ours("Agents trust its root, or must be told to; there is nothing to install here")?;
    if args.pod {
        return pod(context);
    }
    for unit in &args.units {
        drop_ins::check_name(unit).map_err(|problem| Failure::new(Exit::Usage, problem))?;
    }
    let place = &context.place;
    let published = context.store().published()?;
    let files = Files::new(place, &context.config.ca.dir)
        .map_err(|problem| Failure::new(Exit::Unavailable, problem))?;
    // Before anything is written: a store that is not known must not leave half of an installation.
    let flavour = args
        .host_store
        .then(|| Flavour::of(place))
        .transpose()
        .map_err(|problem| Failure::new(Exit::Unavailable, problem))?;
    let mut report = Report {
        files: files.write(place)?,
        warnings: drop_ins::overridden(place, &files.agent_variables()),
        ..Report::default()
    };
    let agents = AGENT_UNITS.iter().map(|unit| (*unit, files.agent_variables()));
    let others = args
        .units
        .iter()
        .map(|unit| (unit.as_str(), files.client_variables()));
    for (unit, variables) in agents.chain(others) {
        let (path, changed) = drop_ins::write(place, unit, &variables)?;
        report.files.push(path);
        report.changed |= changed;
    }
    if let Some(flavour) = flavour {
        report.changed |= !flavour.sync(place, &published)?.is_empty();
        report.files.extend(flavour.present(place));
        if !place.is_running() {
            report.next.push(format!("in that system: {}", flavour.command()));
        }
    }
    let newest = published.iter().map(|one| one.published).max().unwrap_or(0);
    report.reload(place);
    let stale = context
        .processes()
        .iter()
        .any(|process| process.agent && (process.by.is_none() || process.is_older_than(newest)));
    if place.is_running() && (report.changed || stale) {
        report.restart = running_units(&args.units);
    }
    report.print(context, "installed");
    Ok(Exit::Ok)
}

/// `ca uninstall`
pub(super) fn uninstall(context: &Context) -> Done {
    let place = &context.place;
    let mut report = Report {
        files: drop_ins::remove(place)?,
        ..Report::default()
    };
    report.changed = !report.files.is_empty();
    report.files.extend(Files::remove(place, &context.config.ca.dir)?);
    if let Ok(flavour) = Flavour::of(place) {
        let gone = flavour.sync(place, &[])?;
        if !gone.is_empty() && !place.is_running() {
            report.next.push(format!("in that system: {}", flavour.command()));
        }
        report.files.extend(gone);
    }
    if report.changed {
        report.reload(place);
        if place.is_running() {
            report.restart = running_units(&[]);
        }
    }
    report.changed = !report.files.is_empty();
    report.print(context, "removed");
    Ok(Exit::Ok)
}

impl Report {
    /// Makes systemd read its units again, where it runs. It restarts nothing.
    fn reload(&mut self, place: &Place) {
        // What sd_booted(3) looks at.
        if !place.is_running() || !Path::new("/run/systemd/system").is_dir() {
            return;
        }
        match Command::new("systemctl").arg("daemon-reload").output() {
            Ok(output) if output.status.success() => self.reloaded = true,
            Ok(output) => self.warnings.push(format!(
                "systemctl daemon-reload failed ({}): run it by hand. {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Err(error) => self.warnings.push(format!(
                "systemctl daemon-reload cannot be run ({error}): run it by hand"
            )),
        }
    }

    fn print(&self, context: &Context, done: &str) {
        if context.json {
            json(self);
            return;
        }
        if self.files.is_empty() {
            say!("nothing of ours is there");
        }
        for path in &self.files {
            say!("{done} {}", path.display());
        }
        for warning in &self.warnings {
            say!("warning: {warning}");
        }
        for step in &self.next {
            say!("-> {step}");
        }
        if !self.restart.is_empty() {
            say!(
                "-> programs read their roots when they start: systemctl restart {}",
                list(&self.restart).replace(", ", " ")
            );
        }
    }
}

/// Units of Agents, and these, that run now. Empty where no systemd does.
fn running_units(more: &[String]) -> Vec<String> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Vec::new();
    }
    let output = Command::new("systemctl")
        .args([
            "list-units",
            "--plain",
            "--no-legend",
            "--state=running",
            "datadog-agent*.service",
        ])
        .args(more)
        .output();
    output
        .map(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|line| line.split_ascii_whitespace().next())
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

/// Where a pod finds the certificates; any folder that its image does not use.
const POD_FOLDER: &str = "/etc/agent-fips-proxy/trust";
/// The roots of the Agent's own image, which stands on Ubuntu.
const POD_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

fn pod(context: &Context) -> Done {
    let folder = crate::tls::ca::Store::new(&context.config.ca.dir).trust_dir();
    if context.json {
        json(&serde_json::json!({
            "volumes": [{"name": "agent-fips-proxy-trust", "hostPath": {"path": folder, "type": "Directory"}}],
            "volumeMounts": [{"name": "agent-fips-proxy-trust", "mountPath": POD_FOLDER, "readOnly": true}],
            "env": [
                {"name": "SSL_CERT_FILE", "value": POD_ROOTS},
                {"name": "SSL_CERT_DIR", "value": POD_FOLDER},
            ],
        }));
        return Ok(Exit::Ok);
    }
    say!("# In the Agent's pod. The folder holds certificates only, never a key.");
    say!("volumes:");
    say!("  - name: agent-fips-proxy-trust");
    say!("    hostPath: {{path: {}, type: Directory}}", folder.display());
    say!("# In each of its containers:");
    say!("volumeMounts:");
    say!("  - {{name: agent-fips-proxy-trust, mountPath: {POD_FOLDER}, readOnly: true}}");
    say!("env:");
    say!("  - {{name: SSL_CERT_FILE, value: {POD_ROOTS}}}");
    say!("  - {{name: SSL_CERT_DIR, value: {POD_FOLDER}}}");
    Ok(Exit::Ok)
}
