//! What is counted of heads, bodies, answers and the record. See [`crate::counts`].

use std::fmt::Display;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::MAX_BUFFER;
use super::head::{self, Framing};
use super::record::{self, Record};
use super::reply::{self, Asked};
use super::rewrite;
use super::window::{Body, Window};
use crate::counts::{Case, count, samples};
use crate::observe::logging::counts::Queue;
use crate::observe::metrics::Metrics;
use crate::observe::redact;
use crate::relay::buffers::Buffers;
use crate::relay::decide::Route;
use crate::relay::outcome::{ClientTls, ConnectionRecord, RequestRecord, Said, TlsClient, Via};
use crate::relay::upstream::target::{Target, Targets};
use crate::relay::{Recorder, UpstreamPlace};
use crate::tls::Negotiated;

/// What most Agents ask of the connection.
const ASKED: Asked = Asked {
    head: false,
    http10: false,
    keep_alive: true,
};

/// In the order of a request.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "head_metrics",
        what: "the head of a metrics request: its end, its check",
        run: || head(samples::METRICS, Framing::Length(1024)),
    },
    Case {
        name: "head_traces",
        what: "the same of an intercepted trace request",
        run: || head(samples::TRACES, Framing::Length(65536)),
    },
    Case {
        name: "head_flare",
        what: "the same of a flare, which is chunked",
        run: || head(samples::FLARE, Framing::Chunked),
    },
    Case {
        name: "body_length",
        what: "a body of 1 KiB with a Content-Length, there in one read",
        run: || decoded(Framing::Length(1024), &[b'x'; 1024], 1024),
    },
    Case {
        name: "body_chunked",
        what: "a chunked body of 16 KiB in chunks of 4 KiB, there in one read, decoded in place",
        run: || decoded(Framing::Chunked, &samples::chunked(16 * 1024), 16 * 1024),
    },
    Case {
        name: "rewrite_metrics",
        what: "the head of a metrics request, written for the intake",
        run: || rewritten(samples::METRICS, b"Host: metrics.agent.ddog-gov.com\r\n"),
    },
    Case {
        name: "rewrite_flare",
        what: "the same of a flare",
        run: || rewritten(samples::FLARE, b"Transfer-Encoding: chunked\r\n\r\n"),
    },
    Case {
        name: "answer",
        what: "the head of an intake's answer: read, and written for the client",
        run: || {
            count(
                || Ok(Buffers::new(MAX_BUFFER).take()),
                |out| {
                    reply::read(samples::ANSWER, ASKED, |response, lines, delimited| {
                        rewrite::response_head(response, lines, delimited, ASKED, out);
                    })
                },
                |out, read| {
                    matches!(read, Ok(Some((reply, _))) if reply.status == 202 && reply.keep_alive)
                        && out.starts_with(b"HTTP/1.1 202 Accepted\r\n")
                        && out.ends_with(b"\r\n\r\n")
                },
            )
        },
    },
    Case {
        name: "record",
        what: "the record of a request from its head to its end, with a path, told to nobody",
        run: || {
            let target = target()?;
            let tls = Arc::new(samples::negotiated());
            count(
                || Ok(Arc::new(Nobody::default()) as Arc<dyn Recorder>),
                |recorder| filled(recorder, &target, &tls),
                |_, ()| true,
            )
        },
    },
    Case {
        name: "metrics",
        what: "a request's record in the figures, without an access log: as shipped",
        run: || {
            let (told, metrics) = (told()?, samples::metrics(false));
            count(
                || Ok(requests(&metrics)),
                |_| metrics.request(&told),
                |before, ()| requests(&metrics) == before + 1,
            )
        },
    },
    Case {
        name: "access_queued",
        what: "the same with the access log: its line is queued for the thread that writes",
        run: || {
            let (told, metrics, queue) = (told()?, samples::metrics(true), Queue::begin());
            count(
                || {
                    queue.write(&mut Vec::new());
                    Ok(())
                },
                |()| metrics.request(&told),
                |(), ()| queue.len() == 1,
            )
        },
    },
    Case {
        name: "access_written",
        what: "ten lines of the access log, made and written by that thread",
        run: || {
            let (told, metrics, queue) = (told()?, samples::metrics(true), Queue::begin());
            count(
                || {
                    (0..10).for_each(|_| metrics.request(&told));
                    queue.set_time();
                    Ok(Vec::with_capacity(16 * 1024))
                },
                |out| queue.write(out),
                |out, ()| {
                    let text = String::from_utf8_lossy(out);
                    text.lines().count() == 10
                        && text.lines().all(|line| line.contains("path=\"/api/v2/series\""))
                },
            )
        },
    },
];

