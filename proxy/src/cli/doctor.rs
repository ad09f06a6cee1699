//! `doctor`: what this host allows, what is missing, and the exact cure.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use serde::Serialize;

use super::{Exit, InputArgs};
use crate::cli::output::{complain, say};
use crate::config::{Config, HttpsPolicy};
use crate::intercept::preflight::{self, Check};
use crate::intercept::{self, Forecast};
use crate::supervise::{authority, listeners};
use crate::tls::module;
use crate::trust::Place;
use crate::{kubernetes, tls};

mod agent_config;
pub(in crate::cli) mod agent_settings;
mod running;

/// `doctor`
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Run other vendors' classifiers once with a test packet, to learn what they answer. This is a real run: it can
    /// write the vendor's maps (counters, connection tracking)
    #[arg(long)]
    probe: bool,
}

#[derive(Serialize)]
struct Report {
    /// Interception will work, for every Agent that is there.
    interception: bool,
    /// Every port is free, or ours already.
    ports: bool,
    checks: Vec<Check>,
    /// Absent where interception is off, or cannot be foreseen: a check says why.
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<Forecast>,
}

/// `doctor`. Exit 0 only if what the configuration asks for will work.
pub(super) fn run(args: &DoctorArgs, inputs: &InputArgs) -> Exit {
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let config = &loaded.config;
    let mut checks = preflight::checks();
    if config.intercept.reset_existing {
        checks.push(intercept::reset_check());
    }
    let lacks_capability = checks
        .iter()
        .any(|check| !check.ok && check.required && check.capability.is_some());
    let able = checks.iter().all(|check| check.ok || !check.required);
    let mut forecast = if able && config.intercept.enabled {
        foresee(config, args.probe, &mut checks)
    } else {
        None
    };
    // A proxy that runs holds the ports itself, and sees what can only be foreseen otherwise.
    let running = running::ask(config);
    if let Some(seen) = &running {
        checks.extend(running::checks(seen));
        if let (Some(forecast), Ok(seen)) = (&mut forecast, seen) {
            forecast.observe(&seen.interfaces);
        }
    }
    let foreseen = checks.iter().all(|check| check.ok || !check.required);
    let interception = able && foreseen && forecast.as_ref().is_none_or(Forecast::good);
    checks.push(crypto_module());
    checks.push(trust(config));
    checks.extend(local_authority(config));
    checks.extend(agent_config::checks(&Place::new(Path::new("/")), config));
    let ports: Vec<Check> = match running {
        Some(_) => Vec::new(),
        None => port_checks(config),
    };
    let ports_free = ports.iter().all(|check| check.ok);
    checks.extend(ports);
    let all = checks.iter().all(|check| check.ok || !check.required);
    let report = Report {
        interception,
        ports: ports_free,
        checks,
        forecast,
    };
    if args.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => say!("{text}"),
            Err(error) => complain!("agent-fips-proxy: {error}"),
        }
    } else {
        print(&report, args.probe);
    }
    let wanted = config.intercept.enabled;
    match (
        all && (interception || !wanted),
        wanted && !interception && lacks_capability,
    ) {
        (true, _) => Exit::Ok,
        (false, true) => Exit::NoPermission,
        (false, false) => Exit::Unavailable,
    }
}

/// What the host's Agent is set to, as far as it concerns us and can be no secret: for a support bundle.
pub(super) fn agent_settings() -> String {
    agent_config::told(&Place::new(Path::new("/")))
}

