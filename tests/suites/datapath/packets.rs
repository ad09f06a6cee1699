//! Datapath `tc` at the level of the programs: which packets of a pod are taken, and what leaves this host.

use std::os::fd::AsRawFd;
use std::thread;

use super::namespaces::own_directory;
use super::network::{DEVICE, NETWORK, Network, Way, attach, end, start_acceptor};
use super::*;
use crate::world::ip;

fn settings(world: &World) -> Intercept {
    // No cgroup hook anywhere: what is taken here is taken by packets.
    let mut config = intercepting(world.selector("nobody"));
    config.ports.push(9443);
    config.cidrs = ["203.0.113.0/28", "2001:db8::/124"]
        .iter()
        .flat_map(|net| net.parse())
        .collect();
    config
}

pub(super) fn packets_reach_the_listener_by_tcx(world: &World) -> Result<()> {
    packets_reach_the_listener(world, Way::Tcx)
}

pub(super) fn packets_reach_the_listener_by_clsact(world: &World) -> Result<()> {
    packets_reach_the_listener(world, Way::Clsact)
}

fn packets_reach_the_listener(world: &World, way: Way) -> Result<()> {
    let network = Network::new()?;
    // Selected by port and address, but older than we are.
    let mut older = [
        network.connect("203.0.113.5:9443", 0)?,
        network.connect("[2001:db8::5]:9443", 0)?,
    ];
    let proxy = Proxy::start(&settings(world))?;
    let acceptor = start_acceptor(&proxy)?;
    let attached = attach(way)?;
    let ifindex = nix::net::if_::if_nametoindex(DEVICE)?;

    connects(
        &network,
        world,
        &["203.0.113.5:80", "[2001:db8::5]:443", "203.0.113.15:9443"],
        None,
    )?;
    expect(
        &network.agent(world, "tfo-sendto 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    ensure!(
        network.arrived(80)? + network.arrived(443)? == 0,
        "a taken packet went on"
    );
    ensure!(proxy.counter("tc_taken_v4") >= 3 && proxy.counter("tc_taken_v6") >= 1);
    ensure!(
        proxy.counter("tc_picked") >= 4,
        "{:?}",
        proxy.interceptor.status()
    );
    ensure!(attached.kernel.flows() == 4, "{}", attached.kernel.flows());

    for (action, target) in [
        ("connect", "203.0.113.5:8080"),
        ("connect", "203.0.113.16:80"),
        ("connect", "[2001:db8::5]:8080"),
        ("connect", "[2001:db8::10]:443"),
        ("udp", "203.0.113.5:80"),
        ("udp", "[2001:db8::5]:80"),
    ] {
        expect(
            &network.agent(world, &format!("{action} {target}"))?,
            DIRECT,
            target,
        )?;
    }
    for target in ["203.0.113.5:9000", "[2001:db8::5]:9000"] {
        same_bytes(network.connect(target, 0)?)?;
    }
    for stream in &mut older {
        same_bytes(stream.try_clone()?)?;
    }
    let seen = attached.kernel.interface(ifindex)?.context("no interface")?.seen;
    ensure!(seen > 100, "{seen} packets");
    let mut kernel = attached.kernel;
    kernel.put_interface(ifindex, 9, NETWORK, 1)?;
    let interface = kernel.interface(ifindex)?.context("no interface")?;
    ensure!(interface.seen >= seen && interface.netns_cookie == 9 && interface.flags == 1);
    kernel.remove_interface(ifindex)?;
    ensure!(kernel.interfaces()?.is_empty());
    // Not ours any more: an Agent goes direct.
    expect(
        &network.agent(world, "connect 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )?;
    end(acceptor)
}

/// A megabyte there and back.
fn same_bytes(mut stream: TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..1_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut writer = stream.try_clone()?;
    let copy = sent.clone();
    let sender = thread::spawn(move || writer.write_all(&copy));
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received)?;
    sender.join().map_err(|_| anyhow::anyhow!("sender"))??;
    ensure!(received == sent, "bytes were changed");
    Ok(())
}

pub(super) fn our_own_connection_in_a_pod_is_left_alone(world: &World) -> Result<()> {
    let network = Network::new()?;
    let proxy = Proxy::start(&settings(world))?;
    let acceptor = start_acceptor(&proxy)?;
    let mut attached = attach(Way::Clsact)?;
    let own = own_directory(&proxy)?;
    let probe = network
        .pods
        .thread
        .run(&network.pod, || std::net::UdpSocket::bind("0.0.0.0:0"))??;
    let cookie = attached.kernel.netns_cookie(&own, probe.as_fd())?;
    let ifindex = nix::net::if_::if_nametoindex(DEVICE)?;
    attached.kernel.put_interface(ifindex, cookie, NETWORK, 0)?;

    for target in ["203.0.113.5:80", "[2001:db8::5]:80"] {
        let before = proxy.counter("tc_own");
        let mut stream = network.connect(target, 41_000)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text == DIRECT, "our own connection was taken: {text}");
        ensure!(
            proxy.counter("tc_own") > before,
            "{:?}",
            proxy.interceptor.status()
        );
        // Closed by reset: its port is free at once.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        ensure!(
            attached.kernel.own_flows() == 0,
            "a note of our own connection is left"
        );
        // An Agent with the same ends.
        expect(
            &network.agent(world, &format!("from-41000 {target}"))?,
            target,
            target,
        )?;
    }
    // A connection that fails leaves no note either: nobody listens there.
    let refused = network.connect("203.0.113.5:9443", 41_001);
    ensure!(refused.is_ok(), "{refused:?}");
    drop(refused);
    network
        .pods
        .thread
        .run(&network.far, || ip("route add prohibit 198.51.100.0/30"))??;
    let failed = network.connect("203.0.113.6:443", 41_002);
    ensure!(failed.is_err(), "{failed:?}");
    ensure!(
        attached.kernel.own_flows() == 0,
        "a note of a failed connection is left"
    );
    end(acceptor)
}