fn head(sample: &'static [u8], framing: Framing) -> Result<(), String> {
    count(
        || Ok(sample.to_vec()),
        |bytes| read(bytes),
        |_, read| *read == Some(framing),
    )
}

/// As the server reads it: how its body is framed.
fn read(bytes: &[u8]) -> Option<Framing> {
    let end = head::find_end(bytes, 0).ok()??;
    Some(head::check(&bytes[..end]).ok()?.framing)
}

fn decoded(framing: Framing, body: &[u8], data: usize) -> Result<(), String> {
    let message = [samples::METRICS, body].concat();
    let buffers = Rc::new(Buffers::new(MAX_BUFFER));
    count(
        || Ok(Window::holding(Rc::clone(&buffers), &message)),
        |window| {
            window.begin_body(samples::METRICS.len(), Body::from(framing));
            window.decode().is_ok()
        },
        |window, good| *good && window.is_ended() && window.data().len() == data,
    )
}

/// `part` is what it must have: the intake's name, or the framing.
fn rewritten(sample: &'static [u8], part: &'static [u8]) -> Result<(), String> {
    let target = target()?;
    let outline = head::check(sample)
        .map_err(|violation| violation.to_string())?
        .outline;
    count(
        || Ok(Buffers::new(MAX_BUFFER).take_head()),
        |out| rewrite::request_head(sample, &outline, target.host.as_bytes(), out),
        |out, ()| out.windows(part.len()).any(|window| window == part) && out.ends_with(b"\r\n\r\n"),
    )
}

fn target() -> Result<Rc<Target>, String> {
    let route = Route {
        product: samples::PRODUCT,
        name: None,
    };
    Ok(Targets::default().get(route, &samples::catalog()?))
}

/// A request on the metrics port that goes well.
fn filled(recorder: &Arc<dyn Recorder>, target: &Target, tls: &Arc<Negotiated>) {
    let begun = record::begun(
        Via::Explicit,
        samples::client(),
        None,
        "1.1",
        redact::method(&http::Method::POST),
        redact::path("/api/v2/series"),
    );
    let mut record = Record::new(begun, Arc::clone(recorder));
    record.set_route(target);
    record.set_line(samples::intake(), tls);
    record.add_bytes_up(1024);
    record.set_status(http::StatusCode::ACCEPTED);
    record.add_bytes_down(13);
    record.finish();
}

/// What [`filled`] tells, with a duration that does not depend on the clock.
fn told() -> Result<RequestRecord, String> {
    let nobody = Arc::new(Nobody {
        kept: Some(Mutex::default()),
    });
    let recorder: Arc<dyn Recorder> = Arc::clone(&nobody) as _;
    filled(&recorder, &*target()?, &Arc::new(samples::negotiated()));
    let kept = nobody.kept.as_ref().and_then(|kept| kept.lock().ok()?.take());
    let told = kept.ok_or("no record was told")?;
    Ok(RequestRecord {
        duration: Duration::from_micros(1500),
        ..told
    })
}

fn requests(metrics: &Metrics) -> u64 {
    metrics
        .products()
        .iter()
        .flat_map(|product| product.requests.values())
        .sum()
}

/// Takes nothing down but, where that is asked for, the last request.
#[derive(Default)]
struct Nobody {
    kept: Option<Mutex<Option<RequestRecord>>>,
}

impl Recorder for Nobody {
    fn request(&self, record: &RequestRecord) {
        if let Some(mut kept) = self.kept.as_ref().and_then(|kept| kept.lock().ok()) {
            *kept = Some(record.clone());
        }
    }
    fn connection(&self, _: &ConnectionRecord) {}
    fn connection_opened(&self, _: Via) {}
    fn upstream_connected(&self, _: &UpstreamPlace<'_>, _: &Negotiated) {}
    fn upstream_failed(&self, _: &UpstreamPlace<'_>, _: &dyn Display, _: Duration) {}
    fn client_tls(&self, _: &TlsClient, _: &ClientTls) {}
    fn client_tls_failed(&self, _: &'static str) {}
    fn client_trusts(&self, _: &TlsClient) {}
    fn client_distrusts(&self, _: &TlsClient, _: &Said) {}
}
