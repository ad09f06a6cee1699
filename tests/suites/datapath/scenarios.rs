//! The scenarios. Each runs in a process and a world of its own; the proxy side lives in that process.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use agent_fips_proxy::config::{Datapath, HttpsPolicy, Intercept, OnFailure};
use agent_fips_proxy::intercept::{
    self, AgentWatcher, ErrorKind, Interceptor, Listeners, OwnCgroup, preflight,
};
use anyhow::{Context, Result, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{loaded_links, loaded_programs};
use nix::libc;
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;
use socket2::SockRef;

use crate::ROLE;
use crate::world::{DIRECT, World, answer, say};

type Scenario = fn(&World) -> Result<()>;

/// Every scenario by name.
pub const ALL: &[(&str, Scenario)] = &[
    ("every_way_to_connect_is_taken", every_way_to_connect_is_taken),
    (
        "what_is_not_selected_is_not_touched",
        what_is_not_selected_is_not_touched,
    ),
    (
        "the_proxy_does_not_intercept_itself",
        the_proxy_does_not_intercept_itself,
    ),
    (
        "a_reused_socket_is_not_told_the_old_peer",
        a_reused_socket_is_not_told_the_old_peer,
    ),
    (
        "without_a_listener_closed_refuses",
        without_a_listener_closed_refuses,
    ),
    (
        "without_a_listener_open_goes_direct",
        without_a_listener_open_goes_direct,
    ),
    (
        "a_socket_bound_to_a_device_follows_the_policy",
        a_socket_bound_to_a_device_follows_the_policy,
    ),
    (
        "an_unrelated_local_listener_cannot_catch",
        an_unrelated_local_listener_cannot_catch,
    ),
    (
        "getsockopt_is_otherwise_the_kernels",
        getsockopt_is_otherwise_the_kernels,
    ),
    (
        "a_killed_loader_leaves_the_policy_in_force",
        a_killed_loader_leaves_the_policy_in_force,
    ),
    (
        "an_upgrade_under_load_misses_nothing",
        an_upgrade_under_load_misses_nothing,
    ),
    (
        "recycled_ports_never_mix_destinations",
        recycled_ports_never_mix_destinations,
    ),
    (
        "an_agent_that_starts_later_is_found",
        an_agent_that_starts_later_is_found,
    ),
    (
        "the_switch_detaches_and_attaches",
        the_switch_detaches_and_attaches,
    ),
    (
        "learnt_destinations_survive_a_restart",
        learnt_destinations_survive_a_restart,
    ),
    (
        "pins_of_another_version_are_replaced",
        pins_of_another_version_are_replaced,
    ),
    ("without_a_bpffs_one_is_mounted", without_a_bpffs_one_is_mounted),
    (
        "the_programs_log_reaches_tracing",
        the_programs_log_reaches_tracing,
    ),
    ("a_missing_privilege_is_named", a_missing_privilege_is_named),
    ("three_capabilities_suffice", three_capabilities_suffice),
    ("uninstall_leaves_nothing", uninstall_leaves_nothing),
    (
        "an_uninstall_beneath_a_running_proxy_is_respected",
        an_uninstall_beneath_a_running_proxy_is_respected,
    ),
];

/// Runs one.
pub fn run(name: &str) -> Result<()> {
    let (_, scenario) = ALL
        .iter()
        .find(|(known, _)| *known == name)
        .context("no such scenario")?;
    scenario(&World::new()?)
}

/// The proxy side: listeners whose connections are told the original destination that `SO_ORIGINAL_DST` gave.
struct Proxy {
    interceptor: Interceptor,
    v4: TcpListener,
    v6: TcpListener,
    own: OwnCgroup,
}

/// What a connection without an original destination is told.
const LOST: &str = "lost";

impl Proxy {
    /// Loads, listens and attaches.
    fn start(config: &Intercept) -> Result<Self> {
        let mut this = Self::load(config)?;
        this.set_listeners()?;
        this.interceptor.set_attached(true)?;
        Ok(this)
    }

    fn load(config: &Intercept) -> Result<Self> {
        let own = Interceptor::enter_own_cgroup()?;
        let v4 = TcpListener::bind("127.0.0.1:0")?;
        let v6 = TcpListener::bind("[::1]:0")?;
        for listener in [&v4, &v6] {
            let listener = listener.try_clone()?;
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let text =
                        original(&stream).map_or_else(|_| LOST.to_owned(), |address| address.to_string());
                    // Each in its own thread: a client that does not close must not stop the others.
                    std::thread::spawn(move || say(stream, &text));
                }
            });
        }
        let interceptor = Interceptor::load(config, &own)?;
        Ok(Self {
            interceptor,
            v4,
            v6,
            own,
        })
    }

    fn set_listeners(&mut self) -> Result<()> {
        let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        self.interceptor.set_listeners(Listeners {
            v4: Some((self.v4.as_fd(), port(&self.v4)?)),
            v6: Some((self.v6.as_fd(), port(&self.v6)?)),
        })?;
        Ok(())
    }

    fn counter(&self, name: &str) -> u64 {
        self.interceptor
            .status()
            .counters
            .get(name)
            .copied()
            .unwrap_or(u64::MAX)
    }
}

