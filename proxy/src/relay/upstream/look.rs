//! A look at the way to one intake, for people: every step by itself, at every address, with what each took. The steps are those of
//! a request: the same resolver, the same rule for addresses, the same outbound proxy, the same TLS. Nothing is pooled.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::Failure;
use super::connect::{self, LocalExecutor, MAX_ADDRESSES, To, Way};
use super::pool::For;
use super::resolve::ResolveError;
use super::socket::Socket;
use super::target::Targets;
use crate::address::{is_public, may_be_proxy, may_dial};
use crate::catalog::Product;
use crate::relay::Shared;
use crate::relay::decide::Route;
use crate::relay::network::NetworkId;
use crate::relay::origin::{UpstreamAddr, canonical};
use crate::tls::shown::Shown;
use crate::tls::{self, Negotiated};

/// What is asked for.
pub struct Question {
    /// Whose way it is.
    pub product: Product,
    /// The intake's name.
    pub name: String,
    /// `GET` or `HEAD`.
    pub method: Method,
    /// Where a harmless request goes.
    pub path: &'static str,
    /// For DD-API-KEY; without it none is sent.
    pub key: Option<Arc<Zeroizing<String>>>,
    /// For the resolver and for the answer, each.
    pub limit: Duration,
}

/// What was seen. Times are microseconds.
#[derive(Debug, Serialize)]
pub struct Look {
    /// What is resolved: the intake's name, the endpoint of `upstream.endpoints`, or the outbound proxy.
    pub host: String,
    /// What is dialled.
    pub port: u16,
    /// `host:port` of the outbound proxy.
    pub proxy: Option<String>,
    /// How long the resolver took.
    pub resolved_us: u64,
    /// Why there is no address.
    pub unresolved: Option<Unresolved>,
    /// In the order in which the proxy tries them.
    pub addresses: Vec<Address>,
    /// What was answered, by the first address with which TLS was made.
    pub http: Option<Answered>,
}

/// Why a name has no address.
#[derive(Debug, Serialize)]
pub struct Unresolved {
    /// A server said that there is no such name.
    pub unknown: bool,
    /// In words.
    pub error: String,
}

/// One address.
#[derive(Debug, Serialize)]
pub struct Address {
    /// With the port.
    pub address: SocketAddr,
    /// Of the public Internet.
    pub public: bool,
    /// The proxy dials it.
    pub dialled: bool,
    /// How long TCP took.
    pub connected_us: Option<u64>,
    /// How long the tunnel and TLS took.
    pub secured_us: Option<u64>,
    /// What TLS agreed on.
    pub tls: Option<Negotiated>,
    /// What the server showed.
    pub shown: Option<Shown>,
    /// Which step failed: `tcp`, `proxy` or `tls`.
    pub failed: Option<&'static str>,
    /// One of `tls::error::REASONS`, where TLS failed.
    pub reason: Option<&'static str>,
    /// Why, and mostly what to do.
    pub error: Option<String>,
}

/// An answer, or that there was none.
#[derive(Debug, Default, Serialize)]
pub struct Answered {
    /// The address that was asked.
    pub address: Option<SocketAddr>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: Option<String>,
    /// The status.
    pub status: Option<u16>,
    /// Until the head came.
    pub took_us: u64,
    /// Why there was none.
    pub error: Option<String>,
}

type Session = (tls::ClientStream<Socket>, bool);

/// Looks. Must run inside a `LocalSet`.
pub async fn look(shared: &Shared, question: &Question) -> Look {
    let route = Route {
        product: question.product,
        name: Some(question.name.clone()),
    };
    let target = Targets::default().get(route, &shared.catalog);
    let way = connect::way(shared, &target, None);
    let (host, port) = match &way {
        Way::Named { host, port } => (*host, *port),
        Way::Original { name, port, .. } => (*name, *port),
        Way::Proxy { outbound, .. } => outbound.address(),
    };
    let mut look = Look {
        host: host.to_owned(),
        port,
        proxy: match &way {
            Way::Proxy { outbound, .. } => Some(outbound.authority().to_owned()),
            _ => None,
        },
        resolved_us: 0,
        unresolved: None,
        addresses: Vec::new(),
        http: None,
    };
    let begin = Instant::now();
    let ips = resolve(shared, host, question.limit).await;
    look.resolved_us = micros(begin);
    let ips = match ips {
        Ok(ips) => ips,
        Err(unresolved) => {
            look.unresolved = Some(unresolved);
            return look;
        }
    };
    let to = To {
        network: NetworkId::HOST,
        target: &target,
        way: &way,
        client: For::Http2,
    };
    let tried = connect::alternate(&ips).take(MAX_ADDRESSES);
    let tried = join_all(tried.map(|ip| one(shared, to, canonical(SocketAddr::new(ip, port))))).await;
    let mut first = None;
    for (address, session) in tried {
        if let Some(session) = session.filter(|_| first.is_none()) {
            first = Some((address.address, session));
        }
        look.addresses.push(address);
    }
    if let Some((address, session)) = first {
        let begin = Instant::now();
        let asked = timeout(question.limit, ask(session, question)).await;
        let answered = asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", question.limit)));
        look.http = Some(Answered {
            address: Some(address),
            took_us: micros(begin),
            ..answered.unwrap_or_else(|error| Answered {
                error: Some(error),
                ..Answered::default()
            })
        });
    }
    look
}

