//! The kernel side alone, in a process of its own on the stage's host: how long its steps take.

use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent_fips_proxy::config::{Config, Datapath, Intercept, PodsApi};
use agent_fips_proxy::intercept::{Interceptor, Leave, Listeners};
use anyhow::{Context, Result, bail};
use harness::netns::Host;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How often each step is done; the median counts.
const TIMES: usize = 7;
/// Connects of one batch, and batches of a measurement: the median of the quietest counts, since others use the machine too.
const CONNECTS: usize = 200;
const BATCHES: usize = 200;

/// Asks for a measurement on `host`; what [`run`] prints.
pub fn on(
    host: &Host,
    datapath: &str,
    selector: &str,
    prefixes: usize,
    client: Option<&Path>,
) -> Result<Value> {
    let mut command = host.command(std::env::current_exe()?);
    command.args(["rounds", datapath, selector, &prefixes.to_string()]);
    command.args(client);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("a measurement on the stage failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("a measurement printed no JSON")
}

/// `rounds <datapath> <selector> <prefixes> [cgroup of a client]`
pub fn run(words: &[&str]) -> Result<()> {
    let [datapath, selector, prefixes, client @ ..] = words else {
        bail!("rounds <datapath> <selector> <prefixes> [cgroup]");
    };
    let prefixes = prefixes.parse()?;
    let plain = TcpListener::bind("0.0.0.0:0")?;
    let elsewhere = SocketAddr::new(network(prefixes / 2, 8).into(), plain.local_addr()?.port());
    drain(plain);
    let config = config(datapath, selector, prefixes, elsewhere.port())?;
    let own = Interceptor::enter_own_cgroup()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let start = Instant::now();
    let mut kernel = Interceptor::load(&config, &own, Config::default().worker.threads)?;
    let load = start.elapsed();
    kernel.set_listeners(Listeners {
        v4: Some((listener.as_fd(), port)),
        v6: None,
    })?;
    let start = Instant::now();
    let changes = kernel.switch_on()?;
    let first = start.elapsed();
    if let Some(failed) = changes.failed.first() {
        bail!("switching on: {failed}");
    }
    let look = median(|| drop(kernel.sync()));
    let status = median(|| drop(kernel.status()));
    let report = kernel.status();
    let untaken = report
        .agents
        .iter()
        .filter(|agent| agent.datapath.is_none())
        .count();
    let connect = match client {
        [cgroup] => Some(connects_from(cgroup, elsewhere)?),
        _ => None,
    };
    println!(
        "{}",
        json!({
            "load_ms": millis(load),
            "first_ms": millis(first),
            "look_ms": millis(look),
            "status_ms": millis(status),
            "agents": report.agents.len(),
            "untaken": untaken,
            "networks": report.networks.len(),
            "destinations": report.destinations,
            "connect_us": connect,
        })
    );
    kernel.leave(Leave::Nothing)?;
    drop(changes);
    drop(own);
    Ok(())
}

/// Every second /29 of 198.18.0.0/15 (benchmarks, RFC 2544): 8,192 of them. With `beside` 8 an address of a gap, in the
/// middle of the table, which no entry covers.
fn network(n: u32, beside: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xc612_0000 + 16 * n + beside)
}

fn config(datapath: &str, selector: &str, prefixes: u32, port: u16) -> Result<Intercept> {
    let mut config = Config::default().intercept;
    config.requested = true;
    config.datapath = match datapath {
        "tc" => Datapath::Tc,
        _ => Datapath::Cgroup,
    };
    config.agents.cgroups = vec![selector.to_owned()];
    config.agents.pods.api = PodsApi::Off;
    // The port of the connects: each of them is looked up in the table, and found in none of its networks.
    config.ports = vec![port];
    config.cidrs = (0..prefixes)
        .map(|n| format!("{}/29", network(n, 0)).parse())
        .collect::<Result<_, _>>()?;
    Ok(config)
}

fn median(mut step: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let start = Instant::now();
            step();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[TIMES / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Accepts and forgets, on the CPU of the clients.
fn drain(listener: TcpListener) {
    std::thread::spawn(move || pin().map(|()| listener.incoming().for_each(drop)));
}

/// One CPU for both ends of a connect: unpinned, the scheduler's choice is larger than what is measured.
fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot pin to a CPU")
}

/// Connects of a process in this cgroup, in microseconds.
fn connects_from(cgroup: &str, address: SocketAddr) -> Result<f64> {
    let output = Command::new("sh")
        .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
        .arg(cgroup)
        .arg(std::env::current_exe()?)
        .args(["connect", &address.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    output
        .stdout
        .lines()
        .next()
        .context("a client said nothing")??
        .parse()
        .context("a client said no number")
}

/// `connect <address>`
pub fn connect(address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    quietest(|| {
        let start = Instant::now();
        let stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
        let took = start.elapsed();
        // A reset: thousands of ports in TIME_WAIT would make the next connects slower.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(took)
    })
}

/// `route <address>`: the connect of a UDP socket looks a route up, and sends nothing.
pub fn route(address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    quietest(|| {
        let start = Instant::now();
        socket
            .connect(address)
            .with_context(|| format!("no route to {address}"))?;
        Ok(start.elapsed())
    })
}

/// Prints the median of the quietest batch, in microseconds.
fn quietest(step: impl Fn() -> Result<Duration>) -> Result<()> {
    pin()?;
    let mut quietest = Duration::MAX;
    for _ in 0..BATCHES {
        let mut times = (0..CONNECTS).map(|_| step()).collect::<Result<Vec<_>>>()?;
        times.sort_unstable();
        quietest = quietest.min(times[CONNECTS / 2]);
    }
    println!("{}", quietest.as_secs_f64() * 1e6);
    Ok(())
}
