//! Cases of a suite: what each needs, and how a missing need is reported.

use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Network and mount namespaces, and other users' processes.
    Root,
    /// cgroup2 and CAP_BPF, on top of root.
    Bpf,
    /// The CNI plug-ins and iptables, on top of root.
    Cni,
    /// `iptables` and `ip6tables`, on top of root.
    Iptables,
    /// The programs of a one-node Kubernetes (built when missing), on top of root.
    Kubernetes,
    /// The PyPI packages `datadog` and `datadog-api-client` in `target/venv` (made when missing).
    Python,
    /// `python3` with its standard library: another reader of what we write.
    Python3,
    /// The `openssl` program.
    OpenSsl,
    /// The `go` compiler.
    Go,
    /// The `node` program.
    Node,
    /// systemd's programs; it need not run here.
    Systemd,
    /// `dpkg`, `rpm`, `lintian` and `rpmlint`; `man`, and the shells that complete.
    Packages,
    /// A kernel of at least this version, for what it came with. Older ones are supported, too: a case that cannot be run there
    /// says so, also with `CI=true`.
    Linux(u32, u32, &'static str),
}

impl Need {
    /// Why the need is not met here.
    fn missing(self) -> Option<String> {
        let root = nix::unistd::Uid::effective().is_root();
        match self {
            Self::Root => (!root).then(|| "root is needed to make namespaces".to_owned()),
            Self::Bpf if !root => Some("root is needed to load eBPF programs".to_owned()),
            Self::Bpf => crate::cgroup::mount().err().map(|error| format!("{error:#}")),
            Self::Cni if !root => Some("root is needed to make pods".to_owned()),
            Self::Cni => crate::cni::obstacle(),
            Self::Iptables => absent("iptables", "--version").or_else(|| absent("ip6tables", "--version")),
            Self::Kubernetes if !root => Some("root is needed to run a Kubernetes node".to_owned()),
            Self::Kubernetes => crate::kubernetes::obstacle(),
            Self::Python => crate::agent::python().err().map(|error| format!("{error:#}")),
            Self::Python3 => absent("python3", "--version"),
            Self::OpenSsl => absent("openssl", "version"),
            Self::Go => absent("go", "version"),
            Self::Node => absent("node", "--version"),
            Self::Systemd => {
                absent("systemd-analyze", "--version").or_else(|| absent("/lib/systemd/systemd", "--version"))
            }
            Self::Packages => ["dpkg", "rpm", "lintian", "rpmlint", "man", "zsh", "fish"]
                .into_iter()
                .find_map(|program| absent(program, "--version")),
            Self::Linux(major, minor, what) => match crate::kernel() {
                Ok(kernel) if kernel >= (major, minor) => None,
                Ok((is_major, is_minor)) => Some(format!(
                    "not on this kernel: {what} came with Linux {major}.{minor}, this is {is_major}.{is_minor}"
                )),
                Err(error) => Some(format!("{error:#}")),
            },
        }
    }

    /// Something that whoever runs the tests can provide: with `CI=true` it must be there.
    fn can_be_met(self) -> bool {
        !matches!(self, Self::Linux(..))
    }
}

/// Why a program cannot be run.
fn absent(program: &str, word: &str) -> Option<String> {
    crate::capture(std::process::Command::new(program).arg(word))
        .err()
        .map(|error| format!("{error:#}"))
}

/// True when this variable asks for the long form of a case: `full`.
pub fn in_full(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "full")
}

/// One case. On failure the error chain is the report.
pub fn case(name: &str, needs: &'static [Need], body: fn() -> Result<()>) -> Trial {
    row(name, needs, body)
}

/// The same for a row of a table.
pub fn row(name: &str, needs: &'static [Need], body: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let title = name.to_owned();
    Trial::ignorable_test(name, move || {
        if let Some((need, reason)) = needs.iter().find_map(|need| Some((need, need.missing()?))) {
            if need.can_be_met() && std::env::var("CI").is_ok_and(|ci| ci == "true") {
                return Err(Failed::from(format!("skipped, which CI=true forbids: {reason}")));
            }
            return Ok(Completion::ignored_with(reason));
        }
        let start = Instant::now();
        body().map_err(|error| Failed::from(format!("{error:#}")))?;
        if start.elapsed() > Duration::from_secs(10) {
            eprintln!("{title}: {:.0} s", start.elapsed().as_secs_f32());
        }
        Ok(Completion::Completed)
    })
}

/// Runs a suite: one case at a time unless `--test-threads` says otherwise, since cases count connections and seconds.
pub fn run(cases: Vec<Trial>) -> std::process::ExitCode {
    run_at_once(cases, 1)
}

/// The same with so many cases at a time: for those that share nothing.
pub fn run_at_once(cases: Vec<Trial>, at_once: usize) -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(at_once);
    libtest_mimic::run(&arguments, cases).exit_code()
}

/// Fails the case unless `condition` holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            anyhow::bail!($($message)+);
        }
    };
}

/// Fails the case unless both are equal, and shows both.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if left != right {
                    anyhow::bail!("{}: got {left:?}, expected {right:?}", format!($($message)+));
                }
            }
        }
    };
}
