//! `status`: what the running proxy does, from its admin socket.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Exit, InputArgs, watch};
use crate::cli::output::{complain, millis, say};
use crate::config::Config;
use crate::observe::distrust::{ago, cure};
use crate::observe::logging::Lost;
use crate::observe::view::{self, ProductStatus, UpstreamTlsStatus, Warning};
use crate::relay::network::NetworkId;
use crate::supervise::admin::{self, Answer, Request};
use crate::supervise::protocol::{
    ClientTlsStatus, DnsStatus, HttpsStatus, InterceptionStatus, ListenerStatus, MasterStatus, SelfTest,
    UpstreamSessionStatus, WorkerStatus,
};
use crate::supervise::sandbox::Sandbox;
use crate::tls::ca::{AuthoritiesStatus, Role};
use crate::tls::{ModuleStatus, RootsStatus, TrustStatus};

/// `status`
#[derive(clap::Args)]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Again and again: a screen on a terminal, else text, or with --json a line of JSON each time
    #[arg(long)]
    watch: bool,
    /// Time between two looks of --watch
    #[arg(long, value_name = "SECONDS", default_value = "2", requires = "watch", value_parser = seconds)]
    interval: Duration,
}

/// A time of at least a fifth of a second and at most an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if (0.2..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0.2 to 3600".to_owned()),
    }
}

/// What `status --json` prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub(super) version: String,
    pub(super) site: String,
    pub(super) ready: bool,
    /// What keeps it from being ready.
    pub(super) not_ready: Vec<String>,
    /// What somebody should do something about, with the cure where one is known: what the status page shows on top.
    #[serde(default)]
    pub(super) warnings: Vec<Warning>,
    pub(super) master: Process,
    /// Absent while no worker answers.
    pub(super) worker: Option<Process>,
    /// What the kernel refuses the worker; absent while none answers.
    #[serde(default)]
    pub(super) sandbox: Option<Sandbox>,
    pub(super) module: Option<ModuleStatus>,
    pub(super) roots: Option<RootsStatus>,
    /// The local authority that signs for Agents that speak HTTPS.
    #[serde(default)]
    pub(super) authority: Option<AuthoritiesStatus>,
    /// Why the one that is there may not sign.
    #[serde(default)]
    pub(super) authority_problem: Option<String>,
    pub(super) tls_policy: String,
    /// Intercepted Agents that speak HTTPS; absent while no worker answers.
    #[serde(default)]
    pub(super) https: Option<HttpsStatus>,
    pub(super) interception: InterceptionStatus,
    pub(super) listeners: Vec<ListenerStatus>,
    pub(super) connections: u64,
    pub(super) products: Vec<ProductStatus>,
    pub(super) upstream_tls: Vec<UpstreamTlsStatus>,
    pub(super) upstream_sessions: Vec<UpstreamSessionStatus>,
    /// Absent while no worker answers.
    pub(super) trust: Option<TrustStatus>,
    pub(super) outbound_proxy: Option<String>,
    pub(super) worker_restarts: u64,
    pub(super) prober_restarts: u64,
    /// Connections of our own through the live datapath, by the way they took.
    pub(super) self_tests: Vec<SelfTest>,
    #[serde(default)]
    pub(super) dns: DnsStatus,
    /// Upgrades in place since the process was started.
    #[serde(default)]
    pub(super) upgrades: u64,
    #[serde(default)]
    pub(super) log_lost: LogLost,
}

/// Log lines that were dropped.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LogLost {
    pub(super) master: Lost,
    /// Absent while no worker answers.
    pub(super) worker: Option<Lost>,
}

/// A process of ours.
#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    pub(super) pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uptime_seconds: Option<u64>,
    /// Its version, where it is another one than the master's: the new program has taken over, and its worker does not serve yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
}

