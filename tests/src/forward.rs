//! A site's outbound proxy (HTTP CONNECT), strict about what it is asked: whatever a proxy of the field could stumble over
//! is a recorded fault.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sched::{CloneFlags, setns};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::ca::Leaf;
use crate::netns::Host;

/// The longest head that is read.
const MAX_HEAD: usize = 8 * 1024;

/// One request for a tunnel.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The request's target.
    pub authority: String,
    /// The value of Proxy-Authorization.
    pub authorization: Option<String>,
    /// What was answered.
    pub status: u16,
    /// What a proxy of the field could stumble over.
    pub faults: Vec<String>,
}

/// What it does with whom; may change while it runs.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// `user:password` that it wants; none: it lets everybody through.
    pub credentials: Option<String>,
    /// The status that it refuses everything with.
    pub refuse: Option<u16>,
}

/// A running proxy; stops when dropped.
pub struct Forward {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Every tunnel leads here: it stands for the proxy's own resolver.
    to: SocketAddr,
    rules: Mutex<Rules>,
    asked: Mutex<Vec<Asked>>,
    /// First bytes of connections that asked for no tunnel.
    strange: Mutex<Vec<Vec<u8>>>,
}

impl Forward {
    /// Binds `address` on `host`; every tunnel leads to `to`. With a leaf it speaks TLS itself.
    pub fn start(host: &Host, address: SocketAddr, to: SocketAddr, leaf: Option<Leaf>) -> Result<Self> {
        let shared = Arc::new(Shared {
            to,
            rules: Mutex::default(),
            asked: Mutex::default(),
            strange: Mutex::default(),
        });
        let namespace = host.namespace()?;
        let acceptor = leaf.map(acceptor).transpose()?;
        let (ready, bound) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("forward".to_owned())
            .spawn(move || {
                let run = || -> Result<()> {
                    setns(&namespace, CloneFlags::CLONE_NEWNET)
                        .context("cannot enter the network namespace")?;
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()?;
                    runtime.block_on(async {
                        let listener = TcpListener::bind(address)
                            .await
                            .with_context(|| format!("the outbound proxy cannot bind {address}"))?;
                        tokio::spawn(accept(listener, acceptor, state));
                        let _ = ready.send(Ok(()));
                        let _ = stopped.await;
                        Ok(())
                    })
                };
                if let Err(error) = run() {
                    let _ = ready.send(Err(error));
                }
            })?;
        bound
            .recv()
            .map_err(|_| anyhow!("the outbound proxy's thread died"))??;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// From now on.
    pub fn set_rules(&self, rules: Rules) {
        *lock(&self.shared.rules) = rules;
    }

    /// Takes what it was asked so far.
    pub fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut lock(&self.shared.asked))
    }

    /// First bytes of connections that asked for no tunnel.
    pub fn strange(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.strange).clone()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the proxy of a test is not one of ours")]
fn acceptor(leaf: Leaf) -> Result<TlsAcceptor> {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(leaf.chain, leaf.key)?;
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match acceptor {
                None => serve(stream, &shared).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, &shared).await;
                    }
                }
            }
        });
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        // Byte by byte: what follows the head belongs to the tunnel.
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let Some(mut asked) = parse(&text) else {
        lock(&shared.strange).push(head);
        return;
    };
    let rules = lock(&shared.rules).clone();
    let wanted = rules
        .credentials
        .map(|credentials| format!("Basic {}", STANDARD.encode(credentials)));
    asked.status = match (rules.refuse, wanted) {
        (Some(status), _) => status,
        (None, Some(wanted)) if asked.authorization.as_ref() != Some(&wanted) => 407,
        (None, _) => 200,
    };
    let status = asked.status;
    lock(&shared.asked).push(asked);
    if status != 200 {
        let answer = format!(
            "HTTP/1.1 {status} No\r\nProxy-Authenticate: Basic realm=\"site\"\r\nContent-Length: 0\r\n\r\n"
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.flush().await;
        return;
    }
    let Ok(mut intake) = TcpStream::connect(shared.to).await else {
        let _ = stream.write_all(b"HTTP/1.1 502 No way\r\n\r\n").await;
        return;
    };
    let answer = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 site\r\n\r\n";
    if stream.write_all(answer).await.is_ok() && stream.flush().await.is_ok() {
        let _ = copy_bidirectional(&mut stream, &mut intake).await;
    }
}

/// `None`: no CONNECT at all.
fn parse(head: &str) -> Option<Asked> {
    let mut lines = head.strip_suffix("\r\n\r\n")?.split("\r\n");
    let authority = lines
        .next()?
        .strip_prefix("CONNECT ")?
        .strip_suffix(" HTTP/1.1")?
        .to_owned();
    let mut asked = Asked {
        authority,
        authorization: None,
        status: 0,
        faults: Vec::new(),
    };
    let mut host = None;
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else {
            asked.faults.push(format!("not a header: {line}"));
            continue;
        };
        match name {
            "Host" if host.is_none() => host = Some(value),
            "Proxy-Authorization" if asked.authorization.is_none() => {
                asked.authorization = Some(value.to_owned());
            }
            "User-Agent" => {}
            // A body's length, an API key, a second Host: nothing of this belongs into a CONNECT.
            _ => asked.faults.push(format!("unexpected header {name}")),
        }
    }
    if host != Some(asked.authority.as_str()) {
        asked
            .faults
            .push(format!("Host {host:?} for {}", asked.authority));
    }
    let port = asked
        .authority
        .rsplit_once(':')
        .map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(1..))) {
        asked.faults.push(format!("no port in {}", asked.authority));
    }
    Some(asked)
}

/// A poisoned lock only means that another thread of a failing test panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