/// Asked as any proxy behind an iptables REDIRECT asks.
fn original(stream: &TcpStream) -> std::io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let answer = if stream.local_addr()?.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    }?;
    answer
        .as_socket()
        .ok_or_else(|| std::io::Error::other("no IP address"))
}

fn config(world: &World) -> Intercept {
    Intercept {
        enabled: true,
        requested: true,
        datapath: Datapath::Cgroup,
        agent_cgroups: vec![world.selector("agent*")],
        ports: vec![80, 443],
        cidrs: ["203.0.113.0/24", "2001:db8::/64"]
            .iter()
            .flat_map(|net| net.parse())
            .collect(),
        https: HttpsPolicy::Passthrough,
        on_failure: OnFailure::Closed,
    }
}

/// A loader in a process of its own: `<selector>`; says "ready" and lives until its standard input closes.
pub fn loader(selector: &str) -> Result<()> {
    let config = Intercept {
        agent_cgroups: vec![selector.to_owned()],
        cidrs: ["203.0.113.0/24", "2001:db8::/64"]
            .iter()
            .flat_map(|net| net.parse())
            .collect(),
        ports: vec![80, 443],
        enabled: true,
        requested: true,
        datapath: Datapath::Cgroup,
        https: HttpsPolicy::Passthrough,
        on_failure: OnFailure::Closed,
    };
    let proxy = Proxy::start(&config)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    proxy.interceptor.leave(true)?;
    drop(proxy.own);
    Ok(())
}

fn start_loader(world: &World) -> Result<Child> {
    spawn_loader(world, Command::new(std::env::current_exe()?))
}