impl Report {
    /// Puts together what master and worker know.
    pub fn new(config: &Config, master: MasterStatus, worker: Option<WorkerStatus>) -> Self {
        let warnings = view::warnings(&master, worker.as_ref());
        let mut not_ready = master.not_ready();
        if worker.is_none() {
            not_ready.push("no worker answers".to_owned());
        }
        let mut report = Self {
            version: master.version.clone(),
            site: config.site.to_string(),
            ready: not_ready.is_empty(),
            not_ready,
            warnings,
            master: Process {
                pid: master.pid,
                uptime_seconds: None,
                version: None,
            },
            worker: None,
            sandbox: None,
            module: None,
            roots: None,
            authority: None,
            authority_problem: None,
            tls_policy: format!("{:?}", config.upstream.tls_policy).to_ascii_lowercase(),
            https: None,
            interception: master.interception,
            listeners: master.listeners,
            connections: 0,
            products: Vec::new(),
            upstream_tls: Vec::new(),
            upstream_sessions: Vec::new(),
            trust: None,
            outbound_proxy: None,
            worker_restarts: master.worker_restarts,
            prober_restarts: master.prober_restarts,
            self_tests: master.self_tests.unwrap_or_default(),
            dns: DnsStatus::default(),
            upgrades: master.upgrades,
            log_lost: LogLost {
                master: master.log_lost,
                worker: None,
            },
        };
        if let Some(worker) = worker {
            report.worker = Some(Process {
                pid: worker.pid,
                uptime_seconds: Some(worker.uptime_seconds),
                version: (worker.version != master.version).then_some(worker.version),
            });
            report.sandbox = Some(worker.sandbox);
            report.module = Some(worker.module);
            report.roots = Some(worker.roots);
            report.authority = worker.authority;
            report.authority_problem = worker.authority_problem;
            report.https = Some(worker.https);
            report.connections = worker.connections;
            report.products = worker.products;
            report.upstream_tls = worker.upstream_tls;
            report.upstream_sessions = worker.upstream_sessions;
            report.trust = Some(worker.trust);
            report.outbound_proxy = worker.outbound_proxy;
            report.dns = worker.dns;
            report.log_lost.worker = Some(worker.log_lost);
        }
        report
    }
}

/// `status`
pub(super) fn run(args: &StatusArgs, inputs: &InputArgs) -> Exit {
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let socket = &loaded.config.status.socket;
    if args.watch {
        return watch::run(socket, args.interval, args.json);
    }
    let body = match admin::ask(socket, Request::Status) {
        Ok(Answer::Ok(body)) => body,
        Ok(Answer::Error(message)) => {
            complain!("agent-fips-proxy: {message}");
            return Exit::Unavailable;
        }
        Err(error) => return unreachable(socket, &error),
    };
    if args.json {
        say!("{body:#}");
        return Exit::Ok;
    }
    match serde_json::from_value::<Report>(body) {
        Ok(report) => {
            print(&report);
            Exit::Ok
        }
        Err(error) => {
            complain!(
                "agent-fips-proxy: the running proxy is of another version and answers differently: {error}"
            );
            Exit::Internal
        }
    }
}

/// Tells why the master cannot be reached.
pub(super) fn unreachable(socket: &Path, error: &std::io::Error) -> Exit {
    complain!("agent-fips-proxy: {}", why_unreachable(socket, error));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Exit::NoPermission,
        _ => Exit::Unavailable,
    }
}

/// Why the master cannot be reached, and what to do.
pub(super) fn why_unreachable(socket: &Path, error: &std::io::Error) -> String {
    let path = socket.display();
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            format!("no permission to open {path}: run as root, or as the user the proxy runs as")
        }
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            format!(
                "no proxy answers at {path} (status.socket): is it running? systemctl status agent-fips-proxy"
            )
        }
        _ => format!("cannot ask the proxy at {path} (status.socket): {error}"),
    }
}

/// `3 s ago`, of a moment in Unix time.
fn since(at: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    ago(now.map_or(0, |now| now.as_secs()).saturating_sub(at))
}

fn print_authority(report: &Report) {
    if let Some(problem) = &report.authority_problem {
        say!("local authority  NOT USED: {problem}");
    }
    let Some(status) = &report.authority else { return };
    let next = status
        .next
        .as_ref()
        .map_or_else(String::new, |next| format!("; next {}, published", next.id()));
    let signing = match status.signing {
        Some(Role::Next) => "; the next one signs",
        Some(Role::Current | Role::Supplied) => "",
        None => "; NOTHING CAN BE SIGNED",
    };
    say!(
        "local authority  {}, until {}{next}{signing}",
        status.current.id(),
        status.current.ends()
    );
    if let Some(warning) = &status.warning {
        say!("                 WARNING: {warning}");
    }
}

