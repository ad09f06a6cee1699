//! `bench-scaling`: how cost grows with connections, Agents, pods, cgroups, networks to intercept, and names. Bounded: some
//! ten minutes; namespaces, cgroups and processes of its own, nothing leaves them.
//!
//! Prints Markdown, and writes `target/bench/scaling.json`. Without arguments everything, else the sections that are named.
//! Counts and the shape of growth are what it is for; speed against others is `bench`'s.

mod fit;
mod names;
mod rounds;
mod stage;
mod usage;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fit::Table;
use harness::cgroup::Cgroup;
use harness::cni::{Node, Plugin, Style};
use harness::eventually;
use harness::held::Held;
use harness::netns::Host;
use harness::proxy::{Launch, Proxy};
use harness::world::{API_KEY, World};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use stage::Crowd;

/// How long the CPU of processes at rest is watched: two looks for Agents and two reports to the worker (every 5 s).
const REST: Duration = Duration::from_secs(10);
/// After that they are at rest: with classifiers it is 10 s until new interfaces are not looked at four times a second any more.
const SETTLE: Duration = Duration::from_secs(2);
const SETTLE_TC: Duration = Duration::from_secs(12);

/// A section: its name, and what measures it.
type Section = (&'static str, fn() -> Result<Vec<Table>>);

const SECTIONS: [Section; 7] = [
    ("connections", connections),
    ("agents", agents),
    ("pods", pods),
    ("cgroups", cgroups),
    ("prefixes", prefixes),
    ("rules", rules),
    ("names", names::names),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["rounds", rest @ ..] => rounds::run(rest),
        ["connect", address] => rounds::connect(address),
        ["route", address] => rounds::route(address),
        wanted => all(wanted),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-scaling: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn all(wanted: &[&str]) -> Result<()> {
    if let Some(unknown) = wanted
        .iter()
        .find(|wanted| SECTIONS.iter().all(|(name, _)| name != *wanted))
    {
        bail!(
            "no section `{unknown}`; there are {:?}",
            SECTIONS.map(|(name, _)| name)
        );
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let mut tables = Vec::new();
    for (name, measure) in SECTIONS {
        if wanted.is_empty() || wanted.contains(&name) {
            tables.extend(measure().with_context(|| format!("section {name}"))?);
        }
    }
    tables.iter().for_each(|table| println!("{}", table.markdown()));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    std::fs::create_dir_all(&folder)?;
    let report: Vec<Value> = tables.iter().map(Table::json).collect();
    std::fs::write(
        folder.join("scaling.json"),
        serde_json::to_string_pretty(&json!({"tables": report}))?,
    )?;
    Ok(())
}

/// Kept-alive connections, one request each and then none.
fn connections() -> Result<Vec<Table>> {
    let mut table = Table::new(
        "Idle client connections",
        "connections",
        &[
            "worker RSS MiB",
            "worker descriptors",
            "worker CPU ms/s",
            "master CPU ms/s",
        ],
        "Explicit port, one request each, then kept open. Upstream connections are pooled: their number follows the requests at once, \
         not the connections.",
    );
    let world = World::new()?;
    let mut config = world.config();
    config["log"]["access"] = json!(false);
    config["limits"] =
        json!({"max_connections": 6000, "max_connections_per_agent": 6000, "idle_timeout": "600s"});
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    let (worker, master) = (proxy.worker()?, proxy.pid());
    let mut clients = Vec::new();
    for n in [0, 10, 100, 500, 1000, 2500, 5000] {
        world.host.within(|| {
            while clients.len() < n {
                clients.push(client()?);
            }
            Ok(())
        })?;
        // What the last requests needed is given back.
        std::thread::sleep(Duration::from_secs(1));
        let held = Held::of(worker)?;
        let cpu = usage::at_rest(&[worker, master], REST / 2)?;
        table.add(n, vec![held.mib(), count(held.descriptors), cpu[0], cpu[1]]);
    }
    Ok(vec![table])
}

/// Descriptors, for a table.
fn count(descriptors: u64) -> f64 {
    f64::from(u32::try_from(descriptors).unwrap_or(u32::MAX))
}

fn client() -> Result<TcpStream> {
    let mut stream = TcpStream::connect("127.0.0.1:9808")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        stream,
        "POST /api/v2/logs HTTP/1.1\r\nHost: localhost\r\nDD-API-KEY: {API_KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
    )?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    // The fake intake's answer is a small JSON object.
    while !answer.ends_with(b"}") {
        let n = stream.read(&mut piece)?;
        if n == 0 {
            bail!("the connection ended: {}", String::from_utf8_lossy(&answer));
        }
        answer.extend_from_slice(&piece[..n]);
    }
    if !answer.starts_with(b"HTTP/1.1 202") {
        bail!("an answer: {}", String::from_utf8_lossy(&answer));
    }
    Ok(stream)
}

/// The steps of the kernel side in a process of their own, and the whole program at rest.
struct Growth {
    steps: Table,
    rest: Table,
}

impl Growth {
    fn new(of: &str, note: &str) -> Self {
        Self {
            steps: Table::new(
                &format!("{of}: the kernel side's steps"),
                of,
                &[
                    "first look, all taken, ms",
                    "a look without change, ms",
                    "a status, ms",
                ],
                "Medians of 7, in a process that does nothing else. A look comes every 5 s and when something changed.",
            ),
            rest: Table::new(
                &format!("{of}: the program at rest"),
                of,
                &[
                    "ready, ms",
                    "master CPU ms/s",
                    "worker CPU ms/s",
                    "master RSS MiB",
                    "worker RSS MiB",
                    "master descriptors",
                    "worker descriptors",
                ],
                note,
            ),
        }
    }

    fn measure(&mut self, world: &World, n: usize, datapath: &str, selector: &str) -> Result<()> {
        let step = rounds::on(&world.host, datapath, selector, 1, None)?;
        if step["agents"] != json!(n) || step["untaken"] != json!(0) {
            bail!("{n} Agents, and the kernel side says {step}");
        }
        let of = |key: &str| step[key].as_f64().unwrap_or(f64::NAN);
        self.steps
            .add(n, vec![of("first_ms"), of("look_ms"), of("status_ms")]);
        let mut config = world.config();
        config["log"]["access"] = json!(false);
        config["intercept"] = json!({
            "enabled": true,
            "datapath": datapath,
            "agents": {"cgroups": [selector], "pods": {"api": "off"}},
        });
        let start = Instant::now();
        let mut proxy = Launch::new(&world.host).config(&config)?.start()?;
        taken(&proxy, n)?;
        let ready = start.elapsed();
        std::thread::sleep(if datapath == "tc" { SETTLE_TC } else { SETTLE });
        let (master, worker) = (proxy.pid(), proxy.worker()?);
        let cpu = usage::at_rest(&[master, worker], REST)?;
        let (a, b) = (Held::of(master)?, Held::of(worker)?);
        self.rest.add(
            n,
            vec![
                ready.as_secs_f64() * 1000.0,
                cpu[0],
                cpu[1],
                a.mib(),
                b.mib(),
                count(a.descriptors),
                count(b.descriptors),
            ],
        );
        proxy.stop()?;
        // `intercept.on_failure: closed` keeps the hooks; the next measurement begins without.
        proxy.cli(&["uninstall"])?;
        Ok(())
    }
}

fn taken(proxy: &Proxy<'_>, n: usize) -> Result<()> {
    eventually("every Agent is taken", Duration::from_secs(60), || {
        let status = proxy.status()?;
        let agents = status["interception"]["agents"].as_array();
        let taken = agents.map_or(0, |agents| {
            agents.iter().filter(|agent| !agent["datapath"].is_null()).count()
        });
        Ok((taken == n).then_some(()))
    })
}

/// Agents of the host: a cgroup and a process each.
fn agents() -> Result<Vec<Table>> {
    let world = World::new()?;
    let mut crowd = Crowd::new()?;
    let mut growth = Growth::new(
        "Agents of the host",
        "Cgroups with one process each, datapath `cgroup`.",
    );
    for n in [1, 10, 50, 100, 200, 500] {
        crowd.of_host(&world.host, n)?;
        growth.measure(&world, n, "cgroup", &crowd.selector())?;
    }
    Ok(vec![growth.steps, growth.rest])
}

/// Agents with a network namespace each: by hooks with bare namespaces, by classifiers with real pods of a CNI plug-in.
fn pods() -> Result<Vec<Table>> {
    let world = World::new()?;
    let mut crowd = Crowd::new()?;
    let mut hooks = Growth::new(
        "Agent pods, datapath cgroup",
        "Cgroups with one process each in a network namespace of its own.",
    );
    for n in [1, 10, 50, 100, 200, 500, 1000] {
        crowd.with_networks(n)?;
        hooks.measure(&world, n, "cgroup", &crowd.selector())?;
    }
    drop(crowd);
    let mut tables = vec![hooks.steps, hooks.rest];
    if let Some(obstacle) = harness::cni::obstacle() {
        eprintln!("Agent pods, datapath tc: not measured: {obstacle}");
        return Ok(tables);
    }
    let node = Node::new(&world, Plugin::Ptp, false, Style::Cgroupfs)?;
    let selector = format!("{}/*/pod*", node.cgroup().inside());
    let mut classifiers = Growth::new(
        "Agent pods, datapath tc",
        "Pods of the CNI plug-in `ptp`: a veth each.",
    );
    let mut pods = Vec::new();
    for n in [1, 10, 25, 50, 100] {
        while pods.len() < n {
            pods.push(node.pod()?);
        }
        classifiers.measure(&world, n, "tc", &selector)?;
    }
    tables.extend([classifiers.steps, classifiers.rest]);
    Ok(tables)
}

/// Other people's cgroups, where a selector with `**` must look for Agents.
fn cgroups() -> Result<Vec<Table>> {
    let mut table = Table::new(
        "Cgroups below a selector with `**`",
        "cgroups",
        &["a look without change, ms"],
        "One Agent among so many cgroups of others. Median of 7.",
    );
    let host = Host::new(&[])?;
    let above = Cgroup::new("kubepods")?;
    let others = format!("{}/**/agent*", above.inside());
    let own = above.child("agent0")?;
    let mut sleeper = own.wrap(host.command("sleep").arg("3600")).spawn()?;
    let mut made = 0;
    let result = (|| {
        for n in [10, 100, 1000, 2500, 5000] {
            while made < n {
                std::fs::create_dir(above.path().join(format!("pod{made}")))?;
                made += 1;
            }
            let step = rounds::on(&host, "cgroup", &others, 1, None)?;
            table.add(n, vec![step["look_ms"].as_f64().unwrap_or(f64::NAN)]);
        }
        Ok(vec![table])
    })();
    sleeper.kill()?;
    sleeper.wait()?;
    result
}

/// Networks that are selected: the kernel looks each destination up in a trie.
fn prefixes() -> Result<Vec<Table>> {
    let mut table = Table::new(
        "Networks to intercept",
        "networks",
        &[
            "first look, all written, ms",
            "a look without change, ms",
            "connect() not selected, us",
        ],
        "Networks of `intercept.cidrs`, from none to the table's limit of 8,192 for each family; the connect is looked up and found in \
         none: the median of the quietest of 200 batches.",
    );
    let host = Host::new(&[])?;
    // On `lo` the whole network is local, as with 127.0.0.0/8.
    host.ip("address add 198.18.0.1/15 dev lo")?;
    let mut crowd = Crowd::new()?;
    crowd.of_host(&host, 1)?;
    let client = crowd.cgroup.path().join("agent0");
    for n in [1, 10, 100, 1000, 4000, 8000] {
        let step = rounds::on(&host, "cgroup", &crowd.selector(), n, Some(&client))?;
        let of = |key: &str| step[key].as_f64().unwrap_or(f64::NAN);
        if step["destinations"] != json!(n) {
            bail!("{n} networks, and the kernel side says {step}");
        }
        // Loading writes them; a part of it does not depend on their number.
        table.add(
            n,
            vec![of("load_ms") + of("first_ms"), of("look_ms"), of("connect_us")],
        );
    }
    Ok(vec![table])
}

/// Routing rules, one for each family and interface of the datapath `tc`: the kernel walks them for every route that it looks up.
fn rules() -> Result<Vec<Table>> {
    let mut table = Table::new(
        "Routing rules of the datapath tc",
        "interfaces",
        &["one route look-up, us"],
        "Rules as the proxy makes them, one for each interface, asked before the host's own; the look-up is the `connect()` of a UDP \
         socket to another host, which is in every packet's way that the host forwards or sends without a cached route. The median of the \
         quietest of 200 batches.",
    );
    let host = Host::new(&[])?;
    host.ip("route add 203.0.113.0/24 dev lo")?;
    let mut made = 0;
    for n in [0, 10, 100, 1000, 5000] {
        let batch = (made..n)
            .map(|index| format!("rule add pref 7 fwmark 0xd00000/0xf00000 iif d{index} lookup 3536\n"))
            .collect::<String>();
        made = n;
        let file = host.folder().join("rules");
        std::fs::write(&file, batch)?;
        harness::succeed(host.command("ip").arg("-batch").arg(&file))?;
        let mut client = host.command(std::env::current_exe()?);
        let text = harness::succeed(client.args(["route", "203.0.113.1:9"]))?;
        table.add(n, vec![text.trim().parse()?]);
    }
    Ok(vec![table])
}