fn spawn_loader(world: &World, mut command: Command) -> Result<Child> {
    let mut child = command
        .env(ROLE, format!("loader {}", world.selector("agent*")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("stdout")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "the loader said {line:?}");
    Ok(child)
}

fn expect(seen: &Value, reached: &str, peer: &str) -> Result<()> {
    ensure!(
        seen["reached"] == reached && seen["peer"] == peer,
        "expected {reached} and peer {peer}: {seen}"
    );
    Ok(())
}

fn expect_error(seen: &Value, errno: i32) -> Result<()> {
    ensure!(seen["error"] == errno, "expected errno {errno}: {seen}");
    Ok(())
}

fn every_way_to_connect_is_taken(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let proxy = Proxy::start(&config(world))?;
    let (v4, v6) = ("203.0.113.5:80", "[2001:db8::5]:80");
    let ways = ["connect", "nonblocking", "tfo-sendto", "tfo-connect"];
    for way in ways {
        expect(&world.agent("agent", &format!("{way} {v4}"))?, v4, v4)?;
        expect(&world.agent("agent", &format!("{way} {v6}"))?, v6, v6)?;
        // IPv4-mapped: the proxy sees IPv4, the client its own view.
        let mapped = "[::ffff:203.0.113.5]:80";
        expect(&world.agent("agent", &format!("{way} {mapped}"))?, v4, mapped)?;
    }
    // The peer of an MPTCP socket is the proxy's: its storage sits on the subflow. It must arrive all the same.
    let mptcp = world.agent("agent", &format!("mptcp {v4}"))?;
    ensure!(
        mptcp["reached"] == v4 || mptcp["error"] == libc::EPROTONOSUPPORT,
        "{mptcp}"
    );

    let ways = u64::try_from(ways.len())?;
    ensure!(
        proxy.counter("intercepted_v6") == ways,
        "{:?}",
        proxy.interceptor.status()
    );
    ensure!(
        proxy.counter("accepted_else") + proxy.counter("handover_failed") == 0,
        "{:?}",
        proxy.interceptor.status()
    );
    ensure!(
        proxy.counter("handed_over") >= 3 * ways,
        "{:?}",
        proxy.interceptor.status()
    );
    ensure!(proxy.counter("original_dst_answered") == proxy.counter("handed_over"));
    Ok(())
}

fn what_is_not_selected_is_not_touched(world: &World) -> Result<()> {
    world.serve_direct(&[80, 8080])?;
    let mut config = config(world);
    config.cidrs = ["203.0.113.0/28"].iter().flat_map(|net| net.parse()).collect();
    let proxy = Proxy::start(&config)?;
    for (cgroup, action, target) in [
        ("other", "connect", "203.0.113.5:80"),
        ("agent", "connect", "203.0.113.5:8080"),
        ("agent", "connect", "203.0.113.16:80"),
        ("agent", "connect", "[2001:db8::5]:80"),
        ("agent", "connect", "[::ffff:203.0.113.16]:80"),
        ("agent", "udp", "203.0.113.5:80"),
        ("agent", "connect", "127.0.0.1:80"),
        ("agent", "connect", "[::1]:80"),
    ] {
        expect(
            &world.agent(cgroup, &format!("{action} {target}"))?,
            DIRECT,
            target,
        )?;
    }
    ensure!(proxy.counter("intercepted_v4") + proxy.counter("intercepted_v6") == 0);
    ensure!(
        proxy.counter("not_selected_port") == 1,
        "{:?}",
        proxy.interceptor.status()
    );
    ensure!(
        proxy.counter("not_selected_destination") == 3,
        "{:?}",
        proxy.interceptor.status()
    );
    // In the Agent's cgroup, but its loopback is not ours.
    if proxy.interceptor.status().features.sockops_netns_cookie {
        for target in ["203.0.113.5:80", "203.0.113.5:443"] {
            expect(
                &world.agent("agent", &format!("elsewhere {target}"))?,
                DIRECT,
                target,
            )?;
        }
        ensure!(
            proxy.counter("other_netns") == 2,
            "{:?}",
            proxy.interceptor.status()
        );
    }
    // And the border is where it should be.
    expect(
        &world.agent("agent", "connect 203.0.113.15:80")?,
        "203.0.113.15:80",
        "203.0.113.15:80",
    )
}

fn the_proxy_does_not_intercept_itself(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    // A selector that is far too wide: the parent of everything here, our own cgroup included.
    world.make_cgroup("agent-fips-proxy.service")?;
    world.enter("agent-fips-proxy.service")?;
    let mut config = config(world);
    config.agent_cgroups = vec![
        world.selector("").trim_end_matches('/').to_owned(),
        world.selector("*"),
    ];
    let proxy = Proxy::start(&config)?;
    ensure!(
        proxy.own.path() == world.path("agent-fips-proxy.service"),
        "{:?}",
        proxy.own
    );

    let mut stream = TcpStream::connect("203.0.113.5:80")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text == DIRECT, "the proxy's own connection was taken: {text}");
    ensure!(stream.peer_addr()?.to_string() == "203.0.113.5:80");
    ensure!(proxy.counter("own") == 1, "{:?}", proxy.interceptor.status());
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )
}

