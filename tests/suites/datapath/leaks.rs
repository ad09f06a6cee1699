//! What goes to an intake without us is counted, once, for the right Agent and reason; what was open before is found.

use std::net::Ipv4Addr;
use std::process::ChildStdout;

use harness::vendor::Rewriter;

use super::*;
use crate::world::answer;

const TARGET: &str = "203.0.113.5:80";

/// A load balancer of services translates a virtual address behind our program, in the Agent's cgroup or above: we are not
/// asked, and still know.
pub(super) fn whoever_goes_around_us_is_counted(world: &World) -> Result<()> {
    world.serve_direct(&[80, 8080])?;
    let mut proxy = Proxy::start(&config(world))?;
    let (service, intake) = (Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(203, 0, 113, 5));
    for (round, cgroup) in (1..).zip(["agent", "."]) {
        let _rewriter = Rewriter::attach(&world.directory(cgroup), service, intake)?;
        expect(&world.agent("agent", "connect 10.96.0.1:80")?, DIRECT, TARGET)?;
        expect_leaks(world, &mut proxy, &[("around", round)])?;
        // Another port is no intake's, and what is ours is still taken.
        expect(
            &world.agent("agent", "connect 10.96.0.1:8080")?,
            DIRECT,
            "203.0.113.5:8080",
        )?;
        expect(
            &world.agent("agent", &format!("connect {TARGET}"))?,
            TARGET,
            TARGET,
        )?;
        expect_leaks(world, &mut proxy, &[("around", round)])?;
    }
    // Before it asks us, it is no way around: it asked for an intake.
    let _rewriter = Rewriter::attach(&world.directory("agent"), service, intake)?;
    let next = Proxy::start(&config(world))?;
    drop(std::mem::replace(&mut proxy, next));
    expect(&world.agent("agent", "connect 10.96.0.1:80")?, TARGET, TARGET)?;
    expect_leaks(world, &mut proxy, &[("around", 2)])
}

/// During an upgrade the programs of two instances stand in a cgroup: both decide, one counts.
pub(super) fn the_programs_of_two_versions_count_once(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    config.on_failure = OnFailure::Open;
    Proxy::start(&config)?.interceptor.leave(Leave::Policy)?;
    // The links of the first are out of the second's sight, which replaces none of them.
    let links = PinDirectory::find().context("no bpffs")?.links();
    let aside = Path::new("/sys/fs/bpf/aside");
    fs::create_dir(aside)?;
    for (number, entry) in fs::read_dir(links)?.flatten().enumerate() {
        fs::rename(entry.path(), aside.join(number.to_string()))?;
    }
    let mut proxy = Proxy::start(&config)?;
    proxy
        .interceptor
        .set_listeners(Listeners { v4: None, v6: None })?;
    expect(
        &world.agent("agent", &format!("connect {TARGET}"))?,
        DIRECT,
        TARGET,
    )?;
    ensure!(
        proxy.counter("open_no_listener") == 2,
        "one copy only: {:?}",
        proxy.interceptor.status()
    );
    ensure!(proxy.counter("leaked") == 1, "{:?}", proxy.interceptor.status());
    expect_leaks(world, &mut proxy, &[("no_listener", 1)])
}

/// The note that tells whose connection it is needs memory, too. The limit is this network namespace's own.
pub(super) fn a_leak_without_memory_for_its_note_is_counted(world: &World) -> Result<()> {
    world.serve_direct(&[80])?;
    let mut config = config(world);
    config.on_failure = OnFailure::Open;
    let mut proxy = Proxy::start(&config)?;
    fs::write("/proc/sys/net/core/optmem_max", "32").context("optmem_max")?;
    expect(
        &world.agent("agent", &format!("connect {TARGET}"))?,
        DIRECT,
        TARGET,
    )?;
    ensure!(
        proxy.counter("open_no_storage") == 1,
        "{:?}",
        proxy.interceptor.status()
    );
    expect_leaks(world, &mut proxy, &[("no_memory", 1)])
}

/// A connection that a client holds open.
struct Held {
    client: Child,
    output: BufReader<ChildStdout>,
}

impl Held {
    fn open(world: &World, cgroup: &str, target: &str) -> Result<Self> {
        let mut client = world
            .client(cgroup, &format!("hold {target}"))?
            .stdin(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(client.stdout.take().context("stdout")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line == "ready\n", "{line:?}");
        Ok(Self { client, output })
    }

    /// Writes to it for a while: the error number that ended that, if one did.
    fn end(mut self) -> Result<Option<i64>> {
        drop(self.client.stdin.take());
        let mut text = Vec::new();
        self.output.read_to_end(&mut text)?;
        let output = self.client.wait_with_output()?;
        let seen = answer(
            "hold",
            &std::process::Output {
                stdout: text,
                ..output
            },
        )?;
        ensure!(seen["reached"] == DIRECT, "{seen}");
        Ok(seen["error"].as_i64())
    }
}

/// Says "direct" and holds every connection open.
fn keep(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("::", port))?;
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if stream.write_all(DIRECT.as_bytes()).is_ok() {
                kept.push(stream);
            }
        }
    });
    Ok(())
}

