//! `cargo xtask demo`: the main job for real, in namespaces of its own.
//!
//! An "agent" in its own cgroup sends metrics, logs and traces to ordinary intake URLs over plain http, by IPv4 and IPv6.
//! The proxy with its eBPF programs takes the connections; a TLS intake receives them. Every request is printed as it
//! passes, then the totals, the module, and what was looked for and not found; then the same for `https://` URLs under the
//! local authority. Exit code 0 only if all arrived intact and
//! nothing went around the proxy; 77 without the privilege.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::{Load, Report};
use harness::capture;
use harness::cgroup::Cgroup;
use harness::local_ca::LocalAuthority;
use harness::proxy::{Launch, Proxy};
use harness::world::{API_KEY, World};
use serde_json::{Value, json};

/// What the agent sends: the paths of the Agent's own forwarders.
const URLS: &[&str] = &[
    "http://7-81-0-app.agent.ddog-gov.com/api/v2/series",
    "http://7-81-0-app.agent.ddog-gov.com/api/beta/sketches",
    "http://agent-http-intake.logs.ddog-gov.com/api/v2/logs",
    "http://trace.agent.ddog-gov.com/api/v0.2/traces",
    "http://process.ddog-gov.com/api/v1/collector",
];
/// Every URL by both families, four times.
const REQUESTS: usize = 40;
const BODY: &str = "20000";
/// Missing privilege, as in the proxy's own exit codes.
const PRIVILEGE: u8 = 77;

fn main() -> ExitCode {
    let keep = std::env::args().any(|word| word == "--keep");
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!(
            "demo: root is needed: it makes network namespaces and loads eBPF programs. Run: sudo -E cargo xtask demo"
        );
        return ExitCode::from(PRIVILEGE);
    }
    match demo(keep) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(keep: bool) -> Result<bool> {
    println!("A host and an outside world in namespaces of their own; nothing else is contacted.\n");
    let world = World::new()?;
    let agent = Cgroup::new("datadog-agent.service")?;
    let authority = LocalAuthority::new()?;
    let mut config = world.intercepting(&agent);
    config["ca"] = json!({"dir": authority.dir()});
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    println!("  agent    cgroup {}", agent.inside());
    println!("  proxy    master {}, worker {}", proxy.pid(), proxy.worker()?);
    println!(
        "  intake   203.0.113.10:443 and [2001:db8:1::10]:443, TLS only; a leak detector listens on :80\n"
    );

    let agent_load = send(&world, &agent, REQUESTS)?;
    print_row([
        "PRODUCT",
        "ORIGINAL DESTINATION",
        "TAKEN BY",
        "TLS",
        "SUITE",
        "GROUP",
        "STATUS",
        "BYTES",
    ]);
    let shown = follow(&proxy, REQUESTS);
    let report = agent_load.wait()?;
    println!();
    let good = verdict(&world, &proxy, &report, &shown)? & https(&world, &agent, &authority, &proxy)?;
    if keep {
        look_around(&world, &agent, &proxy)?;
    }
    Ok(good)
}

fn send(world: &World, agent: &Cgroup, requests: usize) -> Result<Load> {
    let requests = requests.to_string();
    let mut words: Vec<&str> = URLS.iter().flat_map(|url| ["--url", url]).collect();
    words.extend([
        "--ip",
        "both",
        "--requests",
        &requests,
        "--body",
        BODY,
        "--api-key",
        API_KEY,
    ]);
    words.extend(["--interval-ms", "100", "--name", "demo"]);
    Load::start(&world.host, Some(agent), &words)
}

