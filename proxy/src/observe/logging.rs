//! The log: to standard error, where the journal picks it up; text or JSON; its level can change at run time.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// The target of the access log: one line per request.
pub const ACCESS: &str = "access";

static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log of this process. A second call only changes the level.
pub fn start(log: &Log) {
    if LEVEL.get().is_some() {
        set_level(&log.level);
        return;
    }
    let (filter, handle) = reload::Layer::new(filter(&log.level));
    let registry = tracing_subscriber::registry().with(filter);
    let output = fmt::layer().with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Json => registry.with(output.json().flatten_event(false)).try_init(),
        LogFormat::Text => registry
            .with(output.with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
    };
    if started.is_ok() {
        let _ = LEVEL.set(handle);
    }
}

/// Changes the level from now on.
pub fn set_level(level: &str) {
    let Some(handle) = LEVEL.get() else { return };
    if let Err(error) = handle.reload(filter(level)) {
        tracing::warn!(%error, "cannot change the log level");
    }
}

/// The configuration has checked `level`; should it not parse all the same, `info` is better than silence.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}
