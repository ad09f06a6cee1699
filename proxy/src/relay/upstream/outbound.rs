//! The site's outbound proxy: who goes through it, and the tunnel that it is asked for (CONNECT, RFC 9110 section 9.3.6).
//!
//! The proxy is told the intake's name, and on top of that sees sizes and times: the TLS session with the intake is made
//! through the tunnel, and verified as without it. What the proxy answers is read within bounds, and of it nothing but the
//! status is ever repeated.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::socket::Socket;
use crate::config::{OutboundProxy, ProxyUrl, Upstream};
use crate::relay::upstream::target::Target;
use crate::secret::{SecretError, Secrets};
use crate::tls;

/// The longest answer to CONNECT that is read. The common ones have a few hundred bytes, with cookies and pages of policy
/// some thousand.
const MAX_HEAD: usize = 16 * 1024;
/// Header fields of that answer.
const MAX_FIELDS: usize = 100;

/// The outbound proxy, with all that every tunnel needs.
pub struct Outbound {
    settings: OutboundProxy,
    url: ProxyUrl,
    authority: Arc<str>,
    /// The value of Proxy-Authorization.
    authorization: Option<Zeroizing<String>>,
    tls: Option<tls::Client>,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Why the proxy cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// Its credentials cannot be read.
    #[error("upstream.proxy.credentials_file {0}")]
    Secret(#[from] SecretError),
    /// They are not what the proxy can be told.
    #[error("upstream.proxy.credentials_file {}: {problem}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong; never what it holds.
        problem: &'static str,
    },
    /// No TLS with it.
    #[error(transparent)]
    Tls(#[from] tls::ConfigError),
}

/// Why there is no tunnel. Holds no byte of what the proxy said but its status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::relay) enum TunnelFailure {
    /// TLS with the proxy itself.
    #[error("{0}")]
    Tls(String),
    /// 407, and no credentials to give.
    #[error("it wants credentials (407); set upstream.proxy.credentials_file")]
    WantsCredentials,
    /// 407 although it was given some.
    #[error(
        "it refuses the credentials of upstream.proxy.credentials_file, or wants others than Basic ones (407)"
    )]
    RefusesCredentials,
    /// 403, and what else says that it is not allowed.
    #[error(
        "it forbids this destination ({0}); its rules must allow CONNECT to the intake's names and upstream.port"
    )]
    Forbids(u16),
    /// 5xx.
    #[error("it cannot reach this destination ({0}); its resolver and its way out must")]
    CannotReach(u16),
    /// Any other status.
    #[error("it answered CONNECT with {0}; is upstream.proxy.url an HTTP proxy?")]
    Status(u16),
    /// Its answer is not one.
    #[error("its answer to CONNECT is not HTTP ({0}); is upstream.proxy.url an HTTP proxy?")]
    Malformed(&'static str),
    /// It broke the connection.
    #[error("it broke the connection before it answered CONNECT ({0})")]
    Broken(String),
}

impl TunnelFailure {
    /// True when another address of the proxy may do better: it did not decide, it broke.
    pub(super) fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Tls(_))
    }
}

impl Outbound {
    /// The proxy of these settings; `None` when there is none.
    ///
    /// # Errors
    /// Credentials or roots that cannot be used.
    pub fn new(upstream: &Upstream, secrets: &Secrets) -> Result<Option<Self>, OutboundError> {
        let settings = upstream.proxy.clone();
        let Some(url) = settings.url.clone() else {
            return Ok(None);
        };
        let authorization = match &settings.credentials_file {
            Some(path) => {
                let text = secrets.read(path)?;
                Some(basic(&text).map_err(|problem| OutboundError::Credentials {
                    path: path.clone(),
                    problem,
                })?)
            }
            None => None,
        };
        let tls = url
            .tls
            .then(|| tls::Client::for_proxy(upstream.tls_policy, &settings))
            .transpose()?;
        Ok(Some(Self {
            authority: url.authority().into(),
            settings,
            url,
            authorization,
            tls,
        }))
    }

    /// `host:port`, as records and messages name it.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Host and port that are dialled.
    pub(super) fn address(&self) -> (&str, u16) {
        (&self.url.host, self.url.port)
    }

    /// True when `target`, whose connections lead to `host` and `port`, goes through the proxy. `original` is where an
    /// intercepted client meant to go.
    pub(super) fn carries(
        &self,
        target: &Target,
        (host, port): (&str, u16),
        original: Option<SocketAddr>,
    ) -> bool {
        let settings = &self.settings;
        if !settings.products.is_empty() && !settings.products.contains(&target.product) {
            return false;
        }
        let original = original.map(|original| original.ip());
        !settings
            .no_proxy
            .iter()
            .any(|entry| entry.matches(host, port, original) || entry.matches(&target.name, port, None))
    }