/// Prints access lines as they come, until all are there or none came for five seconds.
fn follow(proxy: &Proxy<'_>, expected: usize) -> Vec<Value> {
    let mut shown = Vec::new();
    let mut quiet = 0;
    while shown.len() < expected && quiet < 100 {
        let lines = proxy.access();
        quiet = if lines.len() > shown.len() { 0 } else { quiet + 1 };
        for line in lines.into_iter().skip(shown.len()) {
            let text = |key: &str| match &line[key] {
                Value::String(text) => text.clone(),
                Value::Null => "-".to_owned(),
                other => other.to_string(),
            };
            print_row([
                &text("product"),
                &text("original_dst"),
                &text("via"),
                &text("tls_version"),
                &text("tls_suite"),
                &text("tls_group"),
                &text("status"),
                &text("bytes_up"),
            ]);
            shown.push(line);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    shown
}

fn print_row(columns: [&str; 8]) {
    const WIDTHS: [usize; 8] = [10, 22, 9, 8, 24, 15, 7, 6];
    let line: Vec<String> = columns
        .iter()
        .zip(WIDTHS)
        .map(|(text, width)| format!("{text:<width$}"))
        .collect();
    println!("  {}", line.join(" ").trim_end());
}

/// Totals, the module, and the checks.
fn verdict(world: &World, proxy: &Proxy<'_>, report: &Report, shown: &[Value]) -> Result<bool> {
    let seen = world.intake.seen();
    let mut totals: BTreeMap<(String, &str), (usize, u64, bool)> = BTreeMap::new();
    for request in &seen {
        let family = if request.local.is_ipv4() { "IPv4" } else { "IPv6" };
        let total = totals.entry((request.host.clone(), family)).or_default();
        total.0 += 1;
        total.1 += request.body_len;
        total.2 |= !request.faults.is_empty();
    }
    println!("What the intake received:");
    for ((host, family), (requests, bytes, faulty)) in &totals {
        let digests = if *faulty { "FAULTY" } else { "digests right" };
        println!("  {host:<42} {family}  {requests:>3} requests  {bytes:>8} bytes, {digests}");
    }
    let version = proxy.cli(&["version"])?;
    println!("\n{}", String::from_utf8_lossy(&version.stdout).trim_end());

    let mut ids: Vec<&str> = seen
        .iter()
        .filter_map(|request| request.header("x-test-id"))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let families = |family: &str| totals.keys().any(|(_, seen)| *seen == family);
    let field = |key: &str, value: &str| shown.iter().all(|line| line[key] == value);
    let faults = world.intake.faults();
    let leaks = world.leaks();
    let module = String::from_utf8_lossy(&proxy.cli(&["version", "--json"])?.stdout).into_owned();
    let checks = [
        (
            "every request was answered 202 and kept its peer address",
            report.all(202),
            format!("{report:?}"),
        ),
        (
            "every request arrived exactly once",
            seen.len() == REQUESTS && ids.len() == REQUESTS,
            format!("{}", seen.len()),
        ),
        (
            "every body, key and header arrived intact",
            faults.is_empty(),
            faults.join(", "),
        ),
        (
            "by IPv4 and by IPv6",
            families("IPv4") && families("IPv6"),
            format!("{totals:?}"),
        ),
        (
            "every connection was taken by the eBPF programs, and left by TLS 1.3",
            shown.len() == REQUESTS && field("via", "cgroup") && field("tls_version", "TLSv1.3"),
            format!("{} lines", shown.len()),
        ),
        (
            "the module is AWS-LC FIPS 3.1.0",
            module.contains("AWS-LC FIPS 3.1.0"),
            module.clone(),
        ),
        (
            "nothing reached the intake in the clear",
            leaks.is_empty(),
            leaks.join("\n"),
        ),
    ];
    let good = tell(&checks);
    if !good {
        println!("\nThe proxy's log:\n{}", proxy.log());
    }
    Ok(good)
}

/// The same for an Agent whose URLs are `https://`, as a stock Agent's are: curl stands for it, and is told of the local
/// authority by the variable that `ca install` sets.
fn https(world: &World, agent: &Cgroup, authority: &LocalAuthority, proxy: &Proxy<'_>) -> Result<bool> {
    const HTTPS: &str = "https://api.ddog-gov.com/api/v1/series";
    println!("\nAn Agent whose URLs are https://, unchanged, under the local authority:");
    world.intake.take();
    let (key, folder) = (format!("DD-API-KEY: {API_KEY}"), authority.dir().join("trust"));
    let mut good = true;
    for (family, version) in [("-4", "--http1.1"), ("-6", "--http2")] {
        let mut command = world.host.command("env");
        // What this machine's shells set would win over it.
        for name in ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "CURL_CA_PATH"] {
            command.args(["-u", name]);
        }
        command.arg(format!("SSL_CERT_DIR={}", folder.display()));
        command.args([
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "30",
            "-o",
            "/dev/null",
        ]);
        command.args([
            "-w",
            "HTTP/%{http_version} %{http_code} from %{remote_ip} port %{remote_port}",
        ]);
        command.args([family, version, "-H", &key, "-d", "{}", HTTPS]);
        let output = capture(&mut agent.wrap(&command))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        println!(
            "  POST {HTTPS}: {said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        good &= output.status.success() && said.contains(" 202 ");
    }
    let arrived = world.intake.take();
    let ours = |one: &harness::intake::Seen| one.session.group.contains("MLKEM") && one.faults.is_empty();
    let ended = proxy.status()?["https"]["sessions"].to_string();
    let checks = [
        ("both were answered 202", good, String::new()),
        (
            "both arrived once, intact, by a session of ours",
            arrived.len() == 2 && arrived.iter().all(ours),
            format!("{arrived:?}"),
        ),
        (
            "the Agent's sessions ended here, with approved parameters",
            ended.contains("terminate") && !ended.contains("passthrough"),
            ended.clone(),
        ),
    ];
    Ok(tell(&checks))
}

/// Prints them; true when all are good.
fn tell(checks: &[(&str, bool, String)]) -> bool {
    println!();
    for (what, good, details) in checks {
        match good {
            true => println!("  ok      {what}"),
            false => println!("  FAILED  {what}: {details}"),
        }
    }
    checks.iter().all(|(_, good, _)| *good)
}

/// Leaves everything running until Ctrl-C; a trickle of traffic goes on.
fn look_around(world: &World, agent: &Cgroup, proxy: &Proxy<'_>) -> Result<()> {
    let enter = format!("nsenter --target={} --net --mount --", world.host.pid());
    let binary = harness::proxy::binary()?;
    println!("\nStill running. To look around, from another shell:");
    println!("  {enter} curl -s http://localhost:9803/          # status page, /metrics, /readyz");
    println!("  {enter} {} status", binary.display());
    println!(
        "  {enter} {} intercept off                        # and on again",
        binary.display()
    );
    println!("  {enter} ss -tnp                                 # the connections");
    println!("  {enter} find /run/agent-fips-proxy/bpf          # the pins");
    println!(
        "  sh -c 'echo $$ > {}/cgroup.procs && exec {enter} curl -v {}'",
        harness::cgroup::mount()?.join(&agent.inside()[1..]).display(),
        URLS[0]
    );
    println!("Ctrl-C ends it and cleans up.");
    let trickle = send(world, agent, 0)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(tokio::signal::ctrl_c())
        .context("cannot wait for Ctrl-C")?;
    drop(trickle.finish());
    println!("\n{} requests passed in all.", proxy.access().len());
    Ok(())
}
