//! The corners of HTTP/1 once more, each with an intake of HTTP/1.1 and one of HTTP/2: what a client sees must not depend on
//! it.

#[path = "intakes/answers.rs"]
mod answers;
#[path = "intakes/requests.rs"]
mod requests;

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::Notify;

use crate::harness::{Proxy, Setup};
use crate::hyper_intake::{listen, speak};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// One part of `/large`, and how many there are.
const PART: usize = 64 * 1024;
const PARTS: usize = 640;

/// A request as the intake got it.
#[derive(Clone, Debug)]
struct Got {
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// What is counted at the intake.
#[derive(Default)]
struct Counts {
    seen: Mutex<Vec<Got>>,
    connections: AtomicUsize,
    /// Answers that were given up before their end.
    gone: AtomicUsize,
    /// Parts of `/large` that were asked for.
    parts: AtomicUsize,
    /// Ends the connection, when all requests on it are answered.
    goodbye: Notify,
}

struct Intake {
    address: SocketAddr,
    http2: bool,
    counts: Arc<Counts>,
}

/// Counts an answer that is dropped before its end.
struct Guard {
    counts: Arc<Counts>,
    done: Cell<bool>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.done.get() {
            self.counts.gone.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The part of this number: bytes that repeat late.
fn part(number: usize) -> Bytes {
    (0..PART)
        .map(|n| ((n / 251 + n + number * 7) % 256).try_into().unwrap_or(0))
        .collect()
}

fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// Parts, then what `last` says.
fn parts(parts: Vec<&'static str>, last: Option<std::io::Result<()>>, guard: Guard) -> Body {
    let parts = parts
        .into_iter()
        .map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes()))));
    let state = (parts.collect::<Vec<_>>().into_iter(), last, guard);
    let stream = stream::unfold(state, |(mut parts, mut last, guard)| async move {
        // Each by itself on its way.
        tokio::time::sleep(Duration::from_millis(5)).await;
        if let Some(part) = parts.next() {
            return Some((part, (parts, last, guard)));
        }
        match last.take() {
            Some(Ok(())) => {
                guard.done.set(true);
                None
            }
            Some(Err(error)) => Some((Err(error), (parts, None, guard))),
            None => std::future::pending().await,
        }
    });
    StreamBody::new(stream).boxed_unsync()
}

fn large(counts: &Arc<Counts>) -> Body {
    let counts = Arc::clone(counts);
    let parts = stream::iter(0..PARTS).map(move |number| {
        counts.parts.fetch_add(1, Ordering::SeqCst);
        Ok(Frame::data(part(number)))
    });
    StreamBody::new(parts).boxed_unsync()
}

/// Answers by path.
async fn answer(request: Request<Incoming>, counts: Arc<Counts>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let ended = |body| Ok(Response::new(body));
    let guard = |done| Guard {
        counts: Arc::clone(&counts),
        done: Cell::new(done),
    };
    match path.as_str() {
        "/early" => {
            let mut response = Response::new(full("enough"));
            *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
            return Ok(response);
        }
        "/never" => {
            let _guard = guard(false);
            return std::future::pending().await;
        }
        _ => {}
    }
    let (head, mut body) = request.into_parts();
    if head.method == http::Method::HEAD {
        // hyper's HTTP/2 server leaves it to us that nothing follows.
        let mut response = Response::new(full(""));
        if path == "/echo" {
            response
                .headers_mut()
                .insert("content-length", http::HeaderValue::from_static("7"));
        }
        return Ok(response);
    }
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(part)) => data.extend_from_slice(&part),
            Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
            // Its client has left.
            Err(_) => return ended(full("nobody reads this")),
        }
    }
    let length = data.len();
    counts.seen.lock().unwrap().push(Got {
        path: path.clone(),
        headers: head.headers,
        body: data,
        trailers,
    });
    match path.as_str() {
        "/204" | "/304" => {
            let mut response = Response::new(full(""));
            *response.status_mut() = path[1..].parse().unwrap();
            // Many servers say so, although a 204 must not.
            response
                .headers_mut()
                .insert("content-length", http::HeaderValue::from_static("0"));
            Ok(response)
        }
        "/parts" => ended(parts(vec!["one", "two", "three"], Some(Ok(())), guard(false))),
        "/drip" => ended(parts(vec!["one"], None, guard(false))),
        "/cut" => ended(parts(
            vec!["one"],
            Some(Err(std::io::ErrorKind::Other.into())),
            guard(true),
        )),
        "/large" => ended(large(&counts)),
        _ => ended(
            Full::new(Bytes::from(length.to_string()))
                .map_err(|never| match never {})
                .boxed_unsync(),
        ),
    }
}

impl Intake {
    fn start(http2: bool) -> Self {
        let counts = Arc::<Counts>::default();
        let all = Arc::clone(&counts);
        let address = listen(move |stream| {
            all.connections.fetch_add(1, Ordering::SeqCst);
            let counts = Arc::clone(&all);
            async move {
                let requests = |request| answer(request, Arc::clone(&counts));
                speak(stream, http2, requests, counts.goodbye.notified()).await;
            }
        });
        Self {
            address,
            http2,
            counts,
        }
    }

    /// One of each kind.
    fn both() -> [Self; 2] {
        [Self::start(false), Self::start(true)]
    }

    fn proxy(&self) -> Proxy {
        self.proxy_with(|_| {})
    }

    fn proxy_with(&self, change: impl FnOnce(&mut Setup)) -> Proxy {
        Proxy::with(self.address, |setup| {
            setup.tls.http2 = self.http2;
            change(setup);
        })
    }

    fn seen(&self) -> Vec<Got> {
        self.counts.seen.lock().unwrap().clone()
    }

    /// For messages of tests.
    fn name(&self) -> &'static str {
        if self.http2 { "HTTP/2" } else { "HTTP/1.1" }
    }
}
