//! An intercepted connection: who speaks first, what it speaks, what that means, and the way that follows from it.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::HttpsHandling;
use super::accept::{Accepted, Serving, reject};
use super::classify::{self, Class, First};
use super::decide::{self, Decision, Refusal};
use super::http::outline::Checked;
use super::http::window::{Filled, Window};
use super::http::{Begun, Session, answer, head};
use super::origin::{Origin, OriginalDst};
use super::outcome::{ClientTls, Outcome, Said, TlsClient};
use super::passthrough;
use super::timer::LazyTimer;
use super::tunnel;
use super::upstream::connect::Handshake;
use crate::catalog::normalise;
use crate::observe::redact;
use crate::tls::observe::{ClientHello, Malformed};
use crate::tls::server::{AcceptError, Alert, Server, alert};

/// To its end and its record, unless it is HTTP that ends here: that is for the caller to serve. What is rare is boxed: this future
/// carries the size of the largest that is not.
pub(super) async fn run<H: Handshake>(
    accepted: &mut Accepted<H>,
    original: OriginalDst,
    mut stream: TcpStream,
) -> Option<Serving> {
    let network = accepted.role.network();
    accepted.recording.record.original_dst = Some(original.0);
    if accepted.thread.is_own(network, original.0) {
        let why = "the original destination is our own listener";
        accepted.recording.end(Outcome::NoOrigin, Some(why.to_owned()));
        return None;
    }
    // Who speaks first? A protocol in which the server does must not wait for us.
    let mut dialled = None;
    let mut window = Window::new(Rc::clone(&accepted.thread.buffers));
    let silence = Instant::now() + classify::SILENCE;
    let mut timer = LazyTimer::new(silence);
    let spoke = poll_fn(|cx| match window.poll_fill(&mut stream, cx) {
        Poll::Ready(filled) => Poll::Ready(Some(filled)),
        Poll::Pending => timer.poll(cx, silence).map(|()| None),
    });
    let first = match spoke.await {
        // A health check: connected, said nothing, left.
        Some(Ok(Filled::End)) => {
            accepted.recording.end(Outcome::Ok, None);
            return None;
        }
        Some(Ok(Filled::Some)) => Ok(()),
        Some(Err(error)) => Err(error),
        None => match Box::pin(accepted.first_word(original, &stream)).await {
            tunnel::FirstWord::Client(server) => {
                dialled = server;
                Ok(())
            }
            tunnel::FirstWord::Server(server) => {
                accepted.recording.record.class = Some(Class::Silent.name());
                Box::pin(accepted.tunnel(original, stream, Vec::new(), Some(server))).await;
                return None;
            }
            tunnel::FirstWord::Nobody => {
                accepted.recording.end(Outcome::Ok, None);
                return None;
            }
        },
    };
    let first = match first {
        Ok(()) => {
            let limits = &accepted.thread.shared.config.limits;
            let (max_head, timeout) = (limits.max_header_bytes, limits.header_timeout);
            classify::read(&mut stream, &mut window, max_head, timeout).await
        }
        Err(error) => Err(error),
    };
    let First { class, head, hello } = match first {
        Ok(first) => first,
        Err(error) => {
            let (outcome, why) = match error.kind() {
                io::ErrorKind::TimedOut => (Outcome::ClientTimeout, Some(error.to_string())),
                // It left before it had said what it wants.
                io::ErrorKind::UnexpectedEof => (Outcome::Ok, None),
                _ => (Outcome::ClientAborted, Some(error.to_string())),
            };
            accepted.recording.end(outcome, why);
            return None;
        }
    };
    accepted.recording.record.class = Some(class.name());
    match hello {
        Some(hello) => Box::pin(accepted.tls(original, stream, window, hello, dialled)).await,
        None => {
            let begun = Begun {
                window,
                timer: Some(timer),
                checked: None,
            };
            let spoken = Spoken { class, head };
            accepted.clear(original, stream, spoken, begun, dialled).await
        }
    }
}

impl<H: Handshake> Accepted<H> {
    /// See [`tunnel::first_word`].
    async fn first_word(&self, original: OriginalDst, client: &TcpStream) -> tunnel::FirstWord {
        tunnel::first_word(&self.thread.shared, self.role.network(), client, original).await
    }

