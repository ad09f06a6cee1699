//! Who connected: what `SO_PEERCRED` says of an accepted connection, and that it says nothing new of any other socket.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use agent_fips_proxy::relay::kernel_peer_process;
use agent_fips_proxy::supervise::privileges;
use serde_json::json;

use super::*;
use crate::agent;

/// "No user" and "no group", as the kernel says of a TCP connection.
const NOBODY: u32 = u32::MAX;

/// A proxy that accepts nothing by itself, switched on.
fn silent(world: &World) -> Result<Proxy> {
    let mut proxy = Proxy::silent(&config(world))?;
    proxy.switch_on()?;
    Ok(proxy)
}

/// The next connection of a listener.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => ensure!(start.elapsed() < crate::seconds(10), "nobody came"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the proxy's own function says.
fn told(stream: &TcpStream) -> Result<Option<u32>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let _entered = runtime.enter();
    let copy = stream.try_clone()?;
    copy.set_nonblocking(true)?;
    let told = kernel_peer_process(&tokio::net::TcpStream::from_std(copy)?);
    stream.set_nonblocking(false)?;
    Ok(told)
}

/// An option of a socket as the kernel writes it into a buffer of `size` bytes.
fn option(socket: &impl AsRawFd, level: i32, name: i32, size: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0xa5_u8; size];
    let mut length = u32::try_from(size)?;
    // SAFETY: buffer and length are live and agree. std and nix know no odd sizes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(
        result == 0,
        "getsockopt({level}, {name}): {}",
        std::io::Error::last_os_error()
    );
    let length = usize::try_from(length)?;
    ensure!(length <= size, "{length} bytes in a buffer of {size}");
    ensure!(
        buffer.iter().skip(length).all(|byte| *byte == 0xa5),
        "bytes behind the answer were written"
    );
    buffer.truncate(length);
    Ok(buffer)
}

fn credentials(socket: &impl AsRawFd, size: usize) -> Result<Vec<u8>> {
    option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, size)
}

