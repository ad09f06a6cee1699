//! Agents in network namespaces of their own: each reaches the listener that was made there.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::thread;

use agent_fips_proxy::intercept::{Cgroup2, Loaded, Namespace, NamespaceThread};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::world::{make_addresses, serve_direct};

/// Namespaces of a scenario, and the thread that works in them.
pub(super) struct Pods {
    pub(super) thread: NamespaceThread,
}

impl Pods {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            thread: NamespaceThread::start()?,
        })
    }

    /// A new namespace, prepared by `prepare` on a thread in it.
    pub(super) fn make(&self, prepare: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Namespace> {
        let maker = thread::spawn(move || -> Result<Namespace> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            prepare()?;
            Ok(Namespace::own()?)
        });
        maker.join().map_err(|_| anyhow::anyhow!("maker"))?
    }

    /// Runs a client of a cgroup in a namespace.
    pub(super) fn agent(&self, world: &World, pod: &Namespace, cgroup: &str, action: &str) -> Result<Value> {
        let child = self.start(world, pod, cgroup, action)?;
        answer(action, &child.wait_with_output()?)
    }

    /// Runs `body` while an idle process of the Agent's cgroup lives in a namespace.
    pub(super) fn with_idle(
        &self,
        world: &World,
        pod: &Namespace,
        body: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let procs = Cgroup2::find()?
            .directory(&world.path("agent"))
            .join("cgroup.procs");
        let mut idle = self
            .thread
            .run(pod, || Command::new("sleep").arg("60").spawn())??;
        let result = fs::write(&procs, idle.id().to_string())
            .map_err(Into::into)
            .and_then(|()| body());
        idle.kill()?;
        idle.wait()?;
        result
    }

    pub(super) fn start(&self, world: &World, pod: &Namespace, cgroup: &str, action: &str) -> Result<Child> {
        let mut command = world.client(cgroup, action)?;
        command.stdin(Stdio::piped());
        Ok(self.thread.run(pod, move || command.spawn())??)
    }
}

/// The kernel side once more, for what `Interceptor` does not do by itself.
pub(super) fn kernel() -> Result<Loaded> {
    let pins = PinDirectory::find().context("no pins")?;
    Ok(Loaded::open(&pins)?)
}

/// The directory of the proxy's own cgroup.
pub(super) fn own_directory(proxy: &Proxy) -> Result<PathBuf> {
    Ok(Cgroup2::find()?.directory(proxy.own.path()))
}

/// Makes listeners in a namespace that answer with the original destination, and says so to the programs.
fn listen(
    kernel: &mut Loaded,
    proxy: &Proxy,
    pods: &Pods,
    pod: &Namespace,
    network: u32,
    port: u16,
) -> Result<(TcpListener, TcpListener)> {
    let (v4, v6) = pods.thread.run(pod, move || {
        (
            TcpListener::bind(("127.0.0.1", port)),
            TcpListener::bind(("::1", port)),
        )
    })?;
    let (v4, v6) = (v4?, v6?);
    for listener in [&v4, &v6] {
        let listener = listener.try_clone()?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let text = original(&stream).map_or_else(|_| LOST.to_owned(), |address| address.to_string());
                thread::spawn(move || say(stream, &text));
            }
        });
    }
    kernel.set_listeners(network, Some(v4.as_fd()), Some(v6.as_fd()))?;
    let cookie = cookie(kernel, proxy, pods, pod)?;
    kernel.put_namespace(cookie, network)?;
    Ok((v4, v6))
}

fn cookie(kernel: &mut Loaded, proxy: &Proxy, pods: &Pods, pod: &Namespace) -> Result<u64> {
    let probe = pods.thread.run(pod, || UdpSocket::bind("0.0.0.0:0"))??;
    Ok(kernel.probe_netns_cookie(&own_directory(proxy)?, &probe)?)
}

