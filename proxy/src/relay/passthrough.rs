//! Passes an Agent's own TLS session through, reads its handshake, and cuts it when it agrees on less than the policy.
//!
//! The bytes are the Agent's and the intake's, unchanged and in order. The server's answer is held back until it tells the
//! session, at most `observe::LONGEST_FLIGHT` bytes: when that is below the policy nothing of it is passed on, so that the Agent
//! never gets keys, has sent nothing yet, and reads our alert where the answer would have begun. Only a HelloRetryRequest goes
//! on before, because the Agent must answer it. An Agent that means to send data that early (RFC 8446 section 2.3) is below
//! the policy at once.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::accept::reject;
use super::outcome::{ClientTls, Outcome};
use super::tunnel;
use crate::config::{BelowPolicy, Config};
use crate::tls::observe::{AgentSession, Below, ClientHello, Observer, Progress, judge};
use crate::tls::server::{Alert, alert};

/// One read of either side during the handshake: more than a whole flight with certificates, mostly.
const PIECE: usize = 16 * 1024;

/// What passing it through came to.
#[derive(Debug)]
pub(super) struct Passed {
    /// Bytes from the client.
    pub(super) up: u64,
    /// Bytes to the client, without an alert of ours.
    pub(super) down: u64,
    pub(super) outcome: Outcome,
    /// Why it ended, when not by both sides' will.
    pub(super) error: Option<String>,
}

/// What the handshake came to.
enum Seen {
    /// The session is known, or there will be none: the rest is copied.
    Over(Option<AgentSession>),
    /// What cannot be read cannot be held to anything.
    Unreadable(&'static str),
    /// It came to nothing.
    Failed(Outcome, String),
}

/// A handshake on its way.
#[derive(Default)]
struct Handshake {
    observer: Observer,
    /// The server's, and not passed on yet.
    held: Vec<u8>,
    up: u64,
    down: u64,
}

/// To the end of the connection; `told` gets what the session agreed on, once, as soon as it is known. `first` was read from
/// the client, and holds the whole `hello`.
pub(super) async fn run(
    mut client: TcpStream,
    mut server: TcpStream,
    first: &[u8],
    hello: &ClientHello,
    config: &Config,
    mut told: impl FnMut(ClientTls),
) -> Passed {
    let strict = config.intercept.https_below_policy == BelowPolicy::Refuse;
    let mut handshake = Handshake::default();
    if hello.early_data && strict {
        let below = Below::early_data();
        told(unknown(&below));
        drop(server);
        return handshake.cut(client, &below).await;
    }
    let seen = match timeout(
        config.upstream.response_timeout,
        handshake.run(&mut client, &mut server, first),
    )
    .await
    {
        Ok(seen) => seen,
        Err(_) => handshake.late(),
    };
    let below = match seen {
        Seen::Over(None) => None,
        Seen::Over(Some(session)) => {
            let below = judge(&session)
                .err()
                .or_else(|| hello.early_data.then(Below::early_data));
            told(known(&session, below.as_ref()));
            below
        }
        Seen::Unreadable(why) => {
            let below = Below::unreadable(why);
            told(unknown(&below));
            Some(below)
        }
        Seen::Failed(outcome, error) => return handshake.ended(outcome, Some(error)),
    };
    if let Some(below) = below.filter(|_| strict) {
        drop(server);
        return handshake.cut(client, &below).await;
    }
    if let Err(error) = handshake.pass_on(&mut client).await {
        return handshake.ended(Outcome::ClientAborted, Some(error.to_string()));
    }
    let rest = tunnel::run(client, server, &[], config.limits.idle_timeout).await;
    handshake.up += rest.up;
    handshake.down += rest.down;
    match rest.error {
        None => handshake.ended(Outcome::Ok, None),
        Some(error) => handshake.ended(Outcome::ClientAborted, Some(error.to_string())),
    }
}

impl Handshake {
    async fn run(&mut self, client: &mut TcpStream, server: &mut TcpStream, first: &[u8]) -> Seen {
        if let Err(error) = server.write_all(first).await {
            return broken(&error);
        }
        self.up += first.len() as u64;
        let (mut up, mut down) = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            tokio::select! {
                biased;
                read = server.read(&mut down) => match read {
                    Ok(0) => return self.left(client).await,
                    Ok(read) => {
                        let piece = &down[..read];
                        self.held.extend_from_slice(piece);
                        match self.observer.server(piece) {
                            Progress::Known(session) => return Seen::Over(Some(session)),
                            Progress::Alerted => return Seen::Over(None),
                            Progress::Unreadable(why) => return Seen::Unreadable(why),
                            Progress::More if self.observer.awaits_client() => {
                                if let Err(error) = self.pass_on(client).await {
                                    return gone(Some(&error));
                                }
                            }
                            Progress::More => {}
                        }
                    }
                    Err(error) => return broken(&error),
                },
                read = client.read(&mut up) => match read {
                    Ok(0) => return gone(None),
                    Ok(read) => {
                        if let Err(error) = server.write_all(&up[..read]).await {
                            return broken(&error);
                        }
                        self.up += read as u64;
                    }
                    Err(error) => return gone(Some(&error)),
                },
            }
        }
    }