pub(super) fn print(report: &Report) {
    say!("agent-fips-proxy {}, site {}", report.version, report.site);
    if report.ready {
        say!("state            ready");
    } else {
        say!("state            NOT READY: {}", report.not_ready.join("; "));
    }
    if let Some(module) = &report.module {
        say!("{module}");
    }
    say!("TLS policy       {}", report.tls_policy);
    print_authority(report);
    print_trust(report);
    let upgrades = match report.upgrades {
        0 => String::new(),
        times => format!(", upgraded in place {times} times"),
    };
    say!("master           pid {}{upgrades}", report.master.pid);
    if let Some(worker) = &report.worker {
        let up = worker.uptime_seconds.unwrap_or_default();
        say!(
            "worker           pid {}, up {up} s, replaced {} times",
            worker.pid,
            report.worker_restarts
        );
        if let Some(version) = &worker.version {
            say!("                 STILL OF VERSION {version}");
        }
    }
    if let Some(sandbox) = &report.sandbox {
        say!("sandbox          {sandbox}");
    }
    for (process, lost) in [
        ("master", Some(report.log_lost.master)),
        ("worker", report.log_lost.worker),
    ] {
        if let Some(lost) = lost.filter(Lost::any) {
            say!("log              LOST by the {process}: {lost}");
        }
    }
    for stale in &report.dns.stale {
        say!(
            "names            {}: its last good addresses are used, {} s old: {}",
            stale.name,
            stale.age_s,
            stale.problem
        );
    }
    say!("connections      {}", report.connections);
    for test in &report.self_tests {
        let result = match (&test.error, test.passed()) {
            (Some(error), _) => format!("FAILED {} times: {error}", test.failures),
            (None, true) => {
                let took = test
                    .took_us
                    .map_or_else(String::new, |took| format!(" in {}", millis(took)));
                format!("passed {}{took}", since(test.at))
            }
            (None, false) => "not tried yet".to_owned(),
        };
        say!("self-test        {}: {result}", test.way);
    }
    print_interception(&report.interception);
    if let Some(https) = report.https.as_ref().filter(|_| report.interception.enabled) {
        print_https(https, &report.interception);
    }
    say!("\nlisteners");
    for listener in &report.listeners {
        let state = listener.error.as_deref().unwrap_or("bound");
        say!(
            "  {:<22} {:<24} {state}",
            listener.name,
            listener.address.to_string()
        );
    }
    if !report.products.is_empty() {
        say!("\nproducts               ok     failed   bytes up     bytes down");
        for product in &report.products {
            say!(
                "  {:<18} {:>8} {:>8} {:>12} {:>12}",
                product.name,
                product.ok(),
                product.failed(),
                product.bytes_up,
                product.bytes_down
            );
        }
    }
    if !report.upstream_sessions.is_empty() {
        say!("\nsessions with intakes");
        for session in &report.upstream_sessions {
            let way = session.proxy.as_ref();
            say!(
                "  {}{}{}: {}",
                way.map_or("directly".to_owned(), |proxy| format!("through {proxy}")),
                session
                    .pin
                    .as_ref()
                    .map_or(String::new(), |pin| format!(", pin {pin}")),
                if session.client_certificate {
                    ", client certificate presented"
                } else {
                    ""
                },
                session.sessions
            );
        }
    }
    if !report.upstream_tls.is_empty() {
        say!("\nTLS towards intakes");
        for tls in &report.upstream_tls {
            say!(
                "  {} {} {}: {} handshakes",
                tls.version,
                tls.suite,
                tls.group,
                tls.handshakes
            );
        }
    }
}