/// An Agent's, over both families; somebody else's, and our own, to the same addresses; an Agent's to another port.
struct Before {
    agents: Vec<Held>,
    others: Vec<Held>,
    own: TcpStream,
}

impl Before {
    fn open(world: &World) -> Result<Self> {
        keep(80)?;
        keep(8080)?;
        world.make_cgroup("agent/inner")?;
        let agents = ["203.0.113.5:80", "[2001:db8::5]:80", "[::ffff:203.0.113.5]:80"]
            .into_iter()
            .zip(["agent", "agent", "agent/inner"])
            .map(|(target, cgroup)| Held::open(world, cgroup, target))
            .collect::<Result<_>>()?;
        let others = [("other", TARGET), ("agent", "203.0.113.5:8080")]
            .into_iter()
            .map(|(cgroup, target)| Held::open(world, cgroup, target))
            .collect::<Result<_>>()?;
        // In our own cgroup, as the worker's connections are.
        let _own = Interceptor::enter_own_cgroup()?;
        let own = TcpStream::connect(TARGET)?;
        Ok(Self { agents, others, own })
    }

    fn untouched(self) -> Result<()> {
        for held in self.others {
            ensure!(held.end()?.is_none(), "somebody else's connection was cut");
        }
        ensure!(self.own.take_error()?.is_none(), "our own connection was cut");
        (&self.own).write_all(b"still there")?;
        Ok(())
    }
}

pub(super) fn what_was_open_before_is_counted_once(world: &World) -> Result<()> {
    let mut before = Before::open(world)?;
    let mut proxy = Proxy::start(&config(world))?;
    expect_leaks(world, &mut proxy, &[("open_before", 3)])?;
    // A look for another reason, and another process with the same maps: the same connections.
    proxy.interceptor.reconfigure(&config(world))?;
    expect_leaks(world, &mut proxy, &[("open_before", 3)])?;
    proxy.interceptor.leave(Leave::Policy)?;
    let mut proxy = Proxy::start(&config(world))?;
    expect_leaks(world, &mut proxy, &[("open_before", 3)])?;
    // What leaves now leaves through us.
    expect(
        &world.agent("agent", &format!("connect {TARGET}"))?,
        TARGET,
        TARGET,
    )?;
    expect_leaks(world, &mut proxy, &[("open_before", 3)])?;
    for held in before.agents.drain(..) {
        ensure!(
            held.end()?.is_none(),
            "a connection was cut although nobody asked for it"
        );
    }
    before.untouched()
}

pub(super) fn what_was_open_before_is_reset_when_asked(world: &World) -> Result<()> {
    ensure!(
        intercept::reset_check().ok,
        "this kernel cannot: {:?}",
        intercept::reset_check()
    );
    let mut before = Before::open(world)?;
    let mut config = config(world);
    config.reset_existing = true;
    let mut proxy = Proxy::start(&config)?;
    expect_leaks(world, &mut proxy, &[("open_before", 3)])?;
    let status = proxy.interceptor.status();
    ensure!(status.leaked[0].reset == 3, "{:?}", status.leaked);
    for held in before.agents.drain(..) {
        let error = held.end()?;
        ensure!(
            error == Some(libc::ECONNABORTED.into()) || error == Some(libc::EPIPE.into()),
            "{error:?}"
        );
    }
    before.untouched()?;
    // Let go while nobody listened, and open still: it comes back through us, too. One that would leak again stays.
    config.on_failure = OnFailure::Open;
    proxy.interceptor.reconfigure(&config)?;
    proxy
        .interceptor
        .set_listeners(Listeners { v4: None, v6: None })?;
    let open = Held::open(world, "agent", TARGET)?;
    let _rewriter = Rewriter::attach(
        &world.directory("agent"),
        Ipv4Addr::new(10, 96, 0, 1),
        Ipv4Addr::new(203, 0, 113, 5),
    )?;
    let around = Held::open(world, "agent", "10.96.0.1:80")?;
    proxy.set_listeners()?;
    proxy.interceptor.reconfigure(&config)?;
    expect_leaks(
        world,
        &mut proxy,
        &[("no_listener", 1), ("around", 1), ("open_before", 3)],
    )?;
    ensure!(open.end()?.is_some(), "it is open still");
    ensure!(around.end()?.is_none(), "it was cut, and would only leak again");
    let status = proxy.interceptor.status();
    let reset: Vec<u64> = status.leaked.iter().map(|leak| leak.reset).collect();
    ensure!(reset == [1, 0, 3], "{:?}", status.leaked);
    Ok(())
}

pub(super) fn an_address_that_is_learnt_late_is_found_out(world: &World) -> Result<()> {
    keep(80)?;
    let mut config = config(world);
    config.cidrs.clear();
    let mut proxy = Proxy::start(&config)?;
    let held = Held::open(world, "agent", TARGET)?;
    expect_leaks(world, &mut proxy, &[])?;
    let address = TARGET.parse::<SocketAddr>()?.ip();
    proxy
        .interceptor
        .add_destinations(&[(address, Duration::from_secs(60))])?;
    expect_leaks(world, &mut proxy, &[("open_before", 1)])?;
    ensure!(held.end()?.is_none());
    Ok(())
}
