//! What the Agent talks to: one table of products, their ports and their intake names.
//!
//! Routing, the allow-list, the addresses that the kernel selects and the generated reference all come from [`TABLE`].
//! Sources: the Agent's `pkg/config/setup/config.go` (`setupFipsEndpoints`, the port offsets) and
//! `pkg/config/utils/endpoints.go` (how a host name is built).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Datadog site: a domain name, lower case, no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Site(String);

impl Site {
    /// The domain.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Site {
    /// The Agent's own default.
    fn default() -> Self {
        Self("datadoghq.com".to_owned())
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Site> for String {
    fn from(site: Site) -> Self {
        site.0
    }
}

impl TryFrom<String> for Site {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = normalise(text);
        if !is_dns_name(&name) || !name.contains('.') {
            return Err(format!(
                "`{text}` is not a site: a domain such as datadoghq.com, us5.datadoghq.com or ddog-gov.com is expected"
            ));
        }
        Ok(Self(name))
    }
}

/// One product of the Agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "the names are the products'; TABLE says what each one is"
)]
pub enum Product {
    Metrics,
    Traces,
    Profiles,
    Processes,
    Logs,
    DbmMetrics,
    DbmSamples,
    NetworkDevices,
    SnmpTraps,
    Telemetry,
    Appsec,
    Orchestrator,
    RuntimeSecurity,
    Compliance,
    Netflow,
    Api,
    Flare,
    RemoteConfiguration,
    ContainerImages,
    ContainerLifecycle,
    Sbom,
    NetworkPath,
    Synthetics,
    EventManagement,
    SecurityDumps,
    Debugger,
    OtherIntake,
}

/// A row of the catalogue.
#[derive(Debug)]
pub struct Entry {
    /// Which product.
    pub product: Product,
    /// Its name in configuration, logs and metrics.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    /// Offset in the Agent's `fips.port_range_start` range. Never changes: Agents in the field count on it.
    pub offset: Option<u16>,
    /// Intake names without `.<site>`. The first is where the explicit port goes. A leading `*` stands for any
    /// non-empty text within the first label (`*-app.agent`).
    pub hosts: &'static [&'static str],
}

/// The catalogue, explicit ports first and in their order.
pub const TABLE: &[Entry] = &[
    row(
        Product::Metrics,
        "metrics",
        "Metrics and metadata",
        Some(1),
        &["metrics.agent", "app", "app.mrf", "*-app.agent"],
    ),
    row(
        Product::Traces,
        "traces",
        "APM traces",
        Some(2),
        &["trace.agent", "trace.agent.mrf"],
    ),
    row(
        Product::Profiles,
        "profiles",
        "APM profiles",
        Some(3),
        &["intake.profile"],
    ),
    row(
        Product::Processes,
        "processes",
        "Processes",
        Some(4),
        &["process"],
    ),
    row(
        Product::Logs,
        "logs",
        "Logs",
        Some(5),
        &["agent-http-intake.logs", "agent-http-intake.logs.mrf"],
    ),
    row(
        Product::DbmMetrics,
        "dbm_metrics",
        "Database monitoring metrics and activity",
        Some(6),
        &["dbm-metrics-intake"],
    ),
    row(
        Product::DbmSamples,
        "dbm_samples",
        "Database monitoring samples",
        Some(7),
        &["dbm-metrics-intake", "dbquery-intake"],
    ),
    row(
        Product::NetworkDevices,
        "network_devices",
        "Network devices metadata",
        Some(8),
        &["ndm-intake"],
    ),
    row(
        Product::SnmpTraps,
        "snmp_traps",
        "SNMP traps",
        Some(9),
        &["snmp-traps-intake"],
    ),
    row(
        Product::Telemetry,
        "telemetry",
        "Instrumentation telemetry",
        Some(10),
        &["instrumentation-telemetry-intake"],
    ),
    row(
        Product::Appsec,
        "appsec",
        "Application security (reserved)",
        Some(11),
        &["appsecevts-intake"],
    ),
    row(
        Product::Orchestrator,
        "orchestrator",
        "Orchestrator",
        Some(12),
        &["orchestrator"],
    ),
    row(
        Product::RuntimeSecurity,
        "runtime_security",
        "Runtime security",
        Some(13),
        &["runtime-security-http-intake.logs"],
    ),
    row(
        Product::Compliance,
        "compliance",
        "Compliance",
        Some(14),
        &["cspm-intake"],
    ),
    row(
        Product::Netflow,
        "netflow",
        "NetFlow",
        Some(15),
        &["ndmflow-intake"],
    ),
    // Names that only interception covers, or that a path of another port leads to.
    row(Product::Api, "api", "API (key validation)", None, &["api"]),
    row(
        Product::Flare,
        "flare",
        "Flares",
        None,
        &["flare", "*-flare.agent"],
    ),
    row(
        Product::RemoteConfiguration,
        "remote_configuration",
        "Remote configuration",
        None,
        &["config", "config.mrf"],
    ),
    row(
        Product::ContainerImages,
        "container_images",
        "Container images",
        None,
        &["contimage-intake"],
    ),
    row(
        Product::ContainerLifecycle,
        "container_lifecycle",
        "Container lifecycle",
        None,
        &["contlcycle-intake"],
    ),
    row(
        Product::Sbom,
        "sbom",
        "Software bills of materials",
        None,
        &["sbom-intake"],
    ),
    row(
        Product::NetworkPath,
        "network_path",
        "Network path",
        None,
        &["netpath-intake"],
    ),
    row(
        Product::Synthetics,
        "synthetics",
        "Synthetics",
        None,
        &["http-synthetics", "intake.synthetics"],
    ),
    row(
        Product::EventManagement,
        "event_management",
        "Event management",
        None,
        &["event-management-intake"],
    ),
    row(
        Product::SecurityDumps,
        "security_dumps",
        "Runtime security activity dumps",
        None,
        &["cws-intake"],
    ),
    row(
        Product::Debugger,
        "debugger",
        "Debugger and symbols",
        None,
        &["debugger-intake", "http-intake.logs"],
    ),
    row(
        Product::OtherIntake,
        "other_intake",
        "Other intakes",
        None,
        &["otlp", "*-intake", "*-intake.logs", "*.agent"],
    ),
];