fn a_reused_socket_is_not_told_the_old_peer(world: &World) -> Result<()> {
    world.serve_direct(&[80, 8080])?;
    let _proxy = Proxy::start(&config(world))?;
    expect(
        &world.agent("agent", "stale 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:8080",
    )?;
    expect(
        &world.agent("agent", "stale [2001:db8::5]:80")?,
        DIRECT,
        "[2001:db8::5]:8080",
    )
}

fn without_a_listener_closed_refuses(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut proxy = Proxy::start(&config(world))?;
    let none = Listeners { v4: None, v6: None };
    proxy.interceptor.set_listeners(none)?;
    let expected = refusal(&proxy);
    for action in ["connect", "nonblocking", "tfo-sendto", "tfo-connect"] {
        for target in ["203.0.113.5:80", "[2001:db8::5]:80", "[::ffff:203.0.113.5]:80"] {
            expect_error(&world.agent("agent", &format!("{action} {target}"))?, expected)?;
        }
    }
    ensure!(
        proxy.counter("refused_no_listener") == 12,
        "{:?}",
        proxy.interceptor.status()
    );
    // Each family by itself.
    let port = proxy.v4.local_addr()?.port();
    let v4 = Some((proxy.v4.as_fd(), port));
    proxy.interceptor.set_listeners(Listeners { v4, v6: None })?;
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    expect_error(&world.agent("agent", "connect [2001:db8::5]:80")?, expected)
}

/// What a refused connect sees on this kernel.
fn refusal(proxy: &Proxy) -> i32 {
    if proxy.interceptor.status().features.set_retval {
        libc::ECONNREFUSED
    } else {
        libc::EPERM
    }
}

fn without_a_listener_open_goes_direct(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    config.on_failure = OnFailure::Open;
    let mut proxy = Proxy::start(&config)?;
    let none = Listeners { v4: None, v6: None };
    proxy.interceptor.set_listeners(none)?;
    for target in ["203.0.113.5:80", "[2001:db8::5]:80"] {
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            DIRECT,
            target,
        )?;
    }
    ensure!(
        proxy.counter("open_no_listener") == 2,
        "{:?}",
        proxy.interceptor.status()
    );
    config.on_failure = OnFailure::Closed;
    proxy.interceptor.reconfigure(&config)?;
    expect_error(&world.agent("agent", "connect 203.0.113.5:80")?, refusal(&proxy))
}

fn a_socket_bound_to_a_device_follows_the_policy(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    let mut proxy = Proxy::start(&config)?;
    let start = Instant::now();
    expect_error(&world.agent("agent", "device 203.0.113.5:80")?, refusal(&proxy))?;
    ensure!(
        start.elapsed() < Duration::from_secs(3),
        "refused only after a time-out"
    );
    config.on_failure = OnFailure::Open;
    proxy.interceptor.reconfigure(&config)?;
    expect(
        &world.agent("agent", "device 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )?;
    ensure!(proxy.counter("refused_bound_device") == 1 && proxy.counter("open_bound_device") == 1);
    Ok(())
}

/// Another process that takes our port while we are down must not get the Agent's traffic.
fn an_unrelated_local_listener_cannot_catch(world: &World) -> Result<()> {
    let mut loader = start_loader(world)?;
    let taken = world.agent("agent", "connect 203.0.113.5:80")?;
    expect(&taken, "203.0.113.5:80", "203.0.113.5:80")?;
    let before = listening_ports()?;
    loader.kill()?;
    loader.wait()?;
    ensure!(!before.is_empty());
    for port in before {
        // Whoever comes first: exactly the situation.
        let thief = TcpListener::bind(("127.0.0.1", port)).or_else(|_| TcpListener::bind(("::1", port)))?;
        std::thread::spawn(move || {
            for stream in thief.incoming().flatten() {
                say(stream, "stolen");
            }
        });
    }
    let seen = world.agent("agent", "connect 203.0.113.5:80")?;
    ensure!(
        seen["error"] == libc::ECONNREFUSED || seen["error"] == libc::EPERM,
        "{seen}"
    );
    Ok(())
}

/// Ports in LISTEN in this network namespace.
fn listening_ports() -> Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        for line in fs::read_to_string(table)?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let (Some(local), Some(&"0A")) = (fields.get(1), fields.get(3))
                && let Some((_, port)) = local.rsplit_once(':')
            {
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

/// The hook runs on every getsockopt of the proxy: it must change no answer but its own.
fn getsockopt_is_otherwise_the_kernels(world: &World) -> Result<()> {
    let proxy = Proxy::start(&config(world))?;
    let direct = TcpStream::connect(proxy.v4.local_addr()?)?;
    let (accepted, _) = {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let _client = TcpStream::connect(listener.local_addr()?)?;
        listener.accept()?
    };
    for stream in [&direct, &accepted] {
        let error = original(stream)
            .err()
            .context("an original destination out of nowhere")?;
        ensure!(
            matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOPROTOOPT)),
            "the kernel's answer was changed: {error}"
        );
        ensure!(!SockRef::from(stream).tcp_nodelay()?);
        stream.set_nodelay(true)?;
        ensure!(SockRef::from(stream).tcp_nodelay()?);
        ensure!(SockRef::from(stream).recv_buffer_size()? > 0);
        ensure!(stream.take_error()?.is_none());
        // A buffer larger than the page that the hook sees: length and content must stay the kernel's.
        let length = tcp_info_length(stream, 3 * 4096)?;
        ensure!((100..4096).contains(&length), "TCP_INFO of {length} bytes");
    }
    Ok(())
}

/// Asks for `TCP_INFO` with a buffer of this size; how much came.
fn tcp_info_length(stream: &TcpStream, size: u32) -> Result<u32> {
    let mut buffer = vec![0_u8; usize::try_from(size)?];
    let mut length = size;
    // SAFETY: buffer and length are live and agree. std has no such option.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(stream),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(
        result == 0,
        "getsockopt(TCP_INFO): {}",
        std::io::Error::last_os_error()
    );
    Ok(length)
}

