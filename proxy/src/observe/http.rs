//! The status port (9803 unless configured): read-only, no request to it changes anything.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the status page |
//! | `/metrics` | OpenMetrics text |
//! | `/healthz` | 200 while the worker's event loop turns |
//! | `/readyz` | 200 when every listener is bound, the module passed its tests, interception is in place if asked for, and connections of our own pass the live datapath; else 503 with the reasons |

use std::convert::Infallible;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::observe::metrics::{CONTENT_TYPE, Metrics};
use crate::observe::page;

/// Somebody who scrapes slowly must not keep the others out, and a flood must not cost memory.
const MAX_CONNECTIONS: usize = 64;
/// A whole request head, and the time a kept connection may idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the page shows besides the metrics.
#[derive(Debug)]
pub struct Facts {
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// The site that is served.
    pub site: String,
    /// `upstream.tls_policy`.
    pub tls_policy: &'static str,
    /// When the worker became ready.
    pub started: Instant,
}

/// Serves until `drain` is true. Must be called inside a `LocalSet`.
pub async fn serve(listeners: Vec<StdListener>, facts: Arc<Facts>, mut drain: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for listener in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                tokio::task::spawn_local(accept(
                    listener,
                    Arc::clone(&facts),
                    Arc::clone(&slots),
                    drain.clone(),
                ));
            }
            Err(error) => tracing::error!(%error, "cannot serve the status port"),
        }
    }
    // The sender lives as long as the worker; its end means the same as a drain.
    let _ = drain.wait_for(|draining| *draining).await;
}

async fn accept(
    listener: TcpListener,
    facts: Arc<Facts>,
    slots: Arc<Semaphore>,
    mut drain: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drain.wait_for(|draining| *draining) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the status port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let facts = Arc::clone(&facts);
        tokio::task::spawn_local(async move {
            let _slot = slot;
            let service = service_fn(|request| {
                let answer = answer(&request, &facts);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT);
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "status connection ended early");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, facts: &Facts) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "only GET and HEAD\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/" => text(StatusCode::OK, "text/html; charset=utf-8", page::render(facts)),
        "/metrics" => text(StatusCode::OK, CONTENT_TYPE, facts.metrics.render()),
        "/healthz" => text(StatusCode::OK, "text/plain; charset=utf-8", "ok\n".to_owned()),
        "/readyz" => ready(facts),
        _ => text(
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "there are / (status), /metrics, /healthz and /readyz\n".to_owned(),
        ),
    }
}

fn ready(facts: &Facts) -> Response<Full<Bytes>> {
    let reasons = facts.metrics.master().not_ready();
    let (status, body) = if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
    };
    text(status, "text/plain; charset=utf-8", body)
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        header::HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
    );
    response
}
