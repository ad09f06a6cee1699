//! The client: enters a cgroup, then connects in one of the ways Agents connect, and prints what it saw as JSON.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt::TcpFastOpenConnect};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

/// What every client calls itself.
pub const NAME: &str = "an agent";

/// `<cgroup directory> <action> <arguments>`
pub fn run(arguments: &str) -> Result<()> {
    let mut words = arguments.split(' ');
    let mut next = || words.next().context("too few arguments");
    let directory = next()?;
    nix::sys::prctl::set_name(c"an agent")?;
    // Sockets belong to the cgroup of their maker: first move, then make one.
    fs::write(format!("{directory}/cgroup.procs"), "0").context("cannot enter the cgroup")?;
    let action = next()?;
    let target = next()?;
    let seen = match action {
        "load" => load(target.parse()?, next()?.parse()?)?,
        "until" => until(target)?,
        "hold" => hold(target.parse()?)?,
        "inherited" => inherited(target.parse()?)?,
        "unix" => unix(target)?,
        _ => single(action, target.parse()?),
    };
    println!("{seen}");
    Ok(())
}

/// One connection; an error is a result.
fn single(action: &str, target: SocketAddr) -> Value {
    let result = match action {
        "connect" => connect(target),
        "thread" => from_thread(target),
        "nonblocking" => nonblocking(target),
        "tfo-sendto" => fast_open_sendto(target),
        "tfo-connect" => fast_open_connect(target),
        "device" => bound_to_device(target),
        "stale" => stale(target),
        "udp" => udp(target),
        "mptcp" => mptcp(target),
        "from-41000" => from_port(41_000, target),
        other => Err(io::Error::other(format!("no action `{other}`"))),
    };
    match result {
        Ok((reached, peer)) => {
            json!({"reached": reached, "peer": peer.to_string(), "process": std::process::id()})
        }
        Err(error) => json!({"error": error.raw_os_error(), "text": error.to_string()}),
    }
}

type Seen = io::Result<(String, SocketAddr)>;

fn socket(target: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_read_timeout(Some(crate::seconds(5)))?;
    socket.set_write_timeout(Some(crate::seconds(5)))?;
    Ok(socket)
}

/// What the other side says, and who it is said to be.
fn listen(mut socket: Socket) -> Seen {
    let peer = peer(&socket)?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    Ok((text, peer))
}

fn peer(socket: &Socket) -> io::Result<SocketAddr> {
    socket
        .peer_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("no IP peer"))
}

fn connect(target: SocketAddr) -> Seen {
    let socket = socket(target)?;
    socket.connect_timeout(&target.into(), crate::seconds(5))?;
    listen(socket)
}

/// From a thread that is not the first, and has a name of its own.
fn from_thread(target: SocketAddr) -> Seen {
    std::thread::Builder::new()
        .name("a thread".to_owned())
        .spawn(move || connect(target))?
        .join()
        .map_err(|_| io::Error::other("a client thread panicked"))?
}

/// Makes a socket that a child inherits and connects: what the child saw.
fn inherited(target: SocketAddr) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?)
        .env(crate::ROLE, format!("heir {target}"))
        .stdin(Stdio::from(OwnedFd::from(socket(target)?)))
        .stderr(Stdio::inherit())
        .output()?;
    crate::world::answer("inherited", &output)
}

/// The child: `<target>`, with the socket as its standard input.
pub fn heir(target: &str) -> Result<()> {
    let target: SocketAddr = target.parse()?;
    let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.connect(&target.into())?;
    let (reached, peer) = listen(socket)?;
    println!(
        "{}",
        json!({"reached": reached, "peer": peer.to_string(), "process": std::process::id()})
    );
    Ok(())
}

/// Connects to a Unix socket.
fn unix(path: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(path)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(json!({"reached": text, "process": std::process::id()}))
}

/// From a given source port. Closed by reset: no side keeps these ends in TIME_WAIT, so that they can be used again.
fn from_port(port: u16, target: SocketAddr) -> Seen {
    let socket = socket(target)?;
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.connect_timeout(&target.into(), crate::seconds(5))?;
    listen(socket)
}