/// How each Agent will be taken. What keeps us from knowing becomes a check.
fn foresee(config: &Config, probe: bool, checks: &mut Vec<Check>) -> Option<Forecast> {
    let pods = match kubernetes::list_once(config) {
        Ok(pods) => {
            checks.push(good(
                "kubernetes",
                format!("names {} Agent pods of this node", pods.len()),
            ));
            pods
        }
        Err(kubernetes::Error::NotAsked) => Vec::new(),
        Err(error) => {
            checks.push(bad(
                "kubernetes",
                error.to_string(),
                "see the message, or set intercept.agents.pods.api: off",
            ));
            Vec::new()
        }
    };
    match intercept::forecast(&config.intercept, config.upstream.network, pods, probe) {
        Ok(mut forecast) => {
            checks.append(&mut forecast.checks);
            Some(forecast)
        }
        Err(error) => {
            checks.push(bad("agents", error.to_string(), "run as root on the host"));
            None
        }
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

fn trust(config: &Config) -> Check {
    match tls::Client::new(&config.upstream) {
        Ok(client) => {
            let roots = client.roots();
            let found = format!("{} certificates ({})", roots.count, roots.source);
            match client.trust().alarms.as_slice() {
                [] => good("trust roots", found),
                alarms => bad(
                    "trust roots",
                    format!("{found}; {}", alarms.join("; ")),
                    "as it says",
                ),
            }
        }
        // The message says what to do.
        Err(error) => bad(
            "trust roots",
            error.to_string(),
            "change the setting that it names",
        ),
    }
}

/// The local authority, where there is one. It is a note: what works without it goes on.
fn local_authority(config: &Config) -> Option<Check> {
    let (passing, descriptors) = authority::open(&config.ca);
    let name = "local authority";
    let note = |detail: String, cure: &str| Check {
        required: false,
        ..bad(name, detail, cure)
    };
    if let Some(problem) = passing.problem {
        return Some(note(problem, "see the message; run as root"));
    }
    match authority::receive(config, &passing, descriptors) {
        Ok(None) => without_authority(config).map(|(detail, cure)| note(detail.to_owned(), cure)),
        Ok(Some(server)) => {
            let status = server.authorities();
            Some(match status.warning {
                Some(warning) => note(warning, "see the message"),
                None => good(
                    name,
                    format!(
                        "{}, until {}; `agent-fips-proxy ca show` tells who trusts it",
                        status.current.id(),
                        status.current.ends()
                    ),
                ),
            })
        }
        Err(error) => Some(note(error.to_string(), "see the message")),
    }
}

/// What it means that there is none; nothing where that is as it should be.
fn without_authority(config: &Config) -> Option<(&'static str, &'static str)> {
    match config.intercept.https {
        _ if !config.intercept.enabled => None,
        HttpsPolicy::Auto => Some((
            "none: HTTPS of Agents passes through with their own cryptography, and is held to the policy \
             (intercept.https_below_policy)",
            "`agent-fips-proxy ca init`, then `ca install`, reload the proxy and restart the Agents; or nothing, where Agents \
             speak plain HTTP",
        )),
        HttpsPolicy::Terminate => Some((
            "none yet: the proxy makes one when it starts (intercept.https: terminate)",
            "`agent-fips-proxy ca install` after that, and restart the Agents",
        )),
        HttpsPolicy::Passthrough | HttpsPolicy::Refuse => None,
    }
}

fn port_checks(config: &Config) -> Vec<Check> {
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

fn print(report: &Report, probed: bool) {
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
    if let Some(forecast) = &report.forecast {
        print_forecast(forecast, probed);
    }
    say!("");
    say!(
        "interception will {}",
        if report.interception { "work" } else { "NOT work" }
    );
}

fn print_forecast(forecast: &Forecast, probed: bool) {
    say!("");
    say!("Agents");
    if forecast.agents.is_empty() {
        say!("note  none is there now; one that comes is found by intercept.agents");
    }
    for agent in &forecast.agents {
        let mark = if agent.datapath.is_some() { "OK  " } else { "FAIL" };
        let datapath = agent.datapath.map_or("not taken", |taken| taken.name());
        say!(
            "{mark}  {:<34} {datapath}: {}",
            agent.selector.to_string(),
            agent.why
        );
    }
    if forecast.interfaces.is_empty() {
        return;
    }
    say!("");
    say!("Classifiers on ingress, in the order in which they run");
    for interface in &forecast.interfaces {
        let mark = match (interface.needed, interface.reached) {
            (_, Some(true)) => "OK  ",
            (true, _) => "FAIL",
            (false, _) => "note",
        };
        say!("{mark}  {:<34} ours: {}", interface.name, interface.ours);
        for (place, line) in (1..).zip(&interface.chain) {
            let owner = if line.entry.ours { "; ours" } else { "" };
            say!(
                "      {place}. {}, tag {}, answers {}{owner}",
                line.entry,
                line.entry
                    .program
                    .as_ref()
                    .map_or("-", |program| program.tag.as_str()),
                line.returns
            );
        }
        let words = if interface.needed {
            ""
        } else {
            "no Agent is taken here; for tc: "
        };
        say!("      -> {words}{}", interface.detail);
        for advice in &interface.advice {
            say!("      -> {advice}");
        }
    }
    if !probed
        && forecast
            .interfaces
            .iter()
            .any(|interface| interface.needed && interface.reached.is_none())
    {
        say!("");
        say!(
            "note  `doctor --probe` runs the programs above once with a test packet, to learn what they answer; that can \
             write their maps"
        );
    }
}
