//! An intake that speaks HTTP/1.1 or HTTP/2, and a client that speaks HTTP/2: both by hyper, which is not under test here.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::sync::{Barrier, mpsc, watch};
use tokio_rustls::TlsConnector;

use crate::hyper_intake::{listen, speak};
use crate::world::{NAME, World, client_config};

pub type Any = UnsyncBoxBody<Bytes, Infallible>;
pub type Sender = SendRequest<Any>;

/// Bodies of the heavy tests.
pub const MIB: usize = 1024 * 1024;

/// A body that is written while it is read.
pub struct Pipe(mpsc::UnboundedReceiver<Frame<Bytes>>);

pub fn pipe() -> (mpsc::UnboundedSender<Frame<Bytes>>, Any) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Pipe(receiver).boxed_unsync())
}

impl Body for Pipe {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// A body without an end.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 16 * 1024])))))
    }
}

pub fn full(bytes: impl Into<Bytes>) -> Any {
    Full::new(bytes.into()).boxed_unsync()
}

pub fn empty() -> Any {
    Empty::new().boxed_unsync()
}

/// Content that is another for each number and in each of its pages, so that a lost, doubled or foreign piece shows.
pub fn content(number: usize) -> Bytes {
    let mut bytes = vec![u8::try_from(number % 256).unwrap(); MIB];
    for (page, piece) in bytes.chunks_mut(1000).enumerate() {
        let mark = format!("{number}/{page}");
        let len = mark.len().min(piece.len());
        piece[..len].copy_from_slice(&mark.as_bytes()[..len]);
    }
    bytes.into()
}

pub fn digest(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .to_vec()
}

#[derive(Default)]
pub struct Counts {
    /// Requests that came.
    pub begun: AtomicUsize,
    /// Requests that were given up while they were here.
    pub cancelled: AtomicUsize,
    pub connections: AtomicUsize,
}

/// Counts a request that was given up.
struct Here(Arc<Counts>, bool);

impl Drop for Here {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

pub struct Intake {
    pub address: SocketAddr,
    pub counts: Arc<Counts>,
    /// `/held` is answered, and `/slow` read, when this is true.
    pub open: watch::Sender<bool>,
}

struct Inside {
    counts: Arc<Counts>,
    open: watch::Receiver<bool>,
    /// The heavy tests' requests are all here before one is answered.
    together: Barrier,
}

impl Intake {
    pub fn begun(&self) -> usize {
        self.counts.begun.load(Ordering::SeqCst)
    }

    pub fn cancelled(&self) -> usize {
        self.counts.cancelled.load(Ordering::SeqCst)
    }

    /// On a thread of its own, which ends with the process.
    pub fn start(http2: bool) -> Self {
        Self::of(http2, 1)
    }

    pub fn of(http2: bool, together: usize) -> Self {
        let counts = Arc::new(Counts::default());
        let (open, opened) = watch::channel(false);
        let inside = Arc::new(Inside {
            counts: Arc::clone(&counts),
            open: opened,
            together: Barrier::new(together),
        });
        let address = listen(move |stream| {
            inside.counts.connections.fetch_add(1, Ordering::SeqCst);
            let inside = Arc::clone(&inside);
            let requests = move |request| answer(Arc::clone(&inside), request);
            speak(stream, http2, requests, std::future::pending())
        });
        Self {
            address,
            counts,
            open,
        }
    }
}

async fn answer(inside: Arc<Inside>, request: Request<Incoming>) -> Result<Response<Any>, Infallible> {
    inside.counts.begun.fetch_add(1, Ordering::SeqCst);
    let mut here = Here(Arc::clone(&inside.counts), false);
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let (kind, number) = path[1..].split_once('/').unwrap_or((&path[1..], "0"));
    let response = match kind {
        "up" => {
            inside.together.wait().await;
            Response::new(full(digest(&body.collect().await.unwrap().to_bytes())))
        }
        "down" => {
            inside.together.wait().await;
            Response::new(full(content(number.parse().unwrap())))
        }
        // It reads nothing until it is told to.
        "slow" => {
            inside.open.clone().wait_for(|open| *open).await.unwrap();
            let len = body.collect().await.unwrap().to_bytes().len();
            Response::new(full(len.to_string()))
        }
        "never" => std::future::pending().await,
        "held" => {
            inside.open.clone().wait_for(|open| *open).await.unwrap();
            Response::new(full("held"))
        }
        "endless" => Response::new(Endless.boxed_unsync()),
        "204" | "304" => {
            let mut response = Response::new(empty());
            *response.status_mut() = kind.parse().unwrap();
            response
        }
        // What was asked, in text, with the trailers of the request; and trailers of our own.
        "grpc" => {
            let whole = body.collect().await.unwrap();
            let came = whole.trailers().cloned().unwrap_or_default();
            let (sender, answer) = pipe();
            sender
                .send(Frame::data(format!("{:?}\n{came:?}", parts.headers).into()))
                .unwrap();
            sender.send(Frame::trailers(status())).unwrap();
            let mut response = Response::new(answer);
            response
                .headers_mut()
                .insert("trailer", HeaderValue::from_static("grpc-status"));
            response
        }
        // Every piece is said again at once.
        "talk" => {
            let (sender, answer) = pipe();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    if let Ok(data) = frame.into_data()
                        && sender.send(Frame::data(data)).is_err()
                    {
                        return;
                    }
                }
                drop(sender.send(Frame::trailers(status())));
            });
            Response::new(answer)
        }
        _ => {
            drop(body.collect().await);
            let text = format!("{:?}", parts.headers);
            let len = text.len();
            // hyper would send it in HTTP/2.
            let mut response = Response::new(if parts.method == http::Method::HEAD {
                empty()
            } else {
                full(text)
            });
            response
                .headers_mut()
                .insert("content-length", HeaderValue::from(len));
            response.headers_mut().insert(
                "x-version",
                HeaderValue::from_str(&format!("{:?}", parts.version)).unwrap(),
            );
            response
        }
    };
    here.1 = true;
    Ok(response)
}

fn status() -> HeaderMap {
    [("grpc-status", "0")]
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
        .collect()
}

/// A client's connection to the proxy.
pub async fn connect(world: &World) -> Sender {
    let socket = tokio::net::TcpStream::connect(world.intercept).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut config = client_config();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from(NAME).unwrap(), socket)
        .await
        .unwrap();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(u32::try_from(MIB).unwrap())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    // Its end is seen by the requests.
    tokio::spawn(async { drop(connection.await) });
    sender
}

pub fn asking(method: &str, path: &str, body: Any) -> Request<Any> {
    Request::builder()
        .method(method)
        .uri(format!("https://{NAME}{path}"))
        .body(body)
        .unwrap()
}
