//! A TLS server and clients of any taste, whose bytes on the wire are kept.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::authority::{client, socket};
use crate::harness::Proxy;
use crate::world::Fake;

pub const NAME: &str = "trace.agent.ddog-gov.com";

pub type Versions = &'static [&'static SupportedProtocolVersion];

/// What one side of a connection read and wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    pub read: Vec<u8>,
    pub written: Vec<u8>,
}

/// A socket that keeps its bytes, and writes in pieces.
pub struct Tap {
    stream: TcpStream,
    wire: Arc<Mutex<Wire>>,
    piece: usize,
}

impl Tap {
    fn new(stream: TcpStream, piece: usize) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            wire: Arc::default(),
            piece,
        }
    }

    /// Says that nothing more is written, and reads until the other side says so too.
    fn finish(&mut self) {
        // The other side may have closed already.
        drop(self.stream.shutdown(Shutdown::Write));
        let mut rest = [0; 4096];
        while matches!(self.read(&mut rest), Ok(1..)) {}
    }
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.wire.lock().unwrap().read.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(&bytes[..bytes.len().min(self.piece)])?;
        self.wire
            .lock()
            .unwrap()
            .written
            .extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A TLS server for [`NAME`] that answers `ping!` with `pong!`.
pub struct Server {
    pub fake: Fake,
    authority: CertificateDer<'static>,
    /// Of the connections that are over.
    pub wires: Arc<Mutex<Vec<Wire>>>,
}

impl Server {
    pub fn start(provider: CryptoProvider, versions: Versions, piece: usize) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![NAME.to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.max_early_data_size = 1024;
        let config = Arc::new(config);
        let wires = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&wires);
        let fake = Fake::on((Ipv4Addr::LOCALHOST, 0).into(), move |stream| {
            let tap = Tap::new(stream, piece);
            let wire = Arc::clone(&tap.wire);
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut session = StreamOwned::new(session, tap);
            // What fails is for the client's side of the test to see.
            drop(answer(&mut session));
            session.sock.finish();
            let wire = wire.lock().unwrap().clone();
            if wire != Wire::default() {
                all.lock().unwrap().push(wire);
            }
        });
        Self {
            fake,
            authority: authority.der().clone(),
            wires,
        }
    }

    /// A client that trusts this server.
    pub fn client(&self, provider: CryptoProvider, versions: Versions) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        client(roots, &[], provider, versions)
    }
}

fn answer(session: &mut StreamOwned<ServerConnection, Tap>) -> io::Result<()> {
    let mut ping = [0; 5];
    session.read_exact(&mut ping)?;
    assert_eq!(&ping, b"ping!");
    session.write_all(b"pong!")?;
    session.flush()?;
    // The client's goodbye.
    while session.read(&mut ping)? > 0 {}
    session.conn.send_close_notify();
    session.flush()
}

/// Talks to whoever answers for the proxy's original destination, and tells how that went and what was on the wire.
pub fn talk(proxy: &Proxy, config: &Arc<ClientConfig>, piece: usize) -> (io::Result<()>, Wire) {
    let tap = Tap::new(socket(proxy.intercept), piece);
    let wire = Arc::clone(&tap.wire);
    let name = ServerName::try_from(NAME).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut session = StreamOwned::new(connection, tap);
    let said = ask(&mut session);
    session.sock.finish();
    let wire = wire.lock().unwrap().clone();
    (said, wire)
}

fn ask(session: &mut StreamOwned<ClientConnection, Tap>) -> io::Result<()> {
    session.write_all(b"ping!")?;
    session.flush()?;
    let mut pong = [0; 5];
    session.read_exact(&mut pong)?;
    assert_eq!(&pong, b"pong!");
    session.conn.send_close_notify();
    session.flush()?;
    while session.read(&mut pong)? > 0 {}
    Ok(())
}

/// A client's first flight, as it would write it.
pub fn hello_of(config: ClientConfig) -> Vec<u8> {
    let name = ServerName::try_from(NAME).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The types of the records in these bytes, which must be whole.
pub fn records(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [kind, 3, _, high, low, rest @ ..] = bytes {
        kinds.push(*kind);
        let (_, after) = rest
            .split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
            .expect("a whole record");
        bytes = after;
    }
    assert_eq!(bytes, b"", "after {kinds:?}");
    kinds
}
