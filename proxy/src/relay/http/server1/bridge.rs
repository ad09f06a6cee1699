//! A request that came by HTTP/1 to an intake that speaks HTTP/2: hyper sends it, and what hyper gives is written as
//! HTTP/1.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::response::Parts;
use http::{Method, StatusCode, Uri};
use http_body::Body;
use tokio::time::Instant;

use super::inbound::{BodyFault, Inbound, give};
use super::request::{Request, gone};
use super::{ClientIo, Connection, Then};
use crate::relay::http::batch::Batch;
use crate::relay::http::body::{Download, Relay, Upload};
use crate::relay::http::exchange::Exchange;
use crate::relay::http::head::{self, Framing, Violation};
use crate::relay::http::outline::Outline;
use crate::relay::http::pace::Pace;
use crate::relay::http::record::{Record, Recording};
use crate::relay::http::reply::Delimited;
use crate::relay::http::{request_timer, rewrite};
use crate::relay::outcome::Outcome;
use crate::relay::upstream::connect::Handshake;
use crate::relay::upstream::destination::Destination;
use crate::relay::upstream::pool::Line;
use crate::relay::upstream::{self, Draft};

/// A request body that is read from an HTTP/1 client by whoever sends it on.
pub(in crate::relay) trait Own {
    /// The next part; `None` at the end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>>;
    /// Nothing is left.
    fn is_ended(&self) -> bool;
    /// The declared length.
    fn length(&self) -> Option<u64>;
}

/// The body of the request in a connection's window.
struct FromWindow<IO> {
    inbound: Rc<RefCell<Inbound<IO>>>,
    length: Option<u64>,
}

impl<IO: ClientIo> Own for FromWindow<IO> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        let mut inbound = self.inbound.borrow_mut();
        if let Err(fault) = ready!(inbound.poll_body(false, cx)) {
            return Poll::Ready(Some(Err(fault)));
        }
        let data = inbound.window.data();
        if data.is_empty() {
            return Poll::Ready(None);
        }
        let data = Bytes::copy_from_slice(data);
        inbound.window.take_data();
        Poll::Ready(Some(Ok(data)))
    }

    fn is_ended(&self) -> bool {
        let inbound = self.inbound.borrow();
        inbound.window.is_ended() && inbound.window.data().is_empty()
    }

    fn length(&self) -> Option<u64> {
        self.length
    }
}

/// Relays `request`; `line` is the connection to begin with.
pub(super) async fn relay<H: Handshake, IO: ClientIo>(
    connection: &mut Connection<H, IO>,
    request: Request,
    destination: &Destination,
    line: Line,
    record: Record,
) -> Then {
    let client = Rc::clone(&connection.client);
    let exchange = Rc::new(Exchange::new());
    exchange.begin();
    let draft = {
        let inbound = connection.inbound.borrow();
        match draft(inbound.window.head(), &inbound.outline) {
            Ok(draft) => draft,
            Err(violation) => return Then::Refuse(violation),
        }
    };
    let body = FromWindow {
        inbound: Rc::clone(&connection.inbound),
        length: match request.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        },
    };
    let pace = Pace::new(&client.thread.shared.config.limits);
    let upload = Upload::own(Box::new(body), pace, Rc::clone(&exchange));
    let timer = request_timer(&client);
    let mut recording = Recording::new(record, exchange, upload.clone());
    let inbound = Rc::clone(&connection.inbound);
    // However this ends, hyper must not read from a connection that goes on.
    let _void = Void(upload.clone());
    let sent = tokio::select! {
        biased;
        sent = upstream::send(&client, destination, Some(line), draft, &upload, &timer, &mut recording) => sent,
        () = poll_fn(|cx| inbound.borrow_mut().poll_gone(cx)) => return gone(recording.record()),
    };
    recording.record().set_bytes_up(upload.bytes());
    match sent {
        Ok(reply) => {
            let (parts, incoming) = reply.response.into_parts();
            let relay = Relay {
                incoming,
                recording,
                lease: reply.lease,
                timer,
                trailers: false,
                timeout: client.thread.shared.config.upstream.response_timeout,
                progress: Instant::now(),
            };
            respond(connection, request, parts, relay, &upload).await
        }
        Err(failure) => {
            // The client's own body was at fault.
            if let Some((outcome, reason)) = recording.clients_fault() {
                if outcome == Outcome::ClientAborted {
                    return gone(recording.record());
                }
                return connection.own(request, outcome, reason, recording.record()).await;
            }
            connection
                .failed(request, &failure, &destination.target, recording.record())
                .await
        }
    }
}

