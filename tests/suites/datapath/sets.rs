//! The listeners of an Agent's network as the proxy makes them, one socket for each data thread: the kernel gives each of
//! them its part of the connections, whichever of them the programs were told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use agent_fips_proxy::config::InterfacePattern;
use agent_fips_proxy::intercept::NetworkListeners;

use super::namespaces::Pods;
use super::network::{DEVICE, Network};
use super::*;
use crate::world::make_addresses;

/// Connections of a load, two of three by IPv4. Fair coins leave one of two sockets without any of 64 once in 2^63 runs.
const CONNECTIONS: usize = 192;

pub(super) fn every_socket_of_a_pod_is_used(world: &World) -> Result<()> {
    let mut proxy = Proxy::start(&config(world))?;
    let pods = Pods::new()?;
    let pod = pods.make(make_addresses)?;
    pods.with_idle(world, &pod, || {
        let opened = proxy.interceptor.sync().opened;
        let served = Served::start(opened, original)?;
        let seen = pods.agent(world, &pod, "agent", &load())?;
        served.check(&seen)?;
        let all = u64::try_from(CONNECTIONS)?;
        ensure!(
            proxy.counter("handed_over") == all && proxy.counter("accepted_else") == 0,
            "{:?}",
            proxy.interceptor.status()
        );
        Ok(())
    })
}

pub(super) fn every_socket_of_an_interface_is_used(world: &World) -> Result<()> {
    let network = Network::new()?;
    let mut config = intercepting(world.selector("nobody"));
    config.datapath = Datapath::Tc;
    config.interfaces = vec![InterfacePattern(DEVICE.to_owned())];
    let mut proxy = Proxy::load(&config)?;
    proxy.set_listeners()?;
    let changes = proxy.interceptor.switch_on()?;
    ensure!(changes.failed.is_empty(), "{changes:?}");
    // Transparent: the accepted socket's own address is where its client meant to go.
    let served = Served::start(changes.opened, TcpStream::local_addr)?;
    let seen = network.agent(world, &load())?;
    served.check(&seen)?;
    ensure!(
        proxy.counter("tc_picked") >= u64::try_from(CONNECTIONS)?,
        "{:?}",
        proxy.interceptor.status()
    );
    ensure!(network.arrived(80)? == 0, "a taken packet went on");
    Ok(())
}

fn load() -> String {
    format!("load {CONNECTIONS} 4")
}

/// The sockets of one network, all accepting, and how many connections each of them got.
struct Served {
    v4: Vec<Arc<AtomicUsize>>,
    v6: Vec<Arc<AtomicUsize>>,
}

impl Served {
    /// Each connection is told where it was meant to go, as `origin` says.
    fn start(
        opened: Vec<NetworkListeners>,
        origin: fn(&TcpStream) -> std::io::Result<SocketAddr>,
    ) -> Result<Self> {
        let [network]: [NetworkListeners; 1] = opened
            .try_into()
            .map_err(|opened| anyhow::anyhow!("one network: {opened:?}"))?;
        for set in [&network.v4, &network.v6] {
            let ports: BTreeSet<u16> = set
                .iter()
                .map(|socket| socket.local_addr().map(|address| address.port()))
                .collect::<Result<_, _>>()?;
            ensure!(set.len() == SOCKETS && ports.len() == 1, "{set:?}");
        }
        let serve = |set: Vec<TcpListener>| set.into_iter().map(|socket| accept(socket, origin)).collect();
        let (v4, v6): (Result<_>, Result<_>) = (serve(network.v4), serve(network.v6));
        Ok(Self { v4: v4?, v6: v6? })
    }

    /// Every connection came to one of the sockets and was told the truth, and no socket was left out.
    fn check(&self, seen: &Value) -> Result<()> {
        ensure!(
            seen["wrong"] == 0 && seen["connections"] == CONNECTIONS,
            "the clients saw {seen}"
        );
        let counts = |set: &[Arc<AtomicUsize>]| -> Vec<usize> {
            set.iter().map(|count| count.load(Ordering::Relaxed)).collect()
        };
        let (v4, v6) = (counts(&self.v4), counts(&self.v6));
        ensure!(
            v4.iter().chain(&v6).all(|count| *count > 0),
            "a socket was left out: {v4:?} and {v6:?}"
        );
        let sum = |counts: &[usize]| counts.iter().sum::<usize>();
        ensure!(
            (sum(&v4), sum(&v6)) == (CONNECTIONS - CONNECTIONS / 3, CONNECTIONS / 3),
            "{v4:?} and {v6:?}"
        );
        Ok(())
    }
}

fn accept(
    listener: TcpListener,
    origin: fn(&TcpStream) -> std::io::Result<SocketAddr>,
) -> Result<Arc<AtomicUsize>> {
    listener.set_nonblocking(false)?;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::Relaxed);
            let text = origin(&stream).map_or_else(|_| LOST.to_owned(), |address| address.to_string());
            thread::spawn(move || say(stream, &text));
        }
    });
    Ok(count)
}