fn a_killed_loader_leaves_the_policy_in_force(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut first = start_loader(world)?;
    let (v4, v6) = ("203.0.113.5:80", "[2001:db8::5]:80");
    expect(&world.agent("agent", &format!("connect {v4}"))?, v4, v4)?;
    // SIGKILL: nothing of it can clean up.
    first.kill()?;
    first.wait()?;
    for target in [v4, v6] {
        let seen = world.agent("agent", &format!("connect {target}"))?;
        ensure!(
            seen["error"] == libc::ECONNREFUSED || seen["error"] == libc::EPERM,
            "{seen}"
        );
    }
    let second = Proxy::start(&config(world))?;
    for target in [v4, v6] {
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            target,
            target,
        )?;
    }
    // One set of links, not two.
    ensure!(second.interceptor.status().agents.len() == 1);
    let left = format!("/agent-fips-proxy-{}", first.id());
    let cgroups = intercept::Cgroup2::find()?;
    ensure!(
        !cgroups.directory(Path::new(&left)).exists(),
        "{left} of the killed loader is still there"
    );
    Ok(())
}

fn an_upgrade_under_load_misses_nothing(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let old = Proxy::start(&config(world))?;
    let stop = std::env::temp_dir().join(format!("afp-datapath-stop-{}", std::process::id()));
    let client = world.start_agent("agent", &format!("until {}", stop.display()))?;
    std::thread::sleep(Duration::from_millis(300));
    // Three upgrades in a row, each a new process beside the one before.
    let mut previous: Option<Child> = None;
    let mut old = Some(old);
    for _ in 0..3 {
        let next = start_loader(world)?;
        std::thread::sleep(Duration::from_millis(200));
        if let Some(old) = old.take() {
            old.interceptor.leave(true)?;
        }
        if let Some(mut child) = previous.replace(next) {
            drop(child.stdin.take());
            ensure!(child.wait()?.success());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    fs::write(&stop, "")?;
    let output = client.wait_with_output();
    fs::remove_file(&stop)?;
    if let Some(mut child) = previous {
        drop(child.stdin.take());
        child.wait()?;
    }
    let seen = answer("until", &output?)?;
    ensure!(seen["wrong"] == 0, "{seen}");
    ensure!(seen["connections"].as_u64() > Some(200), "hardly a load: {seen}");
    Ok(())
}

fn recycled_ports_never_mix_destinations(world: &World) -> Result<()> {
    // 128 client ports for 20,000 connections.
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40127")?;
    let proxy = Proxy::start(&config(world))?;
    let seen = world.agent("agent", "load 20000 8")?;
    ensure!(seen["wrong"] == 0 && seen["connections"] == 20_000, "{seen}");
    ensure!(
        proxy.counter("accepted_else") + proxy.counter("handover_failed") == 0,
        "{:?}",
        proxy.interceptor.status()
    );
    ensure!(proxy.counter("intercepted_v4") + proxy.counter("intercepted_v6") == 20_000);
    ensure!(
        proxy.counter("handed_over") == 20_000,
        "{:?}",
        proxy.interceptor.status()
    );
    Ok(())
}

fn an_agent_that_starts_later_is_found(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    // A parent that does not exist yet, either.
    config.agent_cgroups = vec![
        world.selector("late.slice/agent*"),
        world.selector("deep/**/agent*"),
    ];
    let mut proxy = Proxy::start(&config)?;
    ensure!(proxy.interceptor.status().agents.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut watcher = runtime.block_on(async { AgentWatcher::new(&config.agent_cgroups) })?;
    for name in ["late.slice/agent-1", "late.slice/agent-2", "deep/a/b/agent"] {
        let start = Instant::now();
        let made = world.path(name);
        std::thread::scope(|scope| -> Result<()> {
            let maker = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                world.make_cgroup(name).map(|()| Instant::now())
            });
            // Well below the periodic scan: inotify must have told.
            runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(3), watcher.changed()).await
            })??;
            let changes = proxy.interceptor.sync_agents()?;
            let made_at = maker.join().map_err(|_| anyhow::anyhow!("maker"))??;
            ensure!(changes.attached == [made.clone()], "{changes:?}");
            ensure!(
                made_at.elapsed() < Duration::from_millis(500),
                "attached only after {:?}",
                start.elapsed()
            );
            Ok(())
        })?;
        expect(
            &world.agent(name, "connect 203.0.113.5:80")?,
            "203.0.113.5:80",
            "203.0.113.5:80",
        )?;
    }
    world.remove_cgroup("late.slice/agent-1")?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(3), watcher.changed()).await })??;
    let changes = proxy.interceptor.sync_agents()?;
    ensure!(
        changes.detached == [world.path("late.slice/agent-1")],
        "{changes:?}"
    );
    let status = proxy.interceptor.status();
    ensure!(
        status.agents.len() == 2 && fs::read_dir(status.pins.join("links"))?.count() == 2,
        "{status:?}"
    );
    ensure!(status.agents.iter().all(|agent| agent.since <= SystemTime::now()));
    Ok(())
}

