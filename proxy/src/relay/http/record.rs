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
use crate::relay::Recorder;
use crate::relay::outcome::{Outcome, RequestRecord, Via};
use crate::relay::upstream::target::Target;
use crate::tls::Negotiated;

/// The record of a request that is not over.
pub(in crate::relay) struct Record {
    told: RequestRecord,
    started: Instant,
    /// The outcome is known; else the end makes it `Ok` and a drop leaves it an abort.
    decided: bool,
    over: bool,
    recorder: Arc<dyn Recorder>,
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

impl Record {
    pub(in crate::relay) fn new(told: RequestRecord, recorder: Arc<dyn Recorder>) -> Self {
        Self {
            told,
            started: Instant::now(),
            decided: false,
            over: false,
            recorder,
        }
    }

    pub(in crate::relay) fn set_route(&mut self, target: &Target) {
        self.told.product = Some(target.product);
        self.told.upstream_name = Some(Arc::clone(&target.name));
    }

    /// Which upstream connection it goes over.
    pub(in crate::relay) fn set_line(&mut self, addr: SocketAddr, tls: &Arc<Negotiated>) {
        self.told.upstream_addr = Some(addr);
        self.told.upstream_http = Some(if tls.http2 { "2" } else { "1.1" });
        self.told.tls = Some(Arc::clone(tls));
    }

    pub(in crate::relay) fn count_retry(&mut self) {
        self.told.retries += 1;
    }

    pub(in crate::relay) fn set_status(&mut self, status: http::StatusCode) {
        self.told.status = status.as_u16();
    }

    /// The request gets an answer of ours.
    pub(in crate::relay) fn set_answer(
        &mut self,
        status: http::StatusCode,
        outcome: Outcome,
        error: Option<String>,
    ) {
        self.set_status(status);
        self.told.error = error;
        self.told.outcome = outcome;
        self.decided = true;
    }

    /// Body bytes from the client, all together.
    pub(in crate::relay) fn set_bytes_up(&mut self, bytes: u64) {
        self.told.bytes_up = bytes;
    }

    pub(in crate::relay) fn add_bytes_up(&mut self, bytes: usize) {
        self.told.bytes_up += bytes as u64;
    }

    pub(in crate::relay) fn add_bytes_down(&mut self, bytes: usize) {
        self.told.bytes_down += bytes as u64;
    }

    /// The end: the intake's answer is relayed, or our own was given.
    pub(in crate::relay) fn finish(&mut self) {
        if !self.decided {
            self.told.outcome = Outcome::Ok;
        }
        self.tell();
    }

    /// The end by a failure after the response began: the client's connection will be cut.
    pub(in crate::relay) fn fail(&mut self, outcome: Outcome, error: &str) {
        self.told.outcome = outcome;
        self.told.error = Some(error.to_owned());
        self.tell();
    }

    fn tell(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        self.told.duration = self.started.elapsed();
        self.recorder.request(&self.told);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.tell();
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("told", &self.told)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// The record of a request that goes through hyper, together with what tells how it went.
#[derive(Debug)]
pub(in crate::relay) struct Recording {
    record: Record,
    exchange: Rc<Exchange>,
    upload: Upload,
    over: bool,
}

impl Recording {
    pub(in crate::relay) fn new(record: Record, exchange: Rc<Exchange>, upload: Upload) -> Self {
        Self {
            record,
            exchange,
            upload,
            over: false,
        }
    }

    /// The record itself.
    pub(in crate::relay) fn record(&mut self) -> &mut Record {
        &mut self.record
    }

    /// What the client did to its request body, when that is why the request failed.
    pub(in crate::relay) fn clients_fault(&self) -> Option<(Outcome, &'static str)> {
        match self.upload.violation() {
            Some(violation) => Some((answer::violated(violation), violation.reason())),
            None => {
                (self.upload.failed()).then_some((Outcome::ClientAborted, "the request body ended early"))
            }
        }
    }

    pub(in crate::relay) fn add_bytes_down(&mut self, bytes: usize) {
        self.exchange.moved();
        self.record.add_bytes_down(bytes);
    }

    /// See [`Record::finish`].
    pub(in crate::relay) fn finish(&mut self) {
        self.end(Record::finish);
    }

    /// See [`Record::fail`].
    pub(in crate::relay) fn fail(&mut self, outcome: Outcome, error: &str) {
        self.end(|record| record.fail(outcome, error));
    }

    fn end(&mut self, how: impl FnOnce(&mut Record)) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        self.record.set_bytes_up(self.upload.bytes());
        how(&mut self.record);
        self.exchange
            .end(self.record.told.outcome == Outcome::ClientAborted);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.end(Record::tell);
    }
}