pub(super) fn work_in_a_namespace_comes_home(_: &World) -> Result<()> {
    let home = Namespace::own()?;
    let pods = Pods::new()?;
    let pod = pods.make(|| Ok(()))?;
    ensure!(pod.id() != home.id(), "{} and {}", pod.id(), home.id());
    let here = || Namespace::own().map(|namespace| namespace.id());
    ensure!(pods.thread.run(&pod, here)?? == pod.id());
    ensure!(pods.thread.run(&home, here)?? == home.id());
    ensure!(here()? == home.id(), "the caller was moved");
    ensure!(pod.try_clone()?.id() == pod.id() && pod.id().to_string().starts_with("net:["));

    let error = pods
        .thread
        .run(&pod, || -> () {
            std::panic::resume_unwind(Box::new("a bad job".to_owned()))
        })
        .err()
        .context("a panic was not seen")?;
    ensure!(error.to_string().contains("a bad job"), "{error}");
    ensure!(pods.thread.run(&pod, here)?? == pod.id(), "it did not go on");

    // A job that gives up the right to come home, of its own thread only: the thread must end, a new one must start.
    let tid = || nix::unistd::gettid();
    let first = pods.thread.run(&pod, tid)?;
    ensure!(pods.thread.run(&pod, tid)? == first, "one thread, not one a job");
    ensure!(pods.thread.run(&pod, drop_capabilities)?, "capset");
    let start = Instant::now();
    // The thread ends a moment after its answer: until then a call may meet its end.
    let next = loop {
        match pods.thread.run(&home, move || (tid(), here())) {
            Ok(next) => break next,
            Err(error) if start.elapsed() > crate::seconds(2) => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    };
    ensure!(next.0 != first && next.1? == home.id());

    for wrong in ["/proc/self/ns/uts", "/proc/self/stat", "/"] {
        let error = Namespace::open(wrong).err().context("opened")?;
        ensure!(error.to_string().contains(wrong), "{error}");
    }
    Ok(())
}

/// Takes every capability from the calling thread.
fn drop_capabilities() -> bool {
    // `struct __user_cap_header_struct` of version 3, of the calling thread, and two empty `__user_cap_data_struct`.
    let (header, data) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: both are live and of the size that version 3 asks for. nix has no capset.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) == 0 }
}

pub(super) fn an_agent_in_a_namespace_reaches_the_listener_there(world: &World) -> Result<()> {
    let proxy = Proxy::start(&config(world))?;
    let mut kernel = kernel()?;
    let pods = Pods::new()?;
    let pod = pods.make(make_addresses)?;
    let _listeners = listen(&mut kernel, &proxy, &pods, &pod, 7, 0)?;
    for (target, reached) in [
        ("203.0.113.5:80", "203.0.113.5:80"),
        ("[2001:db8::5]:443", "[2001:db8::5]:443"),
        ("[::ffff:203.0.113.5]:80", "203.0.113.5:80"),
    ] {
        let seen = pods.agent(world, &pod, "agent", &format!("connect {target}"))?;
        expect(&seen, reached, target)?;
    }
    // The host's own Agents go on, and to their own listener.
    let target = "203.0.113.6:80";
    expect(
        &world.agent("agent", &format!("connect {target}"))?,
        target,
        target,
    )?;
    let status = proxy.interceptor.status();
    ensure!(proxy.counter("handed_over") == 4, "{status:?}");
    ensure!(kernel.namespaces()?.len() == 2, "{:?}", kernel.namespaces()?);

    // Its listener alone is gone: the policy holds there, and only there.
    kernel.set_listeners(7, None, None)?;
    let seen = pods.agent(world, &pod, "agent", "connect 203.0.113.5:80")?;
    expect_error(&seen, refusal(&proxy))?;
    expect(
        &world.agent("agent", &format!("connect {target}"))?,
        target,
        target,
    )?;
    ensure!(kernel.set_listeners(1024, None, None).is_err(), "no such network");
    Ok(())
}

