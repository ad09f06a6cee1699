//! `status`: what the running proxy does, from its admin socket.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Exit, InputArgs};
use crate::cli::output::{complain, say};
use crate::config::Config;
use crate::supervise::admin::{self, Answer, Request};
use crate::supervise::protocol::{
    InterceptionStatus, ListenerStatus, MasterStatus, ProductStatus, UpstreamTlsStatus, WorkerStatus,
};
use crate::tls::{ModuleStatus, RootsStatus};

/// `status`
#[derive(clap::Args)]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What `status --json` prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    version: String,
    site: String,
    ready: bool,
    /// What keeps it from being ready.
    not_ready: Vec<String>,
    master: Process,
    /// Absent while no worker answers.
    worker: Option<Process>,
    module: Option<ModuleStatus>,
    roots: Option<RootsStatus>,
    tls_policy: String,
    interception: InterceptionStatus,
    listeners: Vec<ListenerStatus>,
    connections: u64,
    products: Vec<ProductStatus>,
    upstream_tls: Vec<UpstreamTlsStatus>,
    worker_restarts: u64,
}

/// A process of ours.
#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_seconds: Option<u64>,
}

impl Report {
    /// Puts together what master and worker know.
    pub fn new(config: &Config, master: MasterStatus, worker: Option<WorkerStatus>) -> Self {
        let mut not_ready = master.not_ready();
        if worker.is_none() {
            not_ready.push("no worker answers".to_owned());
        }
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            site: config.site.to_string(),
            ready: not_ready.is_empty(),
            not_ready,
            master: Process {
                pid: master.pid,
                uptime_seconds: None,
            },
            worker: None,
            module: None,
            roots: None,
            tls_policy: format!("{:?}", config.upstream.tls_policy).to_ascii_lowercase(),
            interception: master.interception,
            listeners: master.listeners,
            connections: 0,
            products: Vec::new(),
            upstream_tls: Vec::new(),
            worker_restarts: master.worker_restarts,
        };
        if let Some(worker) = worker {
            report.worker = Some(Process {
                pid: worker.pid,
                uptime_seconds: Some(worker.uptime_seconds),
            });
            report.module = Some(worker.module);
            report.roots = Some(worker.roots);
            report.connections = worker.connections;
            report.products = worker.products;
            report.upstream_tls = worker.upstream_tls;
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
    let path = socket.display();
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            complain!(
                "agent-fips-proxy: no permission to open {path}: run as root, or as the user the proxy runs as"
            );
            Exit::NoPermission
        }
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            complain!(
                "agent-fips-proxy: no proxy answers at {path} (status.socket): is it running? systemctl status agent-fips-proxy"
            );
            Exit::Unavailable
        }
        _ => {
            complain!("agent-fips-proxy: cannot ask the proxy at {path} (status.socket): {error}");
            Exit::Unavailable
        }
    }
}

fn print(report: &Report) {
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
    say!("master           pid {}", report.master.pid);
    if let Some(worker) = &report.worker {
        let up = worker.uptime_seconds.unwrap_or_default();
        say!(
            "worker           pid {}, up {up} s, replaced {} times",
            worker.pid,
            report.worker_restarts
        );
    }
    say!("connections      {}", report.connections);
    print_interception(&report.interception);
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
            let ok = product.requests.get("ok").copied().unwrap_or_default();
            let all: u64 = product.requests.values().sum();
            say!(
                "  {:<18} {ok:>8} {:>8} {:>12} {:>12}",
                product.name,
                all.saturating_sub(ok),
                product.bytes_up,
                product.bytes_down
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