fn the_switch_detaches_and_attaches(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut proxy = Proxy::start(&config(world))?;
    let attached = own_link_count();
    let target = "203.0.113.5:80";
    for _ in 0..3 {
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            target,
            target,
        )?;
        proxy.interceptor.set_attached(false)?;
        ensure!(!proxy.interceptor.attached() && !proxy.interceptor.status().attached);
        ensure!(
            own_link_count() == attached - 7,
            "links are left: {}",
            own_link_count()
        );
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            DIRECT,
            target,
        )?;
        ensure!(
            proxy.interceptor.sync_agents()?.attached.is_empty(),
            "a scan must not switch it on"
        );
        proxy.interceptor.set_attached(true)?;
        ensure!(own_link_count() == attached);
    }
    Ok(())
}

/// Links that this process or its pins hold. Not all of the kernel's: other scenarios run at the same time.
fn own_link_count() -> usize {
    let pinned = walk(Path::new("/sys/fs/bpf/agent-fips-proxy/v1/links"));
    let open = fs::read_dir("/proc/self/fd")
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| {
                    fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("bpf_link"))
                })
                .count()
        })
        .unwrap_or_default();
    pinned + open
}

/// Files below a directory.
fn walk(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path()),
            _ => 1,
        })
        .sum()
}

fn learnt_destinations_survive_a_restart(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    config.cidrs.clear();
    let mut first = Proxy::start(&config)?;
    let (v4, v6) = ("203.0.113.5:80", "[2001:db8::5]:80");
    expect(&world.agent("agent", &format!("connect {v4}"))?, DIRECT, v4)?;
    let ttl = Duration::from_secs(30);
    first
        .interceptor
        .add_destinations(&[("203.0.113.5".parse()?, ttl), ("2001:db8::5".parse()?, ttl)])?;
    for target in [v4, v6] {
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            target,
            target,
        )?;
    }
    first.interceptor.leave(true)?;
    let second = Proxy::start(&config)?;
    ensure!(second.interceptor.status().destinations == 2);
    for target in [v4, v6] {
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            target,
            target,
        )?;
    }
    expect(
        &world.agent("agent", "connect 203.0.113.6:80")?,
        DIRECT,
        "203.0.113.6:80",
    )
}

