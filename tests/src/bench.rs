//! The relay benchmark: the whole proxy beside its peers in one run, on one machine, with the same load, backend, certificates and
//! TLS parameters. `cargo xtask bench` runs the program `bench-relay`, which is made of these parts; docs/PERFORMANCE.md says what
//! is measured and what is not claimed.
//!
//! - [`backend`], [`load`]: the two ends, programs of ours, each a process of its own.
//! - [`peers`]: the proxies that are compared, started alike.
//! - [`stage`]: the namespaces in which it happens.
//! - [`run`], [`memory`], [`intercept`]: the workloads, interleaved.
//! - [`process`], [`histogram`], [`figures`]: where figures come from, and the arithmetic on them.
//! - [`goals`], [`report`]: what is promised, and how it is shown.

pub mod backend;
pub mod child;
pub mod figures;
pub mod goals;
pub mod histogram;
pub mod intercept;
pub mod load;
pub mod memory;
pub mod options;
pub mod peers;
pub mod process;
pub mod report;
pub mod run;
pub mod stage;
pub mod tls;

/// The name under which every peer reaches the backend, and which its certificate carries.
pub const NAME: &str = "metrics.agent.ddog-gov.com";
/// What the backend answers to everything.
pub const ANSWER: &[u8; 15] = br#"{"status":"ok"}"#;
/// The path of every request: where an Agent sends metrics.
pub const PATH: &str = "/api/v2/series";
/// The one suite that every peer is held to: approved, and the first that both modules prefer.
pub const SUITE: &str = "TLS13_AES_256_GCM_SHA384";
