//! What hyper reads: its server from the bytes of a client, its client from the bytes of a server.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than anything that is not stuck takes; of a clock that goes on when nothing moves.
const STUCK: Duration = Duration::from_secs(60);
/// More than any stream here: nobody waits for room.
const PIPE: usize = 4 << 20;

/// Headers that are for one hop, and what is written anew.
const HOP: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A request as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// From end to end, sorted by name.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    /// The end of its body was there.
    pub complete: bool,
}

/// All of a connection.
#[derive(Clone, Debug)]
pub struct Reading {
    pub requests: Vec<Read>,
    /// Why nothing more was read.
    pub error: Option<String>,
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// What is meant for the other end: without what one hop tells the next.
fn end_to_end(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let listed: Vec<String> = headers
        .get_all("connection")
        .iter()
        .flat_map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .to_lowercase()
                .split(',')
                .map(|name| name.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let mut kept: Vec<(String, Vec<u8>)> = headers
        .iter()
        .filter(|(name, _)| {
            !HOP.contains(&name.as_str()) && !listed.iter().any(|listed| listed == name.as_str())
        })
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    // Stable: values of one name stay in order.
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    kept
}

/// A request's Host is the relay's to write.
fn without_host(mut headers: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    headers.retain(|(name, _)| name != "host");
    headers
}

/// What hyper's server reads when a client sends `bytes` and then ends its side.
pub fn requests(bytes: &[u8]) -> Reading {
    runtime().block_on(async {
        let (mut client, server) = tokio::io::duplex(PIPE);
        let read: Rc<RefCell<Vec<Read>>> = Rc::default();
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let read = Rc::clone(&read);
            async move {
                let (parts, mut body) = request.into_parts();
                let at = read.borrow().len();
                read.borrow_mut().push(Read {
                    method: parts.method.to_string(),
                    // The path as `Uri` means it: an absolute target without one asks for the root.
                    target: match parts.uri.query() {
                        Some(query) => format!("{}?{query}", parts.uri.path()),
                        None => parts.uri.path().to_owned(),
                    },
                    headers: without_host(end_to_end(&parts.headers)),
                    ..Read::default()
                });
                while let Some(frame) = body.frame().await {
                    if let Ok(data) = frame?.into_data() {
                        read.borrow_mut()[at].body.extend_from_slice(&data);
                    }
                }
                read.borrow_mut()[at].complete = true;
                Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(server), service);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let error = match tokio::time::timeout(STUCK, connection).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:?}")),
            Err(_) => Some("it waits".to_owned()),
        };
        let requests = read.borrow().clone();
        Reading { requests, error }
    })
}

/// What hyper's client reads.
#[derive(Clone, Debug)]
pub enum Answer {
    /// No head.
    None(String),
    Some {
        status: u16,
        headers: Vec<(String, Vec<u8>)>,
        body: Vec<u8>,
        /// The body has an end.
        complete: bool,
    },
}

/// What hyper's client reads when it has asked with `method` and `bytes` come; then the server ends its side, or says nothing
/// more.
pub fn answer(method: &Method, bytes: &[u8], ends: bool) -> Answer {
    runtime().block_on(async {
        let (client, mut server) = tokio::io::duplex(PIPE);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri("/")
            .header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let mut response = Box::pin(sender.send_request(request));
        let mut head = [0; 4096];
        // The request must be sent before its answer comes.
        tokio::select! {
            biased;
            _ = &mut response => panic!("an answer before anything was sent"),
            read = server.read(&mut head) => assert!(read.unwrap() > 0),
        }
        server.write_all(bytes).await.unwrap();
        if ends {
            server.shutdown().await.unwrap();
        }
        let answer = match tokio::time::timeout(STUCK, response).await {
            Err(_) => Answer::None("it waits".to_owned()),
            Ok(Err(error)) => Answer::None(format!("{error:?}")),
            Ok(Ok(response)) => {
                let (parts, mut incoming) = response.into_parts();
                let mut body = Vec::new();
                let complete = loop {
                    match tokio::time::timeout(STUCK, incoming.frame()).await {
                        Ok(Some(Ok(frame))) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                        Ok(None) => break true,
                        Ok(Some(Err(_))) | Err(_) => break false,
                    }
                };
                Answer::Some {
                    status: parts.status.as_u16(),
                    headers: end_to_end(&parts.headers),
                    body,
                    complete,
                }
            }
        };
        connection.abort();
        answer
    })
}
