//! `doctor` on the configuration of this host's Agent: what would go past the proxy, or be refused by it.
//!
//! Every finding is a note: the Agent runs with it, only not as whoever installs this proxy expects. Never printed: a value
//! that may be secret. Sources: the Agent's `comp/logs/agent/config/config.go` (`BuildEndpointsWithConfig`: what selects TCP)
//! and `pkg/config/setup/config.go` (`setupFipsEndpoints`).

use super::agent_settings::{FILE, Problem, Settings};
use super::{bad, good};
use crate::catalog::{Catalog, KNOWN_SITES, Protocol, Site};
use crate::config::Config;
use crate::intercept::preflight::Check;
use crate::trust::Place;

/// Every setting of the Agent that is looked at.
const LOOKED_AT: &[&str] = &[
    SITE,
    LOGS[0],
    LOGS[1],
    USE_HTTP[0],
    USE_HTTP[1],
    USE_TCP[0],
    USE_TCP[1],
    PIPELINES[0],
    PIPELINES[1],
    SOCKS,
    ADDITIONAL,
    LOGS_URL,
    PORT_443,
    MRF,
    MRF_SITE,
    SKIP_VALIDATION,
    FIPS,
    FIPS_HTTPS,
    FIPS_VERIFY,
    FIPS_PORT,
];

const SITE: &str = "site";
/// The second is the first's name of before.
const LOGS: [&str; 2] = ["logs_enabled", "log_enabled"];
const USE_HTTP: [&str; 2] = ["logs_config.force_use_http", "logs_config.use_http"];
const USE_TCP: [&str; 2] = ["logs_config.force_use_tcp", "logs_config.use_tcp"];
/// Logs to such a worker are HTTP.
const PIPELINES: [&str; 2] = [
    "observability_pipelines_worker.logs.enabled",
    "vector.logs.enabled",
];
const SOCKS: &str = "logs_config.socks5_proxy_address";
const ADDITIONAL: &str = "logs_config.additional_endpoints";
const LOGS_URL: &str = "logs_config.logs_dd_url";
const PORT_443: &str = "logs_config.use_port_443";
const MRF: &str = "multi_region_failover.enabled";
const MRF_SITE: &str = "multi_region_failover.site";
const SKIP_VALIDATION: &str = "skip_ssl_validation";
const FIPS: &str = "fips.enabled";
const FIPS_HTTPS: &str = "fips.https";
const FIPS_VERIFY: &str = "fips.tls_verify";
const FIPS_PORT: &str = "fips.port_range_start";

/// The port of the Agent's logs over TCP where the site has no other (`logs_config.dd_port`), and that without TLS.
const TCP_PORTS: [u16; 2] = [10516, 10514];

/// What to do about logs over TCP.
const FORCE_HTTP: &str =
    "in the Agent, logs_config.force_use_http: true (DD_LOGS_CONFIG_FORCE_USE_HTTP=true); restart it";

/// What is to be said of the Agent of the host of `place`; nothing where there is none.
pub(super) fn checks(place: &Place, config: &Config) -> Vec<Check> {
    let Some((settings, problems)) = Settings::read(place, LOOKED_AT) else {
        return Vec::new();
    };
    // A file that cannot be read may say anything: what would follow from its absence is no finding.
    if !problems.is_empty() {
        return problems.into_iter().map(problem).collect();
    }
    judge(&settings, config)
}

/// Every setting that is looked at, with its value where that cannot be secret. A URL may hold a key: only that it is set.
pub(super) fn told(place: &Place) -> String {
    let Some((settings, problems)) = Settings::read(place, LOOKED_AT) else {
        return "no Agent is installed on this host (no /etc/datadog-agent)\n".to_owned();
    };
    let mut text: String = problems
        .iter()
        .map(|problem| format!("PROBLEM: {}\n", problem.detail))
        .collect();
    for path in LOOKED_AT {
        let value = match *path {
            SITE | MRF_SITE => settings.text(path).map(|text| {
                text.parse::<Site>()
                    .map_or("no site".to_owned(), |site| site.to_string())
            }),
            FIPS_PORT => settings.text(path).map(|text| {
                text.parse::<u16>()
                    .map_or("no port".to_owned(), |port| port.to_string())
            }),
            ADDITIONAL => Some(settings.items(path))
                .filter(|items| *items > 0)
                .map(|items| format!("{items} items")),
            SOCKS | LOGS_URL => settings.text(path).map(|_| "set".to_owned()),
            _ => settings.switch(path).map(|on| on.to_string()),
        };
        let from = if value.is_some() {
            settings.origin(path)
        } else {
            String::new()
        };
        let value = value.as_deref().unwrap_or("not set");
        text.push_str(format!("{path}: {value}  {from}").trim_end());
        text.push('\n');
    }
    text
}