/// Connects, says "ready", waits for a line, and sends for two seconds: what an Agent does whose proxy died meanwhile.
fn hold(target: SocketAddr) -> Result<Value> {
    let mut socket = socket(target)?;
    socket.connect_timeout(&target.into(), crate::seconds(5))?;
    let mut first = [0_u8; 64];
    let length = socket.read(&mut first)?;
    println!("ready");
    io::stdin().read_line(&mut String::new())?;
    let start = Instant::now();
    let mut error = None;
    while start.elapsed() < Duration::from_secs(2) {
        if let Err(failed) = socket.write_all(b"meant for the proxy") {
            error = failed.raw_os_error();
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let reached = String::from_utf8_lossy(first.get(..length).unwrap_or_default()).into_owned();
    Ok(json!({"reached": reached, "error": error}))
}

fn mptcp(target: SocketAddr) -> Seen {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM,
        Some(socket2::Protocol::MPTCP),
    )?;
    socket.set_read_timeout(Some(crate::seconds(5)))?;
    socket.connect(&target.into())?;
    listen(socket)
}

/// `connect()` that returns at once, is asked again, and ends by `SO_ERROR`.
fn nonblocking(target: SocketAddr) -> Seen {
    let socket = socket(target)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => other?,
    }
    let start = Instant::now();
    while socket.peer_addr().is_err() {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        if start.elapsed() > crate::seconds(5) {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EISCONN) => {}
        other => other?,
    }
    socket.set_nonblocking(false)?;
    listen(socket)
}

/// Data in the SYN, by `sendto(MSG_FASTOPEN)` without a connect.
fn fast_open_sendto(target: SocketAddr) -> Seen {
    let socket = socket(target)?;
    socket.send_to_with_flags(b"early", &SockAddr::from(target), libc::MSG_FASTOPEN)?;
    listen(socket)
}

/// Data in the SYN, by `TCP_FASTOPEN_CONNECT`: connect returns, the first write sends.
fn fast_open_connect(target: SocketAddr) -> Seen {
    let mut socket = socket(target)?;
    setsockopt(&socket, TcpFastOpenConnect, &true)?;
    socket.connect(&target.into())?;
    socket.write_all(b"early")?;
    listen(socket)
}

fn bound_to_device(target: SocketAddr) -> Seen {
    let socket = socket(target)?;
    socket.bind_device(Some(b"lo"))?;
    socket.connect_timeout(&target.into(), crate::seconds(5))?;
    listen(socket)
}

/// A socket that was intercepted, is disconnected, and connects to port 8080, which is not selected.
fn stale(target: SocketAddr) -> Seen {
    let socket = socket(target)?;
    socket.connect(&target.into())?;
    // `struct sockaddr` of the family AF_UNSPEC (0).
    let unspecified = [0_u64; 2];
    // SAFETY: a live address of the size given; AF_UNSPEC disconnects. std has no such call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), unspecified.as_ptr().cast(), 16) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.connect(&SocketAddr::new(target.ip(), 8080).into())?;
    listen(socket)
}

fn udp(target: SocketAddr) -> Seen {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(crate::seconds(5)))?;
    socket.connect(target)?;
    socket.send(b"hello")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    Ok((text, socket.peer_addr()?))
}

/// Destinations of the load: eight hosts a family, so that a mixed-up original destination is seen.
fn destination(number: u64) -> Result<SocketAddr> {
    let host = number % 8 + 1;
    let text = if number.is_multiple_of(3) {
        format!("[2001:db8::{host}]:80")
    } else {
        format!("203.0.113.{host}:80")
    };
    text.parse().context("destination")
}

/// One connection of a load: what was wrong unless the proxy named exactly the destination. Closed by reset: its port is
/// free at once.
fn probe(number: u64) -> Result<Option<String>> {
    let target = destination(number)?;
    let socket = socket(target)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket
        .connect(&target.into())
        .with_context(|| format!("connect to {target}"))?;
    let (text, peer) = listen(socket).with_context(|| format!("reading from {target}"))?;
    ensure!(peer == target, "peer {peer} of a connection to {target}");
    ensure!(
        text != crate::world::DIRECT,
        "{target} was reached around the proxy"
    );
    Ok((text != target.to_string()).then(|| format!("{target} came as {text}")))
}

/// `total` connections from `threads` threads.
fn load(total: u64, threads: u64) -> Result<Value> {
    let wrong = Mutex::new(Vec::new());
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= total {
                            return Ok(());
                        }
                        if let (Some(what), Ok(mut wrong)) = (probe(number)?, wrong.lock()) {
                            wrong.push(what);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a client thread panicked"))??;
        }
        Ok(())
    })?;
    Ok(report(total, wrong))
}

/// Connects from two threads until a file appears.
fn until(file: &str) -> Result<Value> {
    let (count, wrong, stop) = (AtomicU64::new(0), Mutex::new(Vec::new()), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !stop.load(Ordering::Relaxed) {
                        let number = count.fetch_add(1, Ordering::Relaxed);
                        if let (Some(what), Ok(mut wrong)) = (probe(number)?, wrong.lock()) {
                            wrong.push(what);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        while !fs::exists(file)? && !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client thread panicked"),
            }
        }
        Ok(())
    })?;
    Ok(report(count.into_inner(), wrong))
}

/// How many connections, how many wrong, and the first of those.
fn report(connections: u64, wrong: Mutex<Vec<String>>) -> Value {
    let wrong = wrong.into_inner().unwrap_or_default();
    json!({"connections": connections, "wrong": wrong.len(), "first": wrong.first()})
}
