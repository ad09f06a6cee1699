//! The log: to standard error, where the journal picks it up; text or JSON; its level can change at run time.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
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
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(may_be_shown));
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

/// Below `info` only our own lines, whatever the level says: at `trace` an HTTP library prints header values, and an API
/// key is one.
fn may_be_shown(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    *metadata.level() <= Level::INFO || target == ACCESS || target.starts_with(env!("CARGO_CRATE_NAME"))
}

/// The configuration has checked `level`; should it not parse all the same, `info` is better than silence. The access
/// log has a switch of its own, `log.access`: a general `warn` does not silence it, `access=off` does.
fn filter(level: &str) -> EnvFilter {
    // kube_client warns with the whole of an answer that it cannot read, and a server may send back what it got: our
    // token. What matters of it is in our own message.
    EnvFilter::try_new(format!("{ACCESS}=info,kube_client=error,{level}"))
        .unwrap_or_else(|_| EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry()
            .with(filter(level))
            .with(filter_fn(may_be_shown))
            .with(fmt::layer().with_writer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "h2::codec", "a header value");
            tracing::debug!(target: "hyper::proto", "a header value");
            tracing::info!(target: "hyper::proto", "library information");
            tracing::trace!(target: "agent_fips_proxy::relay", "our detail");
            tracing::info!(target: ACCESS, "a request");
        });
        let text = lines.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn libraries_are_not_shown_below_info() {
        for level in ["trace", "h2=trace,hyper=trace,agent_fips_proxy=trace"] {
            let text = logged(level);
            assert!(!text.contains("a header value"), "{level}: {text}");
            assert!(text.contains("our detail"), "{level}: {text}");
        }
        assert!(logged("trace").contains("library information"));
    }

    #[test]
    fn the_access_log_has_a_switch_of_its_own() {
        assert!(logged("error").contains("a request"));
        assert!(!logged("access=off,info").contains("a request"));
    }
}