fn problem(problem: Problem) -> Check {
    note("agent configuration", problem.detail, problem.cure)
}

fn note(name: &str, detail: String, cure: &str) -> Check {
    Check {
        required: false,
        ..bad(name, detail, cure)
    }
}

fn judge(settings: &Settings, config: &Config) -> Vec<Check> {
    let mut checks = vec![good("agent configuration", format!("read ({FILE})"))];
    let site = match settings.text(SITE).map(|text| text.parse::<Site>()) {
        None => Site::default(),
        Some(Ok(site)) => site,
        Some(Err(problem)) => {
            let detail = format!("{}: {problem}", settings.origin(SITE));
            checks.push(note("agent site", detail, "correct it in the Agent"));
            return checks;
        }
    };
    checks.extend(other_site(settings, config, &site));
    checks.extend(failover(settings, config));
    checks.push(logs(settings, config, &site));
    checks.extend(certificates(settings));
    checks.extend(fips(settings, config));
    checks
}

/// Intake names are known for one site: those of another are none of ours, and go their own way.
fn other_site(settings: &Settings, config: &Config, site: &Site) -> Option<Check> {
    (*site != config.site).then(|| {
        let said = match settings.text(SITE) {
            Some(_) => format!("its site is {site} ({})", settings.origin(SITE)),
            None => format!("its site is {site}, the default"),
        };
        note(
            "agent site",
            format!(
                "{said}, the proxy's is {}: its intake names are not known here, and left alone",
                config.site
            ),
            "set `site` to the Agent's (it falls back to DD_SITE)",
        )
    })
}

fn failover(settings: &Settings, config: &Config) -> Option<Check> {
    let site: Site = settings.text(MRF_SITE)?.parse().ok()?;
    (settings.is_on(MRF) && site != config.site).then(|| {
        note(
            "agent failover site",
            format!(
                "{} is {site}, the proxy's site is {}: what goes there during a failover is left alone",
                settings.origin(MRF_SITE),
                config.site
            ),
            "give each site a proxy of its own, or do without the failover",
        )
    })
}

/// How logs leave.
enum Transport {
    Off,
    Http,
    /// By this setting.
    Tcp(String),
    /// HTTP, and TCP when the first request fails.
    Either,
}

fn transport(settings: &Settings) -> Transport {
    let any = |paths: &[&str]| paths.iter().any(|path| settings.is_on(path));
    if !any(&LOGS) {
        return Transport::Off;
    }
    let url = settings.text(LOGS_URL).unwrap_or_default();
    // The Agent's own order: what asks for HTTP wins over all that asks for TCP. `fips.enabled` sets `use_http` itself.
    if any(&USE_HTTP)
        || any(&PIPELINES)
        || settings.is_on(FIPS)
        || url.starts_with("http://")
        || url.starts_with("https://")
    {
        return Transport::Http;
    }
    if let Some(path) = USE_TCP.iter().find(|path| settings.is_on(path)) {
        return Transport::Tcp(format!("{} is set", settings.origin(path)));
    }
    if settings.text(SOCKS).is_some_and(|address| !address.is_empty()) {
        return Transport::Tcp(format!("{} is set", settings.origin(SOCKS)));
    }
    if settings.items(ADDITIONAL) > 0 {
        return Transport::Tcp(format!(
            "{} has an entry, which alone makes the Agent use TCP",
            settings.origin(ADDITIONAL)
        ));
    }
    match is_tcp_intake(&url) {
        Some(what) => Transport::Tcp(format!("{} names {what}", settings.origin(LOGS_URL))),
        None => Transport::Either,
    }
}

/// Why nobody answers HTTP at this `host:port`; never the text itself, which a URL's credentials could stand in.
fn is_tcp_intake(url: &str) -> Option<String> {
    let (host, port) = url.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    if TCP_PORTS.contains(&port) {
        return Some(format!("port {port}, where the intake takes raw TCP alone"));
    }
    KNOWN_SITES
        .iter()
        .filter_map(|known| known.domain.parse::<Site>().ok())
        .filter_map(|site| Catalog::new(&site).lookup(host))
        .find(|product| product.protocol() == Protocol::Stream)
        .map(|_| "an intake that takes raw TCP alone".to_owned())
}

