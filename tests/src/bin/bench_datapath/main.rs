//! `bench-datapath`: what each kernel program costs, against none in the same run.
//!
//! By the clock: each row is done without and with programs, which are switched off and on in turn, so that what drifts on
//! the machine drifts for both; everything is pinned to one processor. By the kernel: how often each program ran in a row and how
//! long, from the kernel's own statistics (`BPF_ENABLE_STATS`), which are on for that only, since they cost time themselves.
//! docs/PERFORMANCE.md says what the rows mean. Nothing leaves the namespaces that it makes.
//!
//! `bench-datapath [--rounds 100] [--json PATH]`; the roles `inside`, `client` and `servers` are started by it.

mod cases;
mod ends;
mod report;
mod rounds;

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use agent_fips_proxy::config::{ClassifierAttach, Config, Datapath, Intercept, InterfacePattern};
use agent_fips_proxy::intercept::{Interceptor, Listeners, OwnCgroup};
use anyhow::{Context, Result, bail};
use cases::Case;
use ends::{ANSWERS, Client, FORGETS, Serving, Who};
use harness::bench::options::Words;
use harness::cgroup::Cgroup;
use harness::netns::{Host, join};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use report::{Head, Part};
use rounds::{Clients, Stage};

/// The veth's name on the node's side (`harness::netns::join`).
const DEVICE: &str = "inner";
/// Sockets of each listener that is made for an Agent's network: one, as for a worker with one data thread. More would be
/// chosen from by a hash for each connection, which is none of the programs' cost.
const SOCKETS: usize = 1;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("inside") => inside(&words[1..]),
        Some("client") => ends::client(),
        Some("servers") => ends::serve(),
        _ => outside(&words),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-datapath: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the stage and runs the rest on it.
fn outside(words: &[String]) -> Result<()> {
    let options = Words::parse(words, &["rounds", "json"], &[])?;
    let rounds: usize = options.number("rounds", 100)?;
    if rounds == 0 {
        bail!("--rounds 0: at least one");
    }
    let json = match options.get("json") {
        Some(path) => std::path::absolute(path)?,
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench/datapath.json"),
    };
    let (pod, node) = (Host::new(&[])?, Host::new(&[])?);
    join(&pod, &node)?;
    for address in cases::POD_ELSE {
        pod.ip(&format!("address add {address} dev eth0"))?;
    }
    let agent = Cgroup::new("agent")?;
    let status = node
        .command(std::env::current_exe()?)
        .arg("inside")
        .args([pod.pid().to_string(), rounds.to_string()])
        .arg(agent.path())
        .arg(agent.inside())
        .arg(&json)
        .status()
        .context("cannot run on the stage")?;
    if !status.success() {
        bail!("the measurement failed: {status}");
    }
    Ok(())
}

/// On the node: `inside <process of the pod> <rounds> <cgroup of the Agent> <its selector> <JSON>`.
fn inside(words: &[String]) -> Result<()> {
    let [pod, rounds, cgroup, selector, json] = words else {
        bail!("inside <pod> <rounds> <cgroup> <selector> <json>");
    };
    let rounds = rounds.parse()?;
    let head = Head::new(rounds);
    pin()?;
    let nobody = harness::cgroup::mount()?.into_os_string();
    let nobody = text(&nobody)?;
    let own = Interceptor::enter_own_cgroup()?;
    let _servers = [ends::servers(nobody, None)?, ends::servers(nobody, Some(pod))?];
    let mut clients = Clients(vec![
        (Who::Agent, Client::start(Some(cgroup), None)?),
        (Who::Other, Client::start(Some(nobody), None)?),
        (Who::Own, Client::start(None, None)?),
        (Who::Pod, Client::start(Some(nobody), Some(pod))?),
    ]);
    let mut parts = vec![by_cgroup(&own, &mut clients, selector, rounds)?];
    for attach in [ClassifierAttach::Tcx, ClassifierAttach::Netlink] {
        parts.push(by_classifier(&own, &mut clients, attach, rounds)?);
    }
    drop(clients);
    println!("{}", report::markdown(&head, &parts));
    report::write(&head, &parts, json.as_ref())
}

fn text(words: &OsString) -> Result<&str> {
    words
        .to_str()
        .with_context(|| format!("{} is no text", words.display()))
}

/// One processor for all: else the scheduler's choices are larger than what is measured.
fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot pin to a CPU")
}

fn config(datapath: Datapath, networks: [&str; 2]) -> Result<Intercept> {
    let mut config = Config::default().intercept;
    config.requested = true;
    config.datapath = datapath;
    config.agents.cgroups.clear();
    config.cidrs = networks
        .iter()
        .map(|network| network.parse())
        .collect::<Result<_, _>>()?;
    config.ports = vec![FORGETS[0], ANSWERS[0]];
    Ok(config)
}

/// Hooks in an Agent's cgroup, and in the proxy's.
fn by_cgroup(own: &OwnCgroup, clients: &mut Clients, selector: &str, rounds: usize) -> Result<Part> {
    let mut config = config(Datapath::Cgroup, cases::AGENT_NETWORKS)?;
    config.agents.cgroups = vec![selector.to_owned()];
    let answering = Arc::new(AtomicBool::new(false));
    let (v4, v6) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("[::1]:0")?);
    let addresses = [v4.local_addr()?, v6.local_addr()?];
    let mut kernel = Interceptor::load(&config, own, SOCKETS)?;
    kernel.set_listeners(Listeners {
        v4: Some((v4.as_fd(), addresses[0].port())),
        v6: Some((v6.as_fd(), addresses[1].port())),
    })?;
    let _serving = [Serving::start(v4, &answering)?, Serving::start(v6, &answering)?];
    measure(
        "Datapath `cgroup`",
        "Without: the same processes, nothing attached anywhere. The node and the pod are joined by a veth pair.",
        Stage::new(kernel, clients, &answering),
        &cases::cgroup(addresses),
        rounds,
    )
}

/// A classifier on the pod's interface, and the program that picks the listener.
fn by_classifier(
    own: &OwnCgroup,
    clients: &mut Clients,
    attach: ClassifierAttach,
    rounds: usize,
) -> Result<Part> {
    let mut config = config(Datapath::Tc, cases::POD_NETWORKS)?;
    config.interfaces = vec![InterfacePattern(DEVICE.to_owned())];
    config.classifier_attach = attach;
    let answering = Arc::new(AtomicBool::new(false));
    let kernel = Interceptor::load(&config, own, SOCKETS)?;
    let stage = Stage::new(kernel, clients, &answering);
    let mut cases: Vec<Case> = cases::classifier();
    let (title, note) = if attach == ClassifierAttach::Tcx {
        cases.extend(cases::sk_lookup());
        (
            "Datapath `tc` by TCX",
            "A process of the pod and one of the node, over the veth pair; then the node's own traffic. Without: no classifier, no program \
             of `sk_lookup`, no routing rule.",
        )
    } else {
        (
            "Datapath `tc` by a filter of clsact",
            "The same rows of the pod, where the classifier is a filter (kernels before 6.6).",
        )
    };
    measure(title, note, stage, &cases, rounds)
}

fn measure(
    title: &'static str,
    note: &'static str,
    mut stage: Stage<'_>,
    cases: &[Case],
    rounds: usize,
) -> Result<Part> {
    eprintln!("bench-datapath: {title}: {} rows", cases.len());
    let times = stage.times(cases, rounds).context(title)?;
    let runs = stage.runs(cases).context(title)?;
    stage.end()?;
    Ok(Part {
        title,
        note,
        times,
        runs,
    })
}
