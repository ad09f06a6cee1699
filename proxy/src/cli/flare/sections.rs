//! What is in the bundle. One more section is one more line.

use std::time::Duration;

use super::collect::{Context, Keep};
use super::facts;
use crate::cli::doctor;
use crate::intercept::listing;

/// A file of the bundle.
pub(super) struct Section {
    /// Its name.
    pub(super) file: &'static str,
    pub(super) how: How,
    /// How long it may take, in seconds.
    pub(super) seconds: u64,
    /// How much is kept of it, in KiB.
    pub(super) kib: usize,
}

impl Section {
    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Of a log the end matters, of everything else the beginning.
    pub(super) fn keep(&self) -> Keep {
        if self.file.starts_with("log/") {
            Keep::Last
        } else {
            Keep::First
        }
    }

    /// In bytes.
    pub(super) fn most(&self) -> usize {
        self.kib * 1024
    }
}

/// How it is collected.
pub(super) enum How {
    /// This program with these words: what the operator sees.
    Own(&'static [&'static str]),
    /// The same, where a proxy has to run for it: not asked with `--local`.
    Running(&'static [&'static str]),
    /// The same, where it asks the intakes: not with `--local` either.
    Intakes(&'static [&'static str]),
    /// Another program, where it is installed.
    Program(&'static [&'static str]),
    /// By ourselves. `Err`: why there is none, which is what is kept then.
    Call(fn(&Context) -> Result<String, String>),
}

use How::{Call, Intakes, Own, Program, Running};

/// All of it, in the order in which it is shown.
pub(super) const TABLE: &[Section] = &[
    section("version.json", Own(&["version", "--json"]), 20, 64),
    section("configuration.txt", Own(&["config", "show"]), 20, 256),
    section("status.txt", Running(&["status"]), 20, 512),
    section("status.json", Running(&["status", "--json"]), 20, 2048),
    section("metrics.txt", Call(facts::metrics), 10, 2048),
    section("doctor.txt", Own(&["doctor"]), 60, 512),
    section("doctor.json", Own(&["doctor", "--json"]), 60, 1024),
    section(
        "agent-settings.txt",
        Call(|_| Ok(doctor::agent_settings())),
        10,
        64,
    ),
    section("diagnose.txt", Intakes(&["diagnose"]), 60, 512),
    section("self-test.txt", Running(&["self-test"]), 70, 64),
    section("log/journal.txt", Program(JOURNAL), 30, 4096),
    section("log/standard-error.txt", Call(facts::standard_error), 10, 4096),
    section("processes.txt", Call(facts::processes), 10, 256),
    section("kernel/host.txt", Call(|_| facts::host()), 10, 64),
    section("kernel/options.txt", Call(|_| facts::options()), 10, 64),
    section("kernel/sysctl.txt", Call(|_| facts::sysctls()), 10, 64),
    section("kernel/mounts.txt", Call(|_| facts::mounts()), 10, 256),
    section("datapath/bpf.txt", Call(|_| told(listing::bpf())), 20, 512),
    section(
        "datapath/cgroups.txt",
        Call(|_| told(listing::cgroups())),
        20,
        512,
    ),
    section(
        "datapath/classifiers.txt",
        Call(|_| told(listing::classifiers())),
        20,
        1024,
    ),
    section("datapath/routes.txt", Call(|_| told(listing::routes())), 20, 512),
];

/// The unit's last lines, access lines among them where `log.access` is on.
const JOURNAL: &[&str] = &[
    "journalctl",
    "--unit=agent-fips-proxy",
    "--lines=5000",
    "--no-pager",
    "--quiet",
    "--output=short-iso-precise",
];

const fn section(file: &'static str, how: How, seconds: u64, kib: usize) -> Section {
    Section {
        file,
        how,
        seconds,
        kib,
    }
}

fn told(result: Result<String, crate::intercept::InterceptError>) -> Result<String, String> {
    result.map_err(|error| error.to_string())
}