    /// Turns a connection with the proxy into one with `destination` (`host:port`).
    pub(super) async fn tunnel(&self, socket: Socket, destination: &str) -> Result<Socket, TunnelFailure> {
        let mut socket = match &self.tls {
            None => socket,
            Some(tls) => {
                let connected = tls.connect(&self.url.host, socket).await;
                let (session, _) = connected.map_err(|error| TunnelFailure::Tls(error.to_string()))?;
                Socket::sealed(session)
            }
        };
        let broken = |error: std::io::Error| TunnelFailure::Broken(error.to_string());
        socket
            .write_all(self.request(destination).as_bytes())
            .await
            .map_err(broken)?;
        socket.flush().await.map_err(broken)?;
        let mut head = Vec::with_capacity(1024);
        loop {
            if let Some(answer) = parse(&head)? {
                return match answer.status {
                    // Nothing can follow: in TLS the client speaks first. Whoever speaks now is not the intake.
                    200..=299 if head.len() > answer.len => {
                        Err(TunnelFailure::Malformed("bytes after the head"))
                    }
                    200..=299 => Ok(socket),
                    407 if self.authorization.is_some() => Err(TunnelFailure::RefusesCredentials),
                    407 => Err(TunnelFailure::WantsCredentials),
                    status @ (401 | 403 | 405 | 451) => Err(TunnelFailure::Forbids(status)),
                    status @ 500..=599 => Err(TunnelFailure::CannotReach(status)),
                    status => Err(TunnelFailure::Status(status)),
                };
            }
            if head.len() >= MAX_HEAD {
                return Err(TunnelFailure::Malformed("an endless head"));
            }
            let room = MAX_HEAD - head.len();
            let read = (&mut socket)
                .take(room as u64)
                .read_buf(&mut head)
                .await
                .map_err(broken)?;
            if read == 0 {
                return Err(TunnelFailure::Broken("it closed it".to_owned()));
            }
        }
    }

    fn request(&self, destination: &str) -> Zeroizing<String> {
        let authorization = self.authorization.as_deref().map_or("", String::as_str);
        let lines = [
            "CONNECT ",
            destination,
            " HTTP/1.1\r\nHost: ",
            destination,
            "\r\nUser-Agent: agent-fips-proxy/",
            env!("CARGO_PKG_VERSION"),
            "\r\n",
            if authorization.is_empty() {
                ""
            } else {
                "Proxy-Authorization: Basic "
            },
            authorization,
            if authorization.is_empty() {
                "\r\n"
            } else {
                "\r\n\r\n"
            },
        ];
        // One allocation of the right size: a text that grows would leave copies behind.
        Zeroizing::new(lines.concat())
    }
}

struct Answer {
    status: u16,
    /// Bytes of the head, and of interim ones before it.
    len: usize,
}

/// The final answer at the beginning of `bytes`; `None` when it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, TunnelFailure> {
    let mut at = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response
            .parse(&bytes[at..])
            .map_err(|_| TunnelFailure::Malformed("no HTTP/1 head"))?;
        let httparse::Status::Complete(len) = parsed else {
            return Ok(None);
        };
        at += len;
        match response.code {
            Some(100..=199) => {}
            Some(status) => return Ok(Some(Answer { status, len: at })),
            None => return Err(TunnelFailure::Malformed("no status")),
        }
    }
}

/// `user:password` as Basic credentials (RFC 7617).
fn basic(text: &[u8]) -> Result<Zeroizing<String>, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8")?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains(char::is_control) {
        return Err("it holds more than one line, or control characters");
    }
    match line.split_once(':') {
        None => Err("it is not of the form user:password"),
        Some(("", _)) => Err("the user before the colon is empty"),
        Some(_) => Ok(Zeroizing::new(STANDARD.encode(line))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_one_line_of_user_and_password() {
        for (text, expected) in [
            ("Aladdin:open sesame", Ok("QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            ("Aladdin:open sesame\n", Ok("QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            ("Aladdin:open sesame\r\n", Ok("QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            ("u:", Ok("dTo=")),
            ("u:a:b", Ok("dTphOmI=")),
            ("u:p\n\n", Err("more than one line")),
            ("u:p\r\nX: y", Err("more than one line")),
            ("password", Err("user:password")),
            (":p", Err("user before the colon")),
            ("", Err("user:password")),
        ] {
            match (basic(text.as_bytes()), expected) {
                (Ok(value), Ok(expected)) => assert_eq!(*value, expected),
                (Err(problem), Err(expected)) => assert!(problem.contains(expected), "{problem}"),
                (got, expected) => panic!("{text:?}: {got:?}, expected {expected:?}"),
            }
        }
        assert!(basic(b"u:\xff").is_err());
    }

    #[test]
    fn answers_are_read_to_the_end_of_the_final_head_and_no_further() {
        let complete = |bytes: &[u8]| parse(bytes).unwrap().map(|answer| (answer.status, answer.len));
        assert_eq!(complete(b""), None);
        assert_eq!(complete(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(complete(b"HTTP/1.1 200 OK\r\n\r\n"), Some((200, 19)));
        assert_eq!(
            complete(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nmore"),
            Some((200, 47))
        );
        assert_eq!(complete(b"HTTP/1.1 100 Continue\r\n\r\n"), None);
        assert_eq!(
            complete(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 407 No\r\n\r\n"),
            Some((407, 44))
        );
        for bad in [
            &b"SSH-2.0-x\r\n"[..],
            b"HTTP/2 200\r\n\r\n",
            b"\x15\x03\x01",
            b"HTTP/1.1 20 x\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let many = ["HTTP/1.1 200 OK\r\n", &"a: b\r\n".repeat(MAX_FIELDS + 1), "\r\n"].concat();
        assert!(parse(many.as_bytes()).is_err());
    }
}
