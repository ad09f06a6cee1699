//! The two ends of what is measured. Clients are processes of their own, since a socket belongs to the cgroup of its maker;
//! they take orders on standard input. Servers are threads, of such a process or of the one that holds the programs.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::gettid;
use socket2::{Domain, SockRef, Socket, Type};

/// Nothing here takes longer; a packet that was dropped must not hold up the run.
const PATIENCE: Duration = Duration::from_secs(5);
/// Calls that take less than a microsecond are timed by so many at once.
const GROUP: u32 = 16;
/// Batches of a turn.
const BATCHES: u32 = 6;
/// What the other end is asked for is in the first byte of a message, how often in bytes 4 to 8, the answer in the rest.
const MESSAGE: usize = 16;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `connect()` of a new TCP socket.
    Connect,
    /// `connect()` of one UDP socket, again and again: it sends nothing.
    ConnectUdp,
    /// 16 bytes there and back on one TCP connection.
    Trip,
    /// The same by UDP, to a socket that is not connected.
    TripUdp,
    /// `getpeername()` of one TCP connection.
    PeerName,
    /// `getsockopt(SO_ERROR)` by the client.
    Error,
    /// `getsockopt(SO_ERROR)` by the accepting side, on the accepted socket.
    AcceptedError,
    /// The same with `SO_PEERCRED`.
    AcceptedPeer,
    /// The same with `SO_ORIGINAL_DST` or `IP6T_SO_ORIGINAL_DST`.
    AcceptedOriginal,
}

impl Op {
    const ALL: [Self; 9] = [
        Self::Connect,
        Self::ConnectUdp,
        Self::Trip,
        Self::TripUdp,
        Self::PeerName,
        Self::Error,
        Self::AcceptedError,
        Self::AcceptedPeer,
        Self::AcceptedOriginal,
    ];

    /// How often it is done in one turn.
    pub fn times(self) -> u32 {
        match self {
            Self::Connect => 15 * BATCHES,
            Self::Trip | Self::TripUdp => 30 * BATCHES,
            _ => 10 * GROUP * BATCHES,
        }
    }

    /// True when the server has to answer, and not to accept and forget.
    pub fn wants_answers(self) -> bool {
        self != Self::Connect
    }

    fn word(self) -> String {
        format!("{self:?}")
    }
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A process in an Agent's cgroup, on the node.
    Agent,
    /// A process of the node in nobody's cgroup.
    Other,
    /// A process in the proxy's own cgroup.
    Own,
    /// A process in the pod, in nobody's cgroup.
    Pod,
}

