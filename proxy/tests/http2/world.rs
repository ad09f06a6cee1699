//! A proxy whose local authority the clients here trust.

use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use agent_fips_proxy::config::TlsPolicy;
use agent_fips_proxy::relay::HttpsHandling;
use agent_fips_proxy::relay::outcome::{ConnectionRecord, RequestRecord};
use agent_fips_proxy::tls::server::Server;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::ServerName;

use crate::frames::Raw;
use crate::harness::{Proxy, Setup, eventually};
use crate::local::Local;

/// The intake that everybody asks for.
pub const NAME: &str = "trace.agent.ddog-gov.com";

/// A good request's head.
pub fn get(path: &str) -> [(&str, &str); 4] {
    request("GET", path)
}

pub fn post(path: &str) -> [(&str, &str); 4] {
    request("POST", path)
}

pub fn request<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [
        (":method", method),
        (":scheme", "https"),
        (":authority", NAME),
        (":path", path),
    ]
}

/// Tests share the process; one that measures its memory has it for itself.
static PROCESS: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "what they are for is that they are held")]
enum Share {
    Some(RwLockReadGuard<'static, ()>),
    All(RwLockWriteGuard<'static, ()>),
}

/// Memory of this process that is in RAM, in bytes (`VmRSS`).
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

struct Authority {
    server: Server,
    roots: RootCertStore,
}

/// One for all tests. Its folder is not needed any more.
static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let local = Local::new(TlsPolicy::Fips);
    Authority {
        server: local.server.clone(),
        roots: local.roots(),
    }
});

/// A proxy that terminates HTTPS. One at a time in a test.
pub struct World {
    proxy: Proxy,
    _share: Share,
}

impl Deref for World {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

impl World {
    pub fn new(upstream: SocketAddr) -> Self {
        Self::with(upstream, |_| {})
    }

    pub fn with(upstream: SocketAddr, change: impl FnOnce(&mut Setup)) -> Self {
        let share = Share::Some(PROCESS.read().unwrap_or_else(PoisonError::into_inner));
        Self::start(upstream, change, share)
    }

    /// While no other test runs.
    pub fn alone(upstream: SocketAddr, change: impl FnOnce(&mut Setup)) -> Self {
        let share = Share::All(PROCESS.write().unwrap_or_else(PoisonError::into_inner));
        Self::start(upstream, change, share)
    }

    fn start(upstream: SocketAddr, change: impl FnOnce(&mut Setup), share: Share) -> Self {
        let proxy = Proxy::with(upstream, |setup| {
            setup.https = HttpsHandling::Terminate(AUTHORITY.server.clone());
            change(setup);
        });
        Self { proxy, _share: share }
    }

    /// Drains it and waits until it is done.
    pub fn stop(&mut self) {
        self.proxy.drain();
        self.proxy.join();
    }

    /// A TLS session with `protocol`.
    pub fn session(&self, name: &str, protocol: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
        let mut config = client_config();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(self.proxy.intercept).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        assert_eq!(stream.conn.alpn_protocol(), Some(protocol));
        stream
    }

    /// A client that has said nothing yet.
    pub fn silent(&self) -> Raw {
        let raw = Raw::new(self.session(NAME, b"h2"));
        // An earlier connection may have come from the same port.
        let records = &self.proxy.records;
        records
            .connections
            .lock()
            .unwrap()
            .retain(|record| record.client != raw.local);
        records
            .requests
            .lock()
            .unwrap()
            .retain(|record| record.client != raw.local);
        raw
    }

    /// A client that has sent its preface.
    pub fn raw(&self) -> Raw {
        let mut raw = self.silent();
        raw.begin(&[]);
        raw
    }

    /// The record of the connection that came from `local`.
    pub fn record_of(&self, local: SocketAddr) -> ConnectionRecord {
        eventually(|| {
            let connections = self.proxy.records.connections.lock().unwrap();
            connections.iter().find(|record| record.client == local).cloned()
        })
    }

    /// The records of its requests.
    pub fn requests_of(&self, local: SocketAddr) -> Vec<RequestRecord> {
        let requests = self.proxy.records.requests.lock().unwrap();
        requests
            .iter()
            .filter(|record| record.client == local)
            .cloned()
            .collect()
    }

    /// A new connection gets a good answer.
    pub fn still_serves(&self, what: &str) {
        let mut raw = self.raw();
        let (status, _) = raw.headers(1, crate::frames::WHOLE, &get("/still")).answer(1);
        assert_eq!(status, 200, "{what}: the next client is not served");
        raw.leave();
    }
}

/// Trusts the authority.
pub fn client_config() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(AUTHORITY.roots.clone())
        .with_no_client_auth()
}