/// The same client ports, the same listener port, at the same time, to destinations that differ.
pub(super) fn equal_tuples_of_two_namespaces_are_kept_apart(world: &World) -> Result<()> {
    let proxy = Proxy::start(&config(world))?;
    let apart = proxy.interceptor.status().features.sockops_netns_cookie;
    let mut kernel = kernel()?;
    let pods = Pods::new()?;
    let mut listeners = Vec::new();
    let mut clients = Vec::new();
    for network in [1_u16, 2] {
        let pod = pods.make(|| {
            make_addresses()?;
            Ok(fs::write(
                "/proc/sys/net/ipv4/ip_local_port_range",
                "40000 40031",
            )?)
        })?;
        // Before 5.15 the ports must differ: the kernel does not tell sockops which namespace it is.
        let port = if apart { 15_080 } else { 15_080 + network };
        listeners.push(listen(&mut kernel, &proxy, &pods, &pod, network.into(), port)?);
        clients.push(pods.start(world, &pod, "agent", "load 4000 4")?);
    }
    for client in clients {
        let seen = answer("load", &client.wait_with_output()?)?;
        ensure!(seen["wrong"] == 0 && seen["connections"] == 4000, "{seen}");
    }
    let status = proxy.interceptor.status();
    ensure!(proxy.counter("handed_over") == 8000, "{status:?}");
    ensure!(proxy.counter("accepted_else") == 0, "{status:?}");
    Ok(())
}

pub(super) fn an_unknown_namespace_follows_the_policy(world: &World) -> Result<()> {
    let mut config = config(world);
    let mut proxy = Proxy::start(&config)?;
    let mut kernel = kernel()?;
    let pods = Pods::new()?;
    let pod = pods.make(|| {
        make_addresses()?;
        serve_direct(&[80, 8080])
    })?;
    let targets = ["203.0.113.5:80", "[2001:db8::5]:80"];
    for target in targets {
        let seen = pods.agent(world, &pod, "agent", &format!("connect {target}"))?;
        expect_error(&seen, refusal(&proxy))?;
    }
    ensure!(proxy.counter("refused_unknown_netns") == 2);
    // What is not selected is nobody's business there, either.
    let other = "203.0.113.5:8080";
    expect(
        &pods.agent(world, &pod, "agent", &format!("connect {other}"))?,
        DIRECT,
        other,
    )?;

    config.on_failure = OnFailure::Open;
    proxy.interceptor.reconfigure(&config)?;
    for target in targets {
        let seen = pods.agent(world, &pod, "agent", &format!("connect {target}"))?;
        expect(&seen, DIRECT, target)?;
    }
    ensure!(
        proxy.counter("open_unknown_netns") == 2,
        "{:?}",
        proxy.interceptor.status()
    );

    let _listeners = listen(&mut kernel, &proxy, &pods, &pod, 3, 0)?;
    let seen = pods.agent(world, &pod, "agent", "connect 203.0.113.5:80")?;
    expect(&seen, "203.0.113.5:80", "203.0.113.5:80")?;
    let cookie = cookie(&mut kernel, &proxy, &pods, &pod)?;
    kernel.remove_namespace(cookie)?;
    kernel.remove_namespace(cookie)?;
    let seen = pods.agent(world, &pod, "agent", "connect 203.0.113.5:80")?;
    expect(&seen, DIRECT, "203.0.113.5:80")?;
    ensure!(
        proxy.counter("open_unknown_netns") == 3,
        "{:?}",
        proxy.interceptor.status()
    );
    expect_leaks(world, &mut proxy, &[("unknown_netns", 3)])
}

pub(super) fn the_cookie_probe_agrees_with_the_socket_option(world: &World) -> Result<()> {
    let proxy = Proxy::start(&config(world))?;
    let mut kernel = kernel()?;
    let pods = Pods::new()?;
    let own = own_directory(&proxy)?;
    let mut cookies = BTreeSet::new();
    let mut probes = vec![UdpSocket::bind("0.0.0.0:0")?];
    for _ in 0..2 {
        // Not even the loopback is up there.
        let pod = pods.make(|| Ok(()))?;
        probes.push(pods.thread.run(&pod, || UdpSocket::bind("0.0.0.0:0"))??);
    }
    for probe in &probes {
        let asked = kernel.probe_netns_cookie(&own, probe)?;
        ensure!(asked != 0 && asked == kernel.probe_netns_cookie(&own, probe)?);
        if let Some(told) = socket_option(probe)? {
            ensure!(asked == told, "the program says {asked}, the kernel {told}");
        }
        ensure!(cookies.insert(asked), "two namespaces, one cookie");
        ensure!(asked == kernel.netns_cookie_of(&own, probe)?);
    }
    // Where the kernel has no option, of a socket of our own namespace.
    let here = kernel.netns_cookie(&own, probes[0].as_fd())?;
    ensure!(here == kernel.netns_cookie_of(&own, &probes[0])?);
    // Nothing stays attached: the address is no more special than any other.
    let error = probes.first().map(|probe| probe.connect("0.0.0.2:9"));
    ensure!(
        !matches!(&error, Some(Err(error)) if error.raw_os_error() == Some(libc::EPERM)),
        "{error:?}"
    );
    Ok(())
}