/// `struct ucred`
fn ucred(process: u32, user: u32, group: u32) -> Vec<u8> {
    [process, user, group]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// Lets a client go that waits for our word, and takes what it saw.
fn finish(client: Child, stream: TcpStream) -> Result<Value> {
    say(stream, "done");
    answer("client", &client.wait_with_output()?)
}

pub(super) fn a_taken_connection_tells_who_connected(world: &World) -> Result<()> {
    let proxy = silent(world)?;
    for (action, target, listener) in [
        ("connect", "203.0.113.5:80", &proxy.v4),
        ("connect", "[2001:db8::5]:80", &proxy.v6),
        ("connect", "[::ffff:203.0.113.5]:80", &proxy.v4),
        ("nonblocking", "203.0.113.5:80", &proxy.v4),
        ("tfo-sendto", "[2001:db8::5]:80", &proxy.v6),
        ("tfo-connect", "203.0.113.5:80", &proxy.v4),
        // The process, not the thread.
        ("thread", "203.0.113.5:80", &proxy.v4),
        ("thread", "[2001:db8::5]:80", &proxy.v6),
    ] {
        let client = world.start_agent("agent", &format!("{action} {target}"))?;
        let pid = client.id();
        let stream = accept(listener)?;
        ensure!(
            told(&stream)? == Some(pid),
            "{action} {target}: {:?}",
            told(&stream)?
        );
        let name = agent_fips_proxy::process::name(pid);
        ensure!(name.as_deref() == Some(agent::NAME), "{name:?}");
        // The kernel's answer but for the process; one that is cut short stays as it is.
        let whole = ucred(pid, NOBODY, NOBODY);
        for size in [12, 13, 64, 3 * 4096] {
            ensure!(credentials(&stream, size)? == whole, "{size} bytes");
        }
        for size in [0, 3, 4, 8, 11] {
            ensure!(
                credentials(&stream, size)? == ucred(0, NOBODY, NOBODY)[..size],
                "{size} bytes"
            );
        }
        // It is asked as often as one likes, and beside the original destination.
        let original = original(&stream)?;
        ensure!(told(&stream)? == Some(pid));
        let seen = finish(client, stream)?;
        ensure!(seen["process"] == pid && seen["peer"] == target, "{seen}");
        ensure!(
            original == SocketAddr::new(target.parse::<SocketAddr>()?.ip().to_canonical(), original.port()),
            "{original}"
        );
    }
    Ok(())
}

pub(super) fn an_inherited_socket_tells_who_connected_it(world: &World) -> Result<()> {
    let proxy = silent(world)?;
    for (target, listener) in [("203.0.113.5:80", &proxy.v4), ("[2001:db8::5]:80", &proxy.v6)] {
        let maker = world.start_agent("agent", &format!("inherited {target}"))?;
        let made_by = maker.id();
        let stream = accept(listener)?;
        let told = told(&stream)?.context("no process")?;
        let seen = finish(maker, stream)?;
        ensure!(seen["process"] == told, "told {told}: {seen}");
        ensure!(told != made_by, "the maker of the socket was told");
    }
    Ok(())
}

/// Also a connection that the programs see but do not take, and options that are like ours by half.
pub(super) fn what_nobody_took_tells_no_process(world: &World) -> Result<()> {
    let proxy = silent(world)?;
    let other = TcpListener::bind("[::]:8080")?;
    let client = TcpStream::connect(proxy.v4.local_addr()?)?;
    let dialled_us = accept(&proxy.v4)?;
    let agent = world.start_agent("agent", "connect 203.0.113.5:8080")?;
    let not_selected = accept(&other)?;
    for stream in [&client, &dialled_us, &not_selected] {
        ensure!(told(stream)?.is_none(), "{:?}", told(stream)?);
        ensure!(credentials(stream, 12)? == ucred(0, NOBODY, NOBODY));
    }
    let seen = finish(agent, not_selected)?;
    ensure!(seen["reached"] == "done", "{seen}");

    let agent = world.start_agent("agent", "connect 203.0.113.5:80")?;
    let taken = accept(&proxy.v4)?;
    for (level, name) in [
        (libc::IPPROTO_TCP, libc::SO_PEERCRED),
        (libc::SOL_SOCKET, libc::SO_TYPE),
        (libc::SOL_SOCKET, libc::SO_ERROR),
        (libc::SOL_SOCKET, libc::SO_PROTOCOL),
        (libc::SOL_SOCKET, libc::SO_LINGER),
    ] {
        let ours = option(&taken, level, name, 12)?;
        ensure!(
            ours == option(&dialled_us, level, name, 12)?,
            "{level}, {name}: {ours:?}"
        );
    }
    finish(agent, taken)?;
    Ok(())
}

/// They are asked in the proxy's cgroup, too: the admin socket and the worker's channel live there.
pub(super) fn the_peers_of_unix_sockets_are_the_kernels(world: &World) -> Result<()> {
    let mut proxy = Proxy::silent(&config(world))?;
    let own = std::process::id();
    let (user, group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    // Made in the proxy's cgroup before and after the programs are there.
    let early = UnixStream::pair()?;
    let ask = |socket: &UnixStream, process: u32| -> Result<()> {
        let whole = ucred(process, user, group);
        for size in [0, 4, 11, 12, 13, 64] {
            let expected = &whole[..size.min(12)];
            ensure!(credentials(socket, size)? == expected, "{size} bytes");
        }
        Ok(())
    };
    ask(&early.0, own)?;
    proxy.switch_on()?;
    ask(&early.0, own)?;
    ask(&UnixStream::pair()?.1, own)?;

    // While a connection of the same client's cgroup does have a note.
    let taken = world.start_agent("agent", "connect 203.0.113.5:80")?;
    let stream = accept(&proxy.v4)?;
    ensure!(told(&stream)? == Some(taken.id()));
    let client = world.start_agent("agent", &format!("unix {}", path.display()))?;
    let (mut accepted, _) = listener.accept()?;
    ask(&accepted, client.id())?;
    accepted.write_all(b"hello")?;
    drop(accepted);
    let seen = answer("unix", &client.wait_with_output()?)?;
    ensure!(seen["reached"] == "hello", "{seen}");
    finish(taken, stream)?;
    Ok(())
}

/// A process that is asked about an accepted connection: `worker` gives up its rights first. The connection is its
/// standard input.
pub fn asker(mode: &str) -> Result<()> {
    let stream = TcpStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    if mode == "worker" {
        privileges::give_up("nobody")?;
    }
    let process = told(&stream)?;
    let name = process.and_then(agent_fips_proxy::process::name);
    // What only the same user or root may read.
    let secret = process.map(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok());
    println!("{}", json!({"process": process, "name": name, "secret": secret}));
    Ok(())
}

/// Hands a copy of the connection to such a process.
fn ask(mut command: Command, mode: &str, stream: &TcpStream) -> Result<Value> {
    let output = command
        .env(ROLE, format!("asker {mode}"))
        .stdin(Stdio::from(OwnedFd::from(stream.try_clone()?)))
        .output()?;
    answer("asker", &output)
}

pub(super) fn a_process_without_rights_may_ask(world: &World) -> Result<()> {
    let proxy = silent(world)?;
    let client = world.start_agent("agent", "thread 203.0.113.5:80")?;
    let pid = client.id();
    let stream = accept(&proxy.v4)?;
    let program = std::env::current_exe()?;
    let seen = ask(Command::new(&program), "root", &stream)?;
    ensure!(
        seen == json!({"process": pid, "name": agent::NAME, "secret": true}),
        "{seen}"
    );
    let seen = ask(Command::new(&program), "worker", &stream)?;
    ensure!(
        seen == json!({"process": pid, "name": agent::NAME, "secret": false}),
        "{seen}"
    );
    finish(client, stream)?;
    Ok(())
}

/// A command in a pid namespace of its own, which still sees the host's `/proc`.
fn apart(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork"]).arg(program);
    command
}

pub(super) fn processes_are_told_apart_across_pid_namespaces(world: &World) -> Result<()> {
    let proxy = silent(world)?;
    // An Agent in a container: the host's number of it, which it does not know itself.
    let agent = world.client("agent", "connect 203.0.113.5:80")?;
    let mut contained = apart(agent.get_program());
    contained.stdin(Stdio::null()).stdout(Stdio::piped());
    for (name, value) in agent.get_envs() {
        contained.env(name, value.unwrap_or_default());
    }
    let client = contained.spawn()?;
    let stream = accept(&proxy.v4)?;
    let pid = told(&stream)?.context("no process")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains(&format!("\nNSpid:\t{pid}\t1\n")), "{status}");
    let name = agent_fips_proxy::process::name(pid);
    ensure!(name.as_deref() == Some(agent::NAME), "{name:?}");
    // A proxy in a container without the host's processes: a number that means nothing there is not told.
    let seen = ask(apart(std::env::current_exe()?), "root", &stream)?;
    ensure!(
        seen == json!({"process": null, "name": null, "secret": null}),
        "{seen}"
    );
    let seen = finish(client, stream)?;
    ensure!(seen["process"] == 1 && pid != 1, "{seen}");
    Ok(())
}
