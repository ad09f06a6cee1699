//! `doctor`: what this host allows, what is missing, and the exact cure.

use std::net::{SocketAddr, TcpListener};

use serde::Serialize;

use super::{Exit, InputArgs};
use crate::cli::output::{complain, say};
use crate::intercept::preflight::{self, Check};
use crate::supervise::listeners;
use crate::tls::module;
use crate::{supervise::admin, tls};

/// `doctor`
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// Interception would work.
    interception: bool,
    /// Every port is free, or ours already.
    ports: bool,
    checks: Vec<Check>,
}

/// `doctor`. Exit 0 only if what the configuration asks for will work.
pub(super) fn run(args: &DoctorArgs, inputs: &InputArgs) -> Exit {
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let config = &loaded.config;
    let kernel = preflight::checks();
    let interception = kernel.iter().all(|check| check.ok || !check.required);
    let lacks_capability = kernel
        .iter()
        .any(|check| !check.ok && check.required && check.capability.is_some());
    let mut checks = kernel;
    checks.push(crypto_module());
    checks.push(trust(config));
    // A proxy that runs holds the ports itself.
    let running = admin::ask(&config.status.socket, admin::Request::Status).is_ok();
    let ports: Vec<Check> = if running { Vec::new() } else { port_checks(config) };
    let ports_free = ports.iter().all(|check| check.ok);
    checks.extend(ports);
    let all = checks.iter().all(|check| check.ok || !check.required);
    let report = Report {
        interception,
        ports: ports_free,
        checks,
    };
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => say!("{text}"),
            Err(error) => complain!("agent-fips-proxy: {error}"),
        }
    } else {
        print(&report);
    }
    match (all, config.intercept.enabled && !interception, lacks_capability) {
        (true, ..) => Exit::Ok,
        (false, true, true) => Exit::NoPermission,
        (false, ..) => Exit::Unavailable,
    }
}

fn crypto_module() -> Check {
    match module::start() {
        Ok(module) => good(
            "crypto module",
            format!(
                "{}, certificate {}",
                module.version,
                module.certificate.as_deref().unwrap_or("none")
            ),
        ),
        Err(error) => bad(
            "crypto module",
            error.to_string(),
            "reinstall the package: the program is damaged",
        ),
    }
}

fn trust(config: &crate::config::Config) -> Check {
    match tls::Client::new(&config.upstream) {
        Ok(client) => {
            let roots = client.roots();
            good(
                "trust roots",
                format!("{} certificates ({})", roots.count, roots.source),
            )
        }
        Err(error) => bad(
            "trust roots",
            error.to_string(),
            "install ca-certificates, or set upstream.ca_file",
        ),
    }
}

fn port_checks(config: &crate::config::Config) -> Vec<Check> {
    listeners::wanted(config)
        .into_iter()
        .filter_map(|wanted| {
            let name = format!("port {} ({})", wanted.address, wanted.purpose.name());
            match TcpListener::bind(wanted.address) {
                Ok(_) => Some(good(&name, "free".to_owned())),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Some(bad(
                    &name,
                    format!("in use{}", owner(wanted.address)),
                    "stop the program that holds it, or change explicit.port_range_start (and the Agent's fips.port_range_start)",
                )),
                // No IPv6 on this host: `localhost` is 127.0.0.1 alone.
                Err(_) if wanted.address.is_ipv6() => None,
                Err(error) => Some(bad(&name, error.to_string(), "change explicit.local_address or status.address")),
            }
        })
        .collect()
}

/// How to find who holds a port; finding it ourselves would need root's view of every process.
fn owner(address: SocketAddr) -> String {
    format!("; `ss -ltnp sport = :{}` shows by whom", address.port())
}

fn good(name: &str, detail: String) -> Check {
    Check {
        name: name.to_owned(),
        ok: true,
        required: true,
        detail,
        cure: String::new(),
        capability: None,
    }
}

fn bad(name: &str, detail: String, cure: &str) -> Check {
    Check {
        name: name.to_owned(),
        ok: false,
        required: true,
        detail,
        cure: cure.to_owned(),
        capability: None,
    }
}

fn print(report: &Report) {
    for check in &report.checks {
        let mark = match (check.ok, check.required) {
            (true, _) => "OK  ",
            (false, true) => "FAIL",
            (false, false) => "note",
        };
        say!("{mark}  {:<34} {}", check.name, check.detail);
        if !check.cure.is_empty() {
            say!("      -> {}", check.cure);
        }
    }
    say!("");
    say!(
        "interception will {}",
        if report.interception { "work" } else { "NOT work" }
    );
}
