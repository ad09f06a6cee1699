//! The scenarios. Each runs in a process and a world of its own; the proxy side lives in that process.

mod connections;
mod host;
mod leaks;
mod lifetime;
mod namespaces;
mod network;
mod packets;
mod process;
mod sets;

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

use agent_fips_proxy::config::{Config, Datapath, Intercept, OnFailure};
use agent_fips_proxy::intercept::{
    self, AgentWatcher, ErrorKind, Interceptor, Leave, Listeners, OwnCgroup, PinDirectory, preflight,
};
use agent_fips_proxy::relay::noted_original_dst;
use anyhow::{Context, Result, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{loaded_links, loaded_programs};
use harness::suite::Need;
use nix::libc;
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;
use socket2::SockRef;

use crate::ROLE;
use crate::world::{DIRECT, World, answer, say};

type Scenario = fn(&World) -> Result<()>;

/// Every scenario by name.
pub const ALL: &[(&str, Scenario)] = &[
    (
        "every_way_to_connect_is_taken",
        connections::every_way_to_connect_is_taken,
    ),
    (
        "what_is_not_selected_is_not_touched",
        connections::what_is_not_selected_is_not_touched,
    ),
    (
        "the_proxy_does_not_intercept_itself",
        connections::the_proxy_does_not_intercept_itself,
    ),
    (
        "a_reused_socket_is_not_told_the_old_peer",
        connections::a_reused_socket_is_not_told_the_old_peer,
    ),
    (
        "without_a_listener_closed_refuses",
        connections::without_a_listener_closed_refuses,
    ),
    (
        "without_a_listener_open_goes_direct",
        connections::without_a_listener_open_goes_direct,
    ),
    (
        "a_socket_bound_to_a_device_follows_the_policy",
        connections::a_socket_bound_to_a_device_follows_the_policy,
    ),
    (
        "whoever_goes_around_us_is_counted",
        leaks::whoever_goes_around_us_is_counted,
    ),
    (
        "the_programs_of_two_versions_count_once",
        leaks::the_programs_of_two_versions_count_once,
    ),
    (
        "a_leak_without_memory_for_its_note_is_counted",
        leaks::a_leak_without_memory_for_its_note_is_counted,
    ),
    (
        "what_was_open_before_is_counted_once",
        leaks::what_was_open_before_is_counted_once,
    ),
    (
        "what_was_open_before_is_reset_when_asked",
        leaks::what_was_open_before_is_reset_when_asked,
    ),
    (
        "an_address_that_is_learnt_late_is_found_out",
        leaks::an_address_that_is_learnt_late_is_found_out,
    ),
    (
        "an_unrelated_local_listener_cannot_catch",
        connections::an_unrelated_local_listener_cannot_catch,
    ),
    (
        "getsockopt_is_otherwise_the_kernels",
        connections::getsockopt_is_otherwise_the_kernels,
    ),
    (
        "a_taken_connection_tells_who_connected",
        process::a_taken_connection_tells_who_connected,
    ),
    (
        "an_inherited_socket_tells_who_connected_it",
        process::an_inherited_socket_tells_who_connected_it,
    ),
    (
        "what_nobody_took_tells_no_process",
        process::what_nobody_took_tells_no_process,
    ),
    (
        "the_peers_of_unix_sockets_are_the_kernels",
        process::the_peers_of_unix_sockets_are_the_kernels,
    ),
    (
        "a_process_without_rights_may_ask",
        process::a_process_without_rights_may_ask,
    ),
    (
        "processes_are_told_apart_across_pid_namespaces",
        process::processes_are_told_apart_across_pid_namespaces,
    ),
    (
        "a_killed_loader_leaves_the_policy_in_force",
        lifetime::a_killed_loader_leaves_the_policy_in_force,
    ),
    (
        "hooks_wait_until_the_pods_are_known",
        lifetime::hooks_wait_until_the_pods_are_known,
    ),
    (
        "an_upgrade_under_load_misses_nothing",
        lifetime::an_upgrade_under_load_misses_nothing,
    ),
    (
        "recycled_ports_never_mix_destinations",
        lifetime::recycled_ports_never_mix_destinations,
    ),
    (
        "an_agent_that_starts_later_is_found",
        lifetime::an_agent_that_starts_later_is_found,
    ),
    (
        "the_switch_detaches_and_attaches",
        lifetime::the_switch_detaches_and_attaches,
    ),
    (
        "learnt_destinations_survive_a_restart",
        lifetime::learnt_destinations_survive_a_restart,
    ),
    (
        "pins_of_another_version_are_replaced",
        lifetime::pins_of_another_version_are_replaced,
    ),
    (
        "maps_that_programs_only_read_say_so",
        lifetime::maps_that_programs_only_read_say_so,
    ),
    (
        "what_another_layout_pinned_is_removed",
        lifetime::what_another_layout_pinned_is_removed,
    ),
    (
        "without_a_bpffs_one_is_mounted",
        host::without_a_bpffs_one_is_mounted,
    ),
    (
        "the_programs_log_reaches_tracing",
        host::the_programs_log_reaches_tracing,
    ),
    ("a_missing_privilege_is_named", host::a_missing_privilege_is_named),
    ("three_capabilities_suffice", host::three_capabilities_suffice),
    (
        "three_capabilities_suffice_to_log",
        host::three_capabilities_suffice_to_log,
    ),
    (
        "too_little_locked_memory_is_named",
        host::too_little_locked_memory_is_named,
    ),
    ("uninstall_leaves_nothing", host::uninstall_leaves_nothing),
    (
        "an_uninstall_beneath_a_running_proxy_is_respected",
        host::an_uninstall_beneath_a_running_proxy_is_respected,
    ),
    (
        "work_in_a_namespace_comes_home",
        namespaces::work_in_a_namespace_comes_home,
    ),
    (
        "an_agent_in_a_namespace_reaches_the_listener_there",
        namespaces::an_agent_in_a_namespace_reaches_the_listener_there,
    ),
    (
        "equal_tuples_of_two_namespaces_are_kept_apart",
        namespaces::equal_tuples_of_two_namespaces_are_kept_apart,
    ),
    (
        "an_unknown_namespace_follows_the_policy",
        namespaces::an_unknown_namespace_follows_the_policy,
    ),
    (
        "the_cookie_probe_agrees_with_the_socket_option",
        namespaces::the_cookie_probe_agrees_with_the_socket_option,
    ),
    (
        "a_namespace_without_loopback_is_waited_for",
        namespaces::a_namespace_without_loopback_is_waited_for,
    ),
    (
        "every_socket_of_a_pod_is_used",
        sets::every_socket_of_a_pod_is_used,
    ),
    (
        "every_socket_of_an_interface_is_used",
        sets::every_socket_of_an_interface_is_used,
    ),
    (
        "slots_of_others_are_left_alone",
        namespaces::slots_of_others_are_left_alone,
    ),
    (
        "packets_reach_the_listener_by_tcx",
        packets::packets_reach_the_listener_by_tcx,
    ),
    (
        "packets_reach_the_listener_by_clsact",
        packets::packets_reach_the_listener_by_clsact,
    ),
    (
        "our_own_connection_in_a_pod_is_left_alone",
        packets::our_own_connection_in_a_pod_is_left_alone,
    ),
    (
        "without_a_listener_packets_follow_the_policy",
        packets::without_a_listener_packets_follow_the_policy,
    ),
    (
        "nothing_leaves_after_the_listener_was_killed",
        packets::nothing_leaves_after_the_listener_was_killed,
    ),
    (
        "without_our_rule_packets_follow_the_policy",
        packets::without_our_rule_packets_follow_the_policy,
    ),
];

/// What a scenario needs. Most need what all do.
pub fn needs(name: &str) -> &'static [Need] {
    match name {
        "packets_reach_the_listener_by_tcx" => &[Need::Bpf, Need::Linux(6, 6, "TCX")],
        "a_leak_without_memory_for_its_note_is_counted" => &[
            Need::Bpf,
            Need::Linux(6, 7, "net.core.optmem_max of each network namespace"),
        ],
        _ => &[Need::Bpf],
    }
}

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

