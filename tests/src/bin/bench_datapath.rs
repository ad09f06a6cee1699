//! `bench-datapath`: what the kernel programs cost, as ratios within one run.
//!
//! Packets: a 16-byte round trip between a pod and the host over a veth pair, with no program, with our classifier on a
//! connection that it leaves alone ("passive"), and on one that it takes ("intercepted"). Connects: `connect()` to another
//! host over that pair from outside of an Agent's cgroup, from inside to a port that is not selected, and intercepted: it
//! then ends at the loopback. The last line compares that with the cheapest connect there is, one to the loopback without
//! a program. Variants take turns within each round, everything is pinned to one CPU, and the ratio of a variant is the
//! median of the rounds' ratios of medians. Nothing leaves the namespaces that it makes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent_fips_proxy::config::{Config, Datapath, Intercept, InterfacePattern};
use agent_fips_proxy::intercept::{Changes, Interceptor, Listeners};
use anyhow::{Context, Result, bail};
use harness::cgroup::Cgroup;
use harness::netns::{Host, join};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;

/// Many short rounds: what drifts on the machine drifts for all variants of a round.
const ROUNDS: usize = 100;
const TRIPS: usize = 1_000;
const CONNECTS: usize = 100;
/// Not the host's own: what the classifier takes.
const INTAKE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)), 80);
/// The host's end of the veth pair, at a port that is not selected.
const HOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 7);
/// The pod's end, at a port that is selected and at one that is not.
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), 80);
const PEER_ELSE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), 81);
/// The veth's name on the host's side (`harness::netns::join`).
const DEVICE: &str = "inner";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] => outside(),
        ["inside", pod, cgroup, selector] => inside(pod, cgroup, selector),
        ["connect", address] => connects(address),
        _ => Err(anyhow::anyhow!("bench-datapath takes no arguments")),
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
fn outside() -> Result<()> {
    let (pod, node) = (Host::new(&[])?, Host::new(&[])?);
    join(&pod, &node)?;
    let agent = Cgroup::new("agent")?;
    let own = std::env::current_exe()?;
    let status = node
        .command(own)
        .args(["inside", &pod.pid().to_string()])
        .arg(agent.path())
        .arg(agent.inside())
        .status()
        .context("cannot run on the stage")?;
    if !status.success() {
        bail!("the measurement failed: {status}");
    }
    Ok(())
}

fn inside(pod: &str, cgroup: &str, selector: &str) -> Result<()> {
    pin()?;
    println!(
        "{ROUNDS} rounds; p50 of {TRIPS} round trips and of {CONNECTS} connects each; one CPU; 127.0.0.1 and veth"
    );
    packets(pod)?;
    connections(pod, cgroup, selector)
}

/// One CPU for both ends: unpinned, the scheduler's choice is larger than what is measured.
fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot pin to a CPU")
}

fn config(datapath: Datapath, selector: &str) -> Result<Intercept> {
    let mut config = Config::default().intercept;
    config.requested = true;
    config.datapath = datapath;
    config.agents.cgroups = vec![selector.to_owned()];
    config.cidrs = vec!["203.0.113.0/24".parse()?, "198.51.100.2/32".parse()?];
    config.ports = vec![80];
    if datapath == Datapath::Tc {
        config.agents.cgroups.clear();
        config.interfaces = vec![InterfacePattern(DEVICE.to_owned())];
    }
    Ok(config)
}

/// Echoes on every connection, each on a thread of its own.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = [0; 16];
                let _ = stream.set_nodelay(true);
                while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
            });
        }
    });
}

fn packets(pod: &str) -> Result<()> {
    echo(TcpListener::bind(HOST)?);
    let own = Interceptor::enter_own_cgroup()?;
    let mut kernel = Interceptor::load(&config(Datapath::Tc, "")?, &own)?;
    let in_pod = |address: SocketAddr| within(pod, || round_trips(address));
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let none = in_pod(HOST)?;
        serve(kernel.switch_on()?);
        let passive = in_pod(HOST)?;
        let taken = in_pod(INTAKE)?;
        kernel.switch_off(Duration::ZERO);
        rounds.push([none, passive, taken]);
    }
    kernel.leave(false)?;
    drop(own);
    report(
        "round trip over veth",
        ["no program", "passive tc", "intercepted by tc"],
        &rounds,
    );
    Ok(())
}

