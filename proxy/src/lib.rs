//! agent-fips-proxy: takes the Datadog Agent's intake connections and re-encrypts them with a FIPS 140-3 validated
//! module.
//!
//! The path of a connection, module by module (docs/ARCHITECTURE.md tells it as a story):
//!
//! 1. [`config`] says what to do, [`catalog`] knows what the Agent talks to.
//! 2. [`supervise`] is the master: it binds listeners, attaches the programs, starts and replaces the worker.
//! 3. [`intercept`] is the kernel side: it loads the eBPF programs that bring the Agent's connections here.
//! 4. [`relay`] is the worker: accept, origin, classify, decide, http or tunnel, upstream, outcome.
//! 5. [`tls`] is the only place that names rustls or the crypto module.
//! 6. [`observe`] tells the world: logs, metrics, status, redaction.
//! 7. [`kubernetes`] asks the API server which pods of this node are Agents.
//! 8. [`trust`] makes clients of this host trust the local authority, and knows who does.
//! 9. [`diagnose`] looks at the way to the intakes, for people.
//! 10. [`cli`] is one verb a file.
//!
//! With the feature `counts`, which no shipped build has, `counts` is there too: what `cargo xtask bench instructions` counts.
//! With the feature `fuzz`, which none has either, and in the unit tests `fuzz` is there: what `cargo xtask fuzz` runs on bytes
//! that libFuzzer makes.
//!
//! [`address`] says which addresses may be dialled, [`secret`] reads files that nobody else may read, `owner` says whose
//! files are as good as our own, [`process`] knows the names of processes, `listener_set` makes the sockets of one address, one for each data thread, `signals` holds the master's
//! signals while its program is replaced.

// They panic when the reader has gone: `cli::output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod address;
pub mod catalog;
pub mod cli;
pub mod config;
#[cfg(feature = "counts")]
#[doc(hidden)]
pub mod counts;
pub mod diagnose;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub mod intercept;
pub mod kubernetes;
mod listener_set;
pub mod observe;
mod owner;
pub mod process;
pub mod relay;
pub mod secret;
pub mod self_test;
mod signals;
pub mod supervise;
pub mod tls;
pub mod trust;