fn pins_of_another_version_are_replaced(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let first = Proxy::start(&config(world))?;
    let maps = first.interceptor.status().pins.join("maps");
    first.interceptor.leave(true)?;
    // A map of another layout in the place of the counters.
    fs::remove_file(maps.join("COUNTERS"))?;
    fs::rename(maps.join("PREFIX4"), maps.join("COUNTERS"))?;
    let second = Proxy::start(&config(world))?;
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    ensure!(
        second.counter("intercepted_v4") == 1,
        "{:?}",
        second.interceptor.status()
    );
    Ok(())
}

fn without_a_bpffs_one_is_mounted(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    umount("/sys/fs/bpf")?;
    // In this mount namespace only: the host's /run is not touched.
    let none: Option<&str> = None;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    ensure!(intercept::uninstall()?.directories.is_empty());

    let first = Proxy::start(&config(world))?;
    ensure!(
        first.interceptor.status().pins.starts_with(intercept::OWN_BPFFS),
        "{:?}",
        first.interceptor.status()
    );
    let mode = fs::metadata(intercept::OWN_BPFFS)?.permissions().mode();
    ensure!(mode & 0o777 == 0o700, "{mode:o}");
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    first.interceptor.leave(true)?;
    // The next one finds the same place.
    let second = Proxy::start(&config(world))?;
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    second.interceptor.leave(false)?;
    ensure!(!Path::new(intercept::OWN_BPFFS).exists(), "the mount is left");
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )
}

/// Also shows that the verifier takes the programs with logging compiled in.
fn the_programs_log_reaches_tracing(world: &World) -> Result<()> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = Lines(Arc::clone(&lines));
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let mut proxy = Proxy::start(&config(world))?;
    let mut log = proxy
        .interceptor
        .take_kernel_log()
        .context("no log although debug is on")?;
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    proxy
        .interceptor
        .set_listeners(Listeners { v4: None, v6: None })?;
    expect_error(
        &world.agent("agent", "connect [2001:db8::5]:443")?,
        refusal(&proxy),
    )?;
    log.drain();
    let text = String::from_utf8(lines.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.clone())?;
    for part in [
        "DEBUG agent_fips_proxy::intercept::kernel: intercepted connect to [::ffff:203.0.113.5]:80",
        "refused connect to [2001:db8::5]:443",
    ] {
        ensure!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    Ok(())
}

/// Where the log goes.
#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Ok(mut lines) = self.0.lock() {
            lines.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn a_missing_privilege_is_named(world: &World) -> Result<()> {
    let before = preflight::checks();
    ensure!(preflight::obstacle(&before).is_none(), "{before:?}");
    let own = Interceptor::enter_own_cgroup()?;
    nix::unistd::setuid(nix::unistd::Uid::from_raw(65534))?;
    let rows = preflight::checks();
    let obstacle = preflight::obstacle(&rows).context("no obstacle without any capability")?;
    ensure!(
        obstacle
            .capability
            .as_deref()
            .is_some_and(|text| text.starts_with("CAP_BPF (bpf(")),
        "{obstacle:?}"
    );
    let error = Interceptor::load(&config(world), &own)
        .err()
        .context("loaded without any capability")?;
    ensure!(
        error.kind() == ErrorKind::Privilege,
        "{:?}: {error}",
        error.kind()
    );
    ensure!(error.to_string().contains("CAP_BPF"), "{error}");
    // Moving back out needs root too; the clean-up of the suite removes the cgroup.
    std::mem::forget(own);
    Ok(())
}