/// Runs this in the pod's network namespace.
fn within<T: Send>(pod: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pod = std::fs::File::open(format!("/proc/{pod}/ns/net"))?;
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(pod, CloneFlags::CLONE_NEWNET)?;
                work()
            })
            .join()
            .map_err(|_| anyhow::anyhow!("a thread in the pod panicked"))?
    })
}

fn serve(changes: Changes) {
    for network in changes.opened {
        for listener in [network.v4, network.v6].into_iter().flatten() {
            if listener.set_nonblocking(false).is_ok() {
                echo(listener);
            }
        }
    }
}

/// The median of many round trips, in nanoseconds.
fn round_trips(address: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("cannot reach {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [7; 16];
    let mut times = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let start = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        times.push(start.elapsed());
    }
    Ok(median(times))
}

fn connections(pod: &str, cgroup: &str, selector: &str) -> Result<()> {
    for address in [PEER, PEER_ELSE] {
        drain(within(pod, || Ok(TcpListener::bind(address)?))?);
    }
    let plain = TcpListener::bind("127.0.0.1:0")?;
    let loopback = plain.local_addr()?;
    drain(plain);
    let own = Interceptor::enter_own_cgroup()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let mut kernel = Interceptor::load(&config(Datapath::Cgroup, selector)?, &own)?;
    kernel.set_listeners(Listeners {
        v4: Some((taken.as_fd(), port)),
        v6: None,
    })?;
    drain(taken);
    kernel.switch_on()?;
    let mut rounds = Vec::new();
    let mut clients = [
        Client::start(None, PEER)?,
        Client::start(Some(cgroup), PEER_ELSE)?,
        Client::start(Some(cgroup), PEER)?,
        Client::start(None, loopback)?,
    ];
    for round in 0..ROUNDS {
        let mut medians = [0.0; 4];
        for turn in 0..clients.len() {
            let variant = (round + turn) % clients.len();
            medians[variant] = clients[variant].connects()?;
        }
        rounds.push(medians);
    }
    drop(clients);
    kernel.leave(false)?;
    drop(own);
    let names = ["no program", "in the cgroup, not selected", "intercepted"];
    report(
        "connect() to another host over veth",
        names,
        &rounds.iter().map(|[a, b, c, _]| [*a, *b, *c]).collect::<Vec<_>>(),
    );
    let names = ["no program", "intercepted"];
    report(
        "connect() on loopback",
        names,
        &rounds.iter().map(|[_, _, c, d]| [*d, *c]).collect::<Vec<_>>(),
    );
    Ok(())
}

/// Accepts and forgets.
fn drain(listener: TcpListener) {
    thread::spawn(move || for _ in listener.incoming() {});
}

/// A client of its own process: a socket belongs to the cgroup of its maker.
struct Client {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(cgroup: Option<&str>, address: SocketAddr) -> Result<Self> {
        // Without a cgroup: out of our own, whose programs see every socket of it, back to the root.
        let root = harness::cgroup::mount()?;
        let mut process = Command::new("sh")
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(cgroup.map_or(root.as_os_str(), std::ffi::OsStr::new))
            .arg(std::env::current_exe()?)
            .args(["connect", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self {
            orders: process.stdin.take().context("no way to a client")?,
            answers: BufReader::new(process.stdout.take().context("no way from a client")?),
            process,
        })
    }

    /// The median of one batch of connects, in nanoseconds.
    fn connects(&mut self) -> Result<f64> {
        writeln!(self.orders, "go")?;
        let mut text = String::new();
        self.answers.read_line(&mut text)?;
        text.trim()
            .parse()
            .with_context(|| format!("a client said `{}`", text.trim()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn connects(address: &str) -> Result<()> {
    pin()?;
    let address: SocketAddr = address.parse()?;
    for order in std::io::stdin().lines() {
        order?;
        let mut times = Vec::with_capacity(CONNECTS);
        for _ in 0..CONNECTS {
            let start = Instant::now();
            let stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
            times.push(start.elapsed());
            // A reset: thousands of ports in TIME_WAIT would make the next connects slower.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        println!("{}", median(times));
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e9)
}

/// One line per variant: the median over rounds, and the median of the ratios to the first variant of the same round.
fn report<const N: usize>(what: &str, names: [&str; N], rounds: &[[f64; N]]) {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    println!("{what}");
    for (index, name) in names.iter().enumerate() {
        let time = middle(rounds.iter().map(|round| round[index]).collect());
        let ratio = middle(rounds.iter().map(|round| round[index] / round[0]).collect());
        println!("  {name:<30} {:>8.2} us   ratio {ratio:.3}", time / 1000.0);
    }
}
