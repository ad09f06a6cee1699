//! Intakes that hyper speaks for: what they all do but answer.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// Listens, and does `serve` for every connection, on a thread with a runtime of its own, which ends with the test process.
pub fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    });
    address
}

/// Answers the requests on `stream` by `answer`, until it ends or, after `goodbye`, all that were begun are answered. How
/// it ends is the client's matter.
pub async fn speak<A, F, B, E>(stream: TcpStream, http2: bool, answer: A, goodbye: impl Future<Output = ()>)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    // The two kinds of connections have no trait in common.
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            tokio::select! {
                _ = &mut connection => return,
                () = goodbye => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }};
    }
    let (io, service) = (TokioIo::new(stream), service_fn(answer));
    if http2 {
        drive!(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
    } else {
        drive!(http1::Builder::new().serve_connection(io, service));
    }
}