/// A namespace that is seen before its loopback is up is waited for, and then served in both families. Nothing of its Agent
/// leaves meanwhile.
pub(super) fn a_namespace_without_loopback_is_waited_for(world: &World) -> Result<()> {
    let mut proxy = Proxy::start(&config(world))?;
    let pods = Pods::new()?;
    let pod = pods.make(|| Ok(()))?;
    pods.with_idle(world, &pod, || {
        let changes = proxy.interceptor.sync();
        let status = proxy.interceptor.status();
        ensure!(
            changes.opened.is_empty() && changes.failed.is_empty(),
            "{changes:?}"
        );
        ensure!(
            status.agents.len() == 1
                && status.agents[0].datapath.is_none()
                && status.agents[0].why.contains("`lo` is down"),
            "{status:?}"
        );
        ensure!(proxy.interceptor.unsettled(), "it is not looked at again soon");
        pods.thread.run(&pod, || {
            make_addresses()?;
            serve_direct(&[80])
        })??;
        // Not looked at again yet: refused, not let out.
        let seen = pods.agent(world, &pod, "agent", "connect 203.0.113.5:80")?;
        expect_error(&seen, refusal(&proxy))?;
        let changes = proxy.interceptor.sync();
        ensure!(
            changes
                .opened
                .iter()
                .map(|network| (network.v4.len(), network.v6.len()))
                .eq([(SOCKETS, SOCKETS)]),
            "{changes:?}"
        );
        ensure!(proxy.interceptor.status().agents[0].datapath.is_some());
        ensure!(!proxy.interceptor.unsettled());
        Ok(())
    })
}

/// A slot that the tables name for another namespace is not given away, and the one of this namespace is taken again.
pub(super) fn slots_of_others_are_left_alone(world: &World) -> Result<()> {
    let mut proxy = Proxy::start(&config(world))?;
    let mut kernel = kernel()?;
    // What an earlier process left: an interface of a pod that is taken by tc, and a namespace.
    kernel.put_interface(4242, 77, 1, 0)?;
    kernel.put_namespace(78, 2)?;
    let pods = Pods::new()?;
    let pod = pods.make(make_addresses)?;
    pods.with_idle(world, &pod, || {
        let opened = proxy.interceptor.sync().opened;
        ensure!(opened.iter().map(|network| network.slot).eq([3]), "{opened:?}");
        kernel.remove_interface(4242)?;
        // Once it is known who is an Agent, what nobody needs goes.
        proxy.interceptor.set_pods(Vec::new());
        ensure!(proxy.interceptor.sync().failed.is_empty());
        let mut slots: Vec<u32> = kernel.namespaces()?.into_iter().map(|(_, slot)| slot).collect();
        slots.sort_unstable();
        ensure!(slots == [0, 3], "{slots:?}");
        Ok(())
    })
}

/// `SO_NETNS_COOKIE` (71, Linux 5.14); `None` where the kernel has none.
fn socket_option(socket: &UdpSocket) -> Result<Option<u64>> {
    let (mut cookie, mut length) = (0_u64, 8_u32);
    // SAFETY: value and length are live and agree. std has no such option.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            libc::SOL_SOCKET,
            71,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    let error = std::io::Error::last_os_error();
    match (result, error.raw_os_error()) {
        (0, _) => Ok(Some(cookie)),
        (_, Some(libc::ENOPROTOOPT)) => Ok(None),
        _ => Err(error.into()),
    }
}