pub(super) fn without_a_listener_packets_follow_the_policy(world: &World) -> Result<()> {
    let network = Network::new()?;
    let mut config = settings(world);
    let mut proxy = Proxy::start(&config)?;
    let attached = attach(Way::Clsact)?;
    let targets = ["203.0.113.5:80", "[2001:db8::5]:80"];
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = targets
            .iter()
            .map(|target| (&network, target))
            .map(|(network, target)| scope.spawn(move || network.agent(world, &format!("connect {target}"))))
            .collect();
        for client in clients {
            let seen = client.join().map_err(|_| anyhow::anyhow!("client"))??;
            ensure!(seen["reached"].is_null(), "closed, and yet {seen}");
        }
        Ok(())
    })?;
    ensure!(network.arrived(80)? == 0, "closed, and yet packets left");
    ensure!(
        proxy.counter("tc_refused_no_listener") >= 2,
        "{:?}",
        proxy.interceptor.status()
    );

    config.on_failure = OnFailure::Open;
    proxy.interceptor.reconfigure(&config)?;
    connects(&network, world, &targets, Some(DIRECT))?;
    ensure!(
        proxy.counter("tc_open_no_listener") == 2,
        "{:?}",
        proxy.interceptor.status()
    );
    // Nobody told whose namespace is behind the interface.
    let expected = |count| vec![("unknown".to_owned(), "no_listener".to_owned(), count)];
    let found = leaked(&mut proxy);
    ensure!(found == expected(2), "{found:?}");
    ensure!(network.arrived(80)? > 0, "the capture sees nothing at all");

    // Switched off, nothing is counted or taken; a listener that comes later takes again.
    config.on_failure = OnFailure::Closed;
    proxy.interceptor.reconfigure(&config)?;
    proxy.interceptor.switch_off(Duration::ZERO);
    expect(
        &network.agent(world, "connect 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )?;
    proxy.interceptor.switch_on()?;
    let acceptor = start_acceptor(&proxy)?;
    expect(
        &network.agent(world, "from-41000 203.0.113.5:80")?,
        "203.0.113.5:80",
        "203.0.113.5:80",
    )?;
    ensure!(attached.kernel.flows() == 1);
    // Where the host has IPv6 switched off, somebody listens and nobody could be reached.
    let mut attached = attached;
    let ifindex = nix::net::if_::if_nametoindex(DEVICE)?;
    // INTERFACE_NO_IPV6
    attached.kernel.put_interface(ifindex, 0, NETWORK, 2)?;
    let refused = proxy.counter("tc_refused_no_listener");
    let seen = network.agent(world, "connect [2001:db8::5]:443")?;
    ensure!(seen["reached"].is_null(), "IPv6 off, closed, and yet {seen}");
    ensure!(network.arrived(443)? == 0, "IPv6 off, and yet packets left");
    ensure!(proxy.counter("tc_refused_no_listener") > refused);
    ensure!(attached.kernel.flows() == 1, "a refused connection left a note");
    config.on_failure = OnFailure::Open;
    proxy.interceptor.reconfigure(&config)?;
    expect(
        &network.agent(world, "connect [2001:db8::5]:443")?,
        DIRECT,
        "[2001:db8::5]:443",
    )?;
    expect(
        &network.agent(world, "connect 203.0.113.5:443")?,
        "203.0.113.5:443",
        "203.0.113.5:443",
    )?;
    let found = leaked(&mut proxy);
    ensure!(found == expected(3), "{found:?}");
    attached.kernel.put_interface(ifindex, 0, NETWORK, 0)?;
    expect(
        &network.agent(world, "connect [2001:db8::5]:443")?,
        "[2001:db8::5]:443",
        "[2001:db8::5]:443",
    )?;
    config.on_failure = OnFailure::Closed;
    proxy.interceptor.reconfigure(&config)?;
    ensure!(attached.kernel.flows() == 3);
    // The same ends once more, while switched off: direct, and the note of the flow is gone.
    proxy.interceptor.switch_off(Duration::ZERO);
    expect(
        &network.agent(world, "from-41000 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )?;
    ensure!(attached.kernel.flows() == 2);
    end(acceptor)
}

/// No rule leads to us, as after another name for the pod's interface: rules know interfaces by their names. `closed`: nothing of
/// what is taken leaves, and what was open goes on when the rule is back. `open`: new connections go direct, stay so, and are
/// counted.
pub(super) fn without_our_rule_packets_follow_the_policy(world: &World) -> Result<()> {
    let network = Network::new()?;
    // With it the kernel finds the socket before it asks for a route, and forwards no packet that has one.
    fs::write("/proc/sys/net/ipv4/ip_early_demux", "0")?;
    let mut config = settings(world);
    let mut proxy = Proxy::start(&config)?;
    let acceptor = start_acceptor(&proxy)?;
    let attached = attach(Way::Clsact)?;
    let targets = ["203.0.113.5:80", "[2001:db8::5]:80"];
    let hold = |policy: &str| -> Result<()> {
        let mut streams = targets
            .iter()
            .map(|target| held(&network, target))
            .collect::<Result<Vec<_>>>()?;
        network.rules("del")?;
        for stream in &mut streams {
            stream.write_all(b"meant for the proxy")?;
        }
        // Sent again and again meanwhile.
        thread::sleep(Duration::from_secs(1));
        ensure!(
            network.arrived(80)? == 0,
            "{policy}: packets of a taken connection left"
        );
        for stream in &streams {
            ensure!(waiting(stream)? > 0, "{policy}: somebody has acknowledged it");
        }
        network.rules("add")?;
        for stream in &streams {
            harness::eventually("the rest of a taken connection", Duration::from_secs(5), || {
                Ok((waiting(stream)? == 0).then_some(()))
            })?;
        }
        Ok(())
    };
    hold("closed")?;
    network.rules("del")?;
    for target in targets {
        let seen = network.agent(world, &format!("connect {target}"))?;
        ensure!(seen["reached"].is_null(), "closed, and yet {seen}");
    }
    network.rules("add")?;
    connects(&network, world, &targets, None)?;
    ensure!(network.arrived(80)? == 0, "closed, and yet packets left");
    let found = leaked(&mut proxy);
    ensure!(found.is_empty(), "closed: {found:?}");

    config.on_failure = OnFailure::Open;
    proxy.interceptor.reconfigure(&config)?;
    hold("open")?;
    network.rules("del")?;
    let mut direct = Vec::new();
    for target in ["203.0.113.5:9443", "[2001:db8::5]:9443"] {
        let stream = network.connect(target, 0)?;
        same_bytes(stream.try_clone()?)?;
        direct.push(stream);
    }
    // Room for what comes: these bytes were heard, too.
    ensure!(
        network.arrived(80)? == 0,
        "packets to a port that nobody asked for"
    );
    connects(&network, world, &targets, Some(DIRECT))?;
    ensure!(network.arrived(80)? > 0, "the capture sees nothing at all");
    let expected = vec![("unknown".to_owned(), "not_led".to_owned(), 4)];
    let found = leaked(&mut proxy);
    ensure!(found == expected, "{found:?}");
    network.rules("add")?;
    for stream in direct {
        // As it began.
        same_bytes(stream)?;
    }
    connects(&network, world, &targets, None)?;
    let found = leaked(&mut proxy);
    ensure!(found == expected, "{found:?}");
    drop(attached);
    end(acceptor)
}

/// A client in the pod reaches `whom`, or the target itself, and believes that it talks to the target.
fn connects(network: &Network, world: &World, targets: &[&str], whom: Option<&str>) -> Result<()> {
    for target in targets {
        expect(
            &network.agent(world, &format!("connect {target}"))?,
            whom.unwrap_or(target),
            target,
        )?;
    }
    Ok(())
}

/// A connection that our listener took; what it says is read.
fn held(network: &Network, target: &str) -> Result<TcpStream> {
    let mut stream = network.connect(target, 0)?;
    let mut reached = String::new();
    stream.read_to_string(&mut reached)?;
    ensure!(reached == target, "{target}: reached {reached}");
    Ok(stream)
}

/// Bytes that the other side has not acknowledged.
fn waiting(stream: &TcpStream) -> Result<libc::c_int> {
    let mut count = 0;
    // SAFETY: SIOCOUTQ (tcp(7)) fills in one number, of a socket that is open. No crate of ours has the call.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    ensure!(result == 0, std::io::Error::last_os_error());
    Ok(count)
}

pub(super) fn nothing_leaves_after_the_listener_was_killed(world: &World) -> Result<()> {
    let network = Network::new()?;
    let proxy = Proxy::start(&settings(world))?;
    let mut acceptor = start_acceptor(&proxy)?;
    let attached = attach(Way::Clsact)?;
    let mut clients = Vec::new();
    for target in ["203.0.113.5:80", "[2001:db8::5]:80"] {
        let mut client = network
            .pods
            .start(world, &network.pod, "other", &format!("hold {target}"))?;
        let mut output = BufReader::new(client.stdout.take().context("stdout")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line == "ready\n", "{line:?}");
        clients.push((target, client, output));
    }
    acceptor.kill()?;
    acceptor.wait()?;
    // No expiry of an address may let it out, either.
    let mut config = settings(world);
    config.cidrs.clear();
    let mut proxy = proxy;
    proxy.interceptor.reconfigure(&config)?;
    for (_, client, _) in &mut clients {
        client.stdin.take().context("stdin")?.write_all(b"go\n")?;
    }
    for (target, mut client, mut output) in clients {
        let mut text = String::new();
        output.read_to_string(&mut text)?;
        client.wait()?;
        let seen: Value = serde_json::from_str(&text)?;
        ensure!(seen["reached"] == target, "{seen}");
    }
    ensure!(network.arrived(80)? == 0, "packets of a taken connection left");
    ensure!(attached.kernel.flows() == 2);
    // The capture does see what leaves.
    expect(
        &network.agent(world, "connect 203.0.113.5:80")?,
        DIRECT,
        "203.0.113.5:80",
    )?;
    ensure!(network.arrived(80)? > 0, "the capture sees nothing at all");
    Ok(())
}
