//! Products of the Agent: what each is called, and what a row of the table says of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::table::TABLE;

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
    UserLogs,
    TcpLogs,
    Otlp,
    SoftwareInventory,
    DataObservability,
    OtherIntake,
}

/// What is spoken to a product's names, inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP, which can be taken apart and made anew.
    Http,
    /// Bytes of the Agent's own framing, without answers that would say what arrived: left as they are.
    Stream,
}

impl Protocol {
    /// Its name in the reference.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Stream => "stream",
        }
    }
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
    /// What is spoken to its names.
    pub protocol: Protocol,
    /// Intake names without `.<site>`. The first is where the explicit port goes, and is never a pattern. A leading `*`
    /// stands for any non-empty text within the first label (`*-app.agent`).
    pub hosts: &'static [&'static str],
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

    /// What is spoken to its names: only HTTP is ever terminated.
    pub fn protocol(self) -> Protocol {
        self.entry().protocol
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
