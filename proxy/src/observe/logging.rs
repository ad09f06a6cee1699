//! The log: to standard error, where the journal picks it up; text or JSON; its level can change at run time.
//!
//! Lines are written where they come up until [`detach`]; from then on by a thread of their own ([`outlet`]), in the worker and
//! in the master: neither a request nor the watch over Agents, workers and interfaces waits for whoever reads the log.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use super::redact;
use crate::config::{Log, LogFormat};
use crate::signals;
use outlet::{Kind, Outlet, Stderr};

pub use outlet::Lost;

mod clock;
mod outlet;
#[cfg(feature = "counts")]
pub(crate) use outlet::counts;

/// The target of the access log: one line per request.
pub const ACCESS: &str = "access";

/// How long the end of a process waits for its last lines to be written. A second more would be felt where a stuck reader
/// delays a stop or an upgrade.
const LAST_LINES: Duration = Duration::from_secs(1);

static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
/// There once lines are written by a thread of their own.
static OUTLET: OnceLock<Arc<Outlet>> = OnceLock::new();

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
    let output = fmt::layer().with_timer(clock::Clock).with_writer(Lines);
    let started = match log.format {
        LogFormat::Json => registry.with(output.json().flatten_event(false)).try_init(),
        LogFormat::Text => registry
            .with(output.with_ansi(io::stderr().is_terminal()))
            .try_init(),
    };
    if started.is_ok() {
        let _ = LEVEL.set(handle);
    }
}

/// From now on a thread of its own writes the lines. A process calls it once, as soon as it may start threads: the worker
/// after it gave up its privileges, which it does for one thread only.
pub fn detach() {
    if OUTLET.get().is_some() {
        return;
    }
    let outlet = Arc::new(Outlet::default());
    let its = Arc::clone(&outlet);
    let started = std::thread::Builder::new().name("log".to_owned()).spawn(move || {
        signals::leave_to_the_first_thread();
        its.run(Stderr, || true);
    });
    match started {
        Ok(_) => {
            // Only one thread runs by now: nobody else has set it.
            let _ = OUTLET.set(outlet);
            std::panic::set_hook(Box::new(told_of_panic));
        }
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread for the log: a slow reader of standard error slows us down");
        }
    }
}

/// Waits, for at most a second, until every line so far is written. To be called before the process ends.
pub fn finish() {
    if let Some(outlet) = OUTLET.get() {
        outlet.flush(LAST_LINES);
    }
}

/// Lines that were dropped since this process started.
pub fn lost() -> Lost {
    OUTLET.get().map_or_else(Lost::default, |outlet| outlet.lost())
}

/// Makes an access line, by an event with the target [`ACCESS`], where and when it is written; `size` is what `tell` holds,
/// in bytes.
pub fn later(size: usize, tell: impl FnOnce() + Send + 'static) {
    match OUTLET.get() {
        Some(outlet) => outlet.later(Kind::Access, size, tell),
        None => tell(),
    }
}

/// A release ends by a panic at once: what is queued comes out before, and the panic after it.
fn told_of_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then_some(backtrace);
    // A library's message may quote what it was given.
    let message = panic.to_string();
    tracing::error!(
        thread = thread.name().unwrap_or("-"),
        backtrace = backtrace.map(tracing::field::display),
        "{}",
        redact::text(&message)
    );
    finish();
}

/// Where the formatted lines go.
struct Lines;

struct Line(Kind);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Kind::Detail)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line(if metadata.target() == ACCESS {
            Kind::Access
        } else if *metadata.level() <= Level::WARN {
            Kind::Warning
        } else {
            Kind::Detail
        })
    }
}

impl Write for Line {
    /// Called once a line: the layer formats first.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if outlet::on_writer(line) {
            return Ok(line.len());
        }
        match OUTLET.get() {
            Some(outlet) => outlet.line(self.0, line),
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
    use std::sync::Mutex;

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

    /// Set in the process that panics.
    const PANICS: &str = "AFP_TEST_PANICS";
    const KEY: &str = "0123456789abcdef0123456789abcdef";

    /// Runs itself once more in a process of its own, whose log is this program's: a panic's line comes behind what was queued
    /// before it, once, with its place, and without what must never be told.
    #[test]
    fn a_panic_is_one_line_of_the_log() {
        if std::env::var_os(PANICS).is_some() {
            start(&Log {
                format: LogFormat::Json,
                ..crate::config::Config::default().log
            });
            detach();
            for number in 0..200 {
                tracing::info!(number, "before");
            }
            let thread = std::thread::Builder::new().name("data-7".to_owned());
            let panicking =
                thread.spawn(|| panic!("lost: \"{KEY}\"\nand api_key=hidden, which it was given"));
            assert!(panicking.unwrap().join().is_err());
            finish();
            return;
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg(
                concat!(module_path!(), "::a_panic_is_one_line_of_the_log")
                    .split_once("::")
                    .unwrap()
                    .1,
            )
            .env(PANICS, "1")
            .env_remove("RUST_BACKTRACE")
            .env_remove("RUST_LIB_BACKTRACE")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        assert!(!text.contains(KEY) && !text.contains("hidden"), "{text}");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        assert_eq!(lines.len(), 201, "{text}");
        for (number, line) in lines[..200].iter().enumerate() {
            assert_eq!(line["fields"]["number"], number, "in order: {line}");
        }
        let told = &lines[200];
        assert_eq!(told["level"], "ERROR");
        assert_eq!(told["fields"]["thread"], "data-7");
        assert!(told["fields"].get("backtrace").is_none(), "{told}");
        let message = told["fields"]["message"].as_str().unwrap();
        let place = format!("panicked at {}:", file!());
        assert!(message.starts_with(&place), "{message}");
        let said = "lost: \"[redacted]\"\nand api_key=[redacted], which it was given";
        assert!(message.ends_with(said), "{message}");
    }
}
