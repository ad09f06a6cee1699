//! What outlives a process, and what follows Agents as they come and go.

use harness::vendor;

use super::*;

pub(super) fn a_killed_loader_leaves_the_policy_in_force(world: &World) -> Result<()> {
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

/// An Agent that only Kubernetes names: until it was asked, the next process leaves in force what the last one left.
pub(super) fn hooks_wait_until_the_pods_are_known(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let target = "203.0.113.5:80";
    Proxy::start(&config(world))?.interceptor.leave(Leave::Policy)?;
    let mut config = config(world);
    config.agents.cgroups.clear();
    let mut proxy = Proxy::start(&config)?;
    for _ in 0..2 {
        expect(
            &world.agent("agent", &format!("connect {target}"))?,
            target,
            target,
        )?;
        ensure!(proxy.interceptor.sync().failed.is_empty());
    }
    proxy.interceptor.set_pods(Vec::new());
    ensure!(proxy.interceptor.sync().failed.is_empty());
    // The kernel detaches a link some time after its last pin is gone (`bpf_link_put` leaves it to a worker).
    let start = Instant::now();
    loop {
        let seen = world.agent("agent", &format!("connect {target}"))?;
        let direct = expect(&seen, DIRECT, target);
        if direct.is_ok() || start.elapsed() > crate::seconds(5) {
            return direct;
        }
    }
}

pub(super) fn an_upgrade_under_load_misses_nothing(world: &World) -> Result<()> {
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
            old.interceptor.leave(Leave::Policy)?;
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

pub(super) fn recycled_ports_never_mix_destinations(world: &World) -> Result<()> {
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

pub(super) fn an_agent_that_starts_later_is_found(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    // A parent that does not exist yet, either.
    config.agents.cgroups = vec![
        world.selector("late.slice/agent*"),
        world.selector("deep/**/agent*"),
    ];
    let mut proxy = Proxy::start(&config)?;
    ensure!(proxy.interceptor.status().agents.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut watcher = runtime.block_on(async { AgentWatcher::new(&config.agents.cgroups) })?;
    for name in ["late.slice/agent-1", "late.slice/agent-2", "deep/a/b/agent"] {
        let start = Instant::now();
        let made = world.path(name);
        std::thread::scope(|scope| -> Result<()> {
            let maker = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                world.make_cgroup(name).map(|()| Instant::now())
            });
            // Well below the periodic scan: inotify must have told.
            runtime
                .block_on(async { tokio::time::timeout(crate::seconds(3), watcher.changed()).await })??;
            let changes = proxy.interceptor.sync();
            let made_at = maker.join().map_err(|_| anyhow::anyhow!("maker"))??;
            ensure!(
                changes.taken.iter().flat_map(|agent| &agent.cgroups).eq([&made]),
                "{changes:?}"
            );
            ensure!(
                made_at.elapsed() < crate::seconds(1) / 2,
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
    runtime.block_on(async { tokio::time::timeout(crate::seconds(3), watcher.changed()).await })??;
    let changes = proxy.interceptor.sync();
    ensure!(
        changes
            .gone
            .iter()
            .flat_map(|agent| &agent.cgroups)
            .eq([&world.path("late.slice/agent-1")]),
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

pub(super) fn the_switch_detaches_and_attaches(world: &World) -> Result<()> {
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
        proxy.interceptor.switch_off(Duration::ZERO);
        ensure!(!proxy.interceptor.attached() && proxy.interceptor.status().agents.is_empty());
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
            proxy.interceptor.sync().is_empty(),
            "a scan must not switch it on"
        );
        proxy.interceptor.switch_on()?;
        ensure!(own_link_count() == attached);
    }
    Ok(())
}

/// Links that this process or its pins hold. Not all of the kernel's: other scenarios run at the same time.
fn own_link_count() -> usize {
    let pinned = PinDirectory::find().map_or(0, |pins| walk(&pins.links()));
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

pub(super) fn learnt_destinations_survive_a_restart(world: &World) -> Result<()> {
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
    first.interceptor.leave(Leave::Policy)?;
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

pub(super) fn pins_of_another_version_are_replaced(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let first = Proxy::start(&config(world))?;
    let maps = first.interceptor.status().pins.join("maps");
    first.interceptor.leave(Leave::Policy)?;
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
    second.interceptor.leave(Leave::Policy)?;

    // The same but for its flags: programs may write it (BPF_F_NO_PREALLOC without BPF_F_RDONLY_PROG).
    let settings = maps.join("SETTINGS");
    let whole = MapInfo::from_pin(&settings)?;
    fs::remove_file(&settings)?;
    vendor::pin_hash(&settings, whole.key_size(), whole.value_size(), 1)?;
    let third = Proxy::start(&config(world))?;
    ensure!(
        MapInfo::from_pin(&settings)?.map_flags() == whole.map_flags(),
        "a map that programs may write is in use"
    );
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    ensure!(third.counter("intercepted_v4") == 1, "the old counts are left");
    Ok(())
}

/// The kernel refuses a program that would write to them, whoever loads it.
pub(super) fn maps_that_programs_only_read_say_so(world: &World) -> Result<()> {
    const BPF_F_RDONLY_PROG: u32 = 1 << 7;
    let proxy = Proxy::start(&config(world))?;
    let maps = proxy.interceptor.status().pins.join("maps");
    let mut read_only = BTreeSet::new();
    for entry in fs::read_dir(&maps)?.flatten() {
        if MapInfo::from_pin(entry.path())?.map_flags() & BPF_F_RDONLY_PROG != 0 {
            read_only.insert(entry.file_name().into_string().unwrap_or_default());
        }
    }
    let expected = ["NAMESPACES", "PREFIX4", "PREFIX6", "SETTINGS"];
    ensure!(read_only.iter().eq(expected), "{read_only:?}");
    let mode = fs::metadata(maps)?.permissions().mode();
    ensure!(mode & 0o777 == 0o700, "{mode:o}");
    Ok(())
}

/// An upgrade or a downgrade to another layout of the maps: the hooks of the other one have no listener any more.
pub(super) fn what_another_layout_pinned_is_removed(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let own = Path::new("/sys/fs/bpf/agent-fips-proxy");
    let current = PinDirectory::find().context("no bpffs")?.root();
    let target = "203.0.113.5:80";
    let mut loader = start_loader(world)?;
    loader.kill()?;
    loader.wait()?;
    fs::rename(&current, own.join("v1"))?;
    let seen = world.agent("agent", &format!("connect {target}"))?;
    ensure!(!seen["error"].is_null(), "the old hooks are not in force: {seen}");

    let proxy = Proxy::start(&config(world))?;
    ensure!(!own.join("v1").exists(), "v1 is left");
    let seen = world.agent("agent", &format!("connect {target}"))?;
    expect(&seen, target, target)?;

    proxy.interceptor.leave(Leave::Policy)?;
    fs::rename(&current, own.join("v1"))?;
    let report = intercept::uninstall()?;
    ensure!(report.links.len() == 5 && report.maps.len() == 16, "{report:?}");
    ensure!(!own.exists(), "{report:?}");
    let seen = world.agent("agent", &format!("connect {target}"))?;
    expect(&seen, DIRECT, target)
}
