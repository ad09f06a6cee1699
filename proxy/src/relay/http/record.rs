//! One record per request: made when the request is there, filled on its way, told exactly once, also when the task is
//! dropped half way (then as an abort by the client).

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer;
use super::body::Upload;
use super::exchange::Exchange;
use crate::catalog::Product;
use crate::relay::Recorder;
use crate::relay::outcome::{Outcome, RequestRecord, Via};
use crate::tls::Negotiated;

/// The record of a request that is not over.
pub(in crate::relay) struct Recording {
    record: RequestRecord,
    started: Instant,
    /// The outcome is known; else the end makes it `Ok` and a drop leaves it an abort.
    decided: bool,
    told: bool,
    recorder: Arc<dyn Recorder>,
    exchange: Rc<Exchange>,
    upload: Upload,
}

/// The record of a request of which only the head is known.
pub(in crate::relay) fn begun(
    via: Via,
    client: SocketAddr,
    original_dst: Option<SocketAddr>,
    http: &'static str,
    method: http::Method,
    path: String,
) -> RequestRecord {
    RequestRecord {
        product: None,
        via,
        client,
        original_dst,
        method,
        path,
        upstream_name: None,
        upstream_addr: None,
        tls: None,
        http,
        upstream_http: None,
        status: 0,
        outcome: Outcome::ClientAborted,
        bytes_up: 0,
        bytes_down: 0,
        duration: Duration::ZERO,
        retries: 0,
        error: None,
    }
}

impl Recording {
    /// The request's body was read to its end.
    pub(in crate::relay) fn is_request_complete(&self) -> bool {
        self.upload.is_complete()
    }

    /// What the client did to its request body, when that is why the request failed.
    pub(in crate::relay) fn clients_fault(&self) -> Option<(Outcome, &'static str)> {
        match self.exchange.violation().or_else(|| self.upload.violation()) {
            Some(violation) => Some((answer::violated(violation), violation.reason())),
            None => {
                (self.upload.failed()).then_some((Outcome::ClientAborted, "the request body ended early"))
            }
        }
    }

    pub(in crate::relay) fn new(
        record: RequestRecord,
        recorder: Arc<dyn Recorder>,
        exchange: Rc<Exchange>,
        upload: Upload,
    ) -> Self {
        Self {
            record,
            started: Instant::now(),
            decided: false,
            told: false,
            recorder,
            exchange,
            upload,
        }
    }

    pub(in crate::relay) fn set_route(&mut self, product: Product, name: &str) {
        self.record.product = Some(product);
        self.record.upstream_name = Some(name.to_owned());
    }

    /// Which upstream connection it goes over.
    pub(in crate::relay) fn set_line(&mut self, addr: SocketAddr, tls: &Arc<Negotiated>) {
        self.record.upstream_addr = Some(addr);
        self.record.upstream_http = Some(if tls.http2 { "2" } else { "1.1" });
        self.record.tls = Some(Arc::clone(tls));
    }

    pub(in crate::relay) fn count_retry(&mut self) {
        self.record.retries += 1;
    }

    pub(in crate::relay) fn set_status(&mut self, status: http::StatusCode) {
        self.record.status = status.as_u16();
    }

    /// The request gets an answer of ours.
    pub(in crate::relay) fn set_answer(
        &mut self,
        status: http::StatusCode,
        outcome: Outcome,
        error: Option<String>,
    ) {
        self.set_status(status);
        self.record.error = error;
        self.record.outcome = outcome;
        self.decided = true;
    }

    pub(in crate::relay) fn add_bytes_down(&mut self, bytes: u64) {
        self.exchange.moved();
        self.record.bytes_down += bytes;
    }

    /// The end: the intake's answer is relayed, or our own was given.
    pub(in crate::relay) fn finish(&mut self) {
        if !self.decided {
            self.record.outcome = Outcome::Ok;
        }
        self.tell();
    }

    /// The end by a failure after the response began: the client's connection will be cut.
    pub(in crate::relay) fn fail(&mut self, outcome: Outcome, error: &str) {
        self.record.outcome = outcome;
        self.record.error = Some(error.to_owned());
        self.tell();
    }

    fn tell(&mut self) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        self.record.duration = self.started.elapsed();
        self.record.bytes_up = self.upload.bytes();
        self.recorder.request(&self.record);
        self.exchange.end(self.record.outcome == Outcome::ClientAborted);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.tell();
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording")
            .field("record", &self.record)
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}