/// Where a bpffs is mounted, what `preflight` asks for is enough: no CAP_SYS_ADMIN, no CAP_PERFMON.
fn three_capabilities_suffice(world: &World) -> Result<()> {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--inh-caps=-all",
            "--bounding-set=-all,+bpf,+net_admin,+dac_override",
            "--",
        ])
        .arg(std::env::current_exe()?);
    let mut loader = spawn_loader(world, command)?;
    let status = fs::read_to_string(format!("/proc/{}/status", loader.id()))?;
    // CAP_DAC_OVERRIDE is bit 1, CAP_NET_ADMIN 12, CAP_BPF 39.
    ensure!(status.contains("CapEff:\t0000008000001002"), "{status}");
    for target in ["203.0.113.5:80", "[2001:db8::5]:443"] {
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            target,
            target,
        )?;
    }
    loader.kill()?;
    loader.wait()?;
    Ok(())
}

fn uninstall_leaves_nothing(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut loader = start_loader(world)?;
    let ids = pinned_ids(Path::new("/sys/fs/bpf/agent-fips-proxy/v1"))?;
    ensure!(
        ids.links.len() == 5 && ids.programs.len() == 5 && ids.maps.len() == 8,
        "{ids:?}"
    );
    ensure!(ids.alive() == 18, "{ids:?}");
    loader.kill()?;
    loader.wait()?;
    ensure!(ids.alive() == 18, "what is pinned outlives its loader: {ids:?}");
    let report = intercept::uninstall()?;
    ensure!(report.links.len() == 5 && report.maps.len() == 8, "{report:?}");
    ensure!(
        report
            .cgroups
            .iter()
            .any(|path| path.ends_with(format!("agent-fips-proxy-{}", loader.id())))
    );
    ensure!(!Path::new("/sys/fs/bpf/agent-fips-proxy").exists(), "{report:?}");
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )?;
    // The kernel frees programs and maps a moment after their last reference.
    let start = Instant::now();
    while ids.alive() > 0 {
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "{} of {ids:?} are left in the kernel",
            ids.alive()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let again = intercept::uninstall()?;
    ensure!(
        again.links.is_empty() && again.maps.is_empty() && again.directories.is_empty(),
        "{again:?}"
    );
    Ok(())
}

/// Kernel ids of what is pinned: other scenarios have programs of the same names at the same time.
#[derive(Debug, Default)]
struct Ids {
    links: BTreeSet<u32>,
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Ids {
    /// How many of them the kernel still knows.
    fn alive(&self) -> usize {
        let links = loaded_links()
            .flatten()
            .filter(|link| self.links.contains(&link.id()))
            .count();
        let programs = loaded_programs()
            .flatten()
            .filter(|program| self.programs.contains(&program.id()))
            .count();
        let maps = loaded_maps()
            .flatten()
            .filter(|map| self.maps.contains(&map.id()))
            .count();
        links + programs + maps
    }
}

fn pinned_ids(root: &Path) -> Result<Ids> {
    let mut ids = Ids::default();
    for cgroup in fs::read_dir(root.join("links"))?.flatten() {
        for pin in fs::read_dir(cgroup.path())?.flatten() {
            let info = FdLink::from(PinnedLink::from_pin(pin.path())?).info()?;
            ids.links.insert(info.id());
            ids.programs.insert(info.program_id());
        }
    }
    for pin in fs::read_dir(root.join("maps"))?.flatten() {
        ids.maps.insert(MapInfo::from_pin(pin.path())?.id());
    }
    Ok(ids)
}

fn an_uninstall_beneath_a_running_proxy_is_respected(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut proxy = Proxy::start(&config(world))?;
    let target = "203.0.113.5:80";
    intercept::uninstall()?;
    expect(
        &world.agent("agent", &format!("connect {target}"))?,
        DIRECT,
        target,
    )?;
    let changes = proxy.interceptor.sync_agents()?;
    ensure!(
        changes.detached.len() == 1 && !proxy.interceptor.attached(),
        "{changes:?}"
    );
    // Until somebody asks for it again.
    proxy.interceptor.set_attached(true)?;
    expect(
        &world.agent("agent", &format!("connect {target}"))?,
        target,
        target,
    )?;
    proxy.interceptor.leave(false)?;
    ensure!(
        !Path::new("/sys/fs/bpf/agent-fips-proxy").exists(),
        "leave(false) left pins"
    );
    Ok(())
}