async fn resolve(shared: &Shared, host: &str, limit: Duration) -> Result<Vec<IpAddr>, Unresolved> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    match timeout(limit, shared.resolver.lookup(host)).await {
        Ok(found) => found.map_err(|error| Unresolved {
            unknown: matches!(error, ResolveError::Denied(_)),
            error: error.to_string(),
        }),
        Err(_) => Err(Unresolved {
            unknown: false,
            error: format!("no answer within {limit:?}"),
        }),
    }
}

/// One address, through TLS.
async fn one(shared: &Shared, to: To<'_>, address: SocketAddr) -> (Address, Option<Session>) {
    let upstream = &shared.config.upstream;
    let may = match to.way {
        Way::Proxy { .. } => may_be_proxy,
        Way::Named { .. } | Way::Original { .. } => may_dial,
    };
    let mut seen = Address {
        address,
        public: is_public(address.ip()),
        dialled: may(address.ip(), &upstream.allow_private),
        connected_us: None,
        secured_us: None,
        tls: None,
        shown: None,
        failed: None,
        reason: None,
        error: None,
    };
    if !seen.dialled {
        return (seen, None);
    }
    let addr = UpstreamAddr(address);
    let late = |_| Err(connect::late(to.way, addr));
    let begin = Instant::now();
    let stream = timeout(upstream.connect_timeout, connect::tcp(shared, to, addr)).await;
    let stream = match stream.unwrap_or_else(late) {
        Ok(stream) => stream,
        Err(failure) => {
            seen.fail("tcp", &failure);
            return (seen, None);
        }
    };
    seen.connected_us = Some(micros(begin));
    let begin = Instant::now();
    let limit = upstream.connect_timeout;
    let session = match timeout(limit, connect::session(shared, to, addr, stream)).await {
        Ok(session) => session,
        Err(_) => {
            let failure = connect::late(to.way, addr);
            seen.fail("tls", &failure);
            return (seen, None);
        }
    };
    match session {
        Ok((stream, negotiated, watch)) => {
            drop::<Rc<_>>(watch);
            seen.secured_us = Some(micros(begin));
            seen.shown = Some(shared.tls.shown(&stream));
            let http2 = negotiated.http2;
            seen.tls = Some(negotiated);
            (seen, Some((stream, http2)))
        }
        Err(failure) => {
            let step = if matches!(failure, Failure::Tunnel { .. }) {
                "proxy"
            } else {
                "tls"
            };
            seen.fail(step, &failure);
            (seen, None)
        }
    }
}

impl Address {
    fn fail(&mut self, step: &'static str, failure: &Failure) {
        self.failed = Some(step);
        self.error = Some(failure.to_string());
        if let Failure::Handshake { source, .. } = failure {
            self.reason = Some(source.reason);
        }
    }
}

/// One request, and the head of its answer.
async fn ask((stream, http2): Session, question: &Question) -> Result<Answered, String> {
    let mut request = Request::builder().method(question.method.clone()).header(
        "user-agent",
        concat!("agent-fips-proxy/", env!("CARGO_PKG_VERSION"), " diagnose"),
    );
    request = match http2 {
        true => request.uri(format!("https://{}{}", question.name, question.path)),
        false => request.uri(question.path).header("host", &question.name),
    };
    if let Some(key) = &question.key {
        let mut value =
            http::HeaderValue::from_str(key).map_err(|_| "the API key is no header value".to_owned())?;
        value.set_sensitive(true);
        request = request.header("dd-api-key", value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let io = TokioIo::new(stream);
    let told = |error: hyper::Error| error.to_string();
    let response = if http2 {
        let (mut sender, connection) = http2::handshake(LocalExecutor, io).await.map_err(told)?;
        tokio::task::spawn_local(connect::drive(connection));
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = http1::handshake(io).await.map_err(told)?;
        tokio::task::spawn_local(connect::drive(connection));
        sender.send_request(request).await
    };
    let response = response.map_err(told)?;
    Ok(Answered {
        version: Some(format!("{:?}", response.version())),
        status: Some(response.status().as_u16()),
        ..Answered::default()
    })
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
