//! Which connections are taken, and what everybody sees of it.

use super::*;

pub(super) fn every_way_to_connect_is_taken(world: &World) -> Result<()> {
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
    // Each accepted socket is asked in two ways.
    ensure!(proxy.counter("original_dst_answered") == 2 * proxy.counter("handed_over"));
    Ok(())
}

pub(super) fn what_is_not_selected_is_not_touched(world: &World) -> Result<()> {
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
    // And the border is where it should be.
    expect(
        &world.agent("agent", "connect 203.0.113.15:80")?,
        "203.0.113.15:80",
        "203.0.113.15:80",
    )
}

pub(super) fn the_proxy_does_not_intercept_itself(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    // A selector that is far too wide: the parent of everything here, our own cgroup included.
    world.make_cgroup("agent-fips-proxy.service")?;
    world.enter("agent-fips-proxy.service")?;
    let mut config = config(world);
    config.agents.cgroups = vec![
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

pub(super) fn a_reused_socket_is_not_told_the_old_peer(world: &World) -> Result<()> {
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

pub(super) fn without_a_listener_closed_refuses(world: &World) -> Result<()> {
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
    expect_leaks(world, &mut proxy, &[])?;
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

pub(super) fn without_a_listener_open_goes_direct(world: &World) -> Result<()> {
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
    // However it connects, and whatever else it connects to.
    for action in ["nonblocking", "tfo-sendto", "tfo-connect", "mptcp"] {
        world.agent("agent", &format!("{action} 203.0.113.5:80"))?;
    }
    world.agent("agent", "connect [::ffff:203.0.113.5]:80")?;
    world.agent("agent", "connect 127.0.0.1:80")?;
    world.agent("other", "connect 203.0.113.5:80")?;
    expect_leaks(world, &mut proxy, &[("no_listener", 7)])?;
    let last = proxy.interceptor.status().leaked.remove(0);
    ensure!(last.last_destination == "203.0.113.5:80".parse()?, "{last:?}");
    ensure!(last.last_process.is_some(), "{last:?}");
    config.on_failure = OnFailure::Closed;
    proxy.interceptor.reconfigure(&config)?;
    expect_error(&world.agent("agent", "connect 203.0.113.5:80")?, refusal(&proxy))
}

pub(super) fn a_socket_bound_to_a_device_follows_the_policy(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    let mut proxy = Proxy::start(&config)?;
    let start = Instant::now();
    expect_error(&world.agent("agent", "device 203.0.113.5:80")?, refusal(&proxy))?;
    ensure!(
        start.elapsed() < crate::seconds(3),
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
    expect_leaks(world, &mut proxy, &[("bound_device", 1)])
}

/// Another process that takes our port while we are down must not get the Agent's traffic.
pub(super) fn an_unrelated_local_listener_cannot_catch(world: &World) -> Result<()> {
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
pub(super) fn getsockopt_is_otherwise_the_kernels(world: &World) -> Result<()> {
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