/// Ends what hyper may still read.
struct Void(Upload);

impl Drop for Void {
    fn drop(&mut self) {
        self.0.void();
    }
}

/// The request as hyper takes it. Its head was good.
fn draft(bytes: &[u8], outline: &Outline) -> Result<Draft, Violation> {
    let path = outline.path(bytes);
    let uri = match path.starts_with(b"/") {
        true => Uri::try_from(path),
        false => Uri::try_from([b"/", path].concat()),
    };
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = Method::from_bytes(outline.method(bytes)).map_err(|_| Violation::Method)?;
    parts.uri = uri.map_err(|_| Violation::Target)?;
    for (name, value) in head::headers(bytes) {
        let name = HeaderName::from_bytes(name).map_err(|_| Violation::HeaderName)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Violation::HeaderValue)?;
        parts.headers.append(name, value);
    }
    rewrite::request(&mut parts.headers);
    Ok(Draft::new(parts, false))
}

/// Writes the answer.
async fn respond<H: Handshake, IO: ClientIo>(
    connection: &mut Connection<H, IO>,
    request: Request,
    mut parts: Parts,
    mut relay: Relay,
    upload: &Upload,
) -> Then {
    rewrite::response(parts.status, &mut parts.headers);
    relay.recording.record().set_status(parts.status);
    let mut asked = request.asked;
    let delimited = delimit(&mut parts, asked.head, asked.http10, &relay);
    asked.keep_alive &= delimited != Delimited::Close && !connection.inbound.borrow().is_last();
    let mut batch = Batch::default();
    let reason = parts.status.canonical_reason().unwrap_or_default();
    rewrite::status_line(asked, parts.status.as_u16(), reason, &mut batch.lead);
    for (name, value) in &parts.headers {
        rewrite::put(&mut batch.lead, name.as_str().as_bytes(), value.as_bytes());
    }
    rewrite::end_of_head(delimited, asked, &mut batch.lead);
    let chunked = delimited == Delimited::Chunked;
    batch.stage(0, false, false);
    let (inbound, idle) = (Rc::clone(&connection.inbound), connection.idle_timeout);
    if delimited == Delimited::Close {
        // Until its last byte is with the client, every end of the connection must look like none of the answer.
        inbound.borrow().io.set_abortive(true);
    }
    let timer = &mut connection.timer;
    let mut download = Download::Relay(relay);
    let given = async {
        let gone = |_| Outcome::ClientAborted;
        let mut last = false;
        let mut data = Bytes::new();
        // The head, the parts of the body, and what says that it has ended.
        loop {
            give(&inbound, &mut batch, &data, true, idle, timer)
                .await
                .map_err(gone)?;
            if last {
                return Ok(());
            }
            let frame = poll_fn(|cx| Pin::new(&mut download).poll_frame(cx)).await;
            last = frame.is_none();
            data = match frame {
                None => Bytes::new(),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                // Recorded where it happened.
                Some(Err(_)) => return Err(Outcome::UpstreamProtocol),
            };
            batch.stage(data.len(), chunked, last);
        }
    };
    let given = tokio::select! {
        biased;
        given = given => given,
        () = poll_fn(|cx| inbound.borrow_mut().poll_gone(cx)) => Err(Outcome::ClientAborted),
    };
    if let Err(outcome) = given {
        return Then::Cut(outcome);
    }
    if delimited == Delimited::Close {
        inbound.borrow().io.set_abortive(false);
    }
    match asked.keep_alive && upload.is_complete() {
        true => Then::Next,
        false => Then::Close(Outcome::Ok, None),
    }
}

/// How the client is told where the answer ends.
fn delimit(parts: &mut Parts, head: bool, http10: bool, relay: &Relay) -> Delimited {
    let bodiless = head
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || parts.headers.contains_key(CONTENT_LENGTH);
    if bodiless {
        return Delimited::AsIs;
    }
    if relay.incoming.is_end_stream() {
        parts
            .headers
            .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        return Delimited::AsIs;
    }
    if http10 {
        Delimited::Close
    } else {
        Delimited::Chunked
    }
}
