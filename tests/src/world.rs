//! The stage of most cases: a host with the Agent and the proxy, and an outside world with the intake and the leak detector.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use serde_json::{Value, json};

use crate::ca::{Authority, Fault};
use crate::dns::NameServer;
use crate::intake::{Intake, Options, Peer};
use crate::netns::{Host, join};
use crate::plain::Plain;
use crate::proxy::{Launch, Proxy};

/// The site of every case.
pub const SITE: &str = "ddog-gov.com";
/// The intake's addresses (RFC 5737, RFC 3849).
pub const INTAKE4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// See [`INTAKE4`].
pub const INTAKE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
/// Both.
pub const INTAKES: [IpAddr; 2] = [INTAKE4, INTAKE6];
/// An outside address that is nobody's intake.
pub const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 99));
/// The name under which the Agent sends metrics.
pub const VERSIONED: &str = "7-81-0-app.agent.ddog-gov.com";
/// A name that is not an intake's, although it has the intake's addresses.
pub const BYSTANDER: &str = "www.example.net";
/// The key that Agents of the tests use.
pub const API_KEY: &str = "0123456789abcdef0123456789abcdef";

/// The explicit ports, written down once more on purpose: the order is a contract with Agents in the field, and a test
/// that reads it from the proxy's own table would follow any change. Source: the Agent's `setupFipsEndpoints`.
pub const PORTS: &[(u16, &str, &str)] = &[
    (9804, "metrics", "metrics.agent"),
    (9805, "traces", "trace.agent"),
    (9806, "profiles", "intake.profile"),
    (9807, "processes", "process"),
    (9808, "logs", "agent-http-intake.logs"),
    (9809, "dbm_metrics", "dbm-metrics-intake"),
    (9810, "dbm_samples", "dbm-metrics-intake"),
    (9811, "network_devices", "ndm-intake"),
    (9812, "snmp_traps", "snmp-traps-intake"),
    (9813, "telemetry", "instrumentation-telemetry-intake"),
    (9814, "appsec", "appsecevts-intake"),
    (9815, "orchestrator", "orchestrator"),
    (9816, "runtime_security", "runtime-security-http-intake.logs"),
    (9817, "compliance", "cspm-intake"),
    (9818, "netflow", "ndmflow-intake"),
];

/// How a world differs from the usual one.
#[derive(Clone, Copy)]
pub struct Setup {
    /// What is wrong with the intake's certificate.
    pub fault: Fault,
    /// Which TLS the intake speaks.
    pub peer: Peer,
    /// Whether it offers HTTP/2.
    pub http2: bool,
    /// Whether it refuses other keys than [`API_KEY`].
    pub check_key: bool,
    /// Whether the host's name server answers at all.
    pub name_server: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            fault: Fault::None,
            peer: Peer::Modern,
            http2: false,
            check_key: true,
            name_server: true,
        }
    }
}

/// Everything outside the proxy. Fields are dropped in this order.
pub struct World {
    /// The TLS intake, port 443.
    pub intake: Intake,
    /// The leak detector, port 80 of the intake's addresses and of [`ELSEWHERE`].
    pub plain: Plain,
    /// The host's name server.
    pub name_server: Option<NameServer>,
    /// Where Agent and proxy run.
    pub host: Host,
    /// Where the intake runs.
    pub net: Host,
    /// Who signed the intake's certificate.
    pub authority: Authority,
}

impl World {
    /// The usual world.
    pub fn new() -> Result<Self> {
        Self::with(Setup::default())
    }

    /// A world with a difference.
    pub fn with(setup: Setup) -> Result<Self> {
        let names = names();
        let host = Host::new(&hosts())?;
        let net = Host::new(&[])?;
        join(&host, &net)?;
        for address in [INTAKE4, ELSEWHERE] {
            net.ip(&format!("address add {address}/32 dev lo"))?;
        }
        net.ip(&format!("address add {INTAKE6}/128 dev lo nodad"))?;
        let authority = Authority::new()?;
        std::fs::write(host.folder().join("ca.pem"), authority.pem())?;
        let intake = Intake::start(
            Some(&net),
            Options {
                addresses: INTAKES.to_vec(),
                port: 443,
                leaf: authority.leaf(&names, setup.fault)?,
                peer: setup.peer,
                http2: setup.http2,
                api_key: setup.check_key.then(|| API_KEY.to_owned()),
            },
        )?;
        let name_server = setup.name_server.then(|| NameServer::start(&host)).transpose()?;
        let plain = Plain::start(&net, &[INTAKE4, INTAKE6, ELSEWHERE], 80)?;
        Ok(Self {
            intake,
            plain,
            name_server,
            host,
            net,
            authority,
        })
    }

    /// A configuration for this world: explicit ports only, JSON log with access lines.
    pub fn config(&self) -> Value {
        json!({
            "site": SITE,
            "log": {"level": "info", "format": "json", "access": true},
            "intercept": {"enabled": false},
            "upstream": {"ca_file": self.host.folder().join("ca.pem")},
            "worker": {"user": "nobody"},
        })
    }

    /// The same with interception of the processes in `cgroup`.
    pub fn intercepting(&self, cgroup: &crate::cgroup::Cgroup) -> Value {
        let mut config = self.config();
        config["intercept"] =
            json!({"enabled": true, "datapath": "cgroup", "agents": {"cgroups": [cgroup.inside()]}});
        config
    }

    /// The same of Agents in pods, whose cgroups these are, by this datapath.
    pub fn intercepting_pods(&self, cgroups: &[&str], datapath: &str) -> Value {
        let mut config = self.config();
        config["intercept"] = json!({
            "enabled": true,
            "datapath": datapath,
            "agents": {"cgroups": cgroups, "pods": {"api": "off"}},
        });
        config
    }

    /// The proxy on the host, ready.
    pub fn start(&self, config: &Value) -> Result<Proxy<'_>> {
        Launch::new(&self.host).config(config)?.start()
    }

    /// The same from a file that can be replaced: [`Launch::installed`].
    pub fn start_installed(&self, config: &Value) -> Result<Proxy<'_>> {
        Launch::new(&self.host).installed()?.config(config)?.start()
    }

    /// Clear-text requests that name an intake: whatever is in here leaked.
    pub fn leaks(&self) -> Vec<String> {
        let around = self
            .plain
            .seen()
            .into_iter()
            .filter(|clear| clear.names(SITE))
            .map(|clear| clear.bytes);
        around
            .chain(self.intake.clear())
            .map(|bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned())
            .collect()
    }
}

/// What the hosts file says: every intake name and [`BYSTANDER`], at both addresses of the intake.
pub fn hosts() -> Vec<(String, IpAddr)> {
    names()
        .iter()
        .map(String::as_str)
        .chain([BYSTANDER])
        .flat_map(|name| [(name.to_owned(), INTAKE4), (name.to_owned(), INTAKE6)])
        .collect()
}

/// Every intake name that the tests use.
pub fn names() -> Vec<String> {
    let mut prefixes: Vec<&str> = PORTS.iter().map(|(_, _, prefix)| *prefix).collect();
    prefixes.extend([
        "api",
        "flare",
        "app",
        "config",
        "7-81-0-app.agent",
        "7-81-0-flare.agent",
        "sbom-intake",
        "http-intake.logs",
    ]);
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes.iter().map(|prefix| format!("{prefix}.{SITE}")).collect()
}
