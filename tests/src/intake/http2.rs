//! The intake's HTTP/2, by hyper.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Answer, Connection, Head};
use crate::hex;

/// Serves one connection to its end.
pub(super) async fn serve(stream: TlsStream<TcpStream>, connection: Connection) {
    let connection = Arc::new(connection);
    let service = service_fn(move |request| answer(request, Arc::clone(&connection)));
    // A client that resets its connection is the test's business, not the intake's.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    connection: Arc<Connection>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, mut body) = request.into_parts();
    let mut head = Head {
        method: parts.method.to_string(),
        target: parts
            .uri
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default(),
        host: parts.uri.authority().map(ToString::to_string).unwrap_or_default(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect(),
        faults: Vec::new(),
    };
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    let mut kept = connection.kept(&head.target);
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => {
                length += data.len() as u64;
                sum.update(&data);
                if let Some(kept) = &mut kept {
                    kept.extend_from_slice(&data);
                }
            }
            Ok(Err(_)) => {}
            Err(error) => {
                head.faults.push(format!("the body broke off: {error}"));
                break;
            }
        }
    }
    connection.keep(kept);
    let answer = connection.record("2", head, length, hex(sum.finish().as_ref()));
    let (status, body) = match answer {
        Answer::Status(status, body) => (status, body),
        Answer::Slow(pause) | Answer::SlowBody(pause) => {
            tokio::time::sleep(pause).await;
            (202, r#"{"status":"ok"}"#.to_owned())
        }
        Answer::UntilClose(body) => (200, body),
        // Stages of a byte stream mean nothing here: wait until the client gives up.
        Answer::ResetBeforeHead | Answer::ResetInHead | Answer::ResetInBody => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            (503, String::new())
        }
        Answer::Accepted
        | Answer::EarlyHints
        | Answer::OddChunks
        | Answer::CloseAfter
        | Answer::CloseOnNext => (202, r#"{"status":"ok"}"#.to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::IM_A_TEAPOT);
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}