pub use network::acceptor;
pub use process::asker;

/// Sockets of each listener that is made for an Agent's network: as for a worker with two data threads.
const SOCKETS: usize = 2;

/// What a connection without an original destination is told.
const LOST: &str = "lost";

impl Proxy {
    /// Loads, listens and attaches.
    fn start(config: &Intercept) -> Result<Self> {
        let mut this = Self::load(config)?;
        this.switch_on()?;
        Ok(this)
    }

    /// Loads and listens; who switches it on decides when.
    fn load(config: &Intercept) -> Result<Self> {
        let this = Self::silent(config)?;
        for listener in [&this.v4, &this.v6] {
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
        Ok(this)
    }

    /// Loads and listens, but accepts nothing by itself.
    fn silent(config: &Intercept) -> Result<Self> {
        let own = Interceptor::enter_own_cgroup()?;
        let v4 = TcpListener::bind("127.0.0.1:0")?;
        let v6 = TcpListener::bind("[::1]:0")?;
        let interceptor = Interceptor::load(config, &own, SOCKETS)?;
        Ok(Self {
            interceptor,
            v4,
            v6,
            own,
        })
    }

    /// Attaches, with the listeners.
    fn switch_on(&mut self) -> Result<()> {
        self.set_listeners()?;
        self.interceptor.switch_on()?;
        Ok(())
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

/// Leaked connections by Agent and reason, freshly counted.
fn leaked(proxy: &mut Proxy) -> Vec<(String, String, u64)> {
    proxy.interceptor.account();
    let status = proxy.interceptor.status();
    let leaked = status.leaked.into_iter();
    leaked
        .map(|leak| (leak.agent, leak.reason, leak.connections))
        .collect()
}

/// Exactly these leaks of the Agent in the cgroup `agent`, by reason.
fn expect_leaks(world: &World, proxy: &mut Proxy, expected: &[(&str, u64)]) -> Result<()> {
    let agent = format!("cgroup {}", world.path("agent").display());
    let expected: Vec<_> = expected
        .iter()
        .map(|(reason, count)| (agent.clone(), (*reason).to_owned(), *count))
        .collect();
    let found = leaked(proxy);
    ensure!(found == expected, "leaks {found:?}, expected {expected:?}");
    Ok(())
}

/// Asked as any proxy behind an iptables REDIRECT asks, and as ours does: both are told the same, or that there is nothing.
fn original(stream: &TcpStream) -> std::io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let netfilters = as_netfilter(stream, local);
    let ours = noted_original_dst(stream);
    let told = |answer: &std::io::Result<SocketAddr>| {
        answer
            .as_ref()
            .ok()
            .map(|address| (address.ip().to_canonical(), address.port()))
    };
    if told(&ours) != told(&netfilters) {
        return Err(std::io::Error::other(format!(
            "asked in two ways: {ours:?} and {netfilters:?}"
        )));
    }
    netfilters
}

fn as_netfilter(stream: &TcpStream, local: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let answer = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    }?;
    answer
        .as_socket()
        .ok_or_else(|| std::io::Error::other("no IP address"))
}

fn config(world: &World) -> Intercept {
    intercepting(world.selector("agent*"))
}

fn intercepting(selector: String) -> Intercept {
    let mut config = Config::default().intercept;
    config.requested = true;
    config.datapath = Datapath::Cgroup;
    config.agents.cgroups = vec![selector];
    config.cidrs = ["203.0.113.0/24", "2001:db8::/64"]
        .iter()
        .flat_map(|net| net.parse())
        .collect();
    config
}

/// A loader in a process of its own: `<selector>`; says "ready" and lives until its standard input closes.
pub fn loader(selector: &str) -> Result<()> {
    if std::env::var_os(LOADER_LOG).is_some() {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(std::io::sink)
            .init();
    }
    let config = intercepting(selector.to_owned());
    let proxy = Proxy::start(&config)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    proxy.interceptor.leave(Leave::Policy)?;
    drop(proxy.own);
    Ok(())
}

/// Set for a loader that loads the programs with their log.
const LOADER_LOG: &str = "AFP_DATAPATH_LOG";

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

/// What a refused connect sees on this kernel.
fn refusal(proxy: &Proxy) -> i32 {
    if proxy.interceptor.status().features.set_retval {
        libc::ECONNREFUSED
    } else {
        libc::EPERM
    }
}
