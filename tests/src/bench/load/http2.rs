//! Closed loop over HTTP/2 within TLS: hyper's client, several requests at once on each connection.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use super::super::{ANSWER, NAME, PATH};
use super::wire::failed;
use super::{GRACE, HEADERS, Plan, Rest, STREAMS, THREADS, Tally};

type Sender = SendRequest<Full<Bytes>>;

/// One of the two threads.
pub(super) fn run(plan: &Arc<Plan>, index: usize, rest: &Rest) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let local = LocalSet::new();
    let share = plan.connections / THREADS + usize::from(index < plan.connections % THREADS);
    let body = Bytes::from(vec![b'x'; plan.body]);
    let senders = local.block_on(&runtime, async {
        let mut senders = Vec::new();
        for _ in 0..share {
            senders.push(connect(plan).await?);
        }
        Ok::<_, String>(senders)
    })?;
    let until = Instant::now() + plan.warmup;
    let mut tally = local.block_on(&runtime, together(plan, &senders, &body, until));
    tally.times = super::Histogram::default();
    while let Some(start) = rest.rest(tally) {
        tally = local.block_on(&runtime, together(plan, &senders, &body, start + plan.window));
    }
    Ok(())
}

async fn together(plan: &Arc<Plan>, senders: &[Sender], body: &Bytes, until: Instant) -> Tally {
    let mut tasks = JoinSet::new();
    for sender in senders {
        for _ in 0..STREAMS {
            let (mut sender, plan, body) = (sender.clone(), Arc::clone(plan), body.clone());
            tasks.spawn_local(async move {
                let mut tally = Tally::default();
                while Instant::now() < until {
                    let start = Instant::now();
                    let result = request(&plan, &mut sender, body.clone()).await;
                    let good = result.is_ok();
                    tally.add(result, start);
                    if !good {
                        // A broken connection stays broken: one failure for each stream says enough.
                        break;
                    }
                }
                tally
            });
        }
    }
    let mut all = Tally::default();
    let mut missing = (senders.len() * STREAMS) as u64;
    let deadline = tokio::time::Instant::from_std(until + GRACE);
    while let Ok(Some(result)) = tokio::time::timeout_at(deadline, tasks.join_next()).await {
        if let Ok(tally) = result {
            all.merge(tally);
            missing -= 1;
        }
    }
    if missing > 0 {
        all.errors.insert("unanswered".to_owned(), missing);
    }
    all
}

async fn request(plan: &Plan, sender: &mut Sender, body: Bytes) -> Result<(), String> {
    let mut request = hyper::Request::post(format!("https://{}{PATH}", plan.host));
    for (name, value) in HEADERS {
        request = request.header(name, value);
    }
    let request = request
        .header("Content-Length", plan.body)
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| format!("HTTP/2: {error}"))?;
    let status = response.status().as_u16();
    if status != 200 {
        return Err(format!("status {status}"));
    }
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| format!("HTTP/2: {error}"))?.to_bytes();
    if body[..] != ANSWER[..] {
        return Err("not the backend's answer".to_owned());
    }
    Ok(())
}

async fn connect(plan: &Plan) -> Result<Sender, String> {
    let stream = TcpStream::connect(plan.connect)
        .await
        .map_err(failed("connect"))?;
    stream.set_nodelay(true).map_err(failed("connect"))?;
    let config = plan
        .tls
        .as_ref()
        .ok_or("HTTP/2 is spoken within TLS only: --roots")?;
    let name = ServerName::try_from(NAME).map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS: {error}"))?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("the peer does not offer HTTP/2".to_owned());
    }
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| format!("HTTP/2: {error}"))?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}