    /// It speaks in the clear.
    async fn clear(
        &mut self,
        original: OriginalDst,
        stream: TcpStream,
        spoken: Spoken,
        mut begun: Begun,
        dialled: Option<TcpStream>,
    ) -> Option<Serving> {
        let class = spoken.class;
        let mut checked = None;
        let decision = match spoken.first_head(begun.window.raw()) {
            Ok(first) => {
                let (target, host) = first.map_or((None, None), |(end, head)| {
                    let outline = head.outline;
                    checked = Some(Checked { end, outline });
                    (head.split_target().0, head.host)
                });
                let decision = match (target, host) {
                    (None, Some(host)) if self.knows(original, host) => Decision::Terminate,
                    _ => decide::connection(class, target, host, &self.thread.shared.catalog),
                };
                // A refused Host may carry user-info: it is not recorded.
                let name = target.or(host).map(normalise);
                self.recording.record.name = match decision {
                    Decision::Refuse(_) => None,
                    // An intake's name has nothing to hide.
                    Decision::Terminate => name,
                    Decision::Tunnel | Decision::Passthrough => {
                        name.map(|name| redact::text(&name).into_owned())
                    }
                };
                decision
            }
            // `server1` refuses it with the reason, and writes the answer.
            Err(_) => Decision::Terminate,
        };
        begun.checked = checked;
        tracing::trace!(client = %self.client.0, class = class.name(), ?decision, "decided");
        match decision {
            Decision::Terminate => {
                drop(dialled);
                let session = Session::clear(stream, begun);
                return Some(self.terminate(Origin::Intercepted(original), session));
            }
            Decision::Refuse(refusal) => {
                let (outcome, reason) = answer::refused(refusal);
                let said = match class {
                    Class::Http2 => answer::GO_AWAY.to_vec(),
                    _ => answer::raw(outcome, reason),
                };
                reject(stream, &said).await;
                self.recording.end(outcome, Some(reason.to_owned()));
            }
            Decision::Tunnel | Decision::Passthrough => {
                let bytes = begun.window.raw().to_vec();
                drop(begun);
                Box::pin(self.tunnel(original, stream, bytes, dialled)).await;
            }
        }
        None
    }

    /// True when a request from a client like this one has found its way before: it asked for an intake, as this one does.
    fn knows(&self, original: OriginalDst, host: &str) -> bool {
        let trust = self.thread.shared.tls.generation();
        let (network, origin) = (self.role.network(), Origin::Intercepted(original));
        self.thread.destinations.knows(trust, network, origin, host)
    }

    /// It speaks TLS.
    async fn tls(
        &mut self,
        original: OriginalDst,
        stream: TcpStream,
        window: Window,
        hello: Result<ClientHello, Malformed>,
        dialled: Option<TcpStream>,
    ) -> Option<Serving> {
        // Whoever speaks TLS has buffers of its own.
        let bytes = window.raw().to_vec();
        drop(window);
        let shared = Arc::clone(&self.thread.shared);
        let hello = match hello {
            Ok(hello) => hello,
            Err(malformed) => {
                reject(stream, &alert::record(Alert::DecodeError)).await;
                let why = format!("the ClientHello cannot be read: {malformed}");
                self.recording.end(Outcome::BadRequest, Some(why));
                return None;
            }
        };
        let process = (shared.peer)(&stream);
        let name = hello.server_name.as_deref().map(normalise);
        self.recording.record.name = name.as_deref().map(|name| redact::text(name).into_owned());
        let decision = decide::tls(
            name.as_deref(),
            process.as_ref().and_then(|process| process.name.as_deref()),
            shared.https.mode(),
            &shared.config.intercept.https_passthrough_names,
            &shared.catalog,
        );
        self.recording.record.process = process;
        tracing::trace!(client = %self.client.0, class = "tls", ?decision, "decided");
        match (decision, &shared.https) {
            (Decision::Terminate, HttpsHandling::Terminate(server)) => {
                drop(dialled);
                let name = name.unwrap_or_default();
                return Box::pin(self.end_session(original, stream, bytes, server, &name)).await;
            }
            (Decision::Passthrough, _) => Box::pin(self.pass(original, stream, bytes, &hello, dialled)).await,
            (Decision::Tunnel, _) => Box::pin(self.tunnel(original, stream, bytes, dialled)).await,
            (Decision::Refuse(_) | Decision::Terminate, _) => {
                let (outcome, reason) = answer::refused(Refusal::Https);
                reject(stream, &alert::record(Alert::AccessDenied)).await;
                self.recording.end(outcome, Some(reason.to_owned()));
            }
        }
        None
    }