/// Whose network it is: the Agents that live in it.
fn whose(network: NetworkId, interception: &InterceptionStatus) -> String {
    let Some(kernel) = &interception.kernel else {
        return format!("network {network}");
    };
    let Some(served) = kernel.networks.iter().find(|served| served.id == network.0) else {
        return format!("network {network}, which is gone");
    };
    let agents: Vec<String> = kernel
        .agents
        .iter()
        .filter(|agent| agent.namespaces.contains(&served.name))
        .map(|agent| agent.selector.to_string())
        .collect();
    if agents.is_empty() {
        served.name.clone()
    } else {
        agents.join(", ")
    }
}

fn print_https(https: &HttpsStatus, interception: &InterceptionStatus) {
    say!("  https          {}", https.handling);
    for client in &https.distrusting {
        let process = client.process.as_ref().map(ToString::to_string);
        let who = match (process, client.network.is_host()) {
            (Some(process), true) => process,
            (Some(process), false) => format!("{process} of {}", whose(client.network, interception)),
            (None, true) => "an unknown process".to_owned(),
            (None, false) => format!("a client of {}", whose(client.network, interception)),
        };
        say!(
            "  DISTRUSTS US   {who}, asking for {}: {}; {} handshakes, the last {}",
            client.name,
            client.said,
            client.handshakes,
            ago(client.seconds_ago)
        );
        say!("                 {}", cure(&client.name, client.process.as_ref()));
    }
    if https.sessions.is_empty() {
        return;
    }
    say!("\nTLS of Agents (`terminate`: with us; `passthrough`: their own cryptography)");
    for ClientTlsStatus { tls, sessions } in &https.sessions {
        let below = tls
            .below
            .as_ref()
            .map_or(String::new(), |below| format!(", BELOW THE POLICY ({below})"));
        say!(
            "  {} {} {} {}{below}: {sessions} sessions",
            tls.decision,
            tls.version,
            tls.suite,
            tls.group.as_deref().unwrap_or("-")
        );
    }
}

fn print_trust(report: &Report) {
    if let Some(proxy) = &report.outbound_proxy {
        say!("outbound proxy   {proxy}");
    }
    let Some(trust) = &report.trust else { return };
    if let Some(crls) = &trust.crls {
        say!(
            "revocation       {} lists in {}, the first expires {}",
            crls.count,
            crls.folder.display(),
            crls.next_update.as_deref().unwrap_or("-")
        );
    }
    for pin in &trust.pins {
        say!("pin              {pin}");
    }
    if let Some(certificate) = &trust.client_certificate {
        say!(
            "client cert.     {}, SHA-256 {}, ends {}",
            certificate.file.display(),
            certificate.sha256,
            certificate.not_after
        );
    }
    for alarm in &trust.alarms {
        say!("ALARM            {alarm}");
    }
}

fn print_interception(interception: &InterceptionStatus) {
    let state = match (interception.enabled, interception.attached) {
        (false, _) => "off",
        (true, true) => "on",
        (true, false) => "wanted, not attached",
    };
    say!("interception     {state}");
    if let Some(detail) = &interception.detail {
        say!("                 {detail}");
    }
    if let Some(problem) = &interception.pods_problem {
        say!("  kubernetes     {problem}");
    }
    if let Some(kernel) = &interception.kernel {
        say!("  destinations   {}", kernel.destinations);
        for agent in &kernel.agents {
            let datapath = agent.datapath.map_or("NOT TAKEN", |taken| taken.name());
            say!(
                "  agent          {}: {datapath} ({}); {}",
                agent.selector,
                agent.namespaces.join(", "),
                agent.why
            );
        }
        for interface in &kernel.interfaces {
            say!("  interface      {interface}");
        }
        for leak in &kernel.leaked {
            say!("  LEAKED         {leak}");
        }
        let held = &kernel.resources;
        say!(
            "  held           {} networks, {} open namespaces, {} hooked cgroups, {} interfaces, {} flows, {} \
             descriptors, {} threads",
            held.networks,
            held.open_namespaces,
            held.hooked_cgroups,
            held.interface_entries,
            held.flows,
            held.descriptors,
            held.threads
        );
        for (event, n) in kernel.counters.iter().filter(|(_, n)| **n > 0) {
            say!("  {event:<30} {n}");
        }
    }
}
