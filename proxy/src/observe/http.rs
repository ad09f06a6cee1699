//! The status port (9803 unless configured): read-only, no request to it changes anything.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the status page |
//! | `/metrics` | OpenMetrics text |
//! | `/healthz` | 200 while the worker's event loop turns |
//! | `/readyz` | 200 when every listener is bound, the module passed its tests, interception is in place if asked for, and connections of our own pass the live datapath; else 503 with the reasons |

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener as StdListener};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::observe::metrics::CONTENT_TYPE;
use crate::observe::page;
use crate::observe::view::Facts;
use crate::tls;

/// Somebody who scrapes slowly must not keep the others out, and a flood must not cost memory.
const MAX_CONNECTIONS: usize = 64;
/// A whole request head, and the time a kept connection may idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

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
        let loopback = stream
            .local_addr()
            .is_ok_and(|ours| ours.ip().to_canonical().is_loopback());
        tokio::task::spawn_local(async move {
            let _slot = slot;
            let service = service_fn(|request| {
                let answer = answer(&request, &facts, loopback);
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

fn answer(request: &Request<Incoming>, facts: &Facts, loopback: bool) -> Response<Full<Bytes>> {
    if loopback && !names_this_host(request.headers()) {
        return text(
            StatusCode::MISDIRECTED_REQUEST,
            "text/plain; charset=utf-8",
            "on loopback the status port answers to localhost and to IP addresses only\n".to_owned(),
        );
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "only GET and HEAD\n".to_owned(),
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(header::ALLOW, allowed);
        return refusal;
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

/// Whether the request is for this host by a name that no name server decides about: the page of somebody else, in a browser on
/// this host, could let a name of its own lead to loopback and read what we answer (DNS rebinding).
fn names_this_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        // HTTP/1.0 may leave it out; a browser never does.
        return headers.get(header::HOST).is_none();
    };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Nothing but the page's own style is used, and nobody frames it.
static CONTENT_POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let style = STANDARD.encode(tls::sha256(page::STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    );
    HeaderValue::from_str(&policy).ok()
});

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
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(policy) = CONTENT_POLICY.clone() {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_can_turn_are_answered() {
        for (hosts, answered) in [
            (&[][..], true),
            (&["localhost"], true),
            (&["LOCALHOST:8080"], true),
            (&["127.0.0.1:9803"], true),
            (&["[::1]:9803"], true),
            (&["evil.example.net:9803"], false),
            (&["localhost.evil.example.net"], false),
            (&["localhost", "evil.example.net"], false),
            (&["127.0.0.1.evil.example.net"], false),
            (&[""], false),
            (&["local host"], false),
        ] {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
            }
            assert_eq!(names_this_host(&headers), answered, "{hosts:?}");
        }
    }

    #[test]
    fn the_policy_allows_the_style_and_no_script() {
        let answer = text(StatusCode::OK, "text/plain", String::new());
        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        assert!(
            policy.contains("default-src 'none'; style-src 'sha256-"),
            "{policy}"
        );
        assert!(
            !policy.contains("script") && !policy.contains("unsafe"),
            "{policy}"
        );
    }
}
