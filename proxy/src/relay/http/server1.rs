//! HTTP/1 from a client: hyper behind the framing guard.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::guard::Guard;
use super::{Client, ClientIo, Ended, MAX_BUFFER, answer, distrust_in, handle, request_timer};
use crate::relay::drained;
use crate::relay::outcome::Outcome;
use crate::relay::upstream::connect::Handshake;

/// Serves HTTP/1 on `io` until either side is done or we drain. `prefix` was read from it before.
pub(super) async fn serve<H: Handshake, IO: ClientIo>(
    client: Rc<Client<H>>,
    io: IO,
    prefix: Vec<u8>,
    mut drain: watch::Receiver<bool>,
) -> Ended {
    let exchange = Rc::clone(&client.exchange);
    let limits = &client.thread.shared.config.limits;
    let max_buffer = MAX_BUFFER.max(limits.max_header_bytes);
    let guard = Guard::new(io, prefix, Rc::clone(&exchange), limits);
    // A connection has one request at a time.
    let timer = request_timer(&client);
    let service = service_fn(move |request| {
        let (client, timer) = (Rc::clone(&client), Rc::clone(&timer));
        async move { Ok::<_, Infallible>(handle(&client, timer, request).await) }
    });
    // The guard has its own time limits; Date is the intake's, not ours.
    let mut connection = pin!(
        http1::Builder::new()
            .auto_date_header(false)
            .header_read_timeout(None)
            .max_buf_size(max_buffer)
            .serve_connection(TokioIo::new(guard), service)
    );
    let mut draining = false;
    let result = loop {
        tokio::select! {
            // Bytes that are here already belong to a request that will be answered.
            biased;
            result = connection.as_mut() => break result,
            () = drained(&mut drain), if !draining => {
                draining = true;
                exchange.set_last();
                // A head that is partly here is a request in flight: it is waited for, then answered as the last one.
                if !exchange.partial() {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    let violation = exchange.violation();
    let distrust = result.as_ref().err().and_then(distrust_in);
    let outcome = match (violation, result) {
        (Some(violation), _) => answer::violated(violation),
        (None, Ok(())) => Outcome::Ok,
        // What the guard let through and hyper still refuses: hyper answered 400 itself.
        (None, Err(error)) if error.is_parse() => Outcome::BadRequest,
        (None, Err(error)) if error.is_user() => Outcome::UpstreamProtocol,
        // It went between two requests, without the close_notify that few clients send.
        (None, Err(_)) if !exchange.is_busy() && !exchange.partial() => Outcome::Ok,
        (None, Err(_)) => Outcome::ClientAborted,
    };
    Ended {
        outcome,
        requests: exchange.requests(),
        violation,
        distrust,
    }
}
