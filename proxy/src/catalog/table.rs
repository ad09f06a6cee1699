//! The table: every product, its port and its intake names.
//!
//! Sources, in the Agent's repository: `pkg/config/setup/config.go` (`setupFipsEndpoints`: the port offsets),
//! `pkg/config/utils/endpoints.go` (how names are built, versions and failover included), `comp/logs/agent/config/config.go`
//! (logs), `comp/forwarder/eventplatform` (the tracks and their `-intake` names), `pkg/trace/api` (what its proxies forward),
//! `pkg/diagnose/connectivity` (what it probes). In Datadog's documentation: "Network Traffic", "AWS PrivateLink", "Log collection".
//!
//! Failover names (`multi_region_failover.*`) have `mrf` before the site, those of the event platform `logs.mrf`. They stand
//! with their product where it is not of the event platform; a copy of the rest is another intake, so that a private endpoint
//! of the first site never gets it.

use super::product::{Entry, Product, Protocol};

/// The catalogue, explicit ports first and in their order, which is the order of [`Product`].
pub const TABLE: &[Entry] = &[
    row(
        Product::Metrics,
        "metrics",
        "Metrics and metadata",
        Some(1),
        // `app` becomes `<version>-app.agent`, an alias of `metrics.agent`.
        &[
            "metrics.agent",
            "app",
            "app.mrf",
            "*-app.agent",
            "*-app.agent.mrf",
        ],
    ),
    row(
        Product::Traces,
        "traces",
        "APM traces and statistics, data streams",
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
        "Processes, containers, connections",
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
        // The second is that of older Agents, and still documented.
        &["dbm-metrics-intake", "dbquery-intake"],
    ),
    row(
        Product::NetworkDevices,
        "network_devices",
        "Network devices metadata and configuration",
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
        "Instrumentation telemetry, and the Agent's own",
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
    row(
        Product::Api,
        "api",
        "API (key validation, delegated authentication, action runner)",
        None,
        &["api"],
    ),
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
        // Results of the Agent's own tests; the tests, and results of private locations.
        &["http-synthetics", "intake.synthetics", "intake-v2.synthetics"],
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
        &["debugger-intake"],
    ),
    row(
        Product::UserLogs,
        "user_logs",
        "Logs that are not the Agent's own (debugger snapshots, tracers, serverless)",
        None,
        &["http-intake.logs"],
    ),
    Entry {
        protocol: Protocol::Stream,
        ..row(
            Product::TcpLogs,
            "tcp_logs",
            "Logs over TCP",
            None,
            // The Agent's (10516, in Europe 443), its failover, `logs_config.use_port_443`; forwarders' (`intake` and
            // `tcp-intake`, lambda, functions), those of before encryption was everywhere.
            &[
                "agent-intake.logs",
                "agent-intake.logs.mrf",
                "agent-443-intake.logs",
                "intake.logs",
                "tcp-intake.logs",
                "tcp-encrypted-intake.logs",
                "lambda-intake.logs",
                "lambda-tcp-encrypted-intake.logs",
                "functions-intake.logs",
            ],
        )
    },
    row(
        Product::Otlp,
        "otlp",
        "OTLP (collector, host profiler)",
        None,
        &["otlp"],
    ),
    row(
        Product::SoftwareInventory,
        "software_inventory",
        "Software inventory, end user devices",
        None,
        &["softinv-intake", "eudm-intake"],
    ),
    row(
        Product::DataObservability,
        "data_observability",
        "Data observability (OpenLineage, query actions)",
        None,
        &["data-obs-intake"],
    ),
    row(
        Product::OtherIntake,
        "other_intake",
        "Other intakes: what comes by name, and what the Agent will have tomorrow",
        None,
        // Those by name are resolved, so that the kernel selects their addresses. The browser's intake stands beside the
        // site (`Catalog::domains`).
        &[
            "agentdiscovery-intake",
            "agenthealth-intake",
            "citestcov-intake",
            "citestcycle-intake",
            "kubeops-intake",
            "llmobs-intake",
            "resources-intake",
            "sds-intake",
            "sourcemap-intake",
            "*-intake",
            "*-intake.logs",
            "*.logs.mrf",
            "*.agent",
            "*.agent.mrf",
        ],
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
        protocol: Protocol::Http,
        hosts,
    }
}