const fn row(
    product: Product,
    name: &'static str,
    title: &'static str,
    offset: Option<u16>,
    hosts: &'static [&'static str],
) -> Entry {
    Entry {
        product,
        name,
        title,
        offset,
        hosts,
    }
}

impl Product {
    /// The product's row.
    pub fn entry(self) -> &'static Entry {
        // Every product has exactly one row: `every_product_has_its_row` holds the table to it.
        TABLE
            .iter()
            .find(|entry| entry.product == self)
            .unwrap_or(&TABLE[0])
    }

    /// Its name in configuration, logs and metrics.
    pub fn name(self) -> &'static str {
        self.entry().name
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Product {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TABLE
            .iter()
            .find(|entry| entry.name == text)
            .map(|entry| entry.product)
            .ok_or_else(|| {
                let names: Vec<&str> = TABLE.iter().map(|entry| entry.name).collect();
                format!("`{text}` is not a product; accepted: {}", names.join(", "))
            })
    }
}

/// The catalogue for one site.
#[derive(Clone, Debug)]
pub struct Catalog {
    site: Site,
    /// `.` + site.
    suffix: String,
}

impl Catalog {
    /// The catalogue of `site`.
    pub fn new(site: &Site) -> Self {
        Self {
            suffix: format!(".{site}"),
            site: site.clone(),
        }
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The intake name that the explicit port of `product` leads to.
    pub fn host(&self, product: Product) -> String {
        format!("{}{}", product.entry().hosts[0], self.suffix)
    }

    /// Which product an intake name belongs to; `None` for a name that is not an intake's. The name is compared whole,
    /// label by label, after [`normalise`].
    pub fn lookup(&self, name: &str) -> Option<Product> {
        let name = normalise(name);
        let prefix = name.strip_suffix(&self.suffix)?;
        if !is_dns_name(prefix) {
            return None;
        }
        TABLE
            .iter()
            .find(|entry| entry.hosts.iter().any(|host| matches(host, prefix)))
            .map(|entry| entry.product)
    }

    /// Where a request on the explicit port of `product` goes: the metrics port also serves key validation and flares.
    /// The Agent asks for flares with and without a trailing slash.
    pub fn route(product: Product, path: &str) -> Product {
        if product != Product::Metrics {
            return product;
        }
        let under = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if under("/api/v1/validate") {
            Product::Api
        } else if under("/support/flare") {
            Product::Flare
        } else {
            Product::Metrics
        }
    }

    /// Every intake name that can be resolved as it stands (no pattern), without repeats: their addresses are what the
    /// kernel selects. A versioned name (`7-81-0-app.agent.<site>`) is an alias of `metrics.agent.<site>`.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = TABLE
            .iter()
            .flat_map(|entry| entry.hosts)
            .filter(|host| !host.starts_with('*'))
            .map(|host| format!("{host}{}", self.suffix))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The reference page, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# Products\n\n<!-- Generated from the table in proxy/src/catalog.rs by `cargo xtask docs`. Do not edit. -->\n\n\
         The port is that of the default `explicit.port_range_start` (9803, the status page). `*` stands for any text within \
         one label. On the metrics port, `/api/v1/validate` goes to `api.<site>` and `/support/flare` to `flare.<site>`.\n\n\
         | product | what | port | intake names |\n|---|---|---:|---|\n",
    );
    for entry in TABLE {
        let port = entry
            .offset
            .map_or_else(|| "-".to_owned(), |offset| (9803 + offset).to_string());
        let names: Vec<String> = entry
            .hosts
            .iter()
            .map(|host| format!("`{host}.<site>`"))
            .collect();
        let row = format!(
            "| `{}` | {} | {port} | {} |\n",
            entry.name,
            entry.title,
            names.join(", ")
        );
        page.push_str(&row);
    }
    page
}

/// A host name as it is compared: lower case, at most one trailing dot removed.
pub fn normalise(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// True for a syntactically valid DNS name of letters, digits, hyphens and underscores (RFC 1035 sizes).
pub fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// Compares a table pattern with the part of a name before the site.
fn matches(pattern: &str, prefix: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == prefix,
        Some(rest) => prefix
            .strip_suffix(rest)
            .is_some_and(|wild| !wild.is_empty() && !wild.contains('.')),
    }
}

#[cfg(test)]
mod tests;