fn logs(settings: &Settings, config: &Config, site: &Site) -> Check {
    let name = "agent logs";
    match transport(settings) {
        Transport::Off => good(name, "not collected (logs_enabled)".to_owned()),
        Transport::Http => good(name, "over HTTP, and nothing else".to_owned()),
        Transport::Tcp(why) => {
            let port = tcp_port(settings, site);
            note(
                name,
                format!(
                    "over TCP: {why}. {}; either way the validated module does not encrypt them",
                    fate(port, config)
                ),
                FORCE_HTTP,
            )
        }
        Transport::Either => match site.known() {
            Some(known) if known.tcp_logs.is_none() => good(
                name,
                format!(
                    "over HTTP; when the intake cannot be reached at the Agent's start it tries TCP, which {site} does not \
                     take, and HTTP again later (logs_config.force_use_http: true spares it that)"
                ),
            ),
            _ => note(
                name,
                format!(
                    "over HTTP, but when the intake cannot be reached at the Agent's start (the proxy is not ready, say) it \
                     goes over to TCP. {}",
                    fate(tcp_port(settings, site), config)
                ),
                FORCE_HTTP,
            ),
        },
    }
}

/// The port to which the Agent opens its TCP sessions.
fn tcp_port(settings: &Settings, site: &Site) -> u16 {
    let url = settings.text(LOGS_URL).unwrap_or_default();
    match url.rsplit_once(':').and_then(|(_, port)| port.parse().ok()) {
        Some(port) => port,
        None if settings.is_on(PORT_443) => 443,
        None => site
            .known()
            .and_then(|known| known.tcp_logs)
            .unwrap_or(TCP_PORTS[0]),
    }
}

/// What becomes of a TCP session.
fn fate(port: u16, config: &Config) -> String {
    if !config.intercept.enabled {
        format!("They leave to port {port} without the proxy (intercept.enabled: false)")
    } else if config.intercept.ports.contains(&port) {
        format!(
            "Their port {port} is one of intercept.ports: they are passed through with the Agent's own cryptography, or \
             refused, as intercept.https says"
        )
    } else {
        format!("They leave past the proxy: their port {port} is not one of intercept.ports")
    }
}

/// An Agent that believes any certificate.
fn certificates(settings: &Settings) -> Option<Check> {
    let why = if settings.is_on(FIPS)
        && settings.switch(FIPS_HTTPS) != Some(false)
        && settings.switch(FIPS_VERIFY) == Some(false)
    {
        format!(
            "{} is false, which the Agent takes for all that it sends",
            settings.origin(FIPS_VERIFY)
        )
    } else if settings.is_on(SKIP_VALIDATION) {
        format!("{} is true", settings.origin(SKIP_VALIDATION))
    } else {
        return None;
    };
    Some(note(
        "agent certificate checks",
        format!("{why}: it believes whoever answers, on this host and beyond. The proxy never needs it"),
        "take the setting away; `agent-fips-proxy ca install` is what makes an Agent trust the proxy",
    ))
}

/// `fips.*`, by which the Agent sends to the explicit ports.
fn fips(settings: &Settings, config: &Config) -> Option<Check> {
    let name = "agent fips settings";
    if !settings.is_on(FIPS) {
        return None;
    }
    let enabled = settings.origin(FIPS);
    if !config.explicit.enabled {
        return Some(note(
            name,
            format!("{enabled} is true, and the proxy does not serve those ports (explicit.enabled: false)"),
            "set explicit.enabled: true, or take fips.enabled from the Agent",
        ));
    }
    if settings.switch(FIPS_HTTPS) != Some(false) {
        return Some(note(
            name,
            format!(
                "{enabled} is true without fips.https: false: the Agent speaks TLS to ports that take plain HTTP"
            ),
            "in the Agent, fips.https: false",
        ));
    }
    let ours = config.explicit.port_range_start;
    let theirs = settings
        .text(FIPS_PORT)
        .map_or(Ok(9803), |text| text.parse::<u16>());
    match theirs {
        Ok(port) if port == ours => Some(good(name, format!("plain HTTP to the ports from {ours}"))),
        Ok(port) => Some(note(
            name,
            format!("its ports begin at {port}, the proxy's at {ours}"),
            "give explicit.port_range_start and the Agent's fips.port_range_start the same number",
        )),
        Err(_) => Some(note(
            name,
            format!("{} is no port", settings.origin(FIPS_PORT)),
            "correct it in the Agent",
        )),
    }
}

#[cfg(test)]
mod tests;