    /// The Agent's session ends here.
    async fn end_session(
        &mut self,
        original: OriginalDst,
        stream: TcpStream,
        bytes: Vec<u8>,
        server: &Server,
        name: &str,
    ) -> Option<Serving> {
        self.recording.record.decision = "terminate";
        let shared = Arc::clone(&self.thread.shared);
        let limit = shared.config.limits.header_timeout;
        let (stream, negotiated) = match Box::pin(timeout(limit, server.accept(bytes, stream))).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => {
                self.not_made(name, &error);
                return None;
            }
            Err(_) => {
                let why = "the client did not finish its TLS handshake within limits.header_timeout";
                shared.recorder.client_tls_failed("timeout");
                self.recording.end(Outcome::ClientTimeout, Some(why.to_owned()));
                return None;
            }
        };
        let tls = ClientTls {
            decision: "terminate".to_owned(),
            version: negotiated.version,
            suite: negotiated.suite,
            group: negotiated.group,
            below: None,
        };
        // The leaf was minted for the name that the library read: what is asked for must be that one.
        let asking = self.tls_client(&normalise(&negotiated.peer));
        shared.recorder.client_tls(&asking, &tls);
        self.recording.record.tls = Some(tls);
        let window = Window::new(Rc::clone(&self.thread.buffers));
        let session = Session::tls(stream, window, asking, negotiated.http2);
        Some(self.terminate(Origin::Intercepted(original), session))
    }

    /// The handshake failed. A client that does not trust us is no fault of the moment: it will come back for ever.
    fn not_made(&mut self, name: &str, error: &AcceptError) {
        let recorder = &self.thread.shared.recorder;
        recorder.client_tls_failed(error.reason);
        let said = match &error.alert {
            Some(alert) if error.distrusts() => Some(Said::Alert(alert.clone())),
            _ if error.may_distrust() => Some(Said::Nothing),
            _ => None,
        };
        let outcome = match &said {
            Some(Said::Alert(_)) => Outcome::ClientDistrust,
            Some(Said::Nothing) => Outcome::ClientAborted,
            None => Outcome::ClientTls,
        };
        if let Some(said) = said {
            recorder.client_distrusts(&self.tls_client(name), &said);
        }
        self.recording.end(outcome, Some(error.to_string()));
    }

    fn tls_client(&self, name: &str) -> TlsClient {
        TlsClient {
            name: name.to_owned(),
            process: self.recording.record.process.clone(),
            network: self.role.network(),
        }
    }

    /// The Agent's session is its own, and is held to the policy.
    async fn pass(
        &mut self,
        original: OriginalDst,
        client: TcpStream,
        bytes: Vec<u8>,
        hello: &ClientHello,
        dialled: Option<TcpStream>,
    ) {
        self.recording.record.decision = "passthrough";
        let Some(server) = self.reach(original, dialled).await else {
            return;
        };
        let shared = Arc::clone(&self.thread.shared);
        let asking = self.tls_client(self.recording.record.name.as_deref().unwrap_or_default());
        let recording = &mut self.recording;
        let passed = passthrough::run(client, server, &bytes, hello, &shared.config, |tls| {
            shared.recorder.client_tls(&asking, &tls);
            recording.record.tls = Some(tls);
        })
        .await;
        self.recording.record.bytes_up = passed.up;
        self.recording.record.bytes_down = passed.down;
        self.recording.end(passed.outcome, passed.error);
    }

    /// It is left alone.
    async fn tunnel(
        &mut self,
        original: OriginalDst,
        client: TcpStream,
        bytes: Vec<u8>,
        dialled: Option<TcpStream>,
    ) {
        self.recording.record.decision = "tunnel";
        let Some(server) = self.reach(original, dialled).await else {
            return;
        };
        let idle: Duration = self.thread.shared.config.limits.idle_timeout;
        let copied = tunnel::run(client, server, &bytes, idle).await;
        self.copied(copied);
    }

    /// The original destination, unless it cannot be reached, which is recorded.
    async fn reach(&mut self, original: OriginalDst, dialled: Option<TcpStream>) -> Option<TcpStream> {
        let server = match dialled {
            Some(server) => Ok(server),
            None => tunnel::dial(&self.thread.shared, self.role.network(), original).await,
        };
        match server {
            Ok(server) => Some(server),
            Err(error) => {
                self.recording
                    .end(Outcome::UpstreamConnect, Some(error.to_string()));
                None
            }
        }
    }

    fn copied(&mut self, copied: tunnel::Copied) {
        self.recording.record.bytes_up = copied.up;
        self.recording.record.bytes_down = copied.down;
        match copied.error {
            None => self.recording.end(Outcome::Ok, None),
            Some(error) => self
                .recording
                .end(Outcome::ClientAborted, Some(error.to_string())),
        }
    }
}

/// What a client that speaks in the clear has said.
#[derive(Clone, Copy)]
struct Spoken {
    class: Class,
    /// Length of its first head, for HTTP/1 when there is a whole one.
    head: Option<usize>,
}

impl Spoken {
    /// The first head of HTTP/1 at the beginning of `bytes`, and its length. `Err`: it is not one that we would serve or pass on.
    fn first_head(self, bytes: &[u8]) -> Result<Option<(usize, head::Head<'_>)>, head::Violation> {
        if self.class != Class::Http1 {
            return Ok(None);
        }
        let end = self.head.ok_or(head::Violation::HeadTooLarge)?;
        Ok(Some((end, head::check(&bytes[..end])?)))
    }
}
