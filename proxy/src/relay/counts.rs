//! What is counted of a connection's first bytes and of decisions. See [`crate::counts`].

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::buffers::Buffers;
use super::classify::{self, Class, First};
use super::decide::{self, Decision, Https};
use super::http::window::Window;
use super::http::{MAX_BUFFER, head};
use super::origin::{Origin, OriginalDst};
use crate::catalog::Product;
use crate::counts::{Case, count, samples};
use crate::tls::observe::{Observer, Progress, judge};

pub(crate) use super::http::counts::CASES as HTTP;

/// In the order of a connection.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "classify_http",
        what: "an intercepted connection's first bytes: a trace request's head",
        run: || {
            count(
                || Ok(holding(samples::TRACES)),
                first,
                |window, first| is(window, first, Class::Http1),
            )
        },
    },
    Case {
        name: "classify_tls",
        what: "the same: a ClientHello, read whole",
        run: || {
            count(
                || samples::handshake("tls13_p256").map(|[hello, _]| holding(&hello)),
                first,
                |window, first| is(window, first, Class::Tls),
            )
        },
    },
    Case {
        name: "observe_server_hello",
        what: "a passed through session: the server's hello, and whether it meets the policy",
        run: || {
            count(
                || Ok((Observer::default(), samples::handshake("tls13_p256")?[1].clone())),
                |(observer, bytes)| match observer.server(bytes) {
                    Progress::Known(session) => judge(&session).is_ok(),
                    _ => false,
                },
                |_, good| *good,
            )
        },
    },
    Case {
        name: "decide_connection",
        what: "an intercepted connection that speaks HTTP for an intake name",
        run: || {
            count(
                samples::catalog,
                |catalog| decide::connection(Class::Http1, None, Some("trace.agent.ddog-gov.com"), catalog),
                |_, decision| *decision == Decision::Terminate,
            )
        },
    },
    Case {
        name: "decide_tls",
        what: "an intercepted connection that speaks TLS for an intake name",
        run: || {
            count(
                samples::catalog,
                |catalog| {
                    let name = Some("trace.agent.ddog-gov.com");
                    decide::tls(name, Some("trace-agent"), Https::Passthrough, &[], catalog)
                },
                |_, decision| *decision == Decision::Passthrough,
            )
        },
    },
    Case {
        name: "decide_explicit",
        what: "a request on the metrics port",
        run: || {
            let origin = Origin::Explicit {
                product: samples::PRODUCT,
                local: samples::explicit(),
                stranger: false,
            };
            count(
                samples::catalog,
                |catalog| {
                    let host = Some("localhost:9804");
                    decide::request(&origin, None, None, host, "/api/v2/series", catalog)
                },
                |_, route| matches!(route, Ok(route) if route.product == Product::Metrics),
            )
        },
    },
    Case {
        name: "decide_intercepted",
        what: "an intercepted request with the Agent's versioned name, which is a pattern's",
        run: || {
            let origin = Origin::Intercepted(OriginalDst(samples::intake()));
            count(
                samples::catalog,
                |catalog| {
                    let host = Some("7-81-0-app.agent.ddog-gov.com");
                    decide::request(&origin, None, None, host, "/api/v2/series", catalog)
                },
                |_, route| matches!(route, Ok(route) if route.product == Product::Metrics),
            )
        },
    },
];

fn holding(bytes: &[u8]) -> Window {
    Window::holding(Rc::new(Buffers::new(MAX_BUFFER)), bytes)
}

/// What [`classify::read`] makes of bytes that are all there: it waits for nothing.
fn first(window: &mut Window) -> Option<First> {
    let mut nothing = tokio::io::empty();
    let read = pin!(classify::read(
        &mut nothing,
        window,
        MAX_BUFFER,
        Duration::from_secs(10),
    ));
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(read) => read.ok(),
        Poll::Pending => None,
    }
}

fn is(window: &Window, first: &Option<First>, class: Class) -> bool {
    first.as_ref().is_some_and(|first| {
        let whole = match class {
            Class::Tls => first.hello.as_ref().is_some_and(Result::is_ok),
            _ => matches!(head::find_end(window.raw(), 0), Ok(Some(_))),
        };
        first.class == class && whole
    })
}