    async fn pass_on(&mut self, client: &mut TcpStream) -> io::Result<()> {
        client.write_all(&self.held).await?;
        self.down += self.held.len() as u64;
        self.held = Vec::new();
        Ok(())
    }

    /// The server closed before there was a session. What it said goes on: no keys come of it.
    async fn left(&mut self, client: &mut TcpStream) -> Seen {
        match self.pass_on(client).await {
            Ok(()) => Seen::Failed(
                Outcome::UpstreamProtocol,
                "the original destination closed the connection before its part of the handshake was complete"
                    .to_owned(),
            ),
            Err(error) => gone(Some(&error)),
        }
    }

    /// Nobody finished in time.
    fn late(&self) -> Seen {
        if self.observer.awaits_client() {
            let why = "the client did not answer a HelloRetryRequest within upstream.response_timeout";
            return Seen::Failed(Outcome::ClientTimeout, why.to_owned());
        }
        let why = "the original destination did not finish its part of the handshake within \
                   upstream.response_timeout";
        Seen::Failed(Outcome::UpstreamTimeout, why.to_owned())
    }

    /// Ends it with an alert, and says why.
    async fn cut(self, client: TcpStream, below: &Below) -> Passed {
        reject(client, &alert::record(Alert::InsufficientSecurity)).await;
        let why = format!(
            "the Agent's own TLS session is below the policy and was cut: {}; let the proxy end its TLS (ca install, \
             intercept.https: terminate), or set intercept.https_below_policy to record",
            below.message
        );
        self.ended(Outcome::BelowPolicy, Some(why))
    }

    fn ended(self, outcome: Outcome, error: Option<String>) -> Passed {
        Passed {
            up: self.up,
            down: self.down,
            outcome,
            error,
        }
    }
}

/// The connection to the original destination broke.
fn broken(error: &io::Error) -> Seen {
    let why = format!("the original destination broke the connection during the handshake: {error}");
    Seen::Failed(Outcome::UpstreamProtocol, why)
}

/// The client is gone.
fn gone(error: Option<&io::Error>) -> Seen {
    let why = match error {
        None => "the client closed the connection during the handshake".to_owned(),
        Some(error) => format!("the client broke the connection during the handshake: {error}"),
    };
    Seen::Failed(Outcome::ClientAborted, why)
}

fn known(session: &AgentSession, below: Option<&Below>) -> ClientTls {
    ClientTls {
        decision: "passthrough".to_owned(),
        version: session.version.clone(),
        suite: session.suite.clone(),
        group: session.group.clone(),
        below: below.map(|below| below.label.to_owned()),
    }
}

fn unknown(below: &Below) -> ClientTls {
    ClientTls {
        decision: "passthrough".to_owned(),
        version: "-".to_owned(),
        suite: "-".to_owned(),
        group: None,
        below: Some(below.label.to_owned()),
    }
}