/// A client that waits for orders.
pub struct Client {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// Starts one in this cgroup (`None`: where we are) and in the network namespace of this process (`None`: ours).
    pub fn start(cgroup: Option<&str>, network_of: Option<&str>) -> Result<Self> {
        let mut process = placed(cgroup, network_of, &["client"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self {
            orders: process.stdin.take().context("no way to a client")?,
            answers: BufReader::new(process.stdout.take().context("no way from a client")?),
            process,
        })
    }

    /// Makes it ready: connections that are not part of what is measured are made. [`Client::go`] must follow.
    pub fn prepare(&mut self, op: Op, address: SocketAddr, times: u32) -> Result<()> {
        writeln!(self.orders, "{} {address} {times}", op.word())?;
        match self.answer()?.as_str() {
            "ready" => Ok(()),
            other => bail!("a client that was asked for {op:?} of {address} said `{other}`"),
        }
    }

    /// The time of one operation, in nanoseconds: the median of the quietest batch.
    pub fn go(&mut self) -> Result<f64> {
        writeln!(self.orders, "go")?;
        let text = self.answer()?;
        text.parse()
            .ok()
            .filter(|time: &f64| time.is_finite())
            .with_context(|| format!("a client said `{text}`"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut text = String::new();
        self.answers.read_line(&mut text)?;
        Ok(text.trim().to_owned())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This program with these words, in a cgroup and in the network namespace of a process.
fn placed(cgroup: Option<&str>, network_of: Option<&str>, words: &[&str]) -> Result<Command> {
    let own = std::env::current_exe()?;
    let mut command = Command::new("sh");
    match cgroup {
        Some(cgroup) => {
            command
                .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
                .arg(cgroup);
        }
        None => {
            command.args(["-c", "exec \"$@\"", "sh"]);
        }
    }
    if let Some(process) = network_of {
        command.args(["nsenter", &format!("--target={process}"), "--net", "--"]);
    }
    command.arg(own).args(words);
    Ok(command)
}

/// The role `client`.
pub fn client() -> Result<()> {
    let mut lines = std::io::stdin().lines();
    while let Some(order) = lines.next() {
        let order = order?;
        let mut words = order.split(' ');
        let (Some(op), Some(address), Some(times)) = (words.next(), words.next(), words.next()) else {
            bail!("not an order: `{order}`");
        };
        let op = Op::ALL.into_iter().find(|known| known.word() == op);
        let op = op.with_context(|| format!("not an order: `{order}`"))?;
        let go = || {
            println!("ready");
            lines.next().context("no order to go")?.map(drop)?;
            Ok(())
        };
        let time = measure(op, address.parse()?, times.parse()?, go)
            .with_context(|| format!("{op:?} of {address}"))?;
        println!("{time}");
    }
    Ok(())
}

/// Gets ready, waits for `go`, measures.
fn measure(op: Op, address: SocketAddr, times: u32, go: impl FnOnce() -> Result<()>) -> Result<f64> {
    match op {
        Op::Connect => {
            let connect = || {
                let stream = TcpStream::connect(address)?;
                // A reset: thousands of ports in TIME_WAIT would make the next connects slower.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                Ok(stream)
            };
            connect()?;
            go()?;
            quietest(times, 1, connect)
        }
        Op::ConnectUdp => {
            let socket = udp(address)?;
            go()?;
            quietest(times, GROUP, || Ok(socket.connect(address)?))
        }
        Op::TripUdp => {
            let socket = udp(address)?;
            let mut buffer = [0; MESSAGE];
            let mut trip = || {
                socket.send(&buffer)?;
                Ok(socket.recv(&mut buffer)?)
            };
            trip()?;
            go()?;
            quietest(times, 1, trip)
        }
        Op::Trip => {
            let mut stream = stream(address)?;
            trip(&mut stream, 0, 0)?;
            go()?;
            quietest(times, 1, || trip(&mut stream, 0, 0))
        }
        Op::PeerName => {
            let stream = stream(address)?;
            go()?;
            quietest(times, GROUP, || Ok(stream.peer_addr()?))
        }
        Op::Error => {
            let stream = stream(address)?;
            go()?;
            quietest(times, GROUP, || Ok(stream.take_error()?))
        }
        Op::AcceptedError | Op::AcceptedPeer | Op::AcceptedOriginal => {
            let mut stream = stream(address)?;
            trip(&mut stream, 0, 0)?;
            go()?;
            let kind = match op {
                Op::AcceptedError => 1,
                Op::AcceptedPeer => 2,
                _ => 3,
            };
            trip(&mut stream, kind, times)
        }
    }
}

fn stream(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn udp(address: SocketAddr) -> Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// One message there and back; what the other end measured, in nanoseconds.
fn trip(stream: &mut TcpStream, kind: u8, times: u32) -> Result<f64> {
    let mut message = [0; MESSAGE];
    message[0] = kind;
    message[4..8].copy_from_slice(&times.to_le_bytes());
    stream.write_all(&message)?;
    stream.read_exact(&mut message)?;
    let [.., a, b, c, d, e, f, g, h] = message;
    Ok(f64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// A step's time in nanoseconds, of `times` steps, `group` of which are timed at once: the median of the quietest of [`BATCHES`].
/// Others use the machine too, and what they take away is no cost of ours.
fn quietest<T>(times: u32, group: u32, mut step: impl FnMut() -> Result<T>) -> Result<f64> {
    let mut quietest = f64::INFINITY;
    for _ in 0..BATCHES {
        let mut samples = Vec::new();
        for _ in 0..times / group / BATCHES {
            // What a step made is dropped outside of the time.
            let mut made = Vec::with_capacity(GROUP as usize);
            let start = Instant::now();
            for _ in 0..group {
                made.push(step()?);
            }
            samples.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(group));
        }
        samples.sort_by(f64::total_cmp);
        let median = samples.get(samples.len() / 2).copied();
        quietest = quietest.min(median.context("no time was measured")?);
    }
    Ok(quietest)
}

/// A listener that is served until this is dropped.
pub struct Serving(TcpListener);

impl Serving {
    /// Answers messages on every connection, each on a thread of its own, while `answering` says so; else accepts and forgets.
    pub fn start(listener: TcpListener, answering: &Arc<AtomicBool>) -> Result<Self> {
        listener.set_nonblocking(false)?;
        let (served, answering) = (listener.try_clone()?, Arc::clone(answering));
        let (ready, started) = mpsc::channel();
        thread::spawn(move || {
            if ready.send(never_preempt()).is_err() {
                return;
            }
            loop {
                match served.accept() {
                    Ok((stream, _)) if answering.load(Ordering::Relaxed) => {
                        thread::spawn(move || answer(stream));
                    }
                    Ok(_) => {}
                    // It was shut down. Anything else is about one client, which has gone already.
                    Err(error) if error.kind() == ErrorKind::InvalidInput => break,
                    Err(_) => {}
                }
            }
        });
        started.recv()??;
        Ok(Self(listener))
    }
}

/// This thread waits until the one that woke it is done (`SCHED_BATCH`). Else the thread that accepts runs within some of the connects
/// that are measured, on the same processor, and not within others: 10 us of 17 that come and go.
fn never_preempt() -> Result<()> {
    let thread = gettid().to_string();
    let status = Command::new("chrt")
        .args(["--batch", "--pid", "0", &thread])
        .status();
    let status = status.context("chrt of util-linux cannot be run")?;
    ensure!(status.success(), "chrt --batch --pid 0 {thread}: {status}");
    Ok(())
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Wakes the thread, whose descriptor would keep the listener.
        let _ = SockRef::from(&self.0).shutdown(std::net::Shutdown::Both);
    }
}

fn answer(mut stream: TcpStream) {
    let mut message = [0; MESSAGE];
    let _ = stream.set_nodelay(true);
    while stream.read_exact(&mut message).is_ok() {
        let [kind, _, _, _, a, b, c, d, ..] = message;
        let times = u32::from_le_bytes([a, b, c, d]);
        let time = match kind {
            0 => Ok(0.0),
            1 => quietest(times, GROUP, || Ok(stream.take_error()?)),
            2 => quietest(times, GROUP, || {
                Ok(getsockopt(&stream, sockopt::PeerCredentials)?)
            }),
            // Without the programs there is no answer, after the same way into the kernel.
            _ if stream.local_addr().is_ok_and(|own| own.is_ipv4()) => quietest(times, GROUP, || {
                Ok(getsockopt(&stream, sockopt::OriginalDst).is_ok())
            }),
            _ => quietest(times, GROUP, || {
                Ok(getsockopt(&stream, sockopt::Ip6tOriginalDst).is_ok())
            }),
        };
        message[8..].copy_from_slice(&time.unwrap_or(f64::NAN).to_le_bytes());
        if stream.write_all(&message).is_err() {
            break;
        }
    }
}

/// Starts the role `servers` in the cgroup and network namespace given; returns when they listen.
pub fn servers(cgroup: &str, network_of: Option<&str>) -> Result<Client> {
    let mut process = placed(Some(cgroup), network_of, &["servers"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut servers = Client {
        orders: process.stdin.take().context("no way to the servers")?,
        answers: BufReader::new(process.stdout.take().context("no way from the servers")?),
        process,
    };
    match servers.answer()?.as_str() {
        "ready" => Ok(servers),
        other => bail!("the servers said `{other}`"),
    }
}

/// Ports that accept and forget, of which the first is selected, and ports that answer, of which the first is selected.
pub const FORGETS: [u16; 2] = [80, 81];
/// See [`FORGETS`]. UDP is answered on the second.
pub const ANSWERS: [u16; 2] = [8080, 8081];

/// The role `servers`: every port of every address, both families, until standard input ends.
pub fn serve() -> Result<()> {
    let mut kept = Vec::new();
    for any in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        for (ports, answering) in [(FORGETS, false), (ANSWERS, true)] {
            for port in ports {
                let listener = listen(SocketAddr::new(any, port))?;
                kept.push(Serving::start(listener, &Arc::new(AtomicBool::new(answering)))?);
            }
        }
        let socket = Socket::new(Domain::for_address(SocketAddr::new(any, 0)), Type::DGRAM, None)?;
        if any.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(any, ANSWERS[1]).into())?;
        let socket = UdpSocket::from(socket);
        thread::spawn(move || {
            let mut buffer = [0; MESSAGE];
            while let Ok((size, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..size], from);
            }
        });
    }
    println!("ready");
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    drop(kept);
    Ok(())
}

/// A listener of one family only.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}
