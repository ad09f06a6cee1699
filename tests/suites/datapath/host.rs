//! What the host has and allows, and what is left on it.

use super::*;

pub(super) fn without_a_bpffs_one_is_mounted(world: &World) -> Result<()> {
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
    first.interceptor.leave(Leave::Policy)?;
    // The next one finds the same place.
    let second = Proxy::start(&config(world))?;
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    second.interceptor.leave(Leave::Nothing)?;
    ensure!(!Path::new(intercept::OWN_BPFFS).exists(), "the mount is left");
    expect(
        &world.agent("agent", "connect 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )
}

/// Also shows that the verifier takes the programs with logging compiled in.
pub(super) fn the_programs_log_reaches_tracing(world: &World) -> Result<()> {
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

pub(super) fn a_missing_privilege_is_named(world: &World) -> Result<()> {
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
    let error = Interceptor::load(&config(world), &own, SOCKETS)
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
pub(super) fn three_capabilities_suffice(world: &World) -> Result<()> {
    with_three_capabilities(world, false)
}

/// Nor for debug logging: there the verifier sees code that is dead otherwise.
pub(super) fn three_capabilities_suffice_to_log(world: &World) -> Result<()> {
    with_three_capabilities(world, true)
}

/// Where `preflight` asks for CAP_PERFMON too.
fn before_5_18() -> bool {
    preflight::checks().iter().any(|row| row.name == "CAP_PERFMON")
}

/// A command that goes on as the test's own program with three capabilities, and with this limit of locked memory where
/// that counts (before 5.11: `preflight` has a row for it).
fn three_capabilities(locked_memory: &str) -> Result<Command> {
    let limited = preflight::checks().iter().any(|row| row.name == "locked memory");
    let mut command = Command::new(if limited { "prlimit" } else { "setpriv" });
    if limited {
        command.args([&format!("--memlock={locked_memory}:{locked_memory}"), "setpriv"]);
    }
    let perfmon = if before_5_18() { ",+perfmon" } else { "" };
    let bounding = format!("--bounding-set=-all,+bpf,+net_admin,+dac_override{perfmon}");
    command
        .args(["--inh-caps=-all", &bounding, "--"])
        .arg(std::env::current_exe()?);
    Ok(command)
}

/// Before Linux 5.11 the usual limit is too small; the error says what to do.
pub(super) fn too_little_locked_memory_is_named(world: &World) -> Result<()> {
    let limited = preflight::checks().iter().any(|row| row.name == "locked memory");
    let output = three_capabilities("65536")?
        .env(ROLE, format!("loader {}", world.selector("agent*")))
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if limited {
        ensure!(
            !output.status.success() && said.contains("RLIMIT_MEMLOCK") && said.contains("LimitMEMLOCK"),
            "{said}"
        );
    } else {
        ensure!(output.status.success(), "{said}");
    }
    Ok(())
}

fn with_three_capabilities(world: &World, log: bool) -> Result<()> {
    // 64 MiB: what `preflight` takes for enough must be.
    let mut command = three_capabilities("67108864")?;
    if log {
        command.env(LOADER_LOG, "1");
    }
    let mut loader = spawn_loader(world, command)?;
    let status = fs::read_to_string(format!("/proc/{}/status", loader.id()))?;
    // CAP_DAC_OVERRIDE is bit 1, CAP_NET_ADMIN 12, CAP_PERFMON 38, CAP_BPF 39.
    let effective = if before_5_18() {
        "CapEff:\t000000c000001002"
    } else {
        "CapEff:\t0000008000001002"
    };
    ensure!(status.contains(effective), "{status}");
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

pub(super) fn uninstall_leaves_nothing(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut loader = start_loader(world)?;
    let ids = pinned_ids(&PinDirectory::find().context("no bpffs")?.root())?;
    ensure!(
        ids.links.len() == 7 && ids.programs.len() == 7 && ids.maps.len() == 16,
        "five links in the Agent's cgroup, two in our own: {ids:?}"
    );
    ensure!(ids.alive() == 30, "{ids:?}");
    loader.kill()?;
    loader.wait()?;
    ensure!(ids.alive() == 30, "what is pinned outlives its loader: {ids:?}");
    let report = intercept::uninstall()?;
    ensure!(report.links.len() == 7 && report.maps.len() == 16, "{report:?}");
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
            start.elapsed() < crate::seconds(5),
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
    for cgroup in fs::read_dir(root.join("links"))?
        .chain(fs::read_dir(root.join("own"))?)
        .flatten()
    {
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

pub(super) fn an_uninstall_beneath_a_running_proxy_is_respected(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut proxy = Proxy::start(&config(world))?;
    let target = "203.0.113.5:80";
    intercept::uninstall()?;
    expect(
        &world.agent("agent", &format!("connect {target}"))?,
        DIRECT,
        target,
    )?;
    let changes = proxy.interceptor.sync();
    ensure!(
        changes.gone.len() == 1 && !proxy.interceptor.attached(),
        "{changes:?}"
    );
    // Until somebody asks for it again.
    proxy.interceptor.switch_on()?;
    expect(
        &world.agent("agent", &format!("connect {target}"))?,
        target,
        target,
    )?;
    proxy.interceptor.leave(Leave::Nothing)?;
    ensure!(
        !Path::new("/sys/fs/bpf/agent-fips-proxy").exists(),
        "leave(false) left pins"
    );
    Ok(())
}
